"""Golden bitstreams and images in ``tests/golden/``, and how to rewrite them.

``inputs/`` holds small images. Each was compressed at every quality into ``bitstreams/``, and each bitstream was
decompressed for both preferences into ``images/``. From one of them come the bitstreams of format version 5: gray,
transparent with metadata, stored without loss. ``expected.json`` holds digests of the symbols, and byte counts and
PSNR of the sample images. ``parity/`` holds outputs of the reference network; it is never rewritten.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import ugicm
from ugicm import bitstream, images, stored
from ugicm.entropy.coders import Decoder
from ugicm.tiling import Z_STRIDE

GOLDEN = Path(__file__).resolve().parent / "golden"
SAMPLES = sorted((Path(ugicm.__file__).parent / "samples").glob("*.png"))
QUALITIES = (0.0, 0.5, 1.0)
PREFERENCES = ("human", "machine")
INPUTS = ("flat", "noise", "odd", "one_pixel", "photograph", "strip", "text", "tiled")
TILE = {"tiled": 64}
EXTENDED = ("gray", "transparent", "stored")  # in format version 5, at one quality
EXTENDED_QUALITY = 0.5
EXIF = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0\0\0\0\0"  # one entry: orientation 1
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
REGENERATE = "if the change is intended, rewrite the golden files with: pytest tests/test_golden.py --regenerate-golden"


def bitstream_path(name: str, quality: float) -> Path:
    return GOLDEN / "bitstreams" / f"{name}_{quality:g}.ugic"


def image_path(name: str, quality: float, preference: str) -> Path:
    return GOLDEN / "images" / f"{name}_{quality:g}_{preference}.webp"


def input_image(name: str) -> Image.Image:
    return Image.open(GOLDEN / "inputs" / f"{name}.png").convert("RGB")


def extended_source(name: str) -> images.SourceImage:
    """Return the image of a bitstream of format version 5."""
    if name == "stored":
        return images.read(input_image("text"))
    if name == "gray":
        return images.read(input_image("odd").convert("L"))
    image = input_image("odd")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return dataclasses.replace(images.read(image), exif=EXIF, xmp=XMP)


def symbol_digest(codec: ugicm.Codec, data: bytes) -> str:
    """Return the SHA-256 of the residuals of all slices and tiles as int32."""
    parsed, digest = bitstream.parse(data), hashlib.sha256()
    for box, string in zip(parsed.tiles, parsed.strings):
        size = box.height // Z_STRIDE, box.width // Z_STRIDE
        coder = Decoder(codec.model.entropy_model, [string], size, parsed.extent(box))
        with torch.inference_mode():
            codec.model.entropy_model(coder)
        coder.finish()
        for residual in coder.residuals:
            digest.update(residual.contiguous().numpy().astype("<i4").tobytes())
    return digest.hexdigest()


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def measure_sample(codec: ugicm.Codec, path: Path, quality: float) -> dict[str, float]:
    """Compress and decompress one sample image: bytes, and PSNR of both preferences in dB."""
    image = Image.open(path).convert("RGB")
    data = codec.compress(image, quality)
    decoded = codec.decompress(data, list(PREFERENCES))
    return {"bytes": len(data)} | {p: round(psnr(image, d), 3) for p, d in zip(PREFERENCES, decoded)}


def regenerate(codec: ugicm.Codec) -> None:
    """Rewrite bitstreams, images and ``expected.json`` from the inputs, the samples and the shipped model."""
    expected: dict[str, dict] = {"symbols": {}, "samples": {}}
    for folder in ("bitstreams", "images"):
        shutil.rmtree(GOLDEN / folder, ignore_errors=True)
        (GOLDEN / folder).mkdir()
    for name in INPUTS:
        for quality in QUALITIES:
            data = codec.compress(input_image(name), quality, tile=TILE.get(name))
            bitstream_path(name, quality).write_bytes(data)
            expected["symbols"][f"{name}_{quality:g}"] = symbol_digest(codec, data)
            _save_images(codec, data, name, quality)
    for name in EXTENDED:
        source = extended_source(name)
        data = stored.pack(source) if name == "stored" else codec.compress(source, EXTENDED_QUALITY)
        bitstream_path(name, EXTENDED_QUALITY).write_bytes(data)
        _save_images(codec, data, name, EXTENDED_QUALITY)
    for path in SAMPLES:
        for quality in QUALITIES:
            expected["samples"][f"{path.stem}_{quality:g}"] = measure_sample(codec, path, quality)
    (GOLDEN / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def _save_images(codec: ugicm.Codec, data: bytes, name: str, quality: float) -> None:
    for preference, image in zip(PREFERENCES, codec.decompress(data, list(PREFERENCES))):
        image.save(image_path(name, quality, preference), lossless=True, exact=True)  # with the colors below alpha
