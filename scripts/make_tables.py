#!/usr/bin/env python3
"""Rewrite the tables in README.md and docs/ from the results files they come from.

    python scripts/make_tables.py            # rewrite
    python scripts/make_tables.py --check    # exit status 1 if a table is not what its file says

A table stands between ``<!-- table: NAME docs/results/FILE.json -->`` and ``<!-- end of table -->``. The names, and
what writes their files:

  rate                  tests/test.py (results.json)
  speed, sizes          scripts/benchmark codec; with several --size
  levers, folder, train scripts/benchmark levers, folder, train
  throughput            scripts/benchmark throughput; the folder of its files
  scores                classification/test.py; a folder of its files
  calibration           tests/test.py, with Gaussian tables (calibration/gaussian.json) and as shipped (kodak.json); the
                        folder of both
  effort                tests/test.py with --effort (results/effort.json) and without (results/kodak.json), and the
                        curves of scripts/report.py; the folder docs
  fuzz                  scripts/stress/fuzz_streams.py
  robustness            scripts/stress/fuzz_streams.py, check_portability.py, check_concurrency.py, check_large.py, and
                        scripts/benchmark folder; the folder of all their files
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path

from ugicm.arguments import Parser, guarded

ROOT = Path(__file__).resolve().parents[1]

BLOCK = re.compile(r"(<!-- table: (\w+) (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def rate(document: dict) -> list[list[str]]:
    """Averages by quality."""
    results = document["results"]
    rows = [["quality", "bpp", "PSNR, human", "PSNR, machine", "MS-SSIM, human", "MS-SSIM, machine"]]
    for i, quality in enumerate(results["quality"]):
        rows.append([f"{quality:g}", f"{results['bpp'][i]:.3f}"] + [
            f"{results[key][i]:.{digits}f}" for key, digits in (
                ("psnr-rgb", 2), ("psnr-rgb-machine", 2), ("ms-ssim-rgb", 4), ("ms-ssim-rgb-machine", 4))
        ])  # fmt: skip
    return rows


def _shown_seconds(value: float | None) -> str:
    """In milliseconds where there are few."""
    return "-" if value is None else f"{1000 * value:.0f} ms" if value < 0.1 else f"{value:.2f} s"


def speed(document: dict) -> list[list[str]]:
    """Seconds, ratios to the reference codec in the same run, distance from the machine's limit, memory."""
    rows = [["codec", "size", "compress", "decompress to one", "to both", "ratio of compress", "of decompress",
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
    """One codec at several sizes and numbers of threads."""
    rows = [["size", "threads", "compress", "decompress to one", "to both", "compress, ns a pixel",
             "to both, ns a pixel", "per pixel over 512×768", "to both", "peak memory"]]  # fmt: skip
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
    """Ways to be faster, one by one."""
    rows = [["way", "without", "with", "ratio", "PSNR between, dB", "used", "why"]]
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
    """Everything that must hold of streams, from all results files: what was tried, how often, how often it failed."""
    rows = [["what", "tried", "measured", "must be"]]

    def row(*cells: str) -> None:
        rows.append(list(cells))

    for name, d in sorted(documents["portability"].items()):
        settings, versions = len(d["versions"]), sorted({version.split("+")[0] for version in d["versions"].values()})
        images = f"{d['images']} image" + "s" * (d["images"] > 1)
        tried = f"{d['streams']:,} readings: {images}, {settings} × {settings} settings"
        form, _, crop = name.partition("_")
        what = f"{form} form" + (f", crops of {crop}" if crop else "")
        gpu = ", one of them a GPU" if "CUDA" in d["versions"] else ""
        row(f"{what}, read under another setting{gpu}", f"{tried}, PyTorch {' and '.join(versions)}",
            f"{d['mismatches']} wrong", "0")  # fmt: skip
        row("… closest that a scale came to a bound of its table", "", f"{d['closest_to_a_bound']:.1e} of it", "-")
    d = documents["fuzz"]
    row("damaged and forged streams", f"{d['streams']:,} mutants", f"{len(d['findings'])} findings", "0")
    d = documents["concurrency"]
    differ = f"{d['streams_that_differ']} streams and {d['images_that_differ']} images differ"
    row(f"one codec in {d['threads']} threads", f"{d['calls']:,} calls", differ, "0")
    d = documents["folder_speed"]
    for name in ("compress", "decompress"):
        same = "the same files as one by one" if d[name]["same_files"] else "OTHER files"
        row(f"`ugicm {name} --workers {d['workers']}`", f"{d['images']} images", same, "the same")
    width, height = documents["large"]["size"]
    for check in documents["large"]["checks"]:
        row(f"{width}×{height}: {check['what']}", "", f"{check['value']:.3g}", f"≤ {check['limit']:g}")
    return rows


def folder(document: dict) -> list[list[str]]:
    """A folder one by one and side by side."""
    rows = [["command", "images", "one by one", f"{document['workers']} workers", "ratio", "without start-up"]]
    for name in ("compress", "decompress"):
        r = document[name]
        rows.append([
            f"`ugicm {name}`", str(document["images"]), f"{r['one_by_one_seconds']:.1f} s",
            f"{r['side_by_side_seconds']:.1f} s", f"{r['ratio']:.2f}",
            "-" if r["ratio_without_start"] is None else f"{r['ratio_without_start']:.2f}",
        ])  # fmt: skip
    return rows


def throughput(documents: dict[str, dict]) -> list[list[str]]:
    """Images a second with several processes side by side."""
    rows = [["model", "size", "processes", "compress", "decompress to one", "to both"]]
    documents = [d for d in documents.values() if "images_per_second" in d]
    for d in sorted(documents, key=lambda d: -d["size"][0] * d["size"][1]):
        name = "ugicm" if d["model"] == "shipped" else f"ugicm, {d['model']}"
        for r in d["images_per_second"]:
            paces = (f"{r[work]:.1f} a second" for work in ("compress", "decompress", "decompress_both"))
            rows.append([name, "{}×{}".format(*d["size"]), str(r["workers"]), *paces])
    return rows


def train(document: dict) -> list[list[str]]:
    """Speed of training by variant, how far its turns are apart, and where the time of a step goes."""
    runs, same = document["runs"], document.get("same", {})
    phases = list(runs[0]["shares"])
    turns = [key for key in ("slowest_samples_per_s", "fastest_samples_per_s") if "fastest_samples_per_s" in runs[0]]
    rows = [["variant", "device", "threads", "samples a second", *(key.partition("_")[0] for key in turns), *phases]]
    for r in runs:
        name = " = ".join([r["variant"], *(other for other, first in same.items() if first == r["variant"])])
        shares = [f"{100 * r['shares'][phase]:.0f} %" for phase in phases]
        paces = [f"{r[key]:.2f}" for key in ("samples_per_s", *turns)]
        rows.append([name, r["device"], str(r["threads"]), *paces, *shares])
    return rows


def scores(documents: dict[str, dict]) -> list[list[str]]:
    """One row a file, named as the file."""
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
    """Bits a pixel with two kinds of tables, by quality."""
    before, after = (document["results"] for document in (documents["calibration"]["gaussian"], documents["kodak"]))
    rows = [["quality", "bpp, Gaussian", "bpp, calibrated", "difference"]]
    for quality, a, b in zip(before["quality"], before["bpp"], after["bpp"], strict=True):
        rows.append([f"{quality:g}", f"{a:.4f}", f"{b:.4f}", f"{100 * (b / a - 1):.1f} %"])
    return rows


def effort(documents: dict[str, dict]) -> list[list[str]]:
    """Rate for equal PSNR, in percent, without and with effort, at the same qualities; and the median time it takes."""
    from ugicm.evaluation.bd_rate import bd_rate

    with_effort = documents["results"]["effort"]
    steps, refined = with_effort["meta"]["effort"], with_effort["results"]
    every = documents["results"]["kodak"]["results"]
    kept = [every["quality"].index(quality) for quality in refined["quality"]]
    plain = {name: [values[i] for i in kept] for name, values in every.items()}

    def against(reference: dict, name: str = "psnr-rgb") -> list[str]:
        deltas = (bd_rate(reference["bpp"], reference[name], r["bpp"], r[name]).value for r in (plain, refined))
        return [f"{delta:+.1f} %" for delta in deltas]

    anchors = documents["report"]["curves"]["kodak"]
    rows = [["bits for equal PSNR, against", "effort 0", f"effort {steps}"]]
    rows += [[name, *against(anchors[name]["results"])] for name in ("JPEG", "WebP", "AVIF")]
    rows.append(["ugicm at effort 0", *against(plain)])
    rows.append(["the same, both as machines see them", *against(plain, "psnr-rgb-machine")])
    for what, key in (("to write an image", "encoding_time"), ("to read both images", "decoding_time")):
        both = (documents["results"][name]["per_image"] for name in ("kodak", "effort"))
        rows.append([what, *(f"{statistics.median(r[key] for r in records):.2g} s" for records in both)])
    return rows


def fuzz(document: dict) -> list[list[str]]:
    """What became of mutated streams."""
    rows = [["outcome", "streams"], *([name, f"{count:,}"] for name, count in document["outcomes"].items())]
    return [*rows, ["anything else", f"{len(document['findings']):,}"], ["all", f"{document['streams']:,}"]]


TABLES = {f.__name__: f for f in (rate, speed, sizes, levers, folder, throughput, train, scores, calibration, effort,
                                     fuzz, robustness)}  # fmt: skip


def read(path: Path) -> dict:
    """A results file; or of a folder all that it holds, by name."""
    if path.is_dir():
        return {p.stem: read(p) for p in path.iterdir() if p.is_dir() or p.suffix == ".json"}
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
    parser = Parser(description=__doc__)
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
    sys.exit(guarded(main))
