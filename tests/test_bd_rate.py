"""Bjøntegaard deltas: hand calculation, agreement with the package bjontegaard, and undefined deltas."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ugicm.evaluation.bd_rate import bd_rate, bd_rate_interval, bd_score
from ugicm.report.comparison import comparable, compare

RATE = np.array([0.1, 0.2, 0.4, 0.8])
PSNR = np.array([26.0, 28.5, 31.0, 34.0])


@pytest.mark.parametrize("method", ["pchip", "isotonic"])
def test_bd_rate_of_doubled_rate(method):
    delta = bd_rate(RATE, PSNR, 2 * RATE, PSNR, method)
    assert delta.value == pytest.approx(100)
    assert bd_rate(2 * RATE, PSNR, RATE, PSNR, method).value == pytest.approx(-50)
    assert (delta.low, delta.high, delta.share) == (26.0, 34.0, 1.0)


@pytest.mark.parametrize("method", ["pchip", "isotonic"])
def test_bd_score_of_one_decibel(method):
    delta = bd_score(RATE, PSNR, RATE, PSNR + 1, method)
    assert delta.value == pytest.approx(1)
    assert (delta.low, delta.high) == pytest.approx((0.1, 0.8))


def test_bd_rate_ignores_point_order():
    order = [2, 0, 3, 1]
    assert bd_rate(RATE, PSNR, 1.3 * RATE[order], PSNR[order]).value == pytest.approx(30)


def test_agreement_with_bjontegaard_package():
    bjontegaard = pytest.importorskip("bjontegaard")
    rate, psnr = np.array([0.12, 0.21, 0.35, 0.7]), np.array([27.0, 29.2, 30.9, 33.7])
    expected = bjontegaard.bd_rate(RATE, PSNR, rate, psnr, method="pchip", require_matching_points=False, min_overlap=0)
    assert bd_rate(RATE, PSNR, rate, psnr).value == pytest.approx(expected, rel=1e-3)
    expected = bjontegaard.bd_psnr(RATE, PSNR, rate, psnr, method="pchip", require_matching_points=False, min_overlap=0)
    assert bd_score(RATE, PSNR, rate, psnr).value == pytest.approx(expected, rel=1e-3)


def test_isotonic_bd_rate_by_hand():
    # 60 70 68 80 pools to 60 69 69 80. Against a straight line through (rate 1, 60) and (rate 8, 80), in log2 rate:
    # reference 3/20 per point; test: 60..69 over one doubling, then 69..80 over one doubling that starts at rate 4.
    rate, noisy = [1, 2, 4, 8], [60, 70, 68, 80]
    delta = bd_rate([1, 8], [60, 80], rate, noisy, "isotonic")
    test = 9 * 0.5 + 11 * 2.5
    reference = 20 * 1.5
    assert delta.value == pytest.approx(100 * (2 ** ((test - reference) / 20) - 1))
    assert delta.note == "test curve made monotone"


def test_bd_rate_uses_common_scores_only():
    # The reference ends at 31 dB: the test curve above must have no influence.
    long = bd_rate(RATE[:3], PSNR[:3], 2 * RATE, PSNR, "isotonic")
    assert (long.value, long.low, long.high) == (pytest.approx(100), 26.0, 31.0)
    assert long.share == pytest.approx(5 / 8)


def test_no_overlap_has_no_delta():
    delta = bd_rate(RATE, PSNR, RATE, PSNR + 20)
    assert delta.value is None and delta.note == "no overlap"
    assert bd_score(RATE, PSNR, 100 * RATE, PSNR).note == "no overlap"


def test_narrow_overlap_is_noted():
    assert "narrow overlap" in bd_rate(RATE, PSNR, RATE, PSNR + 7).note


def test_undefined_deltas_and_invalid_curves():
    assert "one point" in bd_rate([0.1], [30], RATE, PSNR).note
    falling = bd_rate(RATE, PSNR, RATE, PSNR[::-1])
    assert falling.value is None and "does not rise" in falling.note
    flat = bd_rate(RATE, PSNR, RATE, [50, 50, 50, 50], "isotonic")
    assert flat.value is None and flat.note.startswith("no overlap")
    for rate, score in ((RATE, PSNR[:3]), ([0, 1, 2, 3], PSNR), (RATE, [np.nan] * 4), ([], [])):
        with pytest.raises(ValueError):
            bd_rate(rate, score, RATE, PSNR)


def test_interval_covers_value_and_is_reproducible():
    generator = np.random.default_rng(1)

    def curves(images):
        hardness = generator.normal(size=images)
        rate = np.outer(RATE, np.exp(0.2 * hardness))
        score = np.clip(
            np.array([60, 70, 78, 82])[:, None] - 10 * hardness + generator.normal(size=(4, images)), 0, 100
        )
        return rate, score, 1.5 * rate, score

    few, many = (bd_rate_interval(*curves(n), resamples=100) for n in (30, 400))
    for delta in (few, many):
        assert delta.interval[0] <= delta.value <= delta.interval[1]
        assert delta.value == pytest.approx(50)  # paired images: differences between images cancel
    rate, score, rate_b, _ = curves(60)
    noisy = score + generator.normal(scale=15, size=score.shape)
    wide = bd_rate_interval(rate, score, rate_b, noisy, resamples=100)
    assert wide.interval[1] - wide.interval[0] > 1
    assert bd_rate_interval(rate, score, rate_b, noisy, resamples=100) == wide  # same seed, same numbers
    with pytest.raises(ValueError, match="same images"):
        bd_rate_interval(rate, score, rate_b[:, 1:], score[:, 1:])


def test_interval_is_percentiles_of_resamples():
    rng = np.random.default_rng(5)
    rate = np.array([[0.2], [0.4], [0.8]]) * rng.uniform(0.5, 1.5, 12)
    score = np.array([[1.0], [2.0], [3.0]]) + rng.uniform(-0.3, 0.3, (3, 12))
    other = rate * rng.uniform(0.7, 1.0, 12)
    found = bd_rate_interval(rate, score, other, score, resamples=50, seed=3)
    generator = np.random.default_rng(3)
    picks = [generator.integers(0, 12, 12) for _ in range(50)]
    values = [bd_rate(*(v[:, p].mean(1) for v in (rate, score, other, score)), "isotonic").value for p in picks]
    assert found.interval == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_interval_of_few_images_is_marked():
    generator = np.random.default_rng(0)
    rate, score = np.linspace(0.1, 1, 5)[:, None].repeat(4, 1), np.linspace(20, 60, 5)[:, None].repeat(4, 1)
    score = score + generator.normal(size=score.shape)
    found = bd_rate_interval(rate, score, 0.8 * rate, score)
    assert found.interval is not None and "rough interval: 4 images" in found.note
    assert bd_rate_interval(rate[:, :1], score[:, :1], 0.8 * rate[:, :1], score[:, :1]).interval is None


def test_interval_needs_overlap_of_most_resamples():
    rate = np.array([[0.2] * 20, [0.8] * 20])
    score_a, score_b = np.array([[0.0] * 20, [1.0] * 20]), np.array([[0.0] * 5 + [1.2] * 15, [2.0] * 20])
    found = bd_rate_interval(rate, score_a, rate, score_b)
    assert found.value is not None and found.interval is None


def test_comparable_scales():
    assert comparable(0.9, "ms-ssim-rgb") == pytest.approx(10)
    assert comparable(1.0, "ms-ssim-rgb") == pytest.approx(100) and comparable(None, "psnr-rgb") is None
    assert (comparable(0.3, "lpips", lower_is_better=True), comparable(31.0, "psnr-rgb")) == (-0.3, 31.0)


@pytest.mark.parametrize(("noisy", "falling"), [(True, False), (False, False), (False, True)])
def test_compare_noisy_and_falling_scores(noisy, falling):
    evaluator = SimpleNamespace(
        name="e", headline=("m",), lower_is_better=("m",) if falling else (), noisy=noisy, title=lambda metric: metric,
        per_image_scores=lambda metric, records: None,
    )  # fmt: skip
    scores = [1.0, 3.0, 2.5, 4.0] if noisy else [1.0, 2.0, 3.0, 4.0]

    def curve(name, factor):
        points = [SimpleNamespace(bpp=factor * 2.0**i, scores={"m": -s if falling else s}, records={"e": {}})
                  for i, s in enumerate(scores)]  # fmt: skip
        return SimpleNamespace(name=name, points=points)

    rows = compare(SimpleNamespace(evaluators=[evaluator], items=[]), [curve("a", 1.0), curve("b", 2.0)])
    rates = {(row["reference"], row["test"]): row["rate"]["value"] for row in rows}
    assert rates == {("a", "b"): pytest.approx(100), ("b", "a"): pytest.approx(-50)}


def test_compare_uses_the_same_images_in_rates_and_scores():
    """An image without a score (MS-SSIM of a small image, agreement without objects) is left out of the rates, too."""
    evaluator = SimpleNamespace(name="e", headline=("m",), lower_is_better=(), noisy=False, title=lambda metric: metric,
                                per_image_scores=lambda metric, records: records)  # fmt: skip

    def curve(name, factor, absent):
        points = []
        for i in range(4):
            records = {"x": 10.0 + i, "y": 20.0 + i}
            records.pop(absent, None)
            rates = {"x": factor * 2.0**i, "y": 100 + i, "z": 50.0}
            points.append(SimpleNamespace(rates=rates, bpp=sum(rates.values()) / 3, records={"e": records},
                                          scores={"m": 5.0}))  # fmt: skip
        return SimpleNamespace(name=name, points=points)

    def rates(absent):
        items = [SimpleNamespace(key=key) for key in "xyz"]
        return [row["rate"] for row in compare(
            SimpleNamespace(evaluators=[evaluator], items=items), [curve("a", 1.0, "y"), curve("b", 2.0, absent)]
        )]  # fmt: skip

    assert [rate["value"] for rate in rates(None)] == [pytest.approx(100), pytest.approx(-50)]
    assert rates("x")[0]["note"] == "not measured"  # no image has a score in both curves
