"""Winograd's algorithm: that both forms of it convolve, and that layers give the same with and without."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F

from ugicm.models import float64_convolution, winograd
from ugicm.models.conditional_decoder import PreferenceEmbedding, ResidualSynthesis
from ugicm.models.layers import Conv2d
from ugicm.models.transforms import ResidualAnalysis

SIZES = [(8, 12), (5, 7), (1, 1), (9, 400), (4, 3), (66, 2), (40, 6)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


@pytest.fixture
def always(monkeypatch):
    """However narrow the layer and small the map."""
    monkeypatch.setattr(Conv2d, "WORTHWHILE", 0)
    monkeypatch.setattr(Conv2d, "WORTHWHILE_POSITIONS", 0)


@pytest.fixture(params=[2**19, 200, 1], ids=["one band", "bands of some tiles", "bands of one tile"])
def band_size(request, monkeypatch):
    monkeypatch.setattr(winograd, "_VALUES", request.param)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_is_convolution(band_size, size, memory_format):
    """In float64, where nothing but the algorithm can be wrong."""
    x, weight, bias = draw(2, 6, *size), draw(9, 6, 3, 3), draw(9)
    wanted = F.conv2d(x, weight, bias, padding=1)
    x, weight = x.contiguous(memory_format=memory_format), weight.contiguous(memory_format=memory_format)
    torch.testing.assert_close(winograd.conv2d(x, weight, bias), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(winograd.conv2d(x[:1], weight), wanted[:1] - bias[:, None, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_is_convolution_in_float64(taps, size, memory_format):
    x, weight, bias = draw(2, 6, *size), draw(9, 6, taps, taps), draw(9)
    wanted = F.conv2d(x, weight, bias, padding=taps // 2)
    x, weight = x.contiguous(memory_format=memory_format), weight.contiguous(memory_format=memory_format)
    convolve = float64_convolution.conv2d
    torch.testing.assert_close(convolve(x, weight, bias), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(convolve(x[:1], weight), wanted[:1] - bias[:, None, None], rtol=0, atol=1e-12)


def test_many_blocks_in_float64(monkeypatch):
    """Several blocks in both directions, the last ones partly outside the image; filters in several parts."""
    monkeypatch.setattr(float64_convolution, "_TILES", 6)
    monkeypatch.setattr(float64_convolution, "_VALUES", 0)
    monkeypatch.setattr(float64_convolution, "_FILTER_VALUES", 36 * 6 * 4)
    x, weight, bias = draw(2, 6, 21, 35), draw(9, 6, 3, 3), draw(9)
    found = float64_convolution.conv2d(x, weight, bias)
    torch.testing.assert_close(found, F.conv2d(x, weight, bias, padding=1))


@torch.inference_mode()
@pytest.mark.parametrize(
    "convolve,error", [(winograd.conv2d, 8e-7), (float64_convolution.conv2d, 3e-15)], ids=["float32", "float64"]
)
def test_rounding_errors(convolve, error):
    """Of a wide layer; of float32 not far above what was measured, since other points would give more."""
    x, weight = torch.rand(1, 192, 32, 48), torch.randn(192, 192, 3, 3) / 40
    wanted = F.conv2d(x.double(), weight.double(), padding=1)
    if convolve is float64_convolution.conv2d:
        x, weight = x.double(), weight.double()
    difference = convolve(x, weight) - wanted
    assert difference.square().mean().sqrt() < error * wanted.square().mean().sqrt()
    assert difference.abs().max() < 5 * error * wanted.abs().max()


@torch.no_grad()
def test_bands_of_several_kernels(band_size):
    x, weights = draw(2, 5, 9, 30), draw(3, 4, 5, 3, 3)
    y = torch.zeros(3, 2, 4, 9, 30, dtype=torch.float64)
    for band in winograd.convolve(x, [(weight, None) for weight in weights]):
        band.place(y[band.kernel]).copy_(band.values.mul_(2))
    for found, weight in zip(y, weights, strict=True):
        torch.testing.assert_close(found, 2 * F.conv2d(x, weight, padding=1))


@torch.no_grad()
def test_bands_in_the_memory_of_the_result(band_size):
    x, weight, out = draw(2, 5, 9, 30), draw(4, 5, 3, 3), draw(2, 4, 9, 30)
    for band in winograd.convolve(x, [(weight, None)], out):
        band.values += band.image
    wanted = F.conv2d(x, weight, padding=1) + torch.arange(2)[:, None, None, None]
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(64, 64), (64, 192)])
def test_analysis_by_bands(always, band_size, batch, size):
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
def test_synthesis_by_bands(always, size, stem, mapped):
    embedding, g_s, y_hat = PreferenceEmbedding(4, 32), ResidualSynthesis(16, 24, 32, stem), torch.randn(2, 24, *size)
    beta = torch.rand(2, 1, 16 * size[0], 16 * size[1]) if mapped else torch.tensor([0.0, 1.0])
    condition = embedding.condition(beta)
    kept = y_hat.clone()
    wanted = g_s(y_hat, condition)
    with torch.no_grad():
        found = g_s(y_hat, condition)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(y_hat, kept)


def test_training_is_not_by_bands(always):
    convolution, x = Conv2d(8, 8, 3), torch.rand(1, 8, 8, 8)
    assert not convolution.by_winograd(x)
    with torch.no_grad():
        assert convolution.by_winograd(x)
        assert not convolution.by_winograd(x.double())
        assert not Conv2d(8, 8, 3, stride=2).by_winograd(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not convolution.by_winograd(x)
    convolution(x).sum().backward()
    assert convolution.weight.grad.any()


@torch.no_grad()
def test_narrow_layers_and_small_maps_are_not_by_bands():
    wide = Conv2d(512, 512, 3)
    assert wide.by_winograd(torch.empty(1, 512, 32, 32))
    assert not wide.by_winograd(torch.empty(1, 512, 16, 16))
    assert not Conv2d(64, 64, 3).by_winograd(torch.empty(1, 64, 32, 32))


@pytest.mark.parametrize("convolve", [winograd.conv2d, float64_convolution.conv2d])
def test_memory_serves_inside_and_outside_of_inference_mode(convolve):
    x, weight = draw(1, 6, 8, 8), draw(6, 6, 3, 3)
    with torch.inference_mode():
        inside = convolve(x, weight).clone()
    with torch.no_grad():
        assert torch.equal(convolve(x, weight), inside)


@pytest.mark.parametrize("convolve", [winograd.conv2d, float64_convolution.conv2d])
def test_threads_do_not_share_memory(convolve):
    xs, weight = [draw(1, 16, 40, 60) for _ in range(4)], draw(16, 16, 3, 3)
    wanted = [F.conv2d(x, weight, padding=1) for x in xs]
    found: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                found[i] = convolve(xs[i], weight)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(wanted):
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-11)
