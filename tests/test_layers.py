"""Layers that the transforms and contexts share."""

from __future__ import annotations

import pytest
import torch

from ugicm.models.layers import GDN, Pointwise


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_gdn_matches_compressai(inverse, batch):
    reference_class = pytest.importorskip("compressai.layers", reason="compares with CompressAI").GDN
    torch.manual_seed(0)
    layer, reference = GDN(12, inverse), reference_class(12, inverse)
    initial, wanted = layer.state_dict(), reference.state_dict()
    assert initial.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(initial[name], value, rtol=1e-6, atol=0)
    with torch.no_grad():  # some values below the bounds, too
        reference.beta.add_(0.8 * torch.randn(12))
        reference.gamma.add_(0.2 * torch.randn(12, 12))
    layer.load_state_dict(reference.state_dict())
    x = torch.randn(batch, 12, 7, 5)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(y) for module, y in zip((layer, reference), inputs)]
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)
    direction = torch.randn_like(x)
    for output in outputs:
        (output * direction).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.beta.grad, reference.beta.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.gamma.grad, reference.gamma.grad, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_gdn_divides_by_the_norm_over_channels():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5)
    norm = torch.sqrt(1 + 0.1 * x**2)  # initially beta is 1 and gamma 0.1 on the diagonal
    torch.testing.assert_close(GDN(3)(x), x / norm)
    torch.testing.assert_close(GDN(3, inverse=True)(x), x * norm)
    layer = GDN(3)
    layer.gamma.copy_(torch.full((3, 3), 0.5).sqrt())
    torch.testing.assert_close(layer(x), x / torch.sqrt(1 + 0.5 * (x**2).sum(1, keepdim=True)))


def test_gdn_parameters_recover_from_below_their_bound():
    layer = GDN(1, inverse=True)
    with torch.no_grad():
        layer.beta.fill_(-1.0)
    x = torch.ones(1, 1, 1, 1)
    layer(x).sum().backward()  # the gradient is positive: descent would lower beta further
    assert layer.beta.grad.item() == 0
    layer(x).neg().sum().backward()
    assert layer.beta.grad.item() < 0


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(1, 6, 8), (1, 37, 41), (3, 5, 7), (17, 1, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pointwise_is_independent_of_threads(threads, shape, memory_format):
    torch.manual_seed(1)
    batch, height, width = shape
    layer, x = Pointwise(6, 9).to(memory_format=memory_format), torch.rand(batch, 6, height, width)
    wanted = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(layer(x.contiguous(memory_format=memory_format)), wanted)
    finally:
        torch.set_num_threads(before)
