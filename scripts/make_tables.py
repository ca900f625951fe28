#!/usr/bin/env python3
"""Rewrite the tables in README.md and docs/ from the results files they come from.

    python scripts/make_tables.py            # rewrite
    python scripts/make_tables.py --check    # exit status 1 if a table differs from its results file

A table stands between ``<!-- table: NAME docs/results/FILE.json -->`` and ``<!-- end of table -->``. Tables and the
commands that write their files:

  bd                    ugicm report (results.json)
  rate                  tests/test.py (results.json)
  speed, sizes          python -m scripts.benchmark codec; with several --size
  levers, folder, train python -m scripts.benchmark levers, folder, train
  batch, busy           python -m scripts.benchmark batch, busy
  quality_map           scripts/eval_quality_map.py
  throughput            python -m scripts.benchmark throughput; the folder of its files
  shards, shard_speed, prices, projection
                        python -m scripts.benchmark.shards; for projection also throughput and ugicm report
                        (results.json), the folder docs
  training_cost         python -m scripts.benchmark macs, and the steps in configs/paper
  training_memory       the same
  recipe                scripts/compare_runs.py
  scores                task scripts; the folder of their files
  calibration           tests/test.py, with Gaussian tables (gaussian.json) and with calibrated ones (calibrated.json);
                        the folder of both
  effort                tests/test.py with --effort (results/effort.json) and without, by the same weights
                        (results/calibration/calibrated.json), and the curves of ugicm report; the folder docs
  exported, viewer      python -m scripts.benchmark.exported
  fuzz                  python -m scripts.stress.fuzzing
  robustness            python -m scripts.stress.{fuzzing,portability,concurrency,large_images} and scripts.benchmark
                        folder; the folder of all their files
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path

from ugicm.arguments import ArgumentParser, run_command

ROOT = Path(__file__).resolve().parents[1]

BLOCK = re.compile(r"(<!-- table: (\w+) (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


BASELINES = ("JPEG", "WebP", "AVIF")


def bd(document: dict) -> list[list[str]]:
    """Return the BD-rate of both preferences against the baseline codecs."""
    rows = [["BD-rate against", *BASELINES]]
    wanted = (
        ("kodak", "psnr-rgb", "ugicm human", "Kodak, equal PSNR, human preference"),
        ("kodak", "ms-ssim-rgb", "ugicm human", "Kodak, equal MS-SSIM, human preference"),
        ("imagenet_eval", "top-1 (SqueezeNet, unseen)", "ugicm machine",
         "ImageNet photographs, equal top-1 of an unseen classifier, machine preference"),
        ("coco_val", "psnr-rgb", "ugicm human", "COCO, equal PSNR, human preference"),
        ("coco_val", "mask AP (YOLOv5n-seg, unseen)", "ugicm machine",
         "COCO, equal mask AP of an unseen detector, machine preference"),
    )  # fmt: skip
    sections = {section["name"]: section for section in document["sections"]}
    for section, metric, test, title in wanted:
        deltas = {
            d["reference"]: d["rate"]["value"]
            for d in sections[section]["deltas"] if (d["metric"], d["test"]) == (metric, test)
        }  # fmt: skip
        values = (deltas.get(baseline) for baseline in BASELINES)
        rows.append([title, *("–" if value is None else f"{value:+.0f} %" for value in values)])
    return rows


def rate(document: dict) -> list[list[str]]:
    """Return averages by quality."""
    results = document["results"]
    rows = [["quality", "bpp", "PSNR, human", "PSNR, machine", "MS-SSIM, human", "MS-SSIM, machine"]]
    for i, quality in enumerate(results["quality"]):
        rows.append([f"{quality:g}", f"{results['bpp'][i]:.3f}"] + [
            f"{results[key][i]:.{digits}f}" for key, digits in (
                ("psnr-rgb", 2), ("psnr-rgb-machine", 2), ("ms-ssim-rgb", 4), ("ms-ssim-rgb-machine", 4))
        ])  # fmt: skip
    return rows


def _shown_seconds(value: float | None) -> str:
    """Return seconds as text, in milliseconds below 0.1."""
    return "-" if value is None else f"{1000 * value:.0f} ms" if value < 0.1 else f"{value:.2f} s"


def speed(document: dict) -> list[list[str]]:
    """Return seconds, ratios to the reference codec of the same run, time over the arithmetic floor, and memory."""
    rows = [["codec", "size", "compress", "decompress one", "decompress both", "compress ratio", "decompress ratio",
             "transforms: time / floor", "peak memory"]]  # fmt: skip

    def shown(record: dict, key: str, digits: int = 2, unit: str = "") -> str:
        return "-" if record.get(key) is None else f"{record[key]:.{digits}f}{unit}"

    for r in document["timings"]:
        rows.append([
            r["name"], f"{r['height']}×{r['width']}",
            *(_shown_seconds(r[key]) for key in ("compress", "decompress", "decompress_both")),
            shown(r, "compress_ratio"), shown(r, "decompress_ratio"),
            shown(r, "time_over_floor"), shown(r, "memory_mib", 0, " MiB"),
        ])  # fmt: skip
    return rows


def sizes(document: dict) -> list[list[str]]:
    """Return one codec at several sizes and numbers of threads."""
    rows = [["size", "threads", "compress", "decompress one", "decompress both", "compress, ns per pixel",
             "decompress both, ns per pixel", "compress, relative to 512×768", "decompress both",
             "peak memory"]]  # fmt: skip
    for r in document["timings"]:
        pixels = r["height"] * r["width"]
        rows.append([
            f"{r['height']}×{r['width']}", str(r["threads"]),
            *(_shown_seconds(r[key]) for key in ("compress", "decompress", "decompress_both")),
            *(f"{1e9 * r[key] / pixels:.0f}" for key in ("compress", "decompress_both")),
            *(f"{r[f'{key}_per_pixel_ratio']:.2f}" for key in ("compress", "decompress")), f"{r['memory_mib']:.0f} MiB",
        ])  # fmt: skip
    return rows


def levers(document: dict) -> list[list[str]]:
    """Return the time with and without each optimization."""
    rows = [["optimization", "without", "with", "ratio", "PSNR between, dB", "used", "reason"]]
    for r in document["levers"]:
        used = "yes" if r["used"] else "no"
        if "error" in r:
            rows.append([r["lever"], "-", "-", "-", "-", used, f"cannot be measured here: {r['error']}"])
            continue
        once = f"; {r['seconds_once']:.0f} s once" if r["seconds_once"] >= 1 else ""
        rows.append([
            r["lever"], f"{1000 * r['seconds_without']:.0f} ms", f"{1000 * r['seconds_with']:.0f} ms",
            f"{r['ratio']:.2f}", str(r["psnr_between"] or "same"), used, r["why"] + once,
        ])  # fmt: skip
    return rows


def robustness(documents: dict) -> list[list[str]]:
    """Return what was tried and what failed, from all results files on robustness."""
    rows = [["property", "tried", "measured", "limit"]]

    def row(*cells: str) -> None:
        rows.append(list(cells))

    for name, d in sorted(documents["portability"].items()):
        settings, versions = len(d["versions"]), sorted({version.split("+")[0] for version in d["versions"].values()})
        images = f"{d['images']} image" + "s" * (d["images"] > 1)
        tried = f"{d['streams']:,} decodings: {images}, {settings} × {settings} settings"
        form, _, crop = name.partition("_")
        what = f"{form} form" + (f", crops of {crop}²" if crop else "")
        gpu = ", one of them a GPU" if "CUDA" in d["versions"] else ""
        row(f"{what}, decoded under another setting{gpu}", f"{tried}, PyTorch {' and '.join(versions)}",
            f"{d['mismatches']} wrong", "0")  # fmt: skip
        if (closest := d["closest_to_a_bound"]) is not None:
            row("… closest relative distance of a scale to a table boundary", "", f"{closest:.1e}", "-")
    d = documents["fuzz"]
    row("corrupt and forged bitstreams", f"{d['streams']:,} mutants", f"{len(d['findings'])} findings", "0")
    d = documents["concurrency"]
    differ = f"{d['streams_that_differ']} bitstreams and {d['images_that_differ']} images differ"
    row(f"one codec in {d['threads']} threads", f"{d['calls']:,} calls", differ, "0")
    d = documents["folder_speed"]
    for name in ("compress", "decompress"):
        same = "same files as with one worker" if d[name]["same_files"] else "OTHER files"
        row(f"`ugicm {name} --workers {d['workers']}`", f"{d['images']} images", same, "same")
    width, height = documents["large"]["size"]
    for check in documents["large"]["checks"]:
        row(f"{width}×{height}: {check['what']}", "", f"{check['value']:.3g}", f"≤ {check['limit']:g}")
    return rows


def folder(document: dict) -> list[list[str]]:
    """Return the time of a folder with one worker and with several."""
    rows = [["command", "images", "1 worker", f"{document['workers']} workers", "ratio", "ratio without start-up"]]
    for name in ("compress", "decompress"):
        r = document[name]
        rows.append([
            f"`ugicm {name}`", str(document["images"]), f"{r['one_by_one_seconds']:.1f} s",
            f"{r['side_by_side_seconds']:.1f} s", f"{r['ratio']:.2f}",
            "-" if r["ratio_without_start"] is None else f"{r['ratio_without_start']:.2f}",
        ])  # fmt: skip
    return rows


def throughput(documents: dict[str, dict]) -> list[list[str]]:
    """Return images per second of several processes."""
    rows = [["model", "size", "processes", "compress", "decompress one", "decompress both"]]
    documents = [d for d in documents.values() if "images_per_second" in d]
    for d in sorted(documents, key=lambda d: -d["size"][0] * d["size"][1]):
        name = "ugicm" if d["model"] == "shipped" else d["model"]
        for r in d["images_per_second"]:
            paces = (f"{r[work]:.1f} /s" for work in ("compress", "decompress", "decompress_both"))
            rows.append([name, "{}×{}".format(*d["size"]), str(r["workers"]), *paces])
    return rows


def batch(document: dict) -> list[list[str]]:
    """Return images per second, one by one and as a batch."""
    rows = [["", "size", "threads", "one by one", f"batch of {document['count']}", "ratio", "same results"]]
    for name in ("compress", "decompress"):
        r = document[name]
        rows.append([
            name, "{}×{}".format(*document["size"]), str(document["threads"]), f"{r['one_by_one_per_s']:.1f} /s",
            f"{r['batch_per_s']:.1f} /s", f"{r['ratio']:.2f}", "yes" if r["same"] else "no",
        ])  # fmt: skip
    return rows


def busy(document: dict) -> list[list[str]]:
    """Return CPU time and time beside other programs."""
    keys = ("compress_cpu_s", "compress_s", "decompress_cpu_s", "decompress_s")
    rows = [["waiting threads", "other programs", "compress, CPU time", "time", "decompress, CPU time", "time"]]
    return rows + [
        [r["policy"], str(r["busy"]), *(f"{r[key]:.2f} s" for key in keys)] for r in document["runs"]
    ]  # fmt: skip


def quality_map(document: dict) -> list[list[str]]:
    """Return sizes and PSNR with a quality map and without."""
    mean = document["mean"]
    rows = [["", "bytes", "quality", "PSNR on objects", "PSNR elsewhere"]]
    for name, key, quality in (("uniform", "", document["quality"]), ("map", "_map", mean["quality_map"])):
        rows.append([
            name, f"{mean[f'bytes{key}']:,.0f}", f"{quality:.2f}",
            *(f"{mean[f'{part}{key}']:.2f} dB" for part in ("inside", "outside")),
        ])  # fmt: skip
    return rows


def shards(document: dict) -> list[list[str]]:
    """Return what an image costs by what is done with it."""
    seconds, sizes = document["cpu_seconds"], document["bytes"]
    rows = [["", "CPU time of an image", "bytes of an image"]]
    for name, size in (
        ("compress files", "ugicm"), ("compress a shard", "ugicm"), ("decompress files", None),
        ("decompress a shard", None), ("copy a shard", "original"), ("JPEG", "JPEG"), ("WEBP", "WEBP"),
        ("AVIF", "AVIF"),
    ):  # fmt: skip
        rows.append([name, f"{1000 * seconds[name]:.2f} ms", f"{sizes[size]:,.0f}" if size else "–"])
    return [*rows, ["Ray, time of a shard without work", f"{1000 * document['ray']['seconds_per_shard']:.2f} ms", "–"]]


def shard_speed(document: dict) -> list[list[str]]:
    """Return images per second of one process and of two side by side."""
    rows = [["images per second", "1 process", "2 processes", "ratio"]]
    for name, rates in document["images_per_second"].items():
        rows.append([name, f"{rates['1']:.2f}", f"{rates['2']:.2f}", f"{rates['2'] / rates['1']:.2f}"])
    return rows


def prices(document: dict) -> list[list[str]]:
    """Return the assumptions of the projection."""
    core, gpu = (f"{document['prices'][f'{unit}_hour_dollars']:.2f} $" for unit in ("core", "gpu"))
    return [
        ["assumption", "value"],
        ["price of a core-hour, of a processor like the measured one", core],
        ["price of a GPU-hour, with 16 cores", gpu],
        ["images", "{} × {}".format(*document["size"])],
        ["all cores busy all the time, each as fast as one alone", "yes"],
        ["GPU: pixels per second of 1080×1920 images, at any size", "yes"],
    ]


def projection(documents: dict[str, dict]) -> list[list[str]]:
    """Return hours and dollars of large data sets."""
    results = documents["results"]
    document, (gpu,) = results["shards"], [
        run for run in results["gpu"]["throughput"]["images_per_second"] if run["workers"] == 16
    ]  # fmt: skip
    (width, height), prices = document["size"], document["prices"]
    gpu_height, gpu_width = results["gpu"]["throughput"]["size"]
    scale = width * height / (gpu_width * gpu_height)
    (section,) = [s for s in documents["report"]["results"]["sections"] if s["name"] == "imagenet_eval"]
    saved = {
        d["test"]: d["rate"] for d in section["deltas"]
        if (d["metric"], d["reference"]) == ("top-1 (SqueezeNet, unseen)", "JPEG")
    }  # fmt: skip
    works = (
        ("ugicm compress", "compress a shard", "core", "ugicm machine"),
        ("ugicm decompress", "decompress a shard", "core", None),
        ("ugicm compress, GPU", "compress", "gpu", "ugicm machine"),
        ("ugicm decompress, GPU", "decompress", "gpu", None),
        ("JPEG encode", "JPEG", "core", None), ("WebP encode", "WEBP", "core", "WebP"),
        ("AVIF encode", "AVIF", "core", "AVIF"),
    )  # fmt: skip
    rows = [["", "10 M images", "", "1 B images", "", "bytes at equal top-1, against JPEG"]]
    for title, work, unit, test in works:
        seconds = document["cpu_seconds"][work] if unit == "core" else scale / gpu[work]
        cells = []
        for count in (10**7, 10**9):
            hours = count * seconds / 3600
            dollars = hours * prices[f"{unit}_hour_dollars"]
            cells += [f"{hours:,.0f} {unit}-h".replace("gpu", "GPU"), f"{dollars:,.0f} $"]
        share = "{:+.0f} % ({:+.0f} … {:+.0f})".format(saved[test]["value"], *saved[test]["interval"]) if test else "–"
        rows.append([title, *cells, share])
    return rows


def train(document: dict) -> list[list[str]]:
    """Return training speed by variant, its spread, and the shares of a step."""
    runs, same = document["runs"], document.get("same", {})
    phases = list(runs[0]["shares"])
    turns = [key for key in ("slowest_samples_per_s", "fastest_samples_per_s") if "fastest_samples_per_s" in runs[0]]
    rows = [["variant", "device", "threads", "samples per second", *(key.partition("_")[0] for key in turns), *phases]]
    for r in runs:
        name = " = ".join([r["variant"], *(other for other, first in same.items() if first == r["variant"])])
        shares = [f"{100 * r['shares'][phase]:.0f} %" for phase in phases]
        paces = [f"{r[key]:.2f}" for key in ("samples_per_s", *turns)]
        rows.append([name, r["device"], str(r["threads"]), *paces, *shares])
    return rows


PEAK, UTILIZATION = 312e12, 0.4  # one A100: bf16 FLOPS, and the share of them assumed
CLIP_MACS = 4.4e9  # one pass of ViT-B/32 on a 224x224 image
STAGES = (  # title, configuration, whether the encoder trains, CLIP images for each sample with beta = 1
    ("distortion only", "{}_mse", True, 0),
    ("stage 1", "{}_stage1_rate1", True, 1),
    ("stage 1, decoder only", "stage1_decoder", False, 1),
    ("stage 2", "{}_stage2_rate1", False, 6),
)


def training_cost(document: dict) -> list[list[str]]:
    """Return what the stages of the paper cost for one rate, from MACs per pixel and the steps of the configurations.

    The MACs of a step are those of the forward pass, plus twice those of the trained part for its gradients. CLIP takes
    a pass for the original, one for the reconstruction and one for its gradient, in half of the samples.
    """
    from ugicm.config import load_config

    rows = [["backbone", "stage", "steps", "MAC a pixel", "MAC a step", "A100 hours for one rate"]]
    for backbone in ("mlicpp", "bmshj2018"):
        macs = {part: 1e3 * value for part, value in document["kmacs_per_pixel"][backbone].items()}
        for title, name, encoder, images in STAGES:
            config = load_config(ROOT / "configs" / "paper" / f"{name.format(backbone)}.yaml")
            forward = sum(macs.values())
            pixels = config.data.batch * config.data.crop**2
            step = pixels * (forward + 2 * (forward if encoder else macs["g_s"]))
            step += config.data.batch / 2 * images * 3 * CLIP_MACS
            hours = 2 * step * config.optim.steps / (PEAK * UTILIZATION) / 3600
            rows.append([backbone, title, f"{config.optim.steps:,}", f"{forward / 1e3:.0f} k", f"{step / 1e12:.0f} T",
                         f"{hours:.0f}"])  # fmt: skip
    return rows


def training_memory(document: dict) -> list[list[str]]:
    """Return the memory of training at the paper's batch: 16 bytes a parameter, and activations in float32."""
    from ugicm.config import load_config

    rows = [["backbone", "weights, gradients, Adam", "activations of a crop", "whole batch at once, 1 GPU",
             "as configured, 1 GPU", "as configured, 8 GPUs"]]  # fmt: skip
    for backbone in ("mlicpp", "bmshj2018"):
        config = load_config(ROOT / "configs" / "paper" / f"{backbone}_stage1_rate1.yaml")
        fixed, crop = 16 * document["parameters"][backbone], document["activation_bytes"][backbone]
        batch, parts = config.data.batch, config.optim.accumulate
        sums = [fixed + crop * batch / divisor for divisor in (1, parts, 8 * parts)]
        rows.append([backbone, *(f"{size / 1e9:.1f} GB" for size in (fixed, crop, *sums))])
    return rows


