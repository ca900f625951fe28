"""Fidelity to the original image, for human viewing.

==============  =============================================================================================
``psnr-rgb``    dB over all samples, at most 100
``psnr-y``      dB over luma, Y = 0.299 R + 0.587 G + 0.114 B (BT.601, not rounded), at most 100
``ms-ssim-rgb`` Wang et al. 2003; undefined for images with a side of less than 161 pixels
``lpips``       Zhang et al. 2018, version 0.1; lower is better; undefined for images too small for its network
==============  =============================================================================================
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ugicm.checkpoints.state_dict import load_matching, read_state_dict
from ugicm.errors import ConfigError, ImageError
from ugicm.evaluation.digests import digest_of
from ugicm.evaluation.metrics import ms_ssim, psnr
from ugicm.evaluation.results import mean
from ugicm.evaluation.specs import download, parse_spec
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.evaluation.tasks.classifiers import NORMALIZATIONS
from ugicm.extras import require_packages
from ugicm.images import to_tensor

_LUMA = np.array([0.299, 0.587, 0.114])
_ENOUGH = 64  # pixels of a side that all networks of LPIPS can take
_BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


class FidelityEvaluator(Evaluator):
    """PSNR and MS-SSIM, which are computed by :meth:`prepare`."""

    name = "fidelity"
    identity = "fidelity 2"
    metrics = headline = ("psnr-rgb", "psnr-y", "ms-ssim-rgb")
    noisy = False
    needs_original = True

    @staticmethod
    def prepare(item: Item, image: Image.Image, original: Image.Image | None) -> dict:
        return {
            "psnr-rgb": psnr(original, image),
            "psnr-y": psnr(original, image, _LUMA),
            "ms-ssim-rgb": ms_ssim(original, image),
        }

    def title(self, metric: str) -> str:
        return metric

    def per_image_scores(self, metric: str, records: dict[str, dict]) -> dict[str, float] | None:
        return {key: record[metric] for key, record in records.items() if record[metric] is not None}

    def process(self, items: Sequence[Item], inputs: Sequence[dict]) -> None:
        self.records.update((item.key, record) for item, record in zip(items, inputs, strict=True))

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Return means over the images whose value is defined (MS-SSIM of a large enough image)."""
        return {metric: mean(r[metric] for r in records.values()) for metric in self.metrics}


class LpipsEvaluator(Evaluator):
    """Learned perceptual image patch similarity. A record holds None for an image that is too small for the network."""

    metrics = headline = lower_is_better = ("lpips",)
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
    def process(self, items: Sequence[Item], inputs: Sequence[tuple[Tensor, Tensor]]) -> None:
        for item, (image, original) in zip(items, inputs, strict=True):
            try:
                value = float(self.model(image.to(self.device), original.to(self.device), normalize=True))
            except RuntimeError:  # of a pooling layer
                if min(image.shape[-2:]) >= _ENOUGH:
                    raise
                value = None
            if value is not None and not math.isfinite(value):
                raise ImageError(f"{self.name}: the value is not finite")
            self.records[item.key] = {"lpips": value}

    def per_image_scores(self, metric: str, records: dict[str, dict]) -> dict[str, float] | None:
        return {key: record["lpips"] for key, record in records.items() if record["lpips"] is not None}

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Return the mean over the images that are large enough."""
        return {"lpips": mean(r["lpips"] for r in records.values())}


def load_lpips(text: str = "alex", device: str = "cpu") -> LpipsEvaluator:
    """Load LPIPS with the backbone ``alex``, ``vgg`` or ``squeeze``, or ``alex=PATH`` with local weights.

    The package lpips contains the linear layers; torchvision's ImageNet weights of the backbone are downloaded.
    ``normalize=none`` is for local weights of networks that take images in [0, 1] as they are.

    Raise ConfigError if the backbone or an option is unknown, CheckpointError if weights cannot be downloaded or do not
    fit.
    """
    spec = parse_spec(text)
    normalization = NORMALIZATIONS.get(spec.take(**({"normalize": "imagenet"} if spec.where else {})).get("normalize"))
    if spec.where and normalization is None:
        raise ConfigError(f"{text}: unknown normalize; available: {', '.join(NORMALIZATIONS)}")
    if spec.name not in _BACKBONES:
        raise ConfigError(f"{text}: unknown LPIPS backbone; available: {', '.join(_BACKBONES)}")
    state = read_state_dict(spec.where) if spec.where else None
    require_packages("eval", "LPIPS", "lpips")
    import lpips

    build = partial(lpips.LPIPS, net=spec.name, pnet_rand=state is not None, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package passes arguments that torchvision deprecates
        network = download(build, spec, f"torchvision weights of the LPIPS backbone {_BACKBONES[spec.name]}")
    if state is not None:
        # LPIPS divides torchvision's "features" into slices, whose layers keep their numbers.
        slices = {"features." + key.partition(".")[2]: key for key in network.net.state_dict()}
        state = {slices.get(key, key): tensor for key, tensor in state.items() if key.startswith("features.")}
        load_matching(network.net, state, spec.where, f"the LPIPS backbone {_BACKBONES[spec.name]}")
        # LPIPS normalizes samples in [-1, 1].
        mean_rgb, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in normalization)
        network.scaling_layer.shift, network.scaling_layer.scale = 2 * mean_rgb - 1, 2 * deviation
    return LpipsEvaluator(network.requires_grad_(False), spec.name, device)
