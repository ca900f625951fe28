"""Distortions between images for human eyes. Images are [B, 3, H, W], originals in [0, 1]; each returns [B]."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ugicm.checkpoints.state_dict import read_state
from ugicm.errors import CheckpointError, ConfigError, first_line, first_of

MS_SSIM_SMALLEST = 161  # pixels: five scales of an 11 x 11 window
LPIPS_BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # torchvision's names


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """255² times the mean squared error: the squared error of 8-bit values."""
    return 255**2 * (x_hat - x).square().flatten(1).mean(1)


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of the images as they would be saved: clamped, 8 bits."""
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

    Raises ConfigError without the package, CheckpointError where the weights cannot be had.
    """

    def __init__(self, net: str, backbone: str = "default"):
        super().__init__()
        where = "objective.lpips.backbone"
        if backbone in ("default", "random"):
            self.network = lpips_network(net, backbone, where)
        else:
            self.network = lpips_network(net, _read_backbone(backbone, where), f"{where}: {backbone}")

    def train(self, mode: bool = True) -> PerceptualDistance:
        """It stays in eval mode."""
        return super().train(False)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return self.network(x_hat * 2 - 1, x * 2 - 1).flatten(1).mean(1)


def lpips_network(net: str, backbone: str | dict[str, Tensor], where: str) -> nn.Module:
    """The network of LPIPS, version 0.1, frozen: images in [-1, 1] -> distances [B, 1, 1, 1].

    Its calibrated layers come with the package lpips; the backbone does not.

    Args:
        net: "alex", "vgg" or "squeeze".
        backbone: torchvision's weights: "default" (downloaded), a state dict, or "random" for trials.
        where: what messages call the place that ``backbone`` comes from, or can be given.

    Raises ConfigError without the package, CheckpointError for weights that cannot be had or do not fit.
    """
    try:
        import lpips
    except ImportError:
        raise ConfigError("LPIPS needs the package lpips; pip install lpips") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it names its weights in a way that torchvision deprecates
            network = lpips.LPIPS(net=net, pnet_rand=backbone != "default", verbose=False)
    except Exception as error:  # the download can fail in many ways
        raise CheckpointError(
            f"LPIPS: the weights of its backbone {LPIPS_BACKBONES[net]} could not be downloaded ({first_line(error)}); "
            f"download torchvision's file elsewhere and name it: {where}"
        ) from None
    if not isinstance(backbone, str):
        _load_backbone(network.net, backbone, f"{where}: does not fit LPIPS's {LPIPS_BACKBONES[net]}")
    return network.requires_grad_(False).eval()


def _read_backbone(path: str, where: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise CheckpointError(f"{where}: {path!r} is not a file; also known: default (downloaded), random")
    try:
        return read_state(path)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _load_backbone(network: nn.Module, state: dict[str, Tensor], complaint: str) -> None:
    """Put torchvision's ``features.N.*`` tensors into LPIPS's slices, whose layers keep the numbers N."""
    own = network.state_dict()
    names = {"features." + key.partition(".")[2]: key for key in own}
    given = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    wrong = [name for name, key in names.items() if name not in given or given[name].shape != own[key].shape]
    wrong += [name for name in given if name not in names]
    if wrong:
        raise CheckpointError(f"{complaint}: {first_of(wrong)} missing, not expected or of another shape")
    network.load_state_dict({key: given[name] for name, key in names.items()})