def recipe(document: dict) -> list[list[str]]:
    """Return the last validation of runs that were compared."""
    rows = [["optimizer", "steps", "minutes", "validation loss", "bpp", "PSNR", "rate at equal distortion"]]
    for run in document["runs"]:
        shown = (f"{run['loss']:.3f}", f"{run['bpp']:.3f}", f"{run['psnr']:.2f}", f"{run['relative rate']:+.0f} %")
        rows.append([run["run"], str(run["steps"]), f"{run['minutes']:.0f}", *shown])
    return rows


def scores(documents: dict[str, dict]) -> list[list[str]]:
    """Return the scores of each file, named as the file."""
    documents = dict(sorted(documents.items()))
    measured = [key for d in documents.values() for key, v in d["results"].items() if key != "bpp" and v[0] is not None]
    titles = list(dict.fromkeys(measured))
    rows = [["", "bpp", *titles]]
    for name, document in documents.items():
        bpp, *values = (document["results"].get(key) for key in ("bpp", *titles))
        digits = [3 if "loss" in title else 1 for title in titles]
        shown = [f"{v[0]:.{d}f}" if v and v[0] is not None else "-" for v, d in zip(values, digits, strict=True)]
        rows.append([name, f"{bpp[0]:.3f}" if bpp else "-", *shown])
    return rows


