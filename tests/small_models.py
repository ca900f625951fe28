"""Small models of every backbone, whose random weights give latents with many different symbols."""

from __future__ import annotations

import torch

from ugicm.config import CompactConfig, HyperpriorConfig, MlicppConfig
from ugicm.entropy.integer import UNIT
from ugicm.models.ugicm import UGICM

CONFIGS = {
    "compact": CompactConfig(
        N=16, M=32, slice_widths=(8, 16, 8), detail_width=8, parameter_widths=(24,), index_widths=(24,),
        context_width=12, hyper_width=20, width_8=24, depth_8=1, width_16=32, depth_16=1, quality_points=3,
        quality_width=16, machine_depth=1,
    ),
    "mlicpp": MlicppConfig(
        N=16, M=64, slice_widths=(32, 32), parameter_widths=(24, 16), channel_widths=(24, 16), beta_frequencies=3,
        beta_width=16,
    ),
    "bmshj2018": HyperpriorConfig(N=16, M=24, beta_frequencies=3, beta_width=16),
}  # fmt: skip


def encode(model: UGICM, x: torch.Tensor, quality: torch.Tensor) -> tuple[list[bytes], list[int]]:
    """Return the strings and digests of images [B, 3, H, W]."""
    y = model.analyze(x, quality)
    return model.entropy_encode(y, model.hyper_analyze(y))


def small_model(backbone: str = "compact", seed: int = 0) -> UGICM:
    """Return a random model whose latents spread over many symbols and whose parts all have an effect."""
    torch.manual_seed(seed)
    model = UGICM(CONFIGS[backbone])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any() and not name.startswith("entropy_model.bottleneck"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        entropy_model = model.entropy_model
        if backbone == "compact":  # scales above the spread of the latents, except in channels that are not coded
            model.h_a.conv3.weight.mul_(0.25)
            for network in entropy_model.indexes.networks:
                network[-1].weight.mul_(0.08)
                network[-1].bias.fill_(model.config.row_of_scale(25.0) / UNIT)
                network[-1].bias[-2:] = -1.0
        else:
            for network in (entropy_model.h_s,) if backbone == "bmshj2018" else (
                *entropy_model.slices.anchor_params, *entropy_model.slices.non_anchor_params
            ):
                bias = _last_convolution(network).bias
                bias[: len(bias) // 2] += 3.0
        x = torch.rand(1, 3, 64, 64, generator=generator)
        spread = 3.0 / model.analyze(x, torch.tensor([0.5])).std()
        for last in (model.g_a.head, model.g_a.detail) if backbone == "compact" else (_last_convolution(model.g_a),):
            last.weight.mul_(spread)
            if last.bias is not None:
                last.bias.mul_(spread)
    return model.eval()


def _last_convolution(network: torch.nn.Module) -> torch.nn.Conv2d:
    return [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
