"""Images to bytes and back: the class that :func:`ugicm.load` returns."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, overload

import torch
from PIL import Image
from torch import Tensor

from ugicm import bitstream, conversion, images, metadata, stored, windows
from ugicm.arguments import PREFERENCES
from ugicm.bitstream import Source
from ugicm.checkpoints.hub import local_path
from ugicm.checkpoints.native import load_model
from ugicm.checkpoints.released import load_any
from ugicm.conversion import Array, ImageLike, Output, Preference, Region
from ugicm.errors import ImageError, StreamError
from ugicm.images import SourceImage
from ugicm.inference import default_torch_settings, fast_dtype, in_inference_mode, map_in_threads
from ugicm.preference import to_beta
from ugicm.progress import steps
from ugicm.refinement import refine
from ugicm.tiling import Y_STRIDE, Z_STRIDE, Box, cut, default_tile

if TYPE_CHECKING:
    from ugicm.config import ModelConfig
    from ugicm.models.ugicm import UGICM

SHIPPED = "compact.safetensors"
ONE_RATE = 0.5  # quality in the header of a one-rate model's bitstream; asking for it gives no warning


def load(checkpoint: str | os.PathLike | None = None, device: str | torch.device = "cpu", fast: bool = True) -> Codec:
    """Load a codec.

    Args:
        checkpoint: path of a native ``.safetensors`` checkpoint, or of a released UG-ICM or MLIC++ ``.pth.tar``; an
            address hf://user/repository[@revision]/file of the Hugging Face Hub; None for the model shipped with the
            package.
        device: device to run on, for example "cpu" or "cuda:0". Every device reads the bitstreams of the others.
        fast: run most of the compact model's transforms in bfloat16 on devices that are fast at it. Bitstreams may then
            differ in a few symbols. Every device reads them, and decodes the same latents.

    Raises:
        CheckpointError: the file is missing, corrupt, of another kind, or would have to execute code to load.
    """
    with default_torch_settings():
        return Codec(read_model(checkpoint), device, fast)


def read_model(checkpoint: str | os.PathLike | None = None) -> UGICM:
    """Read the model of a checkpoint, as :func:`load` takes it: on the CPU, not yet prepared for coding."""
    if checkpoint is None:
        with resources.as_file(resources.files("ugicm") / "weights" / SHIPPED) as path:
            return load_model(path)
    return load_any(local_path(checkpoint))


class Codec:
    """A model ready for compression and decompression.

    :meth:`compress` and :meth:`decompress` convert between images and bytes. Latents and image tensors are available,
    too, for example as features of an analysis task:

    >>> parsed = ugicm.bitstream.parse(data)
    >>> y_hat = codec.entropy_decode(parsed)
    >>> human, machine = codec.synthesize(parsed, y_hat, [torch.tensor([0.0]), torch.tensor([1.0])])  # Pillow images
    >>> x_hat = codec.model.synthesize(y_hat, torch.tensor([1.0]), torch.tensor([parsed.quality]))

    ``y_hat`` are the latents [1, M, H/16, W/16], M being ``codec.config.M``, H and W the size of the padded image. They
    are float32 on :attr:`device`, unbounded, and scaled by ``codec.model.gain(quality)``, [1, M, 1, 1]: divide by it to
    compare bitstreams of different qualities. ``x_hat`` is the padded image [1, 3, H, W], float32 on the same device,
    in [0, 1] but not clamped.

    A codec can be pickled and shared between threads: calls keep no state. It works in spawned and in forked processes;
    in a forked one PyTorch computes with a single thread.

    Attributes:
        model: the network, prepared for coding.
        device: where the model runs.
        has_quality: whether ``quality`` has an effect; released checkpoints have one rate.
        fingerprint: six hexadecimal digits; only bitstreams with the same fingerprint can be decoded.
    """

    def __init__(self, model: UGICM, device: str | torch.device = "cpu", fast: bool = True):
        self.model = model.prepare_for_coding()  # builds missing CDF tables on the CPU
        self.model.to(memory_format=torch.channels_last)
        self._fast = fast
        self._warned = False  # that quality has no effect
        self.to(device)

    def to(self, device: str | torch.device) -> Codec:
        """Move to another device, in place. Returns self."""
        self.device = torch.device(device)
        self.model.to(self.device)
        # The compact model keeps sums and colors in float32. The released networks do not, and bfloat16 would change
        # their images by up to 7e-3 of the range.
        reduced = self._fast and self.config.backbone == "compact"
        self.model.transform_dtype = fast_dtype(self.device) if reduced else None
        return self

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        return f"Codec({self.config.backbone}, {millions:.2f} M parameters, model {self.fingerprint}, {self.device})"

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def has_quality(self) -> bool:
        return self.model.has_quality

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint.hex()

    @overload
    def compress(
        self, image: ImageLike | SourceImage, quality: float = ..., tile: int | None = ..., effort: int = ...,
        progress: bool = ..., effort_for: str = ...,
    ) -> bytes: ...  # fmt: skip
    @overload
    def compress(
        self, image: Sequence[ImageLike | Array], quality: float = ..., tile: int | None = ..., effort: int = ...,
        progress: bool = ..., effort_for: str = ...,
    ) -> list[bytes]: ...  # fmt: skip
    @overload
    def compress(
        self, image: Array, quality: float = ..., tile: int | None = ..., effort: int = ..., progress: bool = ...,
        effort_for: str = ...,
    ) -> Any: ...  # fmt: skip
    @in_inference_mode
    def compress(
        self,
        image: ImageLike | SourceImage | Array | Sequence[ImageLike | Array],
        quality: float = 0.5,
        tile: int | None = None,
        effort: int = 0,
        progress: bool = False,
        effort_for: str = "human",
    ) -> Any:
        """Compress an image to the bytes of a ``.ugic`` file, or a batch of images to a list.

        The bytes of a batch are those of its images compressed one by one.

        Args:
            image: a Pillow image of any mode, a path, bytes or open file, a uint8 array [H, W, 3] or a uint8 tensor
                [3, H, W]; or a batch of them (:mod:`ugicm.conversion`). Alpha, EXIF and XMP are kept, and gray images
                remain gray; for the colors alone give ``ugicm.images.open_rgb(image)``.
            quality: from 0 (small) to 1 (good). A one-rate model ignores it, with a warning once.
            tile: side of independently coded tiles, a multiple of 64 up to 16320 pixels; 0 for a single tile; None for
                tiles of 1024 if the image has more than 4 million pixels.
            effort: steps of latent refinement (:mod:`ugicm.refinement`): fewer bits, slower compression.
            progress: show a progress bar of latent refinement.
            effort_for: "human" or "machine", the preference whose images refinement keeps.

        Raises:
            ValueError: a quality outside of [0, 1], a tile that is not a multiple of 64, a negative effort, or an array
                or tensor of another shape or type.
            ImageError: a file that cannot be read as an image, or an image with no pixels or more than
                ``ugicm.bitstream.MAX_PIXELS``, which decoders would reject.
            CheckpointError: the latents are not finite or too large for a bitstream.
        """
        if (batch := conversion.batch_of(image)) is not None:
            return map_in_threads(
                lambda one: self.compress(one, quality, tile, effort, progress, effort_for), batch, self.device
            )
        source = (
            image if isinstance(image, SourceImage) else images.read(conversion.to_source(image), bitstream.too_large)
        )
        image = source.visible()
        quality = self._checked_quality(quality)
        effort = conversion.to_integer(effort, "effort")
        tile = default_tile(bitstream.padded_box(*image.size)) if tile is None else conversion.to_integer(tile, "tile")
        if tile % Z_STRIDE or not 0 <= tile <= bitstream.LARGEST_TILE:
            raise ValueError(f"tile is {tile}, must be a multiple of {Z_STRIDE} from 0 to {bitstream.LARGEST_TILE}")
        if reason := bitstream.too_large(*image.size, tile):
            raise ImageError(f"the image has {reason}")
        if effort < 0 or effort_for not in PREFERENCES:
            raise ValueError(f"effort is {effort} for {effort_for!r}, must be 0 or more steps for human or machine")
        levels = images.to_levels(image, Z_STRIDE)
        batched = self._batched(quality)
        y = windows.analyze(self.model, levels, batched)
        z = self.model.hyper_analyze(y)
        if effort:
            x = levels.float() / 255
            y = refine(self.model, x, y, z, batched, effort, image.size, progress, effort_for == "machine")
        return self.entropy_encode(source, y, z, quality, tile)

    def entropy_encode(self, source: SourceImage, y: Tensor, z: Tensor, quality: float, tile: int) -> bytes:
        """Return the bitstream of an image, given its latents at a quality that a header can hold."""
        strings, digests = [], []
        for box in steps(cut(bitstream.padded_box(*source.size), tile), "entropy encoding", "tile"):
            y_tile, z_tile = y[..., *box.slices(Y_STRIDE)], z[..., *box.slices(Z_STRIDE)]
            extent = bitstream.coded_extent(box, *source.size)
            (string,), (digest,) = self.model.entropy_encode(y_tile, z_tile, extent)
            strings.append(string)
            digests.append(digest)
        return bitstream.Bitstream(
            *source.size, self.model.fingerprint, quality, tile, tuple(digests), tuple(strings), source.gray,
            boxes=metadata.to_boxes(source),
        ).pack()  # fmt: skip

    @overload
    def decompress(self, data: Source, preference: Preference = ..., region: Region | None = ...) -> Image.Image: ...
    @overload
    def decompress(
        self, data: Source, preference: Sequence[Preference], region: Region | None = ...
    ) -> list[Image.Image]: ...
    @overload
    def decompress(
        self, data: Sequence[Source], preference: Preference = ..., region: Region | None = ...
    ) -> list[Image.Image]: ...
    @overload
    def decompress(
        self, data: Sequence[Source], preference: Sequence[Preference], region: Region | None = ...
    ) -> list[list[Image.Image]]: ...
    @overload
    def decompress(
        self, data: Source | Sequence[Source], preference: Preference | Sequence[Preference] = ...,
        region: Region | None = ..., *, output: Output,
    ) -> Any: ...  # fmt: skip
    def decompress(
        self, data: Source | Sequence[Source], preference: Preference | Sequence[Preference] = 0.0,
        region: Region | None = None, output: Output = "pil",
    ) -> Any:  # fmt: skip
        """Decode a bitstream for one preference, or for a list of preferences with a single entropy decoding.

        Args:
            data: bytes of a ``.ugic`` file, its path, or an open binary file. A list of them gives a list.
            preference: a number from 0 (human) to 1 (machine), "human", "machine", or a map of the image's size: a
                float array [H, W] in [0, 1], or a Pillow image whose gray levels 0...255 stand for 0...1. A list of
                preferences gives a list of images.
            region: (x, y, width, height) in pixels: decode only this part of the image. If the bitstream has tiles,
                the cost is in proportion to its area.
            output: "pil" for Pillow images, "numpy" for uint8 arrays [H, W, 3], "tensor" for uint8 tensors [3, H, W]
                on the CPU.

        Raises:
            StreamError: the bitstream cannot be read, is corrupt, truncated, of an unsupported version or of another
                model.
            ValueError: a preference outside of [0, 1], a map of another size, a region that is not four integers
                inside the image, or an unknown output.
        """
        conversion.check_output(output)
        if (batch := conversion.batch_of(data)) is not None:
            return map_in_threads(
                lambda one: self.decompress(one, preference, region, output=output), batch, self.device
            )
        parsed = bitstream.parse(data)
        several = isinstance(preference, Sequence) and not isinstance(preference, str)
        betas = [to_beta(p, (parsed.width, parsed.height)) for p in (preference if several else [preference])]
        whole = Box(0, 0, parsed.width, parsed.height)
        view = whole if region is None else whole.part(region)
        y_hat = self.entropy_decode(parsed, view) if betas and not parsed.stored else None
        decoded = [conversion.from_image(image, output) for image in self.restore(parsed, y_hat, betas, view)]
        return decoded if several else decoded[0]

    def restore(
        self, parsed: bitstream.Bitstream, y_hat: Tensor | None, betas: list[Tensor], view: Box | None = None
    ) -> list[Image.Image]:
        """Return the images of :meth:`synthesize` as the source was: gray if it was, with its alpha, EXIF and XMP.

        ``y_hat`` is not used if the bitstream stores the image. Raises StreamError if what it stores is invalid.
        """
        view = view or Box(0, 0, parsed.width, parsed.height)
        if parsed.stored:
            image = stored.unpack(parsed).crop((view.left, view.top, view.right, view.bottom))
            decoded = [image.copy() for _ in betas]
        else:
            decoded = self.synthesize(parsed, y_hat, betas, view) if betas else []
        return [metadata.restore(image, parsed, view) for image in decoded]

    @in_inference_mode
    def entropy_decode(self, parsed: bitstream.Bitstream, view: Box | None = None) -> Tensor:
        """Decode the latents y_hat [1, M, H/16, W/16] of a parsed file, H and W being those of the padded image.

        With ``view``, a box in pixels, only the tiles that it depends on are decoded; elsewhere y_hat is 0. The result
        is float32 on :attr:`device`.

        Raises StreamError if the bitstream is of another model, or corrupt.
        """
        if parsed.fingerprint != self.model.fingerprint:
            raise StreamError(
                f"the bitstream was written by another model: its fingerprint is {parsed.fingerprint.hex()}, this "
                f"model's is {self.fingerprint}; load the checkpoint it was written with"
            )
        padded = parsed.padded
        needed = padded if view is None else view.grown(self.config.halo, padded)
        shape = (1, self.config.M, padded.height // Y_STRIDE, padded.width // Y_STRIDE)
        y_hat = torch.zeros(shape, device=self.device, dtype=torch.float32)
        tiles = [(i, box) for i, box in enumerate(parsed.tiles) if box.meets(needed)]
        for i, box in steps(tiles, "entropy decoding", "tile"):
            y_hat[..., *box.slices(Y_STRIDE)] = self._decode_tile(parsed, i, box)
        return y_hat

    def _decode_tile(self, parsed: bitstream.Bitstream, i: int, box: Box) -> Tensor:
        size, extent = (box.height, box.width), parsed.extent(box)
        y_hat, (digest,) = self.model.entropy_decode([parsed.strings[i]], size, extent)
        if digest != parsed.digests[i]:
            raise StreamError("corrupt bitstream: its symbols do not match their digest")
        return y_hat

    @in_inference_mode
    def synthesize(
        self, parsed: bitstream.Bitstream, y_hat: Tensor, betas: list[Tensor], view: Box | None = None
    ) -> list[Image.Image]:
        """Return one RGB image for each preference in ``betas``, each a tensor [1] or a map [1, 1, H, W] in [0, 1].

        ``y_hat`` is what :meth:`entropy_decode` returned for ``parsed``. With ``view``, a box in pixels, the images
        show only this part.
        """
        view = view or Box(0, 0, parsed.width, parsed.height)
        quality = self._batched(parsed.quality)
        return windows.synthesize(self.model, y_hat, betas, quality, view)

    def describe(self) -> dict[str, Any]:
        """Return facts about the model for results files and reports."""
        return {
            "backbone": self.config.backbone,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "fingerprint": self.fingerprint,
            "variable quality": self.has_quality,
            "table rows from": "float32 scales" if self.model.entropy_model.indexes is None else "integer networks",
            "transform precision": str(self.model.transform_dtype or torch.float32).removeprefix("torch."),
            "device": str(self.device),
        }

    def _checked_quality(self, quality: float) -> float:
        """Return the quality as the header stores it."""
        quality = float(quality)
        if not 0 <= quality <= 1:
            raise ValueError(f"quality is {quality}, must be from 0 (small) to 1 (good)")
        quality = bitstream.quantize_quality(quality)
        if self.has_quality:
            return quality
        if quality != bitstream.quantize_quality(ONE_RATE) and not self._warned:
            self._warned = True
            warnings.warn("this model has one rate: quality has no effect", stacklevel=4)
        return ONE_RATE

    def _batched(self, quality: float) -> Tensor:
        """Return the quality as the model takes it: [1]."""
        return torch.tensor([quality], device=self.device, dtype=torch.float32)