def calibration(documents: dict[str, dict]) -> list[list[str]]:
    """Return bits per pixel with Gaussian and with calibrated tables, by quality."""
    before, after = (documents[name]["results"] for name in ("gaussian", "calibrated"))
    rows = [["quality", "bpp, Gaussian", "bpp, calibrated", "difference"]]
    for quality, a, b in zip(before["quality"], before["bpp"], after["bpp"], strict=True):
        rows.append([f"{quality:g}", f"{a:.4f}", f"{b:.4f}", f"{100 * (b / a - 1):.1f} %"])
    return rows


def effort(documents: dict[str, dict]) -> list[list[str]]:
    """Return BD-rates without and with latent refinement at the same qualities, and the median times."""
    from ugicm.evaluation.bd_rate import bd_rate

    with_effort, without = documents["results"]["effort"], documents["results"]["calibration"]["calibrated"]
    steps, refined = with_effort["meta"]["effort"], with_effort["results"]
    every = without["results"]
    kept = [every["quality"].index(quality) for quality in refined["quality"]]
    plain = {name: [values[i] for i in kept] for name, values in every.items()}

    def against(reference: dict, name: str = "psnr-rgb") -> list[str]:
        deltas = (bd_rate(reference["bpp"], reference[name], r["bpp"], r[name]).value for r in (plain, refined))
        return [f"{delta:+.1f} %" for delta in deltas]

    baselines = documents["report"]["curves"]["kodak"]
    rows = [["rate for equal PSNR, against", "effort 0", f"effort {steps}"]]
    rows += [[name, *against(baselines[name]["results"])] for name in BASELINES]
    rows.append(["ugicm at effort 0", *against(plain)])
    rows.append(["the same, machine preference", *against(plain, "psnr-rgb-machine")])
    times = (("time to compress an image", "encoding_time"), ("time to decompress both images", "decoding_time"))
    for what, key in times:
        both = (document["per_image"] for document in (without, with_effort))
        rows.append([what, *(f"{statistics.median(r[key] for r in records):.2g} s" for records in both)])
    return rows


