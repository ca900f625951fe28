#!/usr/bin/env python
"""Evaluate edge detection on coded images: agreement of an edge detector with itself on the originals.

examples:
  python scripts/eval_edges.py -d data/kodak --detector scripts/teachers/hed.py:edges --codec ugicm --quality 0.2
  python scripts/eval_edges.py -d data/kodak --detector mine.py:build --codec ugicm --quality 0.2 --preference human

The function of --detector returns a network: images [1, 3, H, W] in [0, 1] -> edge probabilities [1, 1, H, W].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ugicm.arguments import ArgumentParser, run_command

if TYPE_CHECKING:
    from ugicm.evaluation.tasks.base import Task


def argument_parser() -> ArgumentParser:
    from ugicm.evaluation.tasks.sources import add_source_arguments

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("-d", "--dataset", required=True, metavar="DIR", help="original images")
    parser.add_argument("--detector", required=True, metavar="FILE.py:function", help="edge detector")
    add_source_arguments(parser)
    parser.set_defaults(batch_size=2)
    return parser


def build(args: argparse.Namespace, device: str) -> Task:
    """Return the task of the options, with the edge detector on a device."""
    from ugicm.evaluation.tasks.base import Task
    from ugicm.evaluation.tasks.edges import load_edge_evaluator
    from ugicm.evaluation.tasks.sources import folder_items

    return Task("edge detection", folder_items(args.dataset), [load_edge_evaluator(args.detector, device)])


def main(argv: Sequence[str] | None = None) -> int:
    args = argument_parser().parse_args(argv)
    from ugicm.evaluation.tasks.command import evaluate

    return evaluate(build, args)


if __name__ == "__main__":
    sys.exit(run_command(main))
