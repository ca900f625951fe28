"""Check that one codec shared by many threads gives the results of a single thread.

    python -m scripts.stress.concurrency                                 # the packaged samples, 8 threads
    python -m scripts.stress.concurrency -d photos/ --threads 16 --side 512 -c model.safetensors

Exit status: 0 all results equal, 1 a result differs or something failed, 2 wrong usage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

from tqdm import tqdm

import ugicm
from ugicm import atomic, files, images
from ugicm.arguments import ArgumentParser, check_device, positive, run_command, unit
from ugicm.codec import Codec
from ugicm.evaluation import results


def check(
    codec: Codec, jobs: Sequence[tuple[Path, float, float]], threads: int, repeats: int, side: int
) -> dict[str, int]:
    """Count bitstreams and images that differ between one thread and several.

    Args:
        codec: shared by all threads.
        jobs: image file, quality and preference of each call.
        threads: number of threads.
        repeats: times that each job runs in the threads.
        side: side in pixels of the center crop that is coded.
    """

    def run(job: tuple[Path, float, float]) -> tuple[bytes, bytes]:
        path, quality, preference = job
        data = codec.compress(images.center_crop(images.open_rgb(path), side), quality)
        return data, codec.decompress(data, preference).tobytes()

    with tqdm(total=len(jobs) * (1 + repeats), unit="call", disable=None) as bar, ThreadPoolExecutor(threads) as pool:
        expected = []
        for job in jobs:
            expected.append(run(job))
            bar.update()
        differing = [0, 0]
        for i, found in enumerate(pool.map(run, [*jobs] * repeats)):
            bar.update()
            for part in (0, 1):
                differing[part] += found[part] != expected[i % len(jobs)][part]
    return {"threads": threads, "calls": len(jobs) * repeats, "streams_that_differ": differing[0],
            "images_that_differ": differing[1]}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m scripts.stress.concurrency", description=__doc__)
    parser.add_argument("-c", "--checkpoint", help="model (default: the shipped one)")
    parser.add_argument("-d", "--dataset", help="folder of images (default: the packaged samples)")
    parser.add_argument("--threads", type=positive, default=8, help="concurrent calls (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=3, help="of every call (default: %(default)s)")
    parser.add_argument("--side", type=positive, default=256, help="largest side of the center crop that is used")
    parser.add_argument("--quality", type=unit, nargs="+", default=[0.1, 0.5, 0.9])
    parser.add_argument("--preference", type=unit, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    parser.add_argument("-o", "--output", default="experiments/concurrency.json")
    args = parser.parse_args(argv)

    check_device(args.device)
    sources = files.find(args.dataset or str(resources.files("ugicm") / "samples"), files.IMAGE_SUFFIXES)
    jobs = [(path, quality, beta) for path in sources for quality in args.quality for beta in args.preference]
    codec = ugicm.load(args.checkpoint, args.device)
    report = {"images": len(sources), **check(codec, jobs, args.threads, args.repeats, args.side)}
    report |= {"model": codec.describe(), "environment": results.environment(args.device)}
    atomic.write(args.output, (json.dumps(report, indent=2) + "\n").encode())
    differ = report["streams_that_differ"] + report["images_that_differ"]
    print(f"{report['calls']} calls in {report['threads']} threads: {differ} results differ; {args.output}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
