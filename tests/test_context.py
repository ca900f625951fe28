"""Contexts, conditional decoder: shapes, causality, precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ugicm.entropy.checkerboard import ANCHOR, REST, keep
from ugicm.models.conditional_decoder import PreferenceEmbedding, ResidualSynthesis
from ugicm.models.context import (
    ChannelContext,
    EntropyParameters,
    InterContext,
    IntraContext,
    LatentResidualPrediction,
    LocalContext,
    linear_attention,
)
from ugicm.models.layers import DepthwiseConv3x3, Pointwise
from ugicm.models.transforms import GdnAnalysis, ResidualAnalysis

C, H, W = 16, 8, 12


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


MODULES = {
    "local": (lambda: LocalContext(C), [C], 2 * C),
    "local, window 3": (lambda: LocalContext(C, window=3, heads=4), [C], 2 * C),
    "channel": (lambda: ChannelContext(3 * C, 4 * C, (24, 20)), [3 * C], 4 * C),
    "inter": (lambda: InterContext(96, 2 * C), [96], 2 * C),
    "inter, odd width": (lambda: InterContext(70, 2 * C), [70], 2 * C),
    "intra": (lambda: IntraContext(C), [C, C], 2 * C),
    "lrp full": (lambda: LatentResidualPrediction(5 * C, C, "full"), [5 * C], C),
    "lrp slim": (lambda: LatentResidualPrediction(5 * C, C, "slim"), [5 * C], C),
    "parameters": (lambda: EntropyParameters(3 * C, 2 * C, (32, 24)), [3 * C], 2 * C),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODULES)
def test_float64_agrees_with_float32(name):
    make, inputs, outputs = MODULES[name]
    module = make()
    x = [draw(2, channels, H, W, seed=i) for i, channels in enumerate(inputs)]
    single = module(*(t.float() for t in x))
    double = module.double()(*x)
    assert single.shape == double.shape == (2, outputs, H, W)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", MODULES)
def test_images_of_a_batch_are_independent(name):
    make, inputs, _ = MODULES[name]
    module = make().double()
    x = [draw(2, channels, H, W, seed=i) for i, channels in enumerate(inputs)]
    alone = module(*(t[1:] for t in x))
    torch.testing.assert_close(module(*x)[1:], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODULES)
def test_every_parameter_learns(name):
    make, inputs, _ = MODULES[name]
    module = make().double()
    module(*(draw(1, channels, H, W, seed=i) for i, channels in enumerate(inputs))).square().sum().backward()
    still = [n for n, p in module.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not still


def attention_by_definition(context: LocalContext, anchor: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """The local context of one position of one image, [2C], by loops over its window."""
    dim, height, width = anchor.shape
    window, heads = context.window, context.heads
    reach = window // 2
    places = [(row + r - reach, column + c - reach) for r in range(window) for c in range(window)]

    def known(place):
        return 0 <= place[0] < height and 0 <= place[1] < width

    def projected(place):
        if not known(place):
            return torch.zeros(3, dim, dtype=anchor.dtype)
        return context.qkv(context.norm(anchor[:, place[0], place[1]])).view(3, dim)

    qkv = [projected(place) for place in places]
    out = torch.zeros(window**2, dim, dtype=anchor.dtype)
    for head in range(heads):
        for i, first in enumerate(places):
            scores = []
            for j, second in enumerate(places):
                offset = (first[0] - second[0] + window - 1) * (2 * window - 1) + first[1] - second[1] + window - 1
                both = all(known(p) and sum(p) % 2 == 1 for p in (first, second))
                score = qkv[i][0, head::heads] @ qkv[j][1, head::heads] / (dim // heads) ** 0.5
                scores.append(score + context.position_bias[offset, head] - (0.0 if both else 100.0))
            weights = torch.stack(scores).softmax(0)
            values = torch.stack([t[2, head::heads] for t in qkv])
            out[i, head * (dim // heads) : (head + 1) * (dim // heads)] = weights @ values
    h = context.project(context.fusion(out.T.view(1, dim, window, window)).flatten())
    return h + context.mlp(context.mlp_norm(h))


@torch.no_grad()
@pytest.mark.parametrize("window,heads", [(5, 2), (3, 4)])
def test_local_attention_is_its_definition(window, heads):
    context = LocalContext(C, window, heads).double()
    context.position_bias.copy_(draw(*context.position_bias.shape))
    anchor = keep(draw(1, C, 6, 8), ANCHOR)
    found = context(anchor)
    for row, column in ((0, 0), (0, 6), (2, 4), (3, 3), (5, 7)):
        wanted = attention_by_definition(context, anchor[0], row, column)
        torch.testing.assert_close(found[0, :, row, column], wanted, rtol=0, atol=1e-12)
    assert not keep(found, ANCHOR).any()


@torch.no_grad()
def test_intra_context_sees_the_right_halves():
    context = IntraContext(C).double()
    previous, anchor = draw(1, C, H, W), keep(draw(1, C, H, W, seed=1), ANCHOR)
    value = context(previous, anchor)
    assert not torch.allclose(value, context(previous + keep(draw(1, C, H, W, seed=2), REST), anchor))
    assert not torch.allclose(value, context(previous + keep(draw(1, C, H, W, seed=2), ANCHOR), anchor))
    assert not torch.allclose(value, context(previous, 2 * anchor))


def test_linear_attention_is_its_definition():
    query, key, value = draw(2, 8, 5, seed=1), draw(2, 8, 7, seed=2), draw(2, 8, 7, seed=3)
    found = linear_attention(query, key, value, heads=2)
    for head in (slice(0, 4), slice(4, 8)):
        q, k = query[:, head].softmax(1), key[:, head].softmax(2)
        wanted = torch.einsum("bcn,bcm,bdm->bdn", q, k, value[:, head])
        torch.testing.assert_close(found[:, head], wanted)


def test_unknown_form():
    with pytest.raises(ValueError, match="available: full, slim"):
        LatentResidualPrediction(8, 4, "wide")


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(1, 6, 8), (1, 37, 41), (3, 5, 7), (17, 1, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pointwise_whatever_the_threads(threads, shape, memory_format):
    batch, height, width = shape
    layer, x = Pointwise(6, 9).to(memory_format=memory_format), torch.rand(batch, 6, height, width)
    wanted = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(layer(x.contiguous(memory_format=memory_format)), wanted)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_depthwise_float64():
    convolution = DepthwiseConv3x3(6).double()
    x = draw(2, 6, 5, 7)
    wanted = F.conv2d(x, convolution.weight, convolution.bias, padding=1, groups=6)
    torch.testing.assert_close(convolution(x), wanted, rtol=0, atol=1e-14)


# The conditional decoder


def synthesis(extra: int = 0) -> tuple[PreferenceEmbedding, ResidualSynthesis, torch.Tensor]:
    return PreferenceEmbedding(4, 32, extra), ResidualSynthesis(16, 24, 32), torch.randn(2, 24, 4, 4)


def test_embedding_features():
    embedding = PreferenceEmbedding(3, 8)
    seen = []
    embedding.fc1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    embedding(torch.tensor([0.3]))
    b = torch.tensor(0.3)
    wanted = [b, *(f(2**k * b) for k in range(3) for f in (torch.sin, torch.cos))]
    torch.testing.assert_close(seen[0][0], torch.stack(wanted))


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 51, 128, 255])
def test_constant_map_is_the_number(level):
    embedding, g_s, y_hat = synthesis()
    number = g_s(y_hat[:1], embedding.condition(torch.tensor([level / 255])))
    constant = g_s(y_hat[:1], embedding.condition(torch.full((1, 1, 64, 64), level / 255)))
    assert torch.equal(number, constant)


@torch.no_grad()
def test_map_of_two_halves():
    embedding, g_s, _ = synthesis()
    y_hat = torch.randn(1, 24, 4, 16)
    beta = torch.zeros(1, 1, 64, 256)
    beta[..., 128:] = 1
    mixed = g_s(y_hat, embedding.condition(beta))
    human, machine = (g_s(y_hat, embedding.condition(torch.tensor([b]))) for b in (0.0, 1.0))
    torch.testing.assert_close(mixed[..., :32], human[..., :32], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[..., -32:], machine[..., -32:], rtol=0, atol=1e-5)
    assert not torch.allclose(human, machine, atol=1e-4)


@torch.no_grad()
def test_map_with_extra_numbers():
    embedding, g_s, y_hat = synthesis(extra=1)
    extra = torch.tensor([[0.2], [0.9]])
    wanted = g_s(y_hat, embedding.condition(torch.tensor([0.2, 0.8]), extra))
    beta = torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 1, 64, 64)
    torch.testing.assert_close(g_s(y_hat, embedding.condition(beta, extra)), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("analysis", [ResidualAnalysis, GdnAnalysis])
def test_reduced_precision_ends_in_float32(analysis):
    embedding, g_s, y_hat = synthesis()
    g_a, x = analysis(16, 24), torch.rand(1, 3, 64, 64)
    condition = embedding.condition(torch.tensor([0.5, 1.0]))
    exact = g_a(x), g_s(y_hat, condition)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = g_a(x), g_s(y_hat, condition)
    for found, wanted in zip(reduced, exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.02)


def test_condition_refuses():
    with pytest.raises(ValueError, match="a map"):
        PreferenceEmbedding(4, 32).condition(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="1 extra numbers"):
        PreferenceEmbedding(4, 32, extra=1).condition(torch.zeros(1))
