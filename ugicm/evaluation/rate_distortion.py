"""The evaluation command, ``tests/test.py``: rate, distortion and time of ugicm on a dataset.

An experiment's folder holds ``bitstream/``, ``human/`` and ``machine/`` with the dataset's tree (inside ``q0.3/``
and so on if there are several qualities), ``results.json``, and the plots ``rd.png`` and ``comparison.png``, with
JPEG and WebP. During a run, ``records.jsonl`` holds the finished measurements, and the same command continues an
interrupted run. A new run replaces the files of the former.
"""

from __future__ import annotations

import argparse
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
from PIL import Image
from tqdm import tqdm

from ugicm import atomic, files, images
from ugicm.arguments import ArgumentParser, natural, pick_device, run_command, unit
from ugicm.codec import ONE_RATE, Codec, load
from ugicm.errors import ImageError, StreamError, UsageError, error_message, printable
from ugicm.evaluation import digests, results
from ugicm.evaluation.metrics import file_bpp, ms_ssim, psnr
from ugicm.evaluation.plots import measure_baselines, plot_crops, plot_curves
from ugicm.evaluation.results import Journal
from ugicm.extras import require_packages
from ugicm.image_writer import save_image
from ugicm.losses.distortion import MS_SSIM_SMALLEST

# Averaged into rate points, under CompressAI's names; plain "-rgb" metrics are those of the human image.
METRICS = ("bpp", "psnr-rgb", "psnr-rgb-machine", "ms-ssim-rgb", "ms-ssim-rgb-machine",
           "encoding_time", "decoding_time")  # fmt: skip
JOURNAL, RESULTS, CURVES, CROPS = "records.jsonl", "results.json", "rd.png", "comparison.png"
QUALITIES = (0.1, 0.5, 0.9)
_SETTINGS = "settings"  # the journal's first record; the others are measurements
_OUTPUT_FOLDER = re.compile(r"bitstream|human|machine|q[0-9.]+(e-[0-9]+)?")  # as _outputs names them
_COMPARED = 3  # images in the plot of crops
_MAX_ROWS = 40  # images listed in the printed table


