"""Context networks and conditional decoder: shapes, definitions, precision."""

from __future__ import annotations

import pytest
import torch

from ugicm.entropy.checkerboard import ANCHOR, NON_ANCHOR, keep
from ugicm.models.conditional_decoder import PreferenceEmbedding, ResidualSynthesis
from ugicm.models.context import (
    HEADS,
    WINDOW,
    ChannelContext,
    EntropyParameters,
    InterContext,
    IntraContext,
    LatentResidualPrediction,
    LocalContext,
    linear_attention,
)
from ugicm.models.hyperprior import GdnAnalysis
from ugicm.models.transforms import ResidualAnalysis

C, H, W = 16, 8, 12


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


MODULES = {
    "local": (lambda: LocalContext(C), [C], 2 * C),
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
def test_context_agrees_in_float32_and_float64(name):
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
def test_context_batch_independence(name):
    make, inputs, _ = MODULES[name]
    module = make().double()
    x = [draw(2, channels, H, W, seed=i) for i, channels in enumerate(inputs)]
    alone = module(*(t[1:] for t in x))
    torch.testing.assert_close(module(*x)[1:], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODULES)
def test_context_gradients_reach_every_parameter(name):
    make, inputs, _ = MODULES[name]
    module = make().double()
    module(*(draw(1, channels, H, W, seed=i) for i, channels in enumerate(inputs))).square().sum().backward()
    unused = [n for n, p in module.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not unused


def reference_local_context(context: LocalContext, anchor: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """Return the local context [2C] of one position of one image, by loops over its window."""
    dim, height, width = anchor.shape
    reach = WINDOW // 2
    places = [(row + r - reach, column + c - reach) for r in range(WINDOW) for c in range(WINDOW)]

    def inside(place):
        return 0 <= place[0] < height and 0 <= place[1] < width

    def project(place):
        if not inside(place):
            return torch.zeros(3, dim, dtype=anchor.dtype)
        return context.qkv(context.norm(anchor[:, place[0], place[1]])).view(3, dim)

    qkv = [project(place) for place in places]
    out = torch.zeros(WINDOW**2, dim, dtype=anchor.dtype)
    for head in range(HEADS):
        for i, first in enumerate(places):
            scores = []
            for j, second in enumerate(places):
                offset = (first[0] - second[0] + WINDOW - 1) * (2 * WINDOW - 1) + first[1] - second[1] + WINDOW - 1
                both = all(inside(p) and sum(p) % 2 == 1 for p in (first, second))
                score = qkv[i][0, head::HEADS] @ qkv[j][1, head::HEADS] / (dim // HEADS) ** 0.5
                scores.append(score + context.position_bias[offset, head] - (0.0 if both else 100.0))
            weights = torch.stack(scores).softmax(0)
            values = torch.stack([t[2, head::HEADS] for t in qkv])
            out[i, head * (dim // HEADS) : (head + 1) * (dim // HEADS)] = weights @ values
    h = context.project(context.fusion(out.T.view(1, dim, WINDOW, WINDOW)).flatten())
    return h + context.mlp(context.mlp_norm(h))


@torch.no_grad()
def test_local_context_matches_definition():
    context = LocalContext(C).double()
    context.position_bias.copy_(draw(*context.position_bias.shape))
    anchor = keep(draw(1, C, 6, 8), ANCHOR)
    found = context(anchor)
    for row, column in ((0, 0), (0, 6), (2, 4), (3, 3), (5, 7)):
        wanted = reference_local_context(context, anchor[0], row, column)
        torch.testing.assert_close(found[0, :, row, column], wanted, rtol=0, atol=1e-12)
    assert not keep(found, ANCHOR).any()


@torch.no_grad()
def test_intra_context_depends_on_both_parts_of_previous_slice():
    context = IntraContext(C).double()
    previous, anchor = draw(1, C, H, W), keep(draw(1, C, H, W, seed=1), ANCHOR)
    value = context(previous, anchor)
    assert not torch.allclose(value, context(previous + keep(draw(1, C, H, W, seed=2), NON_ANCHOR), anchor))
    assert not torch.allclose(value, context(previous + keep(draw(1, C, H, W, seed=2), ANCHOR), anchor))
    assert not torch.allclose(value, context(previous, 2 * anchor))


def test_linear_attention_matches_definition():
    query, key, value = draw(2, 8, 5, seed=1), draw(2, 8, 7, seed=2), draw(2, 8, 7, seed=3)
    found = linear_attention(query, key, value, heads=2)
    for head in (slice(0, 4), slice(4, 8)):
        q, k = query[:, head].softmax(1), key[:, head].softmax(2)
        wanted = torch.einsum("bcn,bcm,bdm->bdn", q, k, value[:, head])
        torch.testing.assert_close(found[:, head], wanted)


# The conditional decoder


def synthesis(with_quality: bool = False) -> tuple[PreferenceEmbedding, ResidualSynthesis, torch.Tensor]:
    return PreferenceEmbedding(4, 32, with_quality), ResidualSynthesis(16, 24, 32), torch.randn(2, 24, 4, 4)


def test_embedding_features():
    features = []
    for with_quality in (False, True):
        embedding = PreferenceEmbedding(3, 8, with_quality)
        embedding.fc1.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
        embedding(torch.tensor([0.3]), torch.tensor([0.7]))
    b = torch.tensor(0.3)
    wanted = [b, *(f(2**k * b) for k in range(3) for f in (torch.sin, torch.cos))]
    torch.testing.assert_close(features[0][0], torch.stack(wanted))
    torch.testing.assert_close(features[1][0], torch.stack([*wanted, torch.tensor(0.7)]))


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 51, 128, 255])
def test_constant_map_equals_scalar_preference(level):
    embedding, g_s, y_hat = synthesis()
    scalar = g_s(y_hat[:1], embedding.condition(torch.tensor([level / 255]), torch.ones(1)))
    constant = g_s(y_hat[:1], embedding.condition(torch.full((1, 1, 64, 64), level / 255), torch.ones(1)))
    assert torch.equal(scalar, constant)


@torch.no_grad()
def test_map_with_two_halves():
    embedding, g_s, _ = synthesis()
    y_hat, quality = torch.randn(1, 24, 4, 16), torch.ones(1)
    beta = torch.zeros(1, 1, 64, 256)
    beta[..., 128:] = 1
    mixed = g_s(y_hat, embedding.condition(beta, quality))
    human, machine = (g_s(y_hat, embedding.condition(torch.tensor([b]), quality)) for b in (0.0, 1.0))
    torch.testing.assert_close(mixed[..., :32], human[..., :32], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[..., -32:], machine[..., -32:], rtol=0, atol=1e-5)
    assert not torch.allclose(human, machine, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("with_quality", [False, True])
def test_map_with_quality_per_image(with_quality):
    embedding, g_s, y_hat = synthesis(with_quality)
    quality = torch.tensor([0.2, 0.9])
    wanted = g_s(y_hat, embedding.condition(torch.tensor([0.2, 0.8]), quality))
    beta = torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 1, 64, 64)
    torch.testing.assert_close(g_s(y_hat, embedding.condition(beta, quality)), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("analysis", [ResidualAnalysis, GdnAnalysis])
def test_autocast_output_is_float32(analysis):
    embedding, g_s, y_hat = synthesis()
    g_a, x = analysis(16, 24), torch.rand(1, 3, 64, 64)
    condition = embedding.condition(torch.tensor([0.5, 1.0]), torch.ones(2))
    exact = g_a(x), g_s(y_hat, condition)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = g_a(x), g_s(y_hat, condition)
    for found, wanted in zip(reduced, exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.02)


def test_condition_rejects_invalid_shape():
    with pytest.raises(ValueError, match="for a map"):
        PreferenceEmbedding(4, 32).condition(torch.zeros(1, 3, 8, 8), torch.ones(1))
