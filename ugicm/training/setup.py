"""Set-up of a training run: initial or resumed model, optimizers, objective and images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ugicm.atomic import why_not_writable
from ugicm.checkpoints.native import load_weights, model_state
from ugicm.checkpoints.released import load_any
from ugicm.config import ModelConfig, TrainConfig, from_dict
from ugicm.data.images import center_crops, open_sources
from ugicm.data.samples import StepBatches, TrainingSamples, collate
from ugicm.entropy.tables import TABLES
from ugicm.errors import ConfigError, first_of
from ugicm.losses.objective import Objective
from ugicm.models.ugicm import UGICM
from ugicm.training import optim, precision, validation
from ugicm.training.distributed import World
from ugicm.training.signals import ignore_stop_signals
from ugicm.training.state import BEST_FILE, MODEL_FILE, STATE_FILE, Run, check_resumable, read_run_state

SCALE_TABLE = "entropy_model.gaussian.scale_table"


def set_up(config: TrainConfig, resume: bool, world: World, started: float) -> Run:
    """Build everything that the loop works with, new or from ``state.pt``. Writes nothing."""
    device, folder, state = world.device, Path(config.run.dir), None
    _check_folder(folder, resume)
    torch.manual_seed(config.run.seed)
    if resume:
        state = read_run_state(folder)
        check_resumable(config, state)
        model = UGICM(from_dict(ModelConfig, state["model_config"], f"{folder / STATE_FILE}: model"))
        origin = state["origin"]
        load_weights(model, state["model"], str(folder / STATE_FILE))
    else:
        model, origin = initial_model(config)
    if config.quality.fixed is None and not model.has_quality:
        raise ConfigError("quality must be fixed: the model has a single rate (quality_points: 0)")
    frozen = optim.freeze(model, config.freeze)
    if model.entropy_model.bottleneck.quantiles.requires_grad:
        model.entropy_model.drop_tables()
    model.to(device)
    world.broadcast(model)
    average_model = validation.snapshot(model, device) if config.optim.ema else None
    precision.prepare(model, config.precision, device)
    objective = Objective(config.objective).to(device)
    for module in (average_model, objective) if config.precision.channels_last else ():
        if module is not None:
            module.to(memory_format=torch.channels_last)
    objective.check(min(config.data.crop, config.validation.crop))
    average = optim.Average(average_model, model, config.optim.ema) if average_model is not None else None
    optimizer, aux_optimizer = optim.build_optimizers(model, config.optim)

    val = config.validation
    images = open_sources(config.data, val.path)
    if val.every and not images.held_out:
        raise ConfigError("validation: no images; set data.holdout or validation.path, or validation.every: 0")
    val_images = center_crops(images.held_out, val.crop) if val.every and world.main else None
    run = Run(config, world, model, frozen, origin, average, optimizer, aux_optimizer, objective, images, val_images,
              started)  # fmt: skip
    if state is not None:
        run.load_state_dict(state)
    return run


def _check_folder(folder: Path, resume: bool) -> None:
    if why := why_not_writable(folder):
        raise ConfigError(f"run.dir: {folder}: cannot be written to: {why}; choose another run.dir")
    present = [name for name in (STATE_FILE, MODEL_FILE, BEST_FILE) if (folder / name).exists()]
    if present and not resume:
        advice = f"continue it with --resume {folder}, or choose" if STATE_FILE in present else "choose"
        raise ConfigError(f"{folder}: contains a run ({', '.join(present)}); {advice} another run.dir")


def open_loader(run: Run) -> DataLoader:
    """Return the loader of the micro-batches of this process, from the next step on."""
    config = run.config
    batches = StepBatches(
        config.data.batch, config.optim.accumulate, run.world.rank, run.world.size, run.step, config.optim.steps
    )
    return DataLoader(
        TrainingSamples(config.data, config.quality, config.beta, config.run.seed, run.images),
        batch_sampler=batches,
        num_workers=config.data.workers,
        collate_fn=collate,
        pin_memory=run.world.device.type == "cuda",
        prefetch_factor=4 if config.data.workers else None,
        worker_init_fn=ignore_stop_signals,
    )


def initial_model(config: TrainConfig) -> tuple[UGICM, str]:
    """Return the model to train and a description of its weights' origin.

    Weights come from ``init_from`` where names and shapes match. Its CDF tables, which may be calibrated, are kept if
    the whole entropy model matches.

    Raises ConfigError if the checkpoint lacks most of the configured model, CheckpointError if it cannot be loaded.
    """
    if config.init_from is None:
        return UGICM(config.model), "weights: random"
    source = load_any(config.init_from)
    wanted = config.model or source.config
    if wanted == source.config:
        return source, f"weights: {config.init_from}"
    model = UGICM(wanted)
    own, given = model_state(model), model_state(source)
    matching = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not torch.equal(own[SCALE_TABLE], given[SCALE_TABLE]):
        matching.pop(SCALE_TABLE, None)
    elif all(k in matching for k in own if k.startswith("entropy_model.")):
        matching |= {k: v for k, v in given.items() if k.endswith(TABLES)}
    missing = [k for k, _ in model.named_parameters() if k not in matching]
    if len(missing) > 0.5 * len(list(model.parameters())):
        raise ConfigError(
            f"init_from: model mismatch: {config.init_from} lacks {len(missing)} tensors of the configured model "
            f"({first_of(missing)}); remove model from the configuration to use the checkpoint's"
        )
    # Gains start without effect; anything else would be destroyed by random values.
    other_shape = [k for k in given if k in own and k in missing and not k.endswith("gain.log_gain")]
    if other_shape:
        raise ConfigError(f"init_from: shapes of the model differ from {config.init_from}: {first_of(other_shape)}; "
                          "set the keys of model to the checkpoint's, or remove model")  # fmt: skip
    load_weights(model, {**own, **matching}, config.init_from)
    changes = [
        f"{f.name} {getattr(wanted, f.name)} (checkpoint: {getattr(source.config, f.name, None)})"
        for f in dataclasses.fields(wanted)
        if getattr(wanted, f.name) != getattr(source.config, f.name, None)
    ]
    origin = f"weights: {config.init_from}" + (f", except {first_of(missing, 4)}" if missing else "")
    return model, f"{origin}; with {', '.join(changes)}"
