"""The commands on real files: outputs, exit status, and messages."""

import errno
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
from ugicm import arguments, atomic, bitstream
from ugicm.checkpoints.native import save_model
from ugicm.codec import Codec
from ugicm.commands import main as cli
from ugicm.commands.compress import CompressTask
from ugicm.errors import CheckpointError, ConfigError, ImageError, StreamError, UsageError

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
    bpp = 8 * len(done.stdout) / (64 * 48)
    assert done.stderr.decode().splitlines()[-1] == f"{len(done.stdout):,} bytes, {bpp:.3f} bpp"


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
    assert tree(streams) == [of_other_host, *(f"{i:02}.ugic" for i in range(40))]
    assert all(path.read_bytes() == data for path, data in written.items())


# Folders


def test_folder_keeps_its_tree(command, photos, tmp_path):
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


def test_second_run_continues(command, photos, tmp_path):
    streams = tmp_path / "streams"
    command("compress", photos, streams)
    (streams / "dogs" / "a.ugic").unlink()
    before = {name: (streams / name).stat().st_mtime_ns for name in tree(streams)}
    status, out, _ = command("compress", photos, streams)
    assert (status, out.splitlines()[-1]) == (0, "1 done, 2 skipped (up to date)")
    assert all((streams / name).stat().st_mtime_ns == when for name, when in before.items())
    status, out, _ = command("compress", photos, streams, "--overwrite")
    assert (status, out.splitlines()[-1]) == (0, "3 done")
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
    assert out.splitlines()[-1] == "stopped: 1 done, 2 remaining: interrupted"
    assert command("compress", photos, tmp_path / "streams")[1].endswith("2 done, 1 skipped (up to date)\n")
    assert len(tree(tmp_path / "streams")) == 3


def test_corrupt_files_do_not_stop_a_folder(command, photos, tmp_path):
    broken = photos / "dogs" / "broken.png"
    broken.write_bytes((photos / "dogs" / "a.png").read_bytes()[:300])
    status, out, err = command("compress", photos, tmp_path / "streams")
    assert status == 1
    assert out.splitlines()[-1].startswith(f"3 done, 1 failed: {broken}: corrupt image: ")
    assert err.startswith(f"ugicm: {broken}: corrupt image: ")
    assert len(tree(tmp_path / "streams")) == 3
    (tmp_path / "streams" / "dogs" / "a.ugic").write_bytes(b"UGI")
    (tmp_path / "streams" / "dogs" / "b.ugic").write_bytes(b"")
    status, out, _ = command("decompress", tmp_path / "streams", tmp_path / "images")
    assert status == 1
    assert out.splitlines()[0] == "1 done, 2 failed"
    assert "a.ugic: truncated bitstream" in out and "b.ugic: not a ugicm bitstream: it is empty" in out


def test_existing_outputs_must_match_the_command(command, photos, tmp_path, other_checkpoint):
    streams, images = tmp_path / "streams", tmp_path / "images"
    command("compress", photos, streams)
    status, out, _ = command("compress", photos, streams, "-q", 0.9)
    assert status == 1 and out.count("exists, but has quality 0.5; use --overwrite to replace it") == 3
    status, out, _ = command("compress", photos, streams, model=other_checkpoint)
    assert status == 1 and out.count("exists, but was written by another model") == 3
    data = (streams / "dogs" / "a.ugic").read_bytes()
    (streams / "dogs" / "a.ugic").write_bytes(data[:-5])
    status, out, _ = command("compress", photos, streams)
    assert status == 1 and "2 skipped" in out and "is not a complete bitstream (corrupt bitstream" in out
    (streams / "dogs" / "a.ugic").write_bytes(data)
    command("decompress", streams, images)
    Image.new("RGB", (5, 5)).save(images / "dogs" / "a.png")
    (images / "dogs" / "b.png").write_bytes(b"")
    status, out, _ = command("decompress", streams, images)
    assert status == 1 and "1 skipped" in out
    assert "has another size (5x5)" in out and "is not a complete image" in out


def test_compress_reports_bitstreams_of_changed_images(command, photos, tmp_path):
    command("compress", photos, tmp_path / "streams")
    Image.new("RGB", (30, 10)).save(photos / "dogs" / "a.png")
    Image.new("RGB", (33, 70)).save(photos / "dogs" / "b.jpg")
    later = (tmp_path / "streams" / "dogs" / "b.ugic").stat().st_mtime_ns + 1
    os.utime(photos / "dogs" / "b.jpg", ns=(later, later))
    status, out, err = command("compress", photos, tmp_path / "streams")
    assert status == 1 and "1 skipped" in out
    assert "a.ugic exists, but is of another image (64x48); use --overwrite to replace it" in err
    assert "b.ugic exists, but is older than the image, which may have changed; use --overwrite" in err


