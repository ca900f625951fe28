"""Pictures to bytes and back: what :func:`ugicm.load` returns."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ugicm import pictures
from ugicm.checkpoint import load_model
from ugicm.coding import stream
from ugicm.errors import CheckpointError, StreamError
from ugicm.released import load_released

if TYPE_CHECKING:
    from ugicm.models.codec import UGICM

PREFERENCES = {"human": 0.0, "machine": 1.0}
SHIPPED = "compact.safetensors"


def load(checkpoint: str | os.PathLike | None = None, device: str | torch.device = "cpu", fast: bool = True) -> Codec:
    """Load a codec.

    Args:
        checkpoint: None for the model shipped with the package; else the path of a ``.safetensors`` checkpoint of
            ours, or of a released UG-ICM or MLIC++ ``.pth.tar``.
        device: where to run, for example "cpu" or "cuda:0". Streams do not depend on it.
        fast: run analysis and synthesis in bfloat16 where the device is quick at it. Parsing is never affected.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or would have to execute code to load.
    """
    if checkpoint is None:
        with resources.as_file(resources.files("ugicm") / "weights" / SHIPPED) as path:
            return Codec(load_model(path), device, fast)
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    model = load_model(path) if path.suffix == ".safetensors" else load_released(path)
    return Codec(model, device, fast)


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where it is hardware on ``device``; None (float32) elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return torch.bfloat16
    return None


class Codec:
    """A model ready for use. Safe to share between threads: calls share the weights and keep no state.

    Attributes:
        model: the network, prepared for coding.
        has_quality: whether ``quality`` has an effect; released checkpoints have one rate.
        fingerprint: six hex digits; only streams that carry the same can be decoded.
    """

    def __init__(self, model: UGICM, device: str | torch.device = "cpu", fast: bool = True):
        self.device = torch.device(device)
        self.model = model.to(self.device).prepare_for_coding()
        self.model.to(memory_format=torch.channels_last)
        self.model.transform_dtype = fast_dtype(self.device) if fast else None
        self._warned = threading.Event()

    @property
    def config(self):
        return self.model.config

    @property
    def has_quality(self) -> bool:
        return self.model.has_quality

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint.hex()

    @torch.inference_mode()
    def compress(self, image: Image.Image | str | os.PathLike, quality: float = 0.5) -> bytes:
        """Compress a picture (any Pillow mode, or a file's path) to the bytes of a ``.ugic`` file.

        ``quality`` in [0, 1]: higher looks better and takes more bytes. A one-rate model warns once that it has no
        effect.

        Raises:
            ValueError: a quality outside [0, 1].
            PictureError: a file that cannot be read as a picture.
        """
        image = pictures.open_rgb(image)
        quality, batched = self._quality(quality, 1)
        x = pictures.pad_to(pictures.to_tensor(image).to(self.device), self.model.stride)
        strings, digests = self.model.compress(x.contiguous(memory_format=torch.channels_last), batched)
        return stream.Stream(*image.size, self.model.fingerprint, quality, digests[0], strings[0]).pack()

    def decompress(
        self, data: bytes, preference: Any = 0.0
    ) -> Image.Image | list[Image.Image]:
        """Decode a stream for one viewer, or for a list of them with the stream parsed once.

        ``preference``: a number from 0 (human) to 1 (machine), "human", "machine", or a map of the picture's size
        (float array [H, W] in [0, 1], or a Pillow picture whose grey levels 0...255 stand for 0...1): machine where
        it is bright. A list gives a list of pictures.

        Raises:
            StreamError: the stream is damaged, truncated, foreign, or was written by another model.
            ValueError: a preference outside [0, 1], or a map of another size.
        """
        parsed = stream.parse(data)
        several = isinstance(preference, Sequence) and not isinstance(preference, str)
        betas = [self._beta(p, (parsed.width, parsed.height)) for p in (preference if several else [preference])]
        images = self.synthesize(parsed, self.parse(parsed), betas) if betas else []
        return images if several else images[0]

    @torch.inference_mode()
    def parse(self, parsed: stream.Stream) -> Tensor:
        """Read y_hat [1, M, h, w] from a parsed file. Raises StreamError if the stream was not written for this."""
        if parsed.fingerprint != self.model.fingerprint:
            raise StreamError(
                f"the stream was written by another model: its fingerprint is {parsed.fingerprint.hex()}, this model's "
                f"is {self.fingerprint}; load the checkpoint it was written with"
            )
        y_hat, digests = self.model.decompress([parsed.payload], self._padded(parsed))
        if digests[0] != parsed.digest:
            raise StreamError("damaged stream: its symbols do not match their digest")
        return y_hat

    @torch.inference_mode()
    def synthesize(self, parsed: stream.Stream, y_hat: Tensor, betas: list[Tensor]) -> list[Image.Image]:
        """Pictures for a list of preferences, each [1] or a map [1, 1, H, W]."""
        _, quality = self._quality(parsed.quality, 1)
        height, width = self._padded(parsed)
        images = []
        for beta in betas:
            if beta.dim() == 4:
                beta = pictures.pad_to(beta, self.model.stride)
            x_hat = self.model.synthesize(y_hat, beta.to(self.device), quality)
            images.append(pictures.from_tensor(x_hat[..., : parsed.height, : parsed.width]))
        return images

    @torch.inference_mode()
    def estimate_bits(self, image: Image.Image | str | os.PathLike, quality: float = 0.5) -> float:
        """Bits that the model's probabilities predict for the payload of ``image``."""
        x = pictures.pad_to(pictures.to_tensor(pictures.open_rgb(image)).to(self.device), self.model.stride)
        x = x.contiguous(memory_format=torch.channels_last)
        likelihoods = self.model(x, torch.zeros(1, device=self.device), self._quality(quality, 1)[1])["likelihoods"]
        return float(sum(-value.double().log2().sum() for value in likelihoods.values()))

    def describe(self) -> dict[str, Any]:
        """Facts about the model, for records and people."""
        return {
            "backbone": self.config.backbone,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "fingerprint": self.fingerprint,
            "variable quality": self.has_quality,
            "parsing arithmetic": self.config.parsing,
            "transform precision": str(self.model.transform_dtype or torch.float32).removeprefix("torch."),
            "device": str(self.device),
        }

    def _padded(self, parsed: stream.Stream) -> tuple[int, int]:
        stride = self.model.stride
        return -(-parsed.height // stride) * stride, -(-parsed.width // stride) * stride

    def _quality(self, quality: float, batch: int) -> tuple[float, Tensor | None]:
        """The quality as the header holds it, and as the model takes it."""
        quality = float(quality)
        if not 0 <= quality <= 1:
            raise ValueError(f"quality is {quality}, must be from 0 (small) to 1 (good)")
        if not self.has_quality:
            if quality != ONE_RATE and not self._warned.is_set():
                self._warned.set()
                warnings.warn("this model has one rate: quality has no effect", stacklevel=4)
            return ONE_RATE, None
        quality = stream.quantise_quality(quality)
        return quality, torch.full((batch,), quality, device=self.device)

    def _beta(self, preference: Any, size: tuple[int, int]) -> Tensor:
        if isinstance(preference, str):
            if preference not in PREFERENCES:
                raise ValueError(f"preference {preference!r} not found; available: human, machine, or a number in [0, 1]")
            preference = PREFERENCES[preference]
        if isinstance(preference, Image.Image):
            preference = np.asarray(preference.convert("L"), dtype=np.float32) / 255
        beta = torch.as_tensor(np.asarray(preference, dtype=np.float32))
        if beta.dim() not in (0, 2) or beta.dim() == 2 and tuple(beta.shape) != size[::-1]:
            raise ValueError(
                f"a preference is a number or a map of the picture's size {size[0]}x{size[1]}, got shape {tuple(beta.shape)}"
            )
        if not bool(((beta >= 0) & (beta <= 1)).all()):
            raise ValueError("preference must be from 0 (human) to 1 (machine)")
        return beta[None] if beta.dim() == 0 else beta[None, None]


ONE_RATE = 0.5  # what the header of a one-rate model's stream holds, and the quality that asks nothing of it
