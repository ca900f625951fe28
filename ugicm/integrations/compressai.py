"""A checkpoint as a model of CompressAI, registered in its zoo as ``ugicm``.

Importing this module registers the model:

>>> import ugicm.integrations.compressai
>>> net = compressai.zoo.image_models["ugicm"](quality=4, pretrained=True)
>>> out = net.compress(x)
>>> x_hat = net.decompress(out["strings"], out["shape"])["x_hat"]

CompressAI's evaluation of a folder runs with the same arguments as ``python -m compressai.utils.eval_model``::

    python -m ugicm.integrations.compressai pretrained photos/ -a ugicm -q 1,4,8

Strings are those inside of ``.ugic`` files, without header, digest and checksum.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor

from ugicm import bitstream
from ugicm.checkpoints.native import blank_model, load_weights, model_state
from ugicm.checkpoints.released import build
from ugicm.codec import Codec, read_model
from ugicm.config import ModelConfig, from_dict, to_dict
from ugicm.extras import how_to_install
from ugicm.images import pad_to
from ugicm.models.ugicm import UGICM
from ugicm.preference import to_beta
from ugicm.tiling import Z_STRIDE

try:
    from compressai import zoo
    from compressai.models import CompressionModel
    from compressai.registry import register_model
except ImportError as error:
    raise ImportError(
        f"ugicm.integrations.compressai needs CompressAI ({error}): {how_to_install('compressai')}", name="compressai"
    ) from None

NAME = "ugicm"
LEVELS = 8  # of quality in the zoo
_EXTRA = "_extra_state"


@register_model(NAME)
class UgicmModel(CompressionModel):
    """A :class:`ugicm.models.ugicm.UGICM` at one quality and preference, for evaluation.

    All computation is done by a copy of the model that is prepared for coding. It is never in training mode.

    Args:
        checkpoint: path of a checkpoint, as :func:`ugicm.load` takes it; None for the shipped model; or a model that is
            not prepared for coding.
        quality: from 0 (small) to 1 (good). A one-rate model ignores it.
        preference: "human", "machine" or a number from 0 to 1.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ValueError: a quality or preference outside of [0, 1].
    """

    def __init__(
        self, checkpoint: str | os.PathLike | UGICM | None = None, quality: float = 0.5, preference: float | str = 0.0
    ):
        super().__init__()
        if not 0 <= quality <= 1:
            raise ValueError(f"quality is {quality}, must be from 0 (small) to 1 (good)")
        self.quality = bitstream.quantize_quality(quality)
        self.preference = to_beta(preference, (1, 1)).item()
        self.model = checkpoint if isinstance(checkpoint, UGICM) else read_model(checkpoint)
        self._codec: Codec | None = None
        self.register_state_dict_post_hook(_drop_derived)
        self.update()
        self.eval()

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Return {"x_hat", "likelihoods": {"y", "z"}} of images [B, 3, H, W] in [0, 1]. x_hat is not clamped."""
        height, width = x.shape[-2:]
        out = self._network()(pad_to(x.float(), Z_STRIDE), *self._condition(len(x)))
        return {"x_hat": out["x_hat"][..., :height, :width], "likelihoods": out["likelihoods"]}

    @torch.no_grad()
    def compress(self, x: Tensor) -> dict[str, Any]:
        """Return {"strings": [[a string per image]], "shape": height and width of z} of images [B, 3, H, W] in [0, 1].

        Images are padded to the right and below, to multiples of 64.
        """
        network = self._network()
        y = network.analyze(pad_to(x.float(), Z_STRIDE), self._condition(len(x))[1])
        z = network.hyper_analyze(y)
        strings, _ = network.entropy_encode(y, z)
        return {"strings": [strings], "shape": z.shape[-2:]}

    @torch.no_grad()
    def decompress(self, strings: list[list[bytes]], shape: tuple[int, int]) -> dict[str, Tensor]:
        """Return {"x_hat"}, the padded images [B, 3, H, W] in [0, 1].

        Corrupt strings are not always detected. Raises StreamError for those that are.
        """
        network = self._network()
        y_hat, _ = network.entropy_decode(strings[0], (shape[0] * Z_STRIDE, shape[1] * Z_STRIDE))
        return {"x_hat": network.synthesize(y_hat, *self._condition(len(y_hat))).clamp_(0, 1)}

    def update(self, scale_table: Tensor | None = None, force: bool = False, update_quantiles: bool = False) -> bool:
        """Prepare the copy that codes, if there is none or with ``force``. Returns whether it was prepared.

        Probability tables of the checkpoint are kept; other arguments have no effect.
        """
        if self._codec and not force:
            return False
        self._codec = Codec(copy.deepcopy(self.model), fast=False)
        return True

    def get_extra_state(self) -> dict[str, Any]:
        return {"config": to_dict(self.model.config), "quality": self.quality, "preference": self.preference}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load weights of the same configuration; quality and preference stay. Raises CheckpointError."""
        load_weights(self.model, _weights(state_dict), "state dict")
        self.update(force=True)

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Any]) -> UgicmModel:
        """Return the model of a ``state_dict()``, or of the state dict of a released UG-ICM or MLIC++ checkpoint.

        Raises CheckpointError or ConfigError for another state dict.
        """
        extra = state_dict.get(_EXTRA)
        if extra is None:
            return cls(build(state_dict, "state dict"))
        weights = _weights(state_dict)
        config = from_dict(ModelConfig, extra["config"], "state dict")
        model = blank_model(config, "state dict", sum(tensor.nbytes for tensor in weights.values()))
        load_weights(model, weights, "state dict")
        return cls(model, extra["quality"], extra["preference"])

    def _network(self) -> UGICM:
        """Return the copy that codes, on the device of this model."""
        device = next(self.parameters()).device
        if self._codec.device != device:
            self._codec.to(device)
        return self._codec.model

    def _condition(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return preference and quality as the network takes them, [B] each."""
        return tuple(torch.full((batch,), v, device=self._codec.device) for v in (self.preference, self.quality))


def _weights(state_dict: dict[str, Any]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in state_dict.items() if name != _EXTRA}


def _drop_derived(module: UgicmModel, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Keep what a checkpoint stores."""
    stored = {f"{prefix}model.{name}" for name in model_state(module.model)} | {prefix + _EXTRA}
    for name in set(state) - stored:
        del state[name]


def zoo_model(quality: int, metric: str = "mse", pretrained: bool = False, progress: bool = True, **options: Any):
    """Return the shipped model at a level of quality, with random weights if not ``pretrained``.

    Args:
        quality: level from 1 to 8, for 0, 1/7 ... 1 in this package.
        metric: "mse".
        progress: has no effect: nothing is downloaded.
        options: ``preference`` of :class:`UgicmModel`.
    """
    if metric != "mse" or quality not in range(1, LEVELS + 1):
        raise ValueError(f"{NAME}: metric {metric!r} at quality {quality}; available: 'mse' at qualities 1 to {LEVELS}")
    shipped = read_model()
    return UgicmModel(shipped if pretrained else UGICM(shipped.config), (quality - 1) / (LEVELS - 1), **options)


zoo.image_models[NAME] = zoo.models[NAME] = zoo_model
zoo.image.model_architectures[NAME] = UgicmModel

if __name__ == "__main__":
    import sys

    from compressai.utils.eval_model.__main__ import main

    main(sys.argv[1:])
