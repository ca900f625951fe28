"""The commands on real files: what they write, what they refuse, and what they say."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import small_model

import ugicm
from ugicm import arguments, atomic, bitstream, files
from ugicm.checkpoints.native import save_model
from ugicm.codec import Codec
from ugicm.commands import batch, workers
from ugicm.commands import main as cli
from ugicm.errors import CheckpointError, ConfigError, ImageError, StreamError, UgicmError, UsageError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def command(capsys, monkeypatch, checkpoint):
    """command(*arguments) -> (exit status, stdout, stderr) of a command run in this process."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments, model=checkpoint):
        arguments = [str(a) for a in arguments]
        if arguments[0] in ("compress", "decompress") and model is not None:
            arguments += ["-c", str(model)]
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="session")
def stream_data(checkpoint, make_image) -> bytes:
    return ugicm.load(checkpoint).compress(make_image())


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def usage_error(result, *words):
    """One clear line on stderr, exit status 2, nothing else."""
    status, out, err = result
    assert status == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    for word in words:
        assert str(word) in err
    return True


# Whole commands, as users run them


def test_a_file_there_and_back_as_a_process(run_python, checkpoint, photos):
    one = run_python("-m", "ugicm", "compress", photos / "dogs" / "a.png", "-c", checkpoint, "--verify")
    assert (one.returncode, one.stderr) == (0, "")
    data = (photos / "dogs" / "a.ugic").read_bytes()
    assert f"{len(data):,} bytes, {8 * len(data) / (64 * 48):.3f} bpp" in one.stdout
    back = ("decompress", "dogs/a.ugic", "seen.webp", "-p", "machine", "-c", checkpoint)
    two = run_python("-m", "ugicm", *back, cwd=photos)
    assert (two.returncode, two.stderr) == (0, "")
    with Image.open(photos / "seen.webp") as image:
        assert (image.format, image.size) == ("WEBP", (64, 48))


def test_the_installed_command_says_its_version():
    script = Path(sys.executable).with_name("ugicm")
    if not script.exists():
        pytest.skip("ugicm is not installed beside this Python")
    assert subprocess.check_output([script, "--version"], text=True) == f"ugicm {ugicm.__version__}\n"


@pytest.mark.parametrize("arguments", [["info", "x.ugic"], ["--help"], ["info", "--help"], ["compress", "gone.png"]])
def test_nothing_heavy_is_imported_needlessly(arguments, run_python, tmp_path):
    header = bitstream.Stream(640, 480, b"abc", 0.5, 0, (0,), (b"payload",))
    (tmp_path / "x.ugic").write_bytes(header.pack())
    code = (
        "import sys; from ugicm.commands.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'compressai', 'tqdm', 'yaml'} & set(sys.modules)))"
    )
    assert run_python("-c", code, cwd=tmp_path).stdout.splitlines()[-1] == "[]"


def test_info_is_quick(run_python, tmp_path):
    (tmp_path / "x.ugic").write_bytes(bitstream.Stream(640, 480, b"abc", 0.5, 0, (0,), (b"payload",)).pack())
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert run_python("-m", "ugicm", "info", tmp_path).returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5  # 0.3 s on an idle machine; importing PyTorch alone takes longer than this


