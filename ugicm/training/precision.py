"""Where bfloat16 is used in training, and where it must not be.

Transforms may run in bfloat16; likelihoods are always float32 (a probability of 1 - 2^-9 has no bfloat16), and
the parser's networks are float32 unless asked otherwise.
"""

from __future__ import annotations

import torch
from torch import nn

from ugicm.config import PrecisionConfig


class _Within:
    """Hooks that run a module under its own autocast setting; inputs become float32 where that is off."""

    def __init__(self, device: str, enabled: bool):
        self.device, self.enabled = device, enabled
        self._open: list[torch.autocast] = []

    def enter(self, module: nn.Module, arguments: tuple) -> tuple | None:
        context = torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.enabled)
        context.__enter__()
        self._open.append(context)
        if self.enabled:
            return None
        return tuple(a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in arguments)

    def leave(self, module: nn.Module, arguments: tuple, output: object) -> None:
        if self._open:  # empty where the pre-hook itself failed
            self._open.pop().__exit__(None, None, None)


def _run_within(module: nn.Module, device: str, enabled: bool) -> None:
    within = _Within(device, enabled)
    module.register_forward_pre_hook(within.enter)
    module.register_forward_hook(within.leave, always_call=True)


def autocast(config: PrecisionConfig, device: torch.device) -> torch.autocast:
    """The context that the model's and the teacher's forward pass run in."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.autocast == "bf16")


def _avoid_strided_pointwise(model: nn.Module) -> None:
    """Run strided 1x1 convolutions of few channels in contiguous format.

    In channels_last, oneDNN's gradient of their float32 weights writes past its buffer
    (https://github.com/uxlfoundation/oneDNN/issues/6035: fewer than 8 or 16 input channels).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1:
            if module.in_channels < 16:
                weight = module.weight.data
                module.weight.data = weight.flatten().view(weight.shape)  # unlike contiguous(), resets all strides
                module.register_forward_pre_hook(lambda _, arguments: (arguments[0].contiguous(), *arguments[1:]))


def prepare(model: nn.Module, config: PrecisionConfig, device: torch.device) -> None:
    """Set up memory format, precision of the parser and compilation, in place. Parameter names do not change."""
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
        if device.type == "cpu":
            _avoid_strided_pointwise(model)
    if config.bf16_parser:
        for module in (model.h_a, model.parser.h_s, model.parser.slices):
            _run_within(module, device.type, True)
        for module in (model.parser.gaussian, model.parser.bottleneck):
            _run_within(module, device.type, False)
    if config.compile:
        for module in (model.g_a, model.h_a, model.parser.h_s, model.g_s):
            module.compile()
