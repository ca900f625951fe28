"""Runs over files, in one process and in several, and atomic writes. The tasks need no PyTorch."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ugicm import atomic, bitstream, files
from ugicm.commands import workers
from ugicm.commands.batch import CodecTask, FileResult, Summary, run_batch
from ugicm.errors import ImageError, UgicmError, UsageError

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class FakeTask:
    """Writes small files, but raises ``raised[stem]`` for sources of that stem, and dies at the source ``killed``."""

    raised: dict[str, BaseException] = field(default_factory=dict)
    killed: str = ""
    warning: str = ""
    start_error: Exception | None = None
    seconds: float = 0.0
    device: str = "cpu"

    def start(self):
        if self.start_error:
            raise self.start_error

    def run(self, job):
        time.sleep(self.seconds)
        if job.source.stem in self.raised:
            raise self.raised[job.source.stem]
        if job.source.stem == self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.warning:
            warnings.warn(self.warning, stacklevel=1)
        atomic.write(job.target, b"new")
        return FileResult(1, 3)

    def targets(self, job):
        return [job.target]

    def mismatch(self, job, target):
        return None if target.read_bytes() == b"new" else "of another kind"


def make_jobs(folder, count=3):
    return [files.Job(folder / f"{i:03}.in", folder / f"{i:03}.out") for i in range(count)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


both_modes = pytest.mark.parametrize("processes", [1, 2])


# run_batch


@both_modes
def test_run_batch_skips_and_reports_existing_targets(processes, tmp_path, capsys):
    jobs = make_jobs(tmp_path, 4)
    jobs[0].target.write_bytes(b"new")
    jobs[1].target.write_bytes(b"old")
    summary = run_batch(FakeTask(), jobs, workers=processes)
    assert str(summary) == "2 done, 1 skipped (up to date), 1 not replaced"
    advice = "use --overwrite to replace what exists"
    assert capsys.readouterr().err == f"ugicm: 1 existing output is of another kind; {advice}: {jobs[1].target}\n"
    assert (summary.status, summary.size) == (1, 6)
    assert str(run_batch(FakeTask(), jobs, overwrite=True, workers=processes)) == "4 done"
    assert {job.target.read_bytes() for job in jobs} == {b"new"}


@both_modes
def test_run_batch_reports_errors_on_one_line_in_order(processes, tmp_path, capsys):
    errors = {"000": RuntimeError("CUDA out of memory\nbuy more"), "001": ImageError(f"{tmp_path / '001.in'}: broken"),
              "002": MemoryError()}  # fmt: skip
    summary = run_batch(FakeTask(errors), make_jobs(tmp_path, 4), workers=processes)
    texts = ("000.in: CUDA out of memory", "001.in: broken", "002.in: MemoryError")
    reported = [f"{tmp_path / text}" for text in texts]
    assert sorted(capsys.readouterr().err.splitlines()) == [f"ugicm: {line}" for line in reported]
    assert str(summary) == "1 done, 3 failed"
    assert summary.status == 1


@dataclass
class FatalTask(FakeTask):
    code: int = errno.ENOSPC

    def run(self, job):
        raise atomic.WriteError(job.target, OSError(self.code, "tested"))


def test_run_batch_on_a_gpu_runs_jobs_side_by_side(tmp_path):
    task = FakeTask({"003": ImageError("broken")}, seconds=0.1, device="cuda")
    start = time.perf_counter()
    assert str(run_batch(task, make_jobs(tmp_path, 8))) == "7 done, 1 failed"
    assert time.perf_counter() - start < 0.7


@pytest.mark.parametrize("name, processes", [("ENOSPC", 2), *((n, 1) for n in ("ENOSPC", "EDQUOT", "EROFS", "EACCES"))])
def test_run_batch_stops_after_fatal_error(name, processes, tmp_path):
    summary = run_batch(FatalTask(code=getattr(errno, name)), make_jobs(tmp_path, 50), workers=processes)
    assert summary.status == 1 and summary.stopped
    assert 1 <= summary.failed <= processes and summary.remaining == 50 - summary.failed


@both_modes
def test_run_batch_says_each_mismatch_once(processes, tmp_path, capsys):
    jobs = make_jobs(tmp_path, 5)
    for job in jobs:
        job.target.write_bytes(b"old")
    summary = run_batch(FakeTask(), jobs, workers=processes)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ugicm: 5 existing outputs are of another kind; use --overwrite") and "and 2 more" in line
    assert str(summary) == "0 done, 5 not replaced" and summary.status == 1


def test_summary_counts_what_is_lost():
    summary = Summary(3, left_out="2 .heic", images_left_out=2)
    summary.add(FileResult(10, size=30, source_size=20))
    assert str(summary) == "1 done, 2 remaining, 1 larger than the image; left out: 2 .heic" and summary.status == 1
    summary = Summary(1)
    summary.add(FileResult(10, size=10, source_size=20, frames=4))
    assert str(summary) == "1 done, 1 without further pages or frames" and summary.status == 1


@both_modes
def test_run_batch_propagates_bugs(processes, tmp_path):
    with pytest.raises(TypeError, match="a bug"):
        run_batch(FakeTask({"001": TypeError("a bug")}), make_jobs(tmp_path), workers=processes)


@both_modes
def test_run_batch_propagates_errors_of_start(processes, tmp_path):
    with pytest.raises(UsageError, match="no such model"):
        run_batch(FakeTask(start_error=UsageError("no such model")), make_jobs(tmp_path), workers=processes)
    assert names(tmp_path) == []


def test_run_batch_counts_files_before_interrupt(tmp_path):
    jobs = make_jobs(tmp_path)
    summary = run_batch(FakeTask({"001": KeyboardInterrupt()}), jobs)
    assert str(summary) == "stopped: 1 done, 2 remaining: interrupted"
    assert summary.status == 130 and names(tmp_path) == ["000.out"]
    assert str(run_batch(FakeTask(), jobs)) == "2 done, 1 skipped (up to date)"


def test_run_batch_continues_after_file_name_too_long(tmp_path, capsys):
    jobs = [files.Job(tmp_path / "a", tmp_path / ("x" * 300)), files.Job(tmp_path / "b", tmp_path / "b.out")]
    atomic.prepare_folders(job.target for job in jobs)
    summary = run_batch(FakeTask(), jobs)
    assert (summary.done, summary.failed) == (1, 1) and "name too long" in capsys.readouterr().err
    assert not atomic.is_special(jobs[0].target)


# Worker processes


def test_workers_show_a_warning_once(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert run_batch(FakeTask(warning="tested"), make_jobs(tmp_path, 6), workers=2).done == 6
    assert [str(warning.message) for warning in caught] == ["tested"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_workers_stop_the_run_if_one_is_killed(tmp_path):
    jobs = make_jobs(tmp_path, 20)
    summary = run_batch(FakeTask(killed="005", seconds=0.01), jobs, workers=2)
    assert summary.status == 1 and summary.stopped.startswith("a worker process died; run the command again")
    assert 4 <= summary.done <= len(names(tmp_path)) < 20
    assert not any(name.startswith(".") for name in names(tmp_path))
    assert summary.remaining == 20 - summary.done
    again = run_batch(FakeTask(), jobs, workers=2)
    assert again.status == 0 and again.done + again.skipped == 20


def run_slowly(folder):
    """The program of the next two tests."""
    summary = run_batch(FakeTask(seconds=0.02), make_jobs(Path(folder), 200), workers=2)
    print(summary)
    sys.exit(summary.status)


@pytest.fixture
def running_batch(tmp_path):
    """A process that runs :func:`run_slowly`, after its first outputs, in a process group of its own."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    program = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" \
              f"import test_batch; test_batch.run_slowly({str(tmp_path)!r})"  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and len(list(tmp_path.glob("*.out"))) < 3:
        time.sleep(0.005)
    return process


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
def test_workers_end_after_interrupt(running_batch, tmp_path):
    os.killpg(running_batch.pid, signal.SIGINT)  # a terminal sends it to all processes of the group
    out, err = running_batch.communicate(timeout=60)  # returns when the last process has closed its pipes
    assert (running_batch.returncode, err) == (130, "")
    written = [name for name in names(tmp_path) if name.endswith(".out")]
    done = int(out.split()[1])
    assert out == f"stopped: {done} done, {200 - done} remaining: interrupted\n"
    assert 0 <= len(written) - done <= 2 and done < 200
    assert {(tmp_path / name).read_bytes() for name in written} == {b"new"}


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_workers_end_with_the_main_process(running_batch, tmp_path):
    running_batch.kill()
    running_batch.communicate(timeout=60)
    written = [path for path in tmp_path.glob("*.out")]
    assert 3 <= len(written) < 200 and {path.read_bytes() for path in written} == {b"new"}


