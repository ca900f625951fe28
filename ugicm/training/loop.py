"""The training loop: set up, then step, log, validate and save until the last step."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ugicm.atomic import replacing
from ugicm.checkpoints.native import save_model
from ugicm.config import TrainConfig, to_dict
from ugicm.errors import ConfigError, UgicmError, first_line
from ugicm.extras import require_packages
from ugicm.models.ugicm import UGICM
from ugicm.training import distributed, optim, precision, validation
from ugicm.training import state as run_state
from ugicm.training.log import Meter, Records
from ugicm.training.setup import open_loader, set_up
from ugicm.training.signals import STOP_CHECK, StopSignals
from ugicm.training.state import BEST_FILE, MODEL_FILE, Run


class NonFiniteError(UgicmError):
    """The loss or a gradient is infinite or NaN."""


def train(config: TrainConfig, resume: bool = False, command: str = "") -> None:
    """Train until the last step, the time limit, or SIGTERM or SIGINT, and write a checkpoint.

    Args:
        resume: continue the run in ``run.dir`` from its state.
        command: command line, for the log.

    Raises ConfigError or CheckpointError before the first step if the configuration or a file is not usable,
    NonFiniteError if the loss or a gradient is infinite or NaN, UgicmError if memory does not suffice.
    """
    require_packages("train", "training", "pytorch_msssim", "tensorboard", "yaml")
    started = time.monotonic()
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    world = distributed.join(config.run.device)
    try:
        _run(set_up(config, resume, world, started), command)
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        texts = ("out of memory", "allocate memory")  # of CUDA's and of the CPU's allocator
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in texts):
            raise
        samples = config.data.batch // (config.optim.accumulate * world.size)
        raise UgicmError(
            f"out of memory on {world.device} with {samples} samples of {config.data.crop}² at a time: lower "
            f"data.batch or data.crop, or raise optim.accumulate (now {config.optim.accumulate}), or use "
            f"precision.autocast: bf16 ({first_line(error)})"
        ) from None
    finally:
        distributed.leave()


# ---- steps ----------------------------------------------------------------------------------------------------------


def _run(run: Run, command: str) -> None:
    config, loader = run.config, open_loader(run)
    every = config.validation.every
    if run.world.main:
        run.folder.mkdir(parents=True, exist_ok=True)
        import yaml

        with replacing(run.folder / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    records = Records(run.folder, run.step, config.optim.steps, run.world.main)
    stop = ""
    try:
        _log_start(run, records, command)
        with StopSignals(run.world) as signals:
            batches = iter(loader)
            if run.validation_due and every:  # of a new run, or left by a stop
                run_validation(run, records)
                if run.step:
                    save(run)
            records.restart_clock()
            run.stopwatch.reset()
            while run.step < config.optim.steps and not stop:
                train_step(run, batches)
                records.progress(run.step)
                stop = _stop_reason(run, signals)
                last = run.step == config.optim.steps
                run.validation_due = bool(every) and (run.step % every == 0 or last)
                saving = run.step % config.run.save_every == 0 or run.validation_due or last or bool(stop)
                if run.step % config.run.log_every == 0 or saving:
                    _log_steps(run, records)
                if run.validation_due and not stop:
                    run_validation(run, records)
                    run.stopwatch.reset()
                if saving:
                    save(run)
    finally:
        records.close()
    if stop and run.world.main:
        print(f"stopped by {stop} at step {run.step}: continue with --resume {run.folder}", file=sys.stderr)


def train_step(run: Run, batches: Iterator[dict[str, Tensor]]) -> None:
    """Compute the gradients of one batch, over all processes and accumulation steps, and update the weights."""
    config, device = run.config, run.world.device
    optim.train_mode(run.model, run.frozen)
    optim.set_learning_rate(run.optimizer, optim.learning_rate(config.optim, run.step))
    run.optimizer.zero_grad()
    total = torch.zeros((), device=device)
    run.stopwatch.lap("other")
    for part in range(config.optim.accumulate):
        total += _accumulate_gradients(run, next(batches), part)
    parameters = run.parameters
    run.world.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip or math.inf)
    run.unchecked.append(torch.stack([run.world.sum(total), norm.float()]))
    run.step += 1
    if device.type == "cpu":  # reading values is free here, and keeps NaN out of the weights
        _check_finite(run)
    run.meter.add("loss", total)
    run.meter.add("gradient_norm", norm)
    run.optimizer.step()
    if run.aux_optimizer is not None:
        run.aux_optimizer.zero_grad()
        aux = run.model.aux_loss()
        aux.backward()
        run.aux_optimizer.step()
        run.meter.add("aux", aux.detach())
    if run.average is not None:
        run.average.update()
    run.stopwatch.lap("optimizer")


def _accumulate_gradients(run: Run, batch: dict[str, Tensor], part: int) -> Tensor:
    """Add the gradients of one micro-batch. Returns its share of the batch's loss."""
    config, device = run.config, run.world.device
    x = batch["x"].to(device, non_blocking=True)
    x = x.to(memory_format=torch.channels_last) if config.precision.channels_last else x
    x = x.float() / 255
    beta, quality = (batch[k].to(device, non_blocking=True) for k in ("beta", "quality"))
    run.stopwatch.lap("data")
    _seed_step(config.run.seed, run.step, part, run.world.rank)
    with precision.autocast(config.precision, device):
        out = run.model(x, beta, quality)
        losses = run.objective(out, x, batch)
        loss = losses.total / config.data.batch
    run.stopwatch.lap("forward")
    loss.backward()
    run.stopwatch.lap("backward")
    for name, value in losses.sums.items():
        run.meter.add(name, value, losses.counts[name])
    return loss.detach()


