"""Time coding of one image and measure its memory, next to baseline codecs of CompressAI in the same run."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import torch
from PIL import Image
from torch import nn

from scripts.benchmark.roofline import count_macs, measured_rates, median_ratio, seconds_in_turns
from scripts.benchmark.stages import stage_seconds
from scripts.processes import in_fresh_process, memory, reset_peak
from ugicm import bitstream, images
from ugicm.codec import Codec, load
from ugicm.config import MLICPP
from ugicm.entropy.likelihood import LikelihoodCoder
from ugicm.losses.rate import bits_per_pixel
from ugicm.models.ugicm import UGICM

# Name of each baseline codec: CompressAI's class, and the sizes that its paper uses at medium rates.
BASELINES: dict[str, tuple[str, dict[str, int]]] = {
    "Elic2022Official": ("Elic2022Official", {}),
    "mbt2018_mean": ("MeanScaleHyperprior", {"N": 192, "M": 320}),
    "cheng2020_anchor": ("Cheng2020Anchor", {"N": 192}),
}
REFERENCE = "Elic2022Official"
QUALITY = 0.5  # of UG-ICM models
BITS = 1.0  # bits per pixel of the random weights: about the maximum of trained ones
BASE_SIZE = (512, 768)  # height and width that the time per pixel of other sizes is compared with
RELEASED = "released"  # instead of a checkpoint: the released UG-ICM form with random weights


@dataclass(frozen=True)
class BenchmarkCase:
    """A codec and the conditions to time it under.

    Attributes:
        name: of the codec, one of :data:`BASELINES` or any other name for a UG-ICM model.
        checkpoint: of a UG-ICM model, None for the shipped one, or :data:`RELEASED`.
        fast: run the transforms in reduced precision where the device is faster with it.
    """

    name: str
    width: int
    height: int
    threads: int
    device: str = "cpu"
    checkpoint: str | None = None
    fast: bool = True


@dataclass(frozen=True)
class Timing:
    """Median times of one case, in seconds for one image."""

    name: str
    width: int
    height: int
    threads: int
    device: str
    dtype: str  # of most of the transforms
    compress: float
    decompress: float  # to one image
    decompress_both: float | None  # to the human and the machine image; None for baseline codecs
    entropy_write: float | None  # of compress, everything after the hyper analysis
    entropy_read: float | None  # of decompress, everything before the synthesis
    bytes: int
    memory_mib: float  # peak above the loaded model, in a fresh process
    time_over_floor: float | None  # of analysis and synthesis
    # Over the reference codec's compress and decompress, call by call. Ours decompresses to both images.
    compress_ratio: float | None = None
    decompress_ratio: float | None = None
    # Time per pixel of compress, and of decompress to both images, over that of an image of BASE_SIZE.
    compress_per_pixel_ratio: float | None = None
    decompress_per_pixel_ratio: float | None = None


class UgicmSubject:
    """A UG-ICM codec and an image."""

    def __init__(self, case: BenchmarkCase):
        self.codec = build(case.checkpoint, case.device, case.fast)
        self.image = sample(case.width, case.height)
        self.data = b""

    @property
    def dtype(self) -> torch.dtype:
        return self.codec.model.transform_dtype or torch.float32

    def compress(self) -> None:
        self.data = self.codec.compress(self.image, QUALITY)

    def decompress(self) -> None:
        self.codec.decompress(self.data, 0.0)

    def decompress_both(self) -> None:
        self.codec.decompress(self.data, [0.0, 1.0])


class BaselineSubject:
    """A CompressAI model with random weights, which do not change its speed, and an image."""

    dtype = torch.float32

    def __init__(self, case: BenchmarkCase):
        import compressai.models

        torch.manual_seed(0)
        name, sizes = BASELINES[case.name]
        self.model = getattr(compressai.models, name)(**sizes).eval().to(case.device)
        self.model.update(force=True)
        self.x = images.pad_to(images.to_tensor(sample(case.width, case.height)).to(case.device), 64)
        self.out: dict[str, Any] = {}

    @torch.inference_mode()
    def compress(self) -> None:
        self.out = self.model.compress(self.x)

    @torch.inference_mode()
    def decompress(self) -> None:
        self.model.decompress(self.out["strings"], self.out["shape"])

    decompress_both = decompress

    @property
    def data(self) -> bytes:
        return b"".join(_flatten(self.out["strings"]))


def _flatten(strings: Any) -> list[bytes]:
    """Return CompressAI's strings, whose nesting differs between models, as a flat list."""
    return [strings] if isinstance(strings, bytes) else [s for inner in strings for s in _flatten(inner)]


def subject(case: BenchmarkCase) -> UgicmSubject | BaselineSubject:
    return BaselineSubject(case) if case.name in BASELINES else UgicmSubject(case)


def sample(width: int, height: int) -> Image.Image:
    """Return a photograph of the package, resized."""
    with resources.as_file(resources.files("ugicm") / "samples" / "kodim23.png") as path:
        return images.open_rgb(path).resize((width, height), Image.Resampling.LANCZOS)


@functools.lru_cache(maxsize=1)  # consecutive cases share the model
def build(checkpoint: str | None, device: str, fast: bool = True) -> Codec:
    """Load a checkpoint (None: the shipped one), or build random weights for :data:`RELEASED`."""
    if checkpoint == RELEASED:
        torch.manual_seed(0)
        return Codec(scale_latents(UGICM(MLICPP)), device, fast)
    return load(checkpoint, device, fast)


