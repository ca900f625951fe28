"""Contenders: every codec behind the same two calls, so that one loop measures all of them.

A contender turns an image into the bytes of a file at some *setting* (a quality), and the bytes into one
image per *viewer*. Ours has a viewer per preference; the others have one, ``None``. All are handed the
same bare pixels: ICC profiles, EXIF and other metadata are no part of any contender's file.

========================  ==================================================================================
``jpeg`` ``webp``         Pillow, quality 1...95 and 0...100
``avif``                  Pillow >= 11.3, quality 0...100; ``avif:speed=4`` (0 slow ... 10 fast)
``jxl``                   where ``pillow-jxl-plugin`` is installed; ``jxl:effort=7``
``zoo/NAME``              a CompressAI zoo model at all its rate points, weights from its hub;
                          ``zoo/NAME=PATH`` a folder of ``.pth.tar``/``.pth`` files, one per rate point, or
                          one file
``ugicm``                 the shipped model; ``ugicm=PATH`` any checkpoint that ``ugicm.load`` takes
========================  ==================================================================================
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, features

from ugicm.errors import CheckpointError, ConfigError, StreamError, UgicmError, first_line
from ugicm.evaluation.digests import file_digest, model_digest
from ugicm.evaluation.specs import Spec, parse_spec
from ugicm.images import from_tensor, pad_to, to_tensor

HUMAN, MACHINE = 0.0, 1.0
QUALITY = 0.5  # of ugicm where none is asked for, as its own commands have it


class Contender(Protocol):
    """A codec under measurement.

    Attributes:
        label: its name in tables and legends.
        extension: of its files, with the dot.
        media_type: what a browser calls its files, or None where browsers cannot show them.
        identity: everything its bytes and images depend on, for caches and records.
        viewers: preferences to decode for; ``(None,)`` for a codec without any.
        settings: rate points, from small files to large; None where ``lowest ... highest`` is a range.
    """

    label: str
    extension: str
    media_type: str | None
    identity: str
    viewers: tuple[float | None, ...]
    settings: tuple[float, ...] | None
    lowest: float
    highest: float
    whole: bool  # settings are integers

    def encode(self, image: Image.Image, setting: float) -> bytes: ...

    def decode(self, data: bytes, viewers: Sequence[float | None]) -> list[Image.Image]: ...


def bare(image: Image.Image) -> Image.Image:
    """The pixels of an RGB image, and nothing else of it: no ICC profile, EXIF, comments, or link to a
    file.
    """
    if image.mode != "RGB":
        raise ValueError(f"expected an RGB image, got mode {image.mode}")
    return Image.frombytes("RGB", image.size, image.tobytes())


class PillowAnchor:
    """A format that Pillow writes."""

    viewers = (None,)
    settings = None
    whole = True

    def __init__(self, kind: str, label: str, quality: tuple[int, int], version: str, options: dict):
        self.kind, self.label, self.options = kind, label, options
        self.extension, self.media_type = _PILLOW_FILES[kind]
        self.lowest, self.highest = quality
        described = " ".join(f"{key}={value}" for key, value in sorted(options.items()))
        self.identity = f"{kind} {version} {described}"

    def encode(self, image: Image.Image, setting: float) -> bytes:
        buffer = io.BytesIO()
        bare(image).save(buffer, self.kind, quality=int(setting), **self.options)
        return buffer.getvalue()

    def decode(self, data: bytes, viewers: Sequence[float | None] = (None,)) -> list[Image.Image]:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
        return [image] * len(viewers)


_PILLOW_FILES = {
    "JPEG": (".jpg", "image/jpeg"),
    "WEBP": (".webp", "image/webp"),
    "AVIF": (".avif", "image/avif"),
    "JXL": (".jxl", None),
}


class ZooAnchor:
    """A CompressAI model at its rate points; a setting is the index of one.

    The file is a header of 10 bytes (the setting, height and width of the image and of the hyper-latent, the number
    of strings), then each entropy-coded string behind 4 bytes of its length.
    """

    viewers = (None,)
    extension, media_type = ".cai", None
    whole = True

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

    def decode(self, data: bytes, viewers: Sequence[float | None] = (None,)) -> list[Image.Image]:
        import torch

        try:
            index, height, width, *shape, count = struct.unpack_from("<BHHHHB", data)
            position, strings = struct.calcsize("<BHHHHB"), []
            for _ in range(count):
                (length,) = struct.unpack_from("<I", data, position)
                strings.append([data[position + 4 : position + 4 + length]])
                position += 4 + length
        except struct.error:
            raise StreamError(f"{self.label}: the file ends before its contents do") from None
        with torch.inference_mode():
            x_hat = self.models[index].decompress(strings, shape)["x_hat"]
        return [from_tensor(x_hat[..., :height, :width])] * len(viewers)


class UgicmContender:
    """The codec of this package; ``codec`` is what ``ugicm.load`` returns."""

    extension, media_type = ".ugic", None
    lowest, highest = 0.0, 1.0
    whole = False

    def __init__(self, codec, label: str, identity: str, viewers: Sequence[float] = (HUMAN, MACHINE)):
        self.codec, self.label, self.identity = codec, label, identity
        self.viewers = tuple(float(v) for v in viewers)
        self.settings = None if codec.has_quality else (0.5,)

    def encode(self, image: Image.Image, setting: float) -> bytes:
        return self.codec.compress(bare(image), float(setting))

    def decode(self, data: bytes, viewers: Sequence[float | None]) -> list[Image.Image]:
        return self.codec.decompress(data, [float(v) for v in viewers])


def load_contender(text: str, device: str = "cpu", viewers: Sequence[float] = (HUMAN, MACHINE)) -> Contender:
    """The contender that a specification (table above) names.

    Raises:
        ConfigError: an unknown name or option, or a format that this Pillow cannot write.
        CheckpointError: weights that cannot be had or do not fit.
    """
    spec = parse_spec(text)
    kind = spec.name.lower()
    if kind in _LOADERS:
        return _LOADERS[kind](spec)
    if kind == "ugicm":
        return _ugicm(spec, device, viewers)
    if kind.startswith("zoo/"):
        return _zoo(spec, device)
    raise ConfigError(f"unknown codec '{spec.name}'; available: {', '.join(_LOADERS)}, zoo/NAME, ugicm")


def checked_setting(contender: Contender, quality: float | None) -> float:
    """The setting that ``--quality`` asks for; ours has a middle one to take where it was not given.

    Raises ConfigError for what is no setting of the contender.
    """
    if quality is None and not contender.whole:
        return QUALITY
    within = quality is not None and contender.lowest <= quality <= contender.highest
    if within and not (contender.whole and quality % 1):
        return quality
    wrong = "must be given" if quality is None else f"{quality:g} is no setting"
    numbers = "integers" if contender.whole else "numbers"
    raise ConfigError(
        f"--quality {wrong}: {contender.label} takes {numbers} from {contender.lowest:g} to {contender.highest:g}"
    )


@contextlib.contextmanager
def failures_named(contender: Contender, setting: float, path: Path) -> Iterator[None]:
    """Whatever a codec raises on an image (a size its format cannot hold, memory), as UgicmError that names both."""
    try:
        yield
    except (ValueError, RuntimeError, MemoryError) as error:
        raise UgicmError(f"{path}: {contender.label} at {setting:g}: {first_line(error)}") from error


def mean_bpp(contender: Contender, images: Sequence[Image.Image], setting: float) -> float:
    """Mean over images of bits per pixel at a setting."""
    return float(np.mean([8 * len(contender.encode(i, setting)) / (i.width * i.height) for i in images]))


def sweep(contender: Contender, images: Sequence[Image.Image], low: float, high: float, points: int) -> list[float]:
    """Settings of a contender that cover ``low ... high`` bits per pixel on the given (few) images.

    ``points`` targets are spaced evenly in log rate and each is met as nearly as the contender's settings
    allow; a contender that cannot go as low or as high ends where it ends. One with fixed rate points has
    those inside the range, and the nearest outside on either end.
    """
    measured: dict[float, float] = {}

    def rate(setting: float) -> float:
        if setting not in measured:
            measured[setting] = mean_bpp(contender, images, setting)
        return measured[setting]

    if contender.settings is not None:
        below = [s for s in contender.settings if rate(s) < low][-1:]
        above = [s for s in contender.settings if rate(s) > high][:1]
        return sorted({*below, *(s for s in contender.settings if low <= rate(s) <= high), *above})
    targets = np.geomspace(low, high, points)
    return sorted({nearest_setting(contender, rate, target) for target in targets})


def nearest_setting(contender: Contender, rate: Callable[[float], float], target: float) -> float:
    """The setting whose ``rate(setting)`` is nearest to ``target`` (in log), found by bisection.

    ``rate`` must rise with the setting, but for small ripples, which cost a step of accuracy.
    """
    if contender.settings is not None:
        return min(contender.settings, key=lambda s: abs(np.log(rate(s) / target)))
    low, high = contender.lowest, contender.highest
    resolution = 1.0 if contender.whole else (high - low) / 64
    tried = {low: rate(low)}
    if tried[low] < target:
        tried[high] = rate(high)
        while high - low > resolution and tried[high] > target:
            middle = (low + high) // 2 if contender.whole else (low + high) / 2
            tried[middle] = rate(middle)
            low, high = (middle, high) if tried[middle] < target else (low, middle)
    return min(tried, key=lambda s: abs(np.log(tried[s] / target)))


def _jpeg(spec: Spec) -> PillowAnchor:
    options = spec.take(optimize=True, progressive=True, subsampling="4:2:0")
    version = f"libjpeg-turbo {features.version('libjpeg_turbo')}"
    return PillowAnchor("JPEG", spec.options.get("label", "JPEG"), (1, 95), version, options)


def _webp(spec: Spec) -> PillowAnchor:
    if not features.check("webp"):
        raise ConfigError("webp: this Pillow was built without WebP; install a binary wheel of Pillow")
    options = spec.take(method=6)
    version = f"libwebp {features.version('webp')}"
    return PillowAnchor("WEBP", spec.options.get("label", "WebP"), (0, 100), version, options)


def _avif(spec: Spec) -> PillowAnchor:
    if "avif" not in features.get_supported():
        raise ConfigError("avif: this Pillow cannot write AVIF; install Pillow >= 11.3 from a binary wheel")
    # One thread: the bytes then depend on no machine, and several processes do not fight for cores.
    options = spec.take(speed=4, subsampling="4:2:0", codec="auto", max_threads=1)
    version = f"libavif {features.version('avif')}"
    return PillowAnchor("AVIF", spec.options.get("label", "AVIF"), (0, 100), version, options)


def _jxl(spec: Spec) -> PillowAnchor:
    try:
        import pillow_jxl  # noqa: F401  (registers the format)
    except ImportError:
        raise ConfigError("jxl: Pillow needs a plugin for JPEG XL; pip install pillow-jxl-plugin") from None
    from importlib.metadata import version

    options = spec.take(effort=7, num_threads=1)
    text = f"pillow-jxl-plugin {version('pillow-jxl-plugin')}"
    return PillowAnchor("JXL", spec.options.get("label", "JPEG XL"), (0, 99), text, options)


_LOADERS = {"jpeg": _jpeg, "webp": _webp, "avif": _avif, "jxl": _jxl}


def _ugicm(spec: Spec, device: str, viewers: Sequence[float]) -> UgicmContender:
    import ugicm

    spec.take()
    codec = ugicm.load(spec.where, device=device)
    return UgicmContender(codec, str(spec.options.get("label", "ugicm")), ugicm_identity(codec), viewers)


def ugicm_identity(codec) -> str:
    """Everything that streams and images of this package's codec depend on."""
    import ugicm
    from ugicm import bitstream

    # The fingerprint covers what parses streams; images depend on every weight, and files on their format.
    arithmetic = "{synthesis precision} on {device}".format_map(codec.describe())
    return f"ugicm {ugicm.__version__} format {bitstream.VERSION} weights {model_digest(codec)} {arithmetic}"


