"""Progress bars within one image: over windows and tiles of large ones, where a command asks for it."""

from __future__ import annotations

import contextlib
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
    if len(items) < 2 or not _shown.get():
        return items
    return tqdm(items, desc=description, unit=unit, leave=False, disable=None)
