"""The evaluation command: every image to a real file and back, for people and for machines, and what it cost.

An experiment's folder holds ``bitstream/``, ``human/`` and ``machine/`` with the data set's tree (inside ``q0.3/``
and so on where there are several qualities), ``results.json``, ``rd.png`` and ``comparison.png``. While it runs,
``records.jsonl`` holds what is done; the same command continues from there after an interruption. A folder of another
or a finished run is used again: what it held is replaced, but for its results, now ``results.previous.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ugicm import atomic, files, images
from ugicm.arguments import Parser, guarded, natural, pick_device
from ugicm.codec import ONE_RATE, Codec, load
from ugicm.errors import ImageError, StreamError, UsageError, first_line
from ugicm.evaluation import digests, figures, results
from ugicm.evaluation.metrics import bits_per_pixel, ms_ssim, psnr
from ugicm.evaluation.results import Journal

# Averaged into rate points, under CompressAI's names; its own plain "-rgb" metrics are those of the human image.
METRICS = ("bpp", "psnr-rgb", "psnr-rgb-machine", "ms-ssim-rgb", "ms-ssim-rgb-machine",
           "encoding_time", "decoding_time")  # fmt: skip
JOURNAL, RESULTS, CURVES, COMPARISON = "records.jsonl", "results.json", "rd.png", "comparison.png"
PREVIOUS = "results.previous.json"  # the results of the run before, whose streams and images are gone
_SAID = {"dataset", "model", "qualities"}  # in a journal's settings and in a results file's meta: made here
_SETTINGS = "settings"  # a name in a journal; all others are of records
_EARLIER = "earlier_revisions"  # of the code, at which a run that was interrupted has measured
_OUTPUT_FOLDER = re.compile(r"bitstream|human|machine|q[0-9.]+(e-[0-9]+)?")  # as _outputs names them
_IMAGES_LISTED = 40


def main(experiments: Path, arguments: Sequence[str] | None = None) -> int:
    """Run the command; experiments are written under the folder ``experiments``. Returns the exit status."""
    args = _parser().parse_args(arguments)
    return guarded(lambda: _run(args, experiments), "test.py", "interrupted; the same command continues")


def _parser() -> Parser:
    parser = Parser(
        prog="test.py",
        description="Compress every image of a data set to a file, decode the files for people and for machines,\n"
        "and measure rate, distortion and time.",
        epilog="An interrupted run continues with the same command. Otherwise everything is measured anew, and the\n"
        "streams and images that the experiment has are replaced; its results.json is kept, until the next\n"
        f"time, as {PREVIOUS}. Another -exp leaves all as it is.",
    )
    parser.add_argument("-exp", "--experiment", default="test", metavar="NAME",
                        help="results go to experiments/NAME in the checkout (default: test)")  # fmt: skip
    parser.add_argument("--gpu_id", type=int, default=0, metavar="N",
                        help="GPU to use (default: 0; the CPU where there is none, or with -1)")  # fmt: skip
    parser.add_argument("-c", "--checkpoint", metavar="CKPT", help="default: the shipped model")
    parser.add_argument("-d", "--dataset", metavar="DATASET",
                        help="a folder of images, or one image (default: the sample images)")  # fmt: skip
    parser.add_argument("-q", "--quality", type=float, nargs="+", metavar="Q",
                        help="from 0 (small) to 1 (good); each gives a rate point (default: 0.5)")  # fmt: skip
    parser.add_argument("-e", "--effort", type=natural, default=0, metavar="N",
                        help="steps of adapting each stream to its image, as in ugicm compress "
                             "(default: 0)")  # fmt: skip
    return parser


def _run(args: argparse.Namespace, experiments: Path) -> int:
    # Steps as fine as folders are named by, and finer than anybody sees.
    qualities = sorted({float(f"{quality:g}") + 0.0 for quality in args.quality or [0.5]})  # + 0: there is no -0
    if not all(0 <= quality <= 1 for quality in qualities):
        raise UsageError(f"quality must be from 0 (small) to 1 (good), got {' '.join(map(str, args.quality))}")
    dataset = Path(args.dataset) if args.dataset else Path(str(resources.files("ugicm"))) / "samples"
    root, sources = _images(dataset)
    folder = experiments / args.experiment
    codec = load(args.checkpoint, _device(args.gpu_id))
    if not codec.has_quality:
        if args.quality:
            print("this model has one rate: --quality has no effect")
        qualities = [ONE_RATE]
    meta = {
        "dataset": {"path": str(dataset), "images": len(sources), "digest": digests.tree_digest(sources, root)},
        "model": {**codec.describe(), "weights": digests.model_digest(codec)},
        "qualities": qualities,
        "effort": args.effort,
    }
    environment = results.environment(codec.device)
    settings = {**meta, "ugicm": environment["ugicm"], "revision": environment["revision"]}
    journal = _begin(folder, json.loads(json.dumps(settings)))
    known = len(journal.records) - 1
    print(f"{len(sources)} images, {codec.config.backbone} model {codec.fingerprint}, {environment['device']}"
          + (f"; continuing after {known} results" if known else ""))  # fmt: skip

    jobs = files.pair(sources, root, Path(), files.STREAM_SUFFIX)
    failures = _measure_all(codec, jobs, folder, qualities, args.effort, journal)
    # An image that failed at one quality is left out at all of them: the points of a curve are over the same images.
    good = [job for job in jobs if job.source not in failures]
    records = [journal.records[_name(quality, job)] for quality in qualities for job in good]
    earlier = journal.records[_SETTINGS].get(_EARLIER)
    for path, reason in failures.items():
        print(f"test.py: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr)
    if not records:
        return 1
    averages = results.rate_points(records, "quality", METRICS)
    results.write(
        folder / RESULTS,
        f"ugicm {codec.config.backbone}",
        f"{len(good)} images of {dataset.name}, preferences 0 (human) and 1 (machine)",
        averages,
        meta={**environment, **meta, **({_EARLIER: earlier} if earlier else {})},
        per_image=records,
        failed=[{"image": str(path), "reason": reason} for path, reason in failures.items()],
    )
    figures.rate_distortion(folder / CURVES, averages)
    figures.comparison(folder / COMPARISON, _compared(records, folder, qualities))
    (folder / JOURNAL).unlink()
    print(_table(records, averages))
    print(f"written: {folder}")
    return 1 if failures else 0


def _images(dataset: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the data set's images in it."""
    if dataset.is_dir():
        return dataset, files.find(dataset, files.IMAGE_SUFFIXES)
    if not dataset.exists():
        raise UsageError(f"{dataset}: no such image or folder of images")
    return dataset.parent, [dataset]


