"""Colors of other color spaces, against values computed here."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from image_bytes import gray_png, png, ramp, tiff
from PIL import Image, ImageCms, features

from ugicm import color, images

P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
COLOR = (200, 100, 50)


def encoded(linear):
    """Return sRGB levels of linear light."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def decoded(levels):
    values = np.asarray(levels) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def p3_to_srgb(levels):
    matrix = [[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]]  # of Display P3, as published
    return encoded(np.array(matrix) @ decoded(levels))


def p3_profile():
    return color._matrix_profile(P3, color._SRGB_CURVE)


def levels(source):
    return np.asarray(images.open_rgb(source)).astype(int)


def written(form, image=None, **options):
    buffer = io.BytesIO()
    lossless = {"WEBP": {"lossless": True}, "PNG": {}, "TIFF": {}}
    options |= lossless.get(form, {"quality": 100, "subsampling": "4:4:4"})
    (image or Image.new("RGB", (16, 16), COLOR)).save(buffer, form, **options)
    return buffer


def iccp(profile):
    return b"iCCP", b"profile\0\0" + zlib.compress(profile)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_profiles_in_every_format(form):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    with pytest.warns(UserWarning, match="converted to sRGB"):
        out = levels(written(form, icc_profile=p3_profile()))
    assert np.abs(out[0, 0] - p3_to_srgb(COLOR)).max() <= 2.5
    assert p3_to_srgb(COLOR)[0] > 210  # not the levels of the file


def test_profile_in_jpeg_2000():
    if not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    data = written("JPEG2000", irreversible=False).getvalue()
    at, header = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    length, outer = struct.unpack_from(">I", data, at)[0], struct.unpack_from(">I", data, header)[0]
    box = struct.pack(">I4s", 11 + len(p3_profile()), b"colr") + b"\2\0\0" + p3_profile()
    data = data[:at] + box + data[at + length :]
    data = data[:header] + struct.pack(">I", outer + len(box) - length) + data[header + 4 :]
    with pytest.warns(UserWarning, match="converted to sRGB"):
        assert np.abs(levels(data)[0, 0] - p3_to_srgb(COLOR)).max() <= 2


@pytest.mark.parametrize("name", ["sRGB IEC61966-2.1", "c2", "Adobe RGB (1998)"])
@pytest.mark.parametrize("gamma", [None, 1.0, 1.8])
def test_profiles_are_judged_by_what_they_do(name, gamma):
    """A profile without a description, with a misleading one, and its curve."""
    curve = color._SRGB_CURVE if gamma is None else color._CURVE**gamma
    profile = color._matrix_profile(color._BT709, curve)
    image = Image.new("RGB", (4, 4), (100, 100, 100))
    image.info["icc_profile"] = profile + name.encode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        out = levels(image)[0, 0]
    assert len(said) == (gamma is not None)
    assert np.abs(out - (100 if gamma is None else encoded((100 / 255) ** gamma))).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16", "YCbCr"])
def test_profiles_apply_to_every_mode(mode):
    profile, alpha = color._matrix_profile(color._BT709, color._CURVE), None
    if mode == "I;16":
        image = Image.fromarray((ramp() * 65535).astype(np.uint16))
        expected = encoded(ramp())
    else:
        image = Image.fromarray(np.rint(np.repeat(ramp()[..., None], 3, 2) * 255).astype(np.uint8)).convert("L")
        image = image.convert("RGB").convert(mode) if mode not in ("LA", "1", "L") else image.convert(mode)
        expected = encoded(np.asarray(image.convert("L")) / 255.0)
        alpha = images.read(image).alpha
    image.info["icc_profile"] = profile
    with pytest.warns(UserWarning, match="converted to sRGB"):
        out = levels(image)
    # A step of one level at the dark end of linear light is a step of 13 levels of sRGB.
    assert np.abs(out - expected[..., None])[ramp() > 0.1].max() <= 3 and alpha is None


def test_gray_profile():
    parts = {b"wtpt": b"XYZ \0\0\0\0" + np.rint(color._D50 * 65536).astype(">i4").tobytes(),
             b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHH", 1, 0x0100, 0)}  # fmt: skip
    body = b"".join(parts.values())
    start, table = 132 + 24, struct.pack(">I", 2)
    for name, content in parts.items():
        table += struct.pack(">4sII", name, start, len(content))
        start += len(content)
    header = struct.pack(">I4xI4s4s4s12x4s28x", start, 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    profile = (header + np.rint(color._D50 * 65536).astype(">i4").tobytes()).ljust(128, b"\0") + table + body
    with pytest.warns(UserWarning, match="converted to sRGB"):
        out = levels(written("PNG", Image.new("L", (8, 8), 100), icc_profile=profile))
    assert np.abs(out - encoded(100 / 255)).max() <= 1
    with pytest.warns(UserWarning, match="invalid are ignored"):  # color has no gray profile
        assert levels(written("PNG", icc_profile=profile))[0, 0].tolist() == list(COLOR)


@pytest.mark.parametrize("profile", [b"nothing of the kind", bytes(3 << 19), None])
def test_invalid_profiles_are_ignored(profile):
    cmyk = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    data = gray_png(before=[iccp(profile or cmyk)])
    with pytest.warns(UserWarning, match="^color profiles that are invalid are ignored: colors are taken as sRGB$"):
        assert (levels(data) == 100).all()


def test_srgb_profile_is_always_the_same_and_changes_nothing(make_image):
    assert color.srgb_profile() == color.srgb_profile()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (levels(written("PNG", make_image(), icc_profile=color.srgb_profile())) == make_image()).all()
        assert (levels(gray_png(before=[(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))])) == 100).all()
        assert (levels(gray_png(before=[(b"gAMA", struct.pack(">I", 45455))])) == 100).all()


# Color spaces said otherwise


def chrm(values=P3):
    return b"cHRM", struct.pack(">8I", *(round(value * 1e5) for value in values))


def one_color(*before):
    return png([bytes(COLOR * 8)] * 8, 8, 2, before=before)


@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8, 0.3])
def test_png_gamma(gamma):
    with pytest.warns(UserWarning, match="converted to sRGB"):
        out = levels(gray_png(before=[(b"gAMA", struct.pack(">I", round(gamma * 1e5)))]))
    assert np.abs(out - encoded((100 / 255) ** (1 / gamma))).max() <= 1


