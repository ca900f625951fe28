"""Small models of every backbone, with weights that make lively latents, for tests."""

from __future__ import annotations

import torch

from ugicm.config import ModelConfig
from ugicm.models.ugicm import UGICM

_SMALL_REFERENCE = dict(
    N=16, slice_widths=(), parameter_widths=(24, 16), beta_frequencies=3, beta_width=16, quality_points=0,
    scale_max=256.0, sparse_coding=False, parsing="float64",
)  # fmt: skip
CONFIGS = {
    "compact": ModelConfig(
        N=16, M=32, slices=3, slice_widths=(8, 16, 8), detail_width=8, parameter_widths=(24,), context_width=12,
        hyper_width=20, width_8=24, depth_8=1, width_16=32, depth_16=1, branch_width=8, beta_width=16,
        quality_points=3, sharpness=0.5,
    ),
    "mlicpp": ModelConfig(
        backbone="mlicpp", M=64, slices=2, channel_widths=(24, 16), lrp="full", **_SMALL_REFERENCE
    ),
    "bmshj2018": ModelConfig(backbone="bmshj2018", M=24, slices=1, **_SMALL_REFERENCE),
}  # fmt: skip


def small_model(backbone: str = "compact", seed: int = 0) -> UGICM:
    """A random model whose latents spread over many symbols and whose every part has an effect."""
    torch.manual_seed(seed)
    model = UGICM(CONFIGS[backbone])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any() and not name.startswith("parser.bottleneck"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        for network in (model.parser.h_s,) if backbone == "bmshj2018" else (
            *model.parser.slices.anchor_params, *model.parser.slices.rest_params
        ):  # scales that fit the spread of the latent
            bias = _last_convolution(network).bias
            bias[: len(bias) // 2] += 3.0
        x = torch.rand(1, 3, 64, 64, generator=generator)
        quality = torch.tensor([0.5]) if model.has_quality else None
        spread = 3.0 / model.analyze(x, quality).std()
        for last in (model.g_a.head, model.g_a.detail) if backbone == "compact" else (_last_convolution(model.g_a),):
            last.weight.mul_(spread)
            if last.bias is not None:
                last.bias.mul_(spread)
    return model.eval()


def _last_convolution(network: torch.nn.Module) -> torch.nn.Conv2d:
    return [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
