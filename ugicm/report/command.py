"""The report: curves of every codec on every data set, compared at equal score and at equal rate, on one page.

``ugicm report`` and ``scripts/report.py``. Importing this module is quick; what it needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugicm.arguments import Parser, guarded, natural, pick_device, positive, spread
from ugicm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from ugicm.evaluation.codecs import Contender
    from ugicm.report.curves import Cache, Curve, Dataset

EXAMPLES = """\
examples:
  ugicm report -d photos -o report
  ugicm report -d kodak imagenet/val --judges resnet101 timm/convnext_tiny --limit 500 -o report
  ugicm report -d pets --labels pets.csv --judges resnet50=pets.pth --codecs ugicm jpeg webp avif jxl -o report
  ugicm report -d coco/val2017 --coco instances_val2017.json --detectors maskrcnn_resnet50_fpn=W.pth -o report
  ugicm report -d kodak --codecs ugicm=a.safetensors:label=A ugicm=b.safetensors:label=B zoo/mbt2018=DIR -o report

-o DIR receives index.html (one file, works offline), results.json, curves/ (CompressAI's json, one file a curve),
tables.md and plots/. The same command continues after an interruption, and adds what is missing after a change.
Labels are taken from labels.csv in a folder, or from sub-folders named by WordNet ids.
"""


def add_report_command(subparsers) -> argparse.ArgumentParser:
    """Add ``report`` to the sub-commands of a parser; its ``command`` takes the arguments and returns a status."""
    parser = subparsers.add_parser(
        "report",
        help="compare codecs by rate, distortion and what networks recognize, on one page",
        description="Compare codecs by rate, distortion and what networks recognize, on one page.",
        epilog=EXAMPLES,
    )
    add_arguments(parser)
    parser.set_defaults(command=run)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the report."""
    data = parser.add_argument_group("images")
    data.add_argument(
        "-d", "--dataset", nargs="+", required=True, metavar="[NAME=]DIR", help="folders of images, a section each"
    )
    data.add_argument("--labels", metavar="FILE", help="classes of the images in the one folder given")
    data.add_argument("--coco", nargs="+", default=[], metavar="JSON", help="COCO ground truth of one of the folders")
    data.add_argument("--limit", type=positive, metavar="N", help="N images of each folder, evenly spread")

    codecs = parser.add_argument_group("codecs")
    codecs.add_argument(
        "--codecs", nargs="+", default=["ugicm,jpeg,webp,avif"], metavar="SPEC",
        help="ugicm, ugicm=PATH, jpeg, webp, avif, jxl, zoo/NAME=PATH; also comma-separated (default: %(default)s)",
    )  # fmt: skip
    codecs.add_argument("-c", "--checkpoint", metavar="PATH", help="for plain 'ugicm' (default: the shipped model)")
    codecs.add_argument(
        "--qualities", type=float, nargs="+", default=[0, 0.2, 0.4, 0.6, 0.8, 1], metavar="Q",
        help="rate points of ugicm (default: 0 to 1 in steps of 0.2)",
    )  # fmt: skip
    codecs.add_argument(
        "--points", type=positive, default=7, metavar="N", help="rate points of the others (default: 7)"
    )
    codecs.add_argument(
        "--bpp-range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="bits per pixel the others cover (default: as ugicm does; without it 0.1 to 1)",
    )  # fmt: skip
    codecs.add_argument(
        "--betas", type=float, nargs="+", default=[0, 1], metavar="B", help="preferences to measure (default: 0 1)"
    )

    scores = parser.add_argument_group("scores")
    scores.add_argument(
        "--judges", nargs="+", metavar="NAME[=PATH]",
        help="classifiers of torchvision or timm/NAME, zero-shot open_clip/NAME (default: resnet101)",
    )  # fmt: skip
    scores.add_argument(
        "--detectors", nargs="+", metavar="NAME[=PATH]", help="of torchvision (default: maskrcnn_resnet50_fpn)"
    )
    scores.add_argument("--lpips", metavar="NET[=PATH]", help="alex, vgg, squeeze, or none (default: alex)")

    page = parser.add_argument_group("page")
    page.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the report")
    page.add_argument("--cache", metavar="DIR", help="streams and records to continue from (default: DIR/cache)")
    page.add_argument("--title", default="Rate, distortion, recognition", help="(default: %(default)s)")
    page.add_argument("--viewer", type=natural, default=3, metavar="N", help="images to compare by eye (default: 3)")
    page.add_argument(
        "--viewer-datasets", nargs="+", metavar="NAME", help="of these data sets only: the page holds copies of the "
        "images it shows (default: of all)",
    )  # fmt: skip
    page.add_argument(
        "--viewer-qualities",
        type=float,
        nargs="+",
        metavar="Q",
        help="of --qualities (default: a low and a middle one)",
    )
    page.add_argument(
        "--viewer-betas", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], metavar="B",
        help="steps of the slider (default: 0 0.25 0.5 0.75 1)",
    )  # fmt: skip
    page.add_argument("--batch-size", type=positive, default=8, metavar="N", help="images at once (default: 8)")
    page.add_argument("--device", metavar="NAME", help="cpu, cuda:0 ... (default: a GPU where there is one)")


