"""The warm start of a weak real model, on the embedded policy: what it keeps, and that it changes the answers."""

import argparse
import operator
import random
import re

import pytest
import torch

import masa
from attempts import Attempt, Sampling, solve
from models import policy, tiny, warm_start
from problems import tasks

OPTIONS = argparse.Namespace(
    seed=0, samples=4, max_new_tokens=64, temperature=1.0, give_up=64, steps=30, batch=16, lr=1e-3, token_budget=1024
)


@pytest.fixture
def fresh() -> policy.Policy:
    return policy.load("tiny", device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def no_examples(monkeypatch):
    """The embedded policy has never seen turns before a problem; without the instruction it is right now and then."""
    monkeypatch.setattr(warm_start, "SHOWN", [])


def test_worked_examples_are_right_and_about_nobody_in_the_problems():
    for text, work, answer in warm_start.EXAMPLES:
        steps = re.findall(r"(\d+) ([+*/-]) (\d+) = (\d+)", work)
        assert steps and int(steps[-1][-1]) == answer
        for left, sign, right, result in steps:
            computed = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[sign]
            assert computed(int(left), int(right)) == int(result)
        assert not set(tasks.NAMES) & set(re.findall(r"\w+", text))


def test_only_right_solutions_to_training_problems_are_kept(fresh):
    source = tasks.load_problems("arithmetic", levels=[1, 2])
    answers = {problem.text: problem.answer for problem in source.train(warm_start.WARM_START_SEED, 0, 64)}
    pairs = list(warm_start.right_solutions(fresh, source, OPTIONS))
    assert len(pairs) > 4
    for problem, text in pairs:
        assert f"\\boxed{{{answers[problem]}}}" in text
    for problem in answers:
        assert sum(text == problem for text, _ in pairs) <= 2


def test_a_blind_prediction_is_well_formed():
    rng = random.Random(0)
    rates = {masa.parse_meta(tiny.meta_demonstration(rng, warm_start.NOTIONS, 64)).pass_rate for _ in range(200)}
    assert len(rates) == masa.PASS_RATE_SCALE + 1


def test_what_is_imitated_is_said(fresh):
    problem, odd = "1+2+3", "it is \\boxed{6}"
    assert warm_start.imitate(fresh, [(problem, odd)], OPTIONS) == 0
    attempt = Attempt(tasks.Problem(problem, "6"))
    solve(fresh, [attempt], 1, Sampling(64, 24, temperature=0), torch.Generator())
    assert attempt.responses == [odd]


def test_steps_without_a_finite_gradient_are_counted(fresh):
    next(fresh.model.parameters()).data.fill_(float("nan"))
    assert warm_start.imitate(fresh, [("1+2+3", "\\boxed{6}")], OPTIONS) == OPTIONS.steps


def test_the_command_writes_a_model_that_loads(tmp_path, monkeypatch, capsys):
    arguments = "--model tiny --data arithmetic --levels 1 --solutions 4 --steps 1 --batch 2 --device cpu".split()
    monkeypatch.setattr("sys.argv", ["warm_start.py", *arguments, "--out", str(tmp_path / "warm")])
    warm_start.main()
    assert "4 right solutions imitated" in capsys.readouterr().out
    assert policy.load(str(tmp_path / "warm"), device="cpu").eos_ids


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--levels one", "one"),
        ("--data nothing.jsonl", "nothing.jsonl"),
        ("--samples 0", "--samples"),
        ("--out {file}", "file"),
    ],
)
def test_bad_options_are_named(flags, named, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    flags = flags.format(file=tmp_path / "file").split()
    monkeypatch.setattr("sys.argv", ["warm_start.py", "--model", "tiny", "--out", str(tmp_path / "warm"), *flags])
    with pytest.raises(SystemExit) as stopped:
        warm_start.main()
    assert named in capsys.readouterr().err + str(stopped.value)


def test_no_right_solution_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(warm_start, "right_solutions", lambda *_: iter(()))
    monkeypatch.setattr("sys.argv", ["warm_start.py", "--model", "tiny", "--out", str(tmp_path / "warm")])
    with pytest.raises(SystemExit, match="not one right solution"):
        warm_start.main()
