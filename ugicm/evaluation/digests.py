"""Digests of what measurements depend on: images, files, datasets and weights. Each is 16 hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from ugicm.codec import Codec


def pixels_digest(image: Image.Image) -> str:
    """Return the digest of an image's size and pixels."""
    return data_digest(struct.pack("<II", *image.size) + image.tobytes())


def data_digest(data: bytes) -> str:
    """Return the digest of bytes; for the contents of a file, the same as :func:`file_digest`."""
    return hashlib.sha256(data).hexdigest()[:16]


def file_digest(path: str | os.PathLike) -> str:
    """Return the digest of a file's contents. Raises OSError if it cannot be read."""
    return data_digest(Path(path).read_bytes())


def facts_digest(facts: Any) -> str:
    """Return the digest of a JSON-serializable value."""
    return data_digest(json.dumps(facts, sort_keys=True).encode())


def tree_digest(files: Iterable[tuple[str, Path]]) -> str:
    """Return the digest of (name, file) pairs, in that order. A file that cannot be read counts as an empty one.

    With names relative to a folder, it is equal for equal datasets in any place.
    """
    state = hashlib.blake2b(digest_size=8)
    for name, path in files:
        try:
            content = path.read_bytes()
        except OSError:  # a broken link, for example
            content = b""
        state.update(name.encode(errors="surrogatepass") + b"\0" + hashlib.blake2b(content).digest())
    return state.hexdigest()


def digest_of(model: nn.Module | Callable) -> str:
    """Return the digest of all weights of a network. A function has none."""
    return _tensors_digest(model.state_dict().items() if hasattr(model, "state_dict") else ())


def model_digest(codec: Codec) -> str:
    """Return the digest of a codec's config and all weights; its fingerprint covers only those of entropy coding."""
    from ugicm.config import to_dict

    return _tensors_digest(sorted(codec.model.state_dict().items()), json.dumps(to_dict(codec.config)))


def _tensors_digest(named: Iterable[tuple[str, Tensor]], config: str = "") -> str:
    import torch

    state = hashlib.blake2b(config.encode(), digest_size=8)
    for name, tensor in named:
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