def main(argv: Sequence[str] | None = None) -> int:
    """The script's entry."""
    parser = Parser(
        description="Compare codecs by rate, distortion and what networks recognize, on one page.",
        epilog=EXAMPLES.replace("ugicm report", "python scripts/report.py")
        + "@FILE stands for the arguments that FILE holds, as in a shell, with # comments.\n",
        fromfile_prefix_chars="@",
    )
    parser.convert_arg_line_to_args = _words
    add_arguments(parser)
    return run(parser.parse_args(argv))


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:  # a quote that is not closed
        raise argparse.ArgumentError(None, f"{line.strip()}: {error}") from None


def run(args: argparse.Namespace) -> int:
    """Make the report. Returns the exit status as :func:`~ugicm.arguments.guarded` has it; 1 also where images were left
    out."""
    return guarded(lambda: _run(args), "report", "interrupted; the same command continues")


def _run(args: argparse.Namespace) -> int:
    from ugicm.evaluation import results
    from ugicm.evaluation.tasks.base import make_deterministic
    from ugicm.report.curves import Cache
    from ugicm.training.distributed import leave, process_group

    make_deterministic()
    device = pick_device(args.device)
    _check_numbers(args)
    rank, _ = process_group()
    notes: list[str] = []
    contenders = _contenders(args, device)
    datasets = _datasets(args, device, notes)
    output = Path(args.output)
    cache = Cache(args.cache or output / "cache")
    measured = [(dataset, _measured(dataset, contenders, args, cache)) for dataset in datasets]
    if rank == 0:
        environment = results.environment(device)
        sections = [_section(dataset, curves, cache) for dataset, curves in measured]
        for dataset in datasets:
            for key, reason in dataset.failed.items():
                notes.append(f"{dataset.name}: {key} was left out: {reason}")
                print(f"report: left out: {key}: {reason}", file=sys.stderr)
        _write(output, args, sections, measured, environment, notes, cache)
        print(f"written: {output / 'index.html'}")
    leave()
    return 1 if any(dataset.failed for dataset in datasets) else 0


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("qualities", "betas", "viewer_betas", "viewer_qualities"):
        for value in getattr(args, name) or ():
            if not 0 <= value <= 1:
                raise ConfigError(f"--{name.replace('_', '-')}: {value:g} is not from 0 to 1")
    wrong = sorted(set(args.viewer_qualities or ()) - set(args.qualities))
    if wrong:
        raise ConfigError(f"--viewer-qualities: {wrong[0]:g} is none of --qualities {_list(args.qualities)}")
    if args.bpp_range and not 0 < args.bpp_range[0] < args.bpp_range[1]:
        raise ConfigError(f"--bpp-range: {_list(args.bpp_range)} is no range")
    if args.points < 2:
        raise ConfigError("--points must be at least 2")