def test_a_killed_run_leaves_no_half_file_and_is_completed(run_python, checkpoint, tmp_path, make_image):
    photos, streams = tmp_path / "photos", tmp_path / "streams"
    photos.mkdir()
    for i in range(40):
        make_image(200, 200, i).save(photos / f"{i:02}.png")
    command = [sys.executable, "-m", "ugicm", "compress", photos, streams, "-c", checkpoint]
    process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and len(list(streams.glob("*.ugic"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = {path: path.read_bytes() for path in streams.glob("*.ugic")}
    assert len(there) >= 3
    for data in there.values():
        bitstream.parse(data)
    foreign = f".1-{process.pid}-0.ugicm-part"
    (streams / foreign).write_bytes(b"of another machine, recent")
    (streams / f".{atomic._HOST}-{process.pid}-7.ugicm-part").write_bytes(b"half of a file")
    done = run_python("-m", "ugicm", "compress", photos, streams, "-c", checkpoint, cwd=tmp_path)
    assert done.returncode == 0
    assert f"{40 - len(there)} done" in done.stdout
    assert len(there) == 0 or f"{len(there)} skipped" in done.stdout
    assert tree(streams) == [foreign, *(f"{i:02}.ugic" for i in range(40))]
    assert all(path.read_bytes() == data for path, data in there.items())


# Folders


def test_a_folder_keeps_its_tree_there_and_back(command, photos, tmp_path):
    streams, images = tmp_path / "streams", tmp_path / "images"
    status, out, err = command("compress", photos, streams, "-q", 0.2)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "3 done"
    assert tree(streams) == ["cats/c.ugic", "dogs/a.ugic", "dogs/b.ugic"]
    assert bitstream.parse((streams / "dogs/b.ugic").read_bytes()).quality == pytest.approx(0.2, abs=1e-5)
    assert command("decompress", streams, images)[0] == 0
    assert tree(images) == ["cats/c.png", "dogs/a.png", "dogs/b.png"]
    for name, original in (("cats/c.png", "cats/c.bmp"), ("dogs/b.png", "dogs/b.jpg")):
        assert Image.open(images / name).size == Image.open(photos / original).size
    assert command("decompress", streams, tmp_path / "webp", "--format", "webp")[0] == 0
    assert tree(tmp_path / "webp") == ["cats/c.webp", "dogs/a.webp", "dogs/b.webp"]


def test_a_second_run_continues_and_says_so(command, photos, tmp_path):
    streams = tmp_path / "streams"
    command("compress", photos, streams)
    (streams / "dogs" / "a.ugic").unlink()
    before = {name: (streams / name).stat().st_mtime_ns for name in tree(streams)}
    status, out, _ = command("compress", photos, streams)
    assert (status, out.splitlines()[-1]) == (0, "1 done, 2 skipped (already there)")
    assert all((streams / name).stat().st_mtime_ns == when for name, when in before.items())
    status, out, _ = command("compress", photos, streams, "--overwrite")
    assert (status, out.splitlines()[-1]) == (0, "3 done")
    images = tmp_path / "images"
    command("decompress", streams, images)
    assert command("decompress", streams, images)[1] == "0 done, 3 skipped (already there)\n"


def test_ctrl_c_ends_with_the_summary_and_the_next_run_completes(command, photos, tmp_path, monkeypatch):
    compress, calls = Codec.compress, []

    def impatient(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compress(self, *arguments, **options)

    monkeypatch.setattr(Codec, "compress", impatient)
    status, out, _ = command("compress", photos, tmp_path / "streams", "--workers", 1)
    assert status == 130
    assert out.splitlines()[-1] == "stopped: 1 done, 2 not tried: interrupted"
    assert command("compress", photos, tmp_path / "streams")[1].endswith("2 done, 1 skipped (already there)\n")
    assert len(tree(tmp_path / "streams")) == 3


@pytest.mark.parametrize(("overwrite", "summary"), [(False, "2 done, 1 skipped (already there), 1 not tried"),
                                                    (True, "3 done, 1 not tried")])  # fmt: skip
def test_ctrl_c_just_after_a_file_was_written(tmp_path, overwrite, summary):
    jobs = [files.Job(tmp_path / f"{i}", tmp_path / f"{i}.out") for i in range(4)]
    for number in (1, 3):
        jobs[number].target.write_bytes(b"old")

    def work(job):
        atomic.write(job.target, b"new")
        if job is jobs[2]:
            raise KeyboardInterrupt
        return batch.Made(1)

    assert str(batch.run(jobs, work, lambda job: None, overwrite)) == f"stopped: {summary}: interrupted"


def test_a_name_that_is_too_long_costs_one_image(tmp_path):
    jobs = [files.Job(tmp_path / "a", tmp_path / ("x" * 300)), files.Job(tmp_path / "b", tmp_path / "b.out")]
    atomic.prepare(job.target for job in jobs)
    summary = batch.run(jobs, lambda job: atomic.write(job.target, b"new") or batch.Made(1), lambda job: None)
    assert (summary.done, len(summary.failed)) == (1, 1) and "name too long" in summary.failed[0][1]
    assert not atomic.is_special(jobs[0].target)


def test_ctrl_c_while_a_file_is_written_leaves_nothing(command, photos, tmp_path, monkeypatch):
    def interrupted(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    assert command("compress", photos, tmp_path / "streams", "--workers", 1)[0] == 130
    assert tree(tmp_path / "streams") == []


def test_a_broken_image_among_good_ones(command, photos, tmp_path):
    broken = photos / "dogs" / "broken.png"
    broken.write_bytes((photos / "dogs" / "a.png").read_bytes()[:300])
    status, out, err = command("compress", photos, tmp_path / "streams")
    assert status == 1
    assert out.splitlines()[-1].startswith(f"3 done, 1 failed: {broken}: damaged image: ")
    assert err.startswith(f"ugicm: {broken}: damaged image: ")
    assert len(tree(tmp_path / "streams")) == 3
    (tmp_path / "streams" / "dogs" / "a.ugic").write_bytes(b"UGI")
    (tmp_path / "streams" / "dogs" / "b.ugic").write_bytes(b"")
    status, out, _ = command("decompress", tmp_path / "streams", tmp_path / "images")
    assert status == 1
    assert out.splitlines()[0] == "1 done, 2 failed"
    assert "a.ugic: truncated stream" in out and "b.ugic: not a ugicm stream: empty" in out


def test_what_is_there_already_is_believed_only_if_it_is_what_was_asked_for(
    command, photos, tmp_path, other_checkpoint
):
    streams, images = tmp_path / "streams", tmp_path / "images"
    command("compress", photos, streams)
    status, out, _ = command("compress", photos, streams, "-q", 0.9)
    assert status == 1 and out.count("is already there, with quality 0.5; --overwrite replaces it") == 3
    status, out, _ = command("compress", photos, streams, model=other_checkpoint)
    assert status == 1 and out.count("written by another model") == 3
    data = (streams / "dogs" / "a.ugic").read_bytes()
    (streams / "dogs" / "a.ugic").write_bytes(data[:-5])
    status, out, _ = command("compress", photos, streams)
    assert status == 1 and "2 skipped" in out and "no complete stream (truncated stream" in out
    (streams / "dogs" / "a.ugic").write_bytes(data)
    command("decompress", streams, images)
    Image.new("RGB", (5, 5)).save(images / "dogs" / "a.png")
    (images / "dogs" / "b.png").write_bytes(b"")
    status, out, _ = command("decompress", streams, images)
    assert status == 1 and "1 skipped" in out
    assert "another size (5x5)" in out and "no complete image" in out


def test_inputs_that_would_share_an_output_keep_their_names(command, tmp_path, make_image):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        make_image().save(photos / name)
    (photos / "a.png.jpg").write_bytes((photos / "a.jpg").read_bytes())
    assert command("compress", photos, tmp_path / "streams")[0] == 0
    assert tree(tmp_path / "streams") == ["a.jpg.ugic", "a.png.jpg.ugic", "a.png.ugic", "b.ugic"]


def test_hidden_files_and_extensions_in_capitals(command, photos, tmp_path):
    (photos / "dogs" / "a.png").rename(photos / "dogs" / "A.PNG")
    (photos / ".cache").mkdir()
    (photos / ".cache" / "x.png").write_bytes(b"")
    (photos / "._b.jpg").write_bytes(b"")
    assert command("compress", photos, tmp_path / "streams")[0] == 0
    assert tree(tmp_path / "streams") == ["cats/c.ugic", "dogs/A.ugic", "dogs/b.ugic"]


# Side by side

side_by_side = pytest.mark.skipif(not workers.available(), reason="processes are not forked here")


@side_by_side
def test_workers_write_the_same_files(command, photos, tmp_path, make_image):
    for i in range(4):
        make_image(70 + 40 * i, 90, i).save(photos / f"{i}.png")
    (photos / "dogs" / "0_broken.png").write_text("no image")
    ends = []
    for count in (1, 3):
        streams, images = tmp_path / f"streams{count}", tmp_path / f"images{count}"
        ends.append(command("compress", photos, streams, "--workers", count))
        ends[-1] += command("decompress", streams, images, "-p", 0.5, "--workers", count)
        again = command("compress", photos, streams, "--workers", count)
        assert "0 done, 7 skipped (already there), 1 failed" in again[1]
    assert ends[0] == ends[1]
    status, out, err = ends[1][:3]
    assert status == 1
    assert err == f"ugicm: {photos / 'dogs' / '0_broken.png'}: not an image that Pillow can read\n"
    assert out.splitlines()[-1].startswith("7 done, 1 failed: ") and "0_broken.png" in out
    for kind in ("streams", "images"):
        one, three = tmp_path / f"{kind}1", tmp_path / f"{kind}3"
        assert len(tree(one)) == 7 and tree(one) == tree(three)
        assert all((one / name).read_bytes() == (three / name).read_bytes() for name in tree(one))


@side_by_side
def test_workers_do_not_change_the_last_digit(tmp_path, make_image):
    """With the shipped model, whose images show in how many threads they were computed; in processes of their own."""
    (tmp_path / "photos").mkdir()
    for i in range(3):
        make_image(320, 256, i).save(tmp_path / "photos" / f"{i}.png")
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    for command, source, target in (("compress", "photos", "streams"), ("decompress", "streams1", "images")):
        at_work = []
        for count in (1, 2):
            arguments = [command, tmp_path / source, tmp_path / f"{target}{count}", "--workers", count]
            at_work.append(subprocess.Popen([sys.executable, "-m", "ugicm", *map(str, arguments)], env=environment))
        assert [process.wait() for process in at_work] == [0, 0]
    for kind in ("streams", "images"):
        one, two = tmp_path / f"{kind}1", tmp_path / f"{kind}2"
        assert len(tree(one)) == 3 and all((one / name).read_bytes() == (two / name).read_bytes() for name in tree(one))


def _folder_at_work(folder, make_image, checkpoint):
    """A process that compresses many images with two workers, once the first outputs are there."""
    photos, streams = folder / "photos", folder / "streams"
    photos.mkdir()
    for i in range(200):
        make_image(200, 200, i).save(photos / f"{i:03}.bmp")
    arguments = ["-m", "ugicm", "compress", photos, streams, "-c", checkpoint, "--workers", 2]
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )  # fmt: skip
    while process.poll() is None and len(list(streams.glob("*.ugic"))) < 3:
        time.sleep(0.005)
    return process, streams


@side_by_side
def test_ctrl_c_stops_all_workers(tmp_path, make_image, checkpoint):
    process, streams = _folder_at_work(tmp_path, make_image, checkpoint)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everyone
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    there = tree(streams)
    assert 3 <= len(there) < 200
    assert all(name.endswith(".ugic") and bitstream.parse((streams / name).read_bytes()) for name in there)
    assert out.splitlines()[-1] == f"stopped: {len(there)} done, {200 - len(there)} not tried: interrupted"


@side_by_side
def test_a_worker_that_is_told_to_leave_says_nothing_more():
    """Python 3.11 makes a RuntimeError of an exit within a class that is being defined, as Pillow's are at first use: a
    image was called damaged then."""
    def work(job):
        if job.source.name == "1":
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except SystemExit:
                raise ImageError("damaged image") from None
        return batch.Made(1)

    jobs = [files.Job(Path(str(i)), Path(f"no-such-{i}")) for i in range(3)]
    summary = batch.run(jobs, work, lambda job: None, workers=2)
    assert summary.done == 2
    assert [reason for _, reason in summary.failed] == ["its process ended with status 1"]


@side_by_side
def test_workers_do_not_outlive_the_run(tmp_path, make_image, checkpoint):
    process, streams = _folder_at_work(tmp_path, make_image, checkpoint)
    process.kill()
    process.communicate(timeout=60)  # ends when the last process that has our pipes does
    there = tree(streams)
    assert 3 <= len(there) < 200
    assert all(name.endswith(".ugic") and bitstream.parse((streams / name).read_bytes()) for name in there)


@pytest.fixture
def fatal_images(monkeypatch):
    """Images of 20x20 end the process that compresses them."""
    compress = Codec.compress

    def fatal(self, image, *arguments, **options):
        if image.size == (20, 20):
            os.kill(os.getpid(), signal.SIGKILL)
        return compress(self, image, *arguments, **options)

    monkeypatch.setattr(Codec, "compress", fatal)


@side_by_side
def test_a_worker_that_is_killed_costs_one_image(command, photos, tmp_path, fatal_images):
    status, out, err = command("compress", photos, tmp_path / "streams", "--workers", 2)
    assert status == 1
    assert err == f"ugicm: {photos / 'cats' / 'c.bmp'}: its process was ended by SIGKILL (out of memory?)\n"
    assert "2 done, 1 failed" in out
    assert tree(tmp_path / "streams") == ["dogs/a.ugic", "dogs/b.ugic"]


@side_by_side
def test_workers_that_are_killed_are_replaced(command, photos, tmp_path, fatal_images):
    for i in range(6):
        Image.new("RGB", (20, 20 + i % 2)).save(photos / "cats" / f"{i}.png")
    _, out, _ = command("compress", photos, tmp_path / "streams", "--workers", 2)
    assert "5 done, 4 failed" in out  # one by one 20x20


@side_by_side
def test_workers_warn_once(command, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(6):
        Image.new("RGBA", (40, 40 + i)).save(tmp_path / "photos" / f"{i}.png")
    status, _, err = command("compress", tmp_path / "photos", tmp_path / "streams", "--workers", 3)
    assert (status, err) == (0, "ugicm: warning: transparent images are composited on white\n")


@side_by_side
def test_workers_stop_where_nothing_can_be_written(tmp_path):
    jobs = [files.Job(tmp_path / f"{i}", tmp_path / f"{i}.out") for i in range(50)]

    def work(job):
        time.sleep(0.01)
        raise atomic.WriteError(job.target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    summary = batch.run(jobs, work, lambda job: None, workers=2)
    assert summary.status == 1 and summary.stopped
    assert 1 <= len(summary.failed) <= 2 and summary.untried == 50 - len(summary.failed)


@side_by_side
def test_a_mistake_in_a_worker_is_not_hidden(tmp_path):
    def work(job):
        raise TypeError("ours")

    jobs = [files.Job(tmp_path / name, tmp_path / f"{name}.out") for name in "abc"]
    with pytest.raises(RuntimeError, match="TypeError: ours"):
        batch.run(jobs, work, lambda job: None, workers=2)


@side_by_side
def test_workers_take_the_model_to_the_gpu_themselves(command, photos, tmp_path, monkeypatch):
    """A process that has used a GPU cannot fork others that use it."""
    moves, checks, to = tmp_path / "moves", tmp_path / "checks", Codec.to

    def recorded(codec, device):
        if device == "cuda:7":
            with moves.open("a") as file:
                file.write(f"{os.getpid()}\n")
            device = "cpu"
        return to(codec, device)

    def check(name):
        with checks.open("a") as file:
            file.write(f"{os.getpid()}\n")

    monkeypatch.setattr(Codec, "to", recorded)
    monkeypatch.setattr(arguments, "check_device", check)
    for options, processes in (((), 1), (("--workers", 1), 1), (("--workers", 2), 2)):
        for file in (moves, checks):
            file.write_text("")
        status, out, _ = command("compress", photos, tmp_path / f"{len(options)}-{processes}", "--device", "cuda:7",
                                 *options)  # fmt: skip
        assert status == 0 and out.endswith("3 done\n")
        assert len(set(moves.read_text().split())) == processes
        for file in (moves, checks):
            assert (str(os.getpid()) in file.read_text().split()) is (processes == 1)


@side_by_side
def test_workers_for_whom_a_gpu_has_no_memory(command, photos, tmp_path, monkeypatch):
    def full(codec, device):
        if device == "cuda:7":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB\nmore")
        return to(codec, device)

    to = Codec.to
    monkeypatch.setattr(Codec, "to", full)
    monkeypatch.setattr(arguments, "check_device", lambda name: None)
    status, out, err = command("compress", photos, tmp_path / "out", "--device", "cuda:7", "--workers", 2)
    assert (status, out) == (1, "")
    why = "CUDA out of memory. Tried to allocate 20.00 MiB"
    assert err == f"ugicm: error: a worker cannot use cuda:7: {why}; try fewer --workers\n"


@side_by_side
def test_what_is_done_apart_comes_back():
    def fail():
        raise UsageError("no such device")

    here = []
    assert workers.apart(lambda: here.append(1) or os.getpid()) != os.getpid() and not here
    with pytest.raises(UsageError, match="no such device"):
        workers.apart(fail)
    with pytest.raises(UgicmError, match="ended by SIGKILL"):
        workers.apart(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_numbers_of_workers_that_make_no_sense(command, photos, tmp_path):
    for count in ("0", "-1", "two", "1.5"):
        assert usage_error(command("compress", photos, tmp_path / "out", f"--workers={count}"), count, "1 or more")


# Trouble with writing


def test_a_full_disk_stops_the_run_with_one_line(command, photos, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    status, out, err = command("compress", photos, tmp_path / "streams", "--workers", 1)
    assert status == 1
    target = tmp_path / "streams" / "cats" / "c.ugic"
    assert err == f"ugicm: {photos / 'cats' / 'c.bmp'}: {target}: cannot be written: No space left on device\n"
    assert out.startswith("stopped: 0 done, 2 not tried, 1 failed")
    assert tree(tmp_path / "streams") == []


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM"])
def test_errors_that_every_file_would_meet_stop_a_run(tmp_path, name):
    jobs = [files.Job(tmp_path / f"{i}", tmp_path / f"{i}.out") for i in range(3)]

    def work(job):
        raise atomic.WriteError(job.target, OSError(getattr(errno, name), "tested"))

    summary = batch.run(jobs, work, lambda job: None, say=lambda line: None)
    assert (len(summary.failed), summary.untried, summary.status) == (1, 2, 1)


def test_output_below_a_file(command, photos, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "streams", tmp_path / "file" / "deep" / "streams"):
        status, out, err = command("compress", photos, output)
        assert (status, out) == (1, "")
        assert err.startswith(f"ugicm: error: {tmp_path / 'file'}")
        assert err.endswith(": cannot be written: not a folder\n")
        assert len(err.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    def sealed(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", sealed)
    with pytest.raises(atomic.WriteError, match="cannot be written: Permission denied"):
        atomic.prepare([tmp_path / "a.out"])


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(command, photos, tmp_path):
    (tmp_path / "sealed").mkdir(mode=0o500)
    status, out, err = command("compress", photos, tmp_path / "sealed")
    assert (status, out) == (1, "")
    assert err == f"ugicm: error: {tmp_path / 'sealed'}: cannot be written: Permission denied\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_is_written_into_and_not_replaced(command, photos):
    status, _, err = command("compress", photos / "dogs" / "a.png", "/dev/full")
    assert status == 1
    assert "/dev/full: cannot be written: No space left on device" in err
    status, out, err = command("compress", photos / "dogs" / "a.png", "/dev/null")
    assert (status, out) == (0, "") and "bpp" in err  # out of the way of what goes through stdout
    assert not Path("/dev/null").is_file() and not Path("/dev/full").is_file()


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd here")
def test_an_open_file_is_written_where_it_stands(tmp_path, capfd):
    with (tmp_path / "log").open("w+b") as file:
        file.write(b"before ")
        file.flush()
        atomic.write(f"/dev/fd/{file.fileno()}", b"new ")
        file.seek(0, os.SEEK_END)
        file.write(b"after")
    assert (tmp_path / "log").read_bytes() == b"before new after"
    atomic.write("/dev/stdout", b"one")
    atomic.write("/dev/stderr", b"two")
    assert capfd.readouterr() == ("one", "two")
    with (tmp_path / "log").open("rb") as file:
        with pytest.raises(atomic.WriteError, match="cannot be written: Bad file descriptor"):
            atomic.write(f"/dev/fd/{file.fileno()}", b"new")
    assert (tmp_path / "log").stat().st_size == 16


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout here")
@pytest.mark.parametrize("redirected", [False, True])
def test_a_stream_goes_through_stdout(redirected, run_python, checkpoint, photos, tmp_path):
    command = [sys.executable, "-m", "ugicm", "compress", photos / "dogs" / "a.png", "/dev/stdout", "-c", checkpoint]
    with (tmp_path / "a.ugic").open("wb") as file:
        done = subprocess.run(command, stdout=file if redirected else subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    data = (tmp_path / "a.ugic").read_bytes() if redirected else done.stdout
    bitstream.parse(data)
    assert b"bpp" in done.stderr
    assert Path("/dev/stdout").is_symlink()


def test_outputs_of_another_preference_or_stream_are_not_taken_for_the_right_ones(command, photos, tmp_path):
    streams, seen = tmp_path / "streams", tmp_path / "seen"
    command("compress", photos, streams)
    command("decompress", streams, seen, "-p", "human")
    before = (seen / "dogs" / "a.png").read_bytes()
    assert command("decompress", streams, seen, "-p", "0")[0] == 0
    status, out, err = command("decompress", streams, seen, "-p", "machine")
    assert status == 1 and "3 failed" in out
    assert err.count("of another stream or for another preference than machine (ugicm ") == 3
    assert (seen / "dogs" / "a.png").read_bytes() == before
    command("compress", photos, streams, "-q", "0.9", "--overwrite")
    assert "3 failed" in command("decompress", streams, seen)[1]
    Image.new("RGB", Image.open(photos / "dogs" / "a.png").size).save(seen / "dogs" / "a.png")
    assert "(it does not say which)" in command("decompress", streams, seen)[2]
    assert command("decompress", streams, seen, "--overwrite")[0] == 0


def test_another_map_is_another_preference(command, photos, tmp_path):
    command("compress", photos / "dogs" / "a.png", tmp_path / "streams" / "a.ugic")
    for level in (0, 255):
        Image.new("L", (64, 48), level).save(tmp_path / f"{level}.png")
    run = ("decompress", tmp_path / "streams", tmp_path / "seen", "-p")
    assert [command(*run, tmp_path / "0.png")[0] for _ in range(2)] == [0, 0]
    status, _, err = command(*run, tmp_path / "255.png")
    assert status == 1 and "for another preference than map " in err


def test_a_model_of_one_rate_skips_what_is_there_at_any_quality(command, photos, tmp_path):
    save_model(tmp_path / "one.safetensors", small_model("bmshj2018"))
    run = ("compress", photos, tmp_path / "streams", "-q", "0.9")
    assert command(*run, model=tmp_path / "one.safetensors")[0] == 0
    assert "3 skipped (already there)" in command(*run, model=tmp_path / "one.safetensors")[1]


def test_a_stream_of_a_image_that_has_changed_is_not_kept_in_silence(command, photos, tmp_path):
    command("compress", photos, tmp_path / "streams")
    Image.new("RGB", (30, 10)).save(photos / "dogs" / "a.png")
    Image.new("RGB", (33, 70)).save(photos / "dogs" / "b.jpg")
    later = (tmp_path / "streams" / "dogs" / "b.ugic").stat().st_mtime_ns + 1
    os.utime(photos / "dogs" / "b.jpg", ns=(later, later))
    status, out, err = command("compress", photos, tmp_path / "streams")
    assert status == 1 and "1 skipped" in out
    assert "a.ugic: is already there, of another image: 64x48; --overwrite replaces it" in err
    assert "b.ugic: is already there, older than the image, which may be another one now; --overwrite" in err


def test_images_that_cannot_say_what_they_are_are_not_taken_for_the_right_ones(command, photos, tmp_path):
    command("compress", photos, tmp_path / "streams")
    run = ("decompress", tmp_path / "streams", tmp_path / "seen", "--format", "ppm")
    assert command(*run)[0] == 0
    (tmp_path / "seen" / "dogs" / "a.ppm").unlink()
    status, out, err = command(*run, "-p", "machine")
    assert status == 1 and "1 done, 2 failed" in out
    assert "b.ppm: is already there, and .ppm images cannot say of which stream and for whom they are; --over" in err


# Single files, and what is refused


def test_names_where_none_is_given(command, photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert command("compress", "dogs/b.jpg")[1].startswith("dogs/b.jpg -> dogs/b.ugic\n")
    assert command("decompress", "dogs/b.ugic")[1] == "dogs/b.ugic -> dogs/b.png\n"
    assert command("decompress", "dogs/b.ugic", "--format", "webp")[0] == 0
    assert command("decompress", "dogs/b.ugic", "bare", "--format", "webp")[0] == 0
    with Image.open("bare") as image:
        assert image.format == "WEBP"
    assert command("compress", "dogs/b.jpg", "cats")[0] == 0
    assert command("compress", "dogs/b.jpg", "new/")[0] == 0
    assert {"dogs/b.ugic", "dogs/b.png", "dogs/b.webp", "cats/b.ugic", "new/b.ugic"} <= set(tree(photos))


def test_effort(command, photos, tmp_path, checkpoint):
    image = photos / "dogs" / "a.png"
    assert command("compress", image, tmp_path / "a.ugic", "--effort", 3)[0] == 0
    assert (tmp_path / "a.ugic").read_bytes() == ugicm.load(checkpoint).compress(image, effort=3)
    assert command("decompress", tmp_path / "a.ugic", tmp_path / "a.png")[0] == 0
    assert usage_error(command("compress", image, "-e", "-1"), "--effort", "0 or more")


def test_preferences(command, photos, tmp_path, checkpoint):
    command("compress", photos / "dogs" / "a.png", tmp_path / "a.ugic")
    codec, data = ugicm.load(checkpoint), (tmp_path / "a.ugic").read_bytes()
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1)))
    ramp.save(tmp_path / "map.png")

    def decode(name, preference):
        return command("decompress", tmp_path / "a.ugic", tmp_path / name, "-p", preference, "--overwrite")

    for text, meaning in (("human", 0.0), ("machine", 1.0), ("0.25", 0.25), (tmp_path / "map.png", ramp)):
        assert decode("a.png", text)[0] == 0
        assert Image.open(tmp_path / "a.png").tobytes() == codec.decompress(data, meaning).tobytes()
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    status, _, err = decode("b.png", tmp_path / "small.png")
    assert status == 1 and "map of the image's size 64x48" in err
    assert usage_error(decode("b.png", "1.5"), "1.5", "0 (human)")
    assert usage_error(decode("b.png", "robot"), "robot", "machine")
    assert usage_error(decode("b.png", tmp_path / "a.ugic"), "preference map")
    assert not (tmp_path / "b.png").exists()


def test_existing_files_are_not_overwritten_silently(command, photos):
    image, other = photos / "dogs" / "a.png", photos / "dogs" / "a.ugic"
    other.write_text("precious")
    assert usage_error(command("compress", image), other, "--overwrite")
    assert other.read_text() == "precious"
    assert command("compress", image, "--overwrite")[0] == 0
    original = image.read_bytes()
    assert usage_error(command("decompress", other), image, "--overwrite")
    assert image.read_bytes() == original


def test_a_link_that_leads_nowhere_is_not_replaced_silently(command, photos, tmp_path):
    target = tmp_path / "a.ugic"
    target.symlink_to(tmp_path / "absent")
    assert usage_error(command("compress", photos / "dogs" / "a.png", target), "--overwrite")
    assert target.is_symlink()


def test_a_pipe_in_a_folder_is_not_waited_for(command, photos, stream_data, tmp_path):
    os.mkfifo(photos / "pipe.png")
    status, out, _ = command("compress", photos, tmp_path / "streams")
    assert status == 0 and "3 done" in out
    os.mkfifo(tmp_path / "streams" / "pipe.ugic")
    assert command("info", tmp_path / "streams")[0] == 0


def test_a_folder_is_worked_on_where_stderr_is_closed(command, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert command("compress", photos, tmp_path / "streams", "--workers", 1)[0] == 0
    assert len(tree(tmp_path / "streams")) == 3


@pytest.mark.parametrize("arguments", [("", "out"), ("photos", "")])
def test_an_empty_name_is_not_the_current_folder(command, photos, arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    usage_error(command("compress", *arguments), "an empty name")


@pytest.mark.parametrize("options", [("--device", "bogus"), ("-c", "nope.safetensors")])
def test_nothing_is_made_for_a_command_that_cannot_work(command, photos, options, tmp_path):
    status, _, err = command("compress", photos, tmp_path / "streams", *options, model=None)
    assert status == 2 and options[1] in err and not (tmp_path / "streams").exists()
    usage_error(command("compress", photos, tmp_path / "streams", "-c", tmp_path, model=None), "is a folder")


def test_the_preference_map_is_not_replaced(command, stream_data, tmp_path, make_image):
    source, gray = tmp_path / "x.ugic", tmp_path / "map.png"
    source.write_bytes(stream_data)
    make_image().save(gray)
    before = gray.read_bytes()
    usage_error(command("decompress", source, gray, "-p", gray, "--overwrite"), "would replace the preference map")
    assert gray.read_bytes() == before


def test_output_equal_to_input_is_refused(command, photos, tmp_path):
    image = photos / "dogs" / "a.png"
    os.link(image, tmp_path / "link.ugic")
    for output in (image, photos / "cats" / ".." / "dogs" / "a.png", tmp_path / "link.ugic"):
        assert usage_error(command("compress", image, output, "--overwrite"), "replace the input")
    assert usage_error(command("compress", photos, photos / "."), "is the input folder")
    assert usage_error(command("decompress", photos, photos, "--overwrite"), "is the input folder")


def test_wrong_usage_is_one_line(command, photos, tmp_path, monkeypatch):
    image = photos / "dogs" / "a.png"
    for quality in ("7", "-0.1", "nan", "high"):
        assert usage_error(command("compress", image, f"--quality={quality}"), quality, "from 0 to 1")
    assert usage_error(command("compress", tmp_path / "gone.png"), "gone.png: no such file or folder")
    assert usage_error(command("compress", photos), "name an output folder")
    assert usage_error(command("compress", photos, image), "is a file")
    (tmp_path / "empty").mkdir()
    assert usage_error(command("compress", tmp_path / "empty", tmp_path / "out"), "empty", ".png")
    assert usage_error(command("compress", image, tmp_path / "x.png"), "x.png", ".ugic")
    (tmp_path / "x.ugic").write_bytes(b"UGI")
    assert usage_error(command("compress", tmp_path / "x.ugic", tmp_path / "y.ugic"), "ugicm decompress")
    decompress = ("decompress", tmp_path / "x.ugic")
    assert usage_error(command(*decompress, tmp_path / "x.xyz"), ".xyz", ".png")
    for extension in ("xyz", "palm", "wmf"):
        assert usage_error(command(*decompress, "--format", extension), f"cannot write .{extension} images", ".png")
    assert usage_error(command(*decompress, tmp_path / "x.png", "--format", "jpg"), "leave one out")
    assert usage_error(command("compress", image, "--device", "tpu9"), "device 'tpu9'")
    assert usage_error(command("compress"), "IN", "--help")
    assert usage_error(command("squeeze", image), "squeeze", "compress")
    assert tree(photos) == ["cats/c.bmp", "dogs/a.png", "dogs/b.jpg", "labels.csv"]


def test_wrong_checkpoints(command, photos, tmp_path, other_checkpoint):
    image = photos / "dogs" / "a.png"
    absent = tmp_path / "gone.safetensors"
    assert usage_error(command("compress", image, model=absent), f"{absent}: no such file")
    (tmp_path / "bad.safetensors").write_bytes(b"\x10" + bytes(40))
    assert usage_error(command("compress", image, model=tmp_path / "bad.safetensors"), "bad.safetensors")
    (tmp_path / "bad.pth.tar").write_bytes(b"\x80\x04N.")
    assert usage_error(command("compress", image, model=tmp_path / "bad.pth.tar"), "bad.pth.tar")
    command("compress", image)
    status, _, err = command("decompress", image.with_suffix(".ugic"), tmp_path / "x.png", model=other_checkpoint)
    assert status == 1
    assert "written by another model" in err and "a.ugic" in err
    assert not (tmp_path / "x.png").exists()


def test_a_broken_image_alone(command, tmp_path):
    (tmp_path / "x.png").write_text("no image")
    status, out, err = command("compress", tmp_path / "x.png")
    assert (status, out) == (1, "")
    assert err == f"ugicm: {tmp_path / 'x.png'}: not an image that Pillow can read\n"
    assert tree(tmp_path) == ["x.png"]


def test_warnings_are_short(command, tmp_path):
    Image.new("RGBA", (4, 4)).save(tmp_path / "x.png")
    status, _, err = command("compress", tmp_path / "x.png")
    assert (status, err) == (0, "ugicm: warning: transparent images are composited on white\n")


def test_verify_parses_what_is_about_to_be_written(command, photos, tmp_path, monkeypatch):
    def unreadable(self, parsed, view=None):
        raise StreamError("damaged stream: tested")

    monkeypatch.setattr(Codec, "parse", unreadable)
    image, target = photos / "dogs" / "a.png", tmp_path / "a.ugic"
    status, _, err = command("compress", image, target, "--verify")
    assert status == 1 and "damaged stream: tested" in err and not target.exists()
    assert command("compress", image, target)[0] == 0


# info


def test_info(command, photos, tmp_path, checkpoint):
    command("compress", photos, tmp_path / "streams", "-q", 0.25)
    status, out, err = command("info", tmp_path / "streams")
    assert (status, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["file", "size", "quality", "bytes", "bpp", "version", "model"]
    data = (tmp_path / "streams" / "dogs" / "a.ugic").read_bytes()
    fingerprint = ugicm.load(checkpoint).fingerprint
    name, bpp = tmp_path / "streams" / "dogs" / "a.ugic", 8 * len(data) / (64 * 48)
    version = str(bitstream.VERSION)
    assert rows[1].split() == [str(name), "64x48", "0.25", f"{len(data):,}", f"{bpp:.3f}", version, fingerprint,
                               "(not", "shipped)"]  # fmt: skip
    (tmp_path / "none").mkdir()
    status, out, err = command("info", tmp_path / "streams" / "cats" / "c.ugic", photos / "dogs" / "a.png",
                               tmp_path / "gone.ugic", tmp_path / "none")  # fmt: skip
    assert status == 1
    assert len(out.splitlines()) == 2
    assert "a.png: not a ugicm stream" in err and "gone.ugic: No such file" in err and "none: no files" in err


def test_info_knows_the_shipped_model(command, tmp_path, make_image):
    try:
        codec = ugicm.load()
    except ugicm.CheckpointError:
        pytest.skip("no model is shipped with this checkout")
    (tmp_path / "x.ugic").write_bytes(codec.compress(make_image()))
    assert command("info", tmp_path / "x.ugic")[1].rstrip().endswith(f"{codec.fingerprint} (shipped)")


# ugicm.arguments itself


@pytest.mark.parametrize("error, status, said", [
    (UsageError("wrong"), 2, "x: error: wrong"),
    (ConfigError("wrong"), 2, "x: error: wrong"),
    (CheckpointError("wrong"), 2, "x: error: wrong"),
    (ImageError("wrong"), 2, "x: error: wrong"),
    (FileNotFoundError(errno.ENOENT, "No such file", "gone"), 2, "x: error: gone: No such file"),
    (ModuleNotFoundError("", name="timm"), 2, "x: error: this needs timm: pip install 'ugicm[train,eval]'"),
    (StreamError("broken"), 1, "x: error: broken"),
    (OSError(errno.ENOSPC, "full"), 1, "x: error: [Errno 28] full"),
    (KeyboardInterrupt(), 130, "x: stopped"),
    (RuntimeError("Error calling __set_name__", KeyboardInterrupt()), 130, "x: stopped"),
])  # fmt: skip
def test_all_commands_end_by_one_rule(error, status, said, capsys, monkeypatch):
    def fail():
        raise error from next((part for part in error.args if isinstance(part, BaseException)), None)

    assert arguments.guarded(fail, "x", "stopped") == status
    assert capsys.readouterr() == ("", f"{said}\n")
    monkeypatch.setenv("RANK", "1")  # what is wrong with the command, one of torchrun's processes says for all
    assert arguments.guarded(fail, "x") == status
    assert bool(capsys.readouterr().err) == (status == 1)


def test_what_a_command_returns_is_its_status_and_a_bug_leaves_its_traceback(capsys):
    assert [arguments.guarded(lambda: 0), arguments.guarded(lambda: 1)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        arguments.guarded(lambda: 1 // 0)
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_leaves_is_no_traceback():
    program = "import sys; from ugicm import arguments; sys.exit(arguments.guarded(lambda: print('x' * 10**6) or 0))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


def test_each_of_torchruns_processes_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(arguments, "check_device", lambda name: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert [arguments.pick_device(name) for name in (None, "auto", "cpu", "cuda")] == ["cuda:0", "cuda:0", "cpu", "cuda"]
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [arguments.pick_device(name) for name in (None, "cuda")] == ["cuda:1", "cuda"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert arguments.pick_device() == "cpu"


# ugicm.commands.batch itself


def test_what_cannot_be_written_can_be_said_by_another_process():
    error = pickle.loads(pickle.dumps(atomic.WriteError(Path("x"), OSError(errno.ENOSPC, "full", "y"))))
    assert (str(error), error.hopeless) == ("y: cannot be written: full", True)


def test_run_reports_what_libraries_raise_on_one_line(tmp_path):
    jobs = [files.Job(tmp_path / name, tmp_path / f"{name}.out") for name in "abcd"]
    reasons = {"a": RuntimeError("CUDA out of memory\nbuy more"), "b": ImageError(f"{tmp_path / 'b'}: broken"),
               "c": MemoryError()}  # fmt: skip
    said = []

    def work(job):
        if job.source.name in reasons:
            raise reasons[job.source.name]
        return batch.Made(1)

    summary = batch.run(jobs, work, lambda job: None, say=said.append)
    assert said == [f"{tmp_path / name}" for name in ("a: CUDA out of memory", "b: broken", "c: MemoryError")]
    assert str(summary) == "\n  ".join(["1 done, 3 failed", *said])
    assert summary.status == 1


def test_a_mistake_in_the_program_is_not_hidden(tmp_path):
    def work(job):
        raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        batch.run([files.Job(tmp_path / "a", tmp_path / "b")], work, lambda job: None)


def test_replacing_keeps_the_old_file_when_the_block_fails(tmp_path):
    target = tmp_path / "results.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic.replacing(target) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert target.read_text() == "old" and tree(tmp_path) == ["results.json"]
    with atomic.replacing(target) as temporary:
        json.dump([1], temporary.open("w"))
    assert tree(tmp_path) == ["results.json"]


@pytest.mark.skipif(os.name != "posix", reason="processes are not asked elsewhere")
def test_only_stale_temporaries_are_removed(tmp_path, monkeypatch):
    def kill(process, number):
        if process != os.getpid():
            raise {1: PermissionError, 2: ProcessLookupError}[process]  # of another user; dead

    monkeypatch.setattr(os, "kill", kill)
    here = atomic._HOST
    names = (f"{here}-{os.getpid()}-3", f"{here}-1-3", f"{here}-2-3", "1-2-1", "1-2-2")
    mine, others, dead, foreign, old = (tmp_path / f".{name}.ugicm-part" for name in names)
    for path in (mine, others, dead, foreign, old):
        path.touch()
    os.utime(old, (0, 0))
    atomic.remove_stale(tmp_path)
    assert {*tmp_path.iterdir()} == {mine, others, foreign}
