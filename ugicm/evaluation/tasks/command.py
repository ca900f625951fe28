"""The run that the task scripts share: find the images under test, evaluate them, print and write the scores."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ugicm.arguments import pick_device, spread
from ugicm.errors import ConfigError, first_line, first_of, printable
from ugicm.evaluation import digests, results
from ugicm.evaluation.bootstrap import mean_interval
from ugicm.evaluation.tasks.base import Evaluator, Item, Task, TaskOutcome, check_distinct, make_deterministic, run
from ugicm.evaluation.tasks.cluster import Build, ScoringTask, run_on_cluster
from ugicm.evaluation.tasks.sources import Originals, Source, load_source, split_missing


def evaluate(build: Build, args: argparse.Namespace) -> int:
    """Evaluate a task on the images that the options of
    :func:`~ugicm.evaluation.tasks.sources.add_source_arguments` select, print the scores and write a results file.

    ``build`` returns the task for these options and a device. It is called here, and with ``--ray`` by each worker.

    Returns the exit status: 1 if images failed, else 0.
    """
    device = pick_device(args.device)
    task = build(args, device)
    make_deterministic()
    # The others are keys of the results file.
    check_distinct([*(evaluator.name for evaluator in task.evaluators), "file", "bpp", "scores"], "networks")
    baseline = _read_baseline(args.baseline, task) if args.baseline else {}
    source = load_source(args, device)
    items, missing = split_missing(task.items, source, args.allow_missing)
    if args.limit:
        items = [items[i] for i in spread(args.limit, len(items))]

    def process(evaluators: Sequence[Evaluator], source: Source, title: str) -> TaskOutcome:
        if args.ray is None:
            return run(evaluators, items, source, args.batch_size, args.workers, title)
        return run_on_cluster(
            ScoringTask(build, args, os.getcwd()), evaluators, items, evaluators is task.references, title
        )

    failed: dict[str, str] = {}
    if task.references and not isinstance(source, Originals):
        failed = process(task.references, Originals(), "originals").failed
        items = [item for item in items if item.key not in failed]
        for evaluator, reference in zip(task.evaluators, task.references, strict=True):
            evaluator.reference = reference.records
    outcome = process(task.evaluators, source, task.name)
    outcome.failed.update(failed)
    scores = {e.title(metric): value for e in task.evaluators for metric, value in e.evaluate().items()}
    bpp = results.mean(outcome.bpp.values())
    scores = scores if bpp is None else {"bpp": bpp, **scores}
    by_image = _scores_by_image(task)
    _print_scores(task, source, scores, by_image, outcome, missing)
    if baseline:
        _print_differences(by_image, baseline, args.baseline)
    if args.output:
        scored = sorted((i for i in items if i.key in task.evaluators[0].records), key=lambda item: item.key)
        meta = {
            **results.environment(device),
            **source.describe(),
            "dataset": _describe_dataset(scored, source, task.truth),
            "limit": args.limit,
            "batch_size": args.batch_size,  # classifiers depend on it in the last digits
            "evaluators": [{"name": e.name, "identity": e.identity} for e in task.evaluators],
        }
        _write_results(args.output, task, scores, by_image, outcome, meta=meta, missing=missing)
    return 1 if outcome.failed else 0


def _scores_by_image(task: Task) -> dict[str, dict[str, float]]:
    """Return by title the values by image whose mean is a score."""
    scores = {e.title(metric): e.per_image_scores(metric, e.records) for e in task.evaluators for metric in e.metrics}
    return {title: values for title, values in scores.items() if values}


def _read_baseline(path: str, task: Task) -> dict[str, dict[str, float]]:
    """Return the values by title and image of a results file. Raise ConfigError if it has none of the task's scores."""
    by_image: dict[str, dict[str, float]] = {}
    titles = {e.title(metric) for e in task.evaluators for metric in e.metrics}
    try:
        for row in results.read(path)["per_image"]:
            for title, value in row["scores"].items():
                by_image.setdefault(title, {})[row["file"]] = float(value)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not an output of a task script: {first_line(error)}") from None
    if not titles & by_image.keys():
        raise ConfigError(f"{path}: none of the scores {first_of(sorted(titles))}; pass an output for these networks")
    return by_image


def _print_differences(by_image: dict, baseline: dict, path: str) -> None:
    rows = []
    for title in (title for title in by_image if title in baseline):
        keys = sorted(by_image[title].keys() & baseline[title].keys())
        changes = [by_image[title][key] - baseline[title][key] for key in keys]
        rows.append((title, f"{results.mean(changes):+.2f}" if keys else None, _interval(changes), str(len(keys))))
    print(f"difference from {path}, with 95 % interval over images")
    print(results.table(rows, ("score", "difference", "interval", "images")))


def _interval(values: Sequence[float]) -> str:
    interval = mean_interval(values)
    return "{:.2f} … {:.2f}".format(*interval) if interval else ""


def _print_scores(
    task: Task, source: Source, scores: dict, by_image: dict, outcome: TaskOutcome, missing: Sequence[str]
) -> None:
    facts = {key: value for key, value in source.describe().items() if value is not None}
    tested = ", ".join([facts.pop("source"), *(f"{key} {value}" for key, value in facts.items())])
    excluded = f", {len(missing)} missing" if missing else ""
    print(f"{task.name}: {len(task.evaluators[0].records)} images{excluded} ({tested})")
    rows = [
        (name, f"{value:.{4 if name == 'bpp' else 2}f}", _interval([*by_image.get(name, {}).values()]))
        for name, value in scores.items()
        if value is not None
    ]
    print(results.table(rows, ("score", "value", "95 % interval")))
    for key, error in sorted(outcome.failed.items()):
        print(printable(f"failed: {key}: {error}"), file=sys.stderr)
    for key in missing:
        print(printable(f"missing: {key}"), file=sys.stderr)


def _write_results(path: str, task: Task, scores: dict, by_image: dict, outcome: TaskOutcome, **more: Any) -> None:
    keys = sorted(task.evaluators[0].records)
    rates = {key: {"bpp": bpp} for key, bpp in outcome.bpp.items()}
    per_image = [
        {
            "file": key,
            **rates.get(key, {}),
            "scores": {title: values[key] for title, values in by_image.items() if key in values},
            **{e.name: e.records[key] for e in task.evaluators},
        }
        for key in keys
    ]
    intervals = {title: mean_interval([*values.values()]) for title, values in by_image.items()}
    more |= {"intervals": intervals, "failed": outcome.failed, "per_image": per_image}
    results.write(path, task.name, f"{len(keys)} images", {name: [value] for name, value in scores.items()}, **more)


def _describe_dataset(items: Sequence[Item], source: Source, truth: str | None) -> dict[str, Any]:
    """Return digests of the originals, of the images under test and of the ground truth, independent of their location.
    """
    present = any(item.path.exists() for item in items)
    originals = digests.tree_digest((item.key, item.path) for item in items) if present else None
    if truth is None:
        targets = {i.key: digests.file_digest(i.target) if isinstance(i.target, Path) else i.target for i in items}
        truth = digests.facts_digest(list(targets.items()))
    tested = digests.tree_digest((item.key, source.path(item)) for item in items)
    return {"images": len(items), "digest": originals, "tested": tested, "truth": truth}
