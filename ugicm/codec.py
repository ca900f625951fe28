"""Images to bytes and back: what :func:`ugicm.load` returns."""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ugicm import bitstream, images
from ugicm.checkpoints.native import check_readable, load_model
from ugicm.checkpoints.released import load_any
from ugicm.errors import StreamError
from ugicm.refinement import refine
from ugicm.tiling import Y_STRIDE, Z_STRIDE, Box, cut

if TYPE_CHECKING:
    from ugicm.models.ugicm import UGICM

PREFERENCES = {"human": 0.0, "machine": 1.0}
SHIPPED = "compact.safetensors"
ONE_RATE = 0.5  # what the header of a one-rate model's stream holds, and the quality that asks nothing of it

TILE = 1024  # images of more than TILED_FROM pixels, padded, are coded in tiles of this side
TILED_FROM = 2**22
WINDOW = 4096  # analysis and synthesis see at most this side, and a halo around it, at once


def load(checkpoint: str | os.PathLike | None = None, device: str | torch.device = "cpu", fast: bool = True) -> Codec:
    """Load a codec.

    Args:
        checkpoint: None for the model shipped with the package; else the path of a ``.safetensors`` checkpoint of
            ours, or of a released UG-ICM or MLIC++ ``.pth.tar``.
        device: where to run, for example "cpu" or "cuda:0". Streams of one are read on every other.
        fast: run most of the compact model's synthesis in bfloat16 where the device is quick at it. Streams are never
            affected.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or would have to execute code to load.
    """
    with _plain_defaults():
        if checkpoint is None:
            with resources.as_file(resources.files("ugicm") / "weights" / SHIPPED) as path:
                return Codec(load_model(path), device, fast)
        check_readable(checkpoint)
        return Codec(load_any(checkpoint), device, fast)


