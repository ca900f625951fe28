"""What makes a codec faster and what does not: each lever alone, against the same work without it, in one run.

Two versions of a piece of work take turns, so that other load on the machine meets both. Each lever also says how far
the images of the two versions are apart, since a faster path may not change what people see.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scripts.benchmark.roofline import median_ratio, seconds_in_turns
from scripts.benchmark.speed import QUALITY, sample
from ugicm import bitstream, images
from ugicm.codec import Codec
from ugicm.errors import first_line
from ugicm.models import layers
from ugicm.tiling import Z_STRIDE

Work = Callable[[], Tensor]


@dataclass(frozen=True)
class Lever:
    """One way to be faster: the work without and with it, and what keeps it in or out of the codec."""

    name: str
    used: bool  # what the codec does by default on this device
    why: str
    without: Work
    with_it: Work
    prepare: Callable[[], Any] = lambda: None  # what it costs once, before the first image


@torch.inference_mode()
def levers(codec: Codec, width: int, height: int) -> list[Lever]:
    """The levers that apply to ``codec``, on the package's photograph scaled to the given size."""
    model, device = codec.model, codec.device
    image = sample(width, height)
    x = images.pad_to(images.to_tensor(image), Z_STRIDE).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    parsed = bitstream.parse(codec.compress(image, QUALITY))
    y_hat = codec.parse(parsed)
    q = codec._quality(parsed.quality)[1]
    human, machine = torch.zeros(1), torch.ones(1)

    def decode(beta: Tensor = machine, y: Tensor = y_hat, q: Tensor | None = q) -> Tensor:
        return model.synthesize(y, beta, q)

    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    x_plain = x.contiguous(memory_format=torch.contiguous_format)

    def analyze_and_decode() -> Tensor:
        model.analyze(x, q)
        return decode()

    def channels_first() -> Tensor:
        plain.analyze(x_plain, q)
        return plain.synthesize(y_hat.contiguous(), machine, q)

    def under(context: Callable, work: Work) -> Work:
        def run() -> Tensor:
            with context():
                return work()

        return run

    compiled = torch.compile(model.g_s)

    def decode_compiled() -> Tensor:
        with _attribute(model, "g_s", compiled):
            return decode()

    def both_in_one_batch() -> Tensor:
        two = None if q is None else q.expand(2)
        return decode(torch.cat([human, machine]), y_hat.expand(2, -1, -1, -1), two)[1:]

    def both_in_turn() -> Tensor:
        decode(human)
        return decode(machine)

    def both_parsed_twice() -> Tensor:
        codec.parse(parsed)
        return both_parsed_once()

    def both_parsed_once() -> Tensor:
        codec.parse(parsed)
        return both_in_turn()

    found = [
        Lever("blocks of the synthesis in bfloat16", model.synthesis_dtype == torch.bfloat16,
              "costs less than 0.01 dB: used where products are several times as fast (matrix units, GPUs), by the "
              "compact form alone, since the others lose more",
              under(lambda: _attribute(model, "synthesis_dtype", None), decode),
              under(lambda: _attribute(model, "synthesis_dtype", torch.bfloat16), decode)),
        Lever("channels last", True, "convolutions with kernels of 1x1 are plain matrix products in it",
              channels_first, analyze_and_decode),
        Lever("compiled synthesis", False, "what it saves is paid for by the first image of every size",
              decode, decode_compiled, prepare=decode_compiled),
        Lever("both preferences in one batch", False,
              "twice the memory, and the branches for machines run for people too", both_in_turn, both_in_one_batch),
        Lever("one parse for both preferences", True, "the entropy part does not know the viewer",
              both_parsed_twice, both_parsed_once),
    ]  # fmt: skip
    if any(isinstance(module, layers.Conv2d) for module in model.modules()) and device.type == "cpu":
        found.append(Lever(
            "Winograd convolutions", True, "half of the products of a 3x3 filter",
            under(lambda: _attribute(layers.Conv2d, "WORTHWHILE_POSITIONS", float("inf")), analyze_and_decode),
            analyze_and_decode,
        ))  # fmt: skip
    return found


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While it lasts, ``owner.name`` is ``value``."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@torch.inference_mode()
def measure(lever: Lever, repeats: int) -> dict[str, Any]:
    """Median seconds of both versions, their ratio, and the PSNR in dB between their two images.

    A lever that cannot be measured here (no compiler, for example) has an ``error`` instead.
    """
    record = {"lever": lever.name, "used": lever.used, "why": lever.why}
    try:
        start = time.perf_counter()
        lever.prepare()
        prepared = time.perf_counter() - start
        pair = (lever.without, lever.with_it)
        one, other = (work().float().clamp(0, 1) for work in pair)
        times = seconds_in_turns(pair, repeats, one.device)
    except (RuntimeError, ImportError) as error:
        return record | {"error": first_line(error)[:200]}
    without, with_it = (statistics.median(taken) for taken in times)
    difference = (one - other).square().mean().item()
    return record | {
        "seconds_without": without, "seconds_with": with_it, "ratio": median_ratio(times[1], times[0]),
        "seconds_once": round(prepared, 2),
        "psnr_between": None if difference == 0 else round(-10 * math.log10(difference), 1),
    }  # fmt: skip
