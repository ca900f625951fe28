#!/usr/bin/env python3
"""Average models that were trained on from the same one, by different teachers, seeds or data.

    python scripts/average_checkpoints.py a/model.safetensors b/model.safetensors -o mean.safetensors
    python scripts/average_checkpoints.py a.safetensors b.safetensors --weights 1 3 -o mean.safetensors
    python scripts/average_checkpoints.py a.safetensors --multiply "g_s.branches*.widen.*=1.25" -o louder.safetensors

What the branches for machines add to the image is linear in their last layer, widen: --multiply makes it stronger or
weaker. Then `scripts/convert_checkpoint.py` makes a file ready to be given away, or training goes on with init_from.

Exit status: 0 written, 1 it could not be written, 2 unusable input or the output exists.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ugicm.arguments import Parser, guarded


def _factor(text: str) -> tuple[str, float]:
    pattern, separator, factor = text.rpartition("=")
    try:
        if not separator:
            raise ValueError
        return pattern, float(factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=FACTOR") from None


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("sources", type=Path, nargs="+", metavar="IN", help="models of one form, .safetensors")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.safetensors", help="file to write")
    parser.add_argument("--weights", type=float, nargs="+", metavar="W", help="one for each model (default: equal)")
    parser.add_argument("--multiply", type=_factor, action="append", default=[], metavar="PATTERN=FACTOR",
                        help="multiply the mean's parameters of these names; may be repeated")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    from ugicm.checkpoints.native import load_model, read_metadata, save_model
    from ugicm.training.state import check_target
    from ugicm.training.weight_averaging import average, multiply

    weights = arguments.weights or [1.0] * len(arguments.sources)
    check_target(arguments.output, arguments.overwrite)
    mean = average([load_model(source) for source in arguments.sources], weights)
    for pattern, factor in arguments.multiply:
        multiply(mean, pattern, factor)
    stale = ("fingerprint",) if mean.parser.gaussian.quantized_cdf.numel() else ("fingerprint", "calibrated")
    kept = {k: v for k, v in read_metadata(arguments.sources[0]).items() if k not in stale}
    parts = [f"{w / sum(weights):.3g} of {source}" for w, source in zip(weights, arguments.sources)]
    parts += [f"{pattern} times {factor:g}" for pattern, factor in arguments.multiply]
    save_model(arguments.output, mean, {**kept, "averaged": ", ".join(parts)})
    print(f"{arguments.output}: {', '.join(parts)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
