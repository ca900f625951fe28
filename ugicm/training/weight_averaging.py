"""Averages of trained models: cheaper than an ensemble, and at times better than each.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time" (ICML 2022). It works for models that were trained on from the same one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch

from ugicm.errors import CheckpointError, ConfigError
from ugicm.models.ugicm import UGICM


def average(models: Sequence[UGICM], weights: Sequence[float]) -> UGICM:
    """The weighted mean of the parameters of models of one form; ``weights`` are divided by their sum.

    Models that parse alike keep their CDF tables. Otherwise the result has none: they are built where it is converted
    (``scripts/convert_checkpoint.py``).

    Raises CheckpointError for different forms, ConfigError for not a weight for each model, or weights whose sum is
    not positive.
    """
    if len(models) != len(weights):
        raise ConfigError(f"{len(weights)} weights for {len(models)} models")
    if not sum(weights) > 0:
        raise ConfigError(f"the weights sum to {sum(weights):g}, must be positive")
    first = models[0]
    if any(model.config != first.config for model in models[1:]):
        raise CheckpointError("the models are not of the same form")
    mean = copy.deepcopy(first)
    with torch.no_grad():
        for name, parameter in mean.named_parameters():
            terms = (w / sum(weights) * model.get_parameter(name).double() for w, model in zip(weights, models))
            parameter.copy_(sum(terms))
    if not all(torch.equal(p, first.parser.get_parameter(name)) for name, p in mean.parser.named_parameters()):
        mean.parser.drop_tables()
    return mean


def multiply(model: UGICM, pattern: str, factor: float) -> int:
    """Multiply the parameters whose names match ``pattern`` (as for file names: ``g_s.branches*.widen.*``).

    Returns how many there are. Raises ConfigError if there are none.
    """
    found = [parameter for name, parameter in model.named_parameters() if fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(f"no parameter's name matches {pattern}")
    with torch.no_grad():
        for parameter in found:
            parameter.mul_(factor)
    return len(found)
