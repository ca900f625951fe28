"""Learned image codec: one bitstream, decoded for human or machine preference, or anything between.

>>> import ugicm
>>> codec = ugicm.load()
>>> data = codec.compress(image, quality=0.5)
>>> human, machine = codec.decompress(data, ["human", "machine"])

Large libraries are imported when they are needed, so that ``import ugicm`` is fast.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ugicm.errors import CheckpointError, ConfigError, ImageError, StreamError

if TYPE_CHECKING:
    from ugicm.bitstream import info
    from ugicm.codec import Codec, load

# Threads of PyTorch that wait for others sleep, on Linux (GNU OpenMP) after spinning for about 20 microseconds, because
# most waits are shorter. By default they spin for milliseconds, and on a busy machine take many times the work's own
# time. The variables are read when PyTorch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"
__all__ = ["CheckpointError", "Codec", "ConfigError", "ImageError", "StreamError", "__version__", "info", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Codec", "load"):
        from ugicm import codec

        return getattr(codec, name)
    if name == "info":
        from ugicm.bitstream import info

        return info
    raise AttributeError(f"module 'ugicm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
