"""Evaluation figures, against worked examples and brute force; and the command, as a user runs it."""

import json
from itertools import combinations

import pytest
from conftest import run_script
from hypothesis import given
from hypothesis import strategies as st

import eval as evaluation
from engine.command_line import make
from eval import bootstrap_interval, build_parser, held_out_problems, pass_at_k, summarize
from masa import MetaPrediction
from problems import benchmarks
from problems.source import Problem
from rewards import AlignmentRewards
from rollout import Attempt, Rollout


@pytest.mark.parametrize(
    "n, c, k, expected", [(4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 0, 4, 0.0), (4, 4, 1, 1.0), (4, 2, 3, 1.0)]
)
def test_pass_at_k_worked_out_by_hand(n, c, k, expected):
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


def test_the_bootstrap_interval_is_about_two_standard_errors_wide_on_each_side():
    low, high = bootstrap_interval([0.0, 1.0] * 200)  # standard error 0.5 / 20 = 0.025
    assert low == pytest.approx(0.5 - 0.049, abs=0.008) and high == pytest.approx(0.5 + 0.049, abs=0.008)
    assert bootstrap_interval([0.3] * 5) == pytest.approx((0.3, 0.3))


def attempt(level: int, correct: list[bool], lengths: list[int], reasons: list[str], timeouts: int = 0) -> Attempt:
    return Attempt(
        Problem("p", "a", level),
        solutions=[Rollout([1], [5] * n, [0.0] * n, reason) for n, reason in zip(lengths, reasons, strict=True)],
        responses=[""] * len(correct),
        correct=correct,
        predictions=[MetaPrediction(0.5, 9, ()), None],
        alignments=[AlignmentRewards(1.0, 0.5, 0.25), AlignmentRewards()],
        timeouts=timeouts,
    )


def test_the_summary_worked_out_by_hand():
    result = summarize(
        [
            attempt(1, [True, True], [4, 6], ["stop", "stop"], timeouts=2),
            attempt(2, [True, False], [5, 9], ["stop", "length"], timeouts=1),
        ]
    )
    assert result["pass1"] == 0.75
    assert result["pass_at_k"] == {"1": 0.75, "2": 1.0}
    assert result["pass1_by_level"] == {"1": 1.0, "2": 0.5}
    assert result["zero_variance_frac"] == 0.5
    assert result["mean_length"] == 6.0 and result["truncated_frac"] == 0.25
    assert result["parsed_frac"] == 0.5 and result["verifier_timeouts"] == 3
    assert (result["reward_length"], result["reward_difficulty"], result["reward_notion"]) == (0.5, 0.25, 0.125)
    with pytest.raises(ValueError, match="no problems"):
        summarize([])


def test_the_command_writes_what_it_prints(tmp_path):
    small = "--problems 6 --samples 4 --hints --data arithmetic words --max-new-tokens 12 --max-meta-tokens 12".split()
    finished = run_script("eval.py", *small, "--out", str(tmp_path))
    assert finished.status == 0, finished.stderr
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert [(result["model"], result["data"]) for result in results] == [("tiny", "arithmetic"), ("tiny", "words")]
    rows = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    for result, row in zip(results, rows, strict=True):
        assert f"pass@1            {result['pass1']:.3f}" in finished.stdout
        assert result["problems"] == 6 and result["verifier_timeouts"] == 0
        assert 0 <= result["greedy"] <= 1 and 0 <= result["pass1_with_hints"] <= 1
        assert result["vote_at_k"].keys() == result["pass_at_k"].keys()
        rates = [sum(problem["correct"]) / len(problem["correct"]) for problem in row["problems"]]
        assert sum(rates) / len(rates) == pytest.approx(result["pass1"])
        assert all(len(problem["votes"]) == len(problem["correct"]) == 4 for problem in row["problems"])


def test_an_evaluation_without_predictions_and_greedy_solutions(tmp_path):
    small = "--problems 3 --samples 2 --predictions 0 --no-greedy --out".split()
    finished = run_script("eval.py", *small, str(tmp_path))
    (result,) = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert "greedy" not in result and result["parsed_frac"] is None and result["reward_length"] is None
    assert finished.status == 0 and "greedy" not in finished.stdout


def test_the_same_command_gives_the_same_figures_and_another_seed_others(tmp_path):
    results = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run_script("eval.py", *"--problems 4 --samples 2 --seed".split(), seed, "--out", str(tmp_path / name))
        results.append(json.loads((tmp_path / name / "eval.json").read_text())["results"])
    assert results[0] == results[1] != results[2]


def options(*flags: str) -> evaluation.TestOptions:
    return make(evaluation.TestOptions, vars(build_parser().parse_args(flags)))


@pytest.fixture
def listed(tmp_path):
    """Return a file of 150 problems of the levels 0, 1 and 2, and one without an answer."""
    records = [{"problem": f"What is {i}+{i}?", "answer": str(2 * i), "level": i % 3} for i in range(150)]
    path = tmp_path / "listed.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, {"problem": "?", "answer": ""}]))
    return str(path)


@pytest.mark.parametrize("flags, count", [("--whole", 150), ("--whole --levels 0,2", 100), ("--problems 3", 3)])
def test_a_file_gives_all_its_problems_or_the_number_asked_for(listed, flags, count, capsys):
    problems = held_out_problems(listed, options(*flags.split()))
    assert len(problems) == count
    assert {problem.level for problem in problems} <= ({0, 2} if "levels" in flags else {0, 1, 2})
    assert "1 problems left out (blank answer)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["words", "arithmetic:0.3"])
def test_a_generator_has_no_end_and_gives_the_number_asked_for(name):
    assert len(held_out_problems(name, options("--whole", "--problems", "9"))) == 9


@pytest.mark.parametrize("flags, count", [("--whole", 150), ("--levels 1", 50), ("--problems 7", 7)])
def test_a_benchmark_is_evaluated_like_the_file_made_of_it(listed, flags, count, monkeypatch):
    monkeypatch.setattr(benchmarks, "load", lambda name: held_out_problems(listed, options("--whole")))
    problems = held_out_problems("MATH500", options(*flags.split()))
    assert len(problems) == count
    assert set(problems) <= set(held_out_problems(listed, options(*flags.split(), "--whole")))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--levels 9", "9"),
        ("--levels hard", "hard"),
        ("--model no/such/model", "no/such/model"),
        ("--data nothing.jsonl", "nothing.jsonl"),
        ("--data MATH500", "python -m problems.benchmarks MATH500 > MATH500.jsonl"),
        ("--problems 0", "--problems"),
        ("--top-p 0", "--top-p: found 0.0, expected above 0"),
        ("--top-p 1.5", "--top-p: found 1.5, expected at most 1"),
        ("--temperature -1", "--temperature"),
    ],
)
def test_the_command_names_what_is_wrong(listed, arguments, message):
    finished = run_script("eval.py", "--data", listed, *arguments.split())
    assert finished.status == 1 and message in finished.stderr and finished.stderr.startswith("eval.py: ")
