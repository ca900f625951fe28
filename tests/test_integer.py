"""Exactness of integer layers: the same integers in any order of summation, precision and memory format."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import CONFIGS, encode, small_model
from torch import Tensor

import ugicm
from ugicm.entropy.integer import (
    LARGEST,
    LARGEST_SUM,
    UNIT,
    IntegerLayer,
    neighborhood,
    pixel_shuffle,
    prepare_integers,
    to_levels,
)
from ugicm.models.compact.context import CompactHyperSynthesis, CompactIndexes

WIDTH_IN, WIDTH_OUT = 320, 24
LEVELS = CONFIGS["compact"].scale_levels


def make_layer(prepared: bool = True) -> IntegerLayer:
    torch.manual_seed(0)
    layer = IntegerLayer(WIDTH_IN, WIDTH_OUT)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-2, 3, WIDTH_OUT)[:, None])  # shifts from 0 to 15
        layer.bias.copy_(torch.randn(WIDTH_OUT))
    if prepared:
        layer.prepare()
    return layer.eval()


def draw(*shape: int, low: int = 0, high: int = LARGEST, seed: int = 1) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def round_to_tf32(x: Tensor) -> Tensor:
    """Keep 10 bits of the mantissa."""
    return (((x.view(torch.int32) + (1 << 12)) >> 13) << 13).view(torch.float32)


def integer_parameters(layer: IntegerLayer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights W, biases b + 2^s / 2, both times two, and shifts s: int64."""
    weight, bias, step = (tensor.detach().double() for tensor in layer.rounded())
    values = 2 * weight / step[:, None], 2 * bias / step, -step.log2()
    assert all(torch.equal(value, value.round()) for value in values)
    return tuple(value.long().numpy() for value in values)


@torch.no_grad()
def test_layer_equals_integer_arithmetic():
    layer, x = make_layer(prepared=False), draw(2, 5, 7, WIDTH_IN, low=-LARGEST)
    weight, bias, shift = integer_parameters(layer)
    assert np.abs(weight).max() == 2 * LARGEST and {0, 5, 10} <= set(shift.tolist())
    layer.prepare()
    expected = np.clip((x.numpy().astype(np.int64) @ weight.T + bias) >> (shift + 1), 0, LARGEST)
    assert np.array_equal(layer(x).numpy(), expected)
    assert len(np.unique(expected)) > LARGEST / 2


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_layer_does_not_depend_on_order_and_precision(threads, precision):
    layer, x = make_layer(), draw(3, 8, 16, WIDTH_IN)
    expected = layer(x)
    shuffled, order = copy.deepcopy(layer), torch.randperm(WIDTH_IN)
    shuffled.weight.copy_(layer.weight[:, order])
    channels_first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(channels_first), expected)
        assert torch.equal(torch.cat([layer(image[None]) for image in x]), expected)
        assert torch.equal(shuffled(x[..., order]), expected)
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision("highest")


@torch.no_grad()
def test_partial_sums_are_exact_in_any_order():
    """The largest sums that :meth:`prepare` accepts, added up one by one in float32."""
    layer = IntegerLayer(1040, 1)
    layer.weight.fill_(0.995)  # 127 / 2^7
    layer.prepare()
    products = torch.cat([layer.weight.flatten() * LARGEST, layer.bias])
    for order in (torch.arange(1041), torch.randperm(1041)):
        total = torch.zeros(())
        for product in products[order]:
            total = total + product
        assert total.item() * 2**7 == 1040 * LARGEST**2 + 2**6
    assert 0.999 * LARGEST_SUM < total * 2**7 < LARGEST_SUM


@torch.no_grad()
@pytest.mark.parametrize("carrier", [lambda x: x.bfloat16().float(), lambda x: x.half().float(), round_to_tf32],
                         ids=["bfloat16", "float16", "tf32"])  # fmt: skip
def test_operands_are_exact_in_reduced_precision(carrier):
    model = small_model().prepare_for_coding()
    met, layers = [], [m for m in model.entropy_model.modules() if isinstance(m, IntegerLayer)]

    def check(layer: IntegerLayer, inputs: tuple[Tensor], output: Tensor) -> None:
        met.append(layer)
        assert torch.equal(inputs[0], inputs[0].round()) and inputs[0].abs().max() <= LARGEST
        assert torch.equal(carrier(inputs[0]), inputs[0])
        assert torch.equal(carrier(layer.weight), layer.weight)
        assert torch.equal(output, output.round()) and 0 <= output.min() and output.max() <= layer.high

    for layer in layers:
        layer.register_forward_hook(check)
    x = torch.rand(1, 3, 128, 64, generator=torch.Generator().manual_seed(1))
    strings, _ = encode(model, x, torch.tensor([0.7]))
    assert set(met) == set(layers)
    met.clear()
    model.entropy_decode(strings, (128, 64))
    assert set(met) == set(layers)


