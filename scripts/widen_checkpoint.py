#!/usr/bin/env python3
"""Give a trained compact model more latent channels for detail at high rates, to be trained on from there.

    python scripts/widen_checkpoint.py runs/a/model.safetensors experiments/wider.safetensors -d photos/ --width 64
    python scripts/train.py -c configs/compact_4_detail.yaml

Exit status: 0 written, 1 it could not be written, 2 unusable input or the output exists.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ugicm.arguments import Parser, guarded


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="a compact model of many rates, .safetensors")
    parser.add_argument("target", type=Path, metavar="OUT.safetensors", help="file to write")
    parser.add_argument("-d", "--data", type=Path, nargs="+", required=True, help="images to fit the channels on")
    parser.add_argument("--width", type=int, default=64, help="channels to add (default: %(default)s)")
    parser.add_argument(
        "--lambdas", type=float, nargs="+", default=[0.0005, 0.0063, 0.08],
        help="the objective's, for the first quantization steps (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    import torch

    from ugicm.checkpoints.native import load_model, read_metadata, save_model
    from ugicm.data.images import center_crops, find_images
    from ugicm.training.detail_channels import widen
    from ugicm.training.state import check_target

    check_target(arguments.target, arguments.overwrite)
    model = load_model(arguments.source)
    files = [file for folder in arguments.data for file in find_images(folder)]
    # Made smaller, images lose the traces of earlier compression.
    crops = center_crops(files, 320)
    small = [torch.nn.functional.interpolate(c.float(), size=192, mode="bicubic", antialias=True)
             for c in crops.split(32)]  # fmt: skip
    wider = widen(model, arguments.width, torch.cat(small).clamp(0, 255), tuple(arguments.lambdas))
    about = {**read_metadata(arguments.source), "widened": f"{arguments.width} detail channels"}
    save_model(arguments.target, wider, {k: v for k, v in about.items() if k not in ("fingerprint", "calibrated")})
    parameters = sum(p.numel() for p in wider.parameters()) / 1e6
    print(f"{arguments.target}: M={wider.config.M}, {parameters:.2f} M parameters")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