def _seed_step(seed: int, step: int, part: int, rank: int) -> None:
    """Derive PyTorch's random numbers (quantization noise, teacher jitter) from the position in the training."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, part, rank]).generate_state(1, np.uint64)[0]) >> 1)


def _check_finite(run: Run) -> None:
    """Raise NonFiniteError if an unchecked loss or gradient norm is not finite. Waits for the device."""
    values = torch.stack(run.unchecked).tolist()
    for step, (loss, norm) in enumerate(values, run.step - len(values) + 1):
        if math.isfinite(loss) and math.isfinite(norm):
            continue
        terms = ", ".join(f"{k} {v:.4g}" for k, v in run.meter.means().items() if "/" not in k)
        saved = "no checkpoint yet" if run.saved_step is None else (
            f"last checkpoint, of step {run.saved_step}: init_from: {run.folder / MODEL_FILE}"
        )  # fmt: skip
        raise NonFiniteError(
            f"not finite at step {step}: loss {loss:.4g}, gradient norm {norm:.4g}; terms: {terms}. Start again in "
            f"another run.dir with a lower optim.lr or optim.clip ({saved})"
        )
    run.unchecked.clear()


def _stop_reason(run: Run, signals: StopSignals) -> str:
    """Return why the run stops at this step, or "". All processes agree."""
    if run.world.size > 1 and run.step % STOP_CHECK:
        return ""
    limit = run.config.run.max_minutes
    reason = signals.received or ("run.max_minutes" if limit is not None and run.session_minutes >= limit else "")
    return (reason or "a signal to another process") if run.world.any(bool(reason)) else ""


# ---- records, validation, checkpoints -------------------------------------------------------------------------------


def _log_start(run: Run, records: Records, command: str) -> None:
    trained, images = sum(p.numel() for p in run.parameters), len(run.images.store)
    versions = {k: v for k, v in run_state.provenance(run.step).items() if k != "step"}
    records.event(
        "start", run.step, command=command, device=str(run.world.device), processes=run.world.size,
        threads=torch.get_num_threads(), trainable=trained, images=images, validation_images=len(run.images.held_out),
        weights=run.origin, **versions,
    )  # fmt: skip
    records.message(
        f"{run.origin}\n{sum(p.numel() for p in run.model.parameters()) / 1e6:.2f} M parameters, "
        f"{trained / 1e6:.2f} M trained; {images} images (cache: {run.images.store.cache}), "
        f"{len(run.images.held_out)} for validation; {run.world.device}, from step {run.step}"
    )


def _log_steps(run: Run, records: Records) -> None:
    """Log the means over the steps since the last record. Waits for the device."""
    if run.unchecked:
        _check_finite(run)
    pace = run.meter.counts["loss"] * run.config.data.batch / run.stopwatch.seconds
    shares = {f"time/{phase}": share for phase, share in run.stopwatch.shares().items()}
    means = distributed.merge(run.world, run.meter).means()
    group = run.optimizer.param_groups[0]
    records.event("train", run.step, lr=group["lr"] / group["scale"], samples_per_s=pace, **means, **shares)
    records.summary(run.step, {k: v for k, v in means.items() if "/" not in k and k != "aux"})
    run.meter = Meter()
    run.stopwatch.reset()


def _finished_model(run: Run) -> UGICM:
    """Return the model as checkpoints store it: averaged weights if there are any, on the CPU."""
    return validation.snapshot(run.average.model if run.average else run.model, torch.device("cpu"))


def run_validation(run: Run, records: Records) -> None:
    """Validate on the main process, log the results, and save the best model."""
    run.validation_due = False
    if run.world.main:
        _validate(run, records)
    run.world.barrier()


def _validate(run: Run, records: Records) -> None:
    config, step = run.config.validation, run.step
    model = _finished_model(run)
    coding_model = validation.snapshot(model, run.world.device).prepare_for_coding()
    qualities, betas = validation.points(run.config)
    rows = validation.validate(coding_model, run.objective, run.validation_images, qualities, betas)
    means = validation.averages(rows)
    points = {
        f"q{row['quality']:g}/b{row['beta']:g}/{name}": value
        for row in rows for name, value in row.items() if name not in ("quality", "beta")
    }  # fmt: skip
    records.event("validation", step, minutes=run.minutes, **means, **points)
    if config.strip:
        strip = validation.strip(coding_model, run.validation_images[: config.strip], qualities[len(qualities) // 2])
        records.images("validation", step, strip)
    shown = "  ".join(f"{k} {means[k]:.4f}" for k in ("loss", "bpp", "psnr"))
    records.message(f"validation at {step}: {shown}")
    if config.metric not in means:
        raise ConfigError(f"validation.metric: {config.metric!r} not found; available: {', '.join(means)}")
    score = means[config.metric] * (-1 if config.metric in validation.HIGHER_IS_BETTER else 1)
    if run.best is None or score < run.best:
        run.best = score
        described = {"training": run.origin, config.metric: f"{means[config.metric]:.6g}"}
        save_model(run.folder / BEST_FILE, model, {**run_state.provenance(step), **described})


def save(run: Run) -> None:
    """Write the checkpoint and the state to resume from, on the main process."""
    run.saved_step = run.step
    if run.world.main:
        run_state.write_run_state(run.folder, run.state_dict())
        metadata = {**run_state.provenance(run.step), "training": run.origin}
        save_model(run.folder / MODEL_FILE, _finished_model(run), metadata)
