"""Meta-awareness against worked examples, scikit-learn and simulation."""

import dataclasses
import json
from itertools import combinations

import numpy as np
import pytest
from conftest import run_script
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from lab import awareness as aw
from masa import MetaPrediction

outcomes = st.lists(  # (predicted, right, drawn) of each problem
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.integers(0, 64).map(lambda k: k / 64), st.integers(0, n), st.just(n))
    ),
    min_size=1,
    max_size=20,
)


@given(outcomes)
def test_calibration_equals_that_of_scikit_learn(cases):
    predicted, correct, drawn = map(np.array, zip(*cases, strict=True))
    each = np.concatenate([[1] * c + [0] * (n - c) for _, c, n in cases])
    claimed = np.repeat(predicted, drawn)
    assert aw.brier_score(predicted, correct, drawn) == pytest.approx(brier_score_loss(each, claimed))
    actual, mean_claimed = calibration_curve(each, claimed, n_bins=aw.BINS)
    assert aw.reliability(predicted, correct, drawn)[:2] == pytest.approx(np.array([mean_claimed, actual]))
    weights = np.histogram(claimed, np.linspace(0, 1, aw.BINS + 1) + 1e-12)[0]  # a bin includes its upper end, as there
    weights[0] += sum(claimed <= 1e-12)
    error = np.abs(mean_claimed - actual) @ weights[weights > 0] / len(each)
    assert aw.calibration_error(predicted, correct, drawn) == pytest.approx(error)


def test_calibration_by_hand():
    # Bins (0.1 to 0.2: 8 solutions, 2 correct), (0.7 to 0.8: 4 solutions, all correct)
    counts = np.array([0.15, 0.15, 0.75]), np.array([1, 1, 4]), np.array([4, 4, 4])
    assert aw.reliability(*counts).tolist() == [[pytest.approx(0.15), 0.75], [0.25, 1.0], [8, 4]]
    assert aw.calibration_error(*counts) == pytest.approx((8 * 0.10 + 4 * 0.25) / 12)


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
    precisions = [aw.oracle_gate(weights, 16, share)["precision"] for share in (0.25, 0.5, 1.0)]
    assert precisions == pytest.approx([1.0, 1.0, 0.5 + 2**-16], abs=1e-9)


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
        bounds[name] = aw.oracle_gate(aw.rate_distribution(right, [16] * len(right)), 16, skip.mean())
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


def problem(rates: list, correct: list[int], lengths: list[int], length: int = 10, notion: float = 0.5, **more) -> dict:
    predictions = [
        rate if rate is None else {"pass_rate": rate, "solution_length": length, "notions": []} | more for rate in rates
    ]
    rewards = [{"length": 0.0, "difficulty": 0.0, "notion": notion if rate is not None else 0.0} for rate in rates]
    row = {"predictions": predictions, "rewards": rewards, "correct": correct, "lengths": lengths, "tokens_meta": 22}
    return row | {"problem": f"{rates} {correct}", "level": len(rates)}


PROBLEMS = [
    problem([1.0, 1.0], [1, 1, 1, 1], [8, 9, 10, 12]),  # gated, rightly
    problem([0.0, 0.0], [1, 0, 0, 0], [11, 30, 25, 9], notion=1.0),  # gated, wrongly: one right answer lost
    problem([0.5, 0.5], [0, 0, 0, 0], [21, 20, 40, 5]),  # not gated, though all wrong
    problem([None, None], [1, 1, 0, 0], [50, 6, 7, 8]),  # nothing parsed: never gated, no limit
    problem([0.0, 1.0], [1, 1, 0, 0], [22, 6, 7, 8], length=11),  # they disagree: never gated
]


def test_gate_by_hand():
    gate = aw.awareness(PROBLEMS, group=4, gate="both")["gate, said"]
    assert (gate["precision"], gate["recall"], gate["share_skipped"]) == (0.5, 0.5, 0.4)
    assert gate["recall_of_the_hopeless"] == 0
    hopeless = aw.awareness(PROBLEMS, group=4, gate="off")  # judged as it would act: it skips only the second problem
    assert (hopeless["gate, said"]["precision"], hopeless["gate, said"]["share_skipped"]) == (0.0, 0.2)


def test_what_is_read_by_hand():
    """Beliefs of all wrong 0.97, 0.95, 0 and of all right 0, 0.05, 0.96; really 0, 1 and 4 of 4 are right."""
    beliefs = [[0.97, 0.03] + [0.0] * 7, [0.95] + [0.0] * 7 + [0.05], [0.0] * 7 + [0.04, 0.96]]
    counts = ([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1])
    rows = [problem([], right, [9] * 4) | {"belief": b} for b, right in zip(beliefs, counts, strict=True)]
    found = aw.awareness(rows, group=4)
    errors = [0.03 / 8, 0.25 - 0.05, 1 - (0.96 + 0.04 * 7 / 8)]
    assert found["read"]["mean_error"] == pytest.approx(sum(errors) / 3) and "said" not in found
    gate = {gate: aw.awareness(rows, group=4, gate=gate)["gate, read"] for gate in ("hopeless", "both")}
    assert [gate["hopeless"][name] for name in ("precision", "recall", "recall_of_the_hopeless")] == [0.5, 0.5, 1.0]
    assert [gate["both"][name] for name in ("share_skipped", "precision", "recall")] == [1.0, pytest.approx(2 / 3), 1.0]


