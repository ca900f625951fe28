"""Writing image files, with color profile, software, EXIF, XMP and alpha."""

import numpy as np
import pytest
from PIL import Image, features

from ugicm import color, image_writer, images
from ugicm.atomic import WriteError
from ugicm.errors import ImageError


def as_array(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", ["x.png", "x", "x.bmp", "x.tiff", "x.webp", "x.ppm", "X.PNG"])
def test_save_image_lossless_formats(name, tmp_path, make_image):
    image = make_image()
    image_writer.save_image(image, tmp_path / "new" / name)
    assert images.open_rgb(tmp_path / "new" / name).tobytes() == image.tobytes()
    assert [p.name for p in (tmp_path / "new").iterdir()] == [name]


@pytest.mark.parametrize(("name", "form"), [("x.jpg", "JPEG"), ("x.mpo", "JPEG"), ("x.avif", "AVIF")])
def test_save_image_lossy_formats(name, form, tmp_path, make_image):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image_writer.save_image(make_image(), tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert saved.format == form
        assert np.abs(as_array(saved) - as_array(make_image())).max() <= 8


def test_save_image_with_explicit_format(tmp_path, make_image):
    image_writer.save_image(make_image(), tmp_path / "x", "from somewhere", "WEBP")
    with Image.open(tmp_path / "x") as saved:
        assert saved.format == "WEBP"
    assert images.software(tmp_path / "x") == "from somewhere"


def test_save_image_names_unsupported_formats(tmp_path, make_image):
    for name in ("x.xyz", "x.ugic", "x.pdf", "x.ico", "x.icns", "x.palm", "x.xbm", "x.wmf"):
        with pytest.raises(ImageError, match=f"{name}: cannot write .*try .png"):
            image_writer.save_image(make_image(), tmp_path / name)
    with pytest.raises(ImageError, match="65501x1 image cannot be written as JPEG"):
        image_writer.save_image(Image.new("RGB", (65501, 1)), tmp_path / "wide.jpg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["write", "read"])
def test_image_format_rejects_formats_without_round_trip(missing, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("not installed")

    monkeypatch.setattr(*((Image.Image, "save", fail) if missing == "write" else (Image, "open", fail)))
    image_writer._can_round_trip.cache_clear()
    with pytest.raises(ImageError, match="x.tga: cannot write .tga"):
        image_writer.image_format("x.tga")
    image_writer._can_round_trip.cache_clear()


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tiff", "x.mpo"])
def test_save_image_writes_software(name, tmp_path, make_image):
    path = tmp_path / name
    image_writer.save_image(make_image(), path)
    plain, before = images.open_rgb(path), images.software(path)
    image_writer.save_image(make_image(), path, "from somewhere")
    assert (before, images.software(path)) == (None, "from somewhere")
    assert image_writer.holds_software(path) and not image_writer.holds_software("x.bmp")
    assert np.array_equal(as_array(images.open_rgb(path)), as_array(plain))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tiff", "x.avif"])
def test_save_image_embeds_srgb(name, tmp_path, make_image):
    if name == "x.avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image_writer.save_image(make_image(), tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert saved.info["icc_profile"] == color.srgb_profile()


def test_save_image_below_a_file_raises_write_error(tmp_path, make_image):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="x.png: cannot be written: not a folder"):
        image_writer.save_image(make_image(), tmp_path / "file" / "x.png")


FORMATS = ["x.png", "x.jpg", "x.webp", "x.tiff", "x.avif"]
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>text</x:xmpmeta>"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_save_image_keeps_what_decoded_images_carry(name, mode, tmp_path, make_image):
    if name == "x.avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = make_image().convert(mode)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x010F], exif[0x0131] = "a camera", "an editor"
    image.info = {"exif": exif.tobytes(), "xmp": XMP}
    path = tmp_path / name
    if name == "x.jpg" and "A" in mode:
        with pytest.warns(UserWarning, match="JPEG holds no alpha"):
            image_writer.save_image(image, path, "ugicm 0 human")
    else:
        image_writer.save_image(image, path, "ugicm 0 human")
    source = images.read(path)
    with Image.open(path) as saved:
        tags = saved.getexif()
        assert (tags[0x010F], tags[0x0131]) == ("a camera", "ugicm 0 human")
        assert saved.info["xmp"].rstrip() == XMP
    assert images.software(path) == "ugicm 0 human"
    if "A" in mode and name != "x.jpg":
        lossy = 3 if name == "x.avif" else 0
        assert np.abs(as_array(source.alpha) - as_array(image.getchannel("A"))).max() <= lossy
    assert source.gray == (mode in ("L", "LA") and name not in ("x.webp", "x.avif")) or name == "x.avif" or "A" in mode


def test_save_image_drops_metadata_that_cannot_be_written(tmp_path, make_image):
    image = make_image()
    image.info["xmp"] = b"x" * 70000  # more than JPEG holds
    with pytest.warns(UserWarning, match="^metadata that Pillow cannot write into JPEG is dropped"):
        image_writer.save_image(image, tmp_path / "x.jpg", "from somewhere")
    assert images.software(tmp_path / "x.jpg") == "from somewhere"
