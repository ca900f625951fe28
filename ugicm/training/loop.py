"""The training loop. Read from top to bottom: set up, resume, step, record, validate, save."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.utils.data import DataLoader

from ugicm.atomic import obstacle, replacing
from ugicm.checkpoints.native import load_state, model_state, save_model
from ugicm.checkpoints.released import load_any
from ugicm.config import ModelConfig, TrainConfig, from_dict, to_dict
from ugicm.data.images import (
    StepBatches,
    TrainingSamples,
    center_crops,
    collate,
    find_images,
    open_sources,
)
from ugicm.entropy.model import TABLES
from ugicm.errors import ConfigError, UgicmError, first_line, first_of
from ugicm.losses.objective import Objective
from ugicm.models.ugicm import UGICM
from ugicm.training import distributed, optim, precision, validation
from ugicm.training import state as run_state
from ugicm.training.log import Meter, Records, Stopwatch

SCALES = "parser.gaussian.scale_table"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOP_CHECK = 4  # with several processes, steps between asking whether any was told to stop: a GPU must be waited for


class NonFiniteError(UgicmError):
    """The loss or a gradient is infinite or not a number."""


def build_model(config: TrainConfig) -> tuple[UGICM, str]:
    """The model to train, and a line on where its weights come from.

    What ``init_from`` has beside weights comes along where the configuration leaves room for it: its sharpness, unless
    the configuration has one, and its CDF tables, which may be calibrated, if its parser fits as it is.
    """
    if config.init_from is None:
        return UGICM(config.model), "weights: random"
    start = load_any(config.init_from)
    wanted = config.model or start.config
    wanted = dataclasses.replace(wanted, sharpness=wanted.sharpness or start.config.sharpness)
    if wanted == start.config:
        if config.init_also is not None:
            raise ConfigError(f"init_also: {config.init_from} lacks nothing of the model")
        return start, f"weights: {config.init_from}"
    model = UGICM(wanted)
    own, given = model_state(model), model_state(start)
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not torch.equal(own[SCALES], given[SCALES]):
        fitting.pop(SCALES, None)
    elif all(k in fitting for k in own if k.startswith("parser.")):
        fitting |= {k: v for k, v in given.items() if k.endswith(TABLES)}
    also = ""
    if config.init_also is not None:
        other = load_any(config.init_also).state_dict()
        more = {k: v for k, v in other.items() if k in own and own[k].shape == v.shape}
        also = f" and, for {len(more.keys() - fitting.keys())} tensors that it lacks, {config.init_also}"
        fitting = {**more, **fitting}
    anew = [k for k, _ in model.named_parameters() if k not in fitting]
    if len(anew) > 0.5 * len(list(model.parameters())):
        raise ConfigError(
            f"init_from: {config.init_from} is of another form: {len(anew)} tensors of the configured model are not "
            f"in it ({', '.join(anew[:3])} ...); leave model out to use the checkpoint's own"
        )
    load_state(model, {**own, **fitting}, config.init_from)
    other = [
        f"{f.name} {getattr(wanted, f.name)} (there: {getattr(start.config, f.name)})"
        for f in dataclasses.fields(ModelConfig) if getattr(wanted, f.name) != getattr(start.config, f.name)
    ]  # fmt: skip
    origin = f"weights: {config.init_from}{also}" + (f", except {first_of(anew, 4)}" if anew else "")
    return model, f"{origin}; with {', '.join(other)}"


def seed_step(seed: int, step: int, part: int, rank: int) -> None:
    """Make PyTorch's random numbers (quantization noise) a function of where in the training we are."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, part, rank]).generate_state(1, np.uint64)[0]) >> 1)


