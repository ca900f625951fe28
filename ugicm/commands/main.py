"""The command line ``ugicm``: options and help of its commands.

Exit status: 0 success, 1 something failed, 2 invalid command line or input, 130 interrupted. Heavy libraries are
imported by the commands that need them, so that help and ``ugicm info`` are quick.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ugicm import __version__, bitstream
from ugicm.arguments import (
    PREFERENCES,
    ArgumentParser,
    above_zero,
    join_preferences,
    natural,
    parse_bytes,
    parse_color,
    parse_preferences,
    parse_region,
    positive,
    run_command,
    unit,
)
from ugicm.commands import compress, decompress, export, info, view
from ugicm.commands.batch import print_error
from ugicm.files import IMAGE_SUFFIXES
from ugicm.report.command import add_report_command

_MAIN_HELP = """\
examples:
  ugicm compress photo.jpg                        writes photo.ugic
  ugicm compress photos/ bits/ --quality 0.3      a folder, keeping its tree
  ugicm decompress photo.ugic photo.png           the image for the human preference
  ugicm info bits/                                size, quality, bits per pixel, model
"""
_COMPRESS_HELP = """\
examples:
  ugicm compress photo.jpg                        writes photo.ugic
  ugicm compress photo.jpg small.ugic -q 0.1      a smaller file
  ugicm compress photo.jpg small.ugic -e 30       a smaller file of the same quality, slower to write
  ugicm compress photos/ bits/                    a folder; run again to continue after an interruption
  ugicm compress *.jpg -o bits/                   several files
  ugicm compress - < photo.jpg > photo.ugic       standard input and output
  ugicm compress photos/ bits/ --workers 2        two images at a time
  ugicm compress 'in-{000..999}.tar' out/         the images in WebDataset shards; also s3://bucket/in-{000..999}.tar
  ugicm compress photo.jpg -c runs/mine/model.safetensors --verify
"""
_DECOMPRESS_HELP = """\
examples:
  ugicm decompress photo.ugic                     writes photo.png
  ugicm decompress photo.ugic out.png -p machine  the image for the machine preference
  ugicm decompress photo.ugic half.webp -p 0.5    half way between (WebP is written lossless)
  ugicm decompress photo.ugic mix.png -p map.png  machine where map.png is white, human where it is black
  ugicm decompress photo.ugic -p human machine    writes photo.human.png and photo.machine.png
  ugicm decompress photo.ugic --region 0,0,64,64  a part
  ugicm decompress bits/ images/                  a folder, keeping its tree
