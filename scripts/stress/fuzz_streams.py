#!/usr/bin/env python3
"""Decode mutated streams and report every one that ends in anything but StreamError or an image of its size.

    python -m scripts.stress.fuzz_streams --count 100000 -o docs/results/fuzz.json   # the shipped model: 15 minutes
    python -m scripts.stress.fuzz_streams --seed 7 --max-minutes 5
    python -m scripts.stress.fuzz_streams -c model.safetensors --count 2000

Mutants are numbered and follow from the seed. Streams of findings are saved. Ctrl-C ends the run and writes what is
known. Linux only: peak memory is read from /proc.
Exit status: 0 no findings, 1 findings or something failed, 2 it cannot be done as asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ugicm.arguments import Parser, guarded, positive


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("-c", "--checkpoint", help="model (default: the shipped one)")
    parser.add_argument("--count", type=positive, default=100_000, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-minutes", type=float, help="stop after so long")
    parser.add_argument("--block", type=positive, default=20_000, help="mutants that one process decodes")
    parser.add_argument("--claims", type=positive, nargs="*", default=[256, 512, 1024],
                        help="sides of images claimed falsely, whose cost is measured")  # fmt: skip
    parser.add_argument("--findings", default="experiments/fuzz", help="folder for streams of findings")
    parser.add_argument("-o", "--output", default="experiments/fuzz.json")
    args = parser.parse_args(argv)

    import json

    from tqdm import tqdm

    import ugicm
    from scripts.stress import fuzzing
    from ugicm import atomic
    from ugicm.evaluation import results

    codec = ugicm.load(args.checkpoint)
    known = fuzzing.corpus(codec)
    with tqdm(total=args.count, unit="stream", smoothing=0.05, disable=None) as bar:

        def progress(tally: fuzzing.Tally) -> None:
            bar.update(1)
            if tally.findings:
                bar.set_postfix_str(f"{len(tally.findings)} findings", refresh=False)

        tally, stopped = fuzzing.run(args.checkpoint, known, args.seed, args.count, Path(args.findings), args.block,
                                  args.max_minutes, progress)  # fmt: skip
    claims = fuzzing.measure_claims(args.checkpoint, known, [] if stopped == "interrupted" else args.claims)
    report = {
        **tally.as_json(),
        "claims": claims,
        "seed": args.seed,
        "stopped": stopped,
        "granted": {"seconds": fuzzing.SECONDS, "memory_bytes": fuzzing.MEMORY, "per": "stream, and padded pixel"},
        "limit_on_pixels": fuzzing.LIMIT,
        "model": codec.describe(),
        "environment": results.environment(),
    }
    atomic.write(args.output, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    outcomes = sorted(tally.outcomes)
    rows = [[kind, *(counter.get(o) for o in outcomes)] for kind, counter in sorted(tally.counts.items())]
    print(results.table(rows, ["", *(o.removeprefix("refused: ") for o in outcomes)]))
    print(f"\n{tally.done} streams, {len(tally.findings)} findings; slowest {tally.slowest['seconds']:.2f} s, most "
          f"memory {tally.largest['memory_bytes'] / 2**20:.0f} MiB; {args.output}")  # fmt: skip
    for finding in tally.findings[:20]:
        print(f"  {finding['number']} {finding['kind']}: {finding['outcome']}: {finding['details'][:150]}")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
