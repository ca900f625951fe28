"""Convolutions by blocks of transformed tiles: what they compute, and that layers give the same with and without."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F

from ugicm.models import products, winograd
from ugicm.models.conditional_decoder import PreferenceEmbedding, ResidualSynthesis
from ugicm.models.layers import Conv2d
from ugicm.models.transforms import ResidualAnalysis

SIZES = [(8, 12), (5, 7), (1, 1), (9, 400)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


@pytest.fixture(params=[False, True], ids=["mkl", "onednn"])
def library(request, monkeypatch):
    """Both libraries, whichever is quicker here."""
    if request.param and not products.onednn_is_there():
        pytest.skip("this PyTorch has no products by oneDNN")
    monkeypatch.setattr(products, "_onednn_is_quicker", lambda: request.param)


@pytest.fixture
def always(monkeypatch, library):
    """By blocks however narrow the layer."""
    monkeypatch.setattr(Conv2d, "WORTHWHILE", 0)
    monkeypatch.setattr(Conv2d, "WORTHWHILE_TILES", 0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_is_convolution(taps, size, memory_format):
    x, weight, bias = draw(2, 6, *size), draw(9, 6, taps, taps), draw(9)
    wanted = F.conv2d(x, weight, bias, padding=taps // 2)
    x, weight = x.contiguous(memory_format=memory_format), weight.contiguous(memory_format=memory_format)
    torch.testing.assert_close(winograd.conv2d(x, weight, bias), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(winograd.conv2d(x[:1], weight), wanted[:1] - bias[:, None, None], rtol=0, atol=1e-12)


def test_many_blocks(monkeypatch):
    """Several blocks in both directions, the last ones partly outside the picture; filters in several parts."""
    monkeypatch.setattr(winograd, "_TILES", 6)
    monkeypatch.setattr(winograd, "_VALUES", 0)
    monkeypatch.setattr(winograd, "_FILTER_VALUES", 36 * 6 * 4)
    x, weight, bias = draw(2, 6, 21, 35), draw(9, 6, 3, 3), draw(9)
    torch.testing.assert_close(winograd.conv2d(x, weight, bias), F.conv2d(x, weight, bias, padding=1))


@torch.inference_mode()
def test_float32_error(library):
    """Within about twice the error of the direct convolution, for a wide layer."""
    x, weight = torch.rand(1, 192, 32, 48), torch.randn(192, 192, 3, 3) / 40
    wanted = F.conv2d(x.double(), weight.double(), padding=1)
    error = winograd.conv2d(x, weight) - wanted
    assert error.square().mean().sqrt() < 3e-6 * wanted.square().mean().sqrt()
    assert error.abs().max() < 1e-5 * wanted.abs().max()


@torch.no_grad()
def test_blocks_of_several_kernels():
    x, weights = draw(1, 5, 9, 30), draw(3, 4, 5, 3, 3)
    y = torch.zeros(3, 1, 4, 9, 30, dtype=torch.float64)
    for block in winograd.blocks(x, [(weight, None) for weight in weights]):
        block.values.mul_(2)
        block.store(y[block.kernel])
        block.add_to(y[block.kernel])
    for found, weight in zip(y, weights, strict=True):
        torch.testing.assert_close(found, 4 * F.conv2d(x, weight, padding=1))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(64, 64), (64, 192)])
def test_analysis_by_blocks(always, batch, size):
    g_a, x = ResidualAnalysis(16, 24), torch.rand(batch, 3, *size)
    kept = x.clone()
    wanted = g_a(x)
    with torch.no_grad():
        found = g_a(x)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("size", [(4, 4), (5, 13)])
@pytest.mark.parametrize("stem", [None, 24])
@pytest.mark.parametrize("mapped", [False, True])
def test_synthesis_by_blocks(always, size, stem, mapped):
    embedding, g_s, y_hat = PreferenceEmbedding(4, 32), ResidualSynthesis(16, 24, 32, stem), torch.randn(2, 24, *size)
    beta = torch.rand(2, 1, 16 * size[0], 16 * size[1]) if mapped else torch.tensor([0.0, 1.0])
    condition = embedding.condition(beta)
    kept = y_hat.clone()
    wanted = g_s(y_hat, condition)
    with torch.no_grad():
        found = g_s(y_hat, condition)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(y_hat, kept)


@pytest.mark.parametrize(("ours", "chosen"), [(0.5, True), (0.9, False), (1.2, False)])
def test_the_much_quicker_library_is_taken(monkeypatch, ours, chosen):
    monkeypatch.setattr(products, "onednn_is_there", lambda: True)
    monkeypatch.setattr(products, "_seconds", lambda work, *_: ours if work is products.onednn_linear else 1.0)
    monkeypatch.setattr(products, "_onednn_is_quicker", products._onednn_is_quicker.__wrapped__)
    x = torch.rand(2, 3)
    assert not products.by_onednn(x)  # its products have no gradients
    with torch.no_grad():
        assert products.by_onednn(x) == chosen and not products.by_onednn(x.double())


def test_training_is_not_by_blocks(always):
    convolution, x = Conv2d(8, 8, 3), torch.rand(1, 8, 8, 8)
    assert not convolution.by_blocks(x)
    with torch.no_grad():
        assert convolution.by_blocks(x)
        assert not Conv2d(8, 8, 3, stride=2).by_blocks(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not convolution.by_blocks(x)
    convolution(x).sum().backward()
    assert convolution.weight.grad.any()


def test_memory_serves_inside_and_outside_of_inference_mode():
    x, weight = draw(1, 6, 8, 8), draw(6, 6, 3, 3)
    with torch.inference_mode():
        inside = winograd.conv2d(x, weight).clone()
    assert torch.equal(winograd.conv2d(x, weight), inside)


def test_threads_do_not_share_memory():
    xs, weight = [draw(1, 16, 40, 60) for _ in range(4)], draw(16, 16, 3, 3)
    wanted = [F.conv2d(x, weight, padding=1) for x in xs]
    found: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = winograd.conv2d(xs[i], weight)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(wanted):
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-11)