def test_compress_skips_any_quality_of_one_rate_models(command, photos, tmp_path):
    save_model(tmp_path / "one.safetensors", small_model("bmshj2018"))
    run = ("compress", photos, tmp_path / "streams", "-q", "0.9")
    assert command(*run, model=tmp_path / "one.safetensors")[0] == 0
    assert "3 skipped (up to date)" in command(*run, model=tmp_path / "one.safetensors")[1]


def test_decompress_reports_outputs_of_other_bitstreams_and_preferences(command, photos, tmp_path):
    streams, images = tmp_path / "streams", tmp_path / "images"
    command("compress", photos, streams)
    command("decompress", streams, images, "-p", "human")
    before = (images / "dogs" / "a.png").read_bytes()
    assert command("decompress", streams, images, "-p", "0")[0] == 0
    status, out, err = command("decompress", streams, images, "-p", "machine")
    assert status == 1 and "3 failed" in out
    assert err.count("was made from another bitstream or for another preference (ugicm ") == 3
    assert (images / "dogs" / "a.png").read_bytes() == before
    command("compress", photos, streams, "-q", "0.9", "--overwrite")
    assert "3 failed" in command("decompress", streams, images)[1]
    Image.new("RGB", Image.open(photos / "dogs" / "a.png").size).save(images / "dogs" / "a.png")
    assert "(not recorded)" in command("decompress", streams, images)[2]
    assert command("decompress", streams, images, "--overwrite")[0] == 0


def test_decompress_reports_outputs_of_other_maps(command, photos, tmp_path):
    command("compress", photos / "dogs" / "a.png", tmp_path / "streams" / "a.ugic")
    for level in (0, 255):
        Image.new("L", (64, 48), level).save(tmp_path / f"{level}.png")
    run = ("decompress", tmp_path / "streams", tmp_path / "images", "-p")
    assert [command(*run, tmp_path / "0.png")[0] for _ in range(2)] == [0, 0]
    status, _, err = command(*run, tmp_path / "255.png")
    assert status == 1 and "for another preference (ugicm " in err and " map " in err


def test_decompress_reports_outputs_without_description(command, photos, tmp_path):
    command("compress", photos, tmp_path / "streams")
    run = ("decompress", tmp_path / "streams", tmp_path / "images", "--format", "ppm")
    assert command(*run)[0] == 0
    (tmp_path / "images" / "dogs" / "a.ppm").unlink()
    status, out, err = command(*run, "-p", "machine")
    assert status == 1 and "1 done, 2 failed" in out
    assert "b.ppm exists, but .ppm files do not record their bitstream and preference; use --over" in err


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
            assert status == 1 and "3 done, 1 failed: " in out and "broken.ugic: truncated bitstream" in err
    finally:
        torch.set_num_threads(threads)
    one, two = tmp_path / "1", tmp_path / "2"
    assert tree(one) == tree(two) == ["0.png", "1.png", "2.png"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in tree(one))


def test_compress_task_can_be_pickled():
    task = CompressTask(checkpoint=None, max_pixels=None, quality=0.5, effort=0, verify=False, progress=False)
    assert pickle.loads(pickle.dumps(task)) == task


# Files that cannot be written


def test_full_disk_stops_the_run(command, photos, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    status, out, err = command("compress", photos, tmp_path / "streams", "--workers", 1)
    assert status == 1
    target = tmp_path / "streams" / "cats" / "c.ugic"
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
    assert usage_error(decode("b.png", tmp_path / "a.ugic"), "a.ugic: not an image")
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
    Image.new("RGBA", (4, 4)).save(tmp_path / "x.png")
    status, _, err = command("compress", tmp_path / "x.png")
    assert (status, err) == (0, "ugicm: warning: transparent images are composited on white\n")


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
        assert usage_error(command("compress", image, output, "--overwrite"), "replace the input")
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
    assert "a.png: not a ugicm bitstream" in err and "gone.ugic: No such file" in err and "none: no files" in err


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
    (ModuleNotFoundError("", name="timm"), 2, 'x: error: this needs timm: pip install "ugicm[dev]"'),
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
