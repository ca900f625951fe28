"""The commands on real files: outputs, exit status, and messages."""

import errno
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from image_bytes import gray_png
from PIL import Image
from small_models import small_model

import ugicm
from ugicm import arguments, atomic, bitstream
from ugicm.checkpoints.native import save_model
from ugicm.codec import Codec
from ugicm.commands import main as cli
from ugicm.commands.compress import CompressTask
from ugicm.errors import CheckpointError, ConfigError, ImageError, StreamError, UsageError
from ugicm.extras import how_to_install

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
    """Assert that a command ended with status 2 and one line on stderr that contains ``words``."""
    status, out, err = result
    assert status == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    for word in words:
        assert str(word) in err
    return True


# Processes


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout on this system")
def test_compress_as_process_to_stdout(checkpoint, photos):
    arguments = ["compress", photos / "dogs" / "a.png", "/dev/stdout", "-c", checkpoint, "--verify"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "ugicm", *arguments], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert bitstream.parse(done.stdout).width == 64
    bpp, size = 8 * len(done.stdout) / (64 * 48), (photos / "dogs" / "a.png").stat().st_size
    share = f"{100 * len(done.stdout) / size:.1f} % of the image file"
    assert done.stderr.decode().splitlines()[-1] == f"{len(done.stdout):,} bytes, {bpp:.3f} bpp, {share}"


def test_installed_command_prints_version():
    script = Path(sys.executable).with_name("ugicm")
    if not script.exists():
        pytest.skip("ugicm is not installed beside this Python")
    assert subprocess.check_output([script, "--version"], text=True) == f"ugicm {ugicm.__version__}\n"


@pytest.mark.parametrize("arguments", [["info", "x.ugic"], ["--help"], ["info", "--help"], ["compress", "gone.png"]])
def test_quick_commands_import_no_heavy_libraries(arguments, run_python, tmp_path):
    header = bitstream.Bitstream(640, 480, b"abc", 0.5, 0, (0,), (b"payload",))
    (tmp_path / "x.ugic").write_bytes(header.pack())
    code = (
        "import sys; from ugicm.commands.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'compressai', 'tqdm', 'yaml'} & set(sys.modules)))"
    )
    assert run_python("-c", code, cwd=tmp_path).stdout.splitlines()[-1] == "[]"


