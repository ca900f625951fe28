"""Frozen networks whose features say what a machine sees in an image.

One interface for all: images in [0, 1] -> intermediate feature maps and an embedding. A teacher never changes
and never receives gradients; they pass through it to the image.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.checkpoints.state_dict import LITE0, lite0_path, load_state, read_state
from ugicm.config import TeacherConfig
from ugicm.errors import CheckpointError, ConfigError, first_line


class Teacher(nn.Module):
    """A frozen network on images of its own size and normalization, both done differentiably.

    Args:
        network: images [B, 3, H, W] -> embedding [B, D].
        own_size: side of the images it was trained on.
        size: side images are resized to; None: ``own_size``; 0: they stay as they are.
        mean, std: of the three colors, for images in [0, 1].
        layers: names of submodules of ``network`` whose outputs are the feature maps.
        interpolation: "bicubic" or "bilinear", antialiased.
        jitter: see :meth:`vary`.
    """

    NORMALIZATIONS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)

    def __init__(
        self,
        network: nn.Module,
        own_size: int,
        size: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        layers: tuple[str, ...] = (),
        interpolation: str = "bicubic",
        jitter: float = 0.0,
    ):
        super().__init__()
        self.network, self.layers = network, layers
        self.own_size, self.size = own_size, own_size if size is None else size
        self.channels_last = getattr(network, "output_fmt", None) == "NHWC"  # so says timm, of Swin and others
        self.interpolation = interpolation if interpolation in ("bicubic", "bilinear") else "bicubic"
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self._seen: dict[str, Tensor] = {}
        self.jitter = jitter
        self._factors: dict[str, Tensor] | None = None  # of every normalized layer met so far
        for name, module in network.named_modules() if jitter else ():
            if isinstance(module, self.NORMALIZATIONS):
                module.register_forward_hook(self._scale(name, _channels(module)))
        modules = dict(network.named_modules())
        for name in layers:
            if name not in modules or not name:
                near = [n for n in modules if n.count(".") == name.count(".") and n]
                raise ConfigError(f"teacher: no layer {name!r}; on that level there are {', '.join(near[:40])}")
            modules[name].register_forward_hook(self._remember(name))
        self.requires_grad_(False).eval()

    def _remember(self, name: str):
        def hook(module: nn.Module, arguments: tuple, output: Tensor | tuple) -> None:
            self._seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def _scale(self, name: str, dim: int):
        def hook(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor | None:
            if self._factors is None:
                return None
            if name not in self._factors:
                shape = [1] * output.dim()
                shape[dim] = output.shape[dim]
                self._factors[name] = 1 + self.jitter * (2 * torch.rand(shape, device=output.device) - 1)
            return output * self._factors[name].to(output.dtype)

        return hook

    def vary(self, on: bool = True) -> None:
        """From now on be another, similar network: every channel after a normalization is scaled by a factor drawn
        from 1 - ``jitter`` ... 1 + ``jitter``, the same for all images until the next call. ``on=False``: itself.

        What pleases many such networks pleases networks of other kinds, too (Li et al., "Learning Transferable
        Adversarial Examples via Ghost Networks", AAAI 2020, who want to deceive them; here they are to be helped).
        """
        self._factors = {} if on and self.jitter else None

    def train(self, mode: bool = True) -> Teacher:
        """A teacher stays in eval mode."""
        return super().train(False)

    def resize(self, x: Tensor, size: int) -> Tensor:
        """[B, 3, H, W] -> [B, 3, size, size]."""
        if not size or x.shape[2:] == (size, size):
            return x
        return F.interpolate(x.float(), (size, size), mode=self.interpolation, antialias=True)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Images [B, 3, H, W] in [0, 1] -> (maps in the order of ``layers``, [B, C, h, w] or [B, L, C], and
        embedding [B, D])."""
        x = self.resize(x, self.size)
        embedding = self.network((x - self.mean) / self.std)
        maps = [self._seen.pop(name) for name in self.layers]
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) if m.dim() == 4 else m for m in maps]
        return maps, embedding


