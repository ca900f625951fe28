"""Decode mutated bitstreams and report each one that ends in anything but a StreamError or an image of its size.

    python -m scripts.stress.fuzzing --examples 100000 -o docs/results/fuzz.json   # the shipped model: 30 minutes
    python -m scripts.stress.fuzzing -c model.safetensors --examples 2000 --seed 7 --workers 2

Mutants are drawn by Hypothesis. Half of them get a correct checksum, so that they reach the header fields and the
entropy decoder. Some of these are replaced by a valid bitstream of the symbols that they decode to, so that they reach
the synthesis.
A *finding* is an outcome other than a StreamError or an image of the declared size, or a mutant that exceeds the limits
on time and memory. Bitstreams of findings are saved. Linux only: memory is read from /proc.
Exit status: 0 no findings, 1 findings or something failed, 2 wrong usage.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import torch
from tqdm import tqdm

import ugicm
from scripts.processes import in_fresh_process, memory, reset_peak
from scripts.stress.mutants import EXTENDED_MUTATIONS, Mutant, forged, mutants, valid_bitstreams
from ugicm import atomic, bitstream
from ugicm.arguments import ArgumentParser, natural, positive, run_command
from ugicm.codec import Codec
from ugicm.errors import StreamError, UgicmError
from ugicm.evaluation import results

SECONDS = (1.0, 20e-6)  # limit on processor time: for every bitstream, and per pixel of its padded image
MEMORY = (64 * 2**20, 400)  # limit on memory in bytes, likewise
MAX_PIXELS = 2**18  # of an image during the run, so that no example takes long
TIMEOUT = 120  # seconds after which an example counts as a hang
ADDRESS_SPACE = 6 * 2**30  # bytes that decoding may allocate
BLOCK = 5000  # examples per process
REFUSALS = {
    "not a ugicm": "invalid", "unsupported version": "version", "truncated": "truncated", "checksum": "checksum",
    "more than the limit": "too large", "another model": "model", "digest": "digest",
}  # fmt: skip


def decode(codec: Codec, mutant: Mutant) -> tuple[str, str, bytes]:
    """Decode a mutant.

    Returns:
        The outcome ("image", "refused: REASON" or "finding: WHAT"), the error message, and the bitstream that was
        decoded.
    """
    data = mutant.data
    try:
        if mutant.forge:
            data = forged(codec, data)
        parsed = bitstream.parse(data)
        image = codec.decompress(data, mutant.preference)
    except StreamError as error:
        reason = next((name for text, name in REFUSALS.items() if text in str(error)), "corrupt")
        return f"refused: {reason}", str(error), data
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of constriction is not an Exception
        return f"finding: {type(error).__name__}", str(error), data
    if image.size != (parsed.width, parsed.height) or len(image.tobytes()) != (
        len(image.getbands()) * parsed.width * parsed.height
    ):
        return "finding: wrong size", f"{image.size}, declared {parsed.width}x{parsed.height}", data
    return "image", "", data


class Record(NamedTuple):
    """What happened to a mutant."""

    kind: str
    outcome: str
    seconds: float = 0.0
    memory_bytes: int = 0
    padded_pixels: int = 0
    details: str = ""


def observe(codec: Codec, mutant: Mutant) -> tuple[Record, bytes]:
    """Decode a mutant and measure its cost. Return the record and the bitstream that was decoded."""
    try:
        padded = bitstream.parse(mutant.data).padded
        pixels = padded.width * padded.height
    except StreamError:
        pixels = 0
    reset_peak()
    before, start = memory("VmRSS"), time.process_time()
    outcome, details, data = decode(codec, mutant)
    seconds, grown = round(time.process_time() - start, 4), memory("VmHWM") - before
    if not outcome.startswith("finding"):
        if seconds > SECONDS[0] + SECONDS[1] * pixels:
            outcome, details = "finding: slow", f"{seconds} s for {pixels} pixels; {outcome}"
        elif grown > MEMORY[0] + MEMORY[1] * pixels:
            outcome, details = "finding: memory", f"{grown} bytes for {pixels} pixels; {outcome}"
    details = details[:300] if outcome.startswith("finding") else ""
    return Record(mutant.kind, outcome, seconds, grown, pixels, details), data


def run_block(checkpoint: str | None, corpus: list[bytes], seed: int, count: int, folder: Path) -> list[Record]:
    """Decode ``count`` mutants in this process. Write bitstreams of findings, and the current one, to ``folder``."""
    import resource  # does not exist on Windows

    torch.set_num_threads(1)
    codec = ugicm.load(checkpoint)
    for data in corpus:  # warm up
        codec.decompress(data, 1.0)
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + ADDRESS_SPACE,) * 2)
    bitstream.MAX_PIXELS = MAX_PIXELS
    records, current = [], folder / f"{seed}-current.ugic"

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    @hypothesis.given(mutants(corpus, EXTENDED_MUTATIONS))
    def decode_all(mutant: Mutant) -> None:
        current.write_bytes(mutant.data)
        faulthandler.dump_traceback_later(TIMEOUT, exit=True)
        record, data = observe(codec, mutant)
        faulthandler.cancel_dump_traceback_later()
        if record.outcome.startswith("finding"):
            name = f"{seed}-{len(records)}-{record.outcome.removeprefix('finding: ')}.ugic"
            (folder / name.replace(" ", "-")).write_bytes(data)
        records.append(record)

    decode_all()
    current.unlink()
    return records


def run(checkpoint: str | None, examples: int, seed: int, workers: int, folder: Path) -> list[Record]:
    """Decode ``examples`` mutants in processes of :data:`BLOCK` each, ``workers`` at a time.

    Bitstreams of findings are saved in ``folder``. A process that dies or hangs is a finding. The records of its other
    mutants are lost.
    """
    corpus = valid_bitstreams(ugicm.load(checkpoint))
    folder.mkdir(parents=True, exist_ok=True)

    def block(number: int) -> list[Record]:
        count, block_seed = min(BLOCK, examples - number * BLOCK), seed * 10**6 + number
        try:
            return in_fresh_process(run_block, checkpoint, corpus, block_seed, count, folder)
        except UgicmError as error:
            current = folder / f"{block_seed}-current.ugic"
            if not current.exists():  # failed before the first mutant
                raise
            current.rename(folder / f"{block_seed}-died.ugic")
            return [Record("unknown", "finding: process died", details=str(error))]

    numbers = range(-(-examples // BLOCK))
    with ThreadPoolExecutor(workers) as pool:
        blocks = tqdm(pool.map(block, numbers), total=len(numbers), unit=f"{BLOCK} examples", disable=None)
        return list(itertools.chain.from_iterable(blocks))


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Return counts of outcomes, in total and by kind of mutation, the extremes of cost, and the findings."""
    by_kind: dict[str, Counter] = {}
    for record in records:
        by_kind.setdefault(record.kind, Counter())[record.outcome] += 1
    outcomes = sum(by_kind.values(), Counter())
    return {
        "streams": len(records),
        "findings": [record._asdict() for record in records if record.outcome.startswith("finding")],
        "outcomes": dict(sorted(outcomes.items())),
        "by_kind": {kind: dict(sorted(counter.items())) for kind, counter in sorted(by_kind.items())},
        "slowest": max(records, key=lambda record: record.seconds)._asdict(),
        "most_memory": max(records, key=lambda record: record.memory_bytes)._asdict(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m scripts.stress.fuzzing", description=__doc__)
    parser.add_argument("-c", "--checkpoint", help="model (default: the shipped one)")
    parser.add_argument("--examples", type=positive, default=100_000, help="number of mutants (default: %(default)s)")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--workers", type=positive, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--findings", default="experiments/fuzz", help="folder for bitstreams of findings")
    parser.add_argument("-o", "--output", default="experiments/fuzz.json")
    args = parser.parse_args(argv)

    codec = ugicm.load(args.checkpoint)
    records = run(args.checkpoint, args.examples, args.seed, args.workers, Path(args.findings))
    report = {
        **summary(records), "seed": args.seed,
        "limits": {"seconds": SECONDS, "memory_bytes": MEMORY, "per": "bitstream, and padded pixel",
                   "pixels": MAX_PIXELS},
        "model": codec.describe(), "environment": results.environment(),
    }  # fmt: skip
    atomic.write(args.output, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    names = list(report["outcomes"])
    rows = [[kind, *(counts.get(name) for name in names)] for kind, counts in report["by_kind"].items()]
    print(results.table(rows, ["", *(name.removeprefix("refused: ") for name in names)]))
    seconds, mib = report["slowest"]["seconds"], report["most_memory"]["memory_bytes"] / 2**20
    print(f"\n{len(records)} bitstreams, {len(report['findings'])} findings; at most {seconds:.2f} s, {mib:.0f} MiB; "
          f"{args.output}")  # fmt: skip
    for finding in report["findings"][:20]:
        print(f"  {finding['kind']}: {finding['outcome']}: {finding['details'][:150]}")
    return 1 if report["findings"] else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
