"""Where the images under test come from: a folder of decoded images, a folder of streams, or a codec
that runs there and then.

Images are matched by their path inside the folder without the extension, so ``n01440764/a.JPEG`` is
tested as ``n01440764/a.png``. What has no counterpart is named in an error, unless missing images are
allowed; then the run records their names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from ugicm.arguments import natural, positive, unit
from ugicm.errors import ConfigError, UgicmError, first_line, first_of
from ugicm.evaluation import codecs
from ugicm.evaluation.specs import parse_spec
from ugicm.files import IMAGE_SUFFIXES, STREAM_SUFFIX, find
from ugicm.images import open_rgb


class Source(Protocol):
    """Attributes: ``parallel``: images may be loaded in worker processes; ``needs_original``."""

    parallel: bool
    needs_original: bool

    def missing(self, items: Sequence) -> list[str]:
        """Keys of images that have no counterpart."""

    def load(self, item, original: Image.Image | None) -> tuple[Image.Image, int | None]:
        """The image to test, and its file's size in bytes where that is the codec's. Raises UgicmError."""

    def file(self, item) -> Path:
        """What :meth:`load` reads, for an image that is not missing."""

    def describe(self) -> dict: ...


class Originals:
    """The data set itself."""

    parallel, needs_original = True, False

    def missing(self, items) -> list[str]:
        return [item.key for item in items if not item.path.is_file()]

    def load(self, item, original=None):
        return original or open_rgb(item.path), None

    def file(self, item) -> Path:
        return item.path

    def describe(self) -> dict:
        return {"source": "originals"}


class DecodedFolder:
    """Images that were decoded before, in any format."""

    parallel, needs_original = True, False

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.files = index_images(self.folder)

    def missing(self, items) -> list[str]:
        return [item.key for item in items if find_image(self.files, item.key) is None]

    def load(self, item, original=None):
        return open_rgb(self.file(item)), None

    def file(self, item) -> Path:
        return find_image(self.files, item.key)

    def describe(self) -> dict:
        return {"source": "decoded images", "folder": str(self.folder)}


class StreamFolder:
    """Streams of this package, decoded for one preference (0 human ... 1 machine)."""

    parallel, needs_original = False, False

    def __init__(self, folder: str | Path, codec, preference: float):
        self.folder, self.codec, self.preference = Path(folder), codec, preference
        self.files = index_images(self.folder, (STREAM_SUFFIX,))

    def missing(self, items) -> list[str]:
        return [item.key for item in items if find_image(self.files, item.key) is None]

    def load(self, item, original=None):
        path = self.file(item)
        data = path.read_bytes()
        try:
            return self.codec.decompress(data, [self.preference])[0], len(data)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise UgicmError(f"{path}: {first_line(error)}") from None

    def file(self, item) -> Path:
        return find_image(self.files, item.key)

    def describe(self) -> dict:
        return {"source": "streams", "folder": str(self.folder), "preference": self.preference,
                "model": codecs.ugicm_identity(self.codec)}  # fmt: skip


class RunContender:
    """Any codec of :mod:`ugicm.evaluation.codecs`, run on the originals."""

    parallel, needs_original = False, True

    def __init__(self, contender, setting: float, viewer: float | None):
        self.contender, self.setting, self.viewer = contender, setting, viewer

    def missing(self, items) -> list[str]:
        return [item.key for item in items if not item.path.is_file()]

    def load(self, item, original):
        with codecs.failures_named(self.contender, self.setting, item.path):
            data = self.contender.encode(original, self.setting)
            return self.contender.decode(data, [self.viewer])[0], len(data)

    def file(self, item) -> Path:
        return item.path

    def describe(self) -> dict:
        return {"source": self.contender.identity, "setting": self.setting, "preference": self.viewer}


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which every scorer script says what it looks at."""
    group = parser.add_argument_group(
        "images under test (without one of these: the originals themselves)"
    ).add_mutually_exclusive_group()
    group.add_argument(
        "--decoded", metavar="DIR", help="decoded images, named as the originals but for the extension"
    )
    group.add_argument("--streams", metavar="DIR", help="streams of this codec, decoded at --preference")
    group.add_argument(
        "--codec",
        metavar="SPEC",
        help="run a codec on the originals: ugicm, ugicm=PATH, jpeg, webp, avif, zoo/NAME=PATH ...",
    )
    parser.add_argument(
        "-c", "--checkpoint", metavar="PATH", help="for --streams and --codec ugicm (default: the shipped model)"
    )
    parser.add_argument(
        "--quality", type=float, metavar="Q",
        help="setting of --codec: ugicm 0 to 1 (default: 0.5), jpeg 1 to 95, webp and avif 0 to 100, zoo/NAME from 0",
    )  # fmt: skip
    parser.add_argument(
        "--preference",
        type=preference,
        metavar="P",
        help="human, machine or a number from 0 (human) to 1 (machine), for streams and ugicm (default: machine)",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="score the images there are; the others are named"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="images at once (default: %(default)s)"
    )
    parser.add_argument("--workers", type=natural, default=0, metavar="N", help="processes that read images")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda:0 ... (default: a GPU where there is one)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only N images, evenly spread over the data set")
    parser.add_argument("-o", "--output", metavar="FILE", help="write scores, records and environment as json")


