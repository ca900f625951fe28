"""The arguments of ``ugicm report``. Importing this module is quick; :mod:`ugicm.report.build` does the work."""

from __future__ import annotations

import argparse
import shlex

from ugicm.arguments import natural, positive, run_command, unit
from ugicm.extras import require_packages

DEFAULT_CODECS = ("ugicm", "jpeg", "webp", "avif", "jxl", "zoo/bmshj2018-hyperprior")
EXAMPLES = """\
examples:
  ugicm report -d photos -o report
  ugicm report -d kodak imagenet/val --classifiers resnet101 timm/convnext_tiny --limit 500 -o report
  ugicm report -d pets --labels pets.csv --classifiers resnet50=pets.pth --codecs ugicm jpeg webp avif jxl -o report
  ugicm report -d coco/val2017 --coco instances_val2017.json --detectors maskrcnn_resnet50_fpn=W.pth -o report
  ugicm report -d kodak --codecs ugicm=a.safetensors:label=A ugicm=b.safetensors:label=B zoo/mbt2018=DIR -o report
  ugicm report @docs/results.args

-o DIR receives index.html (one file, works offline), results.json, curves/ (CompressAI's JSON, one file per curve),
tables.md and plots/. The same command continues an interrupted run, and after a change measures only what is missing.
Labels are read from labels.csv in a folder, or from sub-folders named by WordNet ids. @FILE inserts arguments from a
file, quoted as in a shell, with # comments.
"""


def add_report_command(subparsers) -> argparse.ArgumentParser:
    """Add ``report`` to the sub-commands of a parser; its ``command`` takes the arguments and returns a status."""
    summary = "compare codecs by rate, distortion and recognition scores, on one HTML page"
    parser = subparsers.add_parser(
        "report", help=summary, description=f"{summary.capitalize()}.", epilog=EXAMPLES, fromfile_prefix_chars="@"
    )
    parser.convert_arg_line_to_args = _split_line
    _add_arguments(parser)
    parser.set_defaults(command=run)
    return parser


def _split_line(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:  # an unclosed quote
        raise argparse.ArgumentError(None, f"{line.strip()}: {error}") from None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    images = parser.add_argument_group("images")
    images.add_argument("-d", "--dataset", nargs="+", required=True, metavar="[NAME=]DIR",
                        help="folders of images; each is a section of the report")  # fmt: skip
    images.add_argument("--labels", metavar="FILE", help="classes of the images, for a single folder")
    images.add_argument("--coco", nargs="+", default=[], metavar="JSON", help="COCO ground truth of one of the folders")
    images.add_argument("--limit", type=positive, metavar="N", help="N images of each folder, evenly spread")

    codecs = parser.add_argument_group("codecs")
    codecs.add_argument("--codecs", nargs="+", metavar="SPEC",
                        help="ugicm, ugicm=PATH, jpeg, webp, avif, jxl, zoo/NAME=PATH "
                        f"(default: those available of {' '.join(DEFAULT_CODECS)})")  # fmt: skip
    codecs.add_argument("--qualities", type=unit, nargs="+", default=[0, 0.2, 0.4, 0.6, 0.8, 1], metavar="Q",
                        help="rate points of ugicm (default: 0 to 1 in steps of 0.2)")  # fmt: skip
    codecs.add_argument("--preferences", type=unit, nargs="+", default=[0, 1], metavar="P",
                        help="preferences of ugicm, from 0 (human) to 1 (machine) (default: 0 1)")  # fmt: skip
    codecs.add_argument("--points", type=positive, default=7, metavar="N",
                        help="rate points of the baseline codecs (default: 7)")  # fmt: skip
    codecs.add_argument("--bpp-range", type=float, nargs=2, metavar=("LOW", "HIGH"),
                        help="bits per pixel of the baseline codecs (default: the range of ugicm; 0.1 to 1 "
                        "without it)")  # fmt: skip

    scores = parser.add_argument_group("scores")
    scores.add_argument("--classifiers", nargs="+", metavar="NAME[=PATH]",
                        help="classifiers of torchvision or timm/NAME, zero-shot open_clip/NAME, FILE.py:function "
                        "that returns one (default: resnet101)")  # fmt: skip
    scores.add_argument("--detectors", nargs="+", metavar="NAME[=PATH]",
                        help="detectors of torchvision (default: maskrcnn_resnet50_fpn), or FILE.py:function that "
                        "returns one; without ground truth, scored by agreement with the originals")  # fmt: skip
    scores.add_argument("--lpips", metavar="NET[=PATH]", help="alex, vgg, squeeze, or none (default: alex)")

    page = parser.add_argument_group("page")
    page.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the report")
    page.add_argument("--cache", metavar="DIR", help="bitstreams and records of measurements (default: DIR/cache)")
    page.add_argument("--title", default="Rate, distortion, recognition", help="(default: %(default)s)")
    page.add_argument("--home", metavar="URL", help="address of a page that the report links to as home")
    page.add_argument("--viewer", type=natural, default=3, metavar="N",
                      help="images to compare side by side (default: 3)")  # fmt: skip
    page.add_argument("--viewer-datasets", nargs="+", metavar="NAME",
                      help="datasets of these images, which are copied into the page (default: all)")  # fmt: skip
    page.add_argument("--viewer-qualities", type=unit, nargs="+", metavar="Q",
                      help="their qualities, of --qualities (default: a low and a middle one)")  # fmt: skip
    page.add_argument("--viewer-preferences", type=unit, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], metavar="P",
                      help="steps of the preference slider (default: 0 0.25 0.5 0.75 1)")  # fmt: skip
    page.add_argument("--device", metavar="NAME", help="cpu, cuda:0 ... (default: a GPU if there is one)")


def run(args: argparse.Namespace) -> int:
    """Build the report. Return the exit status of :func:`~ugicm.arguments.run_command`; 1 if images were left out."""

    def build() -> int:
        require_packages("eval", "the report", "matplotlib", "pytorch_msssim", "scipy", "torchvision")
        from ugicm.report.build import build_report

        return build_report(args)

    return run_command(build, "ugicm report", "interrupted; the same command continues")
