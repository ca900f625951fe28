"""How long coding takes and how much memory, beside codecs of CompressAI in the same run on the same machine."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from scripts.benchmark.memory import in_fresh_process, memory, reset_peak
from scripts.benchmark.roofline import (
    count_macs,
    measured_rates,
    median_ratio,
    median_seconds,
    seconds_in_turns,
    synchronize,
)
from ugicm import bitstream, images
from ugicm.codec import Codec, load
from ugicm.config import MLICPP
from ugicm.entropy.full_float32 import full_float32
from ugicm.entropy.rans import LikelihoodCoder
from ugicm.losses.rate import bits_per_pixel
from ugicm.models.ugicm import UGICM
from ugicm.tiling import Y_STRIDE, Z_STRIDE

# CompressAI's codecs to compare with: their classes, and the sizes their papers use at medium rates.
PEERS: dict[str, tuple[str, dict[str, int]]] = {
    "Elic2022Official": ("Elic2022Official", {}),
    "mbt2018_mean": ("MeanScaleHyperprior", {"N": 192, "M": 320}),
    "cheng2020_anchor": ("Cheng2020Anchor", {"N": 192}),
}
REFERENCE = "Elic2022Official"
QUALITY = 0.5  # of ours
BITS = 1.0  # a pixel: about the most that trained weights of the form write
BASE = (512, 768)  # height and width that the time per pixel of other sizes is compared with
FULL = "full"  # stands for a checkpoint: the 117.78 M-parameter form with random weights


@dataclass(frozen=True)
class Setting:
    """What is timed, and under which conditions: enough to build it again in another process.

    ``checkpoint``: of ours, None for the shipped one, or :data:`FULL`; unused where ``name`` is one of :data:`PEERS`.
    """

    name: str
    width: int
    height: int
    threads: int
    device: str = "cpu"
    checkpoint: str | None = None
    fast: bool = True  # reduced precision where the device is quick at it


@dataclass(frozen=True)
class Timing:
    """Medians of warm runs, in seconds, for one image."""

    name: str
    width: int
    height: int
    threads: int
    device: str
    dtype: str  # of most of the synthesis
    compress: float
    decompress: float  # to one image
    decompress_both: float | None  # to the human and the machine image from one parse; None for peers
    entropy_write: float | None  # of compress, all after analysis and hyper-analysis
    entropy_read: float | None  # of decompress, all before synthesis
    bytes: int
    memory_mib: float  # peak above the loaded model, in a process that has done nothing else
    time_over_floor: float | None  # of the transforms
    # Over the reference peer's compress and decompress, call by call in turns; to *both* images over its one.
    compress_ratio: float | None = None
    decompress_ratio: float | None = None
    # Time per pixel of compress and of decompress to both, over that of an image of BASE size, in turns.
    compress_per_pixel_ratio: float | None = None
    decompress_per_pixel_ratio: float | None = None


class Ours:
    """Our codec on one image."""

    def __init__(self, setting: Setting):
        self.codec = build(setting.checkpoint, setting.device, setting.fast)
        self.image = sample(setting.width, setting.height)
        self.data = b""

    @property
    def dtype(self) -> torch.dtype:
        return self.codec.model.synthesis_dtype or torch.float32

    def compress(self) -> None:
        self.data = self.codec.compress(self.image, QUALITY)

    def decompress(self) -> None:
        self.codec.decompress(self.data, 0.0)

    def decompress_both(self) -> None:
        self.codec.decompress(self.data, [0.0, 1.0])


class Peer:
    """A CompressAI model with random weights, on which its speed does not depend."""

    dtype = torch.float32

    def __init__(self, setting: Setting):
        import compressai.models

        torch.manual_seed(0)
        name, sizes = PEERS[setting.name]
        self.model = getattr(compressai.models, name)(**sizes).eval().to(setting.device)
        self.model.update(force=True)
        self.x = images.pad_to(images.to_tensor(sample(setting.width, setting.height)).to(setting.device), 64)
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
        return b"".join(_flat(self.out["strings"]))


def _flat(strings: Any) -> list[bytes]:
    """CompressAI nests its strings differently from model to model."""
    return [strings] if isinstance(strings, bytes) else [s for inner in strings for s in _flat(inner)]


def subject(setting: Setting) -> Ours | Peer:
    return Peer(setting) if setting.name in PEERS else Ours(setting)


def sample(width: int, height: int) -> Image.Image:
    """A photograph from the package, scaled."""
    with resources.as_file(resources.files("ugicm") / "samples" / "kodim23.png") as path:
        return images.open_rgb(path).resize((width, height), Image.Resampling.LANCZOS)


@functools.lru_cache(maxsize=1)  # sizes and thread counts follow each other with the same model
def build(checkpoint: str | None, device: str, fast: bool = True) -> Codec:
    """The codec of a checkpoint (None: the shipped one), or of random weights in the large form for :data:`FULL`."""
    if checkpoint == FULL:
        torch.manual_seed(0)
        return Codec(lively(UGICM(MLICPP)), device, fast)
    return load(checkpoint, device, fast)


def lively(model: UGICM) -> UGICM:
    """A one-rate model of random weights, its latents stretched until they take :data:`BITS` a pixel: coding then has
    as much to do as in a trained one."""
    x = images.to_tensor(sample(256, 256))
    with torch.no_grad():
        y = model.eval().analyze(x)

        def bits(stretch: float) -> float:
            coder = LikelihoodCoder(model.parser)
            model.parser(coder, model.h_a(y * stretch), y * stretch)
            return float(bits_per_pixel([coder.y_likelihood], x.shape[2] * x.shape[3]))

        low, high = 2.0**-10, 2.0**10
        for _ in range(8):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if bits(middle) > BITS else (middle, high)
        last = [m for m in model.g_a.modules() if isinstance(m, nn.Conv2d)][-1]
        last.weight.mul_(low)
        last.bias.mul_(low)
    return model


def peak_memory(setting: Setting) -> float:
    """MiB above the loaded model that one compress and one decompress (to both) need, in a process of their own.

    A process that has coded before would show nothing: it keeps what it once had. On a GPU, of the GPU's memory.
    """
    return in_fresh_process(_peak_memory, setting)


def _peak_memory(setting: Setting) -> float:
    torch.set_num_threads(setting.threads)
    it = subject(setting)
    on_gpu = torch.device(setting.device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(setting.device)
        before = torch.cuda.memory_allocated(setting.device)
    else:
        reset_peak()
        before = memory("VmRSS")
    it.compress()
    it.decompress_both()
    return ((torch.cuda.max_memory_allocated(setting.device) if on_gpu else memory("VmHWM")) - before) / 2**20


def time_setting(
    setting: Setting, repeats: int, reference: Peer | None = None, base: Ours | None = None
) -> tuple[Timing, dict]:
    """Time one setting here, in turns with the ``reference`` at the same size and with the same codec on the image of
    ``base``, where there are such, and weigh it in another process.

    Returns the timing, and where the time goes (for ours).
    """
    torch.set_num_threads(setting.threads)
    it, device = subject(setting), setting.device
    ours = isinstance(it, Ours)
    if setting.name == REFERENCE:
        reference = None
    company = [other for other in (reference, base) if other is not None]
    writing = seconds_in_turns([it.compress, *(other.compress for other in company)], repeats, device)
    reading = seconds_in_turns(
        [*([it.decompress] if ours else []), it.decompress_both, *(other.decompress_both for other in company)],
        repeats, device,
    )  # fmt: skip
    compress, decompress = statistics.median(writing[0]), statistics.median(reading[0])
    to_all = reading[1:] if ours else reading
    ratios = [(median_ratio(writing[0], w), median_ratio(to_all[0], r)) for w, r in zip(writing[1:], to_all[1:])]
    to_reference = ratios[0] if reference else (1.0, 1.0) if setting.name == REFERENCE else (None, None)
    to_base = (None, None)
    if base:
        pixels = base.image.width * base.image.height / (setting.width * setting.height)
        to_base = tuple(ratio * pixels for ratio in ratios[-1])
    both = write = read = over = None
    detail: dict[str, Any] = {}
    if ours:
        both = statistics.median(reading[1])
        stages = stage_seconds(it, repeats)
        write, read = stages["write, all"], stages["parse, all"]
        with full_float32():
            rates = {"g_a": measured_rates(torch.float32, device)}
        rates["g_s"] = measured_rates(it.dtype, device)
        kmac = count_macs(it.codec.model)
        padded = bitstream.padded_box(setting.width, setting.height)
        area = padded.width * padded.height
        floors = {part: 1e3 * kmac[part] * area / (1e9 * max(rate.values())) for part, rate in rates.items()}
        over = round(sum(stages[part] for part in floors) / sum(floors.values()), 2)
        detail = {
            "seconds": stages, "modules_seconds": module_seconds(it, repeats), "kmac_per_pixel": kmac,
            "gmac_per_second": rates, "floor_seconds": floors,
            "time_over_floor": {part: round(stages[part] / floor, 2) for part, floor in floors.items()},
        }  # fmt: skip
    timing = Timing(
        setting.name, setting.width, setting.height, setting.threads, device, str(it.dtype).removeprefix("torch."),
        compress, decompress, both, write, read, len(it.data), round(peak_memory(setting), 1), over,
        *to_reference, *to_base,
    )  # fmt: skip
    return timing, detail


@torch.inference_mode()
def stage_seconds(it: Ours, repeats: int) -> dict[str, float]:
    """Median seconds by stage of one compress and one decompress."""
    codec, model, image = it.codec, it.codec.model, it.image
    parsed = bitstream.parse(it.data)
    x = images.pad_to(images.to_tensor(image).to(codec.device), Z_STRIDE)
    x = x.contiguous(memory_format=torch.channels_last)
    _, q = codec._quality(QUALITY)
    y = model.analyze(x, q)
    z = model.hyper_analyze(y)
    y_hat: Tensor = codec.parse(parsed)
    z_hat = torch.zeros_like(z).to(model.parser.dtype)
    hyper = model.parser.h_s(z_hat)
    tiles = parsed.tiles if parsed.tile else [parsed.padded]

    class Free:
        """A coder that costs nothing: what remains is the networks' time."""

        def code(self, scale: Tensor, mean: Tensor, part: Any, y: Tensor) -> Tensor:
            return mean

    def write() -> None:
        for box in tiles:
            model.write(y[..., *box.slices(Y_STRIDE)], z[..., *box.slices(Z_STRIDE)], parsed.inside(box))

    steps: dict[str, Callable[[], object]] = {
        "open, pad": lambda: images.to_levels(image, Z_STRIDE).float().div_(255),
        "g_a": lambda: model.analyze(x, q),
        "h_a": lambda: model.hyper_analyze(y),
        "h_s": lambda: model.parser.h_s(z_hat),
        "contexts and parameters": lambda: model.parser.slices(hyper, Free()),
        "write, all": write,
        "parse, all": lambda: codec.parse(parsed),
        "g_s": lambda: model.synthesize(y_hat, torch.zeros(1), q),
        "image out": lambda: images.from_tensor(x),
    }
    seconds = {name: median_seconds(work, repeats, codec.device) for name, work in steps.items()}
    networks = seconds["h_s"] + seconds["contexts and parameters"]
    return {**seconds, "entropy coder, reading (difference)": seconds["parse, all"] - networks}


