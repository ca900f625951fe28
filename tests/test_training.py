"""Training: learning, exact resume, frozen submodules, stopping, and rejection of invalid input before the start."""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from small_models import CONFIGS, encode, small_model
from test_muon import NEEDS_MUON

from ugicm.checkpoints.native import load_model, save_model
from ugicm.config import ObjectiveConfig, OptimConfig, TermConfig, load_config, to_dict
from ugicm.errors import CheckpointError, ConfigError, UgicmError
from ugicm.losses.objective import Objective
from ugicm.models.ugicm import UGICM
from ugicm.training import distributed, optim, validation
from ugicm.training import state as run_state
from ugicm.training.loop import NonFiniteError, train
from ugicm.training.setup import initial_model
from ugicm.training.signals import STOP_CHECK

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def setup(tmp_path, make_image):
    """setup(*overrides, **sections) -> a configuration of a tiny training that takes a second."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        make_image(96, 80, i).save(folder / f"{i}.png")

    def make(*overrides, **sections):
        values = {
            "run": {"dir": str(tmp_path / "run"), "log_every": 2, "save_every": 100},
            "data": {"train": [str(folder)], "crop": 64, "batch": 4, "holdout": 1},
            "model": to_dict(CONFIGS["compact"]),
            "quality": {"range": [0, 1]},
            "objective": {"lambdas": [0.001, 0.01], "terms": {"mse": {"human": 1.0, "machine": 0.5}}},
            "optim": {"steps": 6, "lr": 1e-3, "warmup": 1, "ema": 0.9},
            "validation": {"every": 3, "crop": 64, "qualities": [0.5], "strip": 1},
            **sections,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_config(path, overrides)

    return make


def weights(folder):
    return safetensors.torch.load_file(Path(folder) / "model.safetensors")


def events(folder, kind):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_smoke_configuration_lowers_the_loss(tmp_path, run_python):
    shorter = ["optim.steps=60", "validation.every=30", "run.threads=1"]
    done = run_python("scripts/train.py", "-c", "configs/smoke.yaml", "--set", f"run.dir={tmp_path}", *shorter)
    assert done.returncode == 0, done.stderr
    losses = [event["loss"] for event in events(tmp_path, "validation")]
    assert losses[-1] < 0.5 * losses[0]
    assert load_model(tmp_path / "model.safetensors").config == load_config(ROOT / "configs/smoke.yaml").model
    assert {p.name for p in tmp_path.iterdir()} == {
        "best.safetensors", "config.yaml", "metrics.jsonl", "model.safetensors", "state.pt", "tensorboard"
    }  # fmt: skip


def test_records_of_a_run(setup):
    config = setup("validation.betas=[0, 1]", "validation.qualities=[0, 1]")
    train(config, command="here")
    folder = Path(config.run.dir)
    start, *_ = events(folder, "start")
    assert start["command"] == "here" and start["images"] == 4 and start["validation_images"] == 1
    assert {"git_revision", "torch", "ugicm", "device"} <= start.keys()
    steps = events(folder, "train")
    assert [e["step"] for e in steps] == [2, 3, 4, 6]
    assert {"loss", "bpp", "mse", "lr", "samples_per_s", "time/data", "time/backward"} <= steps[0].keys()
    assert any(k.startswith("mse/") for k in steps[0])
    *_, last = events(folder, "validation")
    assert {"q0/b0/psnr", "q1/b1/bpp", "loss", "bpp", "psnr", "minutes"} <= last.keys()
    assert last["q0/b0/bpp"] == last["q0/b1/bpp"]  # one stream for both
    assert list((folder / "tensorboard").iterdir())
    resolved = load_config(folder / "config.yaml")
    assert resolved == config
    metadata = safetensors.safe_open(folder / "model.safetensors", "pt").metadata()
    assert metadata["step"] == "6" and metadata["training"] == "weights: random"
    best = safetensors.safe_open(folder / "best.safetensors", "pt").metadata()
    assert float(best["loss"]) == pytest.approx(min(e["loss"] for e in events(folder, "validation")), rel=1e-4)


def test_best_checkpoint_of_a_rising_metric(setup):
    config = setup("validation.metric=psnr", "validation.every=1", "optim.steps=4", "optim.lr=1e-2")
    train(config)
    scores = [e["psnr"] for e in events(config.run.dir, "validation")]
    best = safetensors.safe_open(Path(config.run.dir) / "best.safetensors", "pt").metadata()
    assert len(set(scores)) > 1 and float(best["psnr"]) == pytest.approx(max(scores), rel=1e-4)


def test_best_checkpoint_has_averaged_weights(setup, monkeypatch):
    better = itertools.count()  # with every validation
    monkeypatch.setattr(validation, "averages", lambda rows: {"loss": -float(next(better)), "bpp": 0.0, "psnr": 0.0})
    config = setup("optim.steps=2", "validation.every=1")
    train(config)
    best = safetensors.torch.load_file(Path(config.run.dir) / "best.safetensors")
    assert same(best, weights(config.run.dir))


def test_validation_averages_over_images():
    model = small_model().prepare_for_coding()
    objective = Objective(ObjectiveConfig(lambdas=(0.01,), terms={"mse": TermConfig(human=1.0)}))
    x = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (one,), (many,) = (validation.validate(model, objective, x.repeat(n, 1, 1, 1), [0.5], [0.0]) for n in (1, 9))
    assert many == pytest.approx(one, rel=1e-4) and one["loss"] == pytest.approx(one["bpp"] + 0.01 * one["mse"])


def test_validation_points_follow_the_training(setup):
    config = setup("validation.qualities=[0, 1]", quality={"fixed": 0.25}, beta={"fixed": 1})
    assert validation.points(config) == ((0.25,), (1.0,))
    config = setup("validation.qualities=[0, 1]", "validation.betas=[0, 0.5]")
    assert validation.points(config) == ((0.0, 1.0), (0.0, 0.5))


def test_checkpoint_interval(setup, monkeypatch):
    steps, save = [], run_state.write_run_state
    monkeypatch.setattr(run_state, "write_run_state", lambda at, state: steps.append(state["step"]) or save(at, state))
    train(setup("validation.every=0", "optim.steps=5", "run.save_every=2"))
    assert steps == [2, 4, 5]


def test_validation_rate_equals_bitstream_length(setup, start):
    """Of a model whose scales fit its latents: a symbol outside of its table takes fewer bits than estimated."""
    config = setup("optim.steps=1", "validation.betas=[0]", "validation.every=1", model=None, init_from=str(start))
    train(config)
    model = load_model(Path(config.run.dir) / "model.safetensors").prepare_for_coding()
    from ugicm.data.images import center_crops, find_images, hold_out

    files = find_images(config.data.train[0].path)
    x = center_crops([files[i] for i in hold_out(files, 1)[1]], 64).float() / 255
    strings, _ = encode(model, x, torch.tensor([0.5]))
    stated = events(config.run.dir, "validation")[-1]["bpp"] * 64 * 64
    assert 8 * len(strings[0]) == pytest.approx(stated, abs=64 + 0.01 * stated)


def inner_states(optimizer):
    """Return the state of an optimizer, or those of the two that Muon consists of."""
    return [optimizer] if "state" in optimizer else list(optimizer.values())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="plain"),
        pytest.param(("data.workers=1", "data.cache=none", "optim.accumulate=2"), id="workers"),
        pytest.param(("optim.name=muon",), id="muon", marks=NEEDS_MUON),
    ],
)
def test_resume_is_exact(setup, tmp_path, monkeypatch, options):
    config = setup(f"run.dir={tmp_path / 'whole'}", *options)
    train(config)
    stopped = setup(f"run.dir={tmp_path / 'parts'}", *options)
    passed = []

    def interrupt(*arguments):
        passed.append(1)
        if len(passed) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return schedule(*arguments)

    schedule = optim.learning_rate
    monkeypatch.setattr(optim, "learning_rate", interrupt)
    train(stopped)
    assert run_state.read_run_state(tmp_path / "parts")["step"] == 4
    monkeypatch.setattr(optim, "learning_rate", schedule)
    train(stopped, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    one, two = (run_state.read_run_state(tmp_path / name) for name in ("whole", "parts"))
    assert same(one["model"], two["model"]) and one["step"] == two["step"] and one["best"] == two["best"]
    for a, b in zip(*(inner_states(run["optimizer"]) for run in (one, two)), strict=True):
        assert a["state"] and all(map(same, a["state"].values(), b["state"].values()))
    assert [e["step"] for e in events(tmp_path / "parts", "validation")] == [0, 3, 6]


def test_resume_takes_the_settings_of_the_run(setup, tmp_path, run_script, monkeypatch):
    config = setup("optim.steps=2")
    options = ["optim.steps=4", "optim.lr=2e-3", f"run.dir={tmp_path / 'other'}"]
    done = run_script("scripts/train.py", "-c", tmp_path / "config.yaml", "--set", *options, "run.max_minutes=1e-9")
    assert done.returncode == 0 and f"continue with --resume {tmp_path / 'other'}" in done.stderr
    done = run_script("scripts/train.py", "-c", tmp_path / "config.yaml", "--set", *options[::2], "--resume")
    assert (
        done.returncode == 2 and f"optim.lr: was 0.002, is {config.optim.lr}; to continue with its own" in done.stderr
    )
    (tmp_path / "other").rename(tmp_path / "moved")
    done = run_script("scripts/train.py", "--resume", tmp_path / "moved", "--set", "run.max_minutes=null")
    assert done.returncode == 0, done.stderr
    assert run_state.read_run_state(tmp_path / "moved")["step"] == 4 and not (tmp_path / "other").exists()
    for wrong in ([], ["-c", tmp_path / "config.yaml", "--resume", tmp_path / "moved"]):
        assert "give a configuration with -c, or" in run_script("scripts/train.py", *wrong).stderr


def test_resume_restores_the_whole_state(setup):
    objective = {"lambdas": [0.01], "terms": {"mse": {"human": 1.0}}}
    schedule = {"steps": 3, "lr": 1e-3, "warmup": 0, "ema": 0.9, "schedule": "constant"}

    def configured(minutes):
        options = ("validation.every=0", f"run.max_minutes={minutes}")
        return setup(*options, objective=objective, optim=schedule)

    config = configured(1e-9)
    train(config)
    folder = Path(config.run.dir)
    state = run_state.read_run_state(folder)
    assert state["step"] == 1
    changed = {"best": -7.0, "minutes": 100.0, "origin": "weights: elsewhere", "average_updates": 1000}
    run_state.write_run_state(folder, {**state, **changed})
    train(configured(50), resume=True)  # minutes of this session
    after = run_state.read_run_state(folder)
    assert after["step"] == 3 and after["best"] == -7.0 and 100 <= after["minutes"] < 110
    assert after["origin"] == "weights: elsewhere" and after["average_updates"] == 1002


def test_resume_rejects_another_configuration(setup, tmp_path):
    train(setup())
    for override, message in (
        ("optim.lr=1e-5", "optim.lr: was 0.001, is 1e-05"),
        ("run.seed=1", "run.seed: was 0, is 1"),
        ("data.holdout=0", "data.holdout"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(setup(override), resume=True)
    train(setup("run.log_every=1", "data.cache=none"), resume=True)  # of no influence
    with pytest.raises(ConfigError, match="contains a run .*; continue it with --resume"):
        train(setup())
    with pytest.raises(ConfigError, match="not found: there is no run to resume"):
        train(setup(f"run.dir={tmp_path / 'new'}"), resume=True)
    (tmp_path / "images" / "0.png").rename(tmp_path / "images" / "9.png")
    with pytest.raises(ConfigError, match="data.train: the images have changed"):
        train(setup(), resume=True)


def test_resume_config_ignores_keys_without_influence(setup):
    plain = run_state.resume_config(setup())
    for override in ("data.flip=false", "data.batch=8", "optim.ema=0.5", "validation.every=1"):
        assert run_state.resume_config(setup(override)) != plain, override
    for override in ("data.workers=1", "run.log_every=5", "run.save_every=7", "validation.strip=2", "run.threads=1"):
        assert run_state.resume_config(setup(override)) == plain, override


def test_config_difference():
    assert run_state.config_difference({"a": {"b": 0}}, {"a": {"b": 1}}) == "a.b: was 0, is 1"
    assert run_state.config_difference({"a": {"b": 0}}, {"a": {"b": 0}}) is None
    assert run_state.config_difference({"a": 1, "old": 2}, {"a": 1}) == "old: was 2, is None"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "not a PyTorch checkpoint: "), ([1], "not the state of a run, but list"),
     ({"step": 1}, "validation_due, best, minutes and 9 more missing or invalid")],
)  # fmt: skip
def test_resume_rejects_an_invalid_state_file(setup, content, complaint):
    config = setup()
    path = Path(config.run.dir) / run_state.STATE_FILE
    path.parent.mkdir()
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        train(config, resume=True)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and complaint in said and "use init_from: " in said and "\n" not in said


def test_time_limit_writes_a_checkpoint(setup, capsys):
    config = setup("optim.steps=1000000", "run.max_minutes=0.02", "validation.every=0", "run.log_every=1000")
    train(config)
    state = run_state.read_run_state(Path(config.run.dir))
    assert 0 < state["step"] < 100000
    assert "stopped by run.max_minutes" in capsys.readouterr().err


def test_signal_stops_the_command_with_a_checkpoint(setup, tmp_path):
    setup()
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    values["optim"]["steps"] = 1_000_000
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, str(ROOT / "scripts/train.py"), "-c", str(tmp_path / "config.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/state.pt")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped by SIGINT at step" in said and "Traceback" not in said
    assert run_state.read_run_state(tmp_path / "run")["step"] >= 3


def test_validation_images_are_excluded_from_training(setup, tmp_path):
    apart = tmp_path / "apart"
    apart.mkdir()
    for name in ("1.png", "3.png"):
        (apart / name).symlink_to(tmp_path / "images" / name)
    config = setup("optim.steps=1", f"validation.path={apart}")
    train(config)
    (start,) = events(config.run.dir, "start")
    assert (start["images"], start["validation_images"]) == (3, 2)


def test_processes_stop_in_the_same_step(setup, monkeypatch):
    """A signal to one process stops all of them in the same step."""
    asked = []

    class OneOfTwo(distributed.World):
        def sum(self, tensor):
            return tensor

        def any(self, flag):
            asked.append(flag)
            return flag

        def barrier(self): ...

        def broadcast(self, module): ...

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(*arguments)

    calls, rate = [], optim.learning_rate
    monkeypatch.setattr(optim, "learning_rate", interrupt)
    monkeypatch.setattr(distributed, "join", lambda device: OneOfTwo(0, 2, torch.device("cpu")))
    monkeypatch.setattr(distributed, "gather", lambda value: [value])
    config = setup("optim.steps=50", "validation.every=0")
    train(config)
    assert STOP_CHECK == 4 and asked == [True]
    assert run_state.read_run_state(Path(config.run.dir))["step"] == 4


def test_loader_processes_ignore_stop_signals(setup, monkeypatch):
    def interrupt(config, step):
        for child in multiprocessing.active_children() if step else ():  # at the first one they may just be starting
            os.kill(child.pid, signal.SIGTERM)
        return rate(config, step)

    rate = optim.learning_rate
    monkeypatch.setattr(optim, "learning_rate", interrupt)
    config = setup("optim.steps=4", "validation.every=0", "data.workers=1")
    train(config)
    assert run_state.read_run_state(Path(config.run.dir))["step"] == 4


def test_logs_of_a_run_without_checkpoint_are_deleted(setup):
    config = setup()
    folder = Path(config.run.dir)
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard" / "events.old").touch()
    (folder / "metrics.jsonl").write_text('{"event": "start", "step": 0}\n')
    train(config)
    assert len(events(folder, "start")) == 1 and not (folder / "tensorboard" / "events.old").exists()


def test_full_disk_is_reported(tmp_path, monkeypatch):
    def full(state, path):
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UgicmError, match=r"state.pt: cannot be written \(unexpected pos .*check for a full disk"):
        run_state.write_run_state(tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def start(tmp_path):
    """A small model on disk, its coding tables built, to start from."""
    model = small_model()
    model.entropy_model.build_tables()
    save_model(tmp_path / "start.safetensors", model)
    return tmp_path / "start.safetensors"


def test_decoder_stage_does_not_change_bitstreams(setup, start):
    freeze = ["g_a", "h_a", "entropy_model", "gain"]
    config = setup(model=None, init_from=str(start), freeze=freeze, beta={"choices": [0, 1]})
    train(config)
    before, after = load_model(start), load_model(Path(config.run.dir) / "model.safetensors")
    changed = [name for name, p in after.named_parameters() if not torch.equal(p, before.get_parameter(name))]
    assert {name.split(".")[0] for name in changed} == {"g_s"}
    before.prepare_for_coding(), after.prepare_for_coding()
    assert before.fingerprint == after.fingerprint
    x, quality = torch.rand(2, 3, 128, 64), torch.tensor([0.2, 0.9])
    assert encode(before, x, quality) == encode(after, x, quality)
    y_hat, beta = before.entropy_decode(*[encode(before, x, quality)[0], (128, 64)])[0], torch.zeros(2)
    assert not torch.equal(before.synthesize(y_hat, beta, quality), after.synthesize(y_hat, beta, quality))


def test_training_the_entropy_model_drops_its_tables(setup, start):
    config = setup("optim.steps=2", model=None, init_from=str(start))
    train(config)
    assert not any("_cdf" in name for name in weights(config.run.dir) if "bottleneck" in name)
    load_model(Path(config.run.dir) / "model.safetensors").prepare_for_coding()


def test_init_from_another_configuration(setup, start, capsys):
    form = {**to_dict(CONFIGS["compact"]), "quality_points": 5}
    train(setup("optim.steps=1", model=form, init_from=str(start)))
    assert "except gain.log_gain" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="model mismatch"):
        train(setup(f"run.dir={start.parent / 'other'}", model=to_dict(CONFIGS["bmshj2018"]), init_from=str(start),
                    quality={"fixed": 0.5}))  # fmt: skip
    wider = {**to_dict(CONFIGS["compact"]), "M": 40, "slice_widths": [8, 24, 8]}
    with pytest.raises(ConfigError, match="shapes of the model differ.*g_s.stem.weight"):
        train(setup(f"run.dir={start.parent / 'wider'}", model=wider, init_from=str(start)))


def test_init_from_keeps_calibrated_tables(setup, start, capsys):
    model = load_model(start)
    rows, longest = model.entropy_model.gaussian.quantized_cdf.shape
    model.entropy_model.gaussian.calibrate(torch.ones(rows, longest - 1))
    save_model(start, model)
    before = load_model(start).prepare_for_coding()
    form = to_dict(dataclasses.replace(CONFIGS["compact"], machine_depth=2))
    frozen = ["g_a", "h_a", "entropy_model", "gain"]
    config = setup("optim.steps=1", model=form, init_from=str(start), freeze=frozen)
    train(config)
    assert "; with machine_depth 2 (checkpoint: 1)" in capsys.readouterr().err
    after = load_model(Path(config.run.dir) / "model.safetensors").prepare_for_coding()
    assert after.config.machine_depth == 2 and after.fingerprint == before.fingerprint


def test_init_from_prefers_the_configured_scale_table(setup, start):
    form = dataclasses.replace(CONFIGS["compact"], scale_max=100.0)
    assert form.scale_max != load_model(start).config.scale_max
    made, _ = initial_model(setup(model=to_dict(form), init_from=str(start)))
    assert made.entropy_model.gaussian.scale_table[-1].item() == pytest.approx(100)
    assert made.entropy_model.gaussian.quantized_cdf.numel() == 0  # nor are tables for other scales


def test_existing_model_is_not_overwritten(setup):
    config = setup("optim.steps=1", "validation.every=0")
    train(config)
    (Path(config.run.dir) / "state.pt").unlink()
    with pytest.raises(ConfigError, match=r"contains a run \(model.safetensors\); choose another run.dir"):
        train(config)


def test_resume_makes_up_for_a_skipped_validation(setup):
    options = ["optim.steps=2", "validation.every=1"]
    train(setup(*options, "run.max_minutes=1e-9"))
    config = setup(*options)
    assert [e["step"] for e in events(config.run.dir, "validation")] == [0]
    for _ in range(2):  # the second time there is nothing left to do
        train(config, resume=True)
        assert [e["step"] for e in events(config.run.dir, "validation")] == [0, 1, 2]
    assert run_state.read_run_state(Path(config.run.dir))["best"] is not None


@pytest.mark.parametrize("backbone", ["mlicpp", "bmshj2018"])
def test_other_backbones_train(setup, backbone):
    config = setup("optim.steps=2", "validation.every=2", model=to_dict(CONFIGS[backbone]), quality={"fixed": 0.5})
    train(config)
    assert all(math.isfinite(e["loss"]) for e in events(config.run.dir, "validation"))


def test_semantic_stage_with_instances(setup, tmp_path):
    pytest.importorskip("timm")
    pytest.importorskip("skimage")
    setup()
    from scripts.make_instances import annotate, propose

    annotate(tmp_path / "images", tmp_path / "instances.json", propose, 3, "regions")
    objective = {
        "lambdas": [0.01],
        "local_side": 48,
        "teachers": {
            "a": {"kind": "timm", "name": "test_resnet", "weights": "random", "size": 0, "layers": {"layer1": 1}}
        },
        "terms": {
            "mse": {"human": 1.0, "machine": 0.5}, "global": {"machine": 10.0}, "local": {"machine": 10.0},
            "instance": {"machine": 10.0}, "features": {"machine": 10.0},
        },
    }  # fmt: skip
    source = {"path": str(tmp_path / "images"), "instances": str(tmp_path / "instances.json")}
    data = {"train": [source], "crop": 64, "batch": 4, "holdout": 1, "whole": 0.5}
    config = setup(objective=objective, data=data, beta={"range": [0, 1], "ends": 0.5})
    train(config)
    logged = [e for e in events(config.run.dir, "train") if "instance" in e]
    assert logged and {"global", "local", "features", "mse"} <= logged[0].keys()


@pytest.mark.parametrize("precision", [{"autocast": "bf16"}, {"autocast": "bf16", "channels_last": False}])
def test_bfloat16_keeps_likelihoods_in_float32(setup, monkeypatch, precision):
    seen = []
    rate = Objective.forward

    def watch(self, out, x, batch):
        seen.append({v.dtype for v in out["likelihoods"].values()})
        return rate(self, out, x, batch)

    monkeypatch.setattr(Objective, "forward", watch)
    train(setup("validation.every=0", precision=precision))
    assert seen and all(kinds == {torch.float32} for kinds in seen)


def test_accumulation_gives_the_same_gradients(setup, tmp_path, monkeypatch):
    # Noise is different for every part of a batch.
    monkeypatch.setattr("ugicm.entropy.likelihood.add_noise", lambda x: x)
    found = []
    for parts in (1, 2, 4):
        folder = tmp_path / f"parts{parts}"
        train(setup(f"run.dir={folder}", f"optim.accumulate={parts}", "validation.every=0", "optim.ema=0"))
        found.append(weights(folder))
    for other in found[1:]:
        assert all(torch.allclose(found[0][k], other[k], atol=2e-5) for k in other)


def test_non_finite_loss_stops_with_step_and_terms(setup):
    config = setup("optim.lr=1e30", "optim.clip=0", "optim.warmup=0", "validation.every=0", "optim.steps=50")
    with pytest.raises(NonFiniteError, match=r"not finite at step \d+: loss .*terms: bpp .*, mse ") as caught:
        train(config)
    assert "\n" not in str(caught.value) and "(no checkpoint yet)" in str(caught.value)


def test_non_finite_gradient_stops_the_run(setup, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(NonFiniteError, match="not finite at step 1: .*gradient norm inf"):
        train(setup("validation.every=0"))


@pytest.mark.parametrize(("clip", "limit"), [("0.5", 0.5), ("0", math.inf)])
def test_gradients_are_clipped(setup, monkeypatch, clip, limit):
    given, clip_grad_norm_ = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, n: given.append(n) or clip_grad_norm_(p, n))
    train(setup("validation.every=0", "optim.steps=1", f"optim.clip={clip}"))
    assert given == [limit]


def test_out_of_memory_error_names_settings(setup, monkeypatch):
    def exhausted(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore")

    monkeypatch.setattr(UGICM, "forward", exhausted)
    with pytest.raises(UgicmError, match="with 4 samples of 64².*lower data.batch or data.crop, or raise optim.acc"):
        train(setup("validation.every=0"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "optim.lrr: unknown key"),
        ("data.train=[/absent]", "data.train: /absent: not found; put images there"),
        ("freeze=[g_x]", "freeze: the model has no submodule 'g_x'; available: g_a"),
        ("freeze=[g_a, g_s, h_a, entropy_model, gain]", "nothing is left to train"),
        ("init_from=/absent.safetensors", "/absent.safetensors"),
        ("optim.lr_scale.gian=2", "optim.lr_scale: the model has no submodule 'gian'"),
        ("run.dir=config.yaml", "config.yaml is not a folder; choose another run.dir"),
        ("run.dir=config.yaml/run", "config.yaml is not a folder; choose another run.dir"),
    ],
)
def test_invalid_input_is_rejected_before_training(setup, tmp_path, monkeypatch, run_script, override, message):
    setup()
    steps = ["optim.steps=1", "validation.every=0"]
    monkeypatch.chdir(tmp_path)
    end = run_script("scripts/train.py", "-c", tmp_path / "config.yaml", "--set", override, *steps)
    assert end.returncode == 2
    said = end.stderr
    assert message in said and said.count("\n") == 1 and said.startswith("train.py: ")
    assert not (tmp_path / "run").exists()


def test_learning_rate_schedules():
    cosine = OptimConfig(lr=1.0, final_lr=0.2, warmup=4, steps=14)
    assert [optim.learning_rate(cosine, s) for s in (0, 3, 4, 9, 14)] == pytest.approx([0.25, 1.0, 1.0, 0.6, 0.2])
    steps = OptimConfig(lr=1.0, schedule="step", milestones=(3, 5), steps=9)
    assert [optim.learning_rate(steps, s) for s in (2, 3, 5)] == pytest.approx([1.0, 0.1, 0.01])
    assert optim.learning_rate(OptimConfig(lr=0.3, schedule="constant"), 99999) == 0.3


def test_parameter_groups():
    model = small_model()
    optim.freeze(model, ["g_a", "entropy_model.h_s"])
    main, aux = optim.build_optimizers(model, OptimConfig(lr=0.1, weight_decay=0.5, lr_scale={"gain": 3.0}))
    names = {p: n for n, p in model.named_parameters()}
    groups = [({names[p] for p in g["params"]}, g["scale"], g["weight_decay"]) for g in main.param_groups]
    trained = set().union(*(g[0] for g in groups))
    assert not any(n.startswith(("g_a.", "entropy_model.h_s.")) or n.endswith("quantiles") for n in trained)
    assert [g for g in groups if "gain.log_gain" in g[0]] == [({"gain.log_gain"}, 3.0, 0.0)]
    decayed = set().union(*(g[0] for g in groups if g[2]))
    assert "g_s.stem.weight" in decayed and "g_s.stem.bias" not in decayed
    assert not any("bottleneck" in n for n in decayed)
    assert [names[p] for g in aux.param_groups for p in g["params"]] == ["entropy_model.bottleneck.quantiles"]
    optim.freeze(model, ["entropy_model"])
    assert optim.build_optimizers(model, OptimConfig())[1] is None


def test_average_of_weights():
    source, average = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    average.load_state_dict(source.state_dict())
    start = source.weight.item()
    kept = optim.Average(average, source, decay=0.5)
    source.weight.data += 1
    kept.update()  # decay 2/11: not yet 0.5
    assert average.weight.item() == pytest.approx(start + 1 - 2 / 11)
    for _ in range(50):
        kept.update()
    assert average.weight.item() == pytest.approx(start + 1)


@pytest.mark.slow
def test_compiled_training(setup):
    config = setup("precision={compile: true, autocast: bf16}", "optim.steps=2", "validation.every=2")
    train(config)
    load_model(Path(config.run.dir) / "model.safetensors")  # under its usual names


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mlicpp", "bmshj2018"])
def test_full_size_configurations_train(tmp_path, make_image, backbone):
    pytest.importorskip("open_clip")
    pytest.importorskip("skimage")
    from scripts.make_instances import annotate, propose

    images, instances = tmp_path / "images", tmp_path / "instances.json"
    images.mkdir()
    for i in range(3):
        make_image(280, 260, i).save(images / f"{i}.png")
    annotate(images, instances, propose, 2, "regions")
    small = [
        f"data.train=[{{path: {images}, instances: {instances}}}]", "data.batch=2", "data.workers=0",
        "data.holdout=1", "optim.steps=1", "optim.accumulate=1", "validation.every=0", "run.threads=1",
    ]  # fmt: skip
    teacher = "objective.teachers.clip={kind: open_clip, name: ViT-B-32, weights: random}"
    before = None
    for name in ("mse", "stage1_rate2", "stage2_rate2"):
        path = ROOT / "configs/paper" / f"{backbone}_{name}.yaml"
        own = ["data.crop=64"] if name == "mse" else [teacher, f"init_from={before}"]
        config = load_config(path, [*small, *own, f"run.dir={tmp_path / name}"])
        train(config)
        (tmp_path / name / "state.pt").unlink()
        before = tmp_path / name / "model.safetensors"
        assert events(tmp_path / name, "train")[-1]["step"] == 1
