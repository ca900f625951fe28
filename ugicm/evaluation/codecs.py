"""Image codecs behind one interface: UG-ICM, Pillow's formats and CompressAI's models.

An :class:`ImageCodec` encodes an RGB image to the bytes of a file at a *setting* (its quality parameter), and decodes
those bytes to one image per *preference*. Codecs without preferences have the single preference ``None``. All of them
encode bare pixels: ICC profiles, EXIF and other metadata are never part of a file.

========================  ==================================================================================
``jpeg`` ``webp``         Pillow, quality 1...95 and 0...100
``avif``                  Pillow >= 11.3, quality 0...100; ``avif:speed=4`` (0 slow ... 10 fast)
``jxl``                   requires ``pillow-jxl-plugin``; ``jxl:effort=7``
``zoo/NAME``              requires ``compressai``; a zoo model at all its rate points, weights from its hub;
                          ``zoo/NAME=PATH`` a folder of ``.pth.tar``/``.pth`` files, one per rate point in the
                          order of the numbers in their names, or one file
``ugicm``                 the shipped model; ``ugicm=PATH`` any checkpoint that ``ugicm.load`` takes
========================  ==================================================================================
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, features

import ugicm
from ugicm import bitstream
from ugicm.atomic import WriteError
from ugicm.checkpoints.state_dict import read_state_dict
from ugicm.errors import CheckpointError, ConfigError, StreamError, UgicmError, first_line
from ugicm.evaluation.digests import file_digest, model_digest
from ugicm.evaluation.metrics import file_bpp
from ugicm.evaluation.specs import Spec, download, natural_order, parse_spec
from ugicm.extras import require_packages
from ugicm.images import from_tensor, pad_to, to_tensor

HUMAN, MACHINE = 0.0, 1.0
DEFAULT_QUALITY = 0.5  # of ugicm, as in its commands


class ImageCodec(Protocol):
    """A codec under evaluation.

    Attributes:
        label: name in tables and legends.
        extension: file extension, with the dot.
        media_type: MIME type of its files; None if browsers cannot display them.
        identity: everything that its bytes and images depend on, for caches and records.
        preferences: preferences to decode for, in [0, 1]; ``(None,)`` if the codec has none.
        settings: rate points; None if all of ``lowest ... highest`` is allowed.
        lowest, highest: range of settings.
        integer: whether settings are integers.
    """

    label: str
    extension: str
    media_type: str | None
    identity: str
    preferences: tuple[float | None, ...]
    settings: tuple[float, ...] | None
    lowest: float
    highest: float
    integer: bool

    def encode(self, image: Image.Image, setting: float) -> bytes:
        """Return the bytes of a file that holds an RGB image."""

    def decode(self, data: bytes, preferences: Sequence[float | None]) -> list[Image.Image]:
        """Return one RGB image per preference."""


class PillowCodec:
    """A format that Pillow writes; ``name`` is a key of ``_PILLOW_FORMATS``."""

    preferences = (None,)
    settings = None
    integer = True

    def __init__(self, name: str, label: str, options: dict):
        _, self.extension, self.media_type, (self.lowest, self.highest), _ = _PILLOW_FORMATS[name]
        self.format, self.label, self.options = name.upper(), label, options
        described = " ".join(f"{key}={value}" for key, value in sorted(options.items()))
        self.identity = f"{self.format} {_library(name)} {described}"

    def encode(self, image: Image.Image, setting: float) -> bytes:
        buffer = io.BytesIO()
        _bare(image).save(buffer, self.format, quality=int(setting), **self.options)
        return buffer.getvalue()

    def decode(self, data: bytes, preferences: Sequence[float | None] = (None,)) -> list[Image.Image]:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
        return [image] * len(preferences)


# Label, extension, media type, range of quality, default options. Encoders run in one thread: the bytes are then the
# same on every machine, and parallel processes do not compete for cores.
_PILLOW_FORMATS = {
    "jpeg": ("JPEG", ".jpg", "image/jpeg", (1, 95), {"optimize": True, "progressive": True, "subsampling": "4:2:0"}),
    "webp": ("WebP", ".webp", "image/webp", (0, 100), {"method": 6}),
    "avif": ("AVIF", ".avif", "image/avif", (0, 100),
             {"speed": 4, "subsampling": "4:2:0", "codec": "auto", "max_threads": 1}),
    "jxl": ("JPEG XL", ".jxl", None, (0, 99), {"effort": 7, "num_threads": 1}),
}  # fmt: skip


def _library(name: str) -> str:
    """Return the library behind a Pillow format and its version. Raises ConfigError if it is not installed."""
    if name == "jpeg":
        return f"libjpeg-turbo {features.version('libjpeg_turbo')}"
    if name == "jxl":
        require_packages("eval", name, "pillow_jxl")
        import pillow_jxl  # noqa: F401  (registers the format)

        return f"pillow-jxl-plugin {metadata.version('pillow-jxl-plugin')}"
    if name not in features.get_supported():
        raise ConfigError(f"{name}: this Pillow cannot write it; install Pillow >= 11.3 from a binary wheel")
    return f"lib{name} {features.version(name)}"


class CompressaiCodec:
    """A CompressAI model at its rate points; a setting is the index of one.

    The file has a header of 10 bytes (the setting, height and width of the image and of the hyper-latent, the number
    of strings), then each entropy-coded string after its length in 4 bytes.
    """

    preferences = (None,)
    extension, media_type = ".cai", None
    integer = True

    def __init__(self, label: str, models: Sequence, identity: str, device: str = "cpu"):
        self.label, self.identity, self.device = label, identity, device
        self.models = [model.eval().to(device) for model in models]
        self.settings = tuple(float(i) for i in range(len(models)))
        self.lowest, self.highest = 0.0, len(models) - 1.0

    def encode(self, image: Image.Image, setting: float) -> bytes:
        import torch

        padded = pad_to(to_tensor(image), 64).to(self.device)
        with torch.inference_mode():
            out = self.models[int(setting)].compress(padded)
        strings = [s[0] for s in out["strings"]]
        header = struct.pack("<BHHHHB", int(setting), image.height, image.width, *out["shape"], len(strings))
        return header + b"".join(struct.pack("<I", len(s)) + s for s in strings)

    def decode(self, data: bytes, preferences: Sequence[float | None] = (None,)) -> list[Image.Image]:
        import torch

        try:
            index, height, width, *shape, count = struct.unpack_from("<BHHHHB", data)
            position, strings = struct.calcsize("<BHHHHB"), []
            for _ in range(count):
                (length,) = struct.unpack_from("<I", data, position)
                strings.append([data[position + 4 : position + 4 + length]])
                position += 4 + length
        except struct.error:
            raise StreamError(f"{self.label}: the file is truncated") from None
        with torch.inference_mode():
            x_hat = self.models[index].decompress(strings, shape)["x_hat"]
        if not bool(x_hat.isfinite().all()):
            raise StreamError(f"{self.label}: the decoded image is not finite")
        return [from_tensor(x_hat[..., :height, :width])] * len(preferences)


class UgicmCodec:
    """The codec of this package; ``codec`` is what ``ugicm.load`` returns."""

    extension, media_type = ".ugic", None
    lowest, highest = 0.0, 1.0
    integer = False

    def __init__(self, codec, label: str, identity: str, preferences: Sequence[float] = (HUMAN, MACHINE)):
        self.codec, self.label, self.identity = codec, label, identity
        self.preferences = tuple(float(p) for p in preferences)
        self.settings = None if codec.has_quality else (DEFAULT_QUALITY,)

    def encode(self, image: Image.Image, setting: float) -> bytes:
        return self.codec.compress(_bare(image), float(setting))

    def decode(self, data: bytes, preferences: Sequence[float | None]) -> list[Image.Image]:
        return self.codec.decompress(data, [float(p) for p in preferences])


def _bare(image: Image.Image) -> Image.Image:
    """Return a copy of an RGB image without ICC profile, EXIF and other metadata."""
    if image.mode != "RGB":
        raise ValueError(f"expected an RGB image, got mode {image.mode}")
    return Image.frombytes("RGB", image.size, image.tobytes())


def load_codec(text: str, device: str = "cpu", preferences: Sequence[float] = (HUMAN, MACHINE)) -> ImageCodec:
    """Return the codec of a specification (see the module's table). ``preferences`` apply to ugicm only.

    Raises:
        ConfigError: an unknown name or option, or a format that this Pillow cannot write.
        CheckpointError: the weights cannot be downloaded, read or loaded.
    """
    spec = parse_spec(text)
    name = spec.name.lower()
    if name in _PILLOW_FORMATS:
        default, *_, options = _PILLOW_FORMATS[name]
        return PillowCodec(name, str(spec.options.get("label", default)), spec.take(**options))
    if name == "ugicm":
        spec.take()
        codec = ugicm.load(spec.where, device=device)
        return UgicmCodec(codec, spec.label, ugicm_identity(codec), preferences)
    if name.startswith("zoo/"):
        return _load_zoo(spec, device)
    raise ConfigError(f"unknown codec '{spec.name}'; available: {', '.join(_PILLOW_FORMATS)}, zoo/NAME, ugicm")


def ugicm_identity(codec) -> str:
    """Return everything that bitstreams and images of a :class:`ugicm.Codec` depend on."""
    # The fingerprint covers the weights that decide the bitstream; images depend on all weights.
    arithmetic = "{transform precision} on {device}".format_map(codec.describe())
    return f"ugicm {ugicm.__version__} format {bitstream.VERSION} weights {model_digest(codec)} {arithmetic}"


def _load_zoo(spec: Spec, device: str) -> CompressaiCodec:
    require_packages("compressai", spec.text, "compressai")
    from compressai.zoo import image_models
    from compressai.zoo.image import cfgs, model_architectures

    spec.take()
    name = spec.name.split("/", 1)[1]
    known = sorted(set(image_models) & set(model_architectures) & set(cfgs))
    if name not in known:
        raise ConfigError(f"unknown CompressAI model '{name}'; available: {', '.join(known)}")
    if spec.where:
        path = Path(spec.where)
        found = [path] if path.is_file() else [p for p in path.glob("*") if p.suffix in (".pth", ".pt", ".tar")]
        paths = sorted(found, key=lambda p: natural_order(p.name))
        if not paths:
            raise CheckpointError(f"{path}: expected a .pth or .pth.tar file, or a folder of them, one per rate point")
        models = [_zoo_model(model_architectures[name], path) for path in paths]
        identity = f"compressai {name} " + " ".join(file_digest(path) for path in paths)
    else:
        model = image_models[name]
        models = [download(partial(model, point, pretrained=True), spec, "weights") for point in sorted(cfgs[name])]
        identity = f"compressai {name} mse"
    for model in models:
        model.update()
    return CompressaiCodec(spec.label, models, identity, device)


def _zoo_model(architecture, path: Path):
    from compressai.zoo import load_state_dict

    state = read_state_dict(path)
    try:
        return architecture.from_state_dict(load_state_dict(state))
    except Exception as error:  # architectures derive their sizes from tensors that may be missing
        raise CheckpointError(f"{path}: not weights of {architecture.__name__} ({error})") from None


def checked_setting(codec: ImageCodec, quality: float | None) -> float:
    """Return ``quality`` as a setting of a codec; for None the default of ugicm.

    Raises ConfigError if it is not one of the codec's settings, or None for another codec.
    """
    if quality is None and not codec.integer:
        return DEFAULT_QUALITY
    within = quality is not None and codec.lowest <= quality <= codec.highest
    if within and not (codec.integer and quality % 1):
        return quality
    wrong = "must be given" if quality is None else f"{quality:g} is not a setting"
    numbers = "integers" if codec.integer else "numbers"
    raise ConfigError(f"--quality {wrong}: {codec.label} takes {numbers} from {codec.lowest:g} to {codec.highest:g}")


@contextlib.contextmanager
def failures_named(name: str) -> Iterator[None]:
    """Turn errors of a codec (unsupported size, no memory) into UgicmError that begins with ``name``."""
    try:
        yield
    except WriteError:
        raise
    except Exception as error:  # Pillow's plugins and CompressAI's models raise many kinds
        raise UgicmError(f"{name}: {first_line(error)}") from error


def sweep(codec: ImageCodec, images: Sequence[Image.Image], low: float, high: float, points: int) -> list[float]:
    """Return settings that cover ``low ... high`` bits per pixel on a few images.

    ``points`` target rates are spaced evenly in log rate, and the nearest setting is taken for each. A codec that does
    not reach ``low`` or ``high`` ends at its own lowest or highest setting. Of a codec with fixed rate points, those
    inside the range and the nearest one outside on either end are taken.
    """
    measured: dict[float, float] = {}

    def rate(setting: float) -> float:
        if setting not in measured:
            measured[setting] = np.mean([file_bpp(codec.encode(image, setting), image) for image in images])
        return measured[setting]

    if codec.settings is not None:
        ordered = sorted(codec.settings, key=rate)
        below = [s for s in ordered if rate(s) < low][-1:]
        above = [s for s in ordered if rate(s) > high][:1]
        return sorted({*below, *(s for s in codec.settings if low <= rate(s) <= high), *above})
    return sorted({nearest_setting(codec, rate, target) for target in np.geomspace(low, high, points)})


def nearest_setting(codec: ImageCodec, rate: Callable[[float], float], target: float) -> float:
    """Return the setting whose ``rate(setting)`` is nearest to ``target`` in log rate, found by bisection.

    ``rate`` must increase with the setting; small ripples cost a step of accuracy.
    """
    if codec.settings is not None:
        return min(codec.settings, key=lambda s: abs(np.log(rate(s) / target)))
    low, high = codec.lowest, codec.highest
    resolution = 1.0 if codec.integer else (high - low) / 64
    tried = {low: rate(low)}
    if tried[low] < target:
        tried[high] = rate(high)
        while high - low > resolution and tried[high] > target:
            middle = (low + high) // 2 if codec.integer else (low + high) / 2
            tried[middle] = rate(middle)
            low, high = (middle, high) if tried[middle] < target else (low, middle)
    return min(tried, key=lambda s: abs(np.log(tried[s] / target)))
