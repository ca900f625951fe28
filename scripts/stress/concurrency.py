"""One codec shared by many threads gives what it gives alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ugicm import images
from ugicm.codec import Codec


def check(
    codec: Codec,
    sources: Sequence[Path],
    qualities: Sequence[float],
    preferences: Sequence[float],
    threads: int,
    repeats: int,
    side: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Compress and decompress the middle squares of images (``side`` pixels) alone, then in ``threads`` threads at
    once, every one ``repeats`` times, and count streams and images that are not the same, byte for byte."""

    def work(job: tuple[Path, float, float]) -> tuple[bytes, bytes]:
        path, quality, preference = job
        data = codec.compress(images.middle(images.open_rgb(path), side), quality)
        return data, codec.decompress(data, preference).tobytes()

    jobs = [(path, quality, preference) for path in sources for quality in qualities for preference in preferences]
    total = len(jobs) * (1 + repeats)
    alone, wrong = [], [0, 0]
    for job in jobs:
        alone.append(work(job))
        progress(len(alone), total)
    with ThreadPoolExecutor(threads) as pool:
        for i, found in enumerate(pool.map(work, jobs * repeats)):
            for part in (0, 1):
                wrong[part] += found[part] != alone[i % len(jobs)][part]
            progress(len(jobs) + i + 1, total)
    return {
        "threads": threads, "images": len(sources), "calls": len(jobs) * repeats,
        "streams_that_differ": wrong[0], "images_that_differ": wrong[1],
    }  # fmt: skip