def test_info_is_quick(run_python, tmp_path):
    (tmp_path / "x.ugic").write_bytes(bitstream.Bitstream(640, 480, b"abc", 0.5, 0, (0,), (b"payload",)).pack())
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert run_python("-m", "ugicm", "info", tmp_path).returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.75  # 0.1 s on an idle machine; importing PyTorch takes much longer


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_run_is_completed_by_the_next(command, checkpoint, tmp_path, make_image):
    photos, streams = tmp_path / "photos", tmp_path / "streams"
    photos.mkdir()
    for i in range(40):
        make_image(200, 200, i).save(photos / f"{i:02}.png")
    arguments = [sys.executable, "-m", "ugicm", "compress", photos, streams, "-c", checkpoint]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(list(map(str, arguments)), env=environment)
    while process.poll() is None and len(list(streams.glob("*.ugic"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = {path: path.read_bytes() for path in streams.glob("*.ugic")}
    assert len(written) >= 3
    for data in written.values():
        bitstream.parse(data)
    of_other_host = f".1-{process.pid}-0.ugicm-part"
    (streams / of_other_host).write_bytes(b"recent")
    (streams / f".{atomic._HOST}-{process.pid}-7.ugicm-part").write_bytes(b"half of a file")
    status, out, _ = command("compress", photos, streams, "--workers", 1)
    assert status == 0 and f"{40 - len(written)} done, {len(written)} skipped" in out
    assert tree(streams) == [of_other_host, *(f"{i:02}.png.ugic" for i in range(40))]
    assert all(path.read_bytes() == data for path, data in written.items())


# Folders


def test_folder_keeps_its_tree(command, photos, tmp_path):
    streams, images = tmp_path / "streams", tmp_path / "images"
    status, out, err = command("compress", photos, streams, "-q", 0.2)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "3 done; left out: 1 .csv"
    assert tree(streams) == ["cats/c.bmp.ugic", "dogs/a.png.ugic", "dogs/b.jpg.ugic"]
    assert bitstream.parse((streams / "dogs/b.jpg.ugic").read_bytes()).quality == pytest.approx(0.2, abs=1e-5)
    assert command("decompress", streams, images)[0] == 0
    assert tree(images) == ["cats/c.bmp.png", "dogs/a.png.png", "dogs/b.jpg.png"]
    for name, original in (("cats/c.bmp.png", "cats/c.bmp"), ("dogs/b.jpg.png", "dogs/b.jpg")):
        assert Image.open(images / name).size == Image.open(photos / original).size
    assert command("decompress", streams, tmp_path / "webp", "--format", "webp")[0] == 0
    assert tree(tmp_path / "webp") == ["cats/c.bmp.webp", "dogs/a.png.webp", "dogs/b.jpg.webp"]


def test_second_run_continues(command, photos, tmp_path):
    streams = tmp_path / "streams"
    command("compress", photos, streams)
    (streams / "dogs" / "a.png.ugic").unlink()
    before = {name: (streams / name).stat().st_mtime_ns for name in tree(streams)}
    status, out, _ = command("compress", photos, streams)
    assert (status, out.splitlines()[-1]) == (0, "1 done, 2 skipped (up to date); left out: 1 .csv")
    assert all((streams / name).stat().st_mtime_ns == when for name, when in before.items())
    status, out, _ = command("compress", photos, streams, "--overwrite")
    assert (status, out.splitlines()[-1]) == (0, "3 done; left out: 1 .csv")
    images = tmp_path / "images"
    command("decompress", streams, images)
    assert command("decompress", streams, images)[1] == "0 done, 3 skipped (up to date)\n"


def test_interrupted_run_prints_summary(command, photos, tmp_path, monkeypatch):
    compress, calls = Codec.compress, []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compress(self, *arguments, **options)

    monkeypatch.setattr(Codec, "compress", interrupted)
    status, out, _ = command("compress", photos, tmp_path / "streams", "--workers", 1)
    assert status == 130
    assert out.splitlines()[-1] == "stopped: 1 done, 2 remaining; left out: 1 .csv: interrupted"
    assert "\n2 done, 1 skipped (up to date); left" in command("compress", photos, tmp_path / "streams")[1]
    assert len(tree(tmp_path / "streams")) == 3


def test_corrupt_files_do_not_stop_a_folder(command, photos, tmp_path):
    broken = photos / "dogs" / "broken.png"
    broken.write_bytes((photos / "dogs" / "a.png").read_bytes()[:300])
    status, out, err = command("compress", photos, tmp_path / "streams")
    assert status == 1
    assert out.splitlines()[-1] == "3 done, 1 failed; left out: 1 .csv"
    assert err.startswith(f"ugicm: {broken}: corrupt or unsupported image: ") and len(err.splitlines()) == 1
    assert len(tree(tmp_path / "streams")) == 3
    (tmp_path / "streams" / "dogs" / "a.png.ugic").write_bytes(b"UGI")
    (tmp_path / "streams" / "dogs" / "b.jpg.ugic").write_bytes(b"")
    status, out, err = command("decompress", tmp_path / "streams", tmp_path / "images")
    assert (status, out) == (1, "1 done, 2 failed\n")
    assert "a.png.ugic: truncated bitstream" in err and "b.jpg.ugic: not a ugicm bitstream: it is empty" in err


def kept(result, count, reason):
    """Assert that a command kept ``count`` existing outputs and said so once, with the reason and the remedy."""
    status, out, err = result
    found = "1 existing output is" if count == 1 else f"{count} existing outputs are"
    assert status == 1 and f"{count} not replaced" in out
    assert err.count(f"ugicm: {found} {reason}; use --overwrite to replace what exists: ") == 1


def test_existing_outputs_must_match_the_command(command, photos, tmp_path, other_checkpoint, checkpoint):
    streams, images = tmp_path / "streams", tmp_path / "images"
    command("compress", photos, streams)
    kept(command("compress", photos, streams, "-q", 0.9), 3, "of quality 0.5")
    model = ugicm.load(checkpoint).fingerprint
    kept(command("compress", photos, streams, model=other_checkpoint), 3, f"from another model ({model})")
    data = (streams / "dogs" / "a.png.ugic").read_bytes()
    (streams / "dogs" / "a.png.ugic").write_bytes(data[:-5])
    kept(command("compress", photos, streams), 1, "incomplete")
    (streams / "dogs" / "a.png.ugic").write_bytes(data)
    command("decompress", streams, images)
    Image.new("RGB", (5, 5)).save(images / "dogs" / "a.png.png")
    (images / "dogs" / "b.jpg.png").write_bytes(b"")
    result = command("decompress", streams, images)
    assert result[:2] == (1, "0 done, 1 skipped (up to date), 2 not replaced\n")
    assert "of another size (5x5)" in result[2] and "is incomplete" in result[2]


def test_compress_reports_bitstreams_of_changed_images(command, photos, tmp_path):
    command("compress", photos, tmp_path / "streams")
    Image.new("RGB", (30, 10)).save(photos / "dogs" / "a.png")
    Image.new("RGB", (33, 70)).save(photos / "dogs" / "b.jpg")
    later = (tmp_path / "streams" / "dogs" / "b.jpg.ugic").stat().st_mtime_ns + 1
    os.utime(photos / "dogs" / "b.jpg", ns=(later, later))
    status, out, err = command("compress", photos, tmp_path / "streams")
    assert status == 1 and "1 skipped" in out
    assert "1 existing output is of images of another size; use --overwrite" in err
    assert "1 existing output is older than their images, which may have changed; use --overwrite" in err


def test_compress_names_orphans(command, photos, tmp_path):
    """Bitstreams of images that are gone, or named otherwise by other programs, are said."""
    command("compress", photos, tmp_path / "streams")
    (photos / "dogs" / "a.png").unlink()
    status, _, err = command("compress", photos, tmp_path / "streams")
    orphan = tmp_path / "streams" / "dogs" / "a.png.ugic"
    assert (status, err) == (0, f"ugicm: warning: 1 in the output folder without an input: {orphan}\n")


def test_images_of_one_stem_remain_apart(command, tmp_path, make_image):
    photos, streams, images = tmp_path / "photos", tmp_path / "streams", tmp_path / "images"
    photos.mkdir()
    make_image(seed=1).save(photos / "a.png")
    command("compress", photos, streams)
    make_image(30, 50, seed=2).save(photos / "a.bmp")
    command("compress", photos, streams)
    command("decompress", streams, images)
    assert {name: Image.open(images / name).size for name in tree(images)} == {
        "a.png.png": (40, 30), "a.bmp.png": (30, 50),
    }  # fmt: skip


def test_images_left_out_and_further_frames_fail(command, photos, tmp_path):
    (photos / "IMG_1.DNG").write_bytes(b"raw")
    frames = [Image.new("RGB", (16, 16), (level, 0, 0)) for level in (20, 220)]
    frames[0].save(photos / "moving.gif", save_all=True, append_images=frames[1:])
    status, out, err = command("compress", photos, tmp_path / "streams")
    assert status == 1 and "ugicm: warning: only the first of 2 pages or frames is read\n" in err
    assert out.splitlines()[-1].startswith("4 done, 1 without further pages or frames")
    assert out.splitlines()[-1].endswith("; left out: 1 .dng, 1 .csv") or out.endswith("left out: 1 .csv, 1 .dng\n")


def test_compress_skips_any_quality_of_one_rate_models(command, photos, tmp_path):
    save_model(tmp_path / "one.safetensors", small_model("bmshj2018"))
    run = ("compress", photos, tmp_path / "streams", "-q", "0.9")
    assert command(*run, model=tmp_path / "one.safetensors")[0] == 0
    assert "3 skipped (up to date)" in command(*run, model=tmp_path / "one.safetensors")[1]


def test_decompress_reports_outputs_of_other_bitstreams_and_preferences(command, photos, tmp_path):
    streams, images = tmp_path / "streams", tmp_path / "images"
    command("compress", photos, streams)
    command("decompress", streams, images, "-p", "human")
    before = (images / "dogs" / "a.png.png").read_bytes()
    assert command("decompress", streams, images, "-p", "0")[0] == 0
    kept(command("decompress", streams, images, "-p", "machine"), 3, "for another preference or region (human)")
    assert (images / "dogs" / "a.png.png").read_bytes() == before
    command("compress", photos, streams, "-q", "0.9", "--overwrite")
    kept(command("decompress", streams, images), 3, "of other bitstreams")
    Image.new("RGB", Image.open(photos / "dogs" / "a.png").size).save(images / "dogs" / "a.png.png")
    assert "1 existing output is from another program" in command("decompress", streams, images)[2]
    assert command("decompress", streams, images, "--overwrite")[0] == 0


def test_decompress_reports_outputs_of_other_maps(command, photos, tmp_path):
    command("compress", photos / "dogs" / "a.png", tmp_path / "streams" / "a.ugic")
    for level in (0, 255):
        Image.new("L", (64, 48), level).save(tmp_path / f"{level}.png")
    run = ("decompress", tmp_path / "streams", tmp_path / "images", "-p")
    assert [command(*run, tmp_path / "0.png")[0] for _ in range(2)] == [0, 0]
    status, _, err = command(*run, tmp_path / "255.png")
    assert status == 1 and "is for another preference or region (map " in err


def test_decompress_reports_outputs_without_description(command, photos, tmp_path):
    command("compress", photos, tmp_path / "streams")
    run = ("decompress", tmp_path / "streams", tmp_path / "images", "--format", "ppm")
    assert command(*run)[0] == 0
    (tmp_path / "images" / "dogs" / "a.png.ppm").unlink()
    result = command(*run, "-p", "machine")
    kept(result, 2, ".ppm files, which do not record bitstream and preference")
    assert result[1] == "1 done, 2 not replaced\n"


def test_folder_without_stderr(command, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert command("compress", photos, tmp_path / "streams", "--workers", 1)[0] == 0
    assert len(tree(tmp_path / "streams")) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_info_leaves_out_pipes(command, stream_data, tmp_path):
    (tmp_path / "x.ugic").write_bytes(stream_data)
    os.mkfifo(tmp_path / "pipe.ugic")
    assert command("info", tmp_path)[0] == 0


def test_outputs_do_not_depend_on_workers(command, tmp_path, make_image):
    """With the shipped model, whose images differ in the last digit between one and two threads."""
    (tmp_path / "photos").mkdir()
    for i in range(3):
        make_image(320, 256, i).save(tmp_path / "photos" / f"{i}.png")
    command("compress", tmp_path / "photos", tmp_path / "streams", model=None)
    (tmp_path / "streams" / "broken.ugic").write_bytes(b"UGI")
    threads = torch.get_num_threads()
    try:
        for workers in (1, 2):
            torch.set_num_threads(2)
            run = ("decompress", tmp_path / "streams", tmp_path / str(workers), "-p", 0.5, "--workers", workers)
            status, out, err = command(*run, model=None)
            assert status == 1 and "3 done, 1 failed" in out and "broken.ugic: truncated bitstream" in err
    finally:
        torch.set_num_threads(threads)
    one, two = tmp_path / "1", tmp_path / "2"
    assert tree(one) == tree(two) == ["0.png.png", "1.png.png", "2.png.png"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in tree(one))


def test_compress_task_can_be_pickled():
    options = {"quality": 0.5, "target": None, "effort": 0, "effort_for": "human", "flatten": None, "strip": True}
    options["quality_map"] = None
    task = CompressTask(checkpoint=None, max_pixels=None, verify=False, progress=False, **options)
    assert pickle.loads(pickle.dumps(task)) == task


# Files that cannot be written


def test_full_disk_stops_the_run(command, photos, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    status, out, err = command("compress", photos, tmp_path / "streams", "--workers", 1)
    assert status == 1
    target = tmp_path / "streams" / "cats" / "c.bmp.ugic"
    assert err == f"ugicm: {photos / 'cats' / 'c.bmp'}: {target}: cannot be written: No space left on device\n"
    assert out.startswith("stopped: 0 done, 2 remaining, 1 failed")
    assert tree(tmp_path / "streams") == []


def test_output_folder_below_a_file(command, photos, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "streams", tmp_path / "file" / "deep" / "streams"):
        status, out, err = command("compress", photos, output)
        assert (status, out) == (1, "")
        assert err.startswith(f"ugicm: error: {output}")
        assert err.endswith(": cannot be written: not a folder\n")
        assert len(err.splitlines()) == 1


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_output_folder_without_permission(command, photos, tmp_path):
    (tmp_path / "sealed").mkdir(mode=0o500)
    status, out, err = command("compress", photos, tmp_path / "sealed")
    assert (status, out) == (1, "")
    assert err.startswith(f"ugicm: error: {tmp_path / 'sealed'}")
    assert err.endswith(": cannot be written: Permission denied\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_devices_are_written_into(command, photos):
    status, _, err = command("compress", photos / "dogs" / "a.png", "/dev/full")
    assert status == 1
    assert "/dev/full: cannot be written: No space left on device" in err
    status, out, err = command("compress", photos / "dogs" / "a.png", "/dev/null")
    assert (status, out) == (0, "") and "bpp" in err  # the target could be standard output
    assert not Path("/dev/null").is_file() and not Path("/dev/full").is_file()


# Single files


def test_default_names(command, photos, monkeypatch):
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


def test_compress_effort(command, photos, tmp_path, checkpoint):
    image = photos / "dogs" / "a.png"
    assert command("compress", image, tmp_path / "a.ugic", "--effort", 3)[0] == 0
    assert (tmp_path / "a.ugic").read_bytes() == ugicm.load(checkpoint).compress(image, effort=3)
    assert command("decompress", tmp_path / "a.ugic", tmp_path / "a.png")[0] == 0
    assert usage_error(command("compress", image, "-e", "-1"), "--effort", "0 or more")
    run = ("compress", image, tmp_path / "a.ugic", "--effort", 3, "--effort-for", "machine", "--overwrite")
    assert command(*run)[0] == 0
    wanted = ugicm.load(checkpoint).compress(image, effort=3, effort_for="machine")
    assert (tmp_path / "a.ugic").read_bytes() == wanted


def test_compress_to_a_target(command, photos, tmp_path):
    image = photos / "dogs" / "b.jpg"
    size = len(ugicm.load().compress(image, 0.6))
    for option, value in (("--target-size", size), ("--target-size", f"{size / 1000}k"), ("--target-bpp", 3)):
        status, out, _ = command("compress", image, tmp_path / "b.ugic", option, value, "--overwrite", model=None)
        assert status == 0 and ", quality 0." in out or ", quality 1.000" in out
    status, out, _ = command("compress", image, tmp_path / "b.ugic", "--target-psnr", 20, "--overwrite", model=None)
    assert status == 0 and " dB\n" in out
    status, _, err = command("compress", image, tmp_path / "c.ugic", "--target-size", 5, model=None)
    assert status == 1 and "b.jpg: quality 0 takes " in err and not (tmp_path / "c.ugic").exists()
    for value in ("0", "-1", "10q", "inf"):
        assert usage_error(command("compress", image, f"--target-size={value}"), "a number above 0")
    assert usage_error(command("compress", image, "--target-size", 900, "-q", 0.3), "not allowed with")


def test_compress_stores_what_is_no_photograph(command, tmp_path):
    Image.new("RGB", (300, 200), "white").save(tmp_path / "x.png")
    status, out, _ = command("compress", tmp_path / "x.png", "--verify")
    assert status == 0 and ", stored without loss" in out
    assert "stored without loss" in command("info", tmp_path / "x.ugic")[1]
    assert command("compress", tmp_path, tmp_path / "out")[0] == 0
    assert "1 skipped" in command("compress", tmp_path, tmp_path / "out", "-q", 0.9)[1]


def test_compress_warns_of_larger_files(command, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.jpg", quality=1)
    status, out, err = command("compress", tmp_path / "x.jpg", "-q", 1, model=None)
    assert status == 0 and err == "ugicm: warning: the bitstream is larger than the image file\n"


def test_compress_verify_decodes_before_writing(command, photos, tmp_path, monkeypatch):
    def fail(self, stream, view=None):
        raise StreamError("corrupt bitstream: tested")

    monkeypatch.setattr(Codec, "entropy_decode", fail)
    image, target = photos / "dogs" / "a.png", tmp_path / "a.ugic"
    status, _, err = command("compress", image, target, "--verify")
    assert status == 1 and "corrupt bitstream: tested" in err and not target.exists()
    assert command("compress", image, target)[0] == 0


def test_decompress_preferences(command, photos, tmp_path, checkpoint):
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
    (tmp_path / "notes.txt").write_text("half")
    assert usage_error(decode("b.png", tmp_path / "notes.txt"), "notes.txt: not an image")
    assert not (tmp_path / "b.png").exists()


def test_decompress_does_not_replace_the_preference_map(command, stream_data, tmp_path, make_image):
    source, gray = tmp_path / "x.ugic", tmp_path / "map.png"
    source.write_bytes(stream_data)
    make_image().save(gray)
    before = gray.read_bytes()
    usage_error(command("decompress", source, gray, "-p", gray, "--overwrite"), "would replace the preference map")
    assert gray.read_bytes() == before


def test_existing_files_are_kept_without_overwrite(command, photos):
    image, other = photos / "dogs" / "a.png", photos / "dogs" / "a.ugic"
    other.write_text("precious")
    assert usage_error(command("compress", image), other, "--overwrite")
    assert other.read_text() == "precious"
    assert command("compress", image, "--overwrite")[0] == 0
    original = image.read_bytes()
    assert usage_error(command("decompress", other), image, "--overwrite")
    assert image.read_bytes() == original


def test_dangling_links_are_kept_without_overwrite(command, photos, tmp_path):
    target = tmp_path / "a.ugic"
    target.symlink_to(tmp_path / "absent")
    assert usage_error(command("compress", photos / "dogs" / "a.png", target), "--overwrite")
    assert target.is_symlink()


def test_corrupt_single_image(command, tmp_path):
    (tmp_path / "x.png").write_text("no image")
    status, out, err = command("compress", tmp_path / "x.png")
    assert (status, out) == (1, "")
    assert err == f"ugicm: {tmp_path / 'x.png'}: not an image that Pillow can read\n"
    assert tree(tmp_path) == ["x.png"]


def test_warnings_are_one_line(command, tmp_path):
    (tmp_path / "x.png").write_bytes(gray_png(before=[(b"gAMA", struct.pack(">I", 100000))]))
    status, _, err = command("compress", tmp_path / "x.png")
    assert (status, err) == (0, "ugicm: warning: colors of other color spaces are converted to sRGB\n")


def test_compress_keeps_strips_and_flattens(command, tmp_path, make_image):
    image, exif = make_image().convert("RGBA"), Image.Exif()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif[0x010F], exif[0x0112] = "a camera", 6
    image.save(tmp_path / "x.png", exif=exif)
    run = ("compress", tmp_path / "x.png", tmp_path / "x.ugic", "--overwrite")
    assert command(*run)[0] == command("decompress", tmp_path / "x.ugic", tmp_path / "y.png")[0] == 0
    with Image.open(tmp_path / "y.png") as back:
        assert (back.mode, back.size, dict(back.getexif())[0x010F]) == ("RGBA", image.size[::-1], "a camera")
        assert back.getexif()[0x0112] == 1
        assert back.getchannel("A").tobytes() == image.getchannel("A").transpose(Image.Transpose.ROTATE_270).tobytes()
    command(*run, "--strip")
    assert set(bitstream.parse(tmp_path / "x.ugic").boxes) == {"alpha"}
    command(*run, "--strip", "--flatten", "#204060")
    assert bitstream.parse(tmp_path / "x.ugic").version == 4
    assert usage_error(command(*run, "--flatten", "nocolor"), "#RRGGBB")


# Standard input and output, several files


def test_standard_input_and_output(checkpoint, photos, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    image = (photos / "dogs" / "a.png").read_bytes()

    def run(*arguments, data):
        command = [sys.executable, "-m", "ugicm", *arguments, "-c", checkpoint]
        done = subprocess.run(command, input=data, capture_output=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    done = run("compress", "-", data=image)
    assert done.stdout == ugicm.load(checkpoint).compress(image) and b"- -> -" in done.stderr
    shown = run("decompress", "-", "-", "--format", "webp", data=done.stdout)
    with Image.open(io.BytesIO(shown.stdout)) as decoded:
        assert (decoded.format, decoded.size) == ("WEBP", (64, 48))
    assert run("compress", photos / "dogs" / "a.png", "-", data=b"").stdout == done.stdout
    assert not (tmp_path / "-").exists()


def test_several_files(command, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    status, out, _ = command("compress", "dogs/a.png", "cats/c.bmp")
    assert status == 0 and out.splitlines()[-1] == "2 done"
    assert command("decompress", "dogs/a.ugic", "cats/c.ugic", "-o", tmp_path / "images")[0] == 0
    assert tree(tmp_path / "images") == ["a.png", "c.png"]
    assert usage_error(command("decompress", "dogs/a.ugic", "cats/c.ugic", "-"), "stands for one file")


def test_decompress_several_preferences_and_a_region(command, photos, tmp_path, checkpoint):
    command("compress", photos / "dogs" / "a.png", tmp_path / "a.ugic")
    run = ("decompress", tmp_path / "a.ugic", tmp_path / "out" / "a.png", "--region", "8,4,20,10")
    status, out, _ = command(*run, "-p", "human", "machine", "0.5")
    assert status == 0
    assert tree(tmp_path / "out") == ["a.0.5.png", "a.human.png", "a.machine.png"]
    wanted = ugicm.load(checkpoint).decompress(tmp_path / "a.ugic", "machine", (8, 4, 20, 10))
    assert Image.open(tmp_path / "out" / "a.machine.png").tobytes() == wanted.tobytes()
    assert usage_error(command(*run, "-p", "human,machine"), "a.human.png exists")
    assert usage_error(command("decompress", tmp_path / "a.ugic", "-", "-p", "human,machine"), "several output files")
    assert usage_error(command("decompress", tmp_path / "a.ugic", "-p", "0,human"), "the same name")
    assert usage_error(command("decompress", tmp_path / "a.ugic", "--region", "1,2,3"), "X,Y,WIDTH,HEIGHT")
    status, _, err = command("decompress", tmp_path / "a.ugic", tmp_path / "b.png", "--region", "60,0,20,10")
    assert status == 1 and "is not inside the image of 64x48" in err
    folder = ("decompress", tmp_path, tmp_path / "images", "-p", "human", "machine")
    assert command(*folder)[1] == "1 done\n" and command(*folder)[1] == "0 done, 1 skipped (up to date)\n"
    (tmp_path / "images" / "a.human.png").unlink()
    assert command(*folder)[1] == "1 done\n"
    assert command(*folder, "--region", "0,0,64,48")[0] == 1


# Invalid command lines


@pytest.mark.parametrize("arguments", [("", "out"), ("photos", "")])
def test_empty_name_is_a_usage_error(command, photos, arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    usage_error(command("compress", *arguments), "an empty name")


@pytest.mark.parametrize("options", [("--device", "bogus"), ("-c", "nope.safetensors")])
def test_invalid_options_leave_no_output_folder(command, photos, options, tmp_path):
    status, _, err = command("compress", photos, tmp_path / "streams", *options, model=None)
    assert status == 2 and options[1] in err and not (tmp_path / "streams").exists()
    usage_error(command("compress", photos, tmp_path / "streams", "-c", tmp_path, model=None), "is a folder")


def test_output_equal_to_input_is_a_usage_error(command, photos, tmp_path):
    image = photos / "dogs" / "a.png"
    os.link(image, tmp_path / "link.ugic")
    for output in (image, photos / "cats" / ".." / "dogs" / "a.png", tmp_path / "link.ugic"):
        assert usage_error(command("compress", image, "-o", output, "--overwrite"), "replace the input")
    assert usage_error(command("compress", photos, photos / "."), "is the input folder")
    assert usage_error(command("decompress", photos, photos, "--overwrite"), "is the input folder")


def test_usage_errors_are_one_line(command, photos, tmp_path):
    image = photos / "dogs" / "a.png"
    for quality in ("7", "-0.1", "nan", "high"):
        assert usage_error(command("compress", image, f"--quality={quality}"), quality, "from 0 to 1")
    for count in ("0", "-1", "two", "1.5"):
        assert usage_error(command("compress", photos, tmp_path / "out", f"--workers={count}"), count, "1 or more")
    assert usage_error(command("compress", tmp_path / "gone.png"), "gone.png: no such file or folder")
    assert usage_error(command("compress", photos), "name an output folder")
    assert usage_error(command("compress", photos, "-o", image), "is a file")
    (tmp_path / "empty").mkdir()
    assert usage_error(command("compress", tmp_path / "empty", tmp_path / "out"), "empty", ".png")
    for name in ("x.png", "x.jxl", "x.bin"):
        assert usage_error(command("compress", image, tmp_path / name), name, ".ugic")
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
    assert usage_error(command("compres", image), "did you mean compress?")
    assert usage_error(command("compress", image, "--qualty", "0.3"), "did you mean --quality?")
    assert tree(photos) == ["cats/c.bmp", "dogs/a.png", "dogs/b.jpg", "labels.csv"]


def test_invalid_checkpoints(command, photos, tmp_path, other_checkpoint):
    image = photos / "dogs" / "a.png"
    absent = tmp_path / "gone.safetensors"
    assert usage_error(command("compress", image, model=absent), absent, "no such file")
    (tmp_path / "bad.safetensors").write_bytes(b"\x10" + bytes(40))
    assert usage_error(command("compress", image, model=tmp_path / "bad.safetensors"), "bad.safetensors")
    (tmp_path / "bad.pth.tar").write_bytes(b"\x80\x04N.")
    assert usage_error(command("compress", image, model=tmp_path / "bad.pth.tar"), "bad.pth.tar")
    command("compress", image)
    status, _, err = command("decompress", image.with_suffix(".ugic"), tmp_path / "x.png", model=other_checkpoint)
    assert status == 1
    assert "another model" in err and "a.ugic" in err
    assert not (tmp_path / "x.png").exists()


# ugicm info


def test_info(command, photos, tmp_path, checkpoint):
    command("compress", photos, tmp_path / "streams", "-q", 0.25)
    status, out, err = command("info", tmp_path / "streams")
    assert (status, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["file", "size", "quality", "bytes", "bpp", "version", "model"]
    data = (tmp_path / "streams" / "dogs" / "a.png.ugic").read_bytes()
    fingerprint = ugicm.load(checkpoint).fingerprint
    name, bpp = tmp_path / "streams" / "dogs" / "a.png.ugic", 8 * len(data) / (64 * 48)
    version = str(bitstream.VERSION)
    assert rows[1].split() == [str(name), "64x48", "0.25", f"{len(data):,}", f"{bpp:.3f}", version, fingerprint,
                               "(not", "shipped)"]  # fmt: skip
    (tmp_path / "none").mkdir()
    status, out, err = command("info", tmp_path / "streams" / "cats" / "c.bmp.ugic", photos / "dogs" / "a.png",
                               tmp_path / "gone.ugic", tmp_path / "none")  # fmt: skip
    assert status == 1
    assert len(out.splitlines()) == 2
    assert "a.png: not a ugicm bitstream" in err and "gone.ugic: No such file" in err and "none: no files" in err


def test_info_as_json(command, photos, tmp_path, checkpoint):
    command("compress", photos / "dogs" / "a.png", tmp_path / "a.ugic", "-q", 0.25)
    status, out, _ = command("info", tmp_path / "a.ugic", "--json")
    (found,) = json.loads(out)
    data = (tmp_path / "a.ugic").read_bytes()
    assert status == 0 and found == {"file": str(tmp_path / "a.ugic"), **ugicm.info(data), "shipped": False}
    assert (found["width"], found["height"], found["bytes"]) == (64, 48, len(data))
    assert command("info", tmp_path / "gone.ugic", "--json")[:2] == (1, "[]\n")


def test_info_marks_the_shipped_model(command, tmp_path, make_image):
    codec = ugicm.load()
    (tmp_path / "x.ugic").write_bytes(codec.compress(make_image()))
    assert command("info", tmp_path / "x.ugic")[1].rstrip().endswith(f"{codec.fingerprint} (shipped)")


# ugicm.arguments


def test_parse_preference(tmp_path):
    (tmp_path / "map.png").touch()
    for text, value in (("human", 0.0), ("machine", 1.0), ("0.25", 0.25)):
        assert arguments.parse_preference(text) == arguments.parse_preference_or_map(text) == value
    assert arguments.parse_preference_or_map(str(tmp_path / "map.png")) == tmp_path / "map.png"
    for text in ("robot", "1.5", "nan", "", str(tmp_path)):
        for parse in (arguments.parse_preference, arguments.parse_preference_or_map):
            with pytest.raises(arguments.argparse.ArgumentTypeError, match="expected human, machine"):
                parse(text)


@pytest.mark.parametrize("error, status, message", [
    (UsageError("wrong"), 2, "x: error: wrong"),
    (ConfigError("wrong"), 2, "x: error: wrong"),
    (CheckpointError("wrong"), 2, "x: error: wrong"),
    (ImageError("wrong"), 2, "x: error: wrong"),
    (FileNotFoundError(errno.ENOENT, "No such file", "gone"), 2, "x: error: gone: No such file"),
    (ModuleNotFoundError("", name="timm"), 2, f"x: error: this needs timm: {how_to_install('dev')}"),
    (StreamError("broken"), 1, "x: error: broken"),
    (OSError(errno.ENOSPC, "full"), 1, "x: error: [Errno 28] full"),
    (KeyboardInterrupt(), 130, "x: stopped"),
])  # fmt: skip
def test_run_command_exit_status(error, status, message, capsys, monkeypatch):
    def fail():
        raise error

    assert arguments.run_command(fail, "x", "stopped") == status
    assert capsys.readouterr() == ("", f"{message}\n")
    monkeypatch.setenv("RANK", "1")  # under torchrun only the first process prints errors of the command line
    assert arguments.run_command(fail, "x") == status
    assert bool(capsys.readouterr().err) == (status == 1)


def test_run_command_returns_status_and_propagates_bugs(capsys):
    assert [arguments.run_command(lambda: 0), arguments.run_command(lambda: 1)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        arguments.run_command(lambda: 1 // 0)
    assert capsys.readouterr() == ("", "")


def test_run_command_survives_closed_stdout():
    program = "from ugicm.arguments import run_command; raise SystemExit(run_command(lambda: print('x' * 10**6) or 0))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


def test_pick_device_under_torchrun(monkeypatch):
    monkeypatch.setattr(arguments, "check_device", lambda name: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert [arguments.pick_device(n) for n in (None, "auto", "cpu", "cuda")] == ["cuda:0", "cuda:0", "cpu", "cuda"]
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [arguments.pick_device(name) for name in (None, "cuda")] == ["cuda:1", "cuda"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert arguments.pick_device() == "cpu"
