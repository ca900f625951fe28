"""Measure shards: CPU time of an image, overhead of shards and of Ray, JPEG, WebP and AVIF beside it, and images per
second of one and of two processes. Close other programs first. Takes about four minutes.

    python -m scripts.benchmark.shards -d data/coco_val -o docs/results/shards.json

Images are resized to 500x375 and stored as JPEG at quality 95. CPU seconds are those of one thread, without loading.
Images per second are by the clock, without loading, so that other programs, whose number the file records as load,
change them. Variants take turns, and each has the median of its rounds.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from ugicm import atomic, files, images
from ugicm.arguments import ArgumentParser, positive, run_command, spread
from ugicm.commands.compress import CompressTask
from ugicm.commands.decompress import DecompressTask
from ugicm.commands.shards import ShardTask
from ugicm.commands.workers import run_parallel
from ugicm.evaluation.results import environment
from ugicm.files import IMAGE_SUFFIXES, STREAM_SUFFIX, Job
from ugicm.shards.convert import ShardJob, convert_shard

SIZE = (500, 375)
SAVE_OPTIONS = {
    "JPEG": {"quality": 75},
    "WEBP": {"quality": 75},
    "AVIF": {"quality": 60},
}  # Pillow's, else its defaults
EMPTY_SHARDS = 100
PROCESSES = (1, 2)
PRICES = {"core_hour_dollars": 0.04, "gpu_hour_dollars": 3.0}  # assumed, for the projection


def make_data(source: str, folder: Path, count: int) -> list[Path]:
    """Write ``count`` images as files and in one shard. Returns the files."""
    found = files.find(source, IMAGE_SUFFIXES)
    (folder / "files").mkdir()
    for number in spread(count, len(found)):
        image = ImageOps.fit(images.open_rgb(found[number]), SIZE, Image.Resampling.LANCZOS)
        image.save(folder / "files" / f"{number:04}.jpg", quality=95)
    written = sorted((folder / "files").iterdir())
    with tarfile.open(folder / "one.tar", "w") as shard:
        for path in written:
            shard.add(path, path.name)
    return written


def cpu_seconds(run: Callable[[], Any]) -> float:
    """Return the CPU time that a call takes in this process."""
    start = time.process_time()
    run()
    return time.process_time() - start


def make_tasks() -> tuple[CompressTask, DecompressTask]:
    """Return tasks that compress, and decompress to JPEG for the machine preference."""
    options = {"checkpoint": None, "max_pixels": 1 << 28, "one_thread": True}
    compress = CompressTask(
        **options, quality=0.5, target=None, effort=0, effort_for="human", flatten=None, strip=False, quality_map=None,
        verify=False, progress=False,
    )  # fmt: skip
    decompress = DecompressTask(
        **options, preferences={"machine": 1.0}, region=None, image_format="JPEG", suffix=".jpg"
    )
    return compress, decompress


def measure_cpu(folder: Path, sources: list[Path], rounds: int) -> dict[str, Any]:
    """Return CPU seconds per image by what is done, and bytes per image by format."""
    compress, decompress = make_tasks()
    compress.start()
    decompress.start()
    opened = [images.open_rgb(path) for path in sources]
    streams = [Job(path, folder / f"{path.stem}{STREAM_SUFFIX}") for path in sources]
    back = [Job(job.target, folder / f"{job.target.stem}.jpg") for job in streams]
    first, second, copy = (ShardJob(str(folder / a), str(folder / b)) for a, b in (
        ("one.tar", "bits/one.tar"), ("bits/one.tar", "images/one.tar"), ("one.tar", "copy/one.tar")))  # fmt: skip

    def encode(name: str) -> list[bytes]:
        buffers = [io.BytesIO() for _ in opened]
        for image, buffer in zip(opened, buffers, strict=True):
            image.save(buffer, name, **SAVE_OPTIONS[name])
        return [buffer.getvalue() for buffer in buffers]

    works: dict[str, Callable[[], Any]] = {
        "compress files": lambda: [compress.run(job) for job in streams],
        "compress a shard": lambda: convert_shard(first, IMAGE_SUFFIXES, compress.convert, {}),
        "decompress files": lambda: [decompress.run(job) for job in back],
        "decompress a shard": lambda: convert_shard(second, [STREAM_SUFFIX], decompress.convert, {}),
        "copy a shard": lambda: convert_shard(copy, [], compress.convert, {}),
        **{name: lambda name=name: encode(name) for name in SAVE_OPTIONS},
    }
    seconds = {name: [] for name in works}
    compress.run(streams[0])  # warm up
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(cpu_seconds(work) / len(sources))
    sizes = {name: sum(map(len, encode(name))) for name in SAVE_OPTIONS}
    sizes["ugicm"] = sum(job.target.stat().st_size for job in streams)
    sizes["original"] = sum(path.stat().st_size for path in sources)
    return {
        "cpu_seconds": {name: round(statistics.median(values), 6) for name, values in seconds.items()},
        "bytes": {name: round(size / len(sources), 1) for name, size in sizes.items()},
    }


def measure_processes(folder: Path, rounds: int) -> dict[str, dict[int, float]]:
    """Return images per second by what is done and the number of processes."""
    compress, decompress = make_tasks()
    works = {
        "compress": (ShardTask(compress, IMAGE_SUFFIXES, True), "one.tar"),
        "decompress": (ShardTask(decompress, [STREAM_SUFFIX], True), "bits/one.tar"),  # written by measure_cpu
    }
    seconds = {(name, workers): [] for name in works for workers in PROCESSES}
    for _ in range(rounds):
        for name, workers in seconds:
            task, source = works[name]
            jobs = [ShardJob(str(folder / source), str(folder / f"out/{n}.tar")) for n in range(3 * workers)]
            results = [outcome.result for _, outcome in run_parallel(task, jobs, True, workers)]
            timed = results[workers:]  # the first of each worker warms up
            seconds[name, workers] += [result["seconds"] / result["images"] for result in timed]
    rates: dict[str, dict[int, float]] = {name: {} for name in works}
    for (name, workers), values in seconds.items():
        rates[name][workers] = round(workers / statistics.median(values), 3)
    return rates


def measure_ray() -> dict[str, Any]:
    """Return the seconds that Ray takes for a shard beside the work on it, in a pool of one actor on this machine."""
    import ray

    from scripts.benchmark.ray_task import EmptyTask
    from ugicm.ray_workers import run_on_ray

    jobs = [ShardJob(str(number), "") for number in range(EMPTY_SHARDS)]
    outcomes = run_on_ray(EmptyTask(), jobs, "local", 1)
    next(outcomes)  # the actor has started
    start, cpu = time.perf_counter(), time.process_time()
    done = len(list(outcomes))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    ray.shutdown()
    return {"seconds_per_shard": round(seconds / done, 6), "driver_cpu_seconds_per_shard": round(cpu / done, 6)}


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("-d", "--data", required=True, metavar="DIR", help="images")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="results file (JSON)")
    parser.add_argument("--count", type=positive, default=12, help="images (default: 12)")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of the CPU times (default: 3)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["RAY_worker_niceness"] = "0"  # the priority of the other variants
    result: dict[str, Any] = {"size": SIZE, "load": os.getloadavg()[1], "prices": PRICES}
    with tempfile.TemporaryDirectory() as name:
        sources = make_data(args.data, Path(name), args.count)
        result |= {"count": len(sources), "rounds": args.rounds, **measure_cpu(Path(name), sources, args.rounds)}
        result["images_per_second"] = measure_processes(Path(name), args.rounds)
    result["ray"] = measure_ray()
    result["environment"] = environment("cpu")
    atomic.write(args.output, (json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps({k: v for k, v in result.items() if k != "environment"}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
