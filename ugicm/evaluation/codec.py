"""The evaluation command: every picture to a real file and back, for people and for machines, and what it cost.

An experiment's folder holds ``bitstream/``, ``human/`` and ``machine/`` with the data set's tree (inside ``q0.3/``
and so on where there are several qualities), ``results.json``, ``rd.png`` and ``comparison.png``. While it runs,
``records.jsonl`` holds what is done; the same command continues from there after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import json
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

from ugicm import files, pictures
from ugicm.codec import ONE_RATE, Codec, load
from ugicm.config import to_dict
from ugicm.errors import CheckpointError, PictureError, StreamError, UgicmError, first_line
from ugicm.evaluation import figures, results
from ugicm.evaluation.metrics import bits_per_pixel, ms_ssim, psnr
from ugicm.evaluation.usage import natural

# Averaged into rate points, under CompressAI's names; its own plain "-rgb" metrics are those of the human picture.
METRICS = ("bpp", "psnr-rgb", "psnr-rgb-machine", "ms-ssim-rgb", "ms-ssim-rgb-machine",
           "encoding_time", "decoding_time")  # fmt: skip
JOURNAL, RESULTS, CURVES, COMPARISON = "records.jsonl", "results.json", "rd.png", "comparison.png"
_SAID = {"dataset", "model", "qualities"}  # in a journal's first line and in a results file's meta: made here
_OUTPUT_FOLDER = re.compile(r"bitstream|human|machine|q[0-9.]+")
_PICTURES_LISTED = 40


def main(experiments: Path, arguments: Sequence[str] | None = None) -> int:
    """Run the command; experiments are written under the folder ``experiments``. Returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        return _run(args, experiments)
    except (files.UsageError, CheckpointError) as error:
        print(f"test.py: {error}", file=sys.stderr)
        return 2
    except (UgicmError, OSError) as error:
        print(f"test.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("test.py: interrupted; the same command continues", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="test.py",
        description="Compress every picture of a data set to a file, decode the files for people and for machines, "
        "and measure rate, distortion and time.",
    )
    parser.add_argument("-exp", "--experiment", default="test", metavar="NAME",
                        help="results go to experiments/NAME in the checkout (default: test)")  # fmt: skip
    parser.add_argument("--gpu_id", type=int, default=0, metavar="N",
                        help="GPU to use (default: 0; the CPU where there is none, or with -1)")  # fmt: skip
    parser.add_argument("-c", "--checkpoint", metavar="CKPT", help="default: the shipped model")
    parser.add_argument("-d", "--dataset", metavar="DATASET",
                        help="a folder of pictures, or one picture (default: the sample pictures)")  # fmt: skip
    parser.add_argument("-q", "--quality", type=float, nargs="+", metavar="Q",
                        help="from 0 (small) to 1 (good); each gives a rate point (default: 0.5)")  # fmt: skip
    parser.add_argument("-e", "--effort", type=natural, default=0, metavar="N",
                        help="steps of adapting each stream to its picture, as in ugicm compress "
                             "(default: 0)")  # fmt: skip
    return parser