def _whole(value: Any, name: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, must be an integer") from None


@contextlib.contextmanager
def _plain_defaults() -> Iterator[None]:
    """PyTorch's own default device and type, whatever the caller has set: a model's numbers do not depend on them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(before)


def _undisturbed(method: Callable) -> Callable:
    """Run a method of :class:`Codec` without gradients, and without the caller's autocast: it would change streams."""

    @functools.wraps(method)
    def run(self: Codec, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return run


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where it is hardware on ``device``; None (float32) elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    # Without matrix units bfloat16 is slower than float32 on some processors, and costs up to 0.01 dB.
    if device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return torch.bfloat16
    return None


class Codec:
    """A model ready for use. Safe to share between threads: calls share the weights and keep no state, but for
    scratch memory of each thread (about 135 MiB for the released form, none for the compact one). It can be pickled.

    A process that was *forked* from one that has already computed with several threads hangs in PyTorch's OpenMP: call
    ``torch.set_num_threads(1)`` there first, or start processes by spawn.

    Attributes:
        model: the network, prepared for coding.
        has_quality: whether ``quality`` has an effect; released checkpoints have one rate.
        fingerprint: six hex digits; only streams that carry the same can be decoded.
    """

    def __init__(self, model: UGICM, device: str | torch.device = "cpu", fast: bool = True):
        self.model = model.prepare_for_coding()  # tables that are not there yet are made on the CPU
        self.model.to(memory_format=torch.channels_last)
        self._fast = fast
        self._warned = False
        self.to(device)

    def to(self, device: str | torch.device) -> Codec:
        """Move to another device, in place. Returns self."""
        self.device = torch.device(device)
        self.model.to(self.device)
        # The compact model keeps sums and colors in float32; the released networks do not, and lose 7e-3 of the
        # image's range in bfloat16.
        reduced = self._fast and self.config.backbone == "compact"
        self.model.synthesis_dtype = fast_dtype(self.device) if reduced else None
        return self

    @property
    def config(self):
        return self.model.config

    @property
    def has_quality(self) -> bool:
        return self.model.has_quality

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint.hex()

    @_undisturbed
    def compress(
        self,
        image: Image.Image | str | os.PathLike,
        quality: float = 0.5,
        tile: int | None = None,
        effort: int = 0,
        progress: bool = False,
    ) -> bytes:
        """Compress an image (any Pillow mode, or a file's path) to the bytes of a ``.ugic`` file.

        ``quality`` in [0, 1]: higher looks better and takes more bytes, on photographs. A one-rate model warns once
        that it has no effect. ``tile``: side of independently coded tiles, a multiple of 64 up to 16320; 0 for one
        piece; None chooses tiles of 1024 for images of more than 4 million pixels. ``effort``: steps of
        :mod:`ugicm.refinement`, which adapts the latents to this image: fewer bits for what people see, longer to
        write, no longer to read. ``progress`` shows a bar meanwhile.

        Raises:
            ValueError: a quality outside [0, 1], a tile that is no multiple of 64, or a negative effort.
            ImageError: a file that cannot be read as an image, or one with no pixels or more of them than
                ``ugicm.bitstream.MAX_PIXELS``, which readers would refuse.
            CheckpointError: the weights give latents that no stream can hold: not finite, or too large.
        """
        image = images.open_rgb(image, bitstream.too_large)
        quality, batched = self._quality(quality)
        padded = bitstream.padded_box(*image.size)
        effort = _whole(effort, "effort")
        if tile is not None:
            tile = _whole(tile, "tile")
        else:
            tile = TILE if padded.width * padded.height > TILED_FROM else 0
        if tile % Z_STRIDE or not 0 <= tile <= bitstream.LARGEST_TILE:
            raise ValueError(f"tile is {tile}, must be a multiple of {Z_STRIDE} from 0 to {bitstream.LARGEST_TILE}")
        if effort < 0:
            raise ValueError(f"effort is {effort}, must be 0 (none) or a number of steps")
        levels = images.to_levels(image, Z_STRIDE)
        y = self._analyze(levels, batched)
        z = self.model.hyper_analyze(y)
        if effort:
            x = levels.float() / 255
            y = refine(self.model, x, y, z, batched, effort, image.size, progress)
        strings, digests = [], []
        for box in cut(padded, tile):
            inside = bitstream.inside_of(box, *image.size)
            y_here, z_here = y[..., *box.slices(Y_STRIDE)], z[..., *box.slices(Z_STRIDE)]
            (string,), (digest,) = self.model.write(y_here, z_here, inside)
            strings.append(string)
            digests.append(digest)
        return bitstream.Stream(
            *image.size, self.model.fingerprint, quality, tile, tuple(digests), tuple(strings)
        ).pack()

    def decompress(
        self, data: bytes, preference: Any = 0.0, region: tuple[int, int, int, int] | None = None
    ) -> Image.Image | list[Image.Image]:
        """Decode a stream for one viewer, or for a list of them with the stream parsed once.

        ``preference``: a number from 0 (human) to 1 (machine), "human", "machine", or a map of the image's size
        (float array [H, W] in [0, 1], or a Pillow image whose gray levels 0...255 stand for 0...1): machine where
        it is bright. A list gives a list of images. ``region`` (x, y, width, height): only this part of the
        image, at a cost near its area where the stream has tiles.

        Raises:
            StreamError: the stream is damaged, truncated, foreign, or was written by another model.
            ValueError: a preference outside [0, 1], a map of another size, or a region that is not four integers
                inside the image.
        """
        parsed = bitstream.parse(data)
        several = isinstance(preference, Sequence) and not isinstance(preference, str)
        betas = [self._beta(p, (parsed.width, parsed.height)) for p in (preference if several else [preference])]
        view = Box(0, 0, parsed.width, parsed.height)
        if region is not None:
            view = self._view(region, parsed)
        images = self.synthesize(parsed, self.parse(parsed, view), betas, view) if betas else []
        return images if several else images[0]

    @_undisturbed
    def parse(self, parsed: bitstream.Stream, view: Box | None = None) -> Tensor:
        """Read y_hat [1, M, H/16, W/16] from a parsed file, H and W being those of the padded image.

        With ``view``, only the tiles that it depends on are read; elsewhere y_hat is 0. In the parser's precision, of
        streams with tiles in float32.

        Raises StreamError if the stream was not written by this model, or its symbols do not match their digests.
        """
        if parsed.fingerprint != self.model.fingerprint:
            raise StreamError(
                f"the stream was written by another model: its fingerprint is {parsed.fingerprint.hex()}, this model's "
                f"is {self.fingerprint}; load the checkpoint it was written with"
            )
        padded = parsed.padded
        needed = padded if view is None else view.grown(self.config.halo, padded)
        if not parsed.tile:
            return self._read_tile(parsed, 0, padded)
        shape = (1, self.config.M, padded.height // Y_STRIDE, padded.width // Y_STRIDE)
        y_hat = torch.zeros(shape, device=self.device, dtype=torch.float32)  # as synthesis takes it
        for i, box in enumerate(parsed.tiles):
            if box.meets(needed):
                y_hat[..., *box.slices(Y_STRIDE)] = self._read_tile(parsed, i, box)
        return y_hat

    def _read_tile(self, parsed: bitstream.Stream, i: int, box: Box) -> Tensor:
        y_hat, (digest,) = self.model.decompress([parsed.strings[i]], (box.height, box.width), parsed.inside(box))
        if digest != parsed.digests[i]:
            raise StreamError("damaged stream: its symbols do not match their digest")
        return y_hat

    @_undisturbed
    def synthesize(
        self, parsed: bitstream.Stream, y_hat: Tensor, betas: list[Tensor], view: Box | None = None
    ) -> list[Image.Image]:
        """Images (of ``view`` only, where given) for a list of preferences, each [1] or a map [1, 1, H, W]."""
        view = view or Box(0, 0, parsed.width, parsed.height)
        _, quality = self._quality(parsed.quality)
        decoded = []
        for beta in betas:
            if beta.dim() == 4:
                beta = images.pad_to(beta, Z_STRIDE)
            image = Image.new("RGB", (view.width, view.height), None)  # not filled first
            for inside in cut(view, WINDOW):
                around = inside.grown(self.config.halo, parsed.padded).aligned(Y_STRIDE)
                beta_here = beta[..., *around.slices()] if beta.dim() == 4 else beta
                x_hat = self.model.synthesize(y_hat[..., *around.slices(Y_STRIDE)], beta_here, quality)
                piece = images.from_tensor(x_hat[..., *inside.within(around).slices()])
                image.paste(piece, (inside.left - view.left, inside.top - view.top))
            decoded.append(image)
        return decoded

    def _analyze(self, levels: Tensor, quality: Tensor | None) -> Tensor:
        """y of a padded image, uint8 on the CPU, window by window: only they go to the device, and become floats."""
        padded = Box(0, 0, levels.shape[3], levels.shape[2])
        windows = list(cut(padded, WINDOW))
        y = None
        for inside in windows:
            around = inside.grown(self.config.halo, padded)
            piece = levels[..., *around.slices()].to(self.device)
            piece = piece.to(torch.float32, memory_format=torch.channels_last).div_(255)
            part = self.model.analyze(piece, quality)[..., *inside.within(around).slices(Y_STRIDE)]
            if len(windows) == 1:
                return part
            if y is None:
                y = part.new_empty(1, self.config.M, padded.height // Y_STRIDE, padded.width // Y_STRIDE)
            y[..., *inside.slices(Y_STRIDE)] = part
        return y

    def describe(self) -> dict[str, Any]:
        """Facts about the model, for records and people."""
        return {
            "backbone": self.config.backbone,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "fingerprint": self.fingerprint,
            "variable quality": self.has_quality,
            "parsing arithmetic": self.config.parsing,
            "synthesis precision": str(self.model.synthesis_dtype or torch.float32).removeprefix("torch."),
            "device": str(self.device),
        }

    @staticmethod
    def _view(region: tuple[int, int, int, int], parsed: bitstream.Stream) -> Box:
        try:
            x, y, width, height = map(operator.index, region)
        except (TypeError, ValueError):
            raise ValueError(f"region {region!r} is not four integers: x, y, width, height") from None
        view = Box(x, y, x + width, y + height)
        if not (0 <= x < view.right <= parsed.width and 0 <= y < view.bottom <= parsed.height):
            raise ValueError(f"region {region} is not inside the image of {parsed.width}x{parsed.height}")
        return view

    def _quality(self, quality: float) -> tuple[float, Tensor | None]:
        """The quality as the header holds it, and as the model takes it."""
        quality = float(quality)
        if not 0 <= quality <= 1:
            raise ValueError(f"quality is {quality}, must be from 0 (small) to 1 (good)")
        if not self.has_quality:
            if bitstream.quantize_quality(quality) != bitstream.quantize_quality(ONE_RATE) and not self._warned:
                self._warned = True
                warnings.warn("this model has one rate: quality has no effect", stacklevel=4)
            return ONE_RATE, None
        quality = bitstream.quantize_quality(quality)
        return quality, torch.tensor([quality], device=self.device, dtype=torch.float32)

    def _beta(self, preference: Any, size: tuple[int, int]) -> Tensor:
        if isinstance(preference, str):
            if preference not in PREFERENCES:
                raise ValueError(f"preference {preference!r} not found; available: human, machine, a number in [0, 1]")
            preference = PREFERENCES[preference]
        if isinstance(preference, Image.Image):
            preference = np.asarray(images.open_rgb(preference).convert("L"), dtype=np.float32) / 255
        if isinstance(preference, Tensor):
            preference = preference.detach().double().cpu().numpy()
        beta = torch.from_numpy(np.array(preference, dtype=np.float64))
        if beta.dim() not in (0, 2) or beta.dim() == 2 and tuple(beta.shape) != size[::-1]:
            raise ValueError(
                f"a preference is a number or a map of the image's size {size[0]}x{size[1]}, "
                f"got shape {tuple(beta.shape)}"
            )
        if not bool(((beta >= 0) & (beta <= 1)).all()):
            raise ValueError("preference must be from 0 (human) to 1 (machine)")
        beta = beta.float()
        return beta[None] if beta.dim() == 0 else beta[None, None]
