"""Networks of torchvision with pretrained or local weights, and those that a function in a Python file builds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from ugicm.checkpoints.state_dict import load_matching
from ugicm.errors import ConfigError, error_message
from ugicm.evaluation.digests import file_digest
from ugicm.evaluation.specs import Spec, download, set_attributes
from ugicm.functions import import_function


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


def load_function(spec: Spec, device: str) -> tuple[Callable, str]:
    """Return the network of ``FILE.py:function``, and its origin: file name, digest of the file and function.

    A function without required parameters is called and must return the network. One that takes images is the network.
    The code of the file is executed, and its folder is appended to ``sys.path``.

    Raise ConfigError if the file cannot be executed, or the function is missing, raises or returns no callable.
    """
    path = Path(spec.where)
    try:
        origin = f"{path.name} {file_digest(path)} {spec.function}{spec.changes}"
        network = import_function(path, spec.function)
        if not isinstance(network, nn.Module) and not _required(network):
            network = network()
    except Exception as error:  # of any code
        raise ConfigError(f"{spec.text}: {type(error).__name__}: {error_message(error)}") from error
    if not callable(network):
        raise ConfigError(f"{spec.text}: expected a network, got {type(network).__name__}; return a callable")
    if isinstance(network, nn.Module):
        network.eval().to(device)
    set_attributes(network, spec.attributes, spec.text)
    return network, origin


def _required(function: Callable) -> list[str]:
    """Return the names of the parameters that have no default."""
    parameters = inspect.signature(function).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]
