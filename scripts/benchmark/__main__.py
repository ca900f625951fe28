#!/usr/bin/env python3
"""Measure speed and memory: of coding, of commands on a folder, of training. Close other programs first.

    python -m scripts.benchmark codec                  # one image, beside three codecs of CompressAI
    python -m scripts.benchmark levers                 # what makes it faster and what does not
    python -m scripts.benchmark folder                 # 100 images one by one, and side by side
    python -m scripts.benchmark throughput             # images a second, several processes side by side
    python -m scripts.benchmark train -c configs/smoke.yaml      # variants of a configuration

Each prints a table and writes a JSON file; "COMMAND --help" says what is in it.
Exit status: 0 measured, 1 something failed, 2 it cannot be measured as asked for.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from ugicm.arguments import Parser, check_device, guarded, positive, sides

_CODEC_HELP = """\
examples:
  speed.py codec                                       shipped model and the full 117.78 M-parameter form
  speed.py codec --size 256x256 512x768 2160x3840 --no-full --peers Elic2022Official
  speed.py codec --threads 1 2 --dtype fast float32 -c model.safetensors
Seconds are medians of warm runs, from Pillow image to bytes and back. Columns:
  write, parse   entropy part of compress and of decompress, networks included
  one, both      decompress to one image; to the human and the machine image, parsed once
  ratio          compress, and decompress to both, over Elic2022Official's two: calls take turns, and the median of
                 ratios call by call counts
  per pixel      with several sizes: time per pixel of compress, and of decompress to both, over that of the same codec
                 at 512x768, likewise
  over floor     analysis and synthesis, over counted multiply-accumulates / the highest rate of convolutions here
  MiB            peak memory above the loaded model, in a fresh process (of the GPU, on a GPU)
The JSON file also has the time of every stage and every module, and start-up times of the commands. The full form gets
random weights whose latents take 1 bit a pixel, about the most that trained ones write; the other codecs random
weights, which write less. cheng2020_anchor codes point by point: leave it out (--peers) for large images.
"""
_LEVERS_HELP = """\
examples:
  speed.py levers                                      the shipped model
  speed.py levers --full --repeats 3                   the 117.78 M-parameter form
Each row is one way to be faster: seconds without and with it (medians, taking turns), the median of ratios call by
call, seconds it costs once, how far the two images are apart (PSNR; "same" where no value differs), and whether the
codec does it here.
"""
_FOLDER_HELP = """\
examples:
  speed.py folder                                      100 images of 512x768, as many workers as cores
  speed.py folder --count 20 --size 256x256 --workers 4 --repeats 5
  speed.py folder -d photos/ -c model.safetensors
Runs "ugicm compress" and "ugicm decompress" as users do, each image on one core. Columns: a folder of one image
(mostly loading), the folder one by one (--workers 1), side by side: medians of --repeats runs, which take turns; how
many times faster the median is, for the whole command and without the start; whether the files are the same.
"""
_THROUGHPUT_HELP = """\
examples:
  speed.py throughput --workers 1 2                    on the cores
  speed.py throughput --device cuda --workers 1 4 8 16 on one GPU, which they share
  speed.py throughput --device cuda --full --size 512x768
Images a second from Pillow image to bytes, and back to one image and to the human and the machine image, with
so many processes side by side: no file is read or written, loading and the first turn do not count.
"""
_TRAIN_HELP = """\
examples:
  speed.py train -c configs/smoke.yaml --steps 10
  speed.py train -c configs/compact_2_all_rates.yaml --set init_from=ugicm/weights/compact.safetensors
  speed.py train -c configs/compact_1_one_rate.yaml --variants fp32 bf16 compile --threads 1 2
