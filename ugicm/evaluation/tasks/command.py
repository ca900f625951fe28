"""What every scorer script does: find the images, show them to the evaluators, print and write the scores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ugicm.arguments import spread
from ugicm.errors import ConfigError
from ugicm.evaluation import digests, results
from ugicm.evaluation.tasks.base import Evaluator, Item, Outcome, make_deterministic, run
from ugicm.evaluation.tasks.sources import Originals, Source, present, source_from
from ugicm.training.distributed import leave, process_group


def score(
    args: argparse.Namespace,
    task: str,
    items: Sequence[Item],
    evaluators: Sequence[Evaluator],
    device: str,
    check: Callable | None = None,
    references: Sequence[Evaluator] = (),
    truth: str | None = None,
) -> int:
    """Run evaluators over the images that the options of
    :func:`~ugicm.evaluation.tasks.sources.add_source_arguments` name; print and write the scores.

    ``references`` see the originals first, unless those are what is tested; an image that fails there is left out.
    ``truth``: a digest of the ground truth, where the items' targets are not all of it.
    Returns the exit status: 1 where images failed.
    """
    make_deterministic()
    names = [e.name for e in evaluators]
    if len(set(names)) < len(names):
        raise ConfigError(f"two judges are called {max(names, key=names.count)}: tell them apart with :label=NAME")
    source = source_from(args, device)
    items, missing = present(items, source, args.allow_missing)
    if args.limit:
        items = [items[i] for i in spread(args.limit, len(items))]
    options = {"batch_size": args.batch_size, "workers": args.workers, "check": check}
    failed: dict[str, str] = {}
    if references and not isinstance(source, Originals):
        failed = run(references, items, Originals(), title="originals", **options).failed
        items = [item for item in items if item.key not in failed]
    outcome = run(evaluators, items, source, title=task, **options)
    outcome.failed.update(failed)
    rank, world = process_group()
    if rank == 0:
        _report(args, task, items, evaluators, outcome, missing, source, device, world, truth)
    leave()
    return 1 if outcome.failed else 0


def _report(args, task, items, evaluators, outcome: Outcome, missing, source, device, world, truth) -> None:
    scores = {title: value for e in evaluators for title, value in e.titled().items()}
    count = len(evaluators[0].records)
    rows = [(title, f"{value:.2f}") for title, value in scores.items() if value is not None]
    if outcome.bpp is not None:
        rows.insert(0, ("bpp", f"{outcome.bpp:.4f}"))
    # What was looked at, before what was found: scores of the originals and of a codec look alike.
    described = source.describe()
    facts = {key: value for key, value in described.items() if value is not None}
    looked_at = ", ".join([facts.pop("source"), *(f"{key} {value}" for key, value in facts.items())])
    print(f"{task}: {count} images" + (f", {len(missing)} missing" if missing else "") + f" ({looked_at})")
    print(results.table(rows, ("score", "value")))
    for key, reason in sorted(outcome.failed.items()):
        print(f"not scored: {key}: {reason}", file=sys.stderr)
    for key in missing:
        print(f"missing: {key}", file=sys.stderr)
    if args.output:
        keys, by_key = sorted(evaluators[0].records), {item.key: item for item in items}
        rate = {} if outcome.bpp is None else {"bpp": [outcome.bpp]}
        results.write(
            args.output,
            task,
            f"{count} images",
            {**rate, **{title: [value] for title, value in scores.items()}},
            meta={
                **results.environment(device),
                **described,
                "dataset": _dataset([by_key[key] for key in keys], source, truth),
                "limit": args.limit,
                "batch_size": args.batch_size,  # the last digits of classifiers depend on it
                "processes": world,
                "evaluators": [e.describe() for e in evaluators],
            },
            missing=missing,
            failed=outcome.failed,
            per_image=[
                {
                    "file": key,
                    **({"bpp": outcome.bits[key] / outcome.pixels[key]} if key in outcome.bits else {}),
                    **{e.name: e.records[key] for e in evaluators},
                }
                for key in keys
            ],
        )


def _dataset(items: Sequence[Item], source: Source, truth: str | None) -> dict[str, Any]:
    """Which images were scored, what was looked at in their place, and what is true about them: equal for equal ones,
    wherever they are."""
    try:
        originals = digests.named_digest((item.key, item.path) for item in items)
    except OSError:  # decoded images and streams can be scored without them
        originals = None
    if truth is None:
        targets = (digests.file_digest(t) if isinstance(t := item.target, Path) else t for item in items)
        truth = digests.facts_digest([[item.key, target] for item, target in zip(items, targets, strict=True)])
    return {
        "images": len(items),
        "digest": originals,
        "tested": digests.named_digest((item.key, source.file(item)) for item in items),
        "truth": truth,
    }
