"""Measure speed and memory of coding, of commands on a folder, and of training. Close other programs first.

    python -m scripts.benchmark codec         # one image, next to three baseline codecs of CompressAI
    python -m scripts.benchmark levers        # ways to make coding faster, one by one
    python -m scripts.benchmark folder        # 100 images with one worker and with several
    python -m scripts.benchmark throughput    # images per second of several processes side by side
    python -m scripts.benchmark batch         # a batch of images, next to one by one
    python -m scripts.benchmark busy          # one image beside other programs
    python -m scripts.benchmark macs          # multiply-accumulates per pixel, parameters, activations
    python -m scripts.benchmark train -c configs/smoke.yaml      # variants of a training configuration

Run from the root of the repository. Each command prints a table and writes a JSON file.
Exit status: 0 measured, 1 something failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from scripts.processes import log
from ugicm.arguments import ArgumentParser, check_device, natural, positive, run_command, sides

_CODEC_HELP = """\
example: python -m scripts.benchmark codec --size 256x256 2160x3840 --no-released --baselines Elic2022Official
Times are medians of warm runs, from Pillow image to bytes and back. Columns:
  write, read    entropy coding within compress and decompress, with its networks
  one, both      decompress to one image; to the human and the machine image
  ratio          compress, and decompress to both images, over Elic2022Official: median ratio of alternating calls
  per pixel      with several sizes: time per pixel over that of the same codec at 512x768, likewise
  over floor     analysis and synthesis, over multiply-accumulates / the highest measured rate of convolutions
  MiB            peak memory above the loaded model, in a fresh process (of the GPU, on a GPU)