def _list(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _contenders(args: argparse.Namespace, device: str) -> list[Contender]:
    from ugicm.evaluation.codecs import load_contender

    texts = [text for given in args.codecs for text in given.split(",") if text]
    contenders = []
    for text in texts:
        if text == "ugicm" and args.checkpoint:
            text = f"ugicm={args.checkpoint}"
        contenders.append(load_contender(text, device, sorted(set(args.betas))))
    labels = [contender.label for contender in contenders]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"two codecs are called {max(labels, key=labels.count)}: tell them apart with :label=NAME")
    # Ours first: their rates decide what the others have to cover.
    return sorted(contenders, key=lambda contender: None in contender.viewers)


def _datasets(args: argparse.Namespace, device: str, notes: list[str]) -> list[Dataset]:
    """Folders and their evaluators. Judges that were asked for must be there; default ones may lack their
    weights, which the report then says."""
    from ugicm.evaluation.tasks.base import Item
    from ugicm.evaluation.tasks.coco import CocoTruth
    from ugicm.evaluation.tasks.fidelity import FidelityEvaluator
    from ugicm.evaluation.tasks.labels import is_labeled, labeled_images
    from ugicm.files import IMAGE_SUFFIXES, find
    from ugicm.report.curves import Dataset

    folders = [_named_folder(text) for text in args.dataset]
    names = [name for name, _ in folders]
    if len(set(names)) < len(names):
        raise ConfigError(f"two folders are called {max(names, key=names.count)}: give names: -d NAME=DIR")
    if unknown := sorted(set(args.viewer_datasets or ()) - set(names)):
        raise ConfigError(f"--viewer-datasets: {unknown[0]} not found; available: {', '.join(names)}")
    if args.labels and len(folders) > 1:
        raise ConfigError("--labels is for one folder; with several, put a labels.csv into the folder it belongs to")
    truths = [CocoTruth(path) for path in args.coco]
    loaded = _Judges(args, device, notes)
    datasets = []
    for name, folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder")
        for place in map(Path, filter(None, (args.output, args.cache))):
            if place.resolve().is_relative_to(folder.resolve()):
                raise ConfigError(f"{place}: is in {folder}, all of whose images are measured: choose another")
        evaluators, check, class_names = [FidelityEvaluator(), *loaded.lpips()], None, None
        truth = next((t for t in truths if all(item.path.is_file() for item in t.items(folder))), None)
        if truth is not None:
            truths.remove(truth)
            items, check = truth.items(folder), truth.check_size
            evaluators += loaded.detectors(truth)
        elif args.labels or is_labeled(folder):
            labeled = labeled_images(folder, args.labels)
            items = labeled.items
            found, class_names = loaded.classifiers(labeled)
            evaluators += found
        else:
            files = find(folder, IMAGE_SUFFIXES)
            items = [Item(path.relative_to(folder).as_posix(), path) for path in files]
        if args.limit:
            items = [items[i] for i in spread(args.limit, len(items))]
        datasets.append(Dataset(name, items, evaluators, folder, check, class_names).read())
    if truths:
        raise ConfigError(f"{truths[0].path}: its images are in none of the folders given with -d")
    if args.judges and not any(dataset.class_names for dataset in datasets):
        raise ConfigError("--judges: no folder has labels; give --labels FILE, or a labels.csv in the folder")
    return datasets


def _named_folder(text: str) -> tuple[str, Path]:
    """(name, folder) of [NAME=]DIR. Raises ConfigError for a name that cannot be a folder's: that of its curves has it.
    """
    name, separator, folder = text.partition("=")
    if not separator or Path(text).exists():
        name, folder = Path(text).resolve().name, text
    if name in ("", ".", "..") or Path(name).name != name:
        raise ConfigError(f"-d {text}: {name!r} cannot name a folder of the report; give -d NAME=DIR, NAME without /")
    return name, Path(folder)


