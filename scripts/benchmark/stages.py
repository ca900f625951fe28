"""Time the stages of one compress and one decompress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from scripts.benchmark.roofline import median_seconds
from ugicm import bitstream, images
from ugicm.codec import Codec
from ugicm.entropy.model import Coder
from ugicm.tiling import Y_STRIDE, Z_STRIDE


class _FreeCoder(Coder):
    """A coder that does nothing, to time the networks of the slice loop alone."""

    def start_slice(self, k: int, hyper: Tensor) -> None:
        pass

    def code(self, scale: Tensor | None, mean: Tensor, part: Any, y: Tensor | None) -> Tensor:
        return mean


@torch.inference_mode()
def stage_seconds(codec: Codec, image: Image.Image, data: bytes, repeats: int) -> dict[str, float]:
    """Return median seconds by stage of coding ``image`` and decoding its bitstream ``data``."""
    model = codec.model
    parsed = bitstream.parse(data)
    x = images.pad_to(images.to_tensor(image).to(codec.device), Z_STRIDE)
    x = x.contiguous(memory_format=torch.channels_last)
    quality = torch.tensor([parsed.quality], device=codec.device)
    y = model.analyze(x, quality)
    z = model.hyper_analyze(y)
    y_hat = codec.entropy_decode(parsed)
    z_hat = model.entropy_model.round_hyper(z)
    hyper = model.entropy_model.hyper_context(z_hat)
    human = torch.zeros(1, device=codec.device)

    def entropy_encode() -> None:
        for box in parsed.tiles:
            model.entropy_encode(y[..., *box.slices(Y_STRIDE)], z[..., *box.slices(Z_STRIDE)], parsed.extent(box))

    stages: dict[str, Callable[[], object]] = {
        "open, pad": lambda: images.to_levels(image, Z_STRIDE).float().div_(255),
        "g_a": lambda: model.analyze(x, quality),
        "h_a": lambda: model.hyper_analyze(y),
        "h_s": lambda: model.entropy_model.hyper_context(z_hat),
        "contexts and parameters": lambda: model.entropy_model.slices(hyper, _FreeCoder(model.entropy_model)),
        "entropy encode": entropy_encode,
        "entropy decode": lambda: codec.entropy_decode(parsed),
        "g_s": lambda: model.synthesize(y_hat, human, quality),
        "image out": lambda: images.from_tensor(x),
    }
    seconds = {name: median_seconds(work, repeats, codec.device) for name, work in stages.items()}
    networks = seconds["h_s"] + seconds["contexts and parameters"]
    return {**seconds, "indexes and symbols (difference)": seconds["entropy decode"] - networks}
