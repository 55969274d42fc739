"""Comparisons against worked examples: intervals, cost to accuracy, Shapley shares, run folders."""

import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script
from hypothesis import given
from hypothesis import strategies as st

from engine.run_folder import read_rows
from lab import compare
from lab.compare import Interval, cost_to_hold, mean_interval, paired, shapley_r2


def test_the_interval_by_hand():
    found = mean_interval([1.0, 2.0, 3.0])  # standard error 1 / sqrt 3, t of two degrees of freedom 4.303
    assert (found.mean, found.n) == (2.0, 3)
    assert found.high - 2 == pytest.approx(4.303 / 3**0.5) == 2 - found.low
    assert mean_interval([0.5]) == Interval(1, 0.5, -np.inf, np.inf) and mean_interval([]) is None
    assert str(found) == "2.000 [-0.484, 4.484]" and str(mean_interval([0.5])) == "0.500"


def test_the_interval_holds_the_truth_19_times_in_20():
    rng = np.random.default_rng(0)
    found = [mean_interval(row.tolist()) for row in rng.normal(1.0, 2.0, (4000, 5))]
    assert np.mean([i.low <= 1.0 <= i.high for i in found]) == pytest.approx(0.95, abs=0.012)


def test_pairing_removes_what_a_seed_has_in_common():
    base = {0: 0.1, 1: 0.5, 2: 0.9, 3: 0.0}
    found = paired({0: 0.2, 1: 0.6, 2: 1.0, 7: 5.0}, base)
    assert found.n == 3 and found.low == pytest.approx(0.1) == found.high
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


HOLDING = "seeds that hold the baseline's pass@1"
REWARDS = ("length", "difficulty", "notion")


def write_run(folder: Path, variant: str, seed: int, tokens: list[int], accuracy: list[float], meta=0) -> Path:
    """Write a run folder as train.py leaves it, as far as a comparison reads it. meta: predictions for each problem."""
    path = folder / variant / f"seed-{seed}"
    path.mkdir(parents=True)
    options: dict = {"algo": "masa" if meta else "grpo", "seed": seed, "model": "tiny", "data": "arithmetic"}
    options |= {"samples": 4, "predictions": meta, "gate": "both", "gate_margin": 0.1, "cutoff": 2.0}
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


def tables(folder: Path) -> list[dict[str, dict]]:
    """Return the tables of the runs in a folder, each as {what its first column says: row}."""
    found, _ = compare.compare(compare.find_runs([folder]))
    return [{next(iter(row.values())): row for row in rows} for rows in found.values()]


def test_a_comparison_by_hand(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "grpo", seed, [0, 100, 200], [0.2, 0.4, 0.6])  # their mean, 0.4, is to be held
        write_run(tmp_path, "oracle-gate", seed, [0, 50, 100], [0.2, 0.4, 0.6])  # half of the cost
        write_run(tmp_path, "thrifty", seed, [0, 75, 150], [0.2, 0.4, 0.6])  # three quarters
        write_run(tmp_path, "weak", seed, [0, 50, 100], [0.2, 0.3, 0.39])
    variants, text = tables(tmp_path)[0], run_script("lab.compare", str(tmp_path)).stdout
    assert list(variants) == ["grpo", "oracle-gate", "thrifty", "weak"]
    differences = {name: variants[name]["pass@1 minus the baseline's"].mean for name in ("thrifty", "weak")}
    assert differences == {"thrifty": 0, "weak": pytest.approx(-0.21)}
    # At 100 tokens, what the thriftiest spend: GRPO 0.4, the oracle 0.6, thrifty 0.4 + 0.2 / 3
    assert variants["grpo"]["pass@1 at equal tokens"].mean == pytest.approx(0.4)
    assert variants["thrifty"]["pass@1 at equal tokens"].mean == pytest.approx(0.4 + 0.2 / 3)
    assert variants["thrifty"]["the same at equal tokens"].mean == pytest.approx(0.2 / 3)
    for cost in compare.COSTS:
        assert variants["oracle-gate"][f"x fewer {cost}"].mean == pytest.approx(2)
        assert variants["thrifty"][f"x fewer {cost}"].mean == pytest.approx(4 / 3)
    columns = (HOLDING, "x fewer tokens", "share of the oracle's saving")
    assert [variants["weak"][column] for column in columns] == ["0 of 2", None, None]
    assert variants["thrifty"][columns[-1]] == "50%" and HOLDING not in variants["grpo"]
    assert "| thrifty " in text and "50%" in text and "0 of 2" in text
    found, _ = compare.compare(compare.find_runs([tmp_path]), baseline="thrifty")
    first, grpo, *_ = next(iter(found.values()))
    assert first["variant"] == "thrifty" and grpo["x fewer tokens"].mean == pytest.approx(3 / 4)


