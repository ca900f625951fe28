"""One codec per process for all adapters, loaded on first use."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ugicm.codec import Codec

_codecs: dict[tuple[str | None, str], Codec] = {}
_lock = threading.Lock()


def shared_codec(checkpoint: str | os.PathLike | None = None, device: str = "cpu") -> Codec:
    """Return the codec of a checkpoint, loading it in the first call. Arguments and errors as of :func:`ugicm.load`."""
    from ugicm.codec import load

    key = (checkpoint and os.fspath(checkpoint), device)
    with _lock:
        if key not in _codecs:
            _codecs[key] = load(checkpoint, device)
        return _codecs[key]


def _unlock() -> None:
    """Replace the lock in a forked process, where a thread that held it does not exist."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)
