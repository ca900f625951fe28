#!/usr/bin/env python3
"""Write streams under one setting of the machine, read them under every other, and count what differs.

    python -m scripts.stress.check_portability -d photos/                              # the shipped model, 40 images
    python -m scripts.stress.check_portability -c full.pth.tar -d photos/ --crop 128   # a large model on small crops
    python -m scripts.stress.check_portability -d photos/ --python /other/venv/bin/python --cuda

Settings: threads, instruction sets of PyTorch and oneDNN, oneDNN off, memory layout, precision of the transforms,
and - where given - other interpreters (with other versions of PyTorch) and a GPU.
Exit status: 0 all the same, 1 a stream was read wrongly somewhere or something failed,
2 it cannot be checked as asked for.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ugicm.arguments import Parser, check_device, guarded, positive, spread, unit
from ugicm.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("-c", "--checkpoint", help="model (default: the shipped one)")
    parser.add_argument("-d", "--dataset", required=True, help="folder of images")
    parser.add_argument("--images", type=positive, default=40, help="how many of them, evenly spread")
    parser.add_argument("--crop", type=positive, help="use the middle square of this many pixels")
    parser.add_argument("--quality", type=unit, nargs="+", default=[0.1, 0.5, 0.9])
    parser.add_argument("--python", nargs="*", default=[], help="other interpreters to write and read with")
    parser.add_argument("--cuda", action="store_true", help="also on the GPU")
    parser.add_argument("-o", "--output", default="experiments/portability.json")
    args = parser.parse_args(argv)

    import ugicm
    from scripts.stress import portability
    from ugicm import atomic, files
    from ugicm.evaluation import results

    if args.cuda:
        check_device("cuda")
    if gone := [name for name in args.python if not shutil.which(name)]:
        raise UsageError(f"--python {gone[0]}: no such interpreter")
    found = files.find(args.dataset, files.IMAGE_SUFFIXES)
    chosen = [found[i] for i in spread(args.images, len(found))]
    model = ugicm.load(args.checkpoint).describe()
    with tempfile.TemporaryDirectory() as folder:
        if args.crop:
            chosen = [_cropped(path, args.crop, Path(folder) / f"{i}.png") for i, path in enumerate(chosen)]
        report = portability.check(
            args.checkpoint, chosen, args.quality, portability.settings(args.python, args.cuda), Path(folder),
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    report |= {"images": len(chosen), "qualities": args.quality, "model": model}
    report |= {"environment": results.environment()}
    atomic.write(args.output, (json.dumps(report, indent=2) + "\n").encode())
    names = list(report["versions"])
    rows = [
        [reader, *(p["mismatches"] for writer in names for p in report["pairs"]
                   if p["reader"] == reader and p["writer"] == writer)] for reader in names
    ]  # fmt: skip
    print(results.table(rows, ["read under / written under", *(str(i + 1) for i in range(len(names)))]))
    print(f"\n{report['streams']} readings, {report['mismatches']} mismatches; closest approach of a scale to a table "
          f"bound: {report['closest_to_a_bound']:.3g} of its value; {args.output}")  # fmt: skip
    return 1 if report["mismatches"] else 0


def _cropped(path: Path, side: int, target: Path) -> Path:
    from ugicm import images

    images.middle(images.open_rgb(path), side).save(target)
    return target


if __name__ == "__main__":
    sys.exit(guarded(main))