class _Judges:
    """Networks, loaded once; what is not at hand and was not asked for by name becomes a note."""

    def __init__(self, args: argparse.Namespace, device: str, notes: list[str]):
        self.args, self.device, self.notes = args, device, notes
        self._loaded: dict[str, Any] = {}

    def _load(self, text: str, load, asked: bool, what: str):
        if text not in self._loaded:
            try:
                self._loaded[text] = load(text, self.device)
            except (ConfigError, CheckpointError) as error:
                if asked:
                    raise
                self._loaded[text] = None
                self.notes.append(f"{what} was not measured: {error}")
        return self._loaded[text]

    def lpips(self) -> list:
        from ugicm.evaluation.tasks.fidelity import load_lpips

        if self.args.lpips == "none":
            return []
        found = self._load(self.args.lpips or "alex", load_lpips, self.args.lpips is not None, "LPIPS")
        return [found] if found else []

    def classifiers(self, labeled) -> tuple[list, Sequence[str] | None]:
        from ugicm.evaluation.tasks.classification import ClassificationEvaluator
        from ugicm.evaluation.tasks.classifiers import load_judge
        from ugicm.evaluation.tasks.labels import check_classes, class_names

        targets = {item.key: item.target for item in labeled.items}
        judges = [
            self._load(text, load_judge, bool(self.args.judges), "accuracy")
            for text in self.args.judges or ["resnet101"]
        ]
        judges = [judge for judge in judges if judge]
        _distinct(judges)
        for judge in judges:
            check_classes(labeled, judge.classes, judge.name)
        names = class_names(judges[0].classes) if judges else None
        return [ClassificationEvaluator(judge, targets) for judge in judges], names

    def detectors(self, truth) -> list:
        from ugicm.evaluation.tasks.coco import CocoEvaluator
        from ugicm.evaluation.tasks.detectors import load_detector

        texts = self.args.detectors or ["maskrcnn_resnet50_fpn"]
        found = [self._load(t, load_detector, bool(self.args.detectors), "average precision") for t in texts]
        _distinct([detector for detector in found if detector])
        return [CocoEvaluator(detector, truth) for detector in found if detector]


def _distinct(judges: list) -> None:
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise ConfigError(f"two judges are called {max(names, key=names.count)}: tell them apart with :label=NAME")


def _measured(dataset: Dataset, contenders: list[Contender], args: argparse.Namespace, cache: Cache) -> list[Curve]:
    """All curves of a data set, through the cache; under torchrun each process does a share of the rate points."""
    from tqdm import tqdm

    from ugicm.evaluation.codecs import sweep
    from ugicm.images import open_rgb
    from ugicm.report.curves import Cached, collect, measure, score_originals
    from ugicm.training.distributed import process_group

    rank, world = process_group()
    silent = rank > 0 or not sys.stderr.isatty()
    probes = [open_rgb(dataset.items[i].path) for i in spread(4, len(dataset.items))]
    low, high = args.bpp_range or (0.1, 1.0)
    curves: list[Curve] = []
    with tqdm(total=len(dataset.items), desc=f"{dataset.name}: originals", unit="image", disable=silent) as bar:
        if rank == 0:
            score_originals(dataset, cache, args.batch_size, bar.update)
        _together(cache, world)
        score_originals(dataset, cache, args.batch_size, lambda count: None)
        for contender in contenders:
            cached = Cached(contender, cache)
            if None in contender.viewers:
                bar.set_description(f"{dataset.name}: {contender.label}: rates")
                settings = sweep(cached, probes, low, high, args.points)
            else:
                settings = sorted(set(args.qualities)) if contender.settings is None else list(contender.settings)
            bar.reset(total=len(dataset.items) * len(settings[rank::world]))
            for setting in settings[rank::world]:
                bar.set_description(f"{dataset.name}: {contender.label} {setting:g}")
                measure(dataset, cached, setting, cache, args.batch_size, bar.update)
            _together(cache, world)
            found = collect(dataset, contender, settings, cache)
            curves += found
            if None not in contender.viewers and args.bpp_range is None:
                rates = [point.bpp for curve in curves for point in curve.points]
                low, high = 0.9 * min(rates), 1.1 * max(rates)
    return curves


