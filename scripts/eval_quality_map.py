#!/usr/bin/env python3
"""Measure quality maps on object masks: PSNR inside and outside of the objects, with a map and without, at equal size.

    python scripts/eval_quality_map.py data/coco_val/images data/coco_val/annotations/instances.json -o results.json

For every image whose objects cover a part of it, the map is white on the objects, and the quality is the highest at
which the file is no larger than that of a uniform quality.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

from ugicm.arguments import ArgumentParser, positive, run_command, unit

COVERED = (0.05, 0.5)  # share of the image
STEPS = 7  # of bisection over quality


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, metavar="DIR", help="images of COCO")
    parser.add_argument("annotations", metavar="JSON", help="their instances")
    parser.add_argument("-q", "--quality", type=unit, default=0.3, help="uniform quality (default: %(default)s)")
    parser.add_argument("--count", type=positive, default=10, help="images (default: %(default)s)")
    parser.add_argument("-o", "--output", required=True, metavar="JSON", help="results")
    return run_command(lambda: _run(parser.parse_args()))


def _run(args: argparse.Namespace) -> int:
    import ugicm
    from ugicm import atomic
    from ugicm.evaluation import results
    from ugicm.extras import require_packages
    from ugicm.images import open_rgb

    require_packages("eval", "scripts/eval_quality_map.py", "pycocotools")
    codec, records = ugicm.load(), []
    for name, mask in object_masks(args.annotations, args.count):
        records.append({"image": name, "covered": float(mask.mean()),
                        **measure(codec, open_rgb(args.images / name), mask, args.quality)})  # fmt: skip
        print(records[-1], file=sys.stderr)
    names = [name for name in records[0] if name != "image"]
    report = {"quality": args.quality, "mean": {name: results.mean(r[name] for r in records) for name in names},
              "per_image": records, "environment": results.environment()}  # fmt: skip
    atomic.write(args.output, (json.dumps(report, indent=2) + "\n").encode())
    print(results.table([(name, f"{value:.3f}") for name, value in report["mean"].items()], ("", "mean")))
    return 0


def object_masks(annotations: str, count: int):
    """Yield the names of images, and masks [H, W] that are 1 on their objects."""
    import numpy as np
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(annotations)
    for image in coco.loadImgs(coco.getImgIds()):
        objects = coco.loadAnns(coco.getAnnIds(image["id"], iscrowd=False))
        mask = np.zeros((image["height"], image["width"])) + sum(map(coco.annToMask, objects)) > 0
        if COVERED[0] < mask.mean() < COVERED[1] and count:
            count -= 1
            yield image["file_name"], mask.astype(float)


def measure(codec, image, mask, quality: float) -> dict[str, float]:
    """Return PSNR of the image for human preference inside and outside of a mask, for both ways, and both sizes."""
    from ugicm.quality_map import emphasize

    uniform, mapped = codec.compress(image, quality), b""
    emphasized, low, high = emphasize(codec, image, mask), 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        data = codec.compress(emphasized, middle)
        low, high, mapped = (middle, high, data) if len(data) <= len(uniform) else (low, middle, mapped)
    found = {"bytes": len(uniform), "bytes_map": len(mapped), "quality_map": low}
    for name, decoded in zip(("", "_map"), codec.decompress([uniform, mapped])):
        found |= {f"inside{name}": psnr(decoded, image, mask), f"outside{name}": psnr(decoded, image, 1 - mask)}
    return found


def psnr(image, reference, weight) -> float:
    """Return the PSNR of an image where ``weight`` [H, W] is 1."""
    import numpy as np

    error = np.square(np.asarray(image, float) - np.asarray(reference, float)).mean(2)
    return float(10 * np.log10(255**2 * weight.sum() / (error * weight).sum()))


if __name__ == "__main__":
    sys.exit(run_command(main))
