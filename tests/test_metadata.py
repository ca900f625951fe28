"""Alpha, gray, EXIF and XMP through a bitstream."""

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from plain_decoder import read_file

import ugicm
from ugicm import bitstream, images, metadata
from ugicm.errors import StreamError


@pytest.fixture(scope="module")
def codec(checkpoint):
    return ugicm.load(checkpoint)


def with_alpha(image):
    image = image.convert("RGBA")
    alpha = np.asarray(Image.linear_gradient("L").resize(image.size)).copy()
    alpha[:, :10] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


def test_alpha_is_lossless_in_parts_and_for_every_preference(codec, make_image):
    image = with_alpha(make_image(100, 70))
    data = codec.compress(image)
    for decoded in codec.decompress(data, ["human", 0.5]):
        assert decoded.mode == "RGBA" and decoded.getchannel("A").tobytes() == image.getchannel("A").tobytes()
    part = codec.decompress(data, region=(20, 30, 15, 25))
    assert part.getchannel("A").tobytes() == image.getchannel("A").crop((20, 30, 35, 55)).tobytes()
    assert codec.decompress(data, output="numpy").shape == (70, 100, 3)


def test_colors_behind_transparency_do_not_matter(codec, make_image):
    image = with_alpha(make_image(100, 70))
    other = image.copy()
    other.paste((1, 2, 3, 0), (0, 0, 10, 70))
    assert codec.compress(image) == codec.compress(other)
    invisible = make_image().convert("RGBA")
    invisible.putalpha(0)
    assert codec.decompress(codec.compress(invisible)).getextrema()[3] == (0, 0)


def test_opaque_color_images_have_no_boxes(codec, make_image):
    for image in (make_image(), make_image().convert("RGBA")):
        assert bitstream.parse(codec.compress(image)).version == 4


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_gray_stays_gray(codec, mode, make_image):
    gray = make_image().convert("L")
    image = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257) if mode == "I;16" else gray.convert(mode)
    if mode == "LA":
        image.putalpha(100)
    data = codec.compress(image)
    assert codec.decompress(data).mode == ("LA" if mode == "LA" else "L")
    assert bitstream.info(data)["gray"]
    assert codec.decompress(data, output="numpy").shape == (30, 40, 3)


@pytest.mark.parametrize("order", "<>")
def test_exif_keeps_its_bytes_but_the_orientation(codec, order, tmp_path, make_image):
    name = b"II*\0" if order == "<" else b"MM\0*"
    note = struct.pack(order + "HHI4s", 0x927C, 7, 4, b"note")  # a maker's note
    entries = struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0) + note
    exif = name + struct.pack(order + "IH", 8, 2) + entries + bytes(4) + b"the rest"
    make_image().save(tmp_path / "x.jpg", exif=b"Exif\0\0" + exif)
    data = codec.compress(tmp_path / "x.jpg")
    upright = exif.replace(struct.pack(order + "HIH", 3, 1, 6), struct.pack(order + "HIH", 3, 1, 1))
    assert bitstream.parse(data).boxes == {"exif": upright}
    decoded = codec.decompress(data)
    assert decoded.size == (30, 40) and decoded.info["exif"] == b"Exif\0\0" + upright
    assert images.open_rgb(decoded).size == (30, 40)


@pytest.mark.parametrize("exif", [b"", b"II", b"II*\0\xff\xff\xff\xff", b"nothing", b"MM\0*\0\0\0\x08\xff\xff"])
def test_upright_exif_of_anything(exif):
    assert metadata.upright_exif(exif) == exif


def test_xmp_is_kept_without_its_orientation(codec, make_image):
    image = make_image()
    image.info["xmp"] = b'<x tiff:Orientation="6"/><tiff:Orientation>3</tiff:Orientation>'
    (xmp,) = bitstream.parse(codec.compress(image)).boxes.values()
    assert xmp == b'<x tiff:Orientation="1"/><tiff:Orientation>1</tiff:Orientation>'


def test_long_metadata_is_dropped(codec, make_image):
    image = make_image()
    image.info["xmp"] = bytes(metadata.LIMIT + 1)
    with pytest.warns(UserWarning, match="of more than 1 MiB are dropped"):
        assert bitstream.parse(codec.compress(image)).boxes == {}


def png_of(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_hostile_alpha_is_a_stream_error(codec, make_image):
    parsed = bitstream.parse(codec.compress(with_alpha(make_image())))
    alpha = parsed.boxes["alpha"]
    wrong = [b"", b"no image", alpha[: len(alpha) // 2], png_of(Image.new("L", (41, 30))), png_of(make_image()),
             png_of(Image.new("L", (60000, 20000)))]  # fmt: skip
    for content in wrong:
        with pytest.raises(StreamError, match="alpha is not a PNG file of the image's size"):
            codec.decompress(replace(parsed, boxes={"alpha": content}).pack())


def test_specification_of_boxes(codec, make_image):
    """The decoder written from the specification finds the same fields."""
    for tile in (0, 64):
        data = codec.compress(with_alpha(make_image(100, 70)), tile=tile)
        plain, parsed = read_file(data), bitstream.parse(data)
        assert plain.boxes == {1: parsed.boxes["alpha"]} and plain.flags == 0
        assert tuple(plain.strings) == parsed.strings
    assert read_file(codec.compress(make_image().convert("L"))).flags == 1