def preference(text: str) -> float:
    """An argument's type: a preference as ``ugicm decompress`` takes it, but for maps."""
    from ugicm.codec import PREFERENCES

    try:
        return PREFERENCES[text] if text in PREFERENCES else unit(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected human, machine or a number from 0 to 1, got {text}") from None


def source_from(args: argparse.Namespace, device: str) -> Source:
    """The source that :func:`add_source_arguments`'s options name. Raises UgicmError, also for options that it would
    not heed: who gives a checkpoint or a quality does not want the originals scored."""
    spec = parse_spec(args.codec) if args.codec else None
    runs_ugicm = spec is not None and spec.name.lower() == "ugicm"
    if args.quality is not None and not spec:
        raise ConfigError("--quality goes with --codec")
    for option, value in (("-c", args.checkpoint), ("--preference", args.preference)):
        if value is not None and not (args.streams or runs_ugicm):
            raise ConfigError(f"{option} goes with --streams or --codec ugicm")
    if runs_ugicm and spec.where and args.checkpoint:
        raise ConfigError(f"--codec {args.codec} names a checkpoint, and -c {args.checkpoint} another one")
    viewer = codecs.MACHINE if args.preference is None else args.preference
    if args.decoded:
        return DecodedFolder(args.decoded)
    if args.streams:
        import ugicm

        return StreamFolder(args.streams, ugicm.load(args.checkpoint, device=device), viewer)
    if spec:
        text = args.codec.replace(spec.name, f"{spec.name}={args.checkpoint}", 1) if args.checkpoint else args.codec
        contender = codecs.load_contender(text, device, viewers=[viewer])
        return RunContender(contender, codecs.checked_setting(contender, args.quality), contender.viewers[0])
    return Originals()


def present(items: Sequence, source: Source, allow_missing: bool) -> tuple[list, list[str]]:
    """(items whose image is there, keys of those whose image is not).

    Raises ConfigError naming the missing ones unless they are allowed, and always when there are no others.
    """
    missing = source.missing(items)
    if missing and (not allow_missing or len(missing) == len(items)):
        where, names = getattr(source, "folder", "the data set"), first_of(missing)
        advice = "" if len(missing) == len(items) else "; --allow-missing scores the others"
        raise ConfigError(f"{len(missing)} of {len(items)} images are missing in {where}: {names}{advice}")
    absent = set(missing)
    return [item for item in items if item.key not in absent], missing


def index_images(folder: str | Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files under a folder by relative path, and by the same without extension where that is unambiguous.

    Raises ConfigError where there is no such folder, UsageError where there are no such files in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    ambiguous: dict[str, list[Path]] = {}
    for path in find(folder, suffixes):
        relative = path.relative_to(folder)
        files[relative.as_posix()] = path
        stem = relative.with_suffix("").as_posix()
        ambiguous.setdefault(stem, []).append(path)
    for stem, paths in ambiguous.items():
        if len(paths) == 1:
            files.setdefault(stem, paths[0])
    return files


def find_image(files: dict[str, Path], key: str) -> Path | None:
    """The file for a data set's key: the same path, the same but for the extension, or with one more; else None."""
    stem = key.rsplit(".", 1)[0] if "." in key.rsplit("/", 1)[-1] else key
    return files.get(key) or files.get(stem)
