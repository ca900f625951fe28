"""Distortions between pictures for human eyes. Pictures are [B, 3, H, W], originals in [0, 1]; each returns [B]."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ugicm.errors import ConfigError

MS_SSIM_SMALLEST = 161  # pixels: five scales of an 11 x 11 window


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """255² times the mean squared error: the squared error of 8-bit values."""
    return 255**2 * (x_hat - x).square().flatten(1).mean(1)


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of the pictures as they would be saved: clamped, 8 bits."""
    saved = torch.round(x_hat.clamp(0, 1) * 255) / 255
    return -10 * torch.log10((saved - x).square().flatten(1).mean(1).clamp_min(1e-10))


def structural_dissimilarity(x_hat: Tensor, x: Tensor) -> Tensor:
    """1 - MS-SSIM (Wang, Simoncelli, Bovik, Asilomar 2003), five scales: sides of at least 161 pixels."""
    from pytorch_msssim import ms_ssim

    return 1 - ms_ssim(x_hat.float(), x.float(), data_range=1.0, size_average=False)


class PerceptualDistance(nn.Module):
    """LPIPS (Zhang et al., CVPR 2018), frozen.

    Args:
        net: "alex", "vgg" or "squeeze".
        backbone: "default" (torchvision's weights, downloaded), a file of torchvision's weights, or "random".

    Raises ConfigError where the package or the weights cannot be had.
    """

    def __init__(self, net: str, backbone: str = "default"):
        super().__init__()
        try:
            import lpips
        except ImportError:
            raise ConfigError("objective.terms.lpips needs the package lpips") from None
        try:
            network = lpips.LPIPS(net=net, pnet_rand=backbone != "default", verbose=False)
        except Exception as error:  # the download can fail in many ways
            raise ConfigError(
                f"objective.lpips: the weights of {net} cannot be fetched: {str(error).splitlines()[0]}; give "
                "torchvision's file as objective.lpips.backbone"
            ) from None
        if backbone not in ("default", "random"):
            _load_backbone(network.net, backbone)
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualDistance:
        """It stays in eval mode."""
        return super().train(False)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return self.network(x_hat * 2 - 1, x * 2 - 1).flatten(1).mean(1)


def _load_backbone(network: nn.Module, path: str) -> None:
    """Put torchvision's ``features.N.*`` tensors into LPIPS's slices, whose layers keep the numbers N."""
    if not Path(path).is_file():
        raise ConfigError(f"objective.lpips.backbone: {path!r} is not a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds
        raise ConfigError(f"objective.lpips.backbone: {path} cannot be read: {str(error).splitlines()[0]}") from None
    own = network.state_dict()
    wanted = {key: "features." + key.partition(".")[2] for key in own if key.startswith("slice")}
    wrong = [k for k, name in wanted.items() if name not in state or state[name].shape != own[k].shape]
    if wrong:
        raise ConfigError(f"objective.lpips.backbone: {path} does not fit: {wanted[wrong[0]]} is missing or differs")
    network.load_state_dict({**own, **{k: state[name] for k, name in wanted.items()}})
