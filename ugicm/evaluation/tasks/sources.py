"""Images under test: the originals, decoded images, bitstreams, or the output of a codec.

Files are matched by their path relative to the folder, without the extension: ``n01440764/a.JPEG`` is tested as
``n01440764/a.png``.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ugicm.arguments import natural, parse_preference, positive
from ugicm.errors import ConfigError, ImageError, first_of
from ugicm.evaluation import codecs
from ugicm.evaluation.specs import parse_spec
from ugicm.files import IMAGE_SUFFIXES, STREAM_SUFFIX, find
from ugicm.images import is_turned, open_image, open_rgb

if TYPE_CHECKING:
    from ugicm.codec import Codec
    from ugicm.evaluation.tasks.base import Item


class Source(ABC):
    """Images under test, one per image of a dataset.

    Attributes:
        parallel: whether images may be loaded in worker processes.
        needs_original: whether :meth:`load` requires the original image.
    """

    parallel = True
    needs_original = False

    def path(self, item: Item) -> Path | None:
        """Return the file that :meth:`load` reads, or None if it does not exist."""
        return item.path if item.path.is_file() else None

    @abstractmethod
    def load(self, item: Item, original: Image.Image | None) -> tuple[Image.Image, int | None]:
        """Return the image under test and the size of its bitstream in bytes, or None. Raise UgicmError on failure."""

    @abstractmethod
    def describe(self) -> dict:
        """Return facts for the metadata of a results file."""


class Originals(Source):
    """The dataset itself."""

    def load(self, item: Item, original: Image.Image | None) -> tuple[Image.Image, int | None]:
        return original or open_rgb(item.path), None

    def describe(self) -> dict:
        return {"source": "originals"}


class DecodedFolder(Source):
    """Decoded images in any format."""

    suffixes: Sequence[str] = IMAGE_SUFFIXES

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.files = index_images(self.folder, self.suffixes)

    def path(self, item: Item) -> Path | None:
        return find_image(self.files, item.key)

    def load(self, item: Item, original: Image.Image | None) -> tuple[Image.Image, int | None]:
        return open_rgb(self.path(item)), None

    def describe(self) -> dict:
        return {"source": "decoded images", "folder": str(self.folder)}


class BitstreamFolder(DecodedFolder):
    """Bitstreams of this package, decoded with one preference from 0 (human) to 1 (machine)."""

    parallel = False
    suffixes = (STREAM_SUFFIX,)

    def __init__(self, folder: str | Path, codec: Codec, preference: float):
        super().__init__(folder)
        self.codec, self.preference = codec, preference

    def load(self, item: Item, original: Image.Image | None) -> tuple[Image.Image, int | None]:
        path = self.path(item)
        data = path.read_bytes()
        with codecs.failures_named(str(path)):
            # Gray and transparent images are evaluated as their originals are read.
            return open_rgb(self.codec.decompress(data, [self.preference])[0]), len(data)

    def describe(self) -> dict:
        facts = {"preference": self.preference, "model": codecs.ugicm_identity(self.codec)}
        return {"source": "bitstreams", "folder": str(self.folder), **facts}


class CodecSource(Source):
    """Originals that are encoded and decoded by a codec of :mod:`ugicm.evaluation.codecs`."""

    parallel, needs_original = False, True

    def __init__(self, codec: codecs.ImageCodec, setting: float, preference: float | None):
        self.codec, self.setting, self.preference = codec, setting, preference

    def load(self, item: Item, original: Image.Image | None) -> tuple[Image.Image, int | None]:
        with codecs.failures_named(f"{item.path}: {self.codec.label} at {self.setting:g}"):
            data = self.codec.encode(original, self.setting)
            return self.codec.decode(data, [self.preference])[0], len(data)

    def describe(self) -> dict:
        return {"source": self.codec.identity, "setting": self.setting, "preference": self.preference}


def folder_items(folder: str | Path) -> list[Item]:
    """Return the images of a folder, without targets. Raise UsageError if there are none."""
    from ugicm.evaluation.tasks.base import Item

    folder = Path(folder)
    return [Item(path.relative_to(folder).as_posix(), path) for path in find(folder, IMAGE_SUFFIXES)]


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that the task scripts share: the images under test, how they are processed, the output."""
    source = parser.add_argument_group("images under test (default: the originals)")
    kinds = source.add_mutually_exclusive_group()
    kinds.add_argument("--decoded", metavar="DIR", help="decoded images with the names of the originals, any extension")
    kinds.add_argument("--bitstreams", metavar="DIR", help="bitstreams of this codec, decoded with --preference")
    kinds.add_argument("--codec", metavar="SPEC", help="codec: ugicm[=PATH], jpeg, webp, avif, jxl, zoo/NAME[=PATH]")
    source.add_argument(
        "-c", "--checkpoint", metavar="PATH", help="model of --bitstreams (default: the shipped model)"
    )
    source.add_argument(
        "--quality", type=float, metavar="Q",
        help="setting of --codec: ugicm 0 to 1 (default: 0.5), jpeg 1 to 95, webp and avif 0 to 100, zoo/NAME from 0",
    )  # fmt: skip
    source.add_argument(
        "--preference", type=parse_preference, metavar="P",
        help="human, machine or a number from 0 (human) to 1 (machine), for bitstreams and ugicm (default: machine)",
    )  # fmt: skip
    source.add_argument("--allow-missing", action="store_true", help="exclude missing images, which are listed")
    parser.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="images per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=natural, default=0, metavar="N", help="processes that load images; with --ray its workers"
    )
    parser.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS",
        help="score on a Ray cluster, with the networks in each of N workers (default: one per GPU, or per core). "
        "Without an address: RAY_ADDRESS, or this machine",
    )  # fmt: skip
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda:0, ... (default: a GPU if there is one)")
    parser.add_argument("--limit", type=positive, metavar="N", help="evaluate N images, evenly spaced in the dataset")
    parser.add_argument("-o", "--output", metavar="FILE", help="write scores, records and environment as JSON")
    parser.add_argument(
        "--baseline", metavar="FILE", help="output (-o) of a run on the same images: print the differences from it"
    )


