"""A task without work, in a module that Ray's workers can import."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class EmptyTask:
    """Does nothing with a shard."""

    images = SimpleNamespace(device="cpu")

    def start(self) -> None:
        """Load nothing."""

    def targets(self, job: Any) -> list[str]:
        """Return one name."""
        return [job.target]

    def run(self, job: Any) -> dict[str, Any]:
        """Return an empty record."""
        return {}
