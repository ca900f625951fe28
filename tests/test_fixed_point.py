"""Exactness of fixed-point convolutions: the order of summation does not change them."""

import numpy as np
import pytest
import torch
from small_models import encode, small_model

import ugicm
from ugicm.entropy.fixed_point import (
    ACTIVATION_LIMIT,
    ACTIVATION_STEP,
    WEIGHT_STEP,
    FixedPointConv2d,
    activation,
    on_grid,
    to_grid,
)


def exact_layer(kernel, channels=48, seed=0):
    torch.manual_seed(seed)
    layer = FixedPointConv2d(channels, 8, kernel).double()
    layer.round_weights()
    return layer.requires_grad_(False)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_equals_integer_arithmetic(kernel):
    layer = exact_layer(kernel)
    x = to_grid(100 * torch.randn(1, 48, 5, 6, dtype=torch.float64))
    integers = np.round(x.numpy() / ACTIVATION_STEP).astype(np.int64)
    weights = np.round(layer.weight.numpy() / WEIGHT_STEP).astype(np.int64)
    bias = np.round(layer.bias.numpy() / (WEIGHT_STEP * ACTIVATION_STEP)).astype(np.int64)
    reach = kernel // 2
    padded = np.pad(integers, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    expected = np.zeros((1, 8, 5, 6), np.int64) + bias[:, None, None]
    for r in range(kernel):
        for c in range(kernel):
            expected += np.einsum("oc,bchw->bohw", weights[:, :, r, c], padded[:, :, r : r + 5, c : c + 6])
    assert np.array_equal(layer(x).numpy(), expected * (WEIGHT_STEP * ACTIVATION_STEP))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_convolution_does_not_depend_on_order_and_threads(kernel, threads):
    layer, x = exact_layer(kernel), to_grid(100 * torch.randn(1, 48, 16, 16, dtype=torch.float64))
    expected = layer(x)
    order = torch.randperm(48)
    shuffled = exact_layer(kernel)
    shuffled.weight.copy_(layer.weight[:, order])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(shuffled(x[:, order]), expected)
        assert torch.equal(shuffled(x[:, order].contiguous(memory_format=torch.channels_last)), expected)
    finally:
        torch.set_num_threads(before)


def test_floating_point_convolution_is_close():
    layer, trained = exact_layer(3), FixedPointConv2d(48, 8, 3)
    trained.load_state_dict({k: v.float() for k, v in layer.state_dict().items()})
    x = torch.randn(1, 48, 8, 8)
    torch.testing.assert_close(trained(x).double(), layer(on_grid(x.double())), rtol=0, atol=1e-2)


def test_round_weights_rejects_too_large_weights():
    layer = FixedPointConv2d(4, 4).double()
    with torch.no_grad():
        layer.weight.fill_(1e6)
    with pytest.raises(ugicm.CheckpointError, match="too large for exact sums"):
        layer.round_weights()


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_round_weights_limits_weights_and_bias(part):
    layer = FixedPointConv2d(1, 1).double().requires_grad_(False)
    layer.weight.zero_()
    layer.bias.zero_()
    # 2^53 units of 2^-30 are 2^23: a weight times the largest activation, or a bias
    getattr(layer, part).fill_(2.0**23 / (ACTIVATION_LIMIT if part == "weight" else 1))
    with pytest.raises(ugicm.CheckpointError, match="too large for exact sums"):
        layer.round_weights()
    getattr(layer, part).mul_(0.999)
    layer.round_weights()


def test_round_weights_rounds_biases_to_the_grid_of_sums():
    layer = FixedPointConv2d(1, 1).double().requires_grad_(False)
    unit = WEIGHT_STEP * ACTIVATION_STEP
    layer.bias.fill_(3.125 * unit)
    layer.round_weights()
    assert layer.bias.item() == 3 * unit


@torch.no_grad()
def test_inputs_of_convolutions_are_on_the_grid():
    model = small_model("compact").prepare_for_coding()
    met = []

    def check(layer, inputs):
        met.append(layer)
        assert torch.equal(on_grid(inputs[0]), inputs[0])

    layers = [m for m in model.entropy_model.modules() if isinstance(m, FixedPointConv2d)]
    for layer in layers:
        layer.register_forward_pre_hook(check)
    x = torch.rand(1, 3, 128, 64, generator=torch.Generator().manual_seed(1))
    strings, _ = encode(model, x, torch.tensor([0.7]))
    assert set(met) == set(layers)
    met.clear()
    model.entropy_decode(strings, (128, 64))
    assert set(met) == set(layers)


def test_activation_rounds_half_to_even_and_clamps():
    x = torch.tensor([1.5, 2.5, -8 * 1.5, 1e9, -1e9, 1e300], dtype=torch.float64) * ACTIVATION_STEP
    expected = torch.tensor([2, 2, -2, 2.0**26, -(2.0**26), 2.0**26], dtype=torch.float64) * ACTIVATION_STEP
    assert torch.equal(activation(x.clone()), expected)
    assert torch.equal(activation(x.float()[:2]), x.float()[:2])  # nothing is rounded in training
