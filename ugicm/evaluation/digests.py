"""Short names for what measurements depend on: images, files, data sets, weights. Each is 16 hex digits."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from ugicm.codec import Codec


def pixels_digest(image: Image.Image) -> str:
    """Over size and pixels of an image."""
    return hashlib.sha256(struct.pack("<II", *image.size) + image.tobytes()).hexdigest()[:16]


def data_digest(data: bytes) -> str:
    """Over bytes; of a file's contents, the same as :func:`file_digest`."""
    return hashlib.sha256(data).hexdigest()[:16]


def file_digest(path: str | os.PathLike) -> str:
    """Over the contents of a file. Raises OSError where it cannot be read."""
    return data_digest(Path(path).read_bytes())


def facts_digest(facts: Any) -> str:
    """Over whatever json can hold."""
    return data_digest(json.dumps(facts, sort_keys=True).encode())


def tree_digest(paths: Iterable[Path], root: Path) -> str:
    """Over names (relative to ``root``) and contents of files: equal for equal data sets, anywhere.

    Raises OSError for a file that cannot be read, ValueError for one that is not below ``root``.
    """
    return named_digest((path.relative_to(root).as_posix(), path) for path in paths)


def named_digest(files: Iterable[tuple[str, Path]]) -> str:
    """Over names and contents of (name, file), in that order. Raises OSError for a file that cannot be read."""
    state = hashlib.blake2b(digest_size=8)
    for name, path in files:
        state.update(name.encode() + b"\0" + hashlib.blake2b(path.read_bytes()).digest())
    return state.hexdigest()


def digest_of(model: nn.Module) -> str:
    """Over all weights of a network."""
    return _of_tensors(model.state_dict().items())


def model_digest(codec: Codec) -> str:
    """Over the form and all weights, also of what the viewer sees: more than the fingerprint covers."""
    from ugicm.config import to_dict

    return _of_tensors(sorted(codec.model.state_dict().items()), json.dumps(to_dict(codec.config)))


def _of_tensors(named: Iterable[tuple[str, Tensor]], form: str = "") -> str:
    import torch

    state = hashlib.blake2b(form.encode(), digest_size=8)
    for name, tensor in named:
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
