#!/usr/bin/env python
"""Evaluate edge detection on coded images: agreement of an edge detector with itself on the originals.

examples:
  python scripts/eval_edges.py -d data/kodak --detector scripts/teachers/hed.py:edges --codec ugicm --quality 0.2
  python scripts/eval_edges.py -d data/kodak --detector mine.py:build --codec ugicm --quality 0.2 --preference 1

The function of --detector returns a module: images [1, 3, H, W] in [0, 1] -> edge probabilities [1, 1, H, W].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ugicm.arguments import ArgumentParser, run_command
from ugicm.errors import ConfigError, ImageError, first_line
from ugicm.evaluation.results import mean
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.functions import import_function

if TYPE_CHECKING:
    from ugicm.evaluation.tasks.base import Task


def edge_agreement(original: Tensor, tested: Tensor) -> float | None:
    """Return the F-measure in percent of edges against those of the original, both boolean [1, 1, H, W].

    An edge pixel is found if the other map has one within a pixel of it. None if the original has no edges.
    """
    if not original.any():
        return None
    near_original, near_tested = (F.max_pool2d(edges.float(), 3, 1, 1).bool() for edges in (original, tested))
    found = (original & near_tested).sum() / original.sum()
    right = (tested & near_original).sum() / tested.sum().clamp_min(1)
    return 100 * float(2 * found * right / (found + right).clamp_min(1e-9))


class EdgeEvaluator(Evaluator):
    """Edges in images under test, compared with those in the originals. A record holds the agreement, or None."""

    metrics = headline = ("edge agreement",)
    noisy, needs_original = False, True

    def __init__(self, detector: nn.Module, name: str, device: str):
        super().__init__()
        self.detector, self.device = detector.eval().to(device), device
        self.name = self.identity = name

    @staticmethod
    def prepare(item: Item, image: Image.Image, original: Image.Image | None) -> list[Tensor]:
        """Return original and image as [1, 3, H, W] in [0, 1]."""
        levels = [torch.from_numpy(np.array(one.convert("RGB"))) for one in (original, image)]
        return [one.permute(2, 0, 1)[None].float() / 255 for one in levels]

    @torch.inference_mode()
    def process(self, items: Sequence[Item], inputs: Sequence[list[Tensor]]) -> None:
        """Detect edges in a batch of images and their originals."""
        for item, images in zip(items, inputs, strict=True):
            maps = [self.detector(image.to(self.device)) for image in images]
            if not all(one.isfinite().all() for one in maps):
                raise ImageError(f"{self.name}: the network's outputs are not finite")
            self.records[item.key] = {"agreement": edge_agreement(*(one > 0.5 for one in maps))}

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Return the mean agreement over the images whose original has edges."""
        return {"edge agreement": mean(self.per_image_scores("edge agreement", records).values())}

    def per_image_scores(self, metric: str, records: dict[str, dict]) -> dict[str, float]:
        """Return the agreement of each image whose original has edges."""
        return {key: record["agreement"] for key, record in records.items() if record["agreement"] is not None}


def argument_parser() -> ArgumentParser:
    from ugicm.evaluation.tasks.sources import add_source_arguments

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("-d", "--dataset", required=True, metavar="DIR", help="original images")
    parser.add_argument("--detector", required=True, metavar="FILE.py:FUNCTION", help="edge detector")
    add_source_arguments(parser)
    parser.set_defaults(batch_size=2)
    return parser


def build(args: argparse.Namespace, device: str) -> Task:
    """Return the task of the options, with the edge detector on a device."""
    from ugicm.evaluation.tasks.base import Task
    from ugicm.evaluation.tasks.sources import folder_items

    path, _, name = args.detector.rpartition(":")
    try:
        detector = import_function(path, name)()
    except Exception as error:  # of a user's code
        raise ConfigError(f"--detector {args.detector}: {first_line(error)}") from None
    return Task("edge detection", folder_items(args.dataset), [EdgeEvaluator(detector, name, device)])


def main(argv: Sequence[str] | None = None) -> int:
    args = argument_parser().parse_args(argv)
    from ugicm.evaluation.tasks.command import evaluate

    return evaluate(build, args)


if __name__ == "__main__":
    sys.exit(run_command(main))
