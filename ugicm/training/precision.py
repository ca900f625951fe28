"""Speed options of training: bfloat16, channels_last and compilation.

Only transforms and teachers run in bfloat16. The entropy model is always float32: a likelihood of 1 - 2^-9, for
example, has no bfloat16.
"""

from __future__ import annotations

import torch
from torch import nn

from ugicm.config import PrecisionConfig


def autocast(config: PrecisionConfig, device: torch.device) -> torch.autocast:
    """Return the context of the forward pass of model and teacher."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.autocast == "bf16")


def prepare(model: nn.Module, config: PrecisionConfig, device: torch.device) -> None:
    """Set memory format and compilation of ``model`` in place. Parameter names do not change."""
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
        if device.type == "cpu":
            _avoid_strided_pointwise(model)
    if config.compile:
        for module in (model.g_a, model.h_a, model.entropy_model.h_s, model.g_s):
            module.compile()


def _avoid_strided_pointwise(model: nn.Module) -> None:
    """Run strided 1x1 convolutions with few input channels in contiguous format.

    In channels_last, oneDNN's gradient of their float32 weights writes past its buffer
    (https://github.com/uxlfoundation/oneDNN/issues/6035: fewer than 8 or 16 input channels).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1:
            if module.in_channels < 16:
                weight = module.weight.data
                module.weight.data = weight.flatten().view(weight.shape)  # unlike contiguous(), resets all strides
                module.register_forward_pre_hook(lambda _, arguments: (arguments[0].contiguous(), *arguments[1:]))
