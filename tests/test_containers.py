"""Sound files that Pillow refuses or misreads."""

import io
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from image_bytes import gray_png, png, ramp, tiff
from PIL import Image

from ugicm import containers, files, images
from ugicm.errors import ImageError


def levels(source):
    return np.asarray(images.open_rgb(source)).astype(int)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


LONG = zlib.compress(bytes(2 << 20))
LONG_CHUNKS = {
    "zTXt": (b"zTXt", b"prompt\0\0" + LONG),
    "iTXt": (b"iTXt", b"prompt\0\1\0\0\0" + LONG),
    "long XMP": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "EXIF in a long text": (b"zTXt", b"Raw profile type exif\0\0" + LONG),
    "invalid text": (b"zTXt", b"prompt\0\7nothing"),
    "short pHYs": (b"pHYs", b"\0"),
}


@pytest.mark.parametrize("name", LONG_CHUNKS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_png_with_chunks_that_pillow_refuses(name, place):
    assert (levels(gray_png(**{place: [LONG_CHUNKS[name]]})) == 100).all()


def test_png_with_many_texts():
    text = (b"zTXt", b"prompt\0\0" + zlib.compress(bytes(1 << 20)))
    assert (levels(gray_png(before=[text] * 70)) == 100).all()


def test_png_keeps_xmp_and_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png([bytes(3 * 6)] * 4, 8, 2, before=[(b"eXIf", exif.tobytes()[6:])], after=[LONG_CHUNKS["zTXt"]])
    assert images.open_rgb(data).size == (4, 6)
    with images.open_image(io.BytesIO(gray_png(before=[(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>")]))) as image:
        assert image.info["xmp"] == b"<x/>"


def test_png_without_end_is_named():
    with pytest.raises(ImageError, match="^image data: "):
        levels(gray_png()[:44])


@pytest.mark.parametrize(
    ("bits", "color", "row", "transparent", "alpha"),
    [(1, 0, b"\x40", [1], [255, 0, 255, 255, 255, 255, 255, 255]), (2, 0, b"\x1b", [1], [255, 0, 255, 255]),
     (4, 0, b"\x0f", [15], [255, 0]), (8, 0, b"\x0f\x01", [1], [255, 0]), (16, 0, b"\3\xe8\0\1", [1000], [0, 255]),
     (16, 2, struct.pack(">6H", 1000, 2000, 3000, 0, 0, 0), [1000, 2000, 3000], [0, 255])],
)  # fmt: skip
def test_png_transparent_color_at_every_depth(bits, color, row, transparent, alpha):
    data = png([row], bits, color, before=[(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))])
    assert np.asarray(images.read(data).alpha)[0].tolist() == alpha


# TIFF


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("planes", "bits"), [(3, 8), (4, 8), (5, 8), (3, 16), (4, 16)])  # Pillow refuses 5 of 16 bits
def test_tiff_in_planes(order, bits, planes):
    """The fourth plane is alpha, a fifth has no meaning."""
    colors = [ramp(), ramp() / 2, 1 - ramp(), np.ones_like(ramp()), ramp()][:planes]
    extra = {338: ("H", *[2, 0][: planes - 3])} if planes > 3 else {}
    data = tiff(([(c * (2**bits - 1)).astype(f"u{bits // 8}") for c in colors], extra), order=order)
    assert np.abs(levels(data) - np.stack(colors[:3], -1) * 255).max() <= 1
    assert images.read(data).alpha is None


@pytest.mark.parametrize(
    ("kind", "order"), [("u2", "<"), ("u2", ">"), ("i2", "<"), ("i2", ">"), ("i4", "<"), ("i4", ">"), ("u4", "<")]
)
def test_tiff_integers_are_scaled_by_their_range(order, kind):
    values = (ramp() * np.iinfo(kind).max).astype(kind)
    expected = warnings.catch_warnings() if kind[1] == "2" else pytest.warns(UserWarning, match="integers of 32 bits")
    with expected:
        out = levels(tiff(([values], {}), order=order))
    assert np.abs(out - ramp()[..., None] * 255).max() <= 1


def test_tiff_integers_of_32_bits_that_hold_16():
    for kind in ("u4", "i4"):
        out = levels(tiff(([(ramp() * 65535).astype(kind)], {})))
        assert np.abs(out - ramp()[..., None] * 255).max() <= 1


def test_tiff_negative_integers_are_said():
    with pytest.warns(UserWarning, match="negative ones to 0"):
        assert levels(tiff(([np.array([[-5, 65535]], "i4")], {})))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_tiff_whose_white_is_zero(kind):
    values = ramp() * (1 if kind == "f4" else np.iinfo(kind).max)
    out = levels(tiff(([values.astype(kind)], {262: ("H", 0)})))
    assert np.abs(out - (1 - ramp()[..., None]) * 255).max() <= 1


PAGE = np.full((8, 10), 90, "u1")


def test_tiff_pages_are_counted_without_reduced_ones_and_masks():
    assert images.read(tiff(([PAGE], {}), ([PAGE[::2]], {254: ("I", 1)}), ([PAGE], {254: ("I", 4)}))).frames == 1
    with pytest.warns(UserWarning, match="^only the first of 2 pages or frames is read$"):
        assert images.read(tiff(([PAGE], {}), ([PAGE[::2]], {254: ("I", 1)}), ([PAGE], {254: ("I", 2)}))).frames == 2


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_frames_are_said(name):
    frames = [Image.new("RGB", (16, 16), (level, 0, 0)) for level in (20, 120, 220)]
    buffer = io.BytesIO()
    frames[0].save(buffer, name, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="only the first of 3"):
        assert abs(levels(buffer)[0, 0, 0] - 20) < 12


def test_previews_in_mpo_are_no_frames():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert images.read(buffer).frames == 1


def test_raw_photographs_are_refused():
    raw = tiff(([PAGE[::4]], {254: ("I", 1), 330: ("I", 8)}))
    other = tiff(([PAGE[::4]], {254: ("I", 1)}), ([PAGE], {}))
    for data in (raw, other):
        with pytest.raises(ImageError, match="only the preview of this raw image, 10x2"):
            levels(data)
    assert levels(tiff(([PAGE], {254: ("I", 1)}))).shape == (8, 10, 3)  # nothing else is in this file


# EXIF

ODD = {
    "resolution as text": (0x011A, 2, b"72\0"),
    "resolution as a byte": (0x011A, 1, b"H"),
    "make as a float": (0x010F, 11, b"\0\0\x80?"),
    "unit as undefined": (0x0128, 7, b"2"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
def test_exif_of_odd_types(name, form):
    tag, kind, value = ODD[name]
    rows = sorted([(0x0112, 3, 1, b"\6\0"), (tag, kind, len(value) // (4 if kind == 11 else 1), value)])
    exif = b"Exif\0\0II*\0\x08\0\0\0\2\0" + b"".join(struct.pack("<HHI4s", *row) for row in rows) + bytes(4)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8)).save(buffer, form, exif=exif)
    assert images.open_rgb(buffer).size == images.upright_size(buffer) == (8, 16)


def test_exif_that_is_no_exif():
    warnings.simplefilter("ignore")  # Pillow's own warning
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8)).save(buffer, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert images.open_rgb(buffer).size == images.upright_size(buffer) == (16, 8)


# Plugins


def test_jpeg_xl(make_image):
    pytest.importorskip("pillow_jxl")
    buffer = io.BytesIO()
    make_image().save(buffer, "JXL", lossless=True)
    assert np.array_equal(levels(buffer), np.asarray(make_image()))


@pytest.mark.parametrize(
    ("head", "package"), [(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif"), (b"\xff\x0a", "pillow-jxl-plugin"),
                          (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "pillow-heif")],
)  # fmt: skip
def test_formats_without_their_package_name_it(head, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module_of(package), None)
    with pytest.raises(ImageError, match=f"^image data: this format needs {package}: pip install {package}$"):
        levels(head + bytes(64))


def module_of(package):
    return next(name for name, (found, _) in files.IMAGE_PACKAGES.items() if found == package)


# Boxes


def box(kind, *content):
    return struct.pack(">I", 8 + sum(map(len, content))) + kind + b"".join(content)


def test_color_boxes():
    nclx = box(b"colr", b"nclx", struct.pack(">HHHB", 9, 16, 9, 128))
    avif = box(b"ftyp", b"avif") + box(b"meta", bytes(4), box(b"pitm"), box(b"iprp", box(b"ipco", box(b"ispe"), nclx)))
    assert containers.prepare(io.BytesIO(avif))[1] == {"cicp": (9, 16)}
    icc = box(b"colr", b"\2\0\0profile")
    jp2 = b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 ") + box(b"jp2h", box(b"ihdr"), icc)
    assert containers.prepare(io.BytesIO(jp2))[1] == {"icc_profile": b"profile"}


def test_hostile_boxes_end():
    rng = np.random.default_rng(0)
    good = box(b"ftyp", b"avif") + box(b"meta", bytes(4), box(b"iprp", box(b"ipco", box(b"colr", b"nclx"))))
    for data in (good + bytes(1 << 20), box(b"ftyp", b"avif") + box(b"free") * 10**5, good[:-3]):
        containers.prepare(io.BytesIO(data))
    for _ in range(300):
        damaged = np.frombuffer(good, np.uint8).copy()
        damaged[rng.integers(0, len(good), 4)] = rng.integers(0, 256, 4)
        containers.prepare(io.BytesIO(damaged.tobytes()))
