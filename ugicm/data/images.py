"""Training images: where they are, decoding them once, and the random crops that samples are.

Everything random about a sample follows from the run's seed and the sample's number alone: which image, which
crop, whether flipped, which preference and quality. So the order of samples does not depend on how many
processes load or train, and a resumed run continues with the next number.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ugicm.config import DataConfig, Draw, Source
from ugicm.data.instances import SMALLEST, Instances, bounding_box
from ugicm.errors import ConfigError, ImageError, UsageError, first_line
from ugicm.files import IMAGE_SUFFIXES, find
from ugicm.images import is_turned, open_rgb, upright_size

RAM_CACHE_LIMIT = 8 << 30  # bytes of decoded images that cache: auto keeps


def find_images(path: str | Path) -> list[Path]:
    """Image files of a folder (recursive, sorted), of a ``.txt`` list (one path a line, relative to the list;
    ``#`` comments), or the one file named. Raises ConfigError where there are none."""
    path = Path(path)
    if path.is_dir():
        try:
            files = find(path, IMAGE_SUFFIXES)
        except UsageError as error:
            raise ConfigError(str(error)) from None
        except OSError as error:
            raise ConfigError(f"{error.filename or path}: cannot be listed: {error.strerror}") from None
    elif path.suffix == ".txt" and path.is_file():
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as a list of images: {first_line(error)}") from None
        files = [path.parent / line for line in lines if line and not line.startswith("#")]
        absent = [p for p in files if not p.is_file()]
        if absent or not files:
            raise ConfigError(f"{path}: " + (f"lists {absent[0]}, which does not exist" if absent else "empty list"))
    elif path.is_file():
        files = [path]
    else:
        raise ConfigError(f"{path}: no such folder, list or image")
    return files


def hold_out(files: Sequence[Path], count: int) -> tuple[list[int], list[int]]:
    """Indices of (kept, held out) files. The choice depends on file names only, so that all stages agree.

    Of an image that several sources contain, or that is linked to, one index is held out and the others are neither.
    """
    places = [os.path.realpath(file) for file in files]
    first: dict[str, int] = {}
    for i, place in enumerate(places):
        first.setdefault(place, i)
    out = sorted(first.values(), key=lambda i: hashlib.sha1(files[i].name.encode()).digest())[:count]
    away = {places[i] for i in out}
    return [i for i in range(len(files)) if places[i] not in away], sorted(out)


def read_image(path: Path, at_least: int = 1) -> Tensor:
    """uint8 [3, H, W]; an image with a side shorter than ``at_least`` is enlarged until it fits."""
    image = open_rgb(path)
    short = min(image.size)
    if short < at_least:
        size = [max(at_least, round(side * at_least / short)) for side in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class ImageStore:
    """Images by number, uint8 [3, H, W] with sides of at least ``at_least``.

    With a cache all are decoded at the start, to RAM or to ``device``; broken ones are reported and left out
    (``files`` is what remains). Without one a broken image is reported once, when it is met, and its follower
    in the list taken instead.
    """

    def __init__(self, files: Sequence[Path], at_least: int, cache: str = "none", device: torch.device | None = None):
        self.files = list(files)
        self.at_least = at_least
        self.cache = _choose_cache(self.files, at_least) if cache == "auto" else cache
        self.images: list[Tensor] = []
        self._broken: set[int] = set()
        if self.cache == "none":
            return
        readable = []
        for path in tqdm(self.files, desc="decoding", unit="", leave=False, disable=not sys.stderr.isatty()):
            try:
                image = read_image(path, at_least)
            except ImageError as error:
                print(f"skipped: {error}", file=sys.stderr)
                continue
            self.images.append(image.to(device) if self.cache == "device" else image)
            readable.append(path)
        self.files = readable
        if not readable:
            raise ConfigError("none of the training images can be read")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        """The image, after its number: another one than ``index`` where that one is broken."""
        if self.cache != "none":
            return index, self.images[index]
        for tried in range(len(self.files)):
            number = (index + tried) % len(self.files)
            if number in self._broken:
                continue
            try:
                return number, read_image(self.files[number], self.at_least)
            except ImageError as error:
                self._broken.add(number)
                print(f"skipped: {error}", file=sys.stderr)
        raise ConfigError("none of the training images can be read")


def _choose_cache(files: Sequence[Path], at_least: int) -> str:
    """ "ram" where the decoded images fit RAM_CACHE_LIMIT, judged by the sizes of a hundred of them."""
    sizes = []
    for path in files[:: max(1, len(files) // 100)]:
        try:
            width, height = upright_size(path)
        except ImageError:  # reported when it is decoded
            continue
        scale = max(1.0, at_least / min(width, height))
        sizes.append(3 * width * height * scale**2)
    fits = bool(sizes) and len(files) * float(np.mean(sizes)) < RAM_CACHE_LIMIT
    return "ram" if fits else "none"


_turned = functools.cache(is_turned)


class Epochs:
    """Maps the sample's number to an image: without replacement within an epoch, in a new order in each.

    A source's ``weight`` is how often each of its images is seen in an epoch. Of a fractional part that share of
    the images is seen once more, others in every epoch.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[int], float]], seed: int):
        self.groups, self.seed = groups, seed
        self.length = sum(max(1, round(len(images) * weight)) for images, weight in groups)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, sample: int) -> int:
        epoch, place = divmod(sample, self.length)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch, 0xE60C])
            chosen = []
            for images, weight in self.groups:
                whole, extra = divmod(max(1, round(len(images) * weight)), len(images))
                chosen += [
                    np.tile(np.asarray(images), whole),
                    rng.permutation(np.asarray(images))[:extra],
                ]
            self._epoch, self._order = epoch, rng.permutation(np.concatenate(chosen))
        return int(self._order[place])


def draw(how: Draw, rng: np.random.Generator) -> float:
    """A number in [0, 1] as ``how`` says."""
    if how.fixed is not None:
        return how.fixed
    if how.choices:
        return float(how.choices[rng.integers(len(how.choices))])
    low, high = how.range
    value = float(rng.uniform(low, high))
    return (low, high)[rng.integers(2)] if rng.random() < how.ends else value


@dataclass
class View:
    """Which part of an image a sample shows: the square at (top, left) of ``side`` pixels, or all of it."""

    top: int
    left: int
    height: int
    width: int
    flip: bool

    def cut(self, image: Tensor, size: int) -> Tensor:
        """uint8 [C, H, W] -> uint8 [C, size, size]; one of one channel is a mask of 0 and 1."""
        part = image[:, self.top : self.top + self.height, self.left : self.left + self.width]
        if part.shape[1:] != (size, size) and len(part) == 1:
            part = F.interpolate(part[None].float(), (size, size), mode="area")[0].round_().to(torch.uint8)
        elif part.shape[1:] != (size, size):
            resized = F.interpolate(part[None].float(), (size, size), mode="bicubic", antialias=True)[0]
            part = resized.round_().clamp_(0, 255).to(torch.uint8)
        return part.flip(2) if self.flip else part


def choose_view(config: DataConfig, height: int, width: int, beta: float, rng: np.random.Generator) -> View:
    """A random view of an image of ``height`` x ``width``."""
    flip = config.flip and rng.random() < 0.5
    if config.whole and beta > 0 and rng.random() < config.whole:
        return View(0, 0, height, width, flip)
    side = config.crop
    if config.scale:
        low, high = np.log(config.scale)
        side = round(config.crop / float(np.exp(rng.uniform(low, high))))
        side = max(1, min(side, height, width))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    return View(top, left, side, side, flip)


class TrainingSamples(Dataset):
    """Sample by number -> {"x": uint8 [3, crop, crop], "beta", "quality": float, "place": float32 [2],
    "masks": list of uint8 [crop, crop]}.

    ``place`` is where in [0, 1)² of the possible positions the random crop of the local term lies. Masks are of
    objects visible in the sample, at most ``config.max_instances``; for preference 0 there are none.
    """

    def __init__(self, config: DataConfig, quality: Draw, beta: Draw, seed: int, images: Images):
        self.config, self.quality, self.beta, self.seed = config, quality, beta, seed
        self.images = images
        self.epochs = Epochs(images.groups, seed)

    def __getitem__(self, sample: int) -> dict:
        rng = np.random.default_rng([self.seed, sample])
        beta, quality = draw(self.beta, rng), draw(self.quality, rng)
        place = rng.random(2, dtype=np.float32)
        number, image = self.images.store[self.epochs[sample]]
        view = choose_view(self.config, *image.shape[1:], beta, rng)
        masks = self._masks(number, image, view, rng) if beta > 0 else []
        x = view.cut(image, self.config.crop)
        return {"x": x, "beta": beta, "quality": quality, "place": torch.from_numpy(place), "masks": masks}

    def _masks(self, number: int, image: Tensor, view: View, rng: np.random.Generator) -> list[Tensor]:
        instances, file = self.images.instances.get(number), self.images.store.files[number]
        if instances is None or not self.config.max_instances or not instances.of_upright and _turned(file):
            return []
        visible = []
        height, width = image.shape[1:]
        for k in rng.permutation(instances.count(file)):
            rows, columns = instances.size(file, int(k))
            # Of another image, or a version of another size; ours may have been enlarged, but was never reduced.
            same_shape = 0.95 * columns * height < rows * width < 1.05 * columns * height
            if rows > height or columns > width or not same_shape:
                return []
            mask = instances.mask(file, int(k))
            if (rows, columns) != (height, width):
                mask = F.interpolate(mask[None], (height, width), mode="nearest")[0]
            mask = view.cut(mask, self.config.crop)[0]
            box = bounding_box(mask)
            if box is not None and min(box[2] - box[0], box[3] - box[1]) >= SMALLEST:
                visible.append(mask)
            if len(visible) == self.config.max_instances:
                break
        return visible


def collate(samples: list[dict]) -> dict[str, Tensor]:
    """Samples -> batch: "x" uint8 [B, 3, S, S], "beta", "quality" float32 [B], "place" float32 [B, 2]; and where
    there are any instances "masks" uint8 [K, S, S], "owners" int64 [K] and "boxes" int64 [K, 4] (top, left, bottom,
    right)."""
    batch = {
        "x": torch.stack([s["x"] for s in samples]),
        "beta": torch.tensor([s["beta"] for s in samples], dtype=torch.float32),
        "quality": torch.tensor([s["quality"] for s in samples], dtype=torch.float32),
        "place": torch.stack([s["place"] for s in samples]),
    }
    masks = [mask for s in samples for mask in s["masks"]]
    if masks:
        batch["masks"] = torch.stack(masks)
        batch["owners"] = torch.tensor([i for i, s in enumerate(samples) for _ in s["masks"]])
        batch["boxes"] = torch.tensor([bounding_box(mask) for mask in masks])
    return batch


class StepBatches:
    """Numbers of the samples of this process's micro-batches, step after step from ``first_step`` on.

    Step k's batch is the samples k·batch ... (k+1)·batch - 1, dealt to ``parts`` (accumulation) times ``world``
    (processes) micro-batches: together the same samples, however many processes share them.
    """

    def __init__(self, batch: int, parts: int, rank: int, world: int, first_step: int, steps: int):
        if batch % (parts * world):
            raise ConfigError(
                f"data.batch = {batch} is not divisible by optim.accumulate x processes = {parts} x {world}"
            )
        self.batch, self.parts, self.rank, self.world = batch, parts, rank, world
        self.first_step, self.steps = first_step, steps

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch // (self.parts * self.world)
        for step in range(self.first_step, self.steps):
            for part in range(self.parts):
                start = step * self.batch + (part * self.world + self.rank) * size
                yield list(range(start, start + size))

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.parts


@dataclass
class Images:
    """What a run sees: training images in weighted groups, the instances of some, held-out images; and a
    digest of the training images' names."""

    store: ImageStore
    groups: list[tuple[list[int], float]]
    held_out: list[Path]
    digest: str
    instances: dict[int, Instances] = field(default_factory=dict)  # by the image's number


def open_sources(
    sources: Sequence[Source], config: DataConfig, device: torch.device, held_out: Sequence[Path] | None = None
) -> Images:
    """Find, hold out and (with a cache) decode the images of all sources.

    ``held_out``: images that are not to be trained on, None for ``config.holdout`` of the sources' own. Raises
    ConfigError.
    """
    files, group_of = [], []
    for number, source in enumerate(sources):
        found = find_images(source.path)
        files += found
        group_of += [number] * len(found)
    if held_out is None:
        kept, out = hold_out(files, config.holdout)
        held_out = [files[i] for i in out]
    else:
        apart = {path.resolve() for path in held_out}
        kept = [i for i, path in enumerate(files) if path.resolve() not in apart]
    if not kept:
        raise ConfigError(f"data: all {len(held_out)} images are held out for validation (holdout: {config.holdout})")
    store = ImageStore([files[i] for i in kept], config.crop, config.cache, device)
    where = {path: number for number, path in enumerate(store.files)}
    groups: list[tuple[list[int], float]] = []
    for number, source in enumerate(sources):
        members = [where[files[i]] for i in kept if group_of[i] == number and files[i] in where]
        if members:
            groups.append((members, source.weight))
    instances: dict[int, Instances] = {}
    for number, source in enumerate(sources):
        if source.instances:
            members = [where[files[i]] for i in kept if group_of[i] == number and files[i] in where]
            known = Instances(source.instances, [store.files[m] for m in members])
            instances.update({m: known for m in members if store.files[m] in known})
    digest = hashlib.sha1("\n".join(p.name for p in store.files).encode()).hexdigest()[:16]
    return Images(store, groups, list(held_out), digest, instances)


def center_crops(files: Sequence[Path], crop: int) -> Tensor:
    """Validation images: uint8 [n, 3, crop, crop]. Unreadable ones are reported and left out."""
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
        raise ConfigError("validation: no readable images")
    return torch.stack(crops)