"""
_INFO_HELP = """\
examples:
  ugicm info photo.ugic
  ugicm info bits/ more/*.ugic
"""
_VIEW_HELP = """\
examples:
  ugicm view photo.ugic
  ugicm view a.ugic b.ugic --originals a.jpg b.jpg
"""
_EXPORT_HELP = """\
examples:
  ugicm export -o exported/                       the shipped model
  ugicm export model.safetensors -o exported/ --half
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    args = _parser().parse_args(join_preferences(sys.argv[1:] if arguments is None else arguments))
    warnings.showwarning = _show_warning
    warnings.filterwarnings("ignore", module="torch")  # hints for developers
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be valid text
    return run_command(lambda: args.command(args), "ugicm")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ugicm",
        description="Learned image codec: one bitstream, decoded for human or machine preference.",
        epilog=_MAIN_HELP,
    )
    parser.add_argument("--version", action="version", version=f"ugicm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str, examples: str) -> ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.", epilog=examples)
        sub.set_defaults(command=run)
        return sub

    sub = command("compress", compress.run, "compress images or folders of images", _COMPRESS_HELP)
    sub.add_argument("paths", metavar="IN", nargs="+", help="images that Pillow can read, folders, or - for standard "
                     f"input. Of a folder, files with these extensions are compressed: {' '.join(IMAGE_SUFFIXES)}. "
                     "Hidden files and links to folders are left out. A last path that is a folder, -, a .ugic "
                     "file, or a second one that does not exist, is the output")  # fmt: skip
    sub.add_argument("-o", "--output", metavar="OUT", help="a .ugic file, a folder, or - for standard output (default: "
                     "IN with .ugic)")  # fmt: skip
    rate = sub.add_mutually_exclusive_group()
    rate.add_argument("-q", "--quality", type=unit, default=0.5, metavar="Q",
                      help="from 0 (small) to 1 (good) (default: 0.5)")  # fmt: skip
    for kind, parse, what in (
        ("size", parse_bytes, "the best quality of at most N bytes (40000, 40k, 1.5M); ends within 2 %% below"),
        ("bpp", above_zero, "the best quality of at most N bits per pixel; ends within 2 %% below"),
        ("psnr", above_zero, "the smallest file of at least N dB for the human preference; ends within 0.1 dB above"),
    ):
        rate.add_argument(f"--target-{kind}", type=_target(kind, parse), dest="target", metavar="N", help=what)
    sub.add_argument("-e", "--effort", type=natural, default=0, metavar="N",
                     help="steps of latent refinement: fewer bits for the same quality at one preference, slower "
                     "compression (a step takes as long as two or three decompressions), same speed of decompression; "
                     "try 30 (default: 0)")  # fmt: skip
    sub.add_argument("--effort-for", choices=list(PREFERENCES), default="human",
                     help="preference whose images refinement keeps (default: human)")  # fmt: skip
    sub.add_argument("--quality-map", metavar="MAP", help="an image of the same size, white where detail is kept; "
                     "black parts become those of quality 0, which take few bits")  # fmt: skip
    sub.add_argument("--strip", action="store_true", help="leave out EXIF and XMP")
    sub.add_argument("--flatten", type=parse_color, metavar="COLOR",
                     help="composite transparent images on a color (white, #RRGGBB); else alpha is kept")  # fmt: skip
    sub.add_argument("--verify", action="store_true", help="entropy-decode each bitstream before it is written")
    _add_codec_options(sub)
    _add_ray(sub)

    sub = command("decompress", decompress.run, "decompress bitstreams or folders of bitstreams", _DECOMPRESS_HELP)
    sub.add_argument("paths", metavar="IN", nargs="+", help=".ugic files, folders of them, or - for standard input. A "
                     "last path of another kind is the output")  # fmt: skip
    sub.add_argument("-o", "--output", metavar="OUT", help="an image, its format by extension, a folder, or - for "
                     "standard output (default: IN with .png)")  # fmt: skip
    sub.add_argument("-p", "--preference", type=parse_preferences, default=[0.0], metavar="P",
                     help="human, machine, a number from 0 (human) to 1 (machine), or a preference map: an image of "
                     "the same size that is white where the machine preference applies. Several (-p human machine, or "
                     "separated by commas) write OUT.human.png, OUT.machine.png (default: human)")  # fmt: skip
    sub.add_argument("--region", type=parse_region, metavar="X,Y,WIDTH,HEIGHT",
                     help="decode only this part, in pixels")  # fmt: skip
    sub.add_argument("--format", metavar="EXT", help="image format if OUT has no extension (default: png)")
    _add_codec_options(sub)
    _add_ray(sub)

    sub = command("info", info.run, "show the headers of bitstreams, without loading a model", _INFO_HELP)
    sub.add_argument("inputs", metavar="FILE", nargs="+", help=".ugic files, folders of them, or - for standard input")
    sub.add_argument("--json", action="store_true", help="print a JSON list with all fields")
    _add_pixel_limit(sub)
    sub = command("view", view.run, "show bitstreams on a local web page, with a slider for the preference", _VIEW_HELP)
    sub.add_argument("inputs", metavar="FILE", nargs="+", help=".ugic files")
    sub.add_argument("--originals", metavar="IMAGE", nargs="+", default=[], help="the original of each file")
    sub.add_argument("--no-browser", dest="open", action="store_false", help="print the address only")
    _add_model_options(sub)
    sub = command("export", export.run, "write a model as ONNX files", _EXPORT_HELP)
    sub.add_argument("checkpoint", metavar="CKPT", nargs="?",
                     help=".safetensors checkpoint of a compact model (default: the shipped model)")  # fmt: skip
    sub.add_argument("-o", "--output", metavar="DIR", required=True, help="folder of the ONNX and JSON files")
    sub.add_argument("--half", action="store_true", help="store weights as float16; arithmetic remains float32")
    sub.add_argument("--overwrite", action="store_true", help="replace an exported model")
    add_report_command(commands)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--checkpoint", metavar="CKPT",
                        help=".safetensors checkpoint or released .pth.tar (default: the shipped model)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")


def _add_codec_options(parser: argparse.ArgumentParser) -> None:
    _add_model_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument("--workers", type=positive, metavar="N",
                        help="processes that work on the images of a folder, each on one core. Outputs do not depend "
                        "on it. Each process loads the model, which takes about two seconds (default: one per core, at "
                        "most 16; one on a GPU and for a few images)")  # fmt: skip
    _add_pixel_limit(parser)


def _add_ray(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS",
                        help="work on shards (.tar) on a Ray cluster, one codec in each of N workers (default: one per "
                        "GPU, or per core). Without an address: RAY_ADDRESS, or this machine")  # fmt: skip


def _add_pixel_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-pixels", type=_max_pixels, metavar="N", default=bitstream.MAX_PIXELS,
                        help="refuse images of more pixels, counted with padding to multiples of 64; 0 accepts any "
                        f"size, for trusted files (default: {bitstream.MAX_PIXELS})")  # fmt: skip


def _target(kind: str, parse: Callable[[str], float]) -> Callable[[str], tuple[str, float]]:
    return lambda text: (kind, parse(text))


def _max_pixels(text: str) -> int | None:
    return natural(text) or None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print_error(f"warning: {message}")