@torch.no_grad()
def scale_latents(model: UGICM) -> UGICM:
    """Scale the latents of a random single-rate model, in place, to :data:`BITS` per pixel. Return the model.

    The entropy coder then has as much work as with trained weights.
    """
    x = images.to_tensor(sample(256, 256))
    y = model.eval().analyze(x, torch.full((1,), 0.5))

    def bits(scale: float) -> float:
        coder = LikelihoodCoder(model.entropy_model)
        model.entropy_model(coder, model.h_a(y * scale), y * scale)
        return float(bits_per_pixel([coder.y_likelihood], x.shape[2] * x.shape[3]))

    low, high = 2.0**-10, 2.0**10
    for _ in range(8):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if bits(middle) > BITS else (middle, high)
    last = [m for m in model.g_a.modules() if isinstance(m, nn.Conv2d)][-1]
    last.weight.mul_(low)
    last.bias.mul_(low)
    return model


def peak_memory(case: BenchmarkCase) -> float:
    """Return the MiB above the loaded model that compress and decompress to both images need.

    Measured in a fresh process, since allocators keep freed memory. On a GPU, of the GPU's memory.
    """
    return in_fresh_process(_peak_memory, case)


def _peak_memory(case: BenchmarkCase) -> float:
    torch.set_num_threads(case.threads)
    measured = subject(case)
    on_gpu = torch.device(case.device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(case.device)
        before = torch.cuda.memory_allocated(case.device)
    else:
        reset_peak()
        before = memory("VmRSS")
    measured.compress()
    measured.decompress_both()
    return ((torch.cuda.max_memory_allocated(case.device) if on_gpu else memory("VmHWM")) - before) / 2**20


def time_case(
    case: BenchmarkCase, repeats: int, reference: BaselineSubject | None = None, base: UgicmSubject | None = None
) -> tuple[Timing, dict[str, Any]]:
    """Time one case in this process, and measure its memory in another.

    Args:
        case: what to time.
        repeats: timed runs. The median counts.
        reference: codec to compare with at the same size. Calls alternate.
        base: the same codec with an image of :data:`BASE_SIZE`. Calls alternate.

    Returns:
        The timing and, for UG-ICM models, times by stage and the roofline of the transforms.
    """
    torch.set_num_threads(case.threads)
    measured, device = subject(case), case.device
    ours = isinstance(measured, UgicmSubject)
    if case.name == REFERENCE:
        reference = None
    others = [other for other in (reference, base) if other is not None]
    compress = seconds_in_turns([measured.compress, *(other.compress for other in others)], repeats, device)
    decompress = seconds_in_turns(
        [measured.decompress, *([measured.decompress_both] if ours else []), *(o.decompress_both for o in others)],
        repeats, device,
    )  # fmt: skip
    to_one, *to_all = decompress if ours else [decompress[0], *decompress]
    ratios = [(median_ratio(compress[0], c), median_ratio(to_all[0], d)) for c, d in zip(compress[1:], to_all[1:])]
    to_reference = ratios[0] if reference else (1.0, 1.0) if case.name == REFERENCE else (None, None)
    to_base = (None, None)
    if base:
        pixels = base.image.width * base.image.height / (case.width * case.height)
        to_base = tuple(ratio * pixels for ratio in ratios[-1])
    detail = _detail(measured, case, repeats) if ours else {}
    stages = detail.get("seconds", {})
    timing = Timing(
        name=case.name, width=case.width, height=case.height, threads=case.threads, device=device,
        dtype=str(measured.dtype).removeprefix("torch."), compress=statistics.median(compress[0]),
        decompress=statistics.median(to_one), decompress_both=statistics.median(to_all[0]) if ours else None,
        entropy_write=stages.get("entropy encode"), entropy_read=stages.get("entropy decode"),
        bytes=len(measured.data), memory_mib=round(peak_memory(case), 1),
        time_over_floor=detail.get("time_over_floor", {}).get("both"),
        compress_ratio=to_reference[0], decompress_ratio=to_reference[1],
        compress_per_pixel_ratio=to_base[0], decompress_per_pixel_ratio=to_base[1],
    )  # fmt: skip
    return timing, detail


def _detail(measured: UgicmSubject, case: BenchmarkCase, repeats: int) -> dict[str, Any]:
    """Return times by stage, and those of the transforms over the floor of the roofline model."""
    stages = stage_seconds(measured.codec, measured.image, measured.data, repeats)
    rates = measured_rates(measured.dtype, case.device)
    kmac = count_macs(measured.codec.model)
    padded = bitstream.padded_box(case.width, case.height)
    area = padded.width * padded.height
    floors = {part: 1e3 * kmac[part] * area / (1e9 * max(rates.values())) for part in ("g_a", "g_s")}
    over = {part: round(stages[part] / floor, 2) for part, floor in floors.items()}
    over["both"] = round(sum(stages[part] for part in floors) / sum(floors.values()), 2)
    return {"seconds": stages, "kmac_per_pixel": kmac, "gmac_per_second": rates, "floor_seconds": floors,
            "time_over_floor": over}  # fmt: skip


def as_records(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Return timings as dictionaries, with megapixels per second and without ratios that were not measured."""
    records = []
    for timing in timings:
        record, megapixels = asdict(timing), timing.width * timing.height / 1e6
        for name, seconds in (("compress", timing.compress), ("decompress", timing.decompress)):
            record[f"{name}_mp_per_s"] = round(megapixels / seconds, 3)
        records.append({k: v for k, v in record.items() if v is not None or not k.endswith("_ratio")})
    return records