def _ignore_signals(worker: int) -> None:
    """What ends a job goes to all its processes; the loader's must live until the main one has finished its step."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def train(config: TrainConfig, resume: bool = False, command: str = "") -> None:
    """Run one stage of training to its end, its time limit, or a SIGTERM or SIGINT; then write a checkpoint.

    Raises ConfigError and CheckpointError before any training where something does not fit, NonFiniteError with
    the step and the terms where the loss leaves the numbers.
    """
    started = time.monotonic()
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    world = distributed.join(config.run.device)
    try:
        _train(config, resume, command, world, started)
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        texts = ("out of memory", "allocate memory")  # of CUDA's and of the CPU's allocator
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in texts):
            raise
        share = config.data.batch // (config.optim.accumulate * world.size)
        raise UgicmError(
            f"out of memory on {world.device} with {share} samples of {config.data.crop}² at a time: lower data.batch "
            f"or data.crop, or raise optim.accumulate (now {config.optim.accumulate}), or use precision.autocast: "
            f"bf16 ({first_line(error)})"
        ) from None
    finally:
        distributed.leave()


def _train(config: TrainConfig, resume: bool, command: str, world: distributed.World, started: float) -> None:
    # ---- what is trained, and on what ---------------------------------------------------------------------------
    device, folder = world.device, Path(config.run.dir)
    if why := obstacle(folder):  # it is made later, when nothing else is amiss
        raise ConfigError(f"run.dir: {folder}: cannot be written to: {why}; choose another run.dir")
    there = [name for name in (run_state.STATE, run_state.MODEL, run_state.BEST) if (folder / name).exists()]
    if not resume and there:
        how = "continue it with --resume, or choose" if run_state.STATE in there else "choose"
        raise ConfigError(f"{folder}: holds a run already ({', '.join(there)}); {how} another run.dir")
    state = run_state.load_state(folder) if resume else None

    torch.manual_seed(config.run.seed)
    if state is None:
        model, origin = build_model(config)
    else:
        model = UGICM(from_dict(ModelConfig, state["model_config"], f"{folder / run_state.STATE}: model"))
        origin = state["origin"]
        load_state(model, state["model"], str(folder / run_state.STATE))
    if config.quality.fixed is None and not model.has_quality:
        raise ConfigError("quality must be fixed: the model has one rate (quality_points: 0)")
    frozen = optim.freeze(model, config.freeze)
    if model.parser.bottleneck.quantiles.requires_grad:
        model.parser.drop_tables()
    model.to(device)
    world.broadcast(model)
    average_model = validation.snapshot(model, model, device) if config.optim.ema else None
    precision.prepare(model, config.precision, device)
    if average_model is not None and config.precision.channels_last:
        average_model.to(memory_format=torch.channels_last)
    average = optim.Average(average_model, model, config.optim.ema) if average_model is not None else None
    optimizer, aux_optimizer = optim.build_optimizers(model, config.optim)
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    trained = list(weights)
    objective = Objective(config.objective).to(device)
    if config.precision.channels_last:
        objective.to(memory_format=torch.channels_last)
    objective.check(min(config.data.crop, config.validation.crop))
    if objective.log_scales is not None:
        factor = config.objective.balance_lr / config.optim.lr
        trained.append(objective.log_scales)
        optimizer.add_param_group({"params": [objective.log_scales], "scale": factor, "weight_decay": 0.0})

    val = config.validation
    images = open_sources(config.data.train, config.data, device, find_images(val.path) if val.path else None)
    val_files = images.held_out
    if val.every and not val_files:
        raise ConfigError("validation: no images; set data.holdout or validation.path, or validation.every: 0")
    val_images = center_crops(val_files, val.crop) if val.every and world.main else None

    # ---- where to begin -----------------------------------------------------------------------------------------
    step, best, minutes_before = 0, None, 0.0
    owed = True  # whether a validation is due before the next step: at the very start, or where a stop came before it
    if state is not None:
        difference = run_state.first_difference(state["config"], run_state.comparable(config), run_state.defaults())
        if difference is None and state["images"] != images.digest:
            difference = "data: other images (with another data.cache, other broken ones may be left out)"
        if difference:
            raise ConfigError(
                f"{folder}: cannot resume with another configuration: {difference}; to begin anew from its weights, "
                f"use init_from: {folder / run_state.MODEL}"
            )
        optimizer.load_state_dict(state["optimizer"])
        if aux_optimizer is not None:
            aux_optimizer.load_state_dict(state["aux_optimizer"])
        if average is not None:
            load_state(average.model, state["average"], str(folder / run_state.STATE))
            average.updates = state["average_updates"]
        if objective.log_scales is not None:
            objective.log_scales.data.copy_(state["log_scales"])
        step, best, minutes_before = state["step"], state["best"], state["minutes"]
        owed = state.get("owed", step == 0)
        del state
    batches = StepBatches(config.data.batch, config.optim.accumulate, world.rank, world.size, step, config.optim.steps)
    samples = TrainingSamples(config.data, config.quality, config.beta, config.run.seed, images)
    loader = DataLoader(
        samples, batch_sampler=batches, num_workers=config.data.workers, collate_fn=collate,
        pin_memory=device.type == "cuda" and images.store.cache != "device",
        prefetch_factor=4 if config.data.workers else None, worker_init_fn=_ignore_signals,
    )  # fmt: skip
    if world.main:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    records = Records(folder, step, config.optim.steps, world.main)
    about = {k: v for k, v in run_state.provenance(step).items() if k != "step"}
    records.event(
        "start", step, command=command, device=str(device), processes=world.size, threads=torch.get_num_threads(),
        trainable=sum(p.numel() for p in trained), images=len(images.store), validation_images=len(val_files),
        weights=origin, **about,
    )  # fmt: skip
    records.say(
        f"{origin}\n{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
        f"{sum(p.numel() for p in trained) / 1e6:.2f} M trained; {len(images.store)} images "
        f"(cache: {images.store.cache}), {len(val_files)} for validation; {device}, from step {step}"
    )

    saved = step or None

    # ---- saving and validating ----------------------------------------------------------------------------------
    def minutes() -> float:
        return minutes_before + (time.monotonic() - started) / 60

    def current() -> UGICM:
        return validation.snapshot(model, average.model if average else model, torch.device("cpu"))

    def save() -> None:
        nonlocal saved
        saved = step
        if not world.main:
            return
        run_state.save_state(folder, {
            "step": step, "owed": owed, "minutes": minutes(), "best": best,
            "config": run_state.comparable(config), "images": images.digest, "origin": origin,
            "model_config": to_dict(model.config), "model": model_state(model), "optimizer": optimizer.state_dict(),
            "aux_optimizer": aux_optimizer.state_dict() if aux_optimizer else None,
            "average": model_state(average.model) if average else None,
            "average_updates": average.updates if average else 0,
            "log_scales": None if objective.log_scales is None else objective.log_scales.detach(),
        })  # fmt: skip
        save_model(folder / run_state.MODEL, current(), {**run_state.provenance(step), "training": origin})

    def run_validation() -> None:
        nonlocal best, owed
        owed = False
        if world.main:
            unprepared = current()
            ready = validation.snapshot(unprepared, unprepared, device).prepare_for_coding()
            qualities, betas = validation.points(config)
            rows = validation.validate(ready, objective, val_images, qualities, betas)
            means = validation.averages(rows)
            flat = {
                f"q{row['quality']:g}/b{row['beta']:g}/{name}": value
                for row in rows for name, value in row.items() if name not in ("quality", "beta")
            }  # fmt: skip
            records.event("validation", step, minutes=minutes(), **means, **flat)
            if val.strip:
                grid = validation.strip(ready, val_images[: val.strip], qualities[len(qualities) // 2])
                records.images("validation", step, grid)
            shown = {k: means[k] for k in ("loss", "bpp", "psnr")}
            records.say(f"validation at {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))
            if val.metric not in means:
                raise ConfigError(f"validation.metric: {val.metric!r} not found; available: {', '.join(means)}")
            score = means[val.metric] * (-1 if val.metric in validation.HIGHER_IS_BETTER else 1)
            if best is None or score < best:
                best = score
                described = {
                    **run_state.provenance(step),
                    "training": origin,
                    val.metric: f"{means[val.metric]:.6g}",
                }
                save_model(folder / run_state.BEST, unprepared, described)
        world.barrier()

    told = ""  # why this process was told to stop, which others may not know
    stop = ""  # why all processes stop, in the same step

    def on_signal(number: int, frame: object) -> None:
        nonlocal told
        told = signal.Signals(number).name
        if world.main:  # not by print(), which may have been interrupted in its midst
            soon = "this step" if world.size == 1 else f"at most {STOP_CHECK} steps"
            os.write(2, f"\n{told}: stopping, with a checkpoint, after {soon} or a validation\n".encode())

    handlers = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}

    # ---- the steps ----------------------------------------------------------------------------------------------
    meter, trace, watch = Meter(), [], Stopwatch(device)

    def check_finite() -> None:
        """Raise if a loss or gradient norm since the last check is not finite. Waits for the device."""
        for at, (loss, norm) in zip(range(step - len(trace) + 1, step + 1), torch.stack(trace).tolist()):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                terms = ", ".join(f"{k} {v:.4g}" for k, v in meter.means().items() if "/" not in k)
                good = "nothing was saved yet" if saved is None else (
                    f"the last good weights, of step {saved}: init_from: {folder / run_state.MODEL}"
                )  # fmt: skip
                raise NonFiniteError(
                    f"not finite at step {at}: loss {loss:.4g}, gradient norm {norm:.4g}; terms: {terms}. "
                    f"Begin anew, in another run.dir, with a lower optim.lr or optim.clip ({good})"
                )
        trace.clear()

    incoming = iter(loader)
    interval_start, interval_steps = time.monotonic(), 0
    try:
        if owed and val.every:
            run_validation()
            if step:
                save()
        records.start_clock()
        interval_start = time.monotonic()
        watch.reset()
        while step < config.optim.steps:
            optim.train_mode(model, frozen)
            optim.set_learning_rate(optimizer, optim.learning_rate(config.optim, step))
            optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), device=device)
            watch.lap("other")
            for part in range(config.optim.accumulate):
                batch = next(incoming)
                x = batch["x"].to(device, non_blocking=True)
                x = x.to(memory_format=torch.channels_last) if config.precision.channels_last else x
                x = x.float() / 255
                beta, quality = (batch[k].to(device, non_blocking=True) for k in ("beta", "quality"))
                watch.lap("data")
                seed_step(config.run.seed, step, part, world.rank)
                with precision.autocast(config.precision, device):
                    out = model(x, beta, quality if model.has_quality else None)
                    losses = objective(out, x, batch)
                    loss = losses.total / config.data.batch
                    balance = 0.0 if losses.balance is None else losses.balance / config.data.batch
                watch.lap("forward")
                (loss + balance).backward()
                watch.lap("backward")
                total += loss.detach()
                for name, value in losses.sums.items():
                    meter.add(name, value, losses.counts[name])
            if objective.log_scales is not None:
                for name, value in zip(objective.names, objective.log_scales.detach()):
                    meter.add(f"log_scale/{name}", value.clone())
            world.sum_gradients(trained)
            norm = torch.nn.utils.clip_grad_norm_(weights, config.optim.clip or math.inf)
            trace.append(torch.stack([world.sum(total), norm.float()]))
            step += 1
            if device.type == "cpu":  # costs nothing here, and nothing broken gets into the weights
                check_finite()
            meter.add("loss", total)
            meter.add("gradient_norm", norm)
            optimizer.step()
            if aux_optimizer is not None:
                aux_optimizer.zero_grad(set_to_none=True)
                aux = model.aux_loss()
                aux.backward()
                aux_optimizer.step()
                meter.add("aux", aux.detach())
            if average is not None:
                average.update()
            watch.lap("optimizer")

            # ---- records ------------------------------------------------------------------------------------
            interval_steps += 1
            records.progress(step)
            done = step == config.optim.steps
            if world.size == 1 or step % STOP_CHECK == 0:
                out_of_time = config.run.max_minutes is not None and (
                    (time.monotonic() - started) / 60 >= config.run.max_minutes
                )
                reason = told or ("run.max_minutes" if out_of_time else "")
                if world.any(bool(reason)):
                    stop = reason or "a signal to another process"
            halt = bool(stop)
            validating = bool(val.every) and (step % val.every == 0 or done)
            saving = step % config.run.save_every == 0 or validating or done or halt
            if step % config.run.log_every == 0 or saving:
                if trace:
                    check_finite()
                means = distributed.merge(world, meter).means()
                seconds = time.monotonic() - interval_start
                pace = interval_steps * config.data.batch / seconds
                shares = {f"time/{k}": v for k, v in watch.shares().items()}
                rate = optimizer.param_groups[0]["lr"] / optimizer.param_groups[0]["scale"]
                records.event("train", step, lr=rate, samples_per_s=pace, **means, **shares)
                records.summary(step, {k: v for k, v in means.items() if "/" not in k and k != "aux"})
                meter, interval_start, interval_steps = Meter(), time.monotonic(), 0
                watch.reset()
            owed = validating
            if owed and not halt:
                run_validation()
                interval_start = time.monotonic()
                watch.reset()
            if saving:
                save()
            if halt:
                break
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        records.close()
    if stop and world.main:
        print(f"stopped by {stop} at step {step}: continue with --resume", file=sys.stderr)
