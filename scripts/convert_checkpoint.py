#!/usr/bin/env python3
"""Convert a released UG-ICM or MLIC++ checkpoint, or the result of a training, to a file ready to be given away.

    python scripts/convert_checkpoint.py ugicm_lambda0.0022.pth.tar ugicm.safetensors
    python scripts/convert_checkpoint.py experiments/run/model.safetensors given.safetensors --half --calibrate photos/
    ugicm compress -c ugicm.safetensors image.png

The converted file holds its configuration and the entropy coder's integer tables, so that streams written on one
machine can be read on another. The network and its numbers stay the same, but for rounding with --half.

--calibrate counts the symbols of images, for example those of the training, and puts their frequencies into the
tables in place of the Gaussian's: streams become a little shorter (docs/model.md), and only this file reads them.

Exit status: 0 converted, 1 it could not be written, 2 unusable input or the output exists.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import tempfile
from pathlib import Path

import ugicm
from ugicm.arguments import Parser, guarded


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="released .pth.tar, or our .safetensors")
    parser.add_argument("target", type=Path, metavar="OUT.safetensors", help="file to write")
    parser.add_argument("--half", action="store_true", help="store weights as float16: half the size")
    parser.add_argument("--calibrate", type=Path, nargs="+", metavar="DIR",
                        help="images to calibrate the tables with")  # fmt: skip
    parser.add_argument("--sharpness", type=float, metavar="S", help="how much images for machines are sharpened: "
                        "by S at quality 0, not at all at 1 (default: as in IN)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    convert(
        arguments.source, arguments.target, half=arguments.half, images=arguments.calibrate,
        sharpness=arguments.sharpness, overwrite=arguments.overwrite,
    )  # fmt: skip
    return 0


def convert(
    source: Path, target: Path, *, half: bool, images: list[Path] | None, sharpness: float | None, overwrite: bool
) -> None:
    """Write ``source`` to ``target``, calibrated with ``images``. Raises UgicmError or OSError."""
    from ugicm.checkpoints.native import is_ours, load_model, read_metadata, save_model
    from ugicm.checkpoints.released import load_any
    from ugicm.data.images import center_crops, find_images
    from ugicm.training.calibration import count_symbols
    from ugicm.training.state import check_target

    check_target(target, overwrite)
    crops = center_crops([file for folder in images for file in find_images(folder)], 256) if images else None
    model = load_any(source)
    if sharpness is not None:
        model.config = dataclasses.replace(model.config, sharpness=sharpness)
    kept = {k: v for k, v in read_metadata(source).items() if k not in ("format", "config")} if is_ours(source) else {}
    metadata = {**kept, "source": source.name, "ugicm_version": ugicm.__version__}
    if crops is not None:
        model.parser.drop_tables()
        metadata["calibrated"] = f"{len(crops)} images of " + " ".join(map(str, images))
    model.parser.build_tables()
    with tempfile.TemporaryDirectory() as folder:  # from here on with its weights as they will be stored
        save_model(Path(folder) / "rounded.safetensors", model, half=half)
        model = load_model(Path(folder) / "rounded.safetensors")
    if crops is not None:
        model.parser.gaussian.calibrate(count_symbols(model, crops))
    # With the fingerprint in the metadata `ugicm info` needs no model.
    metadata["fingerprint"] = copy.deepcopy(model).prepare_for_coding().fingerprint.hex()
    save_model(target, model, metadata, half)
    c = model.config
    size = target.stat().st_size / 2**20
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{target}: {c.backbone}, N={c.N}, M={c.M}, {c.slices} slices, {parameters:.2f} M parameters, {size:.1f} MiB")


if __name__ == "__main__":
    sys.exit(guarded(main))