def test_cutoff_by_hand():
    """Limits 20, 20, 20, none and 22: beyond are 30, 25, 21 and 40, all wrong; eleven solutions are wrong in all."""
    cutoff = aw.awareness(PROBLEMS, group=4)["cutoff"]
    assert cutoff["share_cut"] == 4 / 20 and cutoff["correct_in_100_cut"] == 0
    assert cutoff["precision"] == 1.0 and cutoff["recall"] == pytest.approx(4 / 11)
    tight = aw.awareness(PROBLEMS, group=4, cutoff=1.0)["cutoff"]
    assert tight["correct_in_100_cut"] == 100 * 3 / 8  # 12, 11 and 22 are correct, and longer than 10, 10 and 11


def test_the_other_figures_by_hand():
    result = aw.awareness(PROBLEMS, group=4)
    assert result["problems"] == {"held_out": 5, "predicted": 4, "pass@1": pytest.approx(9 / 20)}
    rate = result["said"]  # predicted 1, 0, 0.5, 0.5 and actual 1, 0.25, 0, 0.5
    assert rate["mean_error"] == pytest.approx((0 + 0.25 + 0.5 + 0) / 4)
    assert rate["Brier_score"] == pytest.approx((0 + 1 + 4 * 0.25 + 4 * 0.25) / 16)
    assert rate["Brier_score_of_a_constant"] == pytest.approx(7 / 16 * 9 / 16)
    assert rate["spread"] == pytest.approx(np.std([1, 0, 0.5, 0.5]))
    # Correct lengths 8-12, 11 alone, 6-22: 10 and 10 are in, 10 and 10 out, 11 and 11 in; medians 9.5, 11, 14
    assert result["length"]["share_within_correct_lengths"] == pytest.approx(4 / 6)
    assert result["length"]["mean_error_in_tokens"] == pytest.approx((0.5 + 1 + 3) / 3)
    assert result["rewards"]["notion"] == pytest.approx((2 * 0.5 + 2 * 1.0 + 4 * 0.5) / 8)


def test_no_predictions_leave_no_figures():
    result = aw.awareness([problem([], [1, 0], [5, 6]), problem([None], [0, 0], [5, 6])], group=2)
    assert result["length"] == {} == result["rewards"] and result["cutoff"]["correct_in_100_cut"] is None
    assert not {"said", "read", "gate, said", "gate, read"} & set(result)


def test_a_fourth_prediction_has_figures_and_old_rows_can_still_be_read(monkeypatch):
    fourth = dataclasses.make_dataclass("Fourth", [("confidence", float | None)], bases=(MetaPrediction,), frozen=True)
    monkeypatch.setattr(aw, "MetaPrediction", fourth)
    new = problem([0.5], [1, 0, 0, 0], [9] * 4, confidence=0.25)
    new["rewards"][0]["confidence"] = 0.75
    old = problem([0.5], [1, 0, 0, 0], [9] * 4, mood="good")
    assert aw.read_predictions(new) == [fourth(0.5, 10, (), 0.25)]
    assert aw.read_predictions(old) == [fourth(0.5, 10, (), None)]
    found = aw.awareness([new, old], group=4)
    assert found["rewards"]["confidence"] == 0.75 and found["rewards"]["notion"] == 0.5
    assert aw.read_predictions({"predictions": [{"pass_rate": 0.5, "notions": []}]}) == [None]  # no length to act on


def test_a_table_is_aligned_and_shows_what_is_undefined():
    rows = aw.figure_rows({"before": {"gate": {"n 1": None, "n_2": 5}}, "after": {"gate": {"n 1": 0.5}}})
    lines = ["| figure    | before | after |", "| --------- | ------ | ----- |"]
    assert aw.aligned(rows).splitlines() == [*lines, "| gate: n 1 | -      | 0.500 |", "| gate: n 2 | 5      | -     |"]
    assert aw.cells([{"a": 1}, {"a": 2, "b": "x"}]) == [["a", "b"], ["1", ""], ["2", "x"]]


def test_the_command_shows_a_run_before_and_after_by_level(tmp_path):
    rows = [{"step": step, "problems": PROBLEMS} for step in (0, 40, 80)]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def shown(*arguments: str) -> dict[str, list[str]]:
        title, _, *lines = run_script("lab.awareness", str(tmp_path), *arguments).stdout.splitlines()
        assert title == aw.ON_PAPER
        return {
            label.strip(): [cell.strip() for cell in cells] for _, label, *cells, _ in (x.split("|") for x in lines)
        }

    first_and_last = shown("--gate", "both", "--group", "4")
    assert first_and_last["figure"] == ["step 0", "step 80"] and first_and_last["gate, said: precision"] == [
        "0.500",
        "0.500",
    ]
    assert shown("--every")["figure"] == ["step 0", "step 40", "step 80"]
    assert shown("--levels", "2,3")["problems: held out"] == ["5", "5"]
    for arguments in ((str(tmp_path), "--levels", "7"), (str(tmp_path / "nothing"),)):
        finished = run_script("lab.awareness", *arguments)
        assert finished.status == 1 and f"{arguments[0]}: found no evaluation" in finished.stderr
