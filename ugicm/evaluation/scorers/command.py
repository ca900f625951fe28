"""What every scorer script does: find the pictures, show them to the evaluators, print and write the scores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from ugicm.errors import ConfigError
from ugicm.evaluation import results
from ugicm.evaluation.scorers.base import Evaluator, Item, Outcome, make_deterministic, run
from ugicm.evaluation.scorers.sources import Originals, present, source_from
from ugicm.training.distributed import leave, process_group
from ugicm.usage import spread


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
    leave()
    return 1 if outcome.failed else 0


def _report(args, task, evaluators, outcome: Outcome, missing, source, device, world) -> None:
    scores = {title: value for e in evaluators for title, value in e.titled().items()}
    count = len(evaluators[0].records)
    rows = [(title, f"{value:.2f}") for title, value in scores.items() if value is not None]
    if outcome.bpp is not None:
        rows.insert(0, ("bpp", f"{outcome.bpp:.4f}"))
    # What was looked at, before what was found: scores of the originals and of a codec look alike.
    facts = {key: value for key, value in source.describe().items() if value is not None}
    looked_at = ", ".join([facts.pop("source"), *(f"{key} {value}" for key, value in facts.items())])
    print(f"{task}: {count} pictures" + (f", {len(missing)} missing" if missing else "") + f" ({looked_at})")
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