def module_seconds(it: Ours, repeats: int) -> dict[str, float]:
    """Median seconds in each module of the networks during one compress and one decompress to both images.

    Modules are the children of g_a, h_a, h_s, the slices' model and g_s; those in a list (blocks of one kind, the same
    network of every slice) are added up. What is computed between them, and the rANS coder, is not in it.
    """
    model, device = it.codec.model, it.codec.device
    parts = {"g_a": model.g_a, "h_a": model.h_a, "h_s": model.parser.h_s, "slices": model.parser.slices,
             "g_s": model.g_s}  # fmt: skip
    taken: dict[str, float] = defaultdict(float)
    started: dict[str, float] = {}
    hooks = []

    def watch(label: str, module: nn.Module) -> None:
        def enter(*_: object) -> None:
            synchronize(device)
            started[label] = time.perf_counter()

        def leave(*_: object) -> None:
            synchronize(device)
            taken[label] += time.perf_counter() - started[label]

        hooks.extend([module.register_forward_pre_hook(enter), module.register_forward_hook(leave)])

    for part, network in parts.items():
        for name, child in network.named_children():
            members = list(child) if isinstance(child, nn.ModuleList) else [child]
            kinds = ", ".join(sorted({type(member).__name__ for member in members}))
            for member in members:
                watch(f"{part}.{name} ({kinds})", member)
    runs = []
    try:
        for _ in range(repeats + 1):
            taken.clear()
            it.compress()
            it.decompress_both()
            runs.append(dict(taken))
    finally:
        for hook in hooks:
            hook.remove()
    return {label: statistics.median(run[label] for run in runs[1:]) for label in runs[-1]}


def as_records(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Timings as plain dictionaries, with megapixels a second; without ratios where there was no reference."""
    records = []
    for timing in timings:
        record, megapixels = asdict(timing), timing.width * timing.height / 1e6
        for name, seconds in (("compress", timing.compress), ("decompress", timing.decompress)):
            record[f"{name}_mp_per_s"] = round(megapixels / seconds, 3)
        records.append({k: v for k, v in record.items() if v is not None or not k.endswith("_ratio")})
    return records
