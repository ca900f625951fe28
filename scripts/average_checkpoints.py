#!/usr/bin/env python3
"""Average the weights of models that were fine-tuned from the same checkpoint.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", ICML 2022.

    python scripts/average_checkpoints.py a/model.safetensors b/model.safetensors -o mean.safetensors
    python scripts/average_checkpoints.py a.safetensors b.safetensors --weights 1 3 -o mean.safetensors
    python scripts/average_checkpoints.py a.safetensors --multiply "g_s.machine.head.*=1.25" -o strong.safetensors

--multiply scales parameters. The machine tail, for example, is linear in its last layer, head: a factor above 1
strengthens its effect. The output can be converted with `scripts/convert_checkpoint.py` or trained with init_from.

Exit status: 0 written, 1 the output cannot be written, 2 invalid input or the output exists.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from ugicm.arguments import ArgumentParser, run_command
from ugicm.checkpoints.native import check_output, load_model, read_metadata, save_model
from ugicm.errors import CheckpointError, ConfigError
from ugicm.models.ugicm import UGICM


def average(models: Sequence[UGICM], weights: Sequence[float]) -> UGICM:
    """Return a model with the weighted mean of the parameters; ``weights`` are divided by their sum.

    CDF tables are kept if all entropy models are equal. Otherwise the result has none until it is converted
    (``scripts/convert_checkpoint.py``).

    Raises CheckpointError if the models' configurations differ, ConfigError if the number of weights differs from that
    of models or their sum is not positive.
    """
    if len(models) != len(weights):
        raise ConfigError(f"{len(weights)} weights for {len(models)} models")
    if not sum(weights) > 0:
        raise ConfigError(f"the weights sum to {sum(weights):g}, must be positive")
    first = models[0]
    if any(model.config != first.config for model in models[1:]):
        raise CheckpointError("the models have different configurations")
    mean = copy.deepcopy(first)
    with torch.no_grad():
        for name, parameter in mean.named_parameters():
            terms = (w / sum(weights) * model.get_parameter(name).double() for w, model in zip(weights, models))
            parameter.copy_(sum(terms))
    averaged, original = mean.entropy_model.named_parameters(), first.entropy_model.get_parameter
    if not all(torch.equal(parameter, original(name)) for name, parameter in averaged):
        mean.entropy_model.drop_tables()
    return mean


def multiply(model: UGICM, pattern: str, factor: float) -> int:
    """Multiply the parameters whose names match the glob ``pattern``, such as ``g_s.machine.head.*``.

    Returns their number. Raises ConfigError if there are none.
    """
    matching = [parameter for name, parameter in model.named_parameters() if fnmatchcase(name, pattern)]
    if not matching:
        raise ConfigError(f"no parameter name matches {pattern}")
    with torch.no_grad():
        for parameter in matching:
            parameter.mul_(factor)
    return len(matching)


def _factor(text: str) -> tuple[str, float]:
    pattern, separator, factor = text.rpartition("=")
    try:
        if not separator:
            raise ValueError
        return pattern, float(factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=FACTOR") from None


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path, nargs="+", metavar="IN", help="models of one configuration, .safetensors")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.safetensors", help="file to write")
    parser.add_argument("--weights", type=float, nargs="+", metavar="W", help="weight of each model (default: equal)")
    parser.add_argument("--multiply", type=_factor, action="append", default=[], metavar="PATTERN=FACTOR",
                        help="multiply the averaged parameters that match a glob pattern; may be repeated")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    weights = arguments.weights or [1.0] * len(arguments.sources)
    check_output(arguments.output, arguments.overwrite)
    mean = average([load_model(source) for source in arguments.sources], weights)
    for pattern, factor in arguments.multiply:
        multiply(mean, pattern, factor)
    stale = ("fingerprint",) if mean.entropy_model.gaussian.quantized_cdf.numel() else ("fingerprint", "calibrated")
    kept = {k: v for k, v in read_metadata(arguments.sources[0]).items() if k not in stale}
    parts = [f"{w / sum(weights):.3g} of {source}" for w, source in zip(weights, arguments.sources)]
    parts += [f"{pattern} times {factor:g}" for pattern, factor in arguments.multiply]
    save_model(arguments.output, mean, {**kept, "averaged": ", ".join(parts)})
    print(f"{arguments.output}: {', '.join(parts)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