def main(experiments: Path, arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Results are written below the folder ``experiments``."""
    args = _parser().parse_args(arguments)
    return run_command(lambda: _evaluate(args, experiments), "test.py", "interrupted; the same command continues")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="test.py",
        description="Compress every image of a dataset, decode it for human and machine preference, and measure\n"
        "rate, distortion and time.",
        epilog="The same command continues an interrupted run. Otherwise everything is measured anew, and the files\n"
        "of the experiment are replaced.",
    )
    parser.add_argument("-exp", "--experiment", default="test", metavar="NAME",
                        help="folder below experiments/ in the checkout, or a path (default: test)")  # fmt: skip
    parser.add_argument("--gpu_id", type=int, default=0, metavar="N",
                        help="GPU to use (default: 0); the CPU if there is none, or with -1")  # fmt: skip
    parser.add_argument("-c", "--checkpoint", metavar="CKPT", help="default: the shipped model")
    parser.add_argument("-d", "--dataset", metavar="DATASET",
                        help="a folder of images, or one image (default: the sample images)")  # fmt: skip
    parser.add_argument("-q", "--quality", type=unit, nargs="+", metavar="Q",
                        help="from 0 (small) to 1 (good); each gives a rate point (default: 0.1 0.5 0.9)")  # fmt: skip
    parser.add_argument("-e", "--effort", type=natural, default=0, metavar="N",
                        help="steps of latent refinement, as in ugicm compress (default: 0)")  # fmt: skip
    return parser


def _evaluate(args: argparse.Namespace, experiments: Path) -> int:
    require_packages("eval", "the evaluation", "matplotlib", "pytorch_msssim")
    # Rounded to the precision of folder names. Adding 0 turns -0 into 0.
    qualities = sorted({float(f"{quality:g}") + 0.0 for quality in args.quality or QUALITIES})
    dataset = Path(args.dataset) if args.dataset else Path(str(resources.files("ugicm"))) / "samples"
    if not dataset.exists():
        raise UsageError(f"{dataset}: no such image or folder of images")
    root, sources = dataset.parent, [dataset]
    if dataset.is_dir():
        root, sources = dataset, files.find(dataset, files.IMAGE_SUFFIXES)
    folder = experiments / args.experiment
    use_gpu = args.gpu_id >= 0 and torch.cuda.is_available()
    codec = load(args.checkpoint, pick_device(f"cuda:{args.gpu_id}" if use_gpu else "cpu"))
    if not codec.has_quality:
        if args.quality:
            print("this model has a single rate: --quality has no effect")
        qualities = [ONE_RATE]
    digest = digests.tree_digest((source.relative_to(root).as_posix(), source) for source in sources)
    meta = {
        "dataset": {"path": str(dataset), "images": len(sources), "digest": digest},
        "model": {**codec.describe(), "weights": digests.model_digest(codec)},
        "qualities": qualities,
        "effort": args.effort,
    }
    environment = results.environment(codec.device)
    journal = _open_journal(folder, {**meta, "ugicm": environment["ugicm"], "revision": environment["revision"]})
    finished = len(journal.records) - 1
    print(f"{len(sources)} images, {codec.config.backbone} model {codec.fingerprint}, {environment['device']}"
          + (f"; continuing after {finished} results" if finished else ""))  # fmt: skip

    jobs = files.pair(sources, root, Path(), files.STREAM_SUFFIX)
    failures = _measure_all(codec, jobs, folder, qualities, args.effort, journal)
    # An image that fails at one quality is excluded at all of them: all points of a curve have the same images.
    good = [job for job in jobs if job.source not in failures]
    records = [journal.records[_record_name(quality, job)] for quality in qualities for job in good]
    for path, reason in failures.items():
        name = printable(str(path))
        print(f"test.py: {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr)
    if not records:
        return 1
    averages = results.rate_points(records, "quality", METRICS)
    undefined = results.undefined(records[: len(good)], METRICS)
    baselines = measure_baselines([job.source for job in good], averages["bpp"])
    results.write(
        folder / RESULTS,
        f"ugicm {codec.config.backbone}",
        f"{len(good)} images of {dataset.name}, preferences 0 (human) and 1 (machine)",
        averages,
        meta={**environment, **meta},
        per_image=records,
        failed=[{"image": str(path), "reason": reason} for path, reason in failures.items()],
        undefined=undefined,
        baselines=baselines,
    )
    plot_curves(folder / CURVES, averages, baselines)
    lowest = records[: len(good)][:_COMPARED]  # where human and machine image differ most
    plot_crops(folder / CROPS, [(r, _outputs(folder, qualities, r["quality"], Path(r["image"]))) for r in lowest])
    (folder / JOURNAL).unlink()
    print(_table(records, averages))
    print("averages are means over images: every image counts the same, whatever its size")
    _print_undefined(undefined, len(good))
    print(f"written: {folder}")
    return 1 if failures else 0


def _open_journal(folder: Path, settings: dict[str, Any]) -> Journal:
    """Return the journal of an interrupted run with equal settings; else clear the folder and start a new one.

    Raises UsageError for a folder that has files, but neither a journal nor results.
    """
    path, finished = folder / JOURNAL, folder / RESULTS
    if folder.exists() and any(folder.iterdir()) and not (path.exists() or finished.exists()):
        raise UsageError(f"{folder}: the folder was not written by this command; choose another -exp")
    settings = json.loads(json.dumps(settings))
    journal = Journal(path)
    known = journal.records.get(_SETTINGS, {})
    changed = [name for name in settings if settings[name] != known.get(name)]
    if not changed:
        return journal
    if len(journal.records) > 1:
        print(f"{folder}: {len(journal.records) - 1} results of an interrupted run are discarded "
              f"(different {', '.join(changed)})")  # fmt: skip
    for output in folder.iterdir() if folder.exists() else ():
        if output.is_dir() and _OUTPUT_FOLDER.fullmatch(output.name):
            shutil.rmtree(output)
    atomic.write(path, (json.dumps([_SETTINGS, settings]) + "\n").encode())
    finished.unlink(missing_ok=True)  # last: it identifies the folder while there is no journal
    return Journal(path)


def _record_name(quality: float, job: files.Job) -> str:
    return f"{quality} {job.target.as_posix()}"


def _measure_all(
    codec: Codec, jobs: list[files.Job], folder: Path, qualities: list[float], effort: int, journal: Journal
) -> dict[Path, str]:
    """Add the missing records to the journal. Return the images that failed, with the reason."""
    failures: dict[Path, str] = {}
    warm = False
    with tqdm(total=len(qualities) * len(jobs), initial=len(journal.records) - 1, unit="image",
              disable=None if sys.stderr else True) as bar:  # fmt: skip
        for quality in qualities:
            for job in jobs:
                if _record_name(quality, job) in journal.records or job.source in failures:
                    continue
                try:
                    image = images.open_rgb(job.source)
                    if not warm:  # the first calls allocate memory and select algorithms
                        codec.decompress(codec.compress(image, quality), ["human", "machine"])
                        warm = True
                    record = measure(codec, image, _outputs(folder, qualities, quality, job.target), quality, effort)
                except (ImageError, StreamError, MemoryError, RuntimeError) as error:
                    failures[job.source] = error_message(error)
                    continue
                finally:
                    bar.update()
                record = {"image": job.target.as_posix(), "source": str(job.source), **record}
                journal.add({_record_name(quality, job): record})
    return failures


def _outputs(folder: Path, qualities: list[float], quality: float, target: Path) -> dict[str, Path]:
    """Return the paths of the bitstream and the two images of ``target``, a relative .ugic path."""
    base = folder / f"q{quality:g}" if len(qualities) > 1 else folder
    image = target.with_suffix(".png")
    return {"bitstream": base / "bitstream" / target, "human": base / "human" / image,
            "machine": base / "machine" / image}  # fmt: skip


def measure(
    codec: Codec, image: Image.Image, outputs: dict[str, Path], quality: float, effort: int = 0
) -> dict[str, Any]:
    """Compress an image, decode the written file, write both images, and return the measurements.

    Times are in seconds, from a Pillow image to bytes and from bytes to both images, without file access. PSNR is in
    dB.
    """
    start = time.perf_counter()
    data = codec.compress(image, quality, effort=effort)
    encoding_time = time.perf_counter() - start
    atomic.write(outputs["bitstream"], data)

    data = outputs["bitstream"].read_bytes()
    start = time.perf_counter()
    human, machine = codec.decompress(data, ["human", "machine"])
    decoding_time = time.perf_counter() - start
    save_image(human, outputs["human"])
    save_image(machine, outputs["machine"])
    return {
        "quality": quality,
        "width": image.width,
        "height": image.height,
        "bytes": len(data),
        "bpp": file_bpp(data, image),
        "psnr-rgb": psnr(image, human),
        "ms-ssim-rgb": ms_ssim(image, human),
        "psnr-rgb-machine": psnr(image, machine),
        "ms-ssim-rgb-machine": ms_ssim(image, machine),
        "encoding_time": encoding_time,
        "decoding_time": decoding_time,
    }


def _print_undefined(undefined: dict[str, int], count: int) -> None:
    for metric, absent in undefined.items():
        print(f"{metric} is averaged over {count - absent} of {count} images: the others have a side under "
              f"{MS_SSIM_SMALLEST} pixels")  # fmt: skip


def _table(records: list[dict], averages: dict[str, list]) -> str:
    """Return the printed table: a row per record if there are few, and the averages."""
    heads = ("image", "quality", "bytes", "bpp", "PSNR human", "machine", "MS-SSIM human", "machine",
             "encode s", "decode both s")  # fmt: skip
    formats = (".4f", ".2f", ".2f", ".4f", ".4f", ".3f", ".3f")

    def row(name: str, size: str | None, values: dict) -> list[str | None]:
        cells = [None if values[m] is None else format(values[m], f) for m, f in zip(METRICS, formats, strict=True)]
        return [name, f"{values['quality']:g}", size, *cells]

    rows = []
    if len(records) <= _MAX_ROWS:
        rows = [row(Path(r["source"]).name, f"{r['bytes']:,}", r) for r in records]
    for i in range(len(averages["quality"])):
        rows.append(row("average", None, {name: values[i] for name, values in averages.items()}))
    return results.table(rows, heads)
