"""How long coding takes, as ratios to codecs of CompressAI timed in the same run on the same machine."""

from __future__ import annotations

import contextlib
import functools
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ugicm import pictures
from ugicm.codec import Codec
from ugicm.coding import stream
from ugicm.models.codec import UGICM

# CompressAI's codecs to compare with, and the sizes their papers use at medium rates.
PEERS = {
    "Elic2022Official": {},
    "MeanScaleHyperprior": {"N": 192, "M": 320},  # mbt2018_mean
    "Cheng2020Anchor": {"N": 192},
}
REFERENCE = "Elic2022Official"


@dataclass(frozen=True)
class Timing:
    """Seconds (medians) for one picture of ``width`` x ``height``."""

    name: str
    width: int
    height: int
    compress: float
    decompress: float  # to one picture
    decompress_both: float | None  # to the human and the machine picture from one parse; None for peers
    bytes: int
    memory_mib: float  # peak resident memory above the loaded model


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds of ``work``, after one warm-up call."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def lively(model: UGICM, seed: int = 0) -> UGICM:
    """Random weights with latents spread over many symbols, as trained ones are, so that coding has work to do."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 3, 64, 64, generator=generator)
    quality = torch.tensor([0.5]) if model.has_quality else None
    with torch.no_grad():
        spread = 2.0 / model.eval().analyse(x, quality).std()
        last = [m for m in model.g_a.modules() if isinstance(m, nn.Conv2d)][-1]
        last.weight.mul_(spread)
        last.bias.mul_(spread)
    return model


def time_codec(name: str, codec: Codec, image: Image.Image, repeats: int, quality: float = 0.5) -> Timing:
    """Time ``codec`` from Pillow picture to bytes and back."""
    data = codec.compress(image, quality)
    codec.decompress(data, [0.0, 1.0])
    with peak_memory() as peak:
        codec.decompress(codec.compress(image, quality), [0.0, 1.0])
    return Timing(
        name, *image.size,
        compress=median_seconds(lambda: codec.compress(image, quality), repeats),
        decompress=median_seconds(lambda: codec.decompress(data, 0.0), repeats),
        decompress_both=median_seconds(lambda: codec.decompress(data, [0.0, 1.0]), repeats),
        bytes=len(data), memory_mib=peak(),
    )  # fmt: skip


@torch.inference_mode()
def time_peer(name: str, image: Image.Image, repeats: int, device: str = "cpu") -> Timing:
    """Time a CompressAI model with random weights (its speed does not depend on them) on the same picture."""
    import compressai.models

    torch.manual_seed(0)
    model = getattr(compressai.models, name)(**PEERS[name]).eval().to(device)
    model.update(force=True)
    x = pictures.pad_to(pictures.to_tensor(image).to(device), 64)
    out = model.compress(x)
    with peak_memory() as peak:
        model.decompress(out["strings"], out["shape"])
    return Timing(
        name, *image.size,
        compress=median_seconds(lambda: model.compress(x), repeats),
        decompress=median_seconds(lambda: model.decompress(out["strings"], out["shape"]), repeats),
        decompress_both=None, bytes=_total_bytes(out["strings"]), memory_mib=peak(),
    )  # fmt: skip


def _total_bytes(strings: object) -> int:
    """CompressAI nests its strings differently from model to model."""
    return len(strings) if isinstance(strings, bytes) else sum(map(_total_bytes, strings))


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Peak resident memory inside the block above that at its start, MiB, sampled every 2 ms from /proc."""
    page = resource.getpagesize() / 2**20

    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * page

    start, highest, stop = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            highest[0] = max(highest[0], resident() - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: highest[0]
    finally:
        stop.set()
        thread.join()


def count_macs(model: UGICM, side: int = 256) -> dict[str, float]:
    """Thousand multiply-accumulates of convolutions and linear layers per pixel: analysis, entropy, synthesis.

    Layers on packed halves are counted as they run; products inside attention are not counted.
    """
    parts = {"g_a": [model.g_a], "entropy": [model.h_a, model.parser], "g_s": [model.g_s]}
    counts = dict.fromkeys(parts, 0.0)
    hooks = []

    def count(part: str, layer: nn.Module) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            counts[part] += output.numel() / channels * layer.weight.numel()

        return hook

    for part, modules in parts.items():
        for layer in (layer for module in modules for layer in module.modules()):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                hooks.append(layer.register_forward_hook(count(part, layer)))
    was_training = model.training
    with torch.no_grad():
        quality = torch.full((1,), 0.5) if model.has_quality else None
        model.eval()(torch.rand(1, 3, side, side), torch.zeros(1), quality)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return {part: round(n / side**2 / 1e3, 2) for part, n in counts.items()}


@torch.inference_mode()
def breakdown(codec: Codec, image: Image.Image, repeats: int, quality: float = 0.5) -> dict[str, float]:
    """Median seconds by stage of one compress and one decompress."""
    model, data = codec.model, codec.compress(image, quality)
    parsed = stream.parse(data)
    x = pictures.pad_to(pictures.to_tensor(image).to(codec.device), model.stride)
    x = x.contiguous(memory_format=torch.channels_last)
    _, q = codec._quality(quality)
    y = model.analyse(x, q)
    y_hat: Tensor = codec.parse(parsed)
    z_hat = torch.zeros_like(model.h_a(y)).to(model.parser.dtype)
    hyper = model.parser.h_s(z_hat)

    class Free:
        """A coder that costs nothing: what remains is the networks' time."""

        def code(self, scale, mean, part, y):
            return mean

    steps = {
        "open, pad": lambda: pictures.pad_to(pictures.to_tensor(image), model.stride),
        "g_a": lambda: model.analyse(x, q),
        "h_a": lambda: model.h_a(y),
        "h_s": lambda: model.parser.h_s(z_hat),
        "contexts and parameters": lambda: model.parser.slices(hyper, Free()),
        "parse, all": lambda: codec.parse(parsed),
        "g_s": lambda: model.synthesize(y_hat, torch.zeros(1, device=codec.device), q),
        "picture out": lambda: pictures.from_tensor(x),
    }
    seconds = {name: median_seconds(work, repeats) for name, work in steps.items()}
    rans = seconds["parse, all"] - seconds["h_s"] - seconds["contexts and parameters"]
    return {**seconds, "entropy coder (difference)": rans}


def measured_rate(side: int = 64, channels: int = 192, repeats: int = 9) -> dict[str, float]:
    """What this machine's pointwise convolutions reach, in 10^9 multiply-accumulates a second, by precision.

    The floor of a roofline: counted MACs divided by this rate is the least time the transforms can take.
    """
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Conv2d(channels, channels, 1).to(dtype).to(memory_format=torch.channels_last)
        x = torch.rand(1, channels, side, 2 * side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            seconds = median_seconds(functools.partial(layer, x), repeats)
        rates[str(dtype).removeprefix("torch.")] = round(2 * side * side * channels**2 / seconds / 1e9, 1)
    return rates


def as_records(timings: list[Timing]) -> list[dict]:
    """Timings as plain dictionaries, with ratios to the reference peer's at the same size.

    ``decompress_ratio`` is the time to *both* pictures over the peer's time to its one.
    """
    references = {(t.width, t.height): t for t in timings if t.name == REFERENCE}
    records = []
    for timing in timings:
        record = asdict(timing)
        peer = references.get((timing.width, timing.height))
        if peer is not None:
            record["compress_ratio"] = round(timing.compress / peer.compress, 3)
            both = timing.decompress_both or timing.decompress
            record["decompress_ratio"] = round(both / peer.decompress, 3)
        records.append(record)
    return records
