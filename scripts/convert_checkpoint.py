#!/usr/bin/env python3
"""Convert a released UG-ICM or MLIC++ checkpoint, or the result of a training run, to a self-contained checkpoint.

    python scripts/convert_checkpoint.py ugicm_lambda0.0022.pth.tar ugicm.safetensors
    python scripts/convert_checkpoint.py experiments/run/model.safetensors final.safetensors --half --calibrate photos/
    ugicm compress -c ugicm.safetensors image.png

The converted file holds the configuration and the entropy coder's integer tables, so that bitstreams do not depend on
the machine. Weights stay the same, except for rounding with --half.

--calibrate (CDF calibration) counts the symbols of images, for example of the training images, and replaces the
Gaussian's probabilities in the tables by their frequencies. Bitstreams become a little shorter (docs/model.md) and can
only be decoded with the new file.

Exit status: 0 converted, 1 the output cannot be written, 2 invalid input, or the output exists.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import ugicm
from ugicm.arguments import ArgumentParser, run_command


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="released .pth.tar, or native .safetensors")
    parser.add_argument("target", type=Path, metavar="OUT.safetensors", help="file to write")
    parser.add_argument("--half", action="store_true", help="store weights as float16: half the size")
    parser.add_argument("--calibrate", type=Path, nargs="+", metavar="DIR",
                        help="images to calibrate the tables with")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    convert(
        arguments.source, arguments.target, half=arguments.half, images=arguments.calibrate,
        overwrite=arguments.overwrite,
    )  # fmt: skip
    return 0


def convert(source: Path, target: Path, *, half: bool, images: list[Path] | None, overwrite: bool) -> None:
    """Write ``source`` to ``target``, calibrated with ``images``. Raises UgicmError or OSError."""
    from ugicm.checkpoints.native import check_output, is_native, load_model, read_metadata, save_model
    from ugicm.checkpoints.released import load_any
    from ugicm.data.images import center_crops, find_images
    from ugicm.training.calibration import count_symbols

    check_output(target, overwrite)
    crops = center_crops([file for folder in images for file in find_images(folder)], 256) if images else None
    model = load_any(source)
    metadata = read_metadata(source) if is_native(source) else {}
    metadata |= {"source": source.name, "ugicm_version": ugicm.__version__}
    if crops is not None:
        model.entropy_model.drop_tables()
        metadata["calibrated"] = f"{len(crops)} images of " + " ".join(map(str, images))
    model.entropy_model.build_tables()
    with tempfile.TemporaryDirectory() as folder:  # continue with the weights as they are stored
        save_model(Path(folder) / "rounded.safetensors", model, half=half)
        model = load_model(Path(folder) / "rounded.safetensors")
    if crops is not None:
        model.entropy_model.gaussian.calibrate(count_symbols(model, crops))
    # With the fingerprint in the metadata, `ugicm info` does not need to build the model.
    metadata["fingerprint"] = copy.deepcopy(model).prepare_for_coding().fingerprint.hex()
    save_model(target, model, metadata, half)
    config, size = model.config, target.stat().st_size / 2**20
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{target}: {config.backbone}, N={config.N}, M={config.M}, {len(config.slice_widths)} slices, "
          f"{parameters:.2f} M parameters, {size:.1f} MiB")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command(main))
