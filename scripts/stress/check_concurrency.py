#!/usr/bin/env python3
"""Share one codec between many threads, and count the streams and images that are not what it makes alone.

    python -m scripts.stress.check_concurrency                                 # the packaged samples, 8 threads
    python -m scripts.stress.check_concurrency -d photos/ --threads 16 --side 512 -c model.safetensors

Exit status: 0 all the same, 1 something differs or failed, 2 it cannot be checked as asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import resources

from ugicm.arguments import Parser, check_device, guarded, positive, unit


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("-c", "--checkpoint", help="model (default: the shipped one)")
    parser.add_argument("-d", "--dataset", help="folder of images (default: the packaged samples)")
    parser.add_argument("--threads", type=positive, default=8, help="calls at a time (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=3, help="times every call is made (default: %(default)s)")
    parser.add_argument("--side", type=positive, default=256,
                        help="largest side of the middle of each image that is used")  # fmt: skip
    parser.add_argument("--quality", type=unit, nargs="+", default=[0.1, 0.5, 0.9])
    parser.add_argument("--preference", type=unit, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    parser.add_argument("-o", "--output", default="experiments/concurrency.json")
    args = parser.parse_args(argv)

    from tqdm import tqdm

    import ugicm
    from scripts.stress import concurrency
    from ugicm import atomic, files
    from ugicm.evaluation import results

    check_device(args.device)
    sources = files.find(args.dataset or str(resources.files("ugicm") / "samples"), files.IMAGE_SUFFIXES)
    codec = ugicm.load(args.checkpoint, args.device)
    with tqdm(desc=f"{args.threads} threads", unit="call", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = concurrency.check(
            codec, sources, args.quality, args.preference, args.threads, args.repeats, args.side, progress
        )
    report |= {"model": codec.describe(), "environment": results.environment(args.device)}
    atomic.write(args.output, (json.dumps(report, indent=2) + "\n").encode())
    differ = report["streams_that_differ"] + report["images_that_differ"]
    print(f"{report['calls']} calls in {report['threads']} threads: {differ} results differ; {args.output}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
