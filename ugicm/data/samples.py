"""Training samples: random crops of images, with preference, quality and object masks.

All random choices of a sample follow from the run's seed and the sample's number. The samples therefore do not depend
on the number of loader or training processes, and a resumed run continues with the next number.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ugicm.config import DataConfig, Draw
from ugicm.data.images import Images
from ugicm.data.instances import MIN_SIDE, bounding_box
from ugicm.errors import ConfigError
from ugicm.images import is_turned

_is_turned = functools.cache(is_turned)


class Epochs:
    """Maps sample numbers to image numbers, drawn without replacement and in a new order in each epoch.

    Args:
        groups: (image numbers, weight) of each source. The weight is the number of times that each image occurs in an
            epoch; a fractional part is the share of images, drawn anew for each epoch, that occur once more.
        seed: of the order.
        shards: number of the shard of each image, or None. Shards are read one after the other in a random order.
        buffer: number of places by which a sample from shards may be late: as if read through a shuffling buffer.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Sequence[int], float]],
        seed: int,
        shards: np.ndarray | None = None,
        buffer: int = 1,
    ):
        self.groups, self.seed, self.shards, self.buffer = groups, seed, shards, buffer
        self.length = sum(max(1, round(len(images) * weight)) for images, weight in groups)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, sample: int) -> int:
        epoch, position = divmod(sample, self.length)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch, 0xE60C])
            chosen = []
            for images, weight in self.groups:
                whole, extra = divmod(max(1, round(len(images) * weight)), len(images))
                chosen += [np.tile(images, whole), rng.permutation(images)[:extra]]
            order = rng.permutation(np.concatenate(chosen))
            if self.shards is not None:
                turn = rng.permutation(self.shards.max() + 1)[self.shards[order]]
                order = order[np.argsort(turn, kind="stable")]
                order = order[np.argsort(np.arange(len(order)) + rng.uniform(0, self.buffer, len(order)))]
            self._epoch, self._order = epoch, order
        return int(self._order[position])


def draw(how: Draw, rng: np.random.Generator) -> float:
    """Draw a number in [0, 1] from the distribution ``how``."""
    if how.fixed is not None:
        return how.fixed
    if how.choices:
        return float(how.choices[rng.integers(len(how.choices))])
    low, high = how.range
    value = float(rng.uniform(low, high))
    return (low, high)[rng.integers(2)] if rng.random() < how.ends else value


@dataclass
class View:
    """The rectangle of an image that a sample shows, in pixels, and whether it is flipped horizontally."""

    top: int
    left: int
    height: int
    width: int
    flip: bool

    def cut(self, image: Tensor, size: int) -> Tensor:
        """Cut and resize an image uint8 [3, H, W], or a mask of 0 and 1 uint8 [1, H, W], to [C, size, size]."""
        part = image[:, self.top : self.top + self.height, self.left : self.left + self.width]
        if part.shape[1:] != (size, size) and len(part) == 1:
            part = F.interpolate(part[None].float(), (size, size), mode="area")[0].round_().to(torch.uint8)
        elif part.shape[1:] != (size, size):
            resized = F.interpolate(part[None].float(), (size, size), mode="bicubic", antialias=True)[0]
            part = resized.round_().clamp_(0, 255).to(torch.uint8)
        return part.flip(2) if self.flip else part


def choose_view(config: DataConfig, height: int, width: int, beta: float, rng: np.random.Generator) -> View:
    """Draw a view of an image of ``height`` x ``width`` pixels for a sample of preference ``beta``."""
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
    """Samples by number.

    A sample is a dictionary of "x" uint8 [3, crop, crop], "beta" and "quality" in [0, 1], "place" float32 [2] in
    [0, 1), the relative position of the local term's crop, and "masks", a list of uint8 [crop, crop]. Masks are of
    objects visible in the sample, at most ``config.max_instances``, and only for preferences above 0.
    """

    def __init__(self, config: DataConfig, quality: Draw, beta: Draw, seed: int, images: Images):
        self.config, self.quality, self.beta, self.seed = config, quality, beta, seed
        self.images = images
        self.epochs = Epochs(images.groups, seed, images.shards, config.shuffle)

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
        if instances is None or not self.config.max_instances or not instances.upright and _is_turned(file):
            return []
        visible = []
        height, width = image.shape[1:]
        for k in rng.permutation(instances.count(file)):
            rows, columns = instances.size(file, int(k))
            # Skip annotations of another image or version. Training images may be enlarged, but are never reduced.
            same_shape = 0.95 * columns * height < rows * width < 1.05 * columns * height
            if rows > height or columns > width or not same_shape:
                return []
            mask = instances.mask(file, int(k))
            if (rows, columns) != (height, width):
                mask = F.interpolate(mask[None], (height, width), mode="nearest")[0]
            mask = view.cut(mask, self.config.crop)[0]
            box = bounding_box(mask)
            if box is not None and min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE:
                visible.append(mask)
            if len(visible) == self.config.max_instances:
                break
        return visible


def collate(samples: list[dict]) -> dict[str, Tensor]:
    """Collate samples into a batch.

    The batch holds "x" uint8 [B, 3, S, S], "beta" and "quality" float32 [B], "place" float32 [B, 2] and, if there are
    any masks, "masks" uint8 [K, S, S], "owners" int64 [K], the sample of each mask, and "boxes" int64 [K, 4] (top,
    left, bottom, right).
    """
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
    """Batch sampler: sample numbers of this process's micro-batches, from step ``first_step`` to ``steps``.

    Step k uses the samples k * batch to (k + 1) * batch - 1, in ``parts`` (accumulation steps) times ``world``
    (processes) micro-batches. The samples of a step do not depend on the division.

    Raises ConfigError if ``batch`` cannot be divided evenly.
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
