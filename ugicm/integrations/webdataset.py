"""Bitstreams in the shards of WebDataset.

>>> data = wds.WebDataset("shards-{000..099}.tar").decode(handler(preference="machine")).to_tuple("ugic", "cls")
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from ugicm.files import STREAM_SUFFIX
from ugicm.integrations.shared import shared_codec


def handler(
    preference: Any = "machine", output: str = "tensor", checkpoint: str | os.PathLike | None = None,
    device: str = "cpu",
) -> Callable[[str, bytes], Any]:  # fmt: skip
    """Return a handler for ``decode`` that decodes the entries of a sample whose extension ends in ``ugic``.

    It works in workers of a ``DataLoader``, forked or spawned.

    Args:
        preference: as ``Codec.decompress`` takes it; a list of preferences gives a list of images.
        output: "tensor" for uint8 tensors [3, H, W], "numpy" for uint8 arrays [H, W, 3], "pil" for Pillow images.
        checkpoint: of the model, as :func:`ugicm.load` takes it; None for the shipped model.
        device: where the codec runs.
    """
    return functools.partial(_decode, preference, output, checkpoint, device)


def _decode(
    preference: Any, output: str, checkpoint: str | os.PathLike | None, device: str, key: str, data: bytes
) -> Any:
    if not key.endswith(STREAM_SUFFIX):
        return None  # another handler's
    return shared_codec(checkpoint, device).decompress(data, preference, output=output)