def test_figures_of_training_are_means_over_the_last_20_steps(tmp_path):
    path = write_run(tmp_path, "grpo", 0, [0] * 31, [0.5] * 31)
    rows = [row | {"entropy": row["step"], "grad_norm": None} for row in read_rows(path / "metrics.jsonl")]
    write_rows(path / "metrics.jsonl", rows)
    assert tables(tmp_path)[-1]["grpo"] == {"variant": "grpo", "entropy": 20.5}  # of steps 11 to 30


def test_without_its_baseline_nothing_is_compared(tmp_path):
    write_run(tmp_path, "masa", 0, [0, 100], [0.2, 0.4], meta=4)
    [accuracy] = tables(tmp_path)
    assert not any("baseline" in column or "x fewer" in column for column in accuracy["masa"])
    assert "expected one of masa" in run_script("lab.compare", str(tmp_path), "--baseline", "dapo").stderr


def test_awareness_is_that_of_the_last_evaluations_of_all_seeds(tmp_path, monkeypatch):
    """Two problems, one a seed: predicted 1 and 0, correct 4 and 1 of 4; the gate skips both and is right once."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # the table of ablate.py does without it
    for seed, (rate, right) in enumerate([(1.0, 4), (0.0, 1)]):
        path = write_run(tmp_path, "masa", seed, [0, 100], [0.2, 0.4], meta=1)
        problem = {"predictions": [{"pass_rate": rate, "solution_length": 10, "notions": []}], "tokens_meta": 2}
        problem |= {"rewards": [{"length": 1.0, "difficulty": 1.0, "notion": 0.5}], "lengths": [10, 9, 8, 25]}
        last = {"step": 1, "training_s": 9.0, "problems": [problem | {"correct": [1] * right + [0] * (4 - right)}]}
        write_rows(path / "evaluations.jsonl", [{"step": 0, "training_s": 0.0, "problems": []}, last])
    path = write_run(tmp_path, "masa-read", 0, [0, 100], [0.2, 0.4])  # no prediction is drawn, not even in evaluation
    believed = {"predictions": [], "rewards": [], "belief": [0.9, *[0.0] * 7, 0.1], "lengths": [9] * 4}
    last = {"step": 1, "problems": [believed | {"correct": [0] * 4}, believed | {"correct": [1] * 4}]}
    write_rows(path / "evaluations.jsonl", [last])
    [_, figures] = tables(tmp_path)
    read = [figures[f"gate, read: {name}"]["masa-read"] for name in ("share skipped", "recall of the hopeless")]
    assert read == [1.0, 1.0] and figures["said: mean error"]["masa-read"] is None
    found = {label: row["masa"] for label, row in figures.items()}
    assert found["problems: held out"] == 2 and found["said: mean error"] == pytest.approx(0.125)
    assert [found[f"gate, said: {name}"] for name in ("share skipped", "precision", "recall")] == [1.0, 0.5, 1.0]
    assert found["cutoff: correct in 100 cut"] == 50
    assert found["rewards: notion"] == 0.5 and found["said: correlation"] == pytest.approx(1)


def test_a_run_begun_before_a_reward_existed_is_left_out_in_words(tmp_path):
    for seed in range(2):
        path = write_run(tmp_path, "masa", seed, [0, 100], [0.2, 0.4 + seed / 20], meta=4)
        more = {"eval_reward_confidence": 0.5 + seed**2} if seed else {}
        write_rows(path / "metrics.jsonl", [row | more for row in read_rows(path / "metrics.jsonl")])
    write_run(tmp_path, "grpo", 0, [0, 100], [0.2, 0.4])
    runs = compare.find_runs([tmp_path])
    assert list(compare.reward_columns(runs).values()) == [*REWARDS, "confidence"]
    _, sentences = compare.compare(runs)
    lacking = "{}: metrics.jsonl has no eval_reward_confidence; figures that need it leave this run out."
    assert sentences == [lacking.format(run.path) for run in runs[:2]]
    assert tables(tmp_path)[0]["masa"][HOLDING] == "1 of 1"


def test_a_change_of_the_pass_rate_is_shared_out_among_rewards_and_step(tmp_path):
    """Between two evaluations of 8 problems, 3 of 8 solutions come with the notions and 4 with the difficulty."""
    path = write_run(tmp_path, "masa", 0, [0, 100], [0.2, 0.4], meta=1)
    after = [dict(zip(REWARDS, bits, strict=True)) for bits in product((0.0, 1.0), repeat=3)]
    counts = [round(3 * row["notion"] + 4 * row["difficulty"]) for row in after]
    late = [{"rewards": [row], "correct": [1] * c + [0] * (8 - c)} for row, c in zip(after, counts, strict=True)]
    early = [{"rewards": [dict.fromkeys(REWARDS, 0.0)], "correct": [0] * 8} for _ in after]
    for problem in early + late:
        problem |= {"predictions": [None], "lengths": [9] * 8}
    write_rows(path / "evaluations.jsonl", [{"step": i, "problems": p} for i, p in enumerate((early, late))])
    found, _ = compare.compare(compare.find_runs([tmp_path]))
    [[row]] = [rows for title, rows in found.items() if " 8 changes" in title]
    assert row.pop("R²") == pytest.approx(1)
    assert row == {"length": "0.0%", "difficulty": "64.0%", "notion": "36.0%", "step": "0.0%"}


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


def test_costs_are_compared_at_any_level(tmp_path):
    write_run(tmp_path, "grpo", 0, [0, 100, 200], [0.0, 0.5, 1.0])
    write_run(tmp_path, "masa", 0, [0, 100, 200], [0.0, 1.0, 1.0])
    printed = run_script("lab.compare", str(tmp_path), "--level", "0.75").stdout
    # GRPO reaches 0.75 at 150 tokens, half way from 100 to 200, and MASA at 75
    assert [line.split("|")[2].strip() for line in printed.splitlines()[2:]] == ["1.000", "2.000"]


def test_what_cannot_be_compared_is_named(tmp_path):
    def refused() -> str:
        finished = run_script("lab.compare", str(tmp_path))
        assert finished.status == 1 and "Traceback" not in finished.stderr
        return finished.stderr

    assert "no metrics.jsonl" in refused()
    path = write_run(tmp_path / "a", "grpo", 0, [0, 100], [0.2, 0.4])
    write_run(tmp_path / "b", "grpo", 0, [0, 100], [0.2, 0.4])
    assert "both grpo with seed 0" in refused()
    for file, text in (("metrics.jsonl", ""), ("config.json", "{}"), ("config.json", "not json")):
        (path / file).write_text(text)
        assert str(path) in refused()


def test_the_table_shows_when_runs_differ_in_length(tmp_path):
    write_run(tmp_path, "grpo", 0, [0, 100], [0.2, 0.4])
    write_run(tmp_path, "grpo", 1, [0, 100, 200], [0.2, 0.4, 0.5])
    write_run(tmp_path, "masa", 0, [0, 100], [0.2, 0.4])
    assert {name: row["steps"] for name, row in tables(tmp_path)[0].items()} == {"grpo": "1 to 2", "masa": "1"}
