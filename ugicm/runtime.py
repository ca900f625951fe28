"""A codec without PyTorch: NumPy, ONNX Runtime and constriction run the files that ``ugicm export`` writes.

>>> from ugicm import runtime
>>> codec = runtime.load("exported/")
>>> human, machine = codec.decompress(data, ["human", "machine"])  # uint8 arrays [H, W, 3]

Symbols of a bitstream are those that ``ugicm.load`` decodes. Images may differ by a level.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ugicm import bitstream
from ugicm.arguments import PREFERENCES
from ugicm.entropy.ans import SymbolDecoder, SymbolEncoder, Tables
from ugicm.errors import CheckpointError, ImageError, StreamError
from ugicm.extras import require_packages
from ugicm.tiling import TILE, TILED_FROM, Y_STRIDE, Z_STRIDE, Box, cut

if TYPE_CHECKING:
    import onnxruntime

WINDOW = 2048  # analysis and synthesis process at most this side, and a halo around it, at once
FORMAT = "ugicm onnx"  # of model.json


def load(folder: str | os.PathLike) -> Codec:
    """Load the files that ``ugicm export`` wrote into a folder.

    Raises:
        CheckpointError: the folder holds no exported model, or one for bitstreams of another version.
        MissingPackageError: onnxruntime is not installed.
    """
    require_packages("runtime", "ugicm.runtime", "onnxruntime")
    model, tables = (_read_json(Path(folder) / name) for name in ("model.json", "tables.json"))
    if model.get("format") != FORMAT or model["bitstream_version"] != bitstream.VERSION:
        raise CheckpointError(f"{folder}: no model of bitstream version {bitstream.VERSION}; run ugicm export again")
    return Codec(Path(folder), model, tables)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; run ugicm export") from None


def _tables(table: dict[str, list]) -> Tables:
    lengths = np.array([len(cdf) for cdf in table["cdfs"]])
    cdfs = np.zeros((len(lengths), lengths.max()), dtype=np.int32)
    for row, cdf in zip(cdfs, table["cdfs"]):
        row[: len(cdf)] = cdf
    return Tables(cdfs, lengths, np.array(table["offsets"]))


class Codec:
    """An exported model. ONNX files are opened when they are first needed.

    Attributes:
        fingerprint: six hexadecimal digits; only bitstreams with the same fingerprint can be decoded.
    """

    def __init__(self, folder: Path, model: dict[str, Any], tables: dict[str, dict[str, list]]):
        self.fingerprint: str = model["fingerprint"]
        self._folder = folder
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._halo, self._has_quality = model["halo"], model["has_quality"]
        config = model["config"]
        self._channels, self._z_channels, self._widths = config["M"], config["N"], config["slice_widths"]
        self._z_tables, self._y_tables = _tables(tables["z"]), _tables(tables["y"])

    def decompress(self, data: bytes, preference: Any = 0.0) -> np.ndarray | list[np.ndarray]:
        """Decode a bitstream for a preference, "human", "machine" or a number in [0, 1], or for a list of preferences.

        Returns an array, or a list of arrays, uint8 [H, W, 3]. Alpha and metadata are left out.

        Raises:
            StreamError: the bitstream is corrupt, truncated, of an unsupported version or of another model, or stores
                an image file.
            ValueError: an invalid preference.
        """
        several = isinstance(preference, Sequence) and not isinstance(preference, str)
        betas = [_beta(p) for p in (preference if several else [preference])]
        parsed = bitstream.parse(data)
        decoded = self.synthesize(parsed, self.entropy_decode(parsed), betas)
        return decoded if several else decoded[0]

    def entropy_decode(self, parsed: bitstream.Bitstream) -> np.ndarray:
        """Return the latents y_hat of a parsed file, float32 [1, M, H/16, W/16]. Raises StreamError."""
        if parsed.stored:
            raise StreamError("the bitstream stores an image file, which needs Pillow; decode it with ugicm.load")
        if parsed.fingerprint.hex() != self.fingerprint:
            raise StreamError(
                f"the bitstream was written by another model: its fingerprint is {parsed.fingerprint.hex()}, this "
                f"model's is {self.fingerprint}; export the checkpoint it was written with"
            )
        y_hat = np.empty((1, self._channels, *_size(parsed.padded, Y_STRIDE)), dtype=np.float32)
        for tile, string, digest in zip(parsed.tiles, parsed.strings, parsed.digests):
            hyper, residuals = self.decode_symbols(string, digest, tile, parsed.extent(tile))
            (y_hat[..., *tile.slices(Y_STRIDE)],) = self._run("means", hyper, residuals)
        return y_hat

    def decode_symbols(
        self, string: bytes, digest: int, tile: Box, extent: tuple[int, int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the hyper context [1, C, H, W] and the residuals [1, M, H, W] of a tile. Raises StreamError."""
        decoder, coded = SymbolDecoder(string), _coded(tile, extent)
        z_shape = (1, self._z_channels, *_size(tile, Z_STRIDE))
        z = decoder.decode(_hyper_rows(z_shape), self._z_tables).reshape(z_shape).astype(np.float32)
        (hyper,) = self._run("hyper_synthesis", z)
        residuals = np.zeros((1, self._channels, *coded.shape), dtype=np.float32)
        start = 0
        for k, part in enumerate(self.split(residuals)):
            (rows,) = self._run(f"indices_{k}", hyper, *([residuals[:, :start]] if k else []))
            where = (rows > 0) & (coded > 0)
            part[where] = decoder.decode(rows[where].astype(np.int32), self._y_tables)
            start += part.shape[1]
        decoder.finish()
        if decoder.digest != digest:
            raise StreamError("corrupt bitstream: its symbols do not match their digest")
        return hyper, residuals

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Return views of the slices of y, of its residuals or of its table rows, [1, M, H, W]."""
        return np.split(values, np.cumsum(self._widths)[:-1], axis=1)

    def synthesize(self, parsed: bitstream.Bitstream, y_hat: np.ndarray, betas: Sequence[float]) -> list[np.ndarray]:
        """Return one image, uint8 [H, W, 3], for each preference in [0, 1]."""
        images = [np.empty((parsed.height, parsed.width, 3), dtype=np.uint8) for _ in betas]
        quality = np.array([parsed.quality], dtype=np.float32)
        for window in cut(Box(0, 0, parsed.width, parsed.height), WINDOW):
            around = window.grown(self._halo, parsed.padded).aligned(Y_STRIDE)
            latents = y_hat[..., *around.slices(Y_STRIDE)]
            human, difference = self._run("synthesis", latents, quality)
            inside = (0, slice(None), *window.within(around).slices())
            for image, beta in zip(images, betas):
                pixels = human[inside] + np.float32(beta) * difference[inside]
                image[window.slices()] = np.rint(pixels.transpose(1, 2, 0).clip(0, 1) * np.float32(255))
        return images

    def compress(self, image: np.ndarray, quality: float = 0.5) -> bytes:
        """Compress sRGB values, uint8 [H, W, 3], to the bytes of a ``.ugic`` file.

        ``quality`` is from 0 (small) to 1 (good). A one-rate model ignores it. Images of more than 4 million pixels are
        coded in tiles.

        Raises:
            ImageError: not such an array, or more pixels than ``ugicm.bitstream.MAX_PIXELS``.
            ValueError: a quality outside of [0, 1].
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(f"an image is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        height, width = image.shape[:2]
        if reason := bitstream.too_large(width, height):
            raise ImageError(f"the image has {reason}")
        if not 0 <= quality <= 1:
            raise ValueError(f"quality is {quality}, must be from 0 (small) to 1 (good)")
        quality = bitstream.quantize_quality(quality if self._has_quality else 0.5)
        padded = bitstream.padded_box(width, height)
        tile = TILE if padded.width * padded.height > TILED_FROM else 0
        y = self.analyze(image, quality)
        (z,) = self._run("hyper_analysis", y)
        strings, digests = [], []
        for box in cut(padded, tile):
            string, digest = self._encode_tile(y, z, box, bitstream.coded_extent(box, width, height))
            strings.append(string)
            digests.append(digest)
        fingerprint = bytes.fromhex(self.fingerprint)
        return bitstream.Bitstream(width, height, fingerprint, quality, tile, tuple(digests), tuple(strings)).pack()

    def analyze(self, image: np.ndarray, quality: float) -> np.ndarray:
        """Return y of an image, uint8 [H, W, 3], at a quality that a header can hold: float32 [1, M, H/16, W/16]."""
        padded = bitstream.padded_box(image.shape[1], image.shape[0])
        padding = (0, padded.height - image.shape[0]), (0, padded.width - image.shape[1]), (0, 0)
        levels = np.pad(image, padding, mode="edge").transpose(2, 0, 1)[None]
        y = np.empty((1, self._channels, *_size(padded, Y_STRIDE)), dtype=np.float32)
        for window in cut(padded, WINDOW):
            around = window.grown(self._halo, padded)
            pixels = levels[..., *around.slices()].astype(np.float32) / np.float32(255)
            (part,) = self._run("analysis", pixels, np.float32([quality]))
            y[..., *window.slices(Y_STRIDE)] = part[..., *window.within(around).slices(Y_STRIDE)]
        return y

    def _encode_tile(self, y: np.ndarray, z: np.ndarray, box: Box, extent: tuple[int, int] | None) -> tuple[bytes, int]:
        """Return the string and the digest of a tile, given y and z of the whole image."""
        encoder, coded = SymbolEncoder(), _coded(box, extent)
        z = z[..., *box.slices(Z_STRIDE)]
        encoder.encode(z.astype(np.int32).ravel(), _hyper_rows(z.shape), self._z_tables)
        (hyper,) = self._run("hyper_synthesis", z)
        residuals, rows = self._run("residuals", hyper, y[..., *box.slices(Y_STRIDE)], coded)
        for symbols, own in zip(self.split(residuals), self.split(rows)):
            where = (own > 0) & (coded > 0)
            encoder.encode(symbols[where].astype(np.int32), own[where].astype(np.int32), self._y_tables)
        return encoder.flush(), encoder.digest

    def _run(self, name: str, *inputs: np.ndarray) -> list[np.ndarray]:
        if name not in self._sessions:
            import onnxruntime

            path = self._folder / f"{name}.onnx"
            if not path.is_file():
                raise CheckpointError(f"{path}: no such file; run ugicm export")
            self._sessions[name] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        session = self._sessions[name]
        names = [argument.name for argument in session.get_inputs()]
        return session.run(None, dict(zip(names, map(np.ascontiguousarray, inputs), strict=True)))


def _beta(preference: str | float) -> float:
    if isinstance(preference, str):
        if preference not in PREFERENCES:
            raise ValueError(f"preference {preference!r} not found; available: human, machine, a number in [0, 1]")
        preference = PREFERENCES[preference]
    if not 0 <= preference <= 1:
        raise ValueError("preference must be from 0 (human) to 1 (machine)")
    return float(preference)


def _size(box: Box, stride: int) -> tuple[int, int]:
    return box.height // stride, box.width // stride


def _coded(tile: Box, extent: tuple[int, int] | None) -> np.ndarray:
    """Return which positions of y in a tile are coded: 1 or 0, float32 [H, W]."""
    coded = np.zeros(_size(tile, Y_STRIDE), dtype=np.float32)
    rows, columns = extent or coded.shape
    coded[:rows, :columns] = 1
    return coded


def _hyper_rows(shape: tuple[int, ...]) -> np.ndarray:
    """Return the table row of every position of z [1, N, h, w]: its channel."""
    return np.repeat(np.arange(shape[1]), shape[2] * shape[3])
