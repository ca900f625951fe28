"""Shards and scoring on a Ray cluster of two nodes, of which one is lost, and whose driver is killed."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT
from shard_files import image_bytes, write_shard
from task_helpers import BRIGHT_DETECTOR, classification_arguments, make_grays, script

from ugicm.commands.main import main
from ugicm.extras import require_packages

SHARDS = 8

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory, make_image, checkpoint):
    """A folder with shards in-0 … and their outputs in ``one``, made in this process."""
    folder = tmp_path_factory.mktemp("shards")
    for s in range(SHARDS):
        images = [make_image(150, 100, 2 * s + i) for i in range(2)]
        write_shard(folder / f"in-{s}.tar", [(f"{s}-{i}.png", image_bytes(image)) for i, image in enumerate(images)])
    assert main(command(folder, "one", checkpoint, "--workers", "1")) == 0
    return folder


def command(folder, out, checkpoint, *options):
    pattern = f"{folder}/in-{{0..{SHARDS - 1}}}.tar"
    return ["compress", pattern, str(folder / out), "-e", "4", "-c", str(checkpoint), "--device", "cpu", *options]


def free_port():
    """Return a free port. A node of Ray that chooses its own waits 15 seconds for its agents, too short if busy."""
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]


@pytest.fixture
def cluster(monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # the default is 15, which takes minutes on a busy machine
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "2")

    def options():
        ports = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
        return {"object_store_memory": 100 << 20, **{name: free_port() for name in ports}}

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **options()})
    cluster.workers = [cluster.add_node(num_cpus=1, **options()) for _ in range(2)]
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def wait_for_one(folder):
    """Wait until a shard is finished."""
    deadline = time.monotonic() + 200
    while not list(folder.glob("*.manifest.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_equal(folder, out):
    names = sorted(path.name for path in (folder / "one").iterdir())
    assert sorted(path.name for path in (folder / out).iterdir() if not path.name.startswith(".")) == names
    for name in names:
        assert (folder / out / name).read_bytes() == (folder / "one" / name).read_bytes()


def test_a_lost_node(cluster, shards, checkpoint, capsys):
    """All shards are done once, with the bytes of one process, although a node is lost in mid-run."""

    def lose_a_node():
        wait_for_one(shards / "lost")
        cluster.remove_node(cluster.workers[0], allow_graceful=False)

    thread = threading.Thread(target=lose_a_node)
    thread.start()
    assert main(command(shards, "lost", checkpoint, "--ray", cluster.address)) == 0
    thread.join()
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(r["shard"] for r in records) == [str(shards / f"in-{s}.tar") for s in range(SHARDS)]
    assert {r["status"] for r in records} <= {"done", "skipped"}  # a shard may end as its worker dies
    check_equal(shards, "lost")


def test_a_killed_driver(cluster, shards, checkpoint, capsys):
    arguments = command(shards, "killed", checkpoint, "--ray", cluster.address)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen([sys.executable, "-m", "ugicm", *arguments], env=environment, cwd=ROOT)
    wait_for_one(shards / "killed")
    driver.kill()
    driver.wait()
    assert len(list((shards / "killed").glob("*.manifest.json"))) < SHARDS
    assert main(arguments) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(records) == SHARDS and {r["status"] for r in records} == {"done", "skipped"}
    check_equal(shards, "killed")


def test_a_job_that_kills_its_workers(cluster):
    """It fails after some attempts, and does not stop the others."""
    from ugicm.ray_workers import run_on_ray

    class Task:
        device = "cpu"

        def start(self):
            pass

        def attempt(self, job):
            os._exit(1) if job == "bad" else None
            return f"of {job}"

    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    found = {job: (result, error) for job, result, error in run_on_ray(Task(), ["a", "bad", "b"], cluster.address, 2)}
    assert found["a"] == ("of a", "") and found["b"] == ("of b", "")
    assert found["bad"][0] is None and "died 3 times" in found["bad"][1]


@pytest.mark.parametrize("name", ["classification", "instance_segmentation"])
def test_scores_are_those_of_one_process(name, cluster, tmp_path, checkpoint, monkeypatch):
    """Also to the last digit of the records, and with images that cannot be read."""
    monkeypatch.chdir(tmp_path)  # which is not the folder of the nodes
    grays = make_grays(tmp_path)
    (grays / "3" / "33.png").write_bytes(b"not an image")
    (tmp_path / "bright.py").write_text(BRIGHT_DETECTOR)
    arguments = {
        "classification": ["--classifiers", *classification_arguments(grays)[3:], "--batch-size", "3"],
        "instance_segmentation": ["--detectors", "bright.py:build", "--device", "cpu"],
    }[name]
    arguments += ["-d", "grays", "--codec", f"ugicm={checkpoint}", "--quality", "0.3"]
    documents = []
    for out, options in (("one", []), ("two", ["--ray", cluster.address, "--workers", "2"])):
        assert script(f"{name}/test")([*arguments, *options, "-o", f"{out}.json"]) == 1
        documents.append(json.loads((tmp_path / f"{out}.json").read_text()))
        for key in ("command", "time", "threads"):
            del documents[-1]["meta"][key]
    assert len(documents[0]["per_image"]) == 20 and list(documents[0]["failed"]) == ["3/33.png"]
    assert documents[0] == documents[1]


def test_ray_is_optional(monkeypatch, shards, checkpoint, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"\[ray\]"):
        require_packages("ray", "x", "ray")
    assert main(command(shards, "none", checkpoint, "--ray")) == 2
    assert "--ray needs ray" in capsys.readouterr().err
