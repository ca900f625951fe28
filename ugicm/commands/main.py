"""The command ``ugicm``: compress, decompress and info, on files and folders; report, on folders of images.

Exit status: 0 all done; 1 something failed (the summary names it); 2 the command cannot be carried out as given;
130 interrupted. Heavy libraries are imported by the commands that need them, so that help and info are quick.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ugicm import __version__, atomic, bitstream, files
from ugicm.arguments import Parser, guarded, natural, pick_device, positive, unit
from ugicm.commands import batch
from ugicm.errors import ImageError, StreamError, UgicmError, UsageError, described, first_line
from ugicm.report.command import add_report_command

if TYPE_CHECKING:
    from ugicm.codec import Codec

_MAIN_HELP = """\
examples:
  ugicm compress photo.jpg                        photo.ugic, beside it
  ugicm compress photos/ streams/ --quality 0.3   a whole folder, keeping its tree
  ugicm decompress photo.ugic photo.png           the image for people
  ugicm info streams/                             sizes, bits per pixel, models
"""
_COMPRESS_HELP = """\
examples:
  ugicm compress photo.jpg                        writes photo.ugic
  ugicm compress photo.jpg small.ugic -q 0.1      fewer bytes
  ugicm compress photo.jpg small.ugic -e 30       fewer bytes for the same quality, slowly
  ugicm compress photos/ streams/                 a folder; run again, it continues where it stopped
  ugicm compress photos/ streams/ --workers 2     two images at a time
  ugicm compress photo.jpg -c runs/mine/model.safetensors --verify
"""
_DECOMPRESS_HELP = """\
examples:
  ugicm decompress photo.ugic                     writes photo.png
  ugicm decompress photo.ugic seen.png -p machine for a network to look at
  ugicm decompress photo.ugic half.webp -p 0.5    half way between (WebP is written lossless)
  ugicm decompress photo.ugic mix.png -p map.png  machine where map.png is white, human where it is black
  ugicm decompress streams/ images/             a folder, keeping its tree
