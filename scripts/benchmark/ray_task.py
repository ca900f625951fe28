"""A task without work, in a module that Ray's workers can import."""

from __future__ import annotations

from typing import Any


class EmptyTask:
    """Does nothing with a shard."""

    device = "cpu"

    def start(self) -> None:
        """Load nothing."""

    def attempt(self, job: Any) -> dict[str, Any]:
        """Return an empty record."""
        return {}
