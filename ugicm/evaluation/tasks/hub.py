"""Networks of torchvision with pretrained or local weights."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from ugicm.checkpoints.state_dict import load_matching
from ugicm.errors import ConfigError
from ugicm.evaluation.specs import Spec, download


def find_torchvision(spec: Spec, module: ModuleType, kind: str) -> tuple[WeightsEnum, str | None]:
    """Return the pretrained weights of the architecture of a module of torchvision that a specification names, and the
    path of the local weights to load instead, or None.

    Raise ConfigError if there is no such architecture. ``kind`` completes "torchvision has no ...".
    """
    available = torchvision.models.list_models(module=module)
    if spec.name not in available:
        raise ConfigError(f"{spec.text}: torchvision has no {kind} '{spec.name}'; available: {', '.join(available)}")
    catalog = torchvision.models.get_model_weights(spec.name)
    if spec.where in catalog.__members__:
        return catalog[spec.where], None
    return catalog.DEFAULT, spec.where


def download_torchvision(spec: Spec, weights: WeightsEnum) -> nn.Module:
    """Return an architecture with pretrained weights. Raise CheckpointError as :func:`download`."""
    return download(lambda: torchvision.models.get_model(spec.name, weights=weights), spec, f"weights {weights.name}")


def with_weights(
    build: Callable[..., nn.Module], state: dict[str, Tensor], spec: Spec, classes: int
) -> tuple[nn.Module, int]:
    """Return ``build(num_classes=...)`` with local weights, and the number of classes, inferred from the weights.

    ``classes`` is the number of classes of the pretrained network.
    """
    model = build(num_classes=classes)
    # The tensors of the head have one row per class.
    rows = {len(state[k]) for k, v in model.state_dict().items() if k in state and v.shape[:1] == (classes,)}
    if len(rows) == 1 and rows != {classes}:
        classes = rows.pop()
        model = build(num_classes=classes)
    load_matching(model, state, spec.where, spec.name)
    return model, classes
