"""Training and validation images: finding, holding out, decoding and caching them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ugicm.config import DataConfig
from ugicm.data.instances import Instances
from ugicm.errors import ConfigError, ImageError, UgicmError, UsageError, error_message, first_line
from ugicm.files import IMAGE_SUFFIXES, find
from ugicm.images import open_rgb, upright_size
from ugicm.shards.files import expand
from ugicm.shards.index import ShardMember, list_members

ImageFile = Path | ShardMember
RAM_CACHE_LIMIT = 8 << 30  # bytes of decoded images that cache: auto keeps


def find_images(path: str | Path) -> list[Path]:
    """Return the image files of a folder (recursive, sorted), of a ``.txt`` list, or the one file named.

    A list has one path per line, relative to the list; lines that begin with ``#`` are comments. Raises ConfigError if
    there are no images.
    """
    path = Path(path)
    if path.is_dir():
        try:
            return find(path, IMAGE_SUFFIXES)
        except UsageError as error:
            raise ConfigError(str(error)) from None
        except OSError as error:
            raise ConfigError(f"{error.filename or path}: cannot be listed: {error.strerror}") from None
    if not path.is_file():
        raise ConfigError(f"{path}: no such folder, list or image")
    if path.suffix != ".txt":
        return [path]
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a list of images: {first_line(error)}") from None
    files = [path.parent / line for line in lines if line and not line.startswith("#")]
    missing = [p for p in files if not p.is_file()]
    if missing or not files:
        raise ConfigError(f"{path}: " + (f"lists {missing[0]}, which does not exist" if missing else "empty list"))
    return files


def hold_out(files: Sequence[ImageFile], count: int) -> tuple[list[int], list[int]]:
    """Return the indices of training images and of ``count`` held-out images.

    The choice depends on file names only, so that all stages of a training hold out the same images. Links to a
    held-out image, and its repetitions in other sources, are in neither list.
    """
    resolved = [os.path.realpath(file) for file in files]
    first: dict[str, int] = {}
    for i, path in enumerate(resolved):
        first.setdefault(path, i)
    digests = {i: hashlib.sha1(files[i].name.encode(errors="surrogatepass")).digest() for i in first.values()}
    out = sorted(digests, key=digests.get)[:count]
    excluded = {resolved[i] for i in out}
    return [i for i in range(len(files)) if resolved[i] not in excluded], sorted(out)


def find_shard_images(pattern: str) -> list[ShardMember]:
    """Return the images in shards, in order. Raises ConfigError if there are none or a shard cannot be read."""
    try:
        found = [member for shard in expand(pattern) for member in list_members(shard, IMAGE_SUFFIXES)]
    except (UgicmError, OSError) as error:
        raise ConfigError(f"data.train.shards: {error_message(error)}") from None
    if not found:
        raise ConfigError(f"data.train.shards: {pattern}: no images in these shards")
    return found


def _opened(file: ImageFile) -> Path | BytesIO:
    try:
        return file.open() if isinstance(file, ShardMember) else file
    except OSError as error:
        raise ImageError(f"{file}: cannot be read: {error.strerror or error}") from None


def read_image(path: ImageFile, min_side: int = 1) -> Tensor:
    """Return an image uint8 [3, H, W], enlarged if its shorter side is below ``min_side``."""
    image = open_rgb(_opened(path))
    short = min(image.size)
    if short < min_side:
        size = [max(min_side, round(side * min_side / short)) for side in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class ImageStore:
    """Images by number, uint8 [3, H, W] with sides of at least ``min_side``.

    With a cache, all images are decoded to RAM at the start; corrupt ones are reported and removed from ``files``.
    Without a cache, a corrupt image is reported at its first use and replaced by the next in the list.
    """

    def __init__(self, files: Sequence[ImageFile], min_side: int, cache: str = "none"):
        self.files = list(files)
        self.min_side = min_side
        self.cache = _choose_cache(self.files, min_side) if cache == "auto" else cache
        self.images: list[Tensor] = []
        self._corrupt: set[int] = set()
        if self.cache == "none":
            return
        readable = []
        for path in tqdm(self.files, desc="decoding", unit="", leave=False, disable=not sys.stderr.isatty()):
            try:
                image = read_image(path, min_side)
            except ImageError as error:
                print(f"skipped: {error}", file=sys.stderr)
                continue
            self.images.append(image)
            readable.append(path)
        self.files = readable
        if not readable:
            raise ConfigError("data.train: none of the training images can be read")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        """Return (number, image); the number differs from ``index`` if that image is corrupt."""
        if self.cache != "none":
            return index, self.images[index]
        for offset in range(len(self.files)):
            number = (index + offset) % len(self.files)
            if number in self._corrupt:
                continue
            try:
                return number, read_image(self.files[number], self.min_side)
            except ImageError as error:
                self._corrupt.add(number)
                print(f"skipped: {error}", file=sys.stderr)
        raise ConfigError("data.train: none of the training images can be read")


def _choose_cache(files: Sequence[ImageFile], min_side: int) -> str:
    """Return "ram" if the decoded images fit into RAM_CACHE_LIMIT, estimated from about a hundred of them."""
    sizes = []
    for path in files[:: max(1, len(files) // 100)]:
        try:
            width, height = upright_size(_opened(path))
        except ImageError:  # reported when it is decoded
            continue
        scale = max(1.0, min_side / min(width, height))
        sizes.append(3 * width * height * scale**2)
    fits = bool(sizes) and len(files) * float(np.mean(sizes)) < RAM_CACHE_LIMIT
    return "ram" if fits else "none"


@dataclass
class Images:
    """The images of a run.

    Attributes:
        store: training images.
        groups: (numbers of the images, weight) of each source.
        held_out: validation images.
        digest: hash of the training images' names.
        instances: annotations by the image's number.
        shards: number of each image's shard, int64 [n]; an image outside shards has a number of its own. None if no
            image is in a shard.
    """

    store: ImageStore
    groups: list[tuple[list[int], float]]
    held_out: list[ImageFile]
    digest: str
    instances: dict[int, Instances] = field(default_factory=dict)
    shards: np.ndarray | None = None


def open_sources(config: DataConfig, validation_path: str | None = None) -> Images:
    """Find, hold out and (with a cache) decode the images of ``config.train``.

    Validation images are those of ``validation_path``, which are excluded from training, or ``config.holdout`` of the
    training images. Raises ConfigError if images or annotations are missing.
    """
    files, source_of = [], []
    for number, source in enumerate(config.train):
        if source.shards is not None:
            found = find_shard_images(source.shards)
            files += found
            source_of += [number] * len(found)
            continue
        _check_exists("data.train", source.path, "images", "data.train=[FOLDER,...]")
        if source.instances:
            override = "data.train=[{path: FOLDER, instances: FILE}]"
            _check_exists("data.train.instances", source.instances, "a COCO annotation file", override)
        found = find_images(source.path)
        files += found
        source_of += [number] * len(found)
    if validation_path is None:
        kept, out = hold_out(files, config.holdout)
        held_out = [files[i] for i in out]
    else:
        _check_exists("validation.path", validation_path, "images", "validation.path=FOLDER")
        held_out = find_images(validation_path)
        excluded = {os.path.realpath(path) for path in held_out}
        kept = [i for i, path in enumerate(files) if os.path.realpath(path) not in excluded]
    if not kept:
        reason = f"all {len(held_out)} images are held out for validation (holdout: {config.holdout})"
        raise ConfigError(f"data: {reason}; lower data.holdout")
    store = ImageStore([files[i] for i in kept], config.crop, config.cache)
    number_of = {path: number for number, path in enumerate(store.files)}
    groups: list[tuple[list[int], float]] = []
    instances: dict[int, Instances] = {}
    for number, source in enumerate(config.train):
        members = [number_of[files[i]] for i in kept if source_of[i] == number and files[i] in number_of]
        if members:
            groups.append((members, source.weight))
        if source.instances:
            annotations = Instances(source.instances, [store.files[m] for m in members])
            instances.update({m: annotations for m in members if store.files[m] in annotations})
    digest = hashlib.sha1("\n".join(p.name for p in store.files).encode(errors="surrogatepass")).hexdigest()[:16]
    return Images(store, groups, held_out, digest, instances, _shards_of(store.files))


def _shards_of(files: Sequence[ImageFile]) -> np.ndarray | None:
    if not any(isinstance(file, ShardMember) for file in files):
        return None
    numbers: dict[str | ImageFile, int] = {}
    keys = (file.shard if isinstance(file, ShardMember) else file for file in files)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _check_exists(key: str, path: str, content: str, override: str) -> None:
    if not Path(path).exists():
        raise ConfigError(f"{key}: {path}: not found; put {content} there, or use others: --set '{override}'")


def center_crops(files: Sequence[ImageFile], crop: int) -> Tensor:
    """Return the center crops of images, uint8 [n, 3, crop, crop]. Unreadable images are reported and left out."""
    crops = []
    for path in files:
        try:
            image = read_image(path, crop)
        except ImageError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        top, left = (image.shape[1] - crop) // 2, (image.shape[2] - crop) // 2
        crops.append(image[:, top : top + crop, left : left + crop].contiguous())
    if not crops:
        raise ConfigError("none of the images can be read")
    return torch.stack(crops)