def exported(document: dict) -> list[list[str]]:
    """Return speed and size of the codec without PyTorch."""
    rows = [["", "PyTorch", "ONNX Runtime", "ratio"]]
    for name in ("compress", "decompress", "start, load and decompress"):
        r = document["speed"][name]
        rows.append([name, f"{r['pytorch_seconds']:.2f} s", f"{r['runtime_seconds']:.2f} s", f"{r['ratio']:.2f}"])
    sizes = [document["installed_bytes"][kind] for kind in ("pytorch", "runtime")]
    rows.append(["installed packages", *(f"{size / 1e6:,.0f} MB" for size in sizes), f"{sizes[1] / sizes[0]:.3f}"])
    r = document["agreement"]
    return [
        *rows,
        ["largest difference of images", "", f"{r['largest_difference_levels']} level", ""],
        [f"symbols changed by analysis, of {r['symbols']:,}", "", f"{r['symbols_changed_by_analysis']:,}", ""],
        ["PSNR loss of float16 weights", "", f"{r['largest_psnr_loss_of_float16_weights_db']:.3f} dB", ""],
    ]


def viewer(document: dict) -> list[list[str]]:
    """Return times and memory of the page."""
    page = document["page"]
    names = {"load": "load the model", "decode": "decode a file to one image", "slider": "a step of the slider",
             "encode": "encode an image"}  # fmt: skip
    rows = [["", "one thread of WebAssembly"]]
    rows += [[text, f"{page['cpu_seconds'][key]:.2f} s"] for key, text in names.items()]
    return [
        *rows,
        ["largest memory", f"{page['peak_memory_bytes'] / 1e6:,.0f} MB"],
        ["model", f"{page['model_bytes'] / 1e6:.1f} MB"],
        [f"symbols of {page['images_encoded']} images changed by analysis", f"{page['symbols_changed_by_analysis']:,}"],
    ]


