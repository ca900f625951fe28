"""Frozen vision networks whose features supervise the machine side of the decoder.

All teachers share one interface: images in [0, 1] -> intermediate feature maps and an embedding. Gradients pass
through a teacher to the image, never to its weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.checkpoints.state_dict import LITE, lite_path, load_matching, read_state_dict
from ugicm.config import TeacherConfig
from ugicm.errors import CheckpointError, ConfigError, error_message, first_line
from ugicm.extras import require_packages
from ugicm.functions import import_function


class Teacher(nn.Module):
    """A frozen network that resizes and normalizes its input differentiably.

    Args:
        network: images [B, 3, H, W] -> embedding [B, D].
        native_size: side in pixels of the images that the network was trained on.
        size: side in pixels that images are resized to. None: ``native_size``; 0: images are not resized.
        mean, std: normalization of the three colors, for images in [0, 1].
        layers: names of submodules of ``network`` whose outputs are the feature maps.
        interpolation: "bicubic" or "bilinear", antialiased.
        jitter: range of the random channel factors, in [0, 1); see :meth:`draw_jitter`.

    Raises ConfigError if ``network`` has no submodule of a name in ``layers``.
    """

    NORMALIZATIONS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)

    def __init__(
        self,
        network: nn.Module,
        native_size: int,
        size: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        layers: tuple[str, ...] = (),
        interpolation: str = "bicubic",
        jitter: float = 0.0,
    ):
        super().__init__()
        self.network, self.layers = network, layers
        self.native_size, self.size = native_size, native_size if size is None else size
        self.channels_last = getattr(network, "output_fmt", None) == "NHWC"  # timm's flag of Swin and others
        self.interpolation = interpolation if interpolation in ("bicubic", "bilinear") else "bicubic"
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self._features: dict[str, Tensor] = {}
        self.jitter = jitter
        self._factors: dict[str, Tensor] | None = None  # by normalization layer; None: no jitter
        for name, module in network.named_modules() if jitter else ():
            if isinstance(module, self.NORMALIZATIONS):
                module.register_forward_hook(self._scale_channels(name, _channel_dim(module)))
        modules = dict(network.named_modules())
        for name in layers:
            if name not in modules or not name:
                same_depth = [n for n in modules if n.count(".") == name.count(".") and n]
                raise ConfigError(
                    f"objective.teachers: layers: no layer {name!r}; available: {', '.join(same_depth[:40])}"
                )
            modules[name].register_forward_hook(self._keep_output(name))
        self.requires_grad_(False).eval()

    def _keep_output(self, name: str):
        def hook(module: nn.Module, arguments: tuple, output: Tensor | tuple) -> None:
            self._features[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def _scale_channels(self, name: str, dim: int):
        def hook(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor | None:
            if self._factors is None:
                return None
            if name not in self._factors:
                shape = [1] * output.dim()
                shape[dim] = output.shape[dim]
                self._factors[name] = 1 + self.jitter * (2 * torch.rand(shape, device=output.device) - 1)
            return output * self._factors[name].to(output.dtype)

        return hook

    def draw_jitter(self, enabled: bool = True) -> None:
        """Draw new channel factors, used for all images until the next call; ``enabled=False`` disables jitter.

        Every channel after a normalization layer is scaled by a factor from [1 - ``jitter``, 1 + ``jitter``]. Features
        that satisfy many such variants of a network transfer better to networks of other kinds (Li et al., "Learning
        Transferable Adversarial Examples via Ghost Networks", AAAI 2020).
        """
        self._factors = {} if enabled and self.jitter else None

    def train(self, mode: bool = True) -> Teacher:
        """Keep the teacher in eval mode."""
        return super().train(False)

    def resize(self, x: Tensor, size: int) -> Tensor:
        """Resize images [B, 3, H, W] to [B, 3, size, size]; a size of 0 leaves them as they are."""
        if not size or x.shape[2:] == (size, size):
            return x
        return F.interpolate(x.float(), (size, size), mode=self.interpolation, antialias=True)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the feature maps and the embedding [B, D] of images [B, 3, H, W] in [0, 1].

        Feature maps are [B, C, h, w] or tokens [B, L, C], in the order of ``layers``.
        """
        x = self.resize(x, self.size)
        embedding = self.network((x - self.mean) / self.std)
        maps = [self._features.pop(name) for name in self.layers]
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) if m.dim() == 4 else m for m in maps]
        return maps, embedding


def _channel_dim(normalization: nn.Module) -> int:
    """Return the channel dimension of a normalization layer's output.

    It follows from the class because shapes are ambiguous. Subclasses of LayerNorm that normalize the channels of
    [B, C, H, W] are called LayerNorm2d or similar in timm and torchvision.
    """
    channels_last = isinstance(normalization, nn.LayerNorm) and "2d" not in type(normalization).__name__
    return -1 if channels_last else 1