def test_prepare_keeps_results_and_is_idempotent():
    layer, x = make_layer(prepared=False), draw(64, WIDTH_IN)
    expected, before = layer(x), layer.weight.detach().clone()  # with gradients: straight-through estimates
    for _ in range(2):
        layer.prepare()
        assert torch.equal(layer(x), expected)
        with torch.no_grad():
            assert torch.equal(layer(x), expected)
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(("count", "weight", "bias"), [
    (1041, 0.995, 0.0),
    (1, 0.0, LARGEST_SUM / UNIT / 2**7),
    (521, 127.0, 0.0),  # shift 0: the 1/2 is half a unit of the products
])  # fmt: skip
@torch.no_grad()
def test_prepare_rejects_sums_that_float32_may_round(count, weight, bias):
    layer = IntegerLayer(count, 2)
    layer.weight.zero_()[1] = weight
    layer.bias[1] = bias
    with pytest.raises(ugicm.CheckpointError, match=f"a {count}->2 integer layer .* are too large: .*limit 16777216"):
        layer.prepare()
    layer.weight[1, 0] = 0.0
    layer.bias.mul_(0.99)
    layer.prepare()


def test_gradients_pass_rounding():
    layer = IntegerLayer(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, 0.2, -0.1, 0.6]]))
        layer.bias.fill_(1.0)
    x = to_levels((z := torch.tensor([[1.1, 2.2, 3.3, 4.4]], requires_grad=True)), 0.25)
    assert x.tolist() == [[4, 9, 13, 18]]
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.detach())
    torch.testing.assert_close(layer.bias.grad, torch.tensor([float(UNIT)]))
    torch.testing.assert_close(z.grad, layer.weight.detach() / 0.25, rtol=0, atol=0.05)  # of the rounded weights


def test_to_levels_rounds_and_clamps():
    assert to_levels(torch.tensor([0.0, 0.12, 0.125, -0.125, -0.13, 1e6, -1e6]), 0.25).tolist() == [
        0, 0, 1, 0, -1, LARGEST, -LARGEST
    ]  # fmt: skip


def test_pixel_shuffle_and_neighborhood():
    x = draw(2, 5, 6, 8)
    planes = x.unflatten(3, (2, 2, 2)).permute(0, 5, 3, 4, 1, 2).flatten(1, 3)  # channels (c, row, column)
    assert torch.equal(pixel_shuffle(x), F.pixel_shuffle(planes, 2).permute(0, 2, 3, 1))
    columns = F.unfold(x.permute(0, 3, 1, 2), 3, padding=1).view(2, 8, 9, 5, 6)  # channels (c, tap)
    assert torch.equal(neighborhood(x), columns.permute(0, 3, 4, 2, 1).flatten(3))


@torch.no_grad()
def test_hyper_context_consists_of_sixteenths():
    h_s = CompactHyperSynthesis(CONFIGS["compact"])
    prepare_integers(h_s)
    hyper = h_s(draw(1, CONFIGS["compact"].N, 2, 3, low=-9, high=9))
    assert hyper.shape == (1, CONFIGS["compact"].hyper_width, 8, 12)
    assert torch.equal(hyper * UNIT, (hyper * UNIT).round())
    assert 0 <= hyper.min() and 1 < hyper.max() < 8


@pytest.mark.parametrize("k", range(len(CONFIGS["compact"].slice_widths)))
def test_rows_in_training_round_to_coded_rows(k):
    config = CONFIGS["compact"]
    torch.manual_seed(0)
    indexes = CompactIndexes(config)
    hyper = draw(2, config.hyper_width, 6, 4) / UNIT
    energies = [
        indexes.energy(draw(2, width, 6, 4, low=-40, high=40, seed=i))
        for i, width in enumerate(config.slice_widths[:k])
    ]
    continuous = indexes.train()(k, hyper, energies)
    (rows := indexes.eval()(k, hyper, energies)).sum().backward()
    assert torch.equal(torch.floor(continuous + 0.5), rows)
    assert not torch.equal(continuous, rows)
    assert rows.shape == (2, config.slice_widths[k], 6, 4)
    assert rows.min() == 0 and rows.max() == LEVELS - 1 and len(rows.unique()) > LEVELS / 2
    assert all(layer.weight.grad.any() and layer.bias.grad.any() for layer in indexes.networks[k])
    prepare_integers(indexes)
    with torch.no_grad():
        assert torch.equal(indexes(k, hyper, energies), rows)


def test_energy_sums_magnitudes_around_each_position():
    residual = draw(2, 3, 6, 4, low=-12, high=12)
    magnitudes = residual.abs().clamp(max=8)
    sums = (9 * F.avg_pool2d(magnitudes, 3, stride=1, padding=1)).round().clamp(max=31)
    expected = torch.cat([8 * magnitudes, 4 * sums], dim=1).permute(0, 2, 3, 1)
    assert torch.equal(CompactIndexes.energy(residual).float(), expected)
    assert expected.max() <= LARGEST


@torch.no_grad()
def test_rows_start_at_scale_one():
    model = small_model()
    gaussian, row = model.entropy_model.gaussian, model.config.row_of_scale(1.0)
    assert gaussian.scale_of(torch.tensor(row)).item() == pytest.approx(1.0, rel=1e-5)
    assert torch.allclose(gaussian.scale_of(torch.arange(LEVELS)), gaussian.scale_table, rtol=1e-5)
    indexes = CompactIndexes(model.config).train()
    rows = indexes(0, torch.zeros(1, model.config.hyper_width, 2, 2), [])
    assert torch.allclose(rows, torch.tensor(row), atol=0.5)
