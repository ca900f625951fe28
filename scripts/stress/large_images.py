"""Measure large images: memory, seams between tiles, rate of tiles against one piece, and the cost of a region.

    python -m scripts.stress.large_images -o docs/results/large.json
    python -m scripts.stress.large_images -c model.safetensors --size 3840x2160 --one-piece 2560x1600

The image is a mosaic of the packaged samples, or of a folder's images. Every step runs in a fresh process, which loads
the model, warms up, and measures its memory from there. Linux only: memory is read from /proc. Takes about 5 minutes
with the shipped model on one core.
Exit status: 0 within all limits, 1 a limit is exceeded or something failed, 2 wrong usage.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.processes import in_fresh_process, log, memory, reset_peak
from ugicm import atomic, bitstream, files, images
from ugicm.arguments import ArgumentParser, positive, run_command, sides, unit
from ugicm.codec import Codec, load
from ugicm.evaluation import digests, results
from ugicm.tiling import TILE, Z_STRIDE, Box, cut

MEMORY_LIMIT = 3 * 2**30  # bytes above the model
SEAM_LIMIT = 0.1  # dB
RATE_LIMIT = 0.01  # of the bits of the same image in one piece
BAND = 8  # pixels on either side of a border between tiles


def mosaic(width: int, height: int, sources: Sequence[Path], seed: int = 0) -> Image.Image:
    """Return an image made of random crops of other images, mirrored at random.

    The sizes of the crops vary, so that the edges between them do not align with tiles.
    """
    rng = random.Random(seed)
    photographs = [images.open_rgb(path) for path in sources]
    whole = Image.new("RGB", (width, height))
    top = 0
    while top < height:
        tall, left = rng.randint(250, 420), 0
        while left < width:
            wide, image = rng.randint(250, 420), rng.choice(photographs)
            x, y = rng.randint(0, max(0, image.width - wide)), rng.randint(0, max(0, image.height - tall))
            piece = image.crop((x, y, min(x + wide, image.width), min(y + tall, image.height)))
            if rng.random() < 0.5:
                piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            whole.paste(piece.resize((wide, tall)) if piece.size != (wide, tall) else piece, (left, top))
            left += wide
        top += tall
    return whole


def border_band(width: int, height: int, tile: int) -> np.ndarray:
    """Return which pixels are within :data:`BAND` of a border between tiles, bool [H, W]."""

    def near(size: int) -> np.ndarray:
        center = np.arange(size) + 0.5
        border = np.round(center / tile) * tile
        return (np.abs(center - border) < BAND) & (border > 0) & (border < size)

    return near(height)[:, None] | near(width)[None, :]


def seam(original: Image.Image, decoded: Image.Image, tile: int) -> dict[str, float]:
    """Return the PSNR in dB near borders between tiles (``band_psnr``) and elsewhere (``rest_psnr``)."""
    difference = np.asarray(original).astype(np.int16) - np.asarray(decoded)
    error = np.square(difference, dtype=np.int32).sum(axis=2)
    band = border_band(*original.size, tile)
    return {
        "band_psnr": 10 * float(np.log10(3 * 255**2 / error[band].mean())),
        "rest_psnr": 10 * float(np.log10(3 * 255**2 / error[~band].mean())),
    }


class Subject:
    """An image on disk, coded and decoded in fresh processes."""

    def __init__(self, name: str, image: Image.Image, folder: Path, checkpoint: str | None, quality: float):
        self.image, self.checkpoint, self.quality = image, checkpoint, quality
        self.source, self.coded, self.result = (folder / f"{name}{s}" for s in (".ppm", ".ugic", "-decoded.ppm"))
        image.save(self.source)

    @property
    def bpp(self) -> float:
        return 8 * self.coded.stat().st_size / (self.image.width * self.image.height)

    def seam(self, tile: int) -> dict[str, float]:
        return seam(self.image, Image.open(self.result), tile)

    def compress(self, tile: int) -> dict[str, float]:
        """Write the bitstream. Return seconds and memory."""
        return in_fresh_process(compress, self.checkpoint, self.source, self.coded, self.quality, tile)

    def decompress(self, region: tuple[int, int, int, int] | None = None) -> dict[str, float]:
        """Decode the whole image, which is kept, or a region. Return seconds and memory."""
        return in_fresh_process(decompress, self.checkpoint, self.coded, self.result, region)

    def region(self, part: int, seconds: float) -> dict[str, Any]:
        """Decode 1/part of the width and of the height, not aligned to tiles.

        Returns seconds and memory, and the shares of the whole image's area, of its processor ``seconds``, and of the
        area of the tiles that the region depends on.
        """
        width, height = self.image.width // part, self.image.height // part
        x, y = (self.image.width - width) // 2, (self.image.height - height) // 2
        measured = self.decompress((x, y, width, height))
        parsed = bitstream.parse(self.coded.read_bytes())
        halo = load(self.checkpoint).config.halo
        needed = Box(x, y, x + width, y + height).grown(halo, parsed.padded)
        touched = sum(box.width * box.height for box in cut(parsed.padded, parsed.tile) if box.meets(needed))
        return measured | {
            "region": [x, y, width, height],
            "area_share": 1 / part**2,
            "tiles_share": touched / (parsed.padded.width * parsed.padded.height),
            "seconds_share": measured["processor_seconds"] / seconds,
        }


def compress(checkpoint: str | None, source: Path, target: Path, quality: float, tile: int) -> dict[str, float]:
    """Compress a file. Return seconds, and MiB above the model."""
    codec = load(checkpoint)
    return _measured(codec, lambda: codec.compress(source, quality, tile), target.write_bytes)


def decompress(
    checkpoint: str | None, source: Path, target: Path, region: tuple[int, int, int, int] | None
) -> dict[str, float]:
    """Decompress a file, without saving the image if it is of a ``region``. Return seconds, and MiB above the model."""
    codec = load(checkpoint)
    return _measured(
        codec, lambda: codec.decompress(source.read_bytes(), region=region),
        lambda image: None if region else image.save(target),
    )  # fmt: skip


def _measured(codec: Codec, work: Callable[[], Any], save: Callable[[Any], object]) -> dict[str, float]:
    codec.decompress(codec.compress(Image.effect_noise((128, 128), 60)))  # warm up
    reset_peak()
    before, start, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu, grown = time.perf_counter() - start, time.process_time() - cpu, memory("VmHWM") - before
    save(result)
    return {"seconds": round(seconds, 2), "processor_seconds": round(cpu, 2), "memory_mib": round(grown / 2**20, 1)}


def check(
    checkpoint: str | None,
    sources: Sequence[Path],
    size: tuple[int, int] = (7680, 4320),
    small: tuple[int, int] = (3072, 2048),
    quality: float = 0.5,
    tile: int = TILE,
) -> dict[str, Any]:
    """Measure an image coded in tiles, and a smaller one coded in tiles and in one piece.

    Args:
        checkpoint: of the model, None for the shipped one.
        sources: images for the mosaics.
        size: width and height of the large image.
        small: width and height of the smaller image.
        quality: of both.
        tile: side of the tiles in pixels, a multiple of 64.

    Returns:
        The measurements and, under ``checks``, those that have a limit.
    """
    with tempfile.TemporaryDirectory() as folder:
        large = Subject("large", mosaic(*size, sources), Path(folder), checkpoint, quality)
        report: dict[str, Any] = {"size": list(size), "quality": quality, "tile": tile}
        report["compress"] = large.compress(tile)
        report["decompress"] = large.decompress()
        log(f"compressed: {report['compress']}\ndecompressed: {report['decompress']}")
        report |= {"bpp": large.bpp, "seam": large.seam(tile)}
        report["regions"] = [large.region(part, report["decompress"]["processor_seconds"]) for part in (2, 4, 8)]
        log(f"regions: {report['regions']}")

        compared = Subject("small", mosaic(*small, sources, seed=1), Path(folder), checkpoint, quality)
        report["one_piece"] = {"size": list(small)}
        for name, side in (("one piece", 0), ("tiles", tile)):
            coded = compared.compress(side) | {"bpp": compared.bpp}
            coded["memory_mib"] = max(coded["memory_mib"], compared.decompress()["memory_mib"])
            report["one_piece"][name] = coded | compared.seam(tile)
            log(f"{name}: {report['one_piece'][name]}")
    report["checks"] = _checks(report)
    return report


def _checks(report: dict[str, Any]) -> list[dict[str, Any]]:
    whole, tiles = report["one_piece"]["one piece"], report["one_piece"]["tiles"]
    memory_mib = max(report["compress"]["memory_mib"], report["decompress"]["memory_mib"])

    def band_over_rest(measured: dict[str, float]) -> float:
        return measured["band_psnr"] - measured["rest_psnr"]

    rows = [
        ("memory above the model, MiB", memory_mib, MEMORY_LIMIT / 2**20),
        ("PSNR near tile borders against the rest, dB", abs(band_over_rest(report["seam"])), SEAM_LIMIT),
        # The difference to the same pixels without tiles excludes what the image itself contributes.
        ("the same, difference to one piece, dB", abs(band_over_rest(tiles) - band_over_rest(whole)), SEAM_LIMIT),
        ("bits in tiles against one piece", abs(tiles["bpp"] / whole["bpp"] - 1), RATE_LIMIT),
    ]
    return [{"what": what, "value": value, "limit": limit, "holds": value <= limit} for what, value, limit in rows]


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m scripts.stress.large_images", description=__doc__)
    parser.add_argument("-c", "--checkpoint", help="model (default: the shipped one)")
    parser.add_argument("-d", "--dataset", help="folder of images for the mosaic (default: the packaged samples)")
    parser.add_argument("--size", type=sides("WIDTHxHEIGHT"), default="7680x4320", metavar="WxH",
                        help="of the large image (default: %(default)s)")  # fmt: skip
    parser.add_argument("--one-piece", type=sides("WIDTHxHEIGHT"), default="3072x2048", metavar="WxH",
                        help="of the image that is also coded in one piece (default: %(default)s)")  # fmt: skip
    parser.add_argument("--tile", type=positive, default=TILE, help="side of the tiles, a multiple of 64")
    parser.add_argument("--quality", type=unit, default=0.5)
    parser.add_argument("-o", "--output", default="experiments/large.json")
    args = parser.parse_args(argv)
    if args.tile % Z_STRIDE or args.tile > bitstream.LARGEST_TILE:
        parser.error(f"--tile {args.tile}: must be a multiple of {Z_STRIDE} up to {bitstream.LARGEST_TILE}")

    folder = args.dataset or str(resources.files("ugicm") / "samples")
    sources = files.find(folder, files.IMAGE_SUFFIXES)
    model = load(args.checkpoint).describe()
    report = check(args.checkpoint, sources, args.size, args.one_piece, args.quality, args.tile)
    report |= {"sources": len(sources), "data": digests.tree_digest((s.name, s) for s in sources)}
    report |= {"model": model, "environment": results.environment()}
    atomic.write(args.output, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    rows = [[c["what"], f"{c['value']:.4g}", f"{c['limit']:.4g}", "yes" if c["holds"] else "NO"]
            for c in report["checks"]]  # fmt: skip
    print(results.table(rows, ["", "measured", "limit", "holds"]))
    shares = [[f"{r['region'][2]}x{r['region'][3]}", *(f"{r[k]:.3f}" for k in (
        "area_share", "tiles_share", "seconds_share"))] for r in report["regions"]]  # fmt: skip
    print("\n" + results.table(shares, ["region", "share of area", "of tiles touched", "of seconds"]))
    return 0 if all(c["holds"] for c in report["checks"]) else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
