#!/usr/bin/env python3
"""Make the figures of README.md and of the model card.

    python scripts/make_figures.py

docs/images/example.png   crops of a sample image: original, human preference, machine preference, from one bitstream
docs/images/results.png   rate-distortion and rate-accuracy curves, from docs/report/results.json
docs/images/training.png  validation loss while the shipped model trained, from docs/results/training
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

import ugicm
from ugicm.arguments import ArgumentParser, run_command
from ugicm.atomic import replacing

ROOT = Path(__file__).resolve().parents[1]
SAMPLE, CROP, QUALITY = "kodim15", (240, 60, 560, 380), 0.15
PANELS = (
    ("kodak", "psnr-rgb", "Kodak, human preference", "PSNR (dB)", "ugicm human"),
    ("imagenet_eval", "top-1 (SqueezeNet, unseen)", "ImageNet photographs", "top-1 of SqueezeNet (%)", None),
    ("coco_val", "mask AP (YOLOv5n-seg, unseen)", "COCO, 60 images", "mask AP of YOLOv5n-seg (%)", None),
)
TRAINING = {  # objective -> run, steps before it, label
    "squared error": (("adamw", 0, "AdamW"), ("muon", 20244, "Muon")),
    "squared error and MS-SSIM": (("final", 20244, "Muon"),),
}
COLORS = {"ugicm human": "C0", "ugicm machine": "C3", "AVIF": "C2", "WebP": "C1", "JPEG": "0.5"}


def example() -> Figure:
    """Return crops of the original and of both decoded images, titled with the rate of the whole file."""
    image = Image.open(ROOT / "ugicm" / "samples" / f"{SAMPLE}.png").convert("RGB")
    codec = ugicm.load()
    data = codec.compress(image, QUALITY)
    human, machine = codec.decompress(data, ["human", "machine"])
    rate = f"{8 * len(data) / (image.width * image.height):.2f} bpp"
    figure = Figure(figsize=(9.6, 3.45), layout="constrained")
    titles = ("original, 24 bpp", f"preference=\"human\", {rate}", f"preference=\"machine\", same {rate}")
    for axes, title, shown in zip(figure.subplots(1, 3), titles, (image, human, machine), strict=True):
        axes.imshow(shown.crop(CROP), interpolation="none")
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    return figure


def results() -> Figure:
    """Return the rate-distortion and the rate-accuracy plots."""
    sections = {s["name"]: s for s in json.loads((ROOT / "docs" / "report" / "results.json").read_text())["sections"]}
    figure = Figure(figsize=(13.2, 3.6), layout="constrained")
    for axes, (section, metric, title, label, only) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for curve in sections[section]["curves"]:
            name, values = curve["name"], curve["results"]
            if name.startswith("ugicm") and only not in (None, name):
                continue
            axes.plot(values["bpp"], values[metric], "o-", color=COLORS[name], markersize=4, label=name)
        axes.set(title=title, xlabel="bits per pixel", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def training() -> Figure:
    """Return the validation loss of the runs that trained the human side."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    for axes, (objective, runs) in zip(figure.subplots(1, len(TRAINING)), TRAINING.items(), strict=True):
        for run, before, label in runs:
            path = ROOT / "docs" / "results" / "training" / f"{run}.json"
            curve = json.loads(path.read_text())["runs"][0]["curve"]
            steps, losses = zip(*curve, strict=True)
            axes.plot([before + step for step in steps], losses, "o-", markersize=4, label=label)
        axes.set(title=f"validation: rate and {objective}", xlabel="steps", ylabel="loss")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main() -> int:
    ArgumentParser(description=__doc__).parse_args()
    for name, figure in (("example", example()), ("results", results()), ("training", training())):
        path = ROOT / "docs" / "images" / f"{name}.png"
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
