#!/usr/bin/env python3
"""Time the codec, as ratios to codecs of CompressAI timed in the same run.

    python scripts/benchmark.py codec                          # shipped model and the full 117.78 M-parameter form
    python scripts/benchmark.py codec --size 512x768 1080x1920 --no-full --repeats 9
    python scripts/benchmark.py codec -c model.safetensors -o experiments/benchmark.json

Medians of warm, repeated runs. The full form gets random weights whose latents are as lively as trained ones;
speed does not depend on the rest. Close other programs first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["codec"], help="what to time")
    parser.add_argument("-c", "--checkpoint", help="model to time (default: the shipped one)")
    parser.add_argument("--size", nargs="+", default=["512x768"], metavar="HxW", help="picture sizes, height x width")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of which the median counts")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peers", nargs="*", default=["Elic2022Official"], help="CompressAI models to compare with")
    parser.add_argument("--no-full", dest="full", action="store_false", help="leave out the 117.78 M-parameter form")
    parser.add_argument("-o", "--output", default="experiments/benchmark.json", help="where to write the results")
    args = parser.parse_args()

    import json
    from importlib import resources

    import torch
    from PIL import Image

    import ugicm
    from ugicm import files
    from ugicm.codec import Codec
    from ugicm.config import MLICPP
    from ugicm.evaluation import benchmark, results
    from ugicm.models.codec import UGICM

    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        sizes = [tuple(map(int, size.split("x"))) for size in args.size]
    except ValueError:
        parser.error(f"--size: expected HEIGHTxWIDTH such as 512x768, got {' '.join(args.size)}")
    source = Image.open(str(resources.files("ugicm") / "samples" / "kodim23.png")).convert("RGB")
    shipped = ugicm.load(args.checkpoint, args.device)
    codecs = {"ugicm": shipped}
    if args.full:
        torch.manual_seed(0)
        codecs["ugicm, 117.78 M form"] = Codec(benchmark.lively(UGICM(MLICPP)), args.device)
    timings, breakdowns = [], {}
    for height, width in sizes:
        image = source.resize((width, height), Image.Resampling.LANCZOS)
        for name in args.peers:
            timings.append(benchmark.time_peer(name, image, args.repeats, args.device))
        for name, codec in codecs.items():
            timings.append(benchmark.time_codec(name, codec, image, args.repeats))
            breakdowns[f"{name} {height}x{width}"] = benchmark.breakdown(codec, image, args.repeats)
    records = benchmark.as_records(timings)
    rows = [
        (r["name"], f"{r['height']}x{r['width']}", *(r[k] and round(r[k], 3) for k in (
            "compress", "decompress", "decompress_both")), r.get("compress_ratio"), r.get("decompress_ratio"),
         round(r["memory_mib"]))
        for r in records
    ]  # fmt: skip
    heads = ("", "size", "compress s", "one s", "both s", "ratio", "ratio both", "MiB")
    print(results.table(rows, heads))
    for name, seconds in breakdowns.items():
        print(f"\n{name}: " + ", ".join(f"{step} {1000 * s:.0f} ms" for step, s in seconds.items()))
    report = {
        "timings": records,
        "breakdown_seconds": breakdowns,
        "kmac_per_pixel": {name: benchmark.count_macs(codec.model) for name, codec in codecs.items()},
        "gmac_per_second_pointwise": benchmark.measured_rate(),
        "environment": results.environment(),
    }
    files.write(args.output, (json.dumps(report, indent=2) + "\n").encode())
    print(f"\n{args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
