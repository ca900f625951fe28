"""Build a report: measure all curves, compare them, and write the page, tables, plots and results files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ugicm import atomic
from ugicm.arguments import pick_device
from ugicm.errors import ConfigError, UgicmError, printable
from ugicm.evaluation import codecs, digests, results
from ugicm.evaluation.tasks.base import check_distinct, make_deterministic
from ugicm.report.command import DEFAULT_CODECS
from ugicm.report.comparison import compare, headline_metrics, image_rates, image_scores
from ugicm.report.curves import Cache, Curve, measure_curves, original_scores
from ugicm.report.datasets import Dataset, load_datasets
from ugicm.report.html_page import page
from ugicm.report.tables import markdown, plots
from ugicm.report.viewer import viewer_data


def build_report(args: argparse.Namespace) -> int:
    """Build the report that the arguments of ``ugicm report`` describe. Return 1 if images were left out, else 0."""
    _check_arguments(args)
    make_deterministic()
    device = pick_device(args.device)
    notes: list[str] = []
    compared = _load_codecs(args, device, notes)
    datasets = load_datasets(args, device, notes)
    output = Path(args.output)
    cache = Cache(args.cache or output / "cache")
    measured = [(dataset, measure_curves(dataset, compared, args, cache)) for dataset in datasets]
    for dataset in datasets:
        for key, reason in dataset.failed.items():
            notes.append(printable(f"{dataset.name}: {key} was left out: {reason}"))
            print(printable(f"ugicm report: left out: {key}: {reason}"), file=sys.stderr)
    for dataset, curves in measured:
        notes += _undefined(dataset, curves)
    environment = results.environment(device)
    sections = [_section(dataset, curves, cache) for dataset, curves in measured]
    for section, (dataset, curves) in zip(sections, measured, strict=True):
        _write_curves(output / "curves" / dataset.name, section, dataset, curves, environment)
    document = {"name": args.title, "home": args.home, "meta": environment, "notes": notes, "sections": sections}
    atomic.write(output / "results.json", (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    # Names of files need not be text.
    atomic.write(output / "tables.md", markdown(document).encode(errors="backslashreplace"))
    plots(document, output / "plots")
    shown = args.viewer_datasets or [dataset.name for dataset in datasets]
    viewers = [
        viewer_data(dataset, curves, args, cache) if dataset.name in shown else None for dataset, curves in measured
    ]
    atomic.write(output / "index.html", page(document, viewers).encode(errors="backslashreplace"))
    print(f"written: {output / 'index.html'}")
    return 1 if any(dataset.failed for dataset in datasets) else 0


def _check_arguments(args: argparse.Namespace) -> None:
    unknown = sorted(set(args.viewer_qualities or ()) - set(args.qualities))
    if unknown:
        qualities = " ".join(f"{quality:g}" for quality in args.qualities)
        raise ConfigError(f"--viewer-qualities: {unknown[0]:g} is not one of --qualities {qualities}")
    if args.bpp_range and not 0 < args.bpp_range[0] < args.bpp_range[1]:
        raise ConfigError("--bpp-range: {:g} {:g} is not a range of positive numbers".format(*args.bpp_range))


def _load_codecs(args: argparse.Namespace, device: str, notes: list[str]) -> list[codecs.ImageCodec]:
    """Return the codecs, those with preferences first: their rates are the range of the baselines.

    Codecs that were named must load. Of the default ones, those that are not available are left out, with an entry in
    ``notes``.
    """
    loaded = []
    for text in args.codecs or DEFAULT_CODECS:
        try:
            loaded.append(codecs.load_codec(text, device, sorted(set(args.preferences))))
        except UgicmError as error:
            if args.codecs:
                raise
            notes.append(f"{text} was not measured: {error}")
    # Names of curves are names of files.
    names = [Curve(codec, preference, []).file_name for codec in loaded for preference in codec.preferences]
    check_distinct(names, "codecs")
    return sorted(loaded, key=lambda codec: None in codec.preferences)


def _section(dataset: Dataset, curves: Sequence[Curve], cache: Cache) -> dict[str, Any]:
    """Return the results of a dataset as in ``results.json``."""
    metrics = headline_metrics(dataset, curves)
    return {
        "name": dataset.name,
        "images": len(dataset.items),
        "metrics": [
            {
                "title": metric.title,
                "evaluator": metric.evaluator.name,
                "lower_is_better": metric.lower_is_better,
                "method": metric.method,
                "decibels": metric.name.startswith("ms-ssim"),
            }
            for metric in metrics
        ],
        "originals": original_scores(dataset, cache),
        "curves": [
            {
                "name": curve.name,
                "codec": curve.codec.label,
                "identity": curve.codec.identity,
                "preference": curve.preference,
                "settings": [point.setting for point in curve.points],
                "results": {
                    "bpp": [point.bpp for point in curve.points],
                    **{title: [point.scores[title] for point in curve.points] for title in curve.points[0].scores},
                },
            }
            for curve in curves
        ],
        "deltas": compare(dataset, curves),
        "evaluators": [{"name": e.name, "identity": e.identity} for e in dataset.evaluators],
        "digest": digests.tree_digest((item.key, item.path) for item in dataset.items),
    }


def _undefined(dataset: Dataset, curves: Sequence[Curve]) -> list[str]:
    """Return a note for every metric that some images do not have."""
    notes = []
    for metric in headline_metrics(dataset, curves):
        scores = [image_scores(dataset, curve, metric) for curve in curves]
        if all(values is not None for values in scores):
            absent = int(np.isnan(np.concatenate(scores)).any(0).sum())
            if absent:
                count = len(dataset.items)
                notes.append(f"{dataset.name}: {metric.title} is averaged over {count - absent} of {count} images: "
                             "the others do not have it")  # fmt: skip
    return notes


def _write_curves(
    folder: Path, section: dict[str, Any], dataset: Dataset, curves: Sequence[Curve], environment: dict[str, Any]
) -> None:
    """Write a results file per curve. Its ``per_image`` holds ``files``, and per metric a row per rate point."""
    for described, curve in zip(section["curves"], curves, strict=True):
        per_image = {"files": [item.key for item in dataset.items], "bpp": image_rates(dataset, curve)}
        for metric in headline_metrics(dataset, curves):
            scores = image_scores(dataset, curve, metric)
            if scores is not None:
                per_image[metric.title] = scores
        results.write(
            folder / f"{curve.file_name}.json",
            curve.name,
            f"{section['images']} images of {dataset.name}",
            described["results"],
            settings=described["settings"],
            meta={**environment, "codec": curve.codec.identity, "preference": curve.preference,
                  "dataset": section["digest"]},
            per_image={key: v if key == "files" else _rounded(v) for key, v in per_image.items()},
        )  # fmt: skip


def _rounded(scores: np.ndarray) -> list[list[float | None]]:
    """Return an array [points, images] as lists, with None for NaN."""
    return np.where(np.isnan(scores), None, scores.round(5)).tolist()