def _channels(normalization: nn.Module) -> int:
    """The dimension of the channels in what a normalization gives.

    The class tells, not the shape: a map may be as wide as it has channels. Layer norms over the channels of
    [B, C, H, W] are subclasses, called LayerNorm2d and alike by timm and torchvision.
    """
    last = isinstance(normalization, nn.LayerNorm) and "2d" not in type(normalization).__name__
    return -1 if last else 1


def load_teacher(config: TeacherConfig) -> Teacher:
    """The configured teacher. Raises ConfigError where the name, the weights or a layer cannot be had."""
    return {"open_clip": _open_clip, "timm": _timm}[config.kind](config)


def _open_clip(config: TeacherConfig) -> Teacher:
    try:
        import open_clip
    except ImportError:
        raise ConfigError("objective.teacher: kind open_clip needs the package open_clip_torch") from None
    _known("open_clip model", config.name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(config.name)
    if not Path(config.weights).is_file() and config.weights != "random":
        _known(f"weights of open_clip {config.name} (or a file)", config.weights, [*tags, "random"])
    with _fetching(config):
        model = open_clip.create_model(config.name, pretrained=None if config.weights == "random" else config.weights)
    wanted = open_clip.get_model_preprocess_cfg(model)
    size = wanted["size"][0] if isinstance(wanted["size"], (tuple, list)) else wanted["size"]
    return Teacher(
        model.visual,
        size,
        config.size,
        config.mean or wanted["mean"],
        config.std or wanted["std"],
        tuple(config.layers),
        wanted.get("interpolation", "bicubic"),
        config.jitter,
    )


def _timm(config: TeacherConfig) -> Teacher:
    try:
        import timm
    except ImportError:
        raise ConfigError("objective.teacher: kind timm needs the package timm") from None
    if not timm.is_model(config.name.split(".")[0]):
        _known("timm model", config.name, timm.list_models())
    with _fetching(config):
        model = timm.create_model(config.name, pretrained=config.weights == "default")
    if config.weights not in ("default", "random"):
        _load(model, config)
    wanted = model.pretrained_cfg
    model.reset_classifier(0)
    return Teacher(
        model,
        wanted["input_size"][1],
        config.size,
        config.mean or wanted["mean"],
        config.std or wanted["std"],
        tuple(config.layers),
        wanted["interpolation"],
        config.jitter,
    )


def _known(what: str, name: str, available: list[str]) -> None:
    if name not in available:
        import difflib

        near = difflib.get_close_matches(name, available, n=5, cutoff=0.4) or available[:8]
        raise ConfigError(f"objective.teacher: {what} {name!r} not found; available, for example: {', '.join(near)}")


@contextlib.contextmanager
def _fetching(config: TeacherConfig) -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # hubs log every retry
    try:
        yield
    except Exception as error:  # hubs and network libraries raise many kinds
        raise ConfigError(
            f"objective.teacher: {config.kind} {config.name}: weights {config.weights!r} cannot be loaded: "
            f"{first_line(error)}; give a local file as objective.teacher.weights"
        ) from None
    finally:
        logging.disable(before)


def _load(model: nn.Module, config: TeacherConfig) -> None:
    """Load local weights into a timm model. All of its tensors must be there; what else the file has is left out."""
    try:
        path = lite0_path(LITE0) if config.weights == LITE0 else config.weights
        if not Path(path).is_file():
            raise ConfigError(
                f"objective.teacher.weights: {path!r} is not a file; also known: default (timm's own, downloaded), "
                f"random, {LITE0}"
            )
        own = model.state_dict()
        state = {key: value for key, value in read_state(path).items() if key in own}
        load_state(model, state, path, f"timm's {config.name}")
    except CheckpointError as error:
        raise ConfigError(f"objective.teacher.weights: {error}") from None
