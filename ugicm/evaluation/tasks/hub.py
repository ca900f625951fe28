"""Weights of other people's networks by name, from the hubs of their libraries; from files: ugicm.checkpoints.state_dict."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ugicm.errors import CheckpointError, first_line
from ugicm.evaluation.specs import Spec


def downloaded(build: Callable[[], nn.Module], spec: Spec, what: str) -> nn.Module:
    """A network with weights from its hub. Raises CheckpointError that says how to pass a file instead."""
    try:
        return build()
    except Exception as error:  # hubs, HTTP libraries and file systems each raise their own
        raise CheckpointError(
            f"{spec.name}: {what} could not be downloaded ({first_line(error)}); download the file elsewhere and name "
            f"it: {spec.name}=PATH"
        ) from error
