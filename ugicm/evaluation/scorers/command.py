"""What every scorer script does: find the pictures, show them to the evaluators, print and write the scores."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from ugicm.errors import ConfigError
from ugicm.evaluation import results
from ugicm.evaluation.anchors import spread
from ugicm.evaluation.scorers.base import (
    Evaluator,
    Item,
    Outcome,
    leave_process_group,
    make_deterministic,
    process_group,
    run,
)
from ugicm.evaluation.scorers.sources import Originals, present, source_from
from ugicm.evaluation.scorers.weights import pick_device


def score(
    args: argparse.Namespace,
    task: str,
    items: Sequence[Item],
    evaluators: Sequence[Evaluator],
    device: str,
    check: Callable | None = None,
    references: Sequence[Evaluator] = (),
) -> int:
    """Run evaluators over the pictures that the options of
    :func:`~ugicm.evaluation.scorers.sources.add_source_arguments` name; print and write the scores.

    ``references`` see the originals first, unless those are what is tested; a picture that fails there is left out.
    Returns the exit status: 1 where pictures failed.
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
        _report(args, task, evaluators, outcome, missing, source, device, world)
    leave_process_group()
    return 1 if outcome.failed else 0


def _report(args, task, evaluators, outcome: Outcome, missing, source, device, world) -> None:
    scores = {title: value for e in evaluators for title, value in e.titled().items()}
    count = len(evaluators[0].records)
    rows = [(title, f"{value:.2f}") for title, value in scores.items() if value is not None]
    if outcome.bpp is not None:
        rows.insert(0, ("bpp", f"{outcome.bpp:.4f}"))
    print(f"{task}: {count} pictures" + (f", {len(missing)} missing" if missing else ""))
    print(results.table(rows, ("score", "value")))
    for key, reason in sorted(outcome.failed.items()):
        print(f"not scored: {key}: {reason}", file=sys.stderr)
    for key in missing:
        print(f"missing: {key}", file=sys.stderr)
    if args.output:
        keys = sorted(evaluators[0].records)
        rate = {} if outcome.bpp is None else {"bpp": [outcome.bpp]}
        results.write(
            args.output,
            task,
            f"{count} pictures",
            {**rate, **{title: [value] for title, value in scores.items()}},
            meta={
                **results.environment(device),
                **source.describe(),
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


def device_of(args: argparse.Namespace) -> str:
    """``--device``, or the best there is. Under torchrun each process takes its own GPU."""
    if args.device is None and "LOCAL_RANK" in os.environ:
        import torch

        count = torch.cuda.device_count()
        return f"cuda:{int(os.environ['LOCAL_RANK']) % count}" if count else "cpu"
    return pick_device(args.device)