"""
_INFO_HELP = """\
examples:
  ugicm info photo.ugic
  ugicm info streams/ more/*.ugic
Only headers and checksums are read: no model is loaded.
"""
_MOST_WORKERS = 16  # without being asked: each takes the memory of an image


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    args = _parser().parse_args(arguments)
    warnings.showwarning = _show_warning
    warnings.filterwarnings("ignore", module="torch")  # hints for developers
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be of any bytes
    if hasattr(args, "max_pixels"):
        bitstream.MAX_PIXELS = args.max_pixels
    return guarded(lambda: args.command(args), "ugicm")


def _parser() -> Parser:
    parser = Parser(
        prog="ugicm",
        description="Learned image codec: one stream, decoded for people, for machines, or anything between.",
        epilog=_MAIN_HELP,
    )
    parser.add_argument("--version", action="version", version=f"ugicm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str, examples: str) -> Parser:
        description = summary[0].upper() + summary[1:] + "."
        sub = commands.add_parser(name, help=summary, description=description, epilog=examples)
        sub.set_defaults(command=run)
        return sub

    def model_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "-c",
            "--checkpoint",
            metavar="CKPT",
            help="a .safetensors checkpoint or a released .pth.tar (default: the shipped model)",
        )
        sub.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
        sub.add_argument("--overwrite", action="store_true", help="replace outputs that are already there")
        sub.add_argument("--workers", type=positive, metavar="N",
                         help="images of a folder done side by side, each on one core, with a share of the GPU where "
                         "that is the device: the same outputs, sooner; the memory of N images. Under Linux. 1: one "
                         f"after another (default: as many as there are cores, at most {_MOST_WORKERS}; on a GPU 1, "
                         "since it may not have the memory)")  # fmt: skip

    def limit_option(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--max-pixels", type=_max_pixels, metavar="N", default=bitstream.MAX_PIXELS,
                         help="refuse images of more pixels, counted as coded, in multiples of 64 a side; 0: refuse "
                         f"none, for streams that you trust (default: {bitstream.MAX_PIXELS})")  # fmt: skip

    sub = command("compress", _compress, "compress an image, or a folder of images", _COMPRESS_HELP)
    sub.add_argument("input", metavar="IN", help="an image (any that Pillow reads), or a folder: "
                     f"of its files, those named {' '.join(files.IMAGE_SUFFIXES)}; hidden ones and links to folders "
                     "are left out")  # fmt: skip
    sub.add_argument("output", metavar="OUT", nargs="?", help="a .ugic file or a folder (default: IN with .ugic)")
    sub.add_argument("-q", "--quality", type=unit, default=0.5, metavar="Q",
                     help="from 0 (small) to 1 (good), default 0.5")  # fmt: skip
    sub.add_argument("-e", "--effort", type=natural, default=0, metavar="N",
                     help="steps of adapting the stream to the image: fewer bits for what people see, much longer "
                     "to write (a step takes as long as two or three decompressions), no longer to read; try 30 "
                     "(default: 0)")  # fmt: skip
    sub.add_argument("--verify", action="store_true", help="parse each stream again before it is written")
    model_options(sub)
    limit_option(sub)

    sub = command("decompress", _decompress, "decompress a stream, or a folder of streams", _DECOMPRESS_HELP)
    sub.add_argument("input", metavar="IN", help="a .ugic file, or a folder of them")
    sub.add_argument("output", metavar="OUT", nargs="?",
                     help="an image, its format by extension, or a folder (default: IN with .png)")  # fmt: skip
    sub.add_argument("-p", "--preference", default="human", metavar="P",
                     help="human, machine, a number from 0 (human) to 1 (machine), or an image of the same size that "
                     "is bright where the machine should be served (default: human)")  # fmt: skip
    sub.add_argument("--format", metavar="EXT", help="image format where OUT does not say it (default: png)")
    model_options(sub)
    limit_option(sub)

    sub = command("info", _info, "show what streams hold, without decoding them", _INFO_HELP)
    sub.add_argument("inputs", metavar="FILE", nargs="+", help="a .ugic file, or a folder of them")
    limit_option(sub)
    add_report_command(commands)
    return parser


def _max_pixels(text: str) -> int | None:
    return natural(text) or None


def _compress(args: argparse.Namespace) -> int:
    folder = Path(args.input).is_dir()
    if not folder and Path(args.input).suffix.lower() == files.STREAM_SUFFIX:
        raise UsageError(f"{args.input} looks like a stream already; did you mean ugicm decompress?")
    jobs = files.plan(args.input, args.output, files.IMAGE_SUFFIXES, files.STREAM_SUFFIX)
    if not folder:
        _refuse(jobs[0], args.overwrite)
        if jobs[0].target.suffix.lower() in files.IMAGE_SUFFIXES:
            raise UsageError(f"{jobs[0].target}: a compressed image is not an image file; name it .ugic")
    place = _place(args, jobs)
    codec = _load(args, jobs, place)
    _raise_pillows_limit(args.max_pixels)
    from ugicm import images
    from ugicm.codec import ONE_RATE

    quality = args.quality if codec.has_quality else ONE_RATE

    def work(job: files.Job) -> batch.Made:
        image = images.open_rgb(job.source, bitstream.too_large)
        data = codec.compress(image, args.quality, effort=args.effort, progress=not folder)
        if args.verify:
            codec.parse(bitstream.parse(data))
        atomic.write(job.target, data)
        return batch.Made(image.width * image.height, len(data))

    def incomplete(job: files.Job) -> str | None:
        try:
            there = bitstream.parse(job.target.read_bytes())
        except StreamError as error:
            return f"is already there, but is no complete stream ({error})"
        if there.fingerprint.hex() != codec.fingerprint:
            return f"is already there, written by another model ({there.fingerprint.hex()})"
        if there.quality != bitstream.quantize_quality(quality):
            return f"is already there, with quality {there.quality:.3g}"
        if (there.width, there.height) != images.upright_size(job.source):
            return f"is already there, of another image: {there.width}x{there.height}"
        if job.source.stat().st_mtime_ns > job.target.stat().st_mtime_ns:
            return "is already there, older than the image, which may be another one now"
        return None

    summary = _run(args, codec, jobs, place, work, incomplete)
    with _out_of_the_way(jobs):
        if not folder and summary.done:
            print(f"{jobs[0].source} -> {jobs[0].target}")
        if summary.done:
            print(f"{summary.size:,} bytes, {8 * summary.size / summary.pixels:.3f} bpp")
        return _finish(summary, folder)


def _decompress(args: argparse.Namespace) -> int:
    suffix = "." + (args.format or "png").lstrip(".").lower()
    if not suffix[1:].isalnum():
        raise UsageError(f"--format {args.format}: not an extension; try png, webp, tiff, bmp, ppm or jpg")
    jobs = files.plan(args.input, args.output, [files.STREAM_SUFFIX], suffix)
    folder = Path(args.input).is_dir()
    if not folder:
        _refuse(jobs[0], args.overwrite)
    from ugicm import images

    target = jobs[0].target
    try:
        asked = images.image_format(target.with_suffix(suffix))
        chosen = images.image_format(target) if target.suffix else asked
        if args.format and chosen != asked:
            raise UsageError(f"{target} does not go with --format {args.format}: leave one out")
    except ImageError as error:
        raise UsageError(str(error)) from None
    _raise_pillows_limit(args.max_pixels)
    preference, shown = _preference(args.preference)
    gray = Path(args.preference)
    if gray.exists() and any(job.target.exists() and job.target.samefile(gray) for job in jobs):
        raise UsageError(f"{args.preference}: the output would replace the preference map: choose another name")
    place = _place(args, jobs)
    codec = _load(args, jobs, place)

    def origin(data: bytes) -> str:
        """What an output says of itself: from which stream (by its checksum) and for whom."""
        return f"ugicm {data[-4:].hex()} {shown}"

    def work(job: files.Job) -> batch.Made:
        data = job.source.read_bytes()
        image = codec.decompress(data, preference)
        images.save_image(image, job.target, origin(data), chosen)
        return batch.Made(image.width * image.height)

    def incomplete(job: files.Job) -> str | None:
        data = job.source.read_bytes()
        declared = bitstream.parse(data)
        try:
            size = images.open_rgb(job.target).size
            said = images.description(job.target)
        except ImageError:
            return "is already there, but is no complete image"
        if size != (declared.width, declared.height):
            return f"is already there, an image of another size ({size[0]}x{size[1]})"
        if not images.holds_description(job.target):
            return f"is already there, and {suffix} images cannot say of which stream and for whom they are"
        if said != origin(data):
            of = f"({said})" if said else "(it does not say which)"
            return f"is already there, of another stream or for another preference than {shown} {of}"
        return None

    summary = _run(args, codec, jobs, place, work, incomplete)
    with _out_of_the_way(jobs):
        if not folder and summary.done:
            print(f"{jobs[0].source} -> {jobs[0].target}")
        return _finish(summary, folder)


def _raise_pillows_limit(pixels: int | None) -> None:
    """To ours: Pillow has one of its own, against small files that unfold to large images."""
    from PIL import Image

    if pixels is None or pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = pixels


def _out_of_the_way(jobs: Sequence[files.Job]) -> contextlib.AbstractContextManager:
    """Say what was done on stderr where a device or pipe is written, which stdout may be."""
    if any(atomic.is_special(job.target) for job in jobs):
        return contextlib.redirect_stdout(sys.stderr)
    return contextlib.nullcontext()


def _preference(text: str) -> tuple[Any, str]:
    """The argument as Codec.decompress takes it, and as an output names it. Raises UsageError."""
    if text in ("human", "machine"):
        return text, text
    try:
        value = float(text)
    except ValueError:
        if not Path(text).is_file():
            raise UsageError(
                f"preference {text!r}: not human, machine, a number from 0 to 1, or an image that is there"
            ) from None
        from ugicm.images import open_rgb

        try:
            gray = open_rgb(text).convert("L")
            return gray, f"map {zlib.crc32(gray.tobytes()):08x}"
        except ImageError as error:
            raise UsageError(f"preference map {error}") from None
    if not 0 <= value <= 1:
        raise UsageError(f"preference is {text}, must be from 0 (human) to 1 (machine)")
    return value, {0: "human", 1: "machine"}.get(value, f"{value:g}")


def _refuse(job: files.Job, overwrite: bool) -> None:
    if job.taken and not overwrite:
        raise UsageError(f"{job.target} is already there; --overwrite replaces it")


class _Place(NamedTuple):
    """Where the images of a command are done."""

    device: str
    workers: int  # processes


def _place(args: argparse.Namespace, jobs: Sequence[files.Job]) -> _Place:
    """The device, which is known to be there, and as many workers as were asked for or are sensible. UsageError."""
    import torch

    from ugicm.commands import workers

    asked = min(args.workers or 1, len(jobs))
    if asked > 1 and workers.available():  # the children of a process that has used a GPU can not
        device = workers.apart(lambda: pick_device(args.device))
    else:
        device = pick_device(args.device)
    kind = torch.device(device).type
    if args.workers and args.workers > 1 and not (workers.available() and kind in ("cpu", "cuda")):
        raise UsageError(f"--workers {args.workers}: side by side only on CPU or CUDA, under Linux; leave it out")
    if args.workers is None and kind == "cpu" and workers.available():
        cores = torch.get_num_threads()  # knows of affinity and OMP_NUM_THREADS
        asked = min(cores, _MOST_WORKERS, len(jobs))
    return _Place(device, asked)


def _load(args: argparse.Namespace, jobs: Sequence[files.Job], place: _Place) -> Codec:
    """The codec, once it is known that outputs can be written; on the CPU where workers will take it elsewhere."""
    from ugicm.checkpoints.native import check_readable
    from ugicm.codec import load

    if args.checkpoint is not None:
        check_readable(args.checkpoint)
    atomic.prepare(job.target for job in jobs)

    return load(args.checkpoint, "cpu" if place.workers > 1 else place.device)


def _run(
    args: argparse.Namespace,
    codec: Codec,
    jobs: Sequence[files.Job],
    place: _Place,
    work: Callable[[files.Job], batch.Made],
    incomplete: Callable[[files.Job], str | None],
) -> batch.Summary:
    """All jobs, side by side where there are several workers."""
    import torch

    from ugicm.commands import workers

    if torch.device(place.device).type == "cpu" and workers.available() and Path(args.input).is_dir():
        # The last digits of analysis and synthesis depend on the number of threads: a folder's files must not depend on
        # the number of workers.
        torch.set_num_threads(1)

    def begin() -> None:
        # The threads of the OpenMP runtime do not survive a fork, and waiting for them is for ever.
        torch.set_num_threads(1)
        try:
            codec.to(place.device)
        except RuntimeError as error:  # a GPU without memory for so many, or one that takes no more processes
            raise UgicmError(f"a worker cannot use {place.device}: {first_line(error)}; try fewer --workers") from None

    return batch.run(jobs, work, incomplete, args.overwrite, _say, place.workers, begin)


def _finish(summary: batch.Summary, folder: bool) -> int:
    if folder or summary.stopped:  # what became of a single file has been said
        print(summary)
    return summary.status


def _info(args: argparse.Namespace) -> int:
    status, rows = 0, [("file", "size", "quality", "bytes", "bpp", "version", "model")]
    shipped = _shipped_fingerprints()
    for name in args.inputs:
        try:
            paths = files.find(name, [files.STREAM_SUFFIX]) if Path(name).is_dir() else [Path(name)]
        except (UsageError, OSError) as error:
            status = 1
            _say(described(error))
            continue
        for path in paths:
            try:
                data = path.read_bytes()
                header = bitstream.parse(data)
            except (OSError, StreamError) as error:
                status = 1
                _say(f"{path}: {error}" if isinstance(error, StreamError) else described(error))
                continue
            model = header.fingerprint.hex()
            model += " (shipped)" if model in shipped else " (not shipped)"
            bpp = 8 * len(data) / (header.width * header.height)
            rows.append((str(path), f"{header.width}x{header.height}", f"{header.quality:.3g}", f"{len(data):,}",
                         f"{bpp:.3f}", str(header.version), model))  # fmt: skip
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return status


def _shipped_fingerprints() -> set[str]:
    """Of the checkpoints inside the package, from their metadata.

    A safetensors file begins with the length of a JSON header (8 bytes, little-endian) and the header. Read here, since
    the library would import numpy for it.
    """
    import json
    from importlib import resources

    found = set()
    weights = resources.files("ugicm") / "weights"
    for item in weights.iterdir() if weights.is_dir() else ():
        if item.name.endswith(".safetensors"):
            with item.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            found.add(header.get("__metadata__", {}).get("fingerprint", ""))
    return found


def _say(line: str) -> None:
    print(f"ugicm: {line}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"ugicm: warning: {message}", file=sys.stderr)