def fuzz(document: dict) -> list[list[str]]:
    """Return the outcomes of mutated bitstreams."""
    rows = [["outcome", "bitstreams"], *([name, f"{count:,}"] for name, count in document["outcomes"].items())]
    return [*rows, ["anything else", f"{len(document['findings']):,}"], ["all", f"{document['streams']:,}"]]


TABLES = {
    table.__name__: table
    for table in (
        bd, training_cost, training_memory, rate, speed, sizes, levers, folder, batch, busy, quality_map,
        throughput, shards, shard_speed, prices, projection, train, recipe, scores, calibration, effort,
        exported, viewer, fuzz, robustness,
    )
}  # fmt: skip


def read(path: Path) -> dict:
    """Return a results file, or all results of a folder by name."""
    if path.is_dir():
        found = (p for p in path.iterdir() if p.is_dir() or p.suffix == ".json")
        return {p.stem: read(p) for p in found if p.name != "viewer"}  # npm packages are installed there
    return json.loads(path.read_text())


def markdown(rows: list[list[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *body]) + "\n"


def rewritten(text: str) -> str:
    def block(match: re.Match) -> str:
        begin, name, path, end = match.groups()
        return begin + markdown(TABLES[name](read(ROOT / path))) + end

    return BLOCK.sub(block, text)


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args()
    stale = 0
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text()
        new = rewritten(text)
        if new != text:
            stale += 1
            print(f"{path.relative_to(ROOT)}: {'does not match its results files' if args.check else 'rewritten'}")
            if not args.check:
                path.write_text(new)
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
