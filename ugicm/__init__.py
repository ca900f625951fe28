"""Learned image codec: one bitstream, decoded for human or machine preference, or anything between.

>>> import ugicm
>>> codec = ugicm.load()
>>> data = codec.compress(image, quality=0.5)
>>> human, machine = codec.decompress(data, ["human", "machine"])

Large libraries are imported when they are needed, so that ``import ugicm`` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ugicm.errors import CheckpointError, ConfigError, ImageError, StreamError

if TYPE_CHECKING:
    from ugicm.codec import Codec, load

__version__ = "0.1.0"
__all__ = ["CheckpointError", "Codec", "ConfigError", "ImageError", "StreamError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Codec", "load"):
        from ugicm import codec

        return getattr(codec, name)
    raise AttributeError(f"module 'ugicm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
