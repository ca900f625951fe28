"""Compact model: machine tail, computation by bands, detail channels."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from small_models import CONFIGS, small_model

from ugicm.errors import ConfigError
from ugicm.models import bands
from ugicm.models.compact.analysis import fold
from ugicm.models.compact.blocks import FOLD, CompactBlock, dct_basis, dct_gain
from ugicm.models.ugicm import UGICM
from ugicm.training import optim

FROZEN = [  # all but the machine tail
    "g_a", "h_a", "entropy_model", "gain", "g_s.quality", "g_s.stem", "g_s.blocks_16", "g_s.up", "g_s.blocks_8",
    "g_s.head", "g_s.detail",
]  # fmt: skip


def latents(model: UGICM) -> torch.Tensor:
    return torch.randn(2, model.config.M, 6, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def quality() -> torch.Tensor:
    return torch.tensor([0.2, 0.9])


@torch.no_grad()
def test_tail_affects_machine_preference_only(quality):
    model = small_model()
    y_hat, human = latents(model), torch.zeros(2)
    before = model.synthesize(y_hat, human, quality), model.synthesize(y_hat, human + 1, quality)
    for parameter in model.g_s.machine.parameters():
        parameter.mul_(1.5)
    assert torch.equal(model.synthesize(y_hat, human, quality), before[0])
    assert not torch.allclose(model.synthesize(y_hat, human + 1, quality), before[1])
    # In a mixed batch, the tail runs for all images.
    mixed = model.synthesize(y_hat, torch.tensor([0.0, 1.0]), quality)
    assert torch.equal(mixed[0], before[0][0])
    assert not torch.allclose(mixed[1], before[0][1], atol=1e-3)


@torch.no_grad()
def test_images_for_all_preferences_share_the_trunk_and_the_tail(quality):
    model, runs = small_model(), []
    y_hat, preferences = latents(model), [torch.full((2,), value) for value in (0.0, 0.4, 1.0)]
    apart = [model.synthesize(y_hat, beta, quality) for beta in preferences]
    for name in ("stem", "blocks_16.0", "blocks_8.0", "head", "machine"):
        model.g_s.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.append(name))
    together = model.synthesize_each(y_hat, preferences, quality)
    assert runs == ["stem", "blocks_16.0", "blocks_8.0", "head", "machine"]
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))
    torch.testing.assert_close(together[1], torch.lerp(together[0], together[2], 0.4), rtol=0, atol=1e-5)


@torch.no_grad()
def test_untrained_tail_and_no_tail_have_no_effect(quality):
    for depth in (0, 2):
        torch.manual_seed(0)
        model = UGICM(dataclasses.replace(CONFIGS["compact"], machine_depth=depth)).eval()
        human, machine = model.synthesize_each(latents(model), [torch.zeros(2), torch.ones(2)], quality)
        assert torch.equal(human, machine)


@torch.no_grad()
def test_quality_conditions_multi_rate_models_only():
    for points in (0, 3):
        model = UGICM(dataclasses.replace(CONFIGS["compact"], quality_points=points)).eval()
        for block in (model.g_s.blocks_8[0], model.g_s.machine.blocks[0]):
            assert (block.modulation is not None) == bool(points)
            if points:
                torch.nn.init.normal_(block.modulation.weight)
        torch.nn.init.normal_(model.g_s.machine.head.weight)
        for beta in (torch.zeros(1), torch.ones(1)):
            y_hat = latents(model)[:1]
            low, high = (model.synthesize(y_hat * model.gain(q), beta, q) for q in torch.tensor([[0.1], [0.9]]))
            assert torch.allclose(low, high, atol=1e-4) == (points == 0)


@torch.no_grad()
def test_constant_map_equals_scalar_preference_per_image(quality):
    model = small_model()
    y_hat = latents(model)
    number = model.synthesize(y_hat, torch.tensor([51 / 255, 1.0]), quality)
    constant = torch.ones(2, 1, 96, 64) * torch.tensor([51 / 255, 1.0])[:, None, None, None]
    assert torch.allclose(model.synthesize(y_hat, constant, quality), number, atol=1e-5)


@torch.no_grad()
def test_map_is_applied_to_each_pixel(quality):
    model = small_model()
    y_hat, beta = latents(model), torch.rand(2, 1, 96, 64, generator=torch.Generator().manual_seed(3))
    human, machine, mapped = model.synthesize_each(y_hat, [torch.zeros(2), torch.ones(2), beta], quality)
    torch.testing.assert_close(mapped, torch.lerp(human, machine, beta), rtol=0, atol=1e-5)


@pytest.mark.parametrize("band, most", [(1, 3), (40, 6), (100, 12), (10**6, 24)])
def test_bands_match_whole_map(quality, monkeypatch, band, most):
    model, x = small_model(), torch.rand(2, 3, 192, 128, generator=torch.Generator().manual_seed(2))
    y_hat, beta = latents(model), torch.tensor([0.0, 0.7])
    expected = model.analyze(x, quality), model.synthesize(y_hat, beta, quality)  # with gradients, so on whole maps
    rows, block = [], CompactBlock.forward
    monkeypatch.setattr(bands, "BAND", band)
    monkeypatch.setattr(CompactBlock, "forward", lambda *a: rows.append(a[1].shape[2]) or block(*a))
    with torch.no_grad():
        found = model.analyze(x, quality), model.synthesize(y_hat, beta, quality)
    assert max(rows) == most  # of maps of 24x16 and 12x8
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [(72, 64), (64, 72), (68, 64)])
def test_analysis_rejects_incomplete_blocks(quality, size):
    with pytest.raises(RuntimeError):
        small_model().analyze(torch.rand(1, 3, *size), quality)


def test_freezing_leaves_only_the_tail_trainable(quality):
    model = small_model()
    frozen = optim.freeze(model, FROZEN)
    optim.train_mode(model, frozen)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(name.startswith("g_s.machine.") for name in trainable)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model(x, torch.ones(2), quality)["x_hat"].square().mean().backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_dct_basis_is_orthonormal_and_sorted_by_frequency():
    basis = dct_basis()
    torch.testing.assert_close(basis @ basis.T, torch.eye(3 * FOLD**2), rtol=0, atol=1e-5)
    blocks = basis.unflatten(1, (3, FOLD, FOLD))
    torch.testing.assert_close(blocks[0], torch.full((3, FOLD, FOLD), (3 * FOLD**2) ** -0.5))  # gray
    assert blocks[1:3].sum(1).abs().max() < 1e-6  # colors of equal gray
    roughness = sum(blocks.diff(dim=side).square().sum((1, 2, 3)) for side in (2, 3))
    assert roughness[:3].max() < 1e-9 < roughness[3:9].max() < 0.5 < roughness[-9:].min()
    assert bool((dct_gain(10).diff() < 0).all())


@torch.no_grad()
@pytest.mark.parametrize(("width", "error"), [(48, 0.2), (192, 0.05)])  # low frequencies only, or all
def test_first_and_last_layer_start_as_inverse_transforms(width, error):
    torch.manual_seed(0)
    model = UGICM(dataclasses.replace(CONFIGS["compact"], width_8=width))
    x = F.interpolate(torch.rand(2, 3, 8, 6), scale_factor=8, mode="bicubic")
    center = model.g_s.head.weight[:, :, 1:2, 1:2]
    x_hat = F.pixel_shuffle(F.conv2d(fold(x, FOLD, model.g_a.stem), center), FOLD) + 0.5
    assert (x_hat - x).square().mean() < error * (x - 0.5).square().mean()


@pytest.mark.parametrize("width", [4, -1, 32])
def test_detail_width_must_match_last_slice(width):
    with pytest.raises(ConfigError, match="detail_width"):
        dataclasses.replace(CONFIGS["compact"], detail_width=width)
