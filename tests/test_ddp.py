"""Training with two processes under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from shard_files import image_bytes, write_shard
from small_models import CONFIGS

from ugicm.config import to_dict

ROOT = Path(__file__).resolve().parents[1]
# A machine tail starts with gradients of 0, whose rounding errors Adam would enlarge to whole steps.
MODEL = to_dict(CONFIGS["compact"]) | {"machine_depth": 0}
# The training command, without quantization noise: it is drawn anew in every process.
COMMAND = f"""
import runpy
from ugicm.entropy import likelihood

likelihood.add_noise = lambda x: x
runpy.run_path({str(ROOT / "scripts/train.py")!r}, run_name="__main__")
"""
# The same, which notes what each process reads from shards, and stops as by a scheduler at the step STOP_AT.
SHARD_COMMAND = f"""
import os, signal
from ugicm.shards.index import ShardMember
from ugicm.training import loop

def noted(member, read=ShardMember.open):
    with open(os.environ["READS"] + os.environ.get("RANK", ""), "a") as log:
        print(member.name, file=log)
    return read(member)

def stopped(run, batches, step=loop.train_step):
    step(run, batches)
    if run.world.main and run.step == int(os.environ["STOP_AT"]):
        os.kill(os.getpid(), signal.SIGTERM)

ShardMember.open, loop.train_step = noted, stopped
{COMMAND}
"""


# Joins and leaves a group repeatedly. Threads of gloo have the lowest priority, so that they are still busy at the end.
LEAVE = """
import os, sys
import torch
import torch.distributed as dist
from ugicm.training import distributed

rank = int(sys.argv[1])
for k in range(30):
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/{k}", rank=rank, world_size=2)
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread != os.getpid():
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    world = distributed.World(rank, 2, torch.device("cpu"))
    assert distributed.gather(rank) == [0, 1]
    assert world.any(rank == 1)
    distributed.leave()
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="needs Linux")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
def test_leave_does_not_deadlock(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LEAVE]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
def test_two_processes_train_like_one(tmp_path, make_image):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(5):
        make_image(96, 80, i).save(images / f"{i}.png")
    values = {
        "run": {"dir": "run", "log_every": 2, "threads": 1, "device": "cpu"},
        "data": {"train": [str(images)], "crop": 64, "batch": 4, "holdout": 1},
        "model": MODEL,
        "quality": {"range": [0, 1]},
        "objective": {"lambdas": [0.001, 0.01], "terms": {"mse": {"human": 1.0, "machine": 0.5}}},
        "optim": {"steps": 4, "lr": 1e-3, "ema": 0.9, "clip": 0.5},
        "validation": {"every": 4, "crop": 64, "qualities": [0.5], "strip": 0},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "train.py").write_text(COMMAND)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        arguments = ["-c", tmp_path / "config.yaml", "--set", f"run.dir={tmp_path / name}"]
        command = [sys.executable, *launcher, tmp_path / "train.py", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
    logs = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()] for name in ("one", "two")]
    assert logs[1][0]["processes"] == 2
    for a, b in zip(*logs):
        for key in ("step", "loss", "bpp", "mse", "psnr", "gradient_norm", "mse/machine"):
            assert (key in a) == (key in b)
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
def test_two_processes_train_on_shards_like_one(tmp_path, make_image):
    """They read every sample once an epoch, those of one process, also if they are stopped and resume."""
    for s in range(3):
        images = [make_image(96, 80, 4 * s + i) for i in range(4)]
        write_shard(tmp_path / f"in-{s}.tar", [(f"{i}.png", image_bytes(image)) for i, image in enumerate(images)])
    values = {
        "run": {"dir": "run", "threads": 1, "device": "cpu"},
        "data": {"train": [{"shards": f"{tmp_path}/in-{{0..2}}.tar"}], "crop": 64, "batch": 4, "holdout": 0,
                 "cache": "none", "shuffle": 5},
        "model": MODEL,
        "objective": {"lambdas": [0.01]},
        "optim": {"steps": 6, "lr": 1e-3, "ema": 0.9},
        "validation": {"every": 0},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "train.py").write_text(SHARD_COMMAND)

    def train(name, processes, *arguments, stop_at=0):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if processes > 1 else []
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "READS": str(tmp_path / name), "STOP_AT": str(stop_at)}
        command = [sys.executable, *torchrun, tmp_path / "train.py", *arguments]
        done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    def reads(name):
        return (tmp_path / name).read_text().split()

    for name, processes, stop_at in (("one", 1, 0), ("two", 2, 0), ("parts", 2, 2)):
        arguments = ["-c", tmp_path / "config.yaml", "--set", f"run.dir={tmp_path / name}.run"]
        train(name, processes, *arguments, stop_at=stop_at)
    assert len(reads("parts0")) < len(reads("two0"))
    train("parts", 2, "--resume", tmp_path / "parts.run")
    order = reads("one")
    assert all(sorted(order[e : e + 12]) == sorted(f"in-{s}.tar/{i}.png" for s in range(3) for i in range(4))
               for e in (0, 12))  # fmt: skip
    for name in ("two", "parts"):
        for rank in (0, 1):
            mine = [order[step + 2 * rank + k] for step in range(0, 24, 4) for k in range(2)]
            assert reads(f"{name}{rank}") == mine
    one, two, parts = (
        safetensors.torch.load_file(tmp_path / f"{name}.run" / "model.safetensors") for name in ("one", "two", "parts")
    )
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
    assert all(torch.equal(two[k], parts[k]) for k in two)
