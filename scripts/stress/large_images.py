"""Large images: what tiles and windows promise, measured.

Every step that is weighed or timed runs in a process of its own, which loads the model, warms up on a small image,
and counts memory from there: the image, its stream and all that coding needs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.benchmark.memory import in_fresh_process, memory, reset_peak
from ugicm import bitstream, images
from ugicm.codec import TILE, load
from ugicm.tiling import Box, cut

MEMORY_LIMIT = 3 * 2**30  # bytes above the model
SEAM_LIMIT = 0.1  # dB
RATE_LIMIT = 0.01  # of the bits of the same image in one piece
BAND = 8  # pixels on either side of a border between tiles


def mosaic(width: int, height: int, sources: Sequence[Path], seed: int = 0) -> Image.Image:
    """An image of any size out of cuts of others, mirrored at random; their sizes vary, so that no edge between cuts
    keeps step with tiles and what lies on borders of tiles is a fair sample."""
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
    """[H, W] bool: which pixels are within :data:`BAND` of a border between tiles."""

    def near(size: int) -> np.ndarray:
        place = np.arange(size)
        border = np.round((place + 0.5) / tile) * tile
        return (np.abs(place + 0.5 - border) < BAND) & (border > 0) & (border < size)

    return near(height)[:, None] | near(width)[None, :]


def seam(original: Image.Image, decoded: Image.Image, tile: int) -> dict[str, float]:
    """PSNR in dB of the band around borders of tiles and of the rest, over all colors."""
    difference = np.asarray(original).astype(np.int16) - np.asarray(decoded)
    error = np.square(difference, dtype=np.int32).sum(axis=2)
    band = border_band(*original.size, tile)
    return {
        "band_psnr": 10 * float(np.log10(3 * 255**2 / error[band].mean())),
        "rest_psnr": 10 * float(np.log10(3 * 255**2 / error[~band].mean())),
    }


def check(
    checkpoint: str | None,
    sources: Sequence[Path],
    folder: Path,
    size: tuple[int, int] = (7680, 4320),
    small: tuple[int, int] = (3072, 2048),
    quality: float = 0.5,
    tile: int = TILE,
    progress=lambda line: None,
) -> dict[str, Any]:
    """Measure on an image of ``size`` (width, height), coded in tiles of side ``tile``, and on a ``small`` one in
    tiles and in one piece. ``folder``: for temporary files. Returns the figures and, under "checks", how they stand
    to the limits.
    """
    large = _Subject("large", mosaic(*size, sources), folder, checkpoint, quality)
    report: dict[str, Any] = {"size": list(size), "quality": quality, "tile": tile}
    report["compress"] = large.compress(tile)
    progress(f"compressed: {report['compress']}")
    report["decompress"] = large.decompress()
    progress(f"decompressed: {report['decompress']}")
    report["bpp"] = 8 * len(large.data) / (size[0] * size[1])
    report["seam"] = seam(large.image, large.decoded, tile)
    report["regions"] = [large.region(part, report["decompress"]["processor_seconds"]) for part in (2, 4, 8)]
    progress(f"regions: {report['regions']}")

    compared = _Subject("small", mosaic(*small, sources, seed=1), folder, checkpoint, quality)
    report["one_piece"] = {"size": list(small)}
    for name, side in (("one piece", 0), ("tiles", tile)):
        coded = compared.compress(side) | {"bpp": 8 * len(compared.data) / (small[0] * small[1])}
        coded["memory_mib"] = max(coded["memory_mib"], compared.decompress()["memory_mib"])
        report["one_piece"][name] = coded | seam(compared.image, compared.decoded, tile)
        progress(f"{name}: {report['one_piece'][name]}")
    report["checks"] = _checks(report)
    return report


def _checks(report: dict[str, Any]) -> list[dict[str, Any]]:
    whole, tiles = report["one_piece"]["one piece"], report["one_piece"]["tiles"]
    memory_mib = max(report["compress"]["memory_mib"], report["decompress"]["memory_mib"])

    def band_over_rest(measured: dict[str, float]) -> float:
        return measured["band_psnr"] - measured["rest_psnr"]

    rows = [
        ("memory above the model, MiB", memory_mib, MEMORY_LIMIT / 2**20),
        ("PSNR around borders of tiles against the rest, dB", abs(band_over_rest(report["seam"])), SEAM_LIMIT),
        # The same pixels without tiles: what the images themselves contribute cancels.
        ("the same less what it is in one piece, dB", abs(band_over_rest(tiles) - band_over_rest(whole)), SEAM_LIMIT),
        ("bits in tiles against one piece", abs(tiles["bpp"] / whole["bpp"] - 1), RATE_LIMIT),
    ]
    return [{"what": what, "value": value, "limit": limit, "holds": value <= limit} for what, value, limit in rows]


class _Subject:
    """An image on disk, and what is measured with it, each time in a new process."""

    def __init__(self, name: str, image: Image.Image, folder: Path, checkpoint: str | None, quality: float):
        self.image = image
        self.path, self.stream, self.seen = (folder / f"{name}{s}" for s in (".ppm", ".ugic", "-seen.ppm"))
        self.task = {"checkpoint": checkpoint, "quality": quality, "image": str(self.path),
                     "stream": str(self.stream), "seen": str(self.seen)}  # fmt: skip
        image.save(self.path)

    @property
    def data(self) -> bytes:
        return self.stream.read_bytes()

    @property
    def parsed(self) -> bitstream.Stream:
        return bitstream.parse(self.data)

    @property
    def decoded(self) -> Image.Image:
        return Image.open(self.seen)

    def compress(self, tile: int) -> dict[str, float]:
        """Seconds and memory of one compress to the stream's file."""
        return in_fresh_process(work, self.task | {"mode": "compress", "tile": tile})

    def decompress(self, region: tuple[int, int, int, int] | None = None) -> dict[str, float]:
        """Seconds and memory of one decompress; of the whole, the image is kept."""
        return in_fresh_process(work, self.task | {"mode": "decompress", "region": region})

    def region(self, part: int, seconds: float) -> dict[str, float]:
        """Decode 1/part of the width and of the height, off the tiles' grid; as shares of the whole's processor
        ``seconds``, area, and area of the tiles that it touches with the halo that the synthesis needs."""
        width, height = self.image.width // part, self.image.height // part
        x, y = (self.image.width - width) // 2, (self.image.height - height) // 2
        measured = self.decompress((x, y, width, height))
        parsed = self.parsed
        halo = load(self.task["checkpoint"]).config.halo
        needed = Box(x, y, x + width, y + height).grown(halo, parsed.padded)
        touched = sum(box.width * box.height for box in cut(parsed.padded, parsed.tile) if box.meets(needed))
        return measured | {
            "region": [x, y, width, height],
            "area_share": 1 / part**2,
            "tiles_share": touched / (parsed.padded.width * parsed.padded.height),
            "seconds_share": measured["processor_seconds"] / seconds,
        }


def work(task: dict[str, Any]) -> dict[str, float]:
    """In the new process: do a task. Returns the seconds of the clock and of the processor, and the MiB above the warm
    model."""
    codec = load(task["checkpoint"])
    codec.decompress(codec.compress(Image.effect_noise((128, 128), 60), task["quality"]))
    reset_peak()
    before, start, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    if task["mode"] == "compress":
        done = codec.compress(task["image"], task["quality"], task["tile"])
    else:
        done = codec.decompress(Path(task["stream"]).read_bytes(), region=task["region"])
    seconds, cpu, grown = time.perf_counter() - start, time.process_time() - cpu, memory("VmHWM") - before
    if task["mode"] == "compress":
        Path(task["stream"]).write_bytes(done)
    elif task["region"] is None:
        done.save(task["seen"])
    measured = {"seconds": round(seconds, 2), "processor_seconds": round(cpu, 2)}
    return {**measured, "memory_mib": round(grown / 2**20, 1)}
