"""Factorized prior and tabulated Gaussian: equal to CompressAI's."""

from __future__ import annotations

import pytest
import torch

from ugicm.entropy.factorized import FactorizedPrior
from ugicm.entropy.gaussian import TabulatedGaussian, log_spaced
from ugicm.entropy.tables import TABLES, quantize_cdf
from ugicm.errors import CheckpointError

SCALES = log_spaced(0.11, 256, 64)


def of_compressai(module: str):
    """Return a module of CompressAI; skip the test where the package is not installed."""
    return pytest.importorskip(f"compressai.{module}", reason="compares with CompressAI")


@pytest.fixture(scope="module")
def reference():
    """CompressAI's factorized prior with parameters that differ from their start values."""
    EntropyBottleneck = of_compressai("entropy_models").EntropyBottleneck

    torch.manual_seed(0)
    prior = EntropyBottleneck(5)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return prior.eval()


@pytest.fixture(scope="module")
def prior(reference):
    prior = FactorizedPrior(5).eval()
    prior.load_state_dict(reference.state_dict())
    return prior


def test_factorized_prior_state_dict_is_that_of_compressai(prior, reference):
    own, theirs = prior.state_dict(), reference.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) and own[name].dtype == theirs[name].dtype for name in own)


def test_factorized_prior_starts_like_compressai():
    EntropyBottleneck = of_compressai("entropy_models").EntropyBottleneck

    torch.manual_seed(1)
    theirs = EntropyBottleneck(3).state_dict()
    torch.manual_seed(1)
    own = FactorizedPrior(3).state_dict()
    assert all(torch.allclose(own[name], theirs[name], rtol=1e-6) for name in theirs)


def test_factorized_likelihoods_and_gradients_are_those_of_compressai(prior, reference):
    z = 8 * torch.randn(2, 5, 3, 4)
    noisy, expected = reference(z, training=True)
    found = prior.likelihood(noisy)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    found.log().sum().backward()
    expected.log().sum().backward()
    prior.quantile_loss().backward()
    reference.loss().backward()
    for (name, own), theirs in zip(prior.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_factorized_tables_are_those_of_compressai(prior, reference):
    double = reference.double()
    double.update(force=True)
    prior.build_tables()
    assert all(torch.equal(getattr(prior, name), getattr(double, name)) for name in TABLES)
    prior.drop_tables()
    assert not prior.has_tables


@pytest.mark.parametrize("scales", [SCALES, log_spaced(0.11, 64, 64), [2.0]])
def test_gaussian_tables_are_those_of_compressai(scales, monkeypatch):
    GaussianConditional = of_compressai("entropy_models").GaussianConditional

    theirs = GaussianConditional(scales)
    single = theirs._standardized_cumulative
    monkeypatch.setattr(theirs, "_standardized_cumulative", lambda x: single(x.double()))
    theirs.update()
    own = TabulatedGaussian(scales)
    own.build_tables()
    assert all(torch.equal(getattr(own, name), getattr(theirs, name)) for name in TABLES)


def test_gaussian_likelihoods_gradients_and_rows_are_those_of_compressai():
    GaussianConditional = of_compressai("entropy_models").GaussianConditional

    own, theirs = TabulatedGaussian(SCALES), GaussianConditional(SCALES).eval()
    residual = torch.round(4 * torch.randn(2, 3, 4, 5))
    scale = (300 * torch.rand(2, 3, 4, 5) ** 4 + 0.01).requires_grad_()  # also beyond the table
    found, (_, expected) = own.likelihood(residual, scale), theirs(residual, scale)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(likelihood.log().sum(), scale)[0] for likelihood in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert torch.equal(own.build_indexes(scale), theirs.build_indexes(scale).long())


@pytest.mark.parametrize("probabilities", [[0.5, 0.5], [0.0, 1.0, 0.0, 0.0], [1e-5, 1 - 2e-5, 1e-5, 0.0], [1e-4] * 100])
def test_quantize_cdf_is_that_of_compressai(probabilities):
    pmf_to_quantized_cdf = of_compressai("_CXX").pmf_to_quantized_cdf

    cdf = quantize_cdf(torch.tensor(probabilities, dtype=torch.float64))
    assert cdf.tolist() == pmf_to_quantized_cdf(probabilities, 16)
    assert cdf.diff().min() > 0 and cdf[-1] == 2**16


@pytest.mark.parametrize("probabilities", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [-0.5, 1.0]])
def test_quantize_cdf_rejects_invalid_probabilities(probabilities):
    with pytest.raises(CheckpointError, match="CDF tables cannot be built"):
        quantize_cdf(torch.tensor(probabilities))
