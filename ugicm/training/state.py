"""The state of a training run and its files.

A run writes ``model.safetensors``, for use or as ``init_from``, and ``state.pt``, from which it resumes exactly.
``state.pt`` contains no random state: all random numbers of a step follow from the run's seed and the step's number.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from ugicm import __version__
from ugicm.atomic import replacing
from ugicm.checkpoints.native import load_weights, model_state
from ugicm.checkpoints.state_dict import read_pickled
from ugicm.config import TrainConfig, to_dict
from ugicm.data.images import Images
from ugicm.errors import CheckpointError, ConfigError, UgicmError, first_line, first_of
from ugicm.losses.objective import Objective
from ugicm.models.ugicm import UGICM
from ugicm.revision import revision
from ugicm.training.distributed import World
from ugicm.training.log import Meter, Stopwatch
from ugicm.training.muon import MuonAdamW
from ugicm.training.optim import Average

STATE_FILE = "state.pt"
MODEL_FILE = "model.safetensors"
BEST_FILE = "best.safetensors"
# Entries of state.pt and their types.
_ENTRIES = {
    "step": int, "validation_due": bool, "best": (float, NoneType), "minutes": float, "config": dict, "images": str,
    "origin": str, "model_config": dict, "model": dict, "optimizer": dict, "aux_optimizer": (dict, NoneType),
    "average": (dict, NoneType), "average_updates": int,
}  # fmt: skip
# Keys that may change when a run is resumed: they do not influence the results.
_RESUME_MAY_CHANGE = {
    "run": {"dir", "device", "threads", "log_every", "save_every", "max_minutes"},
    "data": {"cache", "workers"},
    "validation": {"path", "strip"},
    "precision": {"compile"},
}


@dataclass
class Run:
    """Everything that the training loop works with.

    Attributes:
        model: the model in training; ``frozen``: its submodules that are not trained.
        origin: description of the initial weights.
        average: moving average of the weights, or None.
        images: training images; ``validation_images``: uint8 [n, 3, S, S], on the main process only.
        step: number of optimizer steps done.
        best: lowest validation score so far (metrics that rise are negated), or None.
        validation_due: whether the model has to be validated before the next step.
        previous_minutes: duration of the run before it was resumed; ``started``: clock at the start of this process.
        saved_step: step of the last checkpoint, or None.
        meter, stopwatch: values and times since the last log record.
        unchecked: (loss, gradient norm) of the steps whose values have not been read from the device, [2] each.
    """

    config: TrainConfig
    world: World
    model: UGICM
    frozen: list[nn.Module]
    origin: str
    average: Average | None
    optimizer: torch.optim.Optimizer | MuonAdamW
    aux_optimizer: torch.optim.Optimizer | None
    objective: Objective
    images: Images
    validation_images: Tensor | None
    started: float
    step: int = 0
    best: float | None = None
    validation_due: bool = True
    previous_minutes: float = 0.0
    saved_step: int | None = None
    meter: Meter = field(default_factory=Meter)
    stopwatch: Stopwatch = field(init=False)
    unchecked: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stopwatch = Stopwatch(self.world.device)

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir)

    @property
    def session_minutes(self) -> float:
        """Minutes since this process started."""
        return (time.monotonic() - self.started) / 60

    @property
    def minutes(self) -> float:
        """Minutes of training, over all processes that resumed the run."""
        return self.previous_minutes + self.session_minutes

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the main optimizer."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return the contents of ``state.pt``."""
        return {
            "step": self.step, "validation_due": self.validation_due, "best": self.best, "minutes": self.minutes,
            "config": resume_config(self.config), "images": self.images.digest, "origin": self.origin,
            "model_config": to_dict(self.model.config), "model": model_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "aux_optimizer": self.aux_optimizer.state_dict() if self.aux_optimizer else None,
            "average": model_state(self.average.model) if self.average else None,
            "average_updates": self.average.updates if self.average else 0,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the contents of ``state.pt``, except for the model's weights.

        Raises ConfigError if the training images differ.
        """
        if state["images"] != self.images.digest:
            raise ConfigError(_not_resumable(self.folder, "data.train: the images have changed"))
        self.optimizer.load_state_dict(state["optimizer"])
        if self.aux_optimizer is not None:
            self.aux_optimizer.load_state_dict(state["aux_optimizer"])
        if self.average is not None:
            load_weights(self.average.model, state["average"], str(self.folder / STATE_FILE))
            self.average.updates = state["average_updates"]
        self.step = self.saved_step = state["step"]
        self.best, self.previous_minutes = state["best"], state["minutes"]
        self.validation_due = state["validation_due"]


def provenance(step: int) -> dict[str, str]:
    """Return the metadata of a checkpoint: step, versions, git revision of the code (or "unknown")."""
    return {
        "step": str(step),
        "ugicm": __version__,
        "git_revision": revision() or "unknown",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def write_run_state(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state.pt`` atomically. Raises UgicmError if it cannot be written."""
    with replacing(folder / STATE_FILE) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # PyTorch hides the system's error
            raise UgicmError(
                f"{folder / STATE_FILE}: cannot be written ({first_line(error)}); check for a full disk. The previous "
                "checkpoint is intact"
            ) from None


def read_run_state(folder: Path) -> dict[str, Any]:
    """Read ``state.pt``.

    Raises ConfigError if it does not exist, CheckpointError if it is not the state of a run.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: not found: there is no run to resume; start it without --resume")
    restart = f"to start from the run's weights, use init_from: {folder / MODEL_FILE}"
    try:
        state = read_pickled(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {restart}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not the state of a run, but {type(state).__name__}; {restart}")
    invalid = [name for name, kind in _ENTRIES.items() if name not in state or not isinstance(state[name], kind)]
    if invalid:
        raise CheckpointError(f"{path}: not the state of a run: {first_of(invalid)} missing or invalid; {restart}")
    return state


def resume_config(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as plain values, without paths and keys that may change when a run is resumed."""
    values = to_dict(config)
    for section, names in _RESUME_MAY_CHANGE.items():
        for name in names:
            values[section].pop(name)
    values.pop("init_from")
    for source in values["data"]["train"]:
        source.pop("path")
        source["instances"] = source["instances"] is not None
        if source.pop("shards") is not None:
            source["shards"] = True
    if not any("shards" in source for source in values["data"]["train"]):
        values["data"].pop("shuffle")  # without influence
    return values


def check_resumable(config: TrainConfig, state: dict[str, Any]) -> None:
    """Raise ConfigError if ``config`` differs from that of ``state`` in a key that influences the results."""
    if difference := config_difference(state["config"], resume_config(config)):
        raise ConfigError(_not_resumable(Path(config.run.dir), difference))


def _not_resumable(folder: Path, reason: str) -> str:
    return (
        f"{folder}: cannot resume with another configuration: {reason}; to continue with its own, use --resume "
        f"{folder} without -c; to start another run from its weights, use init_from: {folder / MODEL_FILE}"
    )


def config_difference(old: Any, new: Any, key: str = "") -> str | None:
    """Return the first difference of two plain configurations, as "optim.lr: was 0.1, is 0.2", or None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            difference = config_difference(old.get(name), new.get(name), f"{key}.{name}" if key else name)
            if difference:
                return difference
        return None
    return None if old == new else f"{key}: was {old!r}, is {new!r}"
