"""The two files of a checkpoint: ``model.safetensors`` to use or start from, ``state.pt`` to resume.

``state.pt`` is complete in itself. No random state is in it: whatever is random in a step follows from the run's
seed and the step's number.
"""

from __future__ import annotations

import platform
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from ugicm import __version__
from ugicm.atomic import obstacle, replacing
from ugicm.checkpoints.state_dict import read_pickled
from ugicm.config import DataConfig, ModelConfig, RunConfig, Source, TrainConfig, to_dict
from ugicm.errors import CheckpointError, ConfigError, UgicmError, UsageError, first_line, first_of
from ugicm.revision import revision

STATE = "state.pt"
MODEL = "model.safetensors"
BEST = "best.safetensors"
# What a resumed run needs of its state, always. (What has come later, or only some runs have, is not listed.)
_NEEDED = {
    "step": int, "config": dict, "images": str, "best": (float, NoneType), "minutes": float, "model_config": dict,
    "origin": str, "model": dict, "optimizer": dict, "aux_optimizer": (dict, NoneType), "average": (dict, NoneType),
    "average_updates": int,
}  # fmt: skip
# What a resumed run may change: it influences where and when things are written, and how fast.
_FREE = {
    "run": {"dir", "device", "threads", "log_every", "save_every", "max_minutes"},
    "data": {"cache", "workers"},
    "validation": {"strip"},
    "precision": {"compile"},
}


def provenance(step: int) -> dict[str, str]:
    """Metadata of a checkpoint: step, versions, git revision of the code (or "unknown")."""
    return {
        "step": str(step),
        "ugicm": __version__,
        "git_revision": revision() or "unknown",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state.pt``, whole or not at all. Raises UgicmError where it cannot be written."""
    with replacing(folder / STATE) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # what the system said does not get through PyTorch
            why = f"cannot be written ({first_line(error)}); is the disk full? What was saved before is still there"
            raise UgicmError(f"{folder / STATE}: {why}") from None


def load_state(folder: Path) -> dict[str, Any]:
    """What :func:`save_state` wrote.

    Raises ConfigError where there is nothing to resume, CheckpointError for a file that is not a run's state.
    """
    path = folder / STATE
    if not path.is_file():
        raise ConfigError(f"{path}: nothing to resume here; start without --resume")
    anew = f"to begin anew from the run's weights, use init_from: {folder / MODEL}"
    try:
        state = read_pickled(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {anew}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not the state of a run, but {type(state).__name__}; {anew}")
    unusable = [name for name, kind in _NEEDED.items() if name not in state or not isinstance(state[name], kind)]
    if unusable:
        raise CheckpointError(f"{path}: not the state of a run: {first_of(unusable)} missing or damaged; {anew}")
    return state


def check_target(path: Path, overwrite: bool) -> None:
    """See that a model may be written to ``path``, before any work is done for it. Raises UsageError."""
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: a model must be named *.safetensors, or it could not be loaded")
    if path.is_dir():
        raise UsageError(f"{path}: cannot be written: it is a folder")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; give another name or --overwrite")
    if why := obstacle(path.parent):
        raise UsageError(f"{path}: cannot be written: {why}")


def comparable(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values, without what a resumed run may change and without paths."""
    values = to_dict(config)
    for section, names in _FREE.items():
        for name in names:
            values[section].pop(name)
    for name in ("init_from", "init_also"):
        values.pop(name)
    values["validation"].pop("path")
    for source in values["data"]["train"]:
        source.pop("path")
        source["instances"] = source["instances"] is not None
    return values


def first_difference(old: Any, new: Any, default: Any = None, key: str = "") -> str | None:
    """ "optim.lr: 0.1 then, 0.2 now" for the first place where two plain configurations differ; else None.

    Keys that ``old`` lacks, written by an earlier version, count as ``default``'s.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        default = default if isinstance(default, dict) else {}
        for name in (*old, *(n for n in new if n not in old)):
            then = old[name] if name in old else default.get(name)
            found = first_difference(then, new.get(name), default.get(name), f"{key}.{name}" if key else name)
            if found:
                return found
        return None
    return None if old == new else f"{key}: {old!r} then, {new!r} now"


def defaults() -> dict[str, Any]:
    """:func:`comparable` of a configuration that says nothing."""
    data = DataConfig(train=(Source(path=""),))
    return comparable(TrainConfig(run=RunConfig(dir=""), data=data, model=ModelConfig()))
