"""Ask: what is told of a problem of your own, by hand, and the command as a person uses it."""

import io
import sys

import pytest
from conftest import run_script

from lab import ask
from masa import GateOptions, MetaPrediction
from models import loading
from problems.source import Problem
from rollout import Rollout, SamplingOptions

RESPONSES = [r"9+8= carry 17;\boxed{13}", r"\boxed{13.0}", r"\boxed{3}", "nothing"]


@pytest.fixture
def lines(monkeypatch):
    """Return what is told of predictions and solutions that are made up."""
    policy = loading.load("tiny", device="cpu")

    def predict(policy, attempts, sampling, stream):
        attempts[0].predictions = [MetaPrediction(0.0, 20, ("carry",)), MetaPrediction(0.125, 30, ("ok",)), None]
        attempts[0].meta_responses = ["one", "two", "odd"]

    def solve(policy, attempts, sampling, stream):
        attempts[0].responses = RESPONSES
        attempts[0].correct = [attempts[0].problem.answer == "13"] * 2 + [False] * 2
        attempts[0].solutions = [Rollout([1], [2] * length, [], "stop") for length in (20, 24, 9, 9)]

    monkeypatch.setattr(policy, "beliefs", lambda prompts: [(0.75, *[0.0] * 6, 0.25, 0.0)])
    monkeypatch.setattr(ask, "predict", predict)
    monkeypatch.setattr(ask, "solve", solve)
    return lambda *problem: list(ask.tell(policy, Problem(*problem), SamplingOptions(), GateOptions(), 0))


def test_with_an_answer_it_is_told_what_came_true(lines):
    assert lines("9+8-4", "13") == [
        "said       0.5 of 8 right [0, 1], tokens [20, 30]",
        "           notions carry, ok",
        "unreadable odd",
        "read       1.75 of 8 right, all alike with probability 0.75: masa-read would let it be solved",
        "gate       would skip it",
        "happened   2 of 4 right; answers 13 (2x), 3 (1x), no answer (1x)",
        rf"right      {RESPONSES[0]} (20 tokens)",
        r"wrong      \boxed{3} (9 tokens)",
        # of three predictions: one length is within, 0.01 ^ 0.5 + 0.01 ^ 0.375 = 0.278, and one notion is useful
        "rewards    length 0.33, difficulty 0.09, notion 0.33; mean over the predictions",
        "           right solutions have 20 to 24 tokens",
        "           right:wrong solutions with each notion: carry 1:0, ok 0:0",
    ]


def test_without_an_answer_equal_ones_are_counted(lines):
    told = lines("12+x", "")
    assert told[0] == "warning: the embedded policy was never taught 'x'"
    assert told[6:] == [
        "happened   answers 13 (2x), 3 (1x), no answer (1x)",
        rf"13         {RESPONSES[0]} (20 tokens)",
        r"3          \boxed{3} (9 tokens)",
        "no answer  nothing (9 tokens)",
    ]


def test_a_tokenizer_that_cannot_be_read_is_told_so(monkeypatch, lines):
    monkeypatch.setattr(ask.Policy, "counts", None)
    assert lines("9+8-4", "13")[3].startswith("read       nothing: this tokenizer begins several of the counts")


def test_the_command_asks_until_an_empty_line(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("7+8-4\n11\n1+1\n\n\n"))
    told = run_script("lab.ask", "--samples", "4", "--device", "cpu").stdout
    assert (
        told.count("said ") == told.count("read  ") == told.count("gate ") == told.count("happened ") == 2
        and told.count("rewards ") == 1
    )
    once = run_script("lab.ask", "7+8-4", "--answer", "11", "--samples", "4", "--device", "cpu")
    assert once.stdout.splitlines()[0] in told
    wrong = run_script("lab.ask", "1+1", "--samples", "0")
    assert wrong.status == 1 and "--samples: found 0" in wrong.stderr
