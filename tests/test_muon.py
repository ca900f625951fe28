"""Muon: orthogonal updates of convolutions, AdamW for other parameters."""

import pytest
import torch
from torch import nn

from ugicm.config import OptimConfig
from ugicm.errors import ConfigError
from ugicm.training import optim

LR = 0.01

NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs PyTorch 2.9")
pytestmark = NEEDS_MUON


def layers():
    torch.manual_seed(0)
    pointwise, spatial = nn.Conv2d(32, 24, 1), nn.Conv2d(8, 48, 3)
    depthwise, linear = nn.Conv2d(32, 32, 3, groups=32), nn.Linear(32, 32)
    model = nn.ModuleDict({"pointwise": pointwise, "spatial": spatial, "depthwise": depthwise, "linear": linear})
    return model.to(memory_format=torch.channels_last)


def step(model, name, **values):
    """Take a step from seeded gradients. Returns the change of each parameter."""
    optimizer, _ = optim.build_optimizers(model, OptimConfig(name=name, lr=LR, **values))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_updates_of_convolutions_are_orthogonal_and_follow_the_gradient():
    model = layers()
    changes = step(model, "muon")
    for name in ("pointwise.weight", "spatial.weight"):
        update = changes[name].flatten(1) / (LR * 0.2 * max(changes[name].flatten(1).shape) ** 0.5)
        singular = torch.linalg.svdvals(update)
        assert singular.min() > 0.5 and singular.max() < 1.3  # five iterations
        u, _, v = torch.linalg.svd(model.get_parameter(name).grad.flatten(1), full_matrices=False)
        assert torch.cosine_similarity(-(u @ v).flatten(), update.flatten(), dim=0) > 0.97


def test_other_parameters_are_updated_as_by_adamw():
    muon, adamw = step(layers(), "muon"), step(layers(), "adamw")
    others = [name for name in muon if name not in ("pointwise.weight", "spatial.weight")]
    assert len(others) == 6
    for name in others:
        assert torch.equal(muon[name], adamw[name]), name


def test_learning_rates_apply_to_convolutions():
    changes = step(layers(), "muon", lr_scale={"pointwise": 0.1})
    one = step(layers(), "muon")
    assert torch.allclose(changes["pointwise.weight"], 0.1 * one["pointwise.weight"], atol=1e-7)
    assert torch.equal(changes["spatial.weight"], one["spatial.weight"])


def test_old_pytorch_and_models_without_convolutions_are_rejected(monkeypatch):
    with pytest.raises(ConfigError, match="no convolution is trained; use adamw"):
        optim.build_optimizers(nn.ModuleDict({"linear": nn.Linear(32, 32)}), OptimConfig(name="muon"))
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match="muon needs PyTorch 2.9 or later"):
        optim.build_optimizers(layers(), OptimConfig(name="muon"))