def _run(args: argparse.Namespace, experiments: Path) -> int:
    qualities = sorted(set(args.quality or [0.5]))
    if not all(0 <= quality <= 1 for quality in qualities):
        raise files.UsageError(f"quality must be from 0 (small) to 1 (good), got {' '.join(map(str, args.quality))}")
    dataset = Path(args.dataset) if args.dataset else Path(str(resources.files("ugicm"))) / "samples"
    root, sources = _pictures(dataset)
    folder = experiments / args.experiment
    codec = load(args.checkpoint, _device(args.gpu_id))
    if not codec.has_quality:
        if args.quality:
            print("this model has one rate: --quality has no effect")
        qualities = [ONE_RATE]
    meta = {
        "dataset": {"path": str(dataset), "pictures": len(sources), "digest": results.digest(sources, root)},
        "model": {**codec.describe(), "weights": model_digest(codec)},
        "qualities": qualities,
        "effort": args.effort,
    }
    environment = results.environment(codec.device)
    settings = {**meta, "ugicm": environment["ugicm"], "revision": environment["revision"]}
    records = _begin(folder, json.loads(json.dumps(settings)))
    print(f"{len(sources)} pictures, {codec.config.backbone} model {codec.fingerprint}, {environment['device']}"
          + (f"; continuing after {len(records)} results" if records else ""))  # fmt: skip

    jobs = files.pair(sources, root, Path(), files.STREAM_SUFFIX)
    failures = _measure_all(codec, jobs, folder, qualities, args.effort, records)
    for path, reason in failures.items():
        print(f"test.py: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr)
    if not records:
        return 1
    averages = results.rate_points(records, "quality", METRICS)
    results.write(
        folder / RESULTS,
        f"ugicm {codec.config.backbone}",
        f"{len(sources) - len(failures)} pictures of {dataset.name}, preferences 0 (human) and 1 (machine)",
        averages,
        meta={**environment, **meta},
        per_image=records,
        failed=[{"image": str(path), "reason": reason} for path, reason in failures.items()],
    )
    figures.rate_distortion(folder / CURVES, averages)
    figures.comparison(folder / COMPARISON, _compared(records, root, folder, qualities))
    (folder / JOURNAL).unlink()
    print(_table(records, averages))
    print(f"written: {folder}")
    return 1 if failures else 0


def _pictures(dataset: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the data set's pictures in it."""
    if dataset.is_dir():
        return dataset, files.find(dataset, files.PICTURE_SUFFIXES)
    if not dataset.exists():
        raise files.UsageError(f"{dataset}: no such picture or folder of pictures")
    return dataset.parent, [dataset]


def _device(gpu: int) -> str:
    if gpu < 0:
        return "cpu"
    if not torch.cuda.is_available():
        print("no CUDA device: running on the CPU")
        return "cpu"
    if gpu >= torch.cuda.device_count():
        raise files.UsageError(f"--gpu_id {gpu}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    return f"cuda:{gpu}"


def model_digest(codec: Codec) -> str:
    """16 hex digits over the form and all weights, also of what the viewer sees: more than the fingerprint covers."""
    state = hashlib.blake2b(json.dumps(to_dict(codec.config)).encode(), digest_size=8)
    for name, tensor in sorted(codec.model.state_dict().items()):
        state.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def _begin(folder: Path, settings: dict[str, Any]) -> list[dict]:
    """The records to continue from: those of an interrupted run with equal settings, else none in a clean folder.

    Raises UsageError rather than clean a folder that is not an experiment of this command: it has a journal or results,
    and those are this command's own.
    """
    journal, finished = folder / JOURNAL, folder / RESULTS
    there = [path for path in (journal, finished) if path.exists()]
    if folder.exists() and any(folder.iterdir()) and not (there and all(map(_made_here, there))):
        raise files.UsageError(f"{folder} is there and was not written by this command; choose another -exp")
    if journal.is_file():
        there, *records = _journal_lines(journal)
        if there == settings:
            _write_journal(journal, [settings, *records])  # without a line that an interruption cut off
            return records
    if folder.exists():
        for old in folder.iterdir():
            if old.is_dir() and _OUTPUT_FOLDER.fullmatch(old.name):
                shutil.rmtree(old)
            elif old.name in (CURVES, COMPARISON):
                old.unlink()
    # The journal first: without either file the folder would no longer be recognised.
    _write_journal(journal, [settings])
    finished.unlink(missing_ok=True)
    return []


def _made_here(path: Path) -> bool:
    """Whether a file says what was measured as the journal and the results of this command do."""
    try:
        said = _journal_lines(path)[0] if path.name == JOURNAL else results.read(path).get("meta")
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.keys() >= _SAID


def _write_journal(path: Path, lines: list[dict]) -> None:
    files.write(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def _journal_lines(path: Path) -> list[dict | None]:
    lines: list[dict | None] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines or [None]


def _measure_all(
    codec: Codec, jobs: list[files.Job], folder: Path, qualities: list[float], effort: int, records: list[dict]
) -> dict[Path, str]:
    """Add to ``records`` what they do not hold yet, and to the journal. Returns the pictures that failed and why."""
    known = {(record["quality"], record["image"]) for record in records}
    failures: dict[Path, str] = {}
    warm = False
    with (
        open(folder / JOURNAL, "a", encoding="utf-8") as journal,
        tqdm(total=len(qualities) * len(jobs), unit="picture", disable=None) as bar,
    ):
        bar.update(len(known))
        for quality in qualities:
            for job in jobs:
                if (quality, job.target.as_posix()) in known or job.source in failures:
                    continue
                try:
                    image = pictures.open_rgb(job.source)
                    if not warm:  # first calls allocate and choose algorithms: not what a picture costs
                        codec.decompress(codec.compress(image, quality), ["human", "machine"])
                        warm = True
                    record = measure(codec, image, _outputs(folder, qualities, quality, job.target), quality, effort)
                except (PictureError, StreamError, MemoryError, RuntimeError) as error:
                    failures[job.source] = first_line(error)
                    continue
                finally:
                    bar.update()
                record = {"image": job.target.as_posix(), "source": str(job.source), **record}
                records.append(record)
                journal.write(json.dumps(record) + "\n")
                journal.flush()
    order = {job.target.as_posix(): i for i, job in enumerate(jobs)}
    records.sort(key=lambda record: (record["quality"], order[record["image"]]))
    return failures


def _outputs(folder: Path, qualities: list[float], quality: float, target: Path) -> dict[str, Path]:
    """Where the stream and the two pictures of ``target`` (a relative .ugic path) go."""
    base = folder / f"q{quality:g}" if len(qualities) > 1 else folder
    picture = target.with_suffix(".png")
    return {"bitstream": base / "bitstream" / target, "human": base / "human" / picture,
            "machine": base / "machine" / picture}  # fmt: skip


def measure(
    codec: Codec, image: Any, outputs: dict[str, Path], quality: float, effort: int = 0
) -> dict[str, Any]:
    """Write ``image`` to its stream, decode what was written, write both pictures, and measure.

    Times are in seconds, from a Pillow picture to bytes and from bytes to both pictures, without reading and
    writing files; PSNR is in dB.
    """
    start = time.perf_counter()
    data = codec.compress(image, quality, effort=effort)
    encoded = time.perf_counter() - start
    files.write(outputs["bitstream"], data)

    data = outputs["bitstream"].read_bytes()
    start = time.perf_counter()
    human, machine = codec.decompress(data, ["human", "machine"])
    decoded = time.perf_counter() - start
    pictures.save_picture(human, outputs["human"])
    pictures.save_picture(machine, outputs["machine"])
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


def _compared(
    records: list[dict], root: Path, folder: Path, qualities: list[float], most: int = 3
) -> list[figures.Compared]:
    """Rows for the comparison: the first pictures at the lowest, the middle and the highest quality."""
    names = list(dict.fromkeys(record["image"] for record in records))[:most]
    shown = qualities if len(qualities) <= most else [qualities[0], qualities[len(qualities) // 2], qualities[-1]]
    rows = []
    for record in sorted(records, key=lambda record: record["image"]):
        if record["image"] in names and record["quality"] in shown:
            outputs = _outputs(folder, qualities, record["quality"], Path(record["image"]))
            original, human, machine = map(pictures.open_rgb, (record["source"], outputs["human"], outputs["machine"]))
            rows.append(figures.Compared(Path(record["source"]).name, original, human, machine, record))
    return rows


def _table(records: list[dict], averages: dict[str, list]) -> str:
    heads = ("picture", "quality", "bytes", "bpp", "PSNR human", "machine", "MS-SSIM human", "machine",
             "encode s", "decode both s")  # fmt: skip
    formats = (".4f", ".2f", ".2f", ".4f", ".4f", ".3f", ".3f")

    def cells(values: dict) -> list[str | None]:
        return [None if values[name] is None else format(values[name], form) for name, form in zip(METRICS, formats)]

    rows: list[list] = []
    if len(records) <= _PICTURES_LISTED:
        rows += [[r["source"], f"{r['quality']:g}", f"{r['bytes']:,}", *cells(r)] for r in records]
    for i, quality in enumerate(averages["quality"]):
        mean = {name: averages[name][i] for name in METRICS}
        rows.append(["average", f"{quality:g}", None, *cells(mean)])
    for row in rows:
        row[0] = Path(row[0]).name
    return results.table(rows, heads)
