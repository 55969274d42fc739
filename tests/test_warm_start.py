"""The warm start of weak models, tried on the embedded policy: what it keeps, and that imitation changes answers."""

import argparse
import operator
import random
import re

import pytest
import torch

import masa
from models import tiny, warm_start
from models.loading import load
from models.policy import Policy
from problems.source import load_problems
from problems.words import NAMES
from rewards import solution_reward
from rollout import SamplingOptions

EXAMPLES = warm_start.EXAMPLES  # below, no test shows them
OPTIONS = argparse.Namespace(seed=0, max_new_tokens=64, steps=30, lr=1e-3, token_budget=1024)


@pytest.fixture
def fresh() -> Policy:
    return load("tiny", device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def adapted_to_the_embedded_policy(monkeypatch):
    """Show no examples, because it has never seen earlier turns; it is right now and then without any instruction."""
    for name, value in {"EXAMPLES": [], "TEMPERATURE": 1.0, "GIVE_UP": 64}.items():
        monkeypatch.setattr(warm_start, name, value)


def test_worked_examples_are_right_and_about_nobody_in_the_problems():
    assert len(EXAMPLES) == 6
    for text, solution in EXAMPLES:
        steps = re.findall(r"(\d+) ([+*/-]) (\d+) = (\d+)", solution)
        assert steps and solution_reward(solution, steps[-1][-1]) == 1.0
        for left, sign, right, result in steps:
            computed = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[sign]
            assert computed(int(left), int(right)) == int(result)
        assert not set(NAMES) & set(re.findall(r"\w+", text))


def test_only_correct_solutions_to_training_problems_are_kept(fresh):
    source = load_problems("arithmetic", levels=[1, 2])
    answers = {problem.text: problem.answer for problem in source.train(warm_start.WARM_START_SEED, 0, 64)}
    pairs = list(warm_start.correct_solutions(fresh, source, OPTIONS))
    assert len(pairs) > 4
    for problem, text in pairs:
        assert f"\\boxed{{{answers[problem]}}}" in text
    for problem in answers:
        assert sum(text == problem for text, _ in pairs) <= 2


def test_a_random_prediction_is_well_formed():
    rng = random.Random(0)
    rates = {masa.parse_meta(tiny.meta_demonstration(rng, warm_start.NOTIONS, 64)).pass_rate for _ in range(200)}
    assert len(rates) == masa.PASS_RATE_SCALE + 1


def test_what_was_imitated_is_written(fresh):
    problem, odd = "1+2+3", "it is \\boxed{6}"
    assert warm_start.imitate(fresh, [(problem, odd)], OPTIONS) == 0
    prompt_ids, greedy = fresh.encode(masa.solution_prompt(problem)), SamplingOptions(temperature=0)
    [[rollout]] = fresh.sample([prompt_ids], 1, 64, greedy, torch.Generator())
    assert fresh.decode(rollout.response_ids) == odd


def test_skipped_steps_are_counted(fresh):
    next(fresh.model.parameters()).data.fill_(float("nan"))
    assert warm_start.imitate(fresh, [("1+2+3", "\\boxed{6}")], OPTIONS) == OPTIONS.steps


def test_the_command_writes_a_model_that_loads(tmp_path, monkeypatch, capsys):
    arguments = "--model tiny --data arithmetic --levels 1 --solutions 4 --steps 1 --device cpu".split()
    monkeypatch.setattr("sys.argv", ["warm_start.py", *arguments, "--out", str(tmp_path / "warm")])
    warm_start.main()
    assert "Imitated 4 correct solutions" in capsys.readouterr().out
    assert load(str(tmp_path / "warm"), device="cpu").eos_ids


@pytest.mark.parametrize("flags", ["--levels one", "--data nothing.jsonl", "--steps 0", "--out {}"])
def test_bad_options_are_named(flags, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    flags = flags.format(tmp_path / "file").split()
    named = "--steps" if "0" in flags else flags[1]
    monkeypatch.setattr("sys.argv", ["warm_start.py", "--model", "tiny", "--out", str(tmp_path / "warm"), *flags])
    with pytest.raises(SystemExit) as stopped:
        warm_start.main()
    assert named in capsys.readouterr().err + str(stopped.value)


def test_no_correct_solution_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(warm_start, "correct_solutions", lambda *_: iter(()))
    monkeypatch.setattr("sys.argv", ["warm_start.py", "--model", "tiny", "--out", str(tmp_path / "warm")])
    with pytest.raises(SystemExit, match="no correct solution to 64 problems"):
        warm_start.main()