def test_png_primaries_and_priorities():
    cicp, linear = (b"cICP", bytes([12, 13, 0, 1])), (b"gAMA", struct.pack(">I", 100000))
    for chunks in ([chrm()], [cicp], [cicp, iccp(b"nothing")], [iccp(p3_profile()), linear]):
        with pytest.warns(UserWarning, match="converted to sRGB"):
            assert np.abs(levels(one_color(*chunks))[0, 0] - p3_to_srgb(COLOR)).max() <= 1.5


@pytest.mark.parametrize("chunk", [chrm((0,) * 8), chrm((0.3,) * 8), (b"gAMA", bytes(4))])
def test_png_with_impossible_colors(chunk):
    with pytest.warns(UserWarning, match="invalid are ignored"):
        assert levels(one_color(chunk))[0, 0].tolist() == list(COLOR)


def pq(light):
    """Return the PQ level of light in cd/m2."""
    y = (light / 10000) ** 0.1593017578125
    return 255 * ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


@pytest.mark.filterwarnings("ignore:colors of other color spaces")
@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_high_dynamic_range_is_clipped_to_diffuse_white(transfer):
    code = {"PQ": 16, "HLG": 18}[transfer]
    white = round(pq(203) if transfer == "PQ" else 0.75 * 255)
    middle = round(pq(203 * 0.2) if transfer == "PQ" else 255 * (3 * (0.203 * 0.2) ** (1 / 1.2)) ** 0.5)
    for level, expected in ((white, 255), (250, 255), (middle, encoded(0.2)), (0, 0)):
        with pytest.warns(UserWarning, match="high dynamic range is clipped to diffuse white"):
            assert np.abs(levels(gray_png(level, before=[(b"cICP", bytes([9, code, 0, 1]))])) - expected).max() <= 4


@pytest.mark.filterwarnings("ignore:high dynamic range", "ignore:colors of other color spaces")
@pytest.mark.parametrize("signal, nits", [
    ((128, 128, 128), (51.2, 51.2, 51.2)),  # a signal of one half: 1/12 of the light of the scene
    ((191, 191, 191), (203, 203, 203)),  # diffuse white of ITU-R BT.2408
    ((160, 128, 100), (91.3, 52.8, 32.2)),
])  # fmt: skip
def test_hlg_gamma_is_applied_to_the_luminance(signal, nits):
    to_bt709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
    pixels = levels(png([bytes(signal * 8)] * 8, 8, 2, before=[(b"cICP", bytes([9, 18, 0, 1]))]))
    assert np.abs(pixels[0, 0] - encoded((to_bt709 @ nits / 203).clip(0, 1))).max() <= 3


def test_avif_color_box():
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = bytearray(written("AVIF").getvalue())
    at = data.index(b"nclx") + 4
    assert np.abs(levels(bytes(data))[0, 0] - COLOR).max() <= 3
    data[at : at + 4] = struct.pack(">HH", 12, 13)
    with pytest.warns(UserWarning, match="converted to sRGB"):
        assert np.abs(levels(bytes(data))[0, 0] - p3_to_srgb(COLOR)).max() <= 4


def test_tiff_primaries():
    pixels = np.full((4, 4, 3), COLOR, "u1")
    with pytest.warns(UserWarning, match="converted to sRGB"):
        out = levels(tiff(([pixels], {318: ("Q", *P3[:2]), 319: ("Q", *P3[2:])})))
    assert np.abs(out[0, 0] - p3_to_srgb(COLOR)).max() <= 1.5


@pytest.mark.parametrize("tags", [{0xA001: 2}, {0xA001: 65535, 0xA005: {1: "R03"}}])
def test_adobe_rgb_of_cameras(tags):
    exif = Image.Exif()
    exif[0x8769] = tags
    matrix = [[1.3984, -0.3984, 0], [0, 1, 0], [0, -0.0429, 1.0429]]  # of Adobe RGB, as published
    expected = encoded(np.array(matrix) @ (np.array(COLOR) / 255) ** 2.19921875)
    with pytest.warns(UserWarning, match="converted to sRGB"):
        assert np.abs(levels(written("JPEG", exif=exif))[0, 0] - expected).max() <= 3
    exif[0x8769] = {0xA001: 1, 0xA005: {1: "R98"}}
    assert np.abs(levels(written("JPEG", exif=exif))[0, 0] - COLOR).max() <= 2
