"""Compare ways to make the codec faster: each one alone, against the same work without it, in the same run.

The two versions of the work alternate, so that other load on the machine affects both. The PSNR between their images
shows whether the faster version changes the output.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scripts.benchmark.roofline import median_ratio, seconds_in_turns
from scripts.benchmark.speed import QUALITY, sample
from ugicm import bitstream, images
from ugicm.codec import Codec
from ugicm.errors import first_line
from ugicm.tiling import Z_STRIDE

Work = Callable[[], Tensor]


@dataclass(frozen=True)
class Lever:
    """A way to be faster.

    Attributes:
        used: whether the codec does it by default on this device.
        why: the reason for using it or not.
        without: the work without it. Returns an image.
        with_it: the work with it.
        prepare: work that is needed once, before the first image.
    """

    name: str
    used: bool
    why: str
    without: Work
    with_it: Work
    prepare: Callable[[], Any] = lambda: None


@torch.inference_mode()
def levers(codec: Codec, width: int, height: int) -> list[Lever]:
    """Return the levers that apply to ``codec``, for a photograph of the given size."""
    model, device = codec.model, codec.device
    image = sample(width, height)
    x = images.pad_to(images.to_tensor(image), Z_STRIDE).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    parsed = bitstream.parse(codec.compress(image, QUALITY))
    y_hat = codec.entropy_decode(parsed)
    quality = torch.tensor([parsed.quality], device=codec.device)
    human, machine = torch.zeros(1), torch.ones(1)

    def synthesize(beta: Tensor = machine) -> Tensor:
        return model.synthesize(y_hat, beta, quality)

    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    x_plain = x.contiguous(memory_format=torch.contiguous_format)

    def analyze_and_synthesize() -> Tensor:
        return model.synthesize(model.analyze(x, quality), machine, quality)

    def channels_first() -> Tensor:
        return plain.synthesize(plain.analyze(x_plain, quality), machine, quality)

    compiled = torch.compile(model.g_s)

    def both_in_one_batch() -> Tensor:
        return model.synthesize(y_hat.expand(2, -1, -1, -1), torch.cat([human, machine]), quality.expand(2))[1:]

    def both_in_turn() -> Tensor:
        synthesize(human)
        return synthesize(machine)

    def both_decoded_once() -> Tensor:
        codec.entropy_decode(parsed)
        return both_in_turn()

    def both_decoded_twice() -> Tensor:
        codec.entropy_decode(parsed)
        return both_decoded_once()

    synthesize_compiled = _with_attribute(model, "g_s", compiled, synthesize)
    return [
        Lever("blocks of the transforms in bfloat16", model.transform_dtype == torch.bfloat16,
              "costs less than 0.01 dB; used by the compact model if the device has bfloat16 products (AVX-512 BF16, "
              "matrix units, GPUs); other models lose more",
              _with_attribute(model, "transform_dtype", None, analyze_and_synthesize),
              _with_attribute(model, "transform_dtype", torch.bfloat16, analyze_and_synthesize)),
        Lever("channels last", True, "1x1 convolutions are plain matrix products in it",
              channels_first, analyze_and_synthesize),
        Lever("compiled synthesis", False, "compiling takes longer than it saves, once per image size",
              synthesize, synthesize_compiled, prepare=synthesize_compiled),
        Lever("both preferences in one batch", False,
              "twice the memory, and what both images share is computed twice",
              both_in_turn, both_in_one_batch),
        Lever("one entropy decoding for both preferences", True, "the latent does not depend on the preference",
              both_decoded_twice, both_decoded_once),
    ]  # fmt: skip


def _with_attribute(owner: Any, name: str, value: Any, work: Work) -> Work:
    """Return ``work`` with ``owner.name`` set to ``value`` while it runs."""

    def run() -> Tensor:
        before = getattr(owner, name)
        setattr(owner, name, value)
        try:
            return work()
        finally:
            setattr(owner, name, before)

    return run


@torch.inference_mode()
def measure(lever: Lever, repeats: int) -> dict[str, Any]:
    """Return median seconds of both versions, their ratio, and the PSNR in dB between their images.

    If a lever cannot be measured on this machine (without a compiler, for example), the record has an ``error``.
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
    without, with_it = (statistics.median(seconds) for seconds in times)
    difference = (one - other).square().mean().item()
    return record | {
        "seconds_without": without, "seconds_with": with_it, "ratio": median_ratio(times[1], times[0]),
        "seconds_once": round(prepared, 2),
        "psnr_between": None if difference == 0 else round(-10 * math.log10(difference), 1),
    }  # fmt: skip
