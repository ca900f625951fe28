"""The human side: how near a decoded image is to the original, and how near it looks.

==============  =============================================================================================
``psnr-rgb``    dB over all samples
``psnr-y``      dB over luma, Y = .299 R + .587 G + .114 B (BT.601, unrounded)
``ms-ssim-rgb`` Wang et al. 2003; none for images with a side under 161
``lpips``       Zhang et al. 2018, version 0.1, where the backbone's weights are at hand; lower is better
==============  =============================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ugicm.checkpoints.state_dict import read_state
from ugicm.errors import ConfigError
from ugicm.evaluation.digests import digest_of
from ugicm.evaluation.metrics import ms_ssim, psnr
from ugicm.evaluation.results import finite, mean
from ugicm.evaluation.specs import parse_spec
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.images import to_tensor
from ugicm.losses.distortion import LPIPS_BACKBONES, lpips_network

_LUMA = np.array([0.299, 0.587, 0.114])


class FidelityEvaluator(Evaluator):
    """Distances to the original, all computed by the readers of images; nothing is left for a batch."""

    name = "fidelity"
    identity = "fidelity 1"
    metrics = headline = ("psnr-rgb", "psnr-y", "ms-ssim-rgb")
    noisy = False
    needs_original = True

    @staticmethod
    def prepare(item: Item, image: Image.Image, original: Image.Image | None) -> dict:
        return {
            "psnr-rgb": finite(psnr(original, image)),
            "psnr-y": finite(psnr_luma(original, image)),
            "ms-ssim-rgb": ms_ssim(original, image),
        }

    def title(self, metric: str) -> str:
        return metric

    def contributions(self, metric: str, records: dict[str, dict]) -> dict[str, float] | None:
        values = {key: record[metric] for key, record in records.items()}
        return None if None in values.values() else values

    def process(self, items: Sequence[Item], prepared: Sequence[dict]) -> None:
        self.records.update((item.key, record) for item, record in zip(items, prepared, strict=True))

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Means over images. An image without a value (exact: infinite PSNR; small: no MS-SSIM) is left
        out.
        """
        return {metric: mean(r[metric] for r in records.values()) for metric in self.metrics}


class LpipsEvaluator(Evaluator):
    """Learned perceptual distance; images one at a time, as they differ in size."""

    metrics = headline = falling = ("lpips",)
    noisy = False
    needs_original = True

    def __init__(self, model: nn.Module, net: str, device: str = "cpu"):
        super().__init__()
        self.model, self.device = model.eval().to(device), device
        self.name = f"lpips-{net}"
        self.identity = f"lpips 0.1 {net} {digest_of(model)}"

    @staticmethod
    def prepare(item: Item, image: Image.Image, original: Image.Image | None) -> tuple[Tensor, Tensor]:
        return to_tensor(image), to_tensor(original)

    @torch.inference_mode()
    def process(self, items: Sequence[Item], prepared: Sequence[tuple[Tensor, Tensor]]) -> None:
        for item, (image, original) in zip(items, prepared, strict=True):
            value = self.model(image.to(self.device), original.to(self.device), normalize=True)
            self.records[item.key] = {"lpips": float(value)}

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        return {"lpips": mean(r["lpips"] for r in records.values())}


def psnr_luma(original: Image.Image, decoded: Image.Image) -> float:
    """Peak signal-to-noise ratio of luma in dB; infinite for equal images. RGB images of one size."""
    a, b = (np.asarray(image, dtype=np.float64) @ _LUMA for image in (original, decoded))
    mse = np.mean((a - b) ** 2)
    return math.inf if mse == 0 else float(10 * np.log10(255**2 / mse))


def load_lpips(text: str = "alex", device: str = "cpu") -> LpipsEvaluator:
    """``alex``, ``vgg`` or ``squeeze``, with the backbone's ImageNet weights from torchvision's hub or
    ``=PATH``.

    The calibrated linear layers come with the lpips package; the backbone does not, and without its own
    weights the number would not be LPIPS.

    Raises ConfigError for another name, CheckpointError for weights that cannot be had or do not fit.
    """
    spec = parse_spec(text)
    spec.take()
    if spec.name not in LPIPS_BACKBONES:
        raise ConfigError(f"{text}: LPIPS has backbones {', '.join(LPIPS_BACKBONES)}")
    backbone, where = (read_state(spec.where), spec.where) if spec.where else ("default", f"{spec.name}=PATH")
    model = lpips_network(spec.name, backbone, where)
    return LpipsEvaluator(model, spec.name, device)