def _together(cache: Cache, world: int) -> None:
    """Wait for the other processes, and see what they wrote."""
    if world > 1:
        import torch.distributed as dist

        dist.barrier()
        cache.forget()


def _section(dataset: Dataset, curves: list[Curve], cache: Cache) -> dict[str, Any]:
    """All numbers about a data set, for files and the page."""
    from ugicm.report.comparison import compare
    from ugicm.report.curves import original_scores

    metrics = [
        {
            "title": evaluator.title(metric),
            "judge": evaluator.name,
            "falling": metric in evaluator.falling,
            "method": "isotonic" if evaluator.noisy else "pchip",
            "decibels": metric.startswith("ms-ssim"),
        }
        for evaluator in dataset.evaluators
        for metric in evaluator.headline
        # Small images have no MS-SSIM, for one.
        if any(point.scores[evaluator.title(metric)] is not None for curve in curves for point in curve.points)
    ]
    return {
        "name": dataset.name,
        "images": len(dataset.items),
        "metrics": metrics,
        "originals": original_scores(dataset, cache),
        "curves": [
            {
                "name": curve.name,
                "codec": curve.contender.label,
                "identity": curve.contender.identity,
                "viewer": curve.viewer,
                "settings": [point.setting for point in curve.points],
                "results": {
                    "bpp": [point.bpp for point in curve.points],
                    **{title: [point.scores[title] for point in curve.points] for title in curve.points[0].scores},
                },
            }
            for curve in curves
        ],
        "deltas": compare(dataset, curves),
        "evaluators": [evaluator.describe() for evaluator in dataset.evaluators],
    }


def _write(output: Path, args, sections, measured, environment, notes, cache: Cache) -> None:
    from ugicm import atomic
    from ugicm.evaluation import digests, results
    from ugicm.report.html_page import page
    from ugicm.report.tables import markdown, plots
    from ugicm.report.viewer import viewer

    for section, (dataset, curves) in zip(sections, measured, strict=True):
        digest = digests.tree_digest([item.path for item in dataset.items], dataset.folder)
        section["digest"] = digest
        for described, curve in zip(section["curves"], curves, strict=True):
            results.write(
                output / "curves" / dataset.name / f"{curve.name.replace('/', '-')}.json",
                curve.name,
                f"{section['images']} images of {dataset.name}",
                described["results"],
                settings=described["settings"],
                meta={**environment, "codec": curve.contender.identity, "viewer": curve.viewer, "dataset": digest},
                per_image=_per_image(dataset, curve),
            )
    document = {"name": args.title, "meta": environment, "notes": notes, "sections": sections}
    atomic.write(output / "results.json", (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    atomic.write(output / "tables.md", markdown(document).encode())
    plots(document, output / "plots")
    chosen = args.viewer_datasets
    shown = [
        viewer(dataset, curves, args, cache) if chosen is None or dataset.name in chosen else None
        for dataset, curves in measured
    ]
    atomic.write(output / "index.html", page(document, shown).encode())


def _per_image(dataset: Dataset, curve: Curve) -> dict[str, Any]:
    """What the averages are of: ``files``, and per score a row per rate point with a value per file."""
    columns: dict[str, list] = {"bpp": []}
    for point in curve.points:
        rates = (point.bits[key] / (width * height) for key, (width, height) in dataset.sizes.items())
        columns["bpp"].append([round(rate, 5) for rate in rates])
        for evaluator in dataset.evaluators:
            for metric in evaluator.headline:
                values = evaluator.contributions(metric, point.records[evaluator.name])
                if values:
                    row = [round(values[item.key], 5) for item in dataset.items]
                    columns.setdefault(evaluator.title(metric), []).append(row)
    return {"files": [item.key for item in dataset.items], **columns}
