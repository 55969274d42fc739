"""Rewards against values worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attempts import Attempt, Sampling, solve
from masa import MetaPrediction
from models import policy as policies
from problems.tasks import Problem
from rewards import (
    AlignmentRewards,
    alignment_rewards,
    difficulty_reward,
    length_reward,
    notion_reward,
    solution_reward,
)


@pytest.mark.parametrize(
    "response, truth, reward",
    [
        ("so \\boxed{17}", "17", 1.0),
        ("so \\boxed{17.0}", "17", 1.0),
        ("first \\boxed{17}, no: \\boxed{18}", "17", 0.0),  # the last one counts
        ("17", "17", 0.0),  # not boxed
        ("\\boxed{17", "17", 0.0),  # cut off
        ("\\boxed{}", "17", 0.0),
        ("", "17", 0.0),
    ],
)
def test_solution_reward(response, truth, reward):
    assert solution_reward(response, truth) == reward


@pytest.mark.parametrize(
    "predicted, lengths, reward",
    [
        (20, [20, 30], 1.0),  # both ends included
        (30, [20, 30], 1.0),
        (25, [30, 20], 1.0),
        (19, [20, 30], 0.0),
        (31, [20, 30], 0.0),
        (20, [20], 1.0),
        (20, [], 0.0),
    ],
)
def test_length_reward(predicted, lengths, reward):
    assert length_reward(predicted, lengths) == reward


def test_difficulty_reward():
    assert difficulty_reward(0.5, 0.5) == 1.0
    assert difficulty_reward(0.25, 0.75) == pytest.approx(0.1)
    assert difficulty_reward(1.0, 0.0) == pytest.approx(0.01)
    assert difficulty_reward(0.0, 0.5, base=0.25) == pytest.approx(0.5)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_difficulty_reward_falls_with_distance(a, b, actual):
    nearer, farther = sorted((a, b), key=lambda predicted: abs(predicted - actual))
    assert 0.01 <= difficulty_reward(farther, actual) <= difficulty_reward(nearer, actual) <= 1.0


RESPONSES = ["Use a carry, then borrow.", "CARRY carry carry", "borrow twice", "carrying over; prime  number"]
CORRECT = [True, True, False, False]


@pytest.mark.parametrize(
    "notions, reward",
    [
        (["carry"], 1.0),  # in 2 right, 0 wrong: "carrying" is another word
        (["borrow"], 0.0),  # 1 right, 1 wrong: not more
        (["carry", "borrow"], 0.5),
        (["carry", "borrow", "zeta"], 1 / 3),  # a notion nobody uses counts as predicted
        (["Carry", "carry"], 1.0),  # the same notion
        (["carry", "chain"], 1.0),  # "chain" stands in the problem, struck out
        (["chain"], 0.0),  # nothing left
        ([], 0.0),
        (["", "  "], 0.0),
        (["a  CARRY"], 1.0),  # a phrase, whatever its spacing
        (["prime number"], 0.0),  # only in a wrong one
        (["(carry"], 0.0),  # no pattern language: this stands nowhere
        ([".*"], 0.0),
        ([","], 1.0),  # a sign needs no space around it: the first response has one
    ],
)
def test_notion_reward(notions, reward):
    assert notion_reward(notions, RESPONSES, CORRECT, "A chain of sums") == pytest.approx(reward)


def test_a_notion_is_counted_once_for_each_rollout():
    # "x" ten times in one right rollout, once in each of two wrong ones: 1 against 2
    assert notion_reward(["x"], ["x " * 10, "x", "x"], [True, False, False], "") == 0.0


def test_notions_without_a_correct_rollout_earn_nothing():
    assert notion_reward(["carry"], RESPONSES, [False] * 4, "") == 0.0


@given(st.lists(st.text(max_size=8), max_size=4), st.lists(st.tuples(st.text(max_size=30), st.booleans()), max_size=4))
def test_notion_reward_is_a_share(notions, rollouts):
    responses, correct = [text for text, _ in rollouts], [right for _, right in rollouts]
    assert 0.0 <= notion_reward(notions, responses, correct, "problem") <= 1.0


def test_the_meta_reward_is_the_mean_of_the_components_that_are_on():
    prediction = MetaPrediction(0.5, 25, ("carry", "borrow"))
    rewards = alignment_rewards(prediction, [20, 30], 0.75, RESPONSES, CORRECT, "A chain of sums")
    assert rewards == AlignmentRewards(1.0, pytest.approx(0.01**0.25), 0.5)
    assert rewards.mean() == pytest.approx((1 + 0.31623 + 0.5) / 3, abs=1e-5)
    assert rewards.mean(("length", "notion")) == 0.75
    assert rewards.mean(()) == 0.0


def test_a_prediction_that_did_not_parse_earns_nothing():
    assert alignment_rewards(None, [20], 1.0, ["x"], [True], "").mean() == 0.0


@pytest.mark.parametrize(
    "answer", ["B", "(b)", "B.", r"\text{B}", "(B) Paris", "B) Paris", "B: Paris", r"\textbf{(B)}"]
)
def test_a_choice_is_a_letter_whatever_is_written_behind_it(answer):
    assert solution_reward(f"\\boxed{{{answer}}}", "B", "choice") == 1.0
    assert solution_reward(f"\\boxed{{{answer}}}", "C", "choice") == 0.0


def test_no_letter_is_no_choice():
    assert solution_reward(r"\boxed{Bern}", "B", "choice") == 0.0
    assert solution_reward(r"\boxed{Paris}", "B", "choice") == 0.0


@pytest.mark.parametrize(
    "answer, truth, right",
    [
        ("True", "true", 1.0),
        ("yes", "True", 1.0),
        (r"\text{False}.", "false", 1.0),
        ("Uncertain", "unknown", 1.0),
        ("unknown", "Uncertain", 1.0),
        ("true", "unknown", 0.0),
        ("no", "true", 0.0),
        ("not true", "true", 0.0),
        ("7", "true", 0.0),
    ],
)
def test_a_truth_is_one_of_three_verdicts(answer, truth, right):
    assert solution_reward(f"\\boxed{{{answer}}}", truth, "truth") == right


def test_verification_goes_by_the_kind_of_the_problem():
    problem = Problem("Is it true?", "Uncertain", kind="truth")
    attempt = Attempt(problem)
    policy = policies.load("tiny", device="cpu")
    policy.decode = lambda ids: r"\boxed{unknown}"
    solve(policy, [attempt], 2, Sampling(4, 4), torch.Generator().manual_seed(0))
    assert attempt.correct == [True, True]
