"""Comparisons against worked examples: intervals, cost to accuracy, Shapley shares, run folders."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script
from hypothesis import given
from hypothesis import strategies as st

from lab import compare
from lab.compare import Interval, cost_to_hold, mean_interval, paired, shapley_r2


def test_the_interval_by_hand():
    found = mean_interval([1.0, 2.0, 3.0])  # standard error 1 / sqrt 3, t of two degrees of freedom 4.303
    assert (found.mean, found.count) == (2.0, 3)
    assert found.high - 2 == pytest.approx(4.303 / 3**0.5) == 2 - found.low
    assert mean_interval([0.5]) == Interval(0.5, None, None, 1) and mean_interval([]) is None
    assert str(found) == "2.000 [-0.484, 4.484]" and str(mean_interval([0.5])) == "0.500"


def test_the_interval_holds_the_truth_19_times_in_20():
    rng = np.random.default_rng(0)
    found = [mean_interval(row) for row in rng.normal(1.0, 2.0, (4000, 5))]
    assert np.mean([i.low <= 1.0 <= i.high for i in found]) == pytest.approx(0.95, abs=0.012)


def test_pairing_removes_what_a_seed_has_in_common():
    base = {0: 0.1, 1: 0.5, 2: 0.9, 3: 0.0}
    found = paired({0: 0.2, 1: 0.6, 2: 1.0, 7: 5.0}, base)
    assert found.count == 3 and found.low == pytest.approx(0.1) == found.high
    assert paired({7: 1.0}, base) is None


@pytest.mark.parametrize(
    "values, target, cost",
    [
        ([0.2, 0.4, 0.6], 0.5, 15.0),  # halfway between the evaluations at 10 and 20
        ([0.2, 0.4, 0.6], 0.6, 20.0),
        ([0.2, 0.4, 0.6], 0.7, None),
        ([0.5, 0.4, 0.6], 0.5, 0.0),  # held from the start: the mean is 0.5
        ([0.2, 0.6, 0.3], 0.5, None),  # a lucky evaluation: the mean from there on is 0.45
        ([0.2, 0.6, 0.49], 0.5, 7.5),  # an unlucky one later: the mean is 0.545
        ([0.6, 0.1, 0.7], 0.5, 16.666666),
    ],
)
def test_cost_to_hold_by_hand(values, target, cost):
    assert cost_to_hold([0.0, 10.0, 20.0], values, target) == (cost if cost is None else pytest.approx(cost))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_a_run_always_holds_its_own_end(values):
    """GRPO therefore always holds its own final pass@1, at the latest at the end."""
    costs = [float(i) for i in range(len(values))]
    found = cost_to_hold(costs, values, float(np.mean(values[-compare.FINAL_EVALUATIONS :])))
    assert found is not None and 0 <= found <= costs[-1]


def test_shapley_shares_of_independent_features_are_their_own_r2():
    design = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], float)
    shares = shapley_r2(design, design @ [3.0, 0.0, 4.0])
    assert shares == pytest.approx([9 / 25, 0.0, 16 / 25])


def test_shapley_shares_of_twins_are_equal_and_sum_to_r2():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    x[:, 1] = x[:, 0]
    y = x[:, 0] + x[:, 2] + rng.normal(size=40)
    shares = shapley_r2(x, y)
    design = np.column_stack([np.ones(40), x])
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    assert shares[0] == pytest.approx(shares[1])
    assert sum(shares) == pytest.approx(1 - residual.var() / y.var())
    assert shapley_r2(x[:4], y[:4]) is None and shapley_r2(x, np.ones(40)) is None


REWARDS = ("length", "difficulty", "notion")


def write_run(folder: Path, variant: str, seed: int, tokens: list[int], accuracy: list[float], meta=0) -> Path:
    """Write a run folder as train.py leaves it, as far as a comparison reads it. meta: predictions for each problem."""
    path = folder / variant / f"seed-{seed}"
    path.mkdir(parents=True)
    options: dict = {
        "algo": "masa" if meta else "grpo",
        "seed": seed,
        "model": "tiny",
        "data": "arithmetic",
        "samples": 4,
    }
    options |= {"predictions": meta, "gate": "both", "gate_margin": 0.1, "cutoff": 2.0}
    (path / "config.json").write_text(json.dumps(options))
    rows, evaluations = [], []
    for step, (spent, value) in enumerate(zip(tokens, accuracy, strict=True)):
        row = {"step": step, "tokens_solution": spent, "tokens_meta": 0, "tokens_zero_variance": spent // 4}
        rewards = {f"eval_reward_{name}": value * (i + 1) for i, name in enumerate(REWARDS)}
        rows.append(row | {"rollouts": 2 * spent, "flops": 10 * spent, "eval_pass1": value} | rewards)
        evaluations.append({"step": step, "training_s": spent / 100, "problems": []})
    write_rows(path / "metrics.jsonl", rows)
    write_rows(path / "evaluations.jsonl", evaluations)
    return path


def write_rows(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_comparison_by_hand(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "grpo", seed, [0, 100, 200], [0.2, 0.4, 0.6])  # their mean, 0.4, is to be held
        write_run(tmp_path, "oracle-gate", seed, [0, 50, 100], [0.2, 0.4, 0.6])  # half of the cost
        write_run(tmp_path, "thrifty", seed, [0, 75, 150], [0.2, 0.4, 0.6])  # three quarters
        write_run(tmp_path, "weak", seed, [0, 50, 100], [0.2, 0.3, 0.39])
    result = compare.compare(compare.find_runs([tmp_path]))
    variants = result["variants"]
    assert list(variants) == ["grpo", "oracle-gate", "thrifty", "weak"]
    assert variants["thrifty"]["difference"].mean == 0 and variants["weak"]["difference"].mean == pytest.approx(-0.21)
    # At 100 tokens, what the thriftiest spend: GRPO 0.4, the oracle 0.6, thrifty 0.4 + 0.2 / 3
    assert variants["grpo"]["pass1_equal_tokens"].mean == pytest.approx(0.4)
    assert variants["thrifty"]["pass1_equal_tokens"].mean == pytest.approx(0.4 + 0.2 / 3)
    for cost in compare.COSTS:
        assert variants["grpo"]["cost"][cost]["ratio"].mean == pytest.approx(1)
        assert variants["oracle-gate"]["cost"][cost]["ratio"].mean == pytest.approx(2)
        assert variants["thrifty"]["cost"][cost]["ratio"].mean == pytest.approx(4 / 3)
        assert variants["thrifty"]["cost"][cost]["share_of_oracle"] == pytest.approx(0.5)
    assert variants["weak"]["cost"]["tokens"] == {"held": 0, "seeds": 2, "ratio": None, "share_of_oracle": None}
    text = run_script("lab.compare", str(tmp_path)).stdout
    assert "| thrifty " in text and "50%" in text and "0 of 2" in text


def test_without_grpo_nothing_is_compared_to_it(tmp_path):
    write_run(tmp_path, "masa", 0, [0, 100], [0.2, 0.4], meta=4)
    result = compare.compare(compare.find_runs([tmp_path]))
    assert not result["baseline"] and "GRPO" not in compare.markdown(result)


def test_awareness_is_that_of_the_last_evaluations_of_all_seeds(tmp_path, monkeypatch):
    """Two problems, one a seed: predicted 1 and 0, correct 4 and 1 of 4; the gate skips both and is right once."""
    for package in ("sklearn", "sklearn.calibration", "matplotlib"):  # the table of ablate.py does without them
        monkeypatch.setitem(sys.modules, package, None)
    for seed, (rate, right) in enumerate([(1.0, 4), (0.0, 1)]):
        path = write_run(tmp_path, "masa", seed, [0, 100], [0.2, 0.4], meta=1)
        problem = {"predictions": [{"pass_rate": rate, "solution_length": 10, "notions": []}], "tokens_meta": 2}
        problem |= {"rewards": [{"length": 1.0, "difficulty": 1.0, "notion": 0.5}], "lengths": [10, 9, 8, 25]}
        last = {"step": 1, "training_s": 9.0, "problems": [problem | {"correct": [1] * right + [0] * (4 - right)}]}
        write_rows(path / "evaluations.jsonl", [{"step": 0, "training_s": 0.0, "problems": []}, last])
    result = compare.compare(compare.find_runs([tmp_path]))
    found = result["variants"]["masa"]["awareness"]
    assert found["problems"] == 2 and found["pass_rate"]["mean_error"] == pytest.approx(0.125)
    assert (found["gate"]["share_skipped"], found["gate"]["precision"], found["gate"]["recall"]) == (1.0, 0.5, 1.0)
    titled = {title: dict(zip(head, rows[0], strict=True)) for title, head, rows in compare.tables(result)}
    gate = next(row for title, row in titled.items() if "Gate and cutoff" in title)
    assert gate["gate: precision"] == "0.500" and gate["cutoff: correct in 100 cut"] == "50.000"
    predictions = next(row for title, row in titled.items() if title.startswith("Predictions"))
    assert predictions["rewards: notion"] == "0.500" and predictions["pass rate: correlation"] == "1.000"


def test_shapley_is_over_runs_that_predict(tmp_path):
    for seed in range(6):
        write_run(tmp_path, "masa", seed, [0, 100], [0.2, 0.4 + seed / 20], meta=4)
    result = compare.compare(compare.find_runs([tmp_path]))
    assert result["shapley_runs"] == 6 and sum(result["shapley"].values()) == pytest.approx(1)


def test_a_run_begun_before_a_reward_existed_is_left_out_in_words(tmp_path):
    for seed in range(7):
        path = write_run(tmp_path, "masa", seed, [0, 100], [0.2, 0.4 + seed / 20], meta=4)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for row in rows if seed else []:
            row |= {"eval_reward_confidence": 0.5 + seed**2, "flops": None}
        write_rows(path / "metrics.jsonl", rows)
    runs = compare.find_runs([tmp_path])
    assert compare.reward_names(runs) == [*REWARDS, "confidence"]
    result = compare.compare(runs)
    assert result["shapley_runs"] == 6 and list(result["shapley"]) == [*REWARDS, "confidence"]
    assert f"{runs[0].path}: metrics.jsonl has no eval_reward_confidence" in compare.markdown(result)
    assert runs[0].costs("flops") == [0, 1000] and runs[1].costs("flops") == []


def test_columns_are_averaged_over_seeds_and_steps(tmp_path):
    write_run(tmp_path, "grpo", 0, [0, 100, 200, 600], [0.1, 0.2, 0.3, 0.4])
    write_run(tmp_path, "grpo", 1, [0, 300, 400, 800], [0.1, 0.2, 0.3, 0.4])
    arguments = ("--columns", "rollouts,eval_pass1", "--first", "2", "--last", "1", "--step", "2")
    shown = run_script("lab.compare", str(tmp_path), *arguments).stdout.splitlines()
    cells = [cell.strip() for cell in shown[-1].split("|")[1:-1]]  # step 0 is before training
    assert cells == ["grpo", "500.000", "1400.000", "600.000", "0.250", "0.400", "0.300"]
    each = run_script("lab.compare", str(tmp_path), "--columns", "rollouts", "--each").stdout
    assert "seed-0 | 600.000" in each and "seed-1 | 1000.000" in each
    assert "mood" in run_script("lab.compare", str(tmp_path), "--columns", "rollouts,mood").stderr


def test_two_runs_of_one_variant_and_seed_are_refused(tmp_path):
    write_run(tmp_path / "a", "grpo", 0, [0, 100], [0.2, 0.4])
    write_run(tmp_path / "b", "grpo", 0, [0, 100], [0.2, 0.4])
    finished = run_script("lab.compare", str(tmp_path))
    assert finished.status == 1 and "both grpo with seed 0" in finished.stderr


def test_what_is_no_run_is_named(tmp_path):
    assert "no metrics.jsonl" in run_script("lab.compare", str(tmp_path)).stderr
    path = write_run(tmp_path, "grpo", 0, [0], [0.2])
    for config in ('{"seed": 0, "algo": "grpo", "gate": true}', "not json"):
        (path / "config.json").write_text(config)
        finished = run_script("lab.compare", str(tmp_path))
        assert finished.status == 1 and str(path) in finished.stderr and "Traceback" not in finished.stderr


def test_the_table_shows_when_runs_differ_in_length(tmp_path):
    write_run(tmp_path, "grpo", 0, [0, 100], [0.2, 0.4])
    write_run(tmp_path, "grpo", 1, [0, 100, 200], [0.2, 0.4, 0.5])
    write_run(tmp_path, "masa", 0, [0, 100], [0.2, 0.4])
    _, head, rows = compare.tables(compare.compare(compare.find_runs([tmp_path])))[0]
    assert {row[0]: row[head.index("steps")] for row in rows} == {"grpo": "1 to 2", "masa": "1"}