def load_teacher(config: TeacherConfig) -> Teacher:
    """Return the configured teacher. Raises ConfigError if its model, weights or layers cannot be loaded."""
    return {"open_clip": _load_open_clip, "timm": _load_timm, "file": _load_file}[config.kind](config)


def _load_open_clip(config: TeacherConfig) -> Teacher:
    require_packages("train", "objective.teachers: kind open_clip", "open_clip")
    import open_clip

    _check_available("open_clip model", config.name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(config.name)
    if not Path(config.weights).is_file() and config.weights != "random":
        _check_available(f"weights of open_clip {config.name} (or a file)", config.weights, [*tags, "random"])
    with _loading_errors(config):
        model = open_clip.create_model(config.name, pretrained=None if config.weights == "random" else config.weights)
    preprocessing = open_clip.get_model_preprocess_cfg(model)
    size = preprocessing["size"]
    return _teacher(model.visual, size[0] if isinstance(size, (tuple, list)) else size, preprocessing, config)


def _load_timm(config: TeacherConfig) -> Teacher:
    require_packages("train", "objective.teachers: kind timm", "timm")
    import timm

    if not timm.is_model(config.name.split(".")[0]):
        _check_available("timm model", config.name, timm.list_models())
    with _loading_errors(config):
        model = timm.create_model(config.name, pretrained=config.weights == "default")
    if config.weights not in ("default", "random"):
        _load_timm_weights(model, config)
    preprocessing = model.pretrained_cfg
    model.reset_classifier(0)
    return _teacher(model, preprocessing["input_size"][1], preprocessing, config)


def _load_file(config: TeacherConfig) -> Teacher:
    """Return the teacher that ``FILE.py:function`` builds. Its code is executed.

    The network takes images in [0, 1], so that the defaults neither normalize nor resize them. Objects are resized to
    224 pixels.
    """
    path, _, name = config.name.rpartition(":")
    try:
        build = import_function(path, name)
        network = build() if config.weights == "default" else build(config.weights)
    except Exception as error:  # of any code
        raise ConfigError(
            f"objective.teachers: {config.name}: {type(error).__name__}: {error_message(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"objective.teachers: {config.name}: expected a network, got {type(network).__name__}; return an nn.Module"
        )
    config = dataclasses.replace(config, size=config.size or 0)
    return _teacher(network, 224, {"mean": (0.0,) * 3, "std": (1.0,) * 3}, config)


def _teacher(network: nn.Module, native_size: int, preprocessing: dict, config: TeacherConfig) -> Teacher:
    return Teacher(
        network,
        native_size,
        config.size,
        config.mean or preprocessing["mean"],
        config.std or preprocessing["std"],
        tuple(config.layers),
        preprocessing.get("interpolation", "bicubic"),
        config.jitter,
    )


def _check_available(what: str, name: str, available: list[str]) -> None:
    """Raise ConfigError with similar names if ``name`` is not among ``available``."""
    if name not in available:
        import difflib

        near = difflib.get_close_matches(name, available, n=5, cutoff=0.4) or available[:8]
        raise ConfigError(f"objective.teachers: {what} {name!r} not found; available, for example: {', '.join(near)}")


@contextlib.contextmanager
def _loading_errors(config: TeacherConfig) -> Iterator[None]:
    """Convert errors of model hubs to ConfigError and silence their log."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # hubs log every retry
    try:
        yield
    except Exception as error:  # hubs and network libraries raise many kinds
        raise ConfigError(
            f"objective.teachers: {config.kind} {config.name}: weights {config.weights!r} cannot be loaded: "
            f"{first_line(error)}; give a local file as its weights"
        ) from None
    finally:
        logging.disable(before)


def _load_timm_weights(model: nn.Module, config: TeacherConfig) -> None:
    """Load local weights into a timm model. Every tensor of the model must be in the file; others are ignored."""
    try:
        path = lite_path(config.weights, "objective.teachers: weights") if config.weights in LITE else config.weights
        if not Path(path).is_file():
            raise ConfigError(
                f"objective.teachers: weights: {path!r} is not a file; give a file, default (timm's own, downloaded), "
                f"random or a package: {', '.join(LITE)}"
            )
        own = model.state_dict()
        state = {key: value for key, value in read_state_dict(path).items() if key in own}
        load_matching(model, state, path, f"timm's {config.name}")
    except CheckpointError as error:
        raise ConfigError(f"objective.teachers: weights: {error}") from None