def _device(gpu: int) -> str:
    if gpu < 0:
        return "cpu"
    if not torch.cuda.is_available():
        print("no CUDA device: running on the CPU")
        return "cpu"
    return pick_device(f"cuda:{gpu}")


def _begin(folder: Path, settings: dict[str, Any]) -> Journal:
    """The journal to continue: that of an interrupted run with equal settings (but for the revision of the code, which
    is noted), else one without records in a clean folder.

    What is lost by that, and where the results of a finished run are kept, is said in one line.

    Raises UsageError rather than clean a folder that is not an experiment of this command: it has a journal or results,
    and those are this command's own.
    """
    path, finished, previous = folder / JOURNAL, folder / RESULTS, folder / PREVIOUS
    there = [file for file in (path, finished, previous) if file.exists()]
    if folder.exists() and any(folder.iterdir()) and not (there and all(map(_made_here, there))):
        raise UsageError(f"{folder} is there and was not written by this command; choose another -exp")
    journal = Journal(path)
    before = journal.records.get(_SETTINGS, {})
    changed = [name for name in settings if settings[name] != before.get(name)]
    if before and not changed:
        return journal
    if before and changed == ["revision"]:
        print(f"{folder}: begun at revision {before['revision']}, continued at {settings['revision']}")
        earlier = [*before.get(_EARLIER, []), before["revision"]]
        journal.add({_SETTINGS: {**settings, _EARLIER: earlier}})
        return journal
    known, lost = len(journal.records) - 1, []
    if known > 0:
        lost.append(f"{known} results of an interrupted run are dropped (other {', '.join(changed)})")
    if finished.exists():
        lost.append(f"streams and images are replaced, the results they had are kept in {PREVIOUS}")
        os.replace(finished, previous)  # first: by it the folder is recognized while it has no journal
    if lost:
        print(f"{folder}: {'; '.join(lost)}")
    _clean(folder)
    atomic.write(path, Journal.lines({_SETTINGS: settings}).encode())
    return Journal(path)


def _clean(folder: Path) -> None:
    """Remove the streams and images of a run."""
    for old in folder.iterdir() if folder.exists() else ():
        if old.is_dir() and _OUTPUT_FOLDER.fullmatch(old.name):
            shutil.rmtree(old)
        elif old.name in (CURVES, COMPARISON):
            old.unlink()


def _made_here(path: Path) -> bool:
    """Whether a file says what was measured as the journal and the results of this command do."""
    try:
        said = Journal(path).records.get(_SETTINGS) if path.name == JOURNAL else results.read(path).get("meta")
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.keys() >= _SAID


def _name(quality: float, job: files.Job) -> str:
    """Of a record in the journal."""
    return f"{quality} {job.target.as_posix()}"


