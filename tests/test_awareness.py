"""Meta-awareness against worked examples, scikit-learn and simulation."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from lab import awareness as aw

outcomes = st.lists(  # (predicted, right, drawn) of each problem
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.integers(0, 64).map(lambda k: k / 64), st.integers(0, n), st.just(n))
    ),
    min_size=1,
    max_size=20,
)


@given(outcomes)
def test_brier_score_and_reliability_curve_equal_those_of_scikit_learn(cases):
    predicted, right, drawn = map(np.array, zip(*cases, strict=True))
    each = np.concatenate([[1] * c + [0] * (n - c) for _, c, n in cases])
    claimed = np.repeat(predicted, drawn)
    assert aw.brier_score(predicted, right, drawn) == pytest.approx(brier_score_loss(each, claimed))
    actual, mean_claimed = calibration_curve(each, claimed, n_bins=aw.BINS)
    curve = aw.reliability_curve(predicted, right, drawn)
    assert [p for p, _, _ in curve] == pytest.approx(list(mean_claimed))
    assert [a for _, a, _ in curve] == pytest.approx(list(actual))
    assert sum(n for *_, n in curve) == len(each)


def test_calibration_error_by_hand():
    # Bins (.2: 8 solutions, 2 right), (.75: 4 solutions, all right): (8 x .05 + 4 x .25) / 12
    curve = aw.reliability_curve([0.15, 0.15, 0.75], [1, 1, 4], [4, 4, 4])
    assert curve == [(pytest.approx(0.15), 0.25, 8), (0.75, 1.0, 4)]
    assert aw.calibration_error(curve) == pytest.approx((8 * 0.10 + 4 * 0.25) / 12)


def test_a_constant_has_no_correlation():
    assert aw.correlation([1, 1, 1], [1, 2, 3]) is None and aw.correlation([1], [2]) is None
    assert aw.correlation([1, 2, 4], [-1, -2, -4]) == pytest.approx(-1)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_zero_variance_chance_equals_counting_all_groups(case):
    drawn, right, group = case
    groups = list(combinations([True] * right + [False] * (drawn - right), group))
    alike = sum(len(set(chosen)) == 1 for chosen in groups) / len(groups)
    assert aw.zero_variance_chance(right, drawn, group) == pytest.approx(alike)


def test_zero_variance_chance_is_unbiased():
    """Over many draws of 8 its mean is p^4 + (1-p)^4, where 8 solutions say nothing certain of groups of 4."""
    rng = np.random.default_rng(0)
    mean = np.mean([aw.zero_variance_chance(c, 8, 4) for c in rng.binomial(8, 0.8, 20_000)])
    assert mean == pytest.approx(0.8**4 + 0.2**4, abs=0.01)


def test_the_oracle_by_hand():
    """Half of the problems at p = 1/2, half at 1 in 0: 16 draws of these are alike, of those once in 32,768."""
    weights = np.zeros(len(aw.GRID))
    weights[[0, 100]] = 0.5
    skipped, hits = aw.oracle_curve(weights, 16)
    assert np.interp([0.25, 0.5, 1.0], skipped, hits) == pytest.approx([0.25, 0.5, 0.5 + 2**-16], abs=1e-9)


def test_no_gate_expects_more_than_the_oracle():
    """Simulated: a rule that knows the true rates, and one that sees noisy ones, against the estimated bound."""
    rng = np.random.default_rng(1)
    rates = np.concatenate([np.zeros(600), rng.beta(2, 2, 2000), rng.beta(20, 0.5, 1400)])
    right = rng.binomial(16, rates)
    useless = np.array([aw.zero_variance_chance(c, 16, 16) for c in right])
    edge = np.minimum(rates, 1 - rates)
    noisy = np.minimum(1, np.maximum(0, rates + rng.normal(0, 0.1, len(rates))))
    bounds = {}
    for name, distance in (("true", edge), ("noisy", np.minimum(noisy, 1 - noisy))):
        skip = distance <= 0.02
        bounds[name] = aw.oracle_gate(right, [16] * len(right), 16, skip.mean())["same_share"]
        bounds[name]["found"] = useless[skip].mean()
    assert bounds["true"]["found"] == pytest.approx(bounds["true"]["precision"], abs=0.02)
    assert bounds["noisy"]["found"] < bounds["noisy"]["precision"] - 0.02


def test_the_distribution_of_rates_is_found_again():
    rng = np.random.default_rng(2)
    right = rng.binomial(16, rng.choice([0.0, 0.5, 0.95], 3000))
    weights = aw.rate_distribution(right, [16] * 3000)
    assert weights.sum() == pytest.approx(1) and weights[0] == pytest.approx(1 / 3, abs=0.03)
    assert (weights * aw.GRID).sum() == pytest.approx((0.5 + 0.95) / 3, abs=0.02)
    assert (weights * aw.GRID**16).sum() == pytest.approx(0.95**16 / 3, abs=0.02)


def problem(rates: list, correct: list[int], lengths: list[int], length: int = 10, notion: float = 0.5) -> dict:
    predictions = [
        rate if rate is None else {"pass_rate": rate, "solution_length": length, "notions": []} for rate in rates
    ]
    rewards = [{"length": 0.0, "difficulty": 0.0, "notion": notion if rate is not None else 0.0} for rate in rates]
    return {"predictions": predictions, "rewards": rewards, "correct": correct, "lengths": lengths, "tokens_meta": 22}


PROBLEMS = [
    problem([1.0, 1.0], [1, 1, 1, 1], [8, 9, 10, 12]),  # gated, rightly
    problem([0.0, 0.0], [1, 0, 0, 0], [11, 30, 25, 9], notion=1.0),  # gated, wrongly: one right answer lost
    problem([0.5, 0.5], [0, 0, 0, 0], [21, 20, 40, 5]),  # not gated, though all wrong
    problem([None, None], [1, 1, 0, 0], [50, 6, 7, 8]),  # nothing parsed: never gated, no limit
    problem([0.0, 1.0], [1, 1, 0, 0], [22, 6, 7, 8], length=11),  # they disagree: never gated
]


def test_gate_by_hand():
    gate = aw.awareness(PROBLEMS, group=4, max_new_tokens=60)["gate"]
    assert (gate["precision"], gate["recall"], gate["share"]) == (0.5, 0.5, 0.4)
    assert gate["f1"] == pytest.approx(0.5) and gate["zero_variance_frac"] == 0.4
    assert gate["tokens_saved"] == 39 + 75 and gate["right_lost"] == 5 and gate["right"] == 9
    # Without a demand of agreement, margin 0 skips two and margin .5 four of which two are useless.
    assert gate["curves"]["all"] == [
        {"margin": 0.0, "precision": 0.5, "recall": 0.5, "f1": 0.5},
        {"margin": 0.5, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)},
    ]
    assert gate["curves"]["agreeing"][-1]["precision"] == pytest.approx(2 / 3)
    assert gate["best_f1"]["f1"] == pytest.approx(0.8)


def test_cutoff_by_hand():
    """Limits 20, 20, 20, 60 and 22: beyond are 30, 25, 21 and 40, all wrong; ten of the others are right or short."""
    cutoff = aw.awareness(PROBLEMS, group=4, max_new_tokens=60)["cutoff"]
    assert cutoff["cut"] == 4 and cutoff["right_lost"] == 0 and cutoff["tokens_saved"] == 10 + 5 + 1 + 20
    assert cutoff["precision"] == 1.0 and cutoff["recall"] == pytest.approx(4 / 11)
    tight = aw.awareness(PROBLEMS, group=4, cutoff_multiplier=1.0, max_new_tokens=60)["cutoff"]
    assert tight["right_lost"] == 1 + 1 + 1  # 12, 11 and 22 are right, and longer than 10, 10 and 11


def test_the_other_figures_by_hand():
    result = aw.awareness(PROBLEMS, group=4, max_new_tokens=60)
    assert result["problems"] == 5 and result["predicted"] == 4
    rate = result["pass_rate"]  # predicted 1, 0, .5, .5 and actual 1, .25, 0, .5
    assert rate["error"] == pytest.approx((0 + 0.25 + 0.5 + 0) / 4)
    assert rate["brier"] == pytest.approx((0 + 1 + 4 * 0.25 + 4 * 0.25) / 16)
    assert rate["brier_of_a_constant"] == pytest.approx(7 / 16 * 9 / 16)
    assert rate["spread"] == pytest.approx(np.std([1, 0, 0.5, 0.5]))
    # Right lengths 8-12, 11 alone, 6-22: 10 and 10 are in, 10 and 10 out, 11 and 11 in; medians 9.5, 11, 14
    assert result["length"]["in_range"] == pytest.approx(4 / 6)
    assert result["length"]["error_tokens"] == pytest.approx((0.5 + 1 + 3) / 3)
    assert result["notion_precision"] == pytest.approx((2 * 0.5 + 2 * 1.0 + 4 * 0.5) / 8)


def test_no_predictions_leave_no_figures():
    result = aw.awareness([problem([], [1, 0], [5, 6]), problem([None], [0, 0], [5, 6])], group=2)
    assert "pass_rate" not in result and result["notion_precision"] is None
    assert result["gate"]["share"] == 0 and result["gate"]["precision"] is None
    assert result["gate"]["best_f1"] is None and result["cutoff"]["cut"] == 0
    assert result["length"] == {"in_range": None, "correlation": None, "error_tokens": None}