def load_source(args: argparse.Namespace, device: str) -> Source:
    """Return the source that the options of :func:`add_source_arguments` select.

    Raise ConfigError if an option is invalid or would have no effect, CheckpointError if a checkpoint is invalid.
    """
    runs_ugicm = bool(args.codec) and parse_spec(args.codec).name.lower() == "ugicm"
    for option, value, allowed, needed in (
        ("--quality", args.quality, args.codec, "--codec"),
        ("-c", args.checkpoint, args.bitstreams, "--bitstreams"),
        ("--preference", args.preference, args.bitstreams or runs_ugicm, "--bitstreams or --codec ugicm"),
    ):
        if value is not None and not allowed:
            raise ConfigError(f"{option} requires {needed}")
    preference = codecs.MACHINE if args.preference is None else args.preference
    if args.decoded:
        return DecodedFolder(args.decoded)
    if args.bitstreams:
        import ugicm

        return BitstreamFolder(args.bitstreams, ugicm.load(args.checkpoint, device=device), preference)
    if args.codec:
        codec = codecs.load_codec(args.codec, device, preferences=[preference])
        return CodecSource(codec, codecs.checked_setting(codec, args.quality), codec.preferences[0])
    return Originals()


def split_missing(items: Sequence[Item], source: Source, allow_missing: bool) -> tuple[list[Item], list[str]]:
    """Return the items whose image under test exists, and the keys of the others.

    Raise ConfigError if images are missing and this is not allowed, if all of them are missing, or if two are matched
    with one file.
    """
    paths = [source.path(item) for item in items]
    check_distinct_files([item.key for item in items], paths, getattr(source, "folder", "the dataset"))
    present = [item for item, path in zip(items, paths, strict=True) if path]
    missing = sorted({item.key for item in items} - {item.key for item in present})
    if missing and not (allow_missing and present):
        where = getattr(source, "folder", "the dataset")
        advice = "; --allow-missing excludes them" if present else ""
        raise ConfigError(f"{len(missing)} of {len(items)} images are missing in {where}: {first_of(missing)}{advice}")
    return present, missing


def check_distinct_files(keys: Sequence[str], paths: Sequence[Path | None], where: str | Path) -> None:
    """Raise ConfigError if two images of a dataset are matched with one file. None stands for a missing file."""
    first: dict[Path, str] = {}
    for key, path in zip(keys, paths, strict=True):
        if path is not None and first.setdefault(path, key) != key:
            raise ConfigError(f"{where}: {first[path]} and {key} both match {path}; rename one, not only its extension")


def check_upright(path: Path, size: tuple[int, int] | None) -> None:
    """Raise ImageError if EXIF turns an image, and its annotations may be of the pixels as stored.

    ``size`` is the annotated width and height, which equals that of the upright image, or None if it is unknown. If it
    differs from that of the stored pixels, the annotations are of the upright image.
    """
    if path.is_file() and is_turned(path):
        with open_image(path) as image:
            stored = image.size
        if size in (None, stored):
            raise ImageError(
                f"{path}: EXIF turns the image, and the annotations may be of the pixels as stored; save the image "
                "without EXIF orientation"
            )


def index_images(folder: str | Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Return the files of a folder by relative path, and by relative path without extension if that is unambiguous.

    Raise ConfigError if the folder does not exist, UsageError if it has no such files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    paths = find(folder, suffixes)
    stems = {path: path.relative_to(folder).with_suffix("").as_posix() for path in paths}
    counts = Counter(stems.values())
    unambiguous = {stem: path for path, stem in stems.items() if counts[stem] == 1}
    return {**unambiguous, **{path.relative_to(folder).as_posix(): path for path in paths}}


def find_image(files: dict[str, Path], key: str) -> Path | None:
    """Return the file of :func:`index_images` with the path ``key``, with another extension or with one more, or None.
    """
    stem = key.rsplit(".", 1)[0] if "." in key.rsplit("/", 1)[-1] else key
    return files.get(key) or files.get(stem)