def _measure_all(
    codec: Codec, jobs: list[files.Job], folder: Path, qualities: list[float], effort: int, journal: Journal
) -> dict[Path, str]:
    """Add to the journal the records that it does not hold yet. Returns the images that failed and why."""
    failures: dict[Path, str] = {}
    warm = False
    with tqdm(total=len(qualities) * len(jobs), unit="image", disable=None if sys.stderr else True) as bar:
        bar.update(len(journal.records) - 1)
        for quality in qualities:
            for job in jobs:
                if _name(quality, job) in journal.records or job.source in failures:
                    continue
                try:
                    image = images.open_rgb(job.source)
                    if not warm:  # first calls allocate and choose algorithms: not what an image costs
                        codec.decompress(codec.compress(image, quality), ["human", "machine"])
                        warm = True
                    record = measure(codec, image, _outputs(folder, qualities, quality, job.target), quality, effort)
                except (ImageError, StreamError, MemoryError, RuntimeError) as error:
                    failures[job.source] = first_line(error)
                    continue
                finally:
                    bar.update()
                record = {"image": job.target.as_posix(), "source": str(job.source), **record}
                journal.add({_name(quality, job): record})
    return failures


def _outputs(folder: Path, qualities: list[float], quality: float, target: Path) -> dict[str, Path]:
    """Where the stream and the two images of ``target`` (a relative .ugic path) go."""
    base = folder / f"q{quality:g}" if len(qualities) > 1 else folder
    image = target.with_suffix(".png")
    return {"bitstream": base / "bitstream" / target, "human": base / "human" / image,
            "machine": base / "machine" / image}  # fmt: skip


def measure(codec: Codec, image: Any, outputs: dict[str, Path], quality: float, effort: int = 0) -> dict[str, Any]:
    """Write ``image`` to its stream, decode what was written, write both images, and measure.

    Times are in seconds, from a Pillow image to bytes and from bytes to both images, without reading and
    writing files; PSNR is in dB.
    """
    start = time.perf_counter()
    data = codec.compress(image, quality, effort=effort)
    encoded = time.perf_counter() - start
    atomic.write(outputs["bitstream"], data)

    data = outputs["bitstream"].read_bytes()
    start = time.perf_counter()
    human, machine = codec.decompress(data, ["human", "machine"])
    decoded = time.perf_counter() - start
    images.save_image(human, outputs["human"])
    images.save_image(machine, outputs["machine"])
    return {
        "quality": quality,
        "width": image.width,
        "height": image.height,
        "bytes": len(data),
        "bpp": bits_per_pixel(data, image),
        "psnr-rgb": results.finite(psnr(image, human)),
        "ms-ssim-rgb": ms_ssim(image, human),
        "psnr-rgb-machine": results.finite(psnr(image, machine)),
        "ms-ssim-rgb-machine": ms_ssim(image, machine),
        "encoding_time": encoded,
        "decoding_time": decoded,
    }


def _compared(records: list[dict], folder: Path, qualities: list[float]) -> list[figures.Compared]:
    """Rows for the comparison: the first three images at the lowest, the middle and the highest quality."""
    names = list(dict.fromkeys(record["image"] for record in records))[:3]
    shown = qualities if len(qualities) <= 3 else [qualities[0], qualities[len(qualities) // 2], qualities[-1]]
    rows = []
    for record in sorted(records, key=lambda record: record["image"]):
        if record["image"] in names and record["quality"] in shown:
            outputs = _outputs(folder, qualities, record["quality"], Path(record["image"]))
            original, human, machine = map(images.open_rgb, (record["source"], outputs["human"], outputs["machine"]))
            rows.append(figures.Compared(Path(record["source"]).name, original, human, machine, record))
    return rows


def _table(records: list[dict], averages: dict[str, list]) -> str:
    heads = ("image", "quality", "bytes", "bpp", "PSNR human", "machine", "MS-SSIM human", "machine",
             "encode s", "decode both s")  # fmt: skip
    formats = (".4f", ".2f", ".2f", ".4f", ".4f", ".3f", ".3f")

    def cells(values: dict) -> list[str | None]:
        return [None if values[name] is None else format(values[name], form) for name, form in zip(METRICS, formats)]

    rows: list[list] = []
    if len(records) <= _IMAGES_LISTED:
        rows += [[r["source"], f"{r['quality']:g}", f"{r['bytes']:,}", *cells(r)] for r in records]
    for i, quality in enumerate(averages["quality"]):
        mean = {name: averages[name][i] for name in METRICS}
        rows.append(["average", f"{quality:g}", None, *cells(mean)])
    for row in rows:
        row[0] = Path(row[0]).name
    return results.table(rows, heads)
