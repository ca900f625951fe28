"""Large images in bounded memory: tiles and windows, boxes in pixels of the padded image.

* *Tiles* are entropy-coded independently, so that a region can be decoded alone. They are part of the bitstream.
* *Windows* bound the memory of analysis and synthesis. A window is processed with a halo as wide as the receptive field
  of the networks, and only its inside is kept: the result is that of the whole image, without seams. Bitstreams do not
  depend on windows.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

Y_STRIDE = 16  # pixels per position of the latents y, in each direction
Z_STRIDE = 64  # ... of the hyper latents z; sides of padded images and of tiles are multiples of it
TILE = 1024  # side of the tiles of images with more than TILED_FROM pixels, padded
TILED_FROM = 2**22


@dataclass(frozen=True)
class Box:
    """A rectangle: ``left <= x < right``, ``top <= y < bottom``."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    def part(self, region: tuple[int, int, int, int]) -> Box:
        """Return a region (x, y, width, height) of an image, whose box this is.

        Raises ValueError unless it is four integers inside the image.
        """
        try:
            x, y, width, height = map(operator.index, region)
        except (TypeError, ValueError):
            raise ValueError(f"region {region!r} is not four integers: x, y, width, height") from None
        part = Box(x, y, x + width, y + height)
        if not (0 <= x < part.right <= self.right and 0 <= y < part.bottom <= self.bottom):
            raise ValueError(f"region {region} is not inside the image of {self.width}x{self.height}")
        return part

    def grown(self, margin: int, limit: Box) -> Box:
        """Return the box extended by ``margin`` on every side, but not beyond ``limit``."""
        return Box(
            max(self.left - margin, limit.left), max(self.top - margin, limit.top),
            min(self.right + margin, limit.right), min(self.bottom + margin, limit.bottom),
        )  # fmt: skip

    def aligned(self, step: int) -> Box:
        """Return the smallest box around this one whose coordinates are multiples of ``step``."""
        return Box(self.left // step * step, self.top // step * step, -(-self.right // step) * step,
                   -(-self.bottom // step) * step)  # fmt: skip

    def meets(self, other: Box) -> bool:
        """Return whether the boxes have a pixel in common."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def within(self, origin: Box) -> Box:
        """Return the box in coordinates relative to the corner of ``origin``."""
        return Box(self.left - origin.left, self.top - origin.top, self.right - origin.left, self.bottom - origin.top)

    def slices(self, scale: int = 1) -> tuple[slice, slice]:
        """Return the rows and columns of a tensor at 1/``scale`` of the resolution."""
        return (
            slice(self.top // scale, -(-self.bottom // scale)),
            slice(self.left // scale, -(-self.right // scale)),
        )


def cut(box: Box, side: int) -> Iterator[Box]:
    """Cut a box into squares of ``side`` (smaller at the right and bottom), row by row. ``side`` 0: no cut."""
    if not side:
        yield box
        return
    for top in range(box.top, box.bottom, side):
        for left in range(box.left, box.right, side):
            yield Box(left, top, min(left + side, box.right), min(top + side, box.bottom))


def default_tile(padded: Box) -> int:
    """Return the side of the tiles of an image if none is asked for, 0 for a single tile."""
    return TILE if padded.width * padded.height > TILED_FROM else 0
