"""Evaluation figures against worked examples and brute force."""

import json
from itertools import combinations

import pytest
from conftest import run_script
from hypothesis import given
from hypothesis import strategies as st

from attempts import Attempt
from eval import bootstrap_interval, load_held_out, parse_arguments, pass_at_k, summarize
from masa import MetaPrediction
from problems import benchmarks
from problems.tasks import Problem
from rewards import AlignmentRewards
from rollout import Rollout


@pytest.mark.parametrize(
    "n, c, k, expected", [(4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 0, 4, 0.0), (4, 4, 1, 1.0), (4, 2, 3, 1.0)]
)
def test_pass_at_k_by_hand(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_equals_counting_all_subsets(case):
    n, c, k = case
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_the_impossible(n, c, k):
    with pytest.raises(ValueError, match="expected 0 <= c <= n"):
        pass_at_k(n, c, k)


def test_the_bootstrap_interval_is_about_two_standard_errors_wide():
    values = [0.0, 1.0] * 200  # standard error .5 / 20 = .025
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(0.5 - 0.049, abs=0.008) and high == pytest.approx(0.5 + 0.049, abs=0.008)
    assert bootstrap_interval([0.3] * 5) == pytest.approx((0.3, 0.3))


def attempt(level: int, correct: list[bool], lengths: list[int], reasons: list[str]) -> Attempt:
    solutions = [Rollout([1], [5] * n, [0.0] * n, reason) for n, reason in zip(lengths, reasons, strict=True)]
    return Attempt(
        Problem("p", "a", level),
        solutions=solutions,
        responses=[""] * len(correct),
        correct=correct,
        predictions=[MetaPrediction(0.5, 9, ()), None],
        alignments=[AlignmentRewards(1.0, 0.5, 0.25), AlignmentRewards()],
    )


def test_the_summary_by_hand():
    result = summarize(
        [
            attempt(1, [True, True], [4, 6], ["stop", "stop"]),
            attempt(2, [True, False], [5, 9], ["stop", "length"]),
        ]
    )
    assert result["pass1"] == 0.75
    assert result["pass_at_k"] == {"1": 0.75, "2": 1.0}
    assert result["pass1_by_level"] == {"1": 1.0, "2": 0.5}
    assert result["zero_variance_frac"] == 0.5
    assert result["mean_length"] == 6.0 and result["truncated_frac"] == 0.25
    assert result["parsed_frac"] == 0.5
    assert (result["reward_length"], result["reward_difficulty"], result["reward_notion"]) == (0.5, 0.25, 0.125)


def test_no_problems_is_an_error():
    with pytest.raises(ValueError, match="no problems"):
        summarize([])


def test_the_command_writes_what_it_prints(tmp_path):
    small = "--problems 6 --samples 4 --group 4 --hints --data arithmetic words --max-new-tokens 24 --out".split()
    finished = run_script("eval.py", *small, str(tmp_path))
    assert finished.status == 0, finished.stderr
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert [(result["model"], result["data"]) for result in results] == [("tiny", "arithmetic"), ("tiny", "words")]
    for result in results:
        assert f"pass@1            {result['pass1']:.3f}" in finished.stdout
        assert result["problems"] == 6 and result["verifier_timeouts"] == 0
        assert 0 <= result["greedy"] <= 1 and 0 <= result["pass1_with_hints"] <= 1
        assert result["vote_at_k"].keys() == result["pass_at_k"].keys()
        assert result["spending"]["with hints"][0]["tokens"] > 0
        assert result["spending"]["with hints"][-1]["samples"] == 4
    rows = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    for result, row in zip(results, rows, strict=True):
        rates = [sum(problem["correct"]) / len(problem["correct"]) for problem in row["problems"]]
        assert sum(rates) / len(rates) == pytest.approx(result["pass1"])


def test_without_predictions_there_is_no_awareness(tmp_path):
    small = "--problems 3 --samples 2 --predictions 0 --no-greedy --out".split()
    finished = run_script("eval.py", *small, str(tmp_path))
    (result,) = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert "awareness" not in result and result["greedy"] is None and set(result["spending"]) == {"the same for all"}
    assert "oracle" not in finished.stdout


def test_the_same_command_gives_the_same_figures(tmp_path):
    for name in ("a", "b"):
        run_script("eval.py", "--problems", "4", "--samples", "2", "--out", str(tmp_path / name))
    first, second = (json.loads((tmp_path / name / "eval.json").read_text())["results"] for name in ("a", "b"))
    assert first == second


@pytest.fixture
def listed(tmp_path):
    """A file of 150 problems of the levels 0, 1 and 2, and one without an answer."""
    records = [{"problem": f"What is {i}+{i}?", "answer": str(2 * i), "level": i % 3} for i in range(150)]
    path = tmp_path / "listed.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, {"problem": "?", "answer": ""}]))
    return str(path)


@pytest.mark.parametrize("flags, count", [("--whole", 150), ("--whole --levels 0,2", 100), ("--problems 3", 3)])
def test_of_a_file_all_or_as_many_as_asked_for(listed, flags, count, capsys):
    problems = load_held_out(listed, parse_arguments(flags.split()))
    assert len(problems) == count
    assert {problem.level for problem in problems} <= ({0, 2} if "levels" in flags else {0, 1, 2})
    assert "1 problems left out (blank answer)" in capsys.readouterr().out


def test_of_a_generator_the_whole_is_as_many_as_asked_for():
    assert len(load_held_out("words", parse_arguments("--whole --problems 9".split()))) == 9


def test_a_benchmark_is_evaluated_as_the_file_made_of_it(listed, monkeypatch):
    monkeypatch.setattr(benchmarks, "load", lambda name: load_held_out(listed, parse_arguments(["--whole"])))
    for flags in (["--whole"], ["--levels", "1"], ["--problems", "7"]):
        options = parse_arguments(flags)
        named = load_held_out("MATH500", options)
        assert len(named) == {"--whole": 150, "--levels": 50, "--problems": 7}[flags[0]]
        options.whole, options.problems = True, len(named)
        assert set(named) <= set(load_held_out(listed, options))


@pytest.mark.parametrize("levels", ["9", "hard"])
def test_a_level_that_is_not_there_is_an_error(listed, levels):
    finished = run_script("eval.py", "--data", listed, "--levels", levels)
    assert finished.status == 1 and levels in finished.stderr and finished.stderr.startswith("eval.py: ")


@pytest.mark.parametrize("option, value", [("--model", "no/such/model"), ("--data", "nothing.jsonl")])
def test_the_command_names_what_is_missing(option, value):
    finished = run_script("eval.py", option, value)
    assert finished.status == 1 and value in finished.stderr
