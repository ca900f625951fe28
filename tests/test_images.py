"""Reading any image file as 8-bit RGB, and conversion to tensors."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from ugicm import image_writer, images
from ugicm.errors import ImageError

RED, HALF_GREEN = (255, 0, 0, 255), (0, 255, 0, 128)


def as_array(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_open_rgb_converts_every_mode(mode, make_image):
    color = make_image(40, 30)
    if mode == "PA":
        image = color.convert("P").convert("PA")
    elif mode == "I":
        image = Image.fromarray(np.asarray(color.convert("L"), np.int32) * 257)
    else:
        image = color.convert(mode)
    assert image.mode == mode
    out = images.open_rgb(image)
    assert (out.mode, out.size) == ("RGB", (40, 30))
    near = image.convert("RGBA").convert("RGB") if mode in ("P", "PA", "LA", "1", "CMYK", "HSV") else color
    if mode in ("L", "I", "F"):
        near = color.convert("L").convert("RGB")
    assert np.abs(as_array(out) - as_array(near)).max() <= 4


@pytest.mark.parametrize(
    ("mode", "name"),
    [("1", "x.png"), ("L", "x.png"), ("LA", "x.png"), ("P", "x.gif"), ("RGBA", "x.webp"), ("CMYK", "x.jpg"),
     ("CMYK", "x.tiff"), ("YCbCr", "x.jpg"), ("RGB", "x.jp2"), ("RGB", "x.ppm"), ("F", "x.tiff"), ("RGB", "x.tga")],
)  # fmt: skip
def test_open_rgb_reads_every_format(mode, name, tmp_path, make_image):
    kind = {"x.webp": "webp", "x.jp2": "jpg_2000"}.get(name)
    if kind and not features.check(kind):
        pytest.skip(f"this Pillow has no {kind}")
    image = make_image(41, 29).convert(mode)
    image.save(tmp_path / name)
    out = images.open_rgb(tmp_path / name)
    assert (out.mode, out.size) == ("RGB", (41, 29))
    assert out.tobytes() == images.open_rgb(str(tmp_path / name)).tobytes()


def test_open_rgb_keeps_colors_of_cmyk_and_ycbcr(make_image):
    color = make_image()
    for mode, tolerance in (("CMYK", 1), ("YCbCr", 4)):
        assert np.abs(as_array(images.open_rgb(color.convert(mode))) - as_array(color)).max() <= tolerance


def test_open_rgb_converts_lab():
    color = Image.new("RGB", (4, 4), (200, 80, 40))
    lab = ImageCms.profileToProfile(
        color, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab.mode == "LAB"
    assert np.abs(as_array(images.open_rgb(lab)) - as_array(color)).max() <= 3


@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".png", "uint16"), (".tiff", "uint16"), (".tiff", ">u2"), (".pgm", "uint16")]
)
def test_open_rgb_scales_16_bit_gray(suffix, dtype, tmp_path):
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64)
    image = Image.fromarray(values.astype(dtype) if dtype != ">u2" else values.astype("uint16"))
    if dtype == ">u2":
        image = Image.frombytes("I;16B", (64, 48), values.astype(dtype).tobytes())
    path = tmp_path / f"deep{suffix}"
    image.save(path)
    out = as_array(images.open_rgb(path))
    assert np.abs(out - values[..., None] / 257).max() <= 0.51
    assert (out.min(), out.max()) == (0, 255)


def test_open_rgb_16_bit_extremes_and_transparency():
    raw = np.array([[0, 128, 129, 65535, 1000]], np.uint16)
    image = Image.fromarray(raw)
    assert as_array(images.open_rgb(image))[0, :, 0].tolist() == [0, 0, 1, 255, 4]
    image.info["transparency"] = 1000
    with pytest.warns(UserWarning, match="white"):
        assert as_array(images.open_rgb(image))[0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_open_rgb_float_range_is_1_or_255():
    unit = Image.fromarray(np.array([[0, 0.5, 1, np.nan, np.inf, -np.inf]], np.float32))
    assert as_array(images.open_rgb(unit))[0, :, 0].tolist() == [0, 128, 255, 0, 255, 0]
    bytes_ = Image.fromarray(np.array([[-3, 0.5, 100, 300, np.inf]], np.float32))
    assert as_array(images.open_rgb(bytes_))[0, :, 0].tolist() == [0, 0, 100, 255, 255]


def test_open_rgb_composites_on_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([RED, HALF_GREEN, (9, 9, 9, 0)])
    with pytest.warns(UserWarning, match="composited on white"):
        out = as_array(images.open_rgb(image))[0]
    assert out[0].tolist() == [255, 0, 0]
    assert np.abs(out[1] - [127, 255, 127]).max() <= 1
    assert out[2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["LA", "PA", "P", "L", "RGB"])
def test_open_rgb_every_kind_of_transparency(mode):
    if mode in ("LA", "PA"):
        image = Image.new(mode[0], (8, 8), 0)
        image.putalpha(0)
        assert image.mode == mode
    else:
        image = Image.new(mode, (8, 8), 0)
        image.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    with pytest.warns(UserWarning, match="white"):
        assert as_array(images.open_rgb(image)).min() == 255


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_open_rgb_premultiplied_alpha(mode):
    image = Image.new(mode.upper(), (2, 2), (0,) * len(mode)).convert(mode)
    with pytest.warns(UserWarning, match="white"):
        assert as_array(images.open_rgb(image)).min() == 255


def test_open_rgb_opaque_alpha_does_not_warn(make_image):
    color = make_image()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.open_rgb(color.convert("RGBA")).tobytes() == color.tobytes()


def test_open_rgb_propagates_warnings_turned_into_errors(tmp_path, monkeypatch):
    image = Image.new("RGBA", (40, 30))
    image.save(tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (image, tmp_path / "x.png"):
            with pytest.raises(UserWarning, match="composited on white"):
                images.open_rgb(source)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(Image.DecompressionBombWarning):
            images.upright_size(tmp_path / "x.png")


def test_open_rgb_warns_once_per_run(run_python):
    code = (
        "from PIL import Image; from ugicm import images\n"
        "for size in (1, 2, 3): images.open_rgb(Image.new('RGBA', (size, size)))"
    )
    assert run_python("-c", code).stderr.count("UserWarning: transparent") == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_open_rgb_applies_exif_orientation(orientation, tmp_path, make_image):
    upright = make_image(48, 32)
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    out = images.open_rgb(tmp_path / "turned.png")
    assert out.size == (48, 32)
    assert out.tobytes() == upright.tobytes()
    assert images.open_rgb(out).tobytes() == upright.tobytes()


def test_open_rgb_does_not_change_its_argument(make_image):
    image = make_image()
    images.open_rgb(image).putpixel((0, 0), (1, 2, 3))
    assert image.tobytes() == make_image().tobytes()


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.gif", "x.bmp", "x.tiff"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_open_rgb_names_truncated_files(name, share, tmp_path):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, image_writer.image_format(name))
    data = buffer.getvalue()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match="x[.]"):
        images.open_rgb(path)


def test_only_the_first_line_of_a_message_of_a_library_is_shown(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("cannot decode\n   build the library from source")

    (tmp_path / "x.png").write_bytes(b"")
    monkeypatch.setattr(images.Image, "open", fail)
    with pytest.raises(ImageError, match="corrupt or unsupported image: cannot decode$"):
        images.read(tmp_path / "x.png")


def test_open_rgb_raises_only_image_error_for_corrupt_files(tmp_path, make_image):
    rng = np.random.default_rng(0)
    for name in ("x.png", "x.jpg", "x.tiff", "x.gif"):
        make_image(64, 64).save(tmp_path / name)
        data = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(60):
            damaged = data.copy()
            places = rng.integers(2, min(len(data), 400), 6)
            damaged[places] = rng.integers(0, 256, 6)
            (tmp_path / name).write_bytes(damaged.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert images.open_rgb(tmp_path / name).mode == "RGB"
                except ImageError as error:
                    assert name in str(error)


def test_open_rgb_names_files_that_are_not_images(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match="text.png: not an image"):
        images.open_rgb(tmp_path / "text.png")
    with pytest.raises(ImageError, match="gone.png: cannot be read: No such file"):
        images.open_rgb(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="cannot be read"):
        images.open_rgb(tmp_path)


def test_open_rgb_applies_pillow_size_limit(tmp_path, monkeypatch, make_image):
    make_image(64, 64).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="bomb.png.*exceeds limit"):
        images.open_rgb(tmp_path / "bomb.png")


def test_to_tensor_and_from_tensor_are_inverse(make_image):
    image = make_image(37, 21)
    x = images.to_tensor(image)
    assert (x.shape, x.dtype) == ((1, 3, 21, 37), torch.float32)
    assert 0 <= x.min() and x.max() <= 1
    assert images.from_tensor(x).tobytes() == image.tobytes()
    assert images.from_tensor(x[0]).tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(37, 21), (64, 128), (1, 1)])
def test_to_levels_pads_like_pad_to(size, make_image):
    image = make_image(*size)
    levels = images.to_levels(image, 64)
    assert levels.dtype == torch.uint8 and levels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(levels.float() / 255, images.pad_to(images.to_tensor(image), 64))


@pytest.mark.parametrize("band", [1, 100, 2**16])
def test_from_tensor_does_not_depend_on_band_size(band, monkeypatch):
    monkeypatch.setattr(images, "_BAND", band)
    x = torch.rand(1, 3, 21, 37)
    wanted = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(images.from_tensor(x)), wanted)


def test_from_tensor_clamps_and_rounds():
    values = torch.tensor([-0.5, 0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.0, 7.0])
    x = values.expand(1, 3, 1, -1)
    assert np.asarray(images.from_tensor(x))[0, :, 1].tolist() == [0, 0, 0, 1, 255, 255, 255]


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (63, 65), (64, 64), (129, 200)])
def test_pad_to_replicates_edges(size):
    x = torch.rand(1, 3, *size)
    padded = images.pad_to(x, 64)
    assert padded.shape[-2] % 64 == padded.shape[-1] % 64 == 0
    assert all(0 <= big - small < 64 for big, small in zip(padded.shape[-2:], size))
    assert torch.equal(padded[..., : size[0], : size[1]], x)
    assert torch.equal(padded[..., -1, -1], x[..., -1, -1])
    assert torch.equal(padded[..., : size[0], -1], x[..., -1])


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_upright_size_matches_open_rgb(name, orientation, tmp_path, make_image):
    exif = Image.Exif()
    exif[0x0112] = orientation
    make_image(40, 30).save(tmp_path / name, exif=exif)
    size = (30, 40) if orientation > 4 else (40, 30)
    assert images.upright_size(tmp_path / name) == images.open_rgb(tmp_path / name).size == size


def test_open_rgb_accepts_open_files_and_bytes_and_rejects_other_types(make_image):
    buffer = io.BytesIO()
    make_image().save(buffer, "PNG")
    for source in (io.BytesIO(buffer.getvalue()), buffer.getvalue(), bytearray(buffer.getvalue())):
        assert images.open_rgb(source).tobytes() == make_image().tobytes()
    with pytest.raises(ImageError, match="^image data: not an image"):
        images.open_rgb(io.BytesIO(b"nothing"))
    for wrong, kind in ((np.asarray(make_image()), "ndarray"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"^expected a Pillow image, .* got {kind}; use Image.fromarray"):
            images.open_rgb(wrong)