Runs the training loop itself, in a temporary folder: --steps steps to warm up, then as many to measure. Variants and
numbers of threads take turns, --repeats times; medians count, and what differs by less than a variant's slowest and
fastest turn do means nothing. Shares are of the time of a step: waiting for data, forward with the loss, backward,
optimizer (clipping, averaging), other (records). Variants change precision only, and one that is the same as another
is left out:
"""


def main() -> int:
    args = _parser().parse_args()
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # also in the processes started here
    report, table = args.run(args)
    from ugicm import atomic

    atomic.write(args.output, (json.dumps(report, indent=2) + "\n").encode())
    print(f"{table}\n\n{args.output}")
    return 0


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    sub = commands.add_parser("codec", help="one image, stage by stage", epilog=_CODEC_HELP)
    sub.set_defaults(run=codec)
    sub.add_argument("-c", "--checkpoint", help="model to time (default: the shipped one)")
    sub.add_argument("--size", nargs="+", type=sides("HEIGHTxWIDTH"), default=[(512, 768)], metavar="HxW",
                     help="image sizes, height x width (default: 512x768)")  # fmt: skip
    sub.add_argument("--repeats", type=positive, default=5, help="timed runs of which the median counts (default: 5)")
    sub.add_argument("--threads", nargs="+", type=positive, help="threads of PyTorch (default: its own choice)")
    sub.add_argument("--dtype", nargs="+", choices=["fast", "float32"], default=["fast"],
                     help="fast (default): bfloat16 for the compact model's transforms where that pays")  # fmt: skip
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    sub.add_argument("--peers", nargs="*", default=None, metavar="NAME", help="CompressAI models to compare with "
                     "(Elic2022Official mbt2018_mean cheng2020_anchor; default: all)")  # fmt: skip
    sub.add_argument("--no-full", dest="full", action="store_false", help="leave out the 117.78 M-parameter form")
    sub.add_argument("-o", "--output", default="experiments/benchmark.json", help="results file (default: %(default)s)")

    sub = commands.add_parser("levers", help="one way to be faster after the other", epilog=_LEVERS_HELP)
    sub.set_defaults(run=levers)
    sub.add_argument("-c", "--checkpoint", help="model to time (default: the shipped one)")
    sub.add_argument("--full", action="store_true", help="the 117.78 M-parameter form with random weights instead")
    sub.add_argument("--size", type=sides("HEIGHTxWIDTH"), default=(512, 768), metavar="HxW",
                     help="image size (default: 512x768)")  # fmt: skip
    sub.add_argument("--repeats", type=positive, default=7, help="timed runs of each (default: 7)")
    sub.add_argument("--threads", type=positive, help="threads of PyTorch (default: its own choice)")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    sub.add_argument("-o", "--output", default="experiments/levers.json", help="results file (default: %(default)s)")

    sub = commands.add_parser("folder", help="commands on a folder", epilog=_FOLDER_HELP)
    sub.set_defaults(run=folder)
    sub.add_argument("-c", "--checkpoint", help="model to use (default: the shipped one)")
    sub.add_argument("-d", "--data", help="a folder of images (default: made from the sample images)")
    sub.add_argument("--count", type=positive, default=100, help="how many to make (default: 100)")
    sub.add_argument("--size", type=sides("HEIGHTxWIDTH"), default=(512, 768), metavar="HxW",
                     help="their size (default: 512x768)")  # fmt: skip
    sub.add_argument("--workers", type=positive, default=len(os.sched_getaffinity(0)) if hasattr(
        os, "sched_getaffinity") else os.cpu_count(), help="side by side (default: the number of cores)")  # fmt: skip
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    sub.add_argument("--repeats", type=positive, default=3, help="runs of which the median counts (default: 3)")
    sub.add_argument("-o", "--output", default="experiments/folder_speed.json",
                     help="results file (default: %(default)s)")  # fmt: skip

    sub = commands.add_parser("throughput", help="processes side by side, without files", epilog=_THROUGHPUT_HELP)
    sub.set_defaults(run=throughput)
    sub.add_argument("-c", "--checkpoint", help="model to time (default: the shipped one)")
    sub.add_argument("--full", action="store_true", help="the 117.78 M-parameter form with random weights instead")
    sub.add_argument("--size", type=sides("HEIGHTxWIDTH"), default=(1080, 1920), metavar="HxW",
                     help="image size (default: 1080x1920)")  # fmt: skip
    sub.add_argument("--workers", nargs="+", type=positive, default=[1, 2], metavar="N",
                     help="numbers of processes (default: 1 2)")  # fmt: skip
    sub.add_argument("--threads", type=positive, default=1, help="threads of PyTorch in each (default: 1)")
    sub.add_argument("--count", type=positive, default=10, help="images of each process in a turn (default: 10)")
    sub.add_argument("--repeats", type=positive, default=3, help="turns of which the median counts (default: 3)")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    sub.add_argument("-o", "--output", default="experiments/throughput.json",
                     help="results file (default: %(default)s)")  # fmt: skip

    from scripts.benchmark.training_speed import VARIANTS

    variants = "".join(f"  {name:18}{' '.join(settings)}\n" for name, settings in VARIANTS.items())
    sub = commands.add_parser("train", help="training steps", epilog=_TRAIN_HELP + variants)
    sub.set_defaults(run=train)
    sub.add_argument("-c", "--config", required=True, help="yaml file, see configs/")
    sub.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys")
    sub.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME",
                     default=[name for name in VARIANTS if name != "compile"],
                     help="see below (default: all but compile, which takes minutes to warm up on a CPU)")  # fmt: skip
    sub.add_argument("--steps", type=positive, default=10, help="to warm up, and in each repeat (default: 10)")
    sub.add_argument("--repeats", type=positive, default=3, help="turns of each variant (default: 3)")
    sub.add_argument("--threads", nargs="+", type=positive, default=[0], help="default: PyTorch's own choice")
    sub.add_argument("--device", nargs="+", choices=["cpu", "cuda"], default=["cpu"], help="default: cpu")
    sub.add_argument("-o", "--output", default="experiments/train_speed.json",
                     help="results file (default: %(default)s)")  # fmt: skip
    return parser


def codec(args: argparse.Namespace) -> tuple[dict, str]:
    import torch

    from scripts.benchmark import folder_speed, speed
    from ugicm.errors import UsageError
    from ugicm.evaluation import results

    check_device(args.device)
    peers = list(speed.PEERS) if args.peers is None else args.peers
    for name in peers:
        if name not in speed.PEERS:
            raise UsageError(f"--peers: {name} not found; available: {' '.join(speed.PEERS)}")
    subjects = [(name, None, True) for name in peers]
    subjects += [("ugicm" + ", float32" * (d != "fast"), args.checkpoint, d == "fast") for d in args.dtype]
    if args.full:
        subjects.append(("ugicm, 117.78 M form", speed.FULL, True))
    timings, details = [], {}
    for threads in args.threads or [torch.get_num_threads()]:
        for height, width in args.size:
            like = functools.partial(speed.Setting, width=width, height=height, threads=threads, device=args.device)
            reference = speed.Peer(like(speed.REFERENCE)) if speed.REFERENCE in peers else None
            for name, checkpoint, fast in subjects:
                print(f"{name}, {height}x{width}, {threads} threads ...", file=sys.stderr, flush=True)
                setting, base = like(name, checkpoint=checkpoint, fast=fast), None
                if len(args.size) > 1 and name not in speed.PEERS:
                    base = speed.Ours(replace(setting, height=speed.BASE[0], width=speed.BASE[1]))
                timing, detail = speed.time_setting(setting, args.repeats, reference, base)
                timings.append(timing)
                if detail:
                    details[f"{name} {height}x{width}, {threads} threads"] = detail
    records = speed.as_records(timings)
    heads = ("", "size", "threads", "dtype", "compress s", "write s", "one s", "parse s", "both s", "MP/s", "MP/s back",
             "ratio", "ratio both", "per pixel", "per pixel both", "over floor", "MiB")  # fmt: skip
    keys = ("compress", "entropy_write", "decompress", "entropy_read", "decompress_both", "compress_mp_per_s",
            "decompress_mp_per_s", "compress_ratio", "decompress_ratio", "compress_per_pixel_ratio",
            "decompress_per_pixel_ratio", "time_over_floor", "memory_mib")  # fmt: skip
    rows = [
        (r["name"], f"{r['height']}x{r['width']}", r["threads"], r["dtype"],
         *(r.get(key) and f"{r[key]:.3g}" for key in keys))
        for r in records
    ]  # fmt: skip
    lines = [results.table(rows, heads)]
    for name, detail in details.items():
        lines.append(f"\n{name}: " + ", ".join(f"{step} {1000 * s:.0f} ms" for step, s in detail["seconds"].items()))
        slowest = sorted(detail["modules_seconds"].items(), key=lambda item: -item[1])[:6]
        lines.append("  slowest modules: " + ", ".join(f"{label} {1000 * s:.0f} ms" for label, s in slowest))
        shown = (
            f"{part} {over:.2f} ({detail['kmac_per_pixel'][part]:g} kMAC a pixel, floor "
            f"{1000 * detail['floor_seconds'][part]:.0f} ms)"
            for part, over in detail["time_over_floor"].items()
        )
        rates = " and ".join(f"{max(rates.values()):g}" for rates in detail["gmac_per_second"].values())
        lines.append(f"  transforms over floor: {', '.join(shown)}, at {rates} GMAC/s")
    starts = folder_speed.start_seconds(args.repeats)
    lines.append("\nstart-up: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in starts.items()))
    report = {"timings": records, "details": details, "start_seconds": starts,
              "environment": results.environment(args.device)}  # fmt: skip
    return report, "\n".join(lines)


def levers(args: argparse.Namespace) -> tuple[dict, str]:
    import torch

    from scripts.benchmark import levers as ways
    from scripts.benchmark import speed
    from ugicm.evaluation import results

    check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    codec = speed.build(speed.FULL if args.full else args.checkpoint, args.device)
    records = []
    for lever in ways.levers(codec, args.size[1], args.size[0]):
        print(f"{lever.name} ...", file=sys.stderr, flush=True)
        records.append(ways.measure(lever, args.repeats))
    report = {
        "levers": records, "size": list(args.size), "threads": torch.get_num_threads(), "model": codec.describe(),
        "environment": results.environment(args.device),
    }  # fmt: skip
    heads = ("", "without s", "with s", "ratio", "once s", "PSNR between", "used")
    rows = [
        (r["lever"], *([r["error"], "", "", "", ""] if "error" in r else [
            f"{r['seconds_without']:.3f}", f"{r['seconds_with']:.3f}", f"{r['ratio']:.2f}", f"{r['seconds_once']:.1f}",
            r["psnr_between"] or "same"]), "yes" if r["used"] else "no")
        for r in records
    ]  # fmt: skip
    return report, results.table(rows, heads)


def folder(args: argparse.Namespace) -> tuple[dict, str]:
    import tempfile

    import ugicm
    from scripts.benchmark import folder_speed
    from ugicm.evaluation import results

    model = ugicm.load(args.checkpoint).describe()
    with tempfile.TemporaryDirectory() as made:
        photos = Path(args.data or made)
        if not args.data:
            folder_speed.make_images(photos, args.count, args.size[1], args.size[0])
        report = folder_speed.time_folder(photos, args.workers, args.checkpoint, args.repeats, args.device)
    report |= {"size": None if args.data else list(args.size), "model": model}
    rows = [
        (name, report["images"], *(report[name][key] and f"{report[name][key]:.2f}" for key in (
            "start_seconds", "one_by_one_seconds", "side_by_side_seconds", "ratio", "ratio_without_start")),
         "yes" if report[name]["same_files"] else "NO")
        for name in ("compress", "decompress")
    ]  # fmt: skip
    heads = ("", "images", "start s", "one by one s", f"{args.workers} workers s", "ratio", "without start", "same")
    report["environment"] = results.environment(args.device)
    return report, results.table(rows, heads)


def throughput(args: argparse.Namespace) -> tuple[dict, str]:
    from scripts.benchmark import speed
    from scripts.benchmark import throughput as flow
    from ugicm.evaluation import results

    check_device(args.device)
    model = speed.FULL if args.full else args.checkpoint
    setting = speed.Setting("ugicm", args.size[1], args.size[0], args.threads, args.device, model)
    runs = []
    for count in args.workers:
        print(f"{count} processes ...", file=sys.stderr, flush=True)
        runs.append(flow.throughput(setting, count, args.count, args.repeats))
    report = {"size": list(args.size), "threads": args.threads, "count": args.count, "repeats": args.repeats,
              "model": "117.78 M form" if args.full else args.checkpoint or "shipped", "images_per_second": runs,
              "environment": results.environment(args.device)}  # fmt: skip
    heads = ("processes", "compress /s", "decompress to one /s", "to both /s")
    return report, results.table([(r["workers"], *(f"{r[work]:.1f}" for work in flow.WORK)) for r in runs], heads)


def train(args: argparse.Namespace) -> tuple[dict, str]:
    from scripts.benchmark import training_speed
    from ugicm.evaluation import results

    for device in args.device:
        check_device(device)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    variants, same = training_speed.distinct(args.config, args.set, args.variants)
    for variant, first in same.items():
        say(f"{variant}: the same as '{first}' here, left out")
    cases = [(variant, device, threads) for device in args.device for threads in args.threads for variant in variants]
    runs = training_speed.time_in_turns(args.config, args.set, cases, args.steps, args.repeats, say)
    rows = [
        (r["variant"], r["device"], r["threads"],
         *(f"{r[key]:.2f}" for key in ("samples_per_s", "slowest_samples_per_s", "fastest_samples_per_s")),
         f"{r['seconds_per_step']:.3f}", *(f"{100 * r['shares'][phase]:.0f} %" for phase in training_speed.PHASES))
        for r in runs
    ]  # fmt: skip
    report = {"config": args.config, "set": args.set, "steps": args.steps, "repeats": args.repeats, "runs": runs,
              "same": same, "environment": results.environment(args.device[-1])}  # fmt: skip
    heads = ("", "device", "threads", "samples/s", "slowest", "fastest", "s/step", *training_speed.PHASES)
    return report, results.table(rows, heads)


if __name__ == "__main__":
    sys.exit(guarded(main))