@pytest.mark.parametrize(
    ("requested", "device", "jobs", "expected"),
    [(None, "cpu", 7, 1), (None, "cpu", 8, 4), (None, "cuda:0", 100, 1), (3, "cuda:0", 100, 3), (3, "cpu", 2, 2)],
)
def test_choose_workers(requested, device, jobs, expected, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    assert workers.choose_workers(requested, device, jobs) == expected


def test_codec_task_reports_devices_without_memory(monkeypatch):
    def load(*arguments):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB\nmore")

    monkeypatch.setattr("ugicm.codec.load", load)
    with pytest.raises(UgicmError, match="on cuda:7: CUDA out of memory. Tried to allocate 20.00 MiB; try fewer"):
        CodecTask(checkpoint=None, max_pixels=bitstream.MAX_PIXELS, device="cuda:7").start()


# Names of inputs and outputs


def test_find_leaves_out_hidden_files_and_pipes(tmp_path):
    for name in ("a.PNG", ".b.png", "c.txt", ".hidden/d.png", "sub/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    assert files.find(tmp_path, [".png"]) == [tmp_path / "a.PNG", tmp_path / "sub" / "e.png"]
    with pytest.raises(UsageError, match="no files to work on"):
        files.find(tmp_path, [".jpg"])


def test_list_files_counts_what_is_left_out(tmp_path):
    for name in ("a.png", "b.HEIC", "c.heic", "d.dng", ".DS_Store", "LICENSE", "sub/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    listing = files.list_files(tmp_path, [".png"])
    assert listing.found == [tmp_path / "a.png"]
    assert listing.left_out == {
        ".heic": 2, ".dng": 1, "hidden": 1, "without extension": 1, ".txt": 1, "link to a folder": 1,
    }  # fmt: skip
    text = files.describe_left_out(listing.left_out)
    assert text.startswith("2 .heic, ") and text.endswith(" (try: pip install pillow-heif)")
    assert files.describe_left_out(files.Counter({".txt": 1})) == "1 .txt"


def test_plan_jobs_of_a_folder_keeps_whole_names(tmp_path):
    photos, bits = tmp_path / "photos", tmp_path / "bits"
    photos.mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        (photos / name).touch()
    bits.mkdir()
    (bits / "a.ugic").touch()
    plan = files.plan_jobs([str(photos)], str(bits), [".png", ".jpg"], ".ugic")
    assert [job.target.name for job in plan.jobs] == ["a.jpg.ugic", "a.png.ugic", "b.png.ugic"]
    assert plan.orphans == [bits / "a.ugic"] and plan.folder
    for job in plan.jobs:
        job.target.touch()
    back = files.plan_jobs([str(bits)], str(tmp_path / "images"), [".ugic"], ".png")
    assert [job.target.name for job in back.jobs] == ["a.jpg.png", "a.png.png", "a.png", "b.png.png"]


def test_plan_jobs_of_files(tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        (tmp_path / name).touch()
    a, other, b = (str(tmp_path / name) for name in ("a.png", "a.jpg", "b.png"))
    out = str(tmp_path / "new")

    def targets(sources, target=None):
        plan = files.plan_jobs(sources, target, [".png"], ".ugic")
        return [os.path.relpath(job.target, tmp_path) if job.target != atomic.STDIO else "-" for job in plan.jobs]

    assert targets([a]) == ["a.ugic"] and targets([a, b]) == ["a.ugic", "b.ugic"]
    assert targets([a], out) == ["new"] and targets([a, b], out) == ["new/a.ugic", "new/b.ugic"]
    assert targets([a], str(tmp_path)) == ["a.ugic"] and targets([a], "-") == targets(["-"]) == ["-"]
    assert targets(["-"], out) == ["new"]
    for sources, target, says in (([a, other], None, "have the same output"), ([a, a], None, "have the same output"),
                                  ([a, "-"], out, "several inputs"), ([a, b], "-", "several inputs"),
                                  ([a, b], other, "is a file"), (["-"], str(tmp_path), "name the output file"),
                                  ([str(tmp_path)], "-", "name an output folder")):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            files.plan_jobs(sources, target, [".png"], ".ugic")


def test_split_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    Path("b.png").touch()
    Path("dir").mkdir()

    def split(*paths, output=None):
        return files.split_arguments(paths, output, lambda name: name.endswith(".ugic"))

    assert split("a.png") == (("a.png",), None)
    assert split("a.png", "b.png") == (("a.png", "b.png"), None)
    for output in ("x", "x.ugic", "dir", "new/", "-", "", os.devnull):
        assert split("a.png", output) == (["a.png"], output)
    for output in ("dir", "new/"):
        assert split("a.png", "b.png", output) == (["a.png", "b.png"], output)
    assert split("a.png", "b.png", "c.png") == (("a.png", "b.png", "c.png"), None)
    assert split("a.png", "dir", output="x") == (("a.png", "dir"), "x")


def test_pair_keeps_extensions_of_shared_targets():
    sources = [Path("in", name) for name in ("a.png", "a.jpg", "b.png", "a.png.jpg", "sub/a.png")]
    targets = [job.target.as_posix() for job in files.pair(sources, Path("in"), Path("out"), ".ugic")]
    assert targets == ["out/a.png.ugic", "out/a.jpg.ugic", "out/b.ugic", "out/a.png.jpg.ugic", "out/sub/a.ugic"]


# Atomic writes


def test_replacing_keeps_the_file_if_the_block_fails(tmp_path):
    target = tmp_path / "results.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic.replacing(target) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert target.read_text() == "old" and names(tmp_path) == ["results.json"]
    with atomic.replacing(target) as temporary:
        json.dump([1], temporary.open("w"))
    assert target.read_text() == "[1]" and names(tmp_path) == ["results.json"]


def test_write_removes_temporary_file_after_interrupt(tmp_path, monkeypatch):
    def interrupted(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic.write(tmp_path / "x", b"new")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd on this system")
def test_write_appends_to_open_files(tmp_path, capfd):
    with (tmp_path / "log").open("w+b") as file:
        file.write(b"before ")
        file.flush()
        atomic.write(f"/dev/fd/{file.fileno()}", b"new")
    assert (tmp_path / "log").read_bytes() == b"before new"
    atomic.write("/dev/stdout", b"one")
    atomic.write("/dev/stderr", b"two")
    assert capfd.readouterr() == ("one", "two")
    assert Path("/dev/stdout").is_symlink()


def test_prepare_folders_names_folder_that_is_not_writable(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(atomic.WriteError, match=f"^{tmp_path}: cannot be written: Permission denied"):
        atomic.prepare_folders([tmp_path / "a.out"])


@pytest.mark.skipif(os.name != "posix", reason="processes can only be tested on POSIX")
def test_remove_stale_keeps_files_of_living_processes(tmp_path, monkeypatch):
    def kill(process, number):
        if process != os.getpid():
            raise {1: PermissionError, 2: ProcessLookupError}[process]  # of another user; dead

    monkeypatch.setattr(os, "kill", kill)
    host = atomic._HOST
    stems = (f"{host}-{os.getpid()}-3", f"{host}-1-3", f"{host}-2-3", "1-2-1", "1-2-2")
    mine, of_others, dead, other_host, old = (tmp_path / f".{stem}.ugicm-part" for stem in stems)
    for path in (mine, of_others, dead, other_host, old):
        path.touch()
    os.utime(old, (0, 0))
    atomic.remove_stale(tmp_path)
    assert {*tmp_path.iterdir()} == {mine, of_others, other_host}
