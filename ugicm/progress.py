"""Progress bars within one image: over windows and tiles of large ones, where a command asks for it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_shown = ContextVar("progress_shown", default=False)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Show bars of :func:`steps` in this context, in the current thread, if standard error is a terminal."""
    token = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(token)


def steps(items: Iterable[Item], description: str, unit: str) -> Iterable[Item]:
    """Return the items, with a bar that counts them. A single item has none."""
    items = list(items)
    show = _shown.get() and len(items) > 1 and sys.stderr
    return tqdm(items, desc=description, unit=unit, leave=False, disable=None if show else True)