def _zoo(spec: Spec, device: str) -> ZooAnchor:
    from compressai.zoo import image_models
    from compressai.zoo.image import cfgs, model_architectures

    name = spec.name.split("/", 1)[1]
    metric = spec.take(metric="mse")["metric"]
    known = sorted(set(image_models) & set(model_architectures) & set(cfgs))
    if name not in known:
        raise ConfigError(f"unknown CompressAI model '{name}'; available: {', '.join(known)}")
    label = str(spec.options.get("label", name))
    if spec.where:
        paths = _rate_points(Path(spec.where))
        models = [_zoo_from_file(model_architectures[name], path) for path in paths]
        identity = f"compressai {name} " + " ".join(file_digest(path) for path in paths)
    else:
        try:
            models = [image_models[name](q, metric, pretrained=True) for q in sorted(cfgs[name])]
        except Exception as error:  # whatever the hub, the network or the file system raise
            raise CheckpointError(
                f"{spec.text}: its weights could not be downloaded ({error}); download them elsewhere and "
                f"name the folder that holds them, one file per rate point: {spec.name}=PATH"
            ) from error
        identity = f"compressai {name} {metric}"
    for model in models:
        model.update()
    return ZooAnchor(label, models, identity, device)


def _rate_points(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(p for p in path.glob("*") if p.name.endswith((".pth", ".pth.tar", ".pt")))
    if not files:
        raise CheckpointError(f"{path}: expected a .pth or .pth.tar file, or a folder of them, one per rate")
    return files


def _zoo_from_file(architecture, path: Path):
    from compressai.zoo import load_state_dict

    from ugicm.checkpoints.state_dict import read_state

    state = read_state(path)
    try:
        return architecture.from_state_dict(load_state_dict(state))
    except Exception as error:  # architectures guess their sizes from tensors that need not be there
        raise CheckpointError(f"{path}: not weights of {architecture.__name__} ({error})") from None