The JSON file also has the time of every stage, and start-up times of the commands. The released form has random weights
whose latents take 1 bit per pixel, about the maximum of trained weights. The baseline codecs have random weights that
write less. cheng2020_anchor codes position by position: leave it out (--baselines) for large images.
"""
_LEVERS_HELP = """\
Columns: median seconds without and with the lever (calls alternate), the median ratio, seconds for preparation, the
PSNR between the images of both versions ("same" if equal), and whether the codec uses it on this device.
"""
_FOLDER_HELP = """\
Runs "ugicm compress" and "ugicm decompress", each image on one core. Columns: a folder with one image (mostly
loading), the folder with one worker, with several; medians of --repeats alternating runs. Ratio of the whole commands,
and without loading. Whether both wrote the same files.
"""
_THROUGHPUT_HELP = """\
example: python -m scripts.benchmark throughput --device cuda --workers 1 4 8 16
Images per second from Pillow image to bytes, and back to one image and to the human and the machine image. No file is
read or written. Loading and warm-up do not count. On a GPU all processes share it.
"""
_BUSY_HELP = """\
Processor and wall-clock seconds of one image, while other processes compute. Columns: OMP_WAIT_POLICY and
GOMP_SPINCOUNT (importing ugicm before PyTorch sets passive and 2000), the number of other processes, then medians of
CPU time and of time.
"""
_TRAIN_HELP = """\
example: python -m scripts.benchmark train -c configs/smoke.yaml --variants fp32 bf16 compile --threads 1 2
Runs the training loop in a temporary folder: --steps steps to warm up, then as many to measure. Variants and numbers of
threads take turns, --repeats times; medians count. Differences below the spread of a variant's turns mean nothing.
Phases are shares of the time of a step: waiting for data, forward with the loss, backward, optimizer (with clipping and
averaging), other (records). Variants, of which those with equal settings run once:
"""


def main() -> int:
    args = _parser().parse_args()
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # for subprocesses, too
    report, table = args.run(args)
    from ugicm import atomic

    atomic.write(args.output, (json.dumps(report, indent=2) + "\n").encode())
    print(f"{table}\n\n{args.output}")
    return 0


def _parser() -> ArgumentParser:
    from scripts.benchmark.training_speed import VARIANTS

    parser = ArgumentParser(prog="python -m scripts.benchmark", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    sub = commands.add_parser("codec", help="one image, stage by stage", epilog=_CODEC_HELP)
    sub.set_defaults(run=codec)
    sub.add_argument("--size", nargs="+", type=sides("HEIGHTxWIDTH"), default=[(512, 768)], metavar="HxW",
                     help="image sizes, height x width (default: 512x768)")  # fmt: skip
    sub.add_argument("--threads", nargs="+", type=positive, help="threads of PyTorch (default: its own choice)")
    sub.add_argument("--dtype", nargs="+", choices=["fast", "float32"], default=["fast"],
                     help="fast (default): bfloat16 for the compact model's transforms if that is faster")  # fmt: skip
    sub.add_argument("--baselines", nargs="*", metavar="NAME", help="CompressAI models to compare with "
                     "(Elic2022Official mbt2018_mean cheng2020_anchor; default: all)")  # fmt: skip
    sub.add_argument("--no-released", dest="released", action="store_false", help="leave out the released UG-ICM form")
    _common_options(sub, "benchmark", repeats=5)

    sub = commands.add_parser("levers", help="ways to be faster, one by one", epilog=_LEVERS_HELP)
    sub.set_defaults(run=levers)
    _size_option(sub, "512x768")
    sub.add_argument("--released", action="store_true", help="the released UG-ICM form with random weights instead")
    sub.add_argument("--threads", type=positive, help="threads of PyTorch (default: its own choice)")
    _common_options(sub, "levers", repeats=7)

    sub = commands.add_parser("folder", help="commands on a folder", epilog=_FOLDER_HELP)
    sub.set_defaults(run=folder)
    _size_option(sub, "512x768")
    sub.add_argument("-d", "--data", help="a folder of images (default: made from the packaged samples)")
    sub.add_argument("--count", type=positive, default=100, help="number of images to make (default: 100)")
    sub.add_argument("--workers", type=positive, default=os.cpu_count(),
                     help="side by side (default: the number of cores)")  # fmt: skip
    _common_options(sub, "folder_speed", repeats=3)

    sub = commands.add_parser("throughput", help="processes side by side, without files", epilog=_THROUGHPUT_HELP)
    sub.set_defaults(run=throughput)
    _size_option(sub, "1080x1920")
    sub.add_argument("--released", action="store_true", help="the released UG-ICM form with random weights instead")
    sub.add_argument("--workers", nargs="+", type=positive, default=[1, 2], metavar="N",
                     help="numbers of processes (default: 1 2)")  # fmt: skip
    sub.add_argument("--threads", type=positive, default=1, help="threads of PyTorch in each (default: 1)")
    sub.add_argument("--count", type=positive, default=10, help="images per process and turn (default: 10)")
    _common_options(sub, "throughput", repeats=3)

    sub = commands.add_parser("batch", help="a batch of images, next to one by one")
    sub.set_defaults(run=batch)
    _size_option(sub, "256x256")
    sub.add_argument("--count", type=positive, default=16, help="images of the batch (default: 16)")
    _sharing_options(sub, "batch")

    sub = commands.add_parser("busy", help="one image beside other programs", epilog=_BUSY_HELP)
    sub.set_defaults(run=busy)
    _size_option(sub, "512x768")
    sub.add_argument("--busy", nargs="+", type=natural, default=[0, 4], metavar="N",
                     help="other processes that never rest (default: 0 4)")  # fmt: skip
    _sharing_options(sub, "busy")

    sub = commands.add_parser("macs", help="multiply-accumulates per pixel and parameters of every backbone")
    sub.set_defaults(run=macs)
    sub.add_argument("-o", "--output", default="experiments/macs.json", help="results (default: %(default)s)")

    variants = "".join(f"  {name:18}{' '.join(overrides)}\n" for name, overrides in VARIANTS.items())
    sub = commands.add_parser("train", help="training steps", epilog=_TRAIN_HELP + variants)
    sub.set_defaults(run=train)
    sub.add_argument("-c", "--config", required=True, help="yaml file, see configs/")
    sub.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys")
    sub.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME",
                     default=[name for name in VARIANTS if name != "compile"],
                     help="see below (default: all but compile, which takes minutes to warm up on a CPU)")  # fmt: skip
    sub.add_argument("--steps", type=positive, default=10, help="to warm up, and in each turn (default: 10)")
    sub.add_argument("--repeats", type=positive, default=3, help="turns of each variant (default: 3)")
    sub.add_argument("--threads", nargs="+", type=positive, default=[0], help="default: PyTorch's own choice")
    sub.add_argument("--device", nargs="+", choices=["cpu", "cuda"], default=["cpu"], help="default: cpu")
    sub.add_argument("-o", "--output", default="experiments/train_speed.json", help="default: %(default)s")
    return parser


def _size_option(sub: argparse.ArgumentParser, default: str) -> None:
    sub.add_argument("--size", type=sides("HEIGHTxWIDTH"), default=default, metavar="HxW",
                     help="image size, height x width (default: %(default)s)")  # fmt: skip


def _common_options(sub: argparse.ArgumentParser, output: str, repeats: int) -> None:
    sub.add_argument("-c", "--checkpoint", help="model (default: the shipped one)")
    sub.add_argument("--repeats", type=positive, default=repeats, help="timed runs (default: %(default)s)")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    sub.add_argument("-o", "--output", default=f"experiments/{output}.json", help="results (default: %(default)s)")


def _sharing_options(sub: argparse.ArgumentParser, output: str) -> None:
    sub.add_argument("--threads", type=positive, default=os.cpu_count(),
                     help="threads of PyTorch (default: the number of cores)")  # fmt: skip
    sub.add_argument("--repeats", type=positive, default=7, help="timed runs (default: %(default)s)")
    sub.add_argument("-o", "--output", default=f"experiments/{output}.json", help="results (default: %(default)s)")


def codec(args: argparse.Namespace) -> tuple[dict, str]:
    import torch

    from scripts.benchmark import folder_speed, speed
    from ugicm.errors import UsageError
    from ugicm.evaluation import results

    check_device(args.device)
    baselines = list(speed.BASELINES) if args.baselines is None else args.baselines
    for name in baselines:
        if name not in speed.BASELINES:
            raise UsageError(f"--baselines: {name} not found; available: {' '.join(speed.BASELINES)}")
    codecs = [(name, None, True) for name in baselines]
    codecs += [("ugicm" + ", float32" * (d != "fast"), args.checkpoint, d == "fast") for d in args.dtype]
    if args.released:
        codecs.append(("released UG-ICM form", speed.RELEASED, True))
    timings, details = [], {}
    for threads in args.threads or [torch.get_num_threads()]:
        for height, width in args.size:
            make_case = functools.partial(
                speed.BenchmarkCase, width=width, height=height, threads=threads, device=args.device
            )
            reference = speed.BaselineSubject(make_case(speed.REFERENCE)) if speed.REFERENCE in baselines else None
            for name, checkpoint, fast in codecs:
                log(f"{name}, {height}x{width}, {threads} threads ...")
                case, base = make_case(name, checkpoint=checkpoint, fast=fast), None
                if len(args.size) > 1 and name not in speed.BASELINES:
                    base = speed.UgicmSubject(replace(case, height=speed.BASE_SIZE[0], width=speed.BASE_SIZE[1]))
                timing, detail = speed.time_case(case, args.repeats, reference, base)
                timings.append(timing)
                if detail:
                    details[f"{name} {height}x{width}, {threads} threads"] = detail
    records, starts = speed.as_records(timings), folder_speed.start_seconds(args.repeats)
    report = {"timings": records, "details": details, "start_seconds": starts,
              "environment": results.environment(args.device)}  # fmt: skip
    return report, _codec_table(records, details, starts, results.table)


def _codec_table(records: list[dict], details: dict[str, dict], starts: dict[str, float], table: Callable) -> str:
    columns = {
        "compress s": "compress", "write s": "entropy_write", "one s": "decompress", "read s": "entropy_read",
        "both s": "decompress_both", "MP/s": "compress_mp_per_s", "MP/s back": "decompress_mp_per_s",
        "ratio": "compress_ratio", "ratio both": "decompress_ratio", "per pixel": "compress_per_pixel_ratio",
        "per pixel both": "decompress_per_pixel_ratio", "over floor": "time_over_floor", "MiB": "memory_mib",
    }  # fmt: skip
    rows = [
        (r["name"], f"{r['height']}x{r['width']}", r["threads"], r["dtype"],
         *(r.get(key) and f"{r[key]:.3g}" for key in columns.values()))
        for r in records
    ]  # fmt: skip
    lines = [table(rows, ("", "size", "threads", "dtype", *columns))]
    for name, detail in details.items():
        lines.append(f"\n{name}: " + ", ".join(f"{stage} {1000 * s:.0f} ms" for stage, s in detail["seconds"].items()))
        over = ", ".join(
            f"{part} {detail['time_over_floor'][part]:.2f} ({detail['kmac_per_pixel'][part]:g} kMAC per pixel, floor "
            f"{1000 * floor:.0f} ms)"
            for part, floor in detail["floor_seconds"].items()
        )
        rate = max(detail["gmac_per_second"].values())
        lines.append(f"  transforms over floor: {over}, at {rate:g} GMAC/s")
    lines.append("\nstart-up: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in starts.items()))
    return "\n".join(lines)


def levers(args: argparse.Namespace) -> tuple[dict, str]:
    import torch

    from scripts.benchmark import levers, speed
    from ugicm.evaluation import results

    check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    codec = speed.build(speed.RELEASED if args.released else args.checkpoint, args.device)
    records = []
    for lever in levers.levers(codec, args.size[1], args.size[0]):
        log(f"{lever.name} ...")
        records.append(levers.measure(lever, args.repeats))
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
    from scripts.benchmark import speed, throughput
    from ugicm.evaluation import results

    check_device(args.device)
    checkpoint = speed.RELEASED if args.released else args.checkpoint
    case = speed.BenchmarkCase("ugicm", args.size[1], args.size[0], args.threads, args.device, checkpoint)
    runs = []
    for count in args.workers:
        log(f"{count} processes ...")
        runs.append(throughput.throughput(case, count, args.count, args.repeats))
    report = {"size": list(args.size), "threads": args.threads, "count": args.count, "repeats": args.repeats,
              "model": "released UG-ICM form" if args.released else args.checkpoint or "shipped",
              "images_per_second": runs, "environment": results.environment(args.device)}  # fmt: skip
    heads = ("processes", "compress /s", "decompress to one /s", "to both /s")
    rows = [(r["workers"], *(f"{r[operation]:.1f}" for operation in throughput.OPERATIONS)) for r in runs]
    return report, results.table(rows, heads)


def batch(args: argparse.Namespace) -> tuple[dict, str]:
    from scripts.benchmark import sharing
    from ugicm.evaluation import results

    report = sharing.batch_speed(args.size, args.count, args.threads, args.repeats)
    rows = [(name, *(f"{report[name][key]:.1f}" for key in ("one_by_one_per_s", "batch_per_s")),
             f"{report[name]['ratio']:.2f}", "yes" if report[name]["same"] else "NO")
            for name in ("compress", "decompress")]  # fmt: skip
    return report | {"environment": results.environment()}, results.table(
        rows, ("", "one by one /s", "batch /s", "ratio", "same")
    )


def busy(args: argparse.Namespace) -> tuple[dict, str]:
    from scripts.benchmark import sharing
    from ugicm.evaluation import results

    runs = sharing.busy_speed(args.size, args.busy, args.threads, args.repeats)
    keys = ("compress_cpu_s", "compress_s", "decompress_cpu_s", "decompress_s")
    rows = [(r["policy"], r["busy"], *(f"{r[key]:.2f}" for key in keys)) for r in runs]
    report = {"size": list(args.size), "threads": args.threads, "repeats": args.repeats, "runs": runs,
              "environment": results.environment()}  # fmt: skip
    return report, results.table(rows, ("wait policy", "busy", "compress CPU s", "s", "decompress CPU s", "s"))


def macs(args: argparse.Namespace) -> tuple[dict, str]:
    import ugicm
    from scripts.benchmark.roofline import activation_bytes, count_macs
    from ugicm.config import load_config
    from ugicm.evaluation import results
    from ugicm.models.ugicm import UGICM

    models = {"compact": ugicm.load().model}
    for backbone in ("mlicpp", "bmshj2018"):
        models[backbone] = UGICM(load_config(f"configs/paper/{backbone}_mse.yaml").model)
    counts = {backbone: count_macs(model) for backbone, model in models.items()}
    parameters = {backbone: sum(p.numel() for p in model.parameters()) for backbone, model in models.items()}
    rows = [(backbone, *(f"{count:g}" for count in parts.values())) for backbone, parts in counts.items()]
    del models["compact"]  # is loaded for inference
    kept = {backbone: activation_bytes(model) for backbone, model in models.items()}  # of 256x256 pixels
    report = {
        "kmacs_per_pixel": counts, "parameters": parameters, "activation_bytes": kept,
        "environment": results.environment(),
    }  # fmt: skip
    return report, results.table(rows, ("kMAC per pixel", *counts["compact"]))


def train(args: argparse.Namespace) -> tuple[dict, str]:
    from scripts.benchmark import training_speed
    from ugicm.evaluation import results

    for device in args.device:
        check_device(device)
    variants, same = training_speed.distinct(args.config, args.set, args.variants)
    for variant, first in same.items():
        log(f"{variant}: equal to '{first}', left out")
    cases = [(variant, device, threads) for device in args.device for threads in args.threads for variant in variants]
    runs = training_speed.time_in_turns(args.config, args.set, cases, args.steps, args.repeats, log)
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
    sys.exit(run_command(main))
