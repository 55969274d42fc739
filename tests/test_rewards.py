"""Rewards, against values worked out by hand."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masa import MetaPrediction
from models import loading
from problems.source import Problem
from rewards import (
    AlignmentRewards,
    RewardOptions,
    alignment_rewards,
    difficulty_reward,
    inflections,
    length_reward,
    mean_rewards,
    notion_reward,
    solution_reward,
)
from rollout import Attempt, SamplingOptions, solve


@pytest.mark.parametrize(
    "response, truth, reward",
    [
        ("so \\boxed{17}", "17", 1.0),
        ("so \\boxed{17.0}", "17", 1.0),
        ("first \\boxed{17}, no: \\boxed{18}", "17", 0.0),  # the last box counts
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
        (20, [20, 30], 1.0),  # both ends count
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


@pytest.mark.parametrize(
    "predicted, actual, base, reward",
    [(0.5, 0.5, 0.01, 1.0), (0.25, 0.75, 0.01, 0.1), (1.0, 0.0, 0.01, 0.01), (0.0, 0.5, 0.25, 0.5)],
)
def test_difficulty_reward(predicted, actual, base, reward):
    assert difficulty_reward(predicted, actual, base) == pytest.approx(reward)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_difficulty_reward_falls_with_distance(a, b, actual):
    nearer, farther = sorted((a, b), key=lambda predicted: abs(predicted - actual))
    assert 0.01 <= difficulty_reward(farther, actual) <= difficulty_reward(nearer, actual) <= 1.0


RESPONSES = ["Use a carry, then borrow.", "CARRY carry carry", "borrow twice", "carrying over; prime  number"]
CORRECT = [True, True, False, False]


@pytest.mark.parametrize(
    "notions, reward",
    [
        (["carry"], 1.0),  # in 2 right and 1 wrong one, as "carrying"
        (["borrow"], 0.0),  # in 1 right and 1 wrong one: not more
        (["carry", "borrow"], 0.5),
        (["carry", "borrow", "zeta"], 1 / 3),  # a notion that no response uses still counts as predicted
        (["Carry", "carry"], 1.0),  # the same notion
        (["carry", "chain"], 1.0),  # "chain" is in the problem and is struck out
        (["carry", "sum"], 1.0),  # as "sums"
        (["chain"], 0.0),  # no notion is left
        ([], 0.0),
        (["", "  "], 0.0),
        (["a  CARRY"], 1.0),  # a phrase, whatever its spacing
        (["prime number"], 0.0),  # only in a wrong one
        (["(carry"], 0.0),  # not a pattern, but text that occurs nowhere
        ([".*"], 0.0),
        ([","], 1.0),  # a sign needs no space around it: the first response has a comma
    ],
)
def test_notion_reward(notions, reward):
    assert notion_reward(notions, RESPONSES, CORRECT, "A chain of sums") == pytest.approx(reward)


def test_notions_count_once_per_rollout_and_need_a_correct_one():
    # ten times in one right rollout, once in each of two wrong ones: 1 against 2
    assert notion_reward(["x"], ["x " * 10, "x", "x"], [True, False, False], "") == 0.0
    # no correct rollout
    assert notion_reward(["carry"], RESPONSES, [False] * 4, "") == 0.0


# A notion or its word forms, and what they are found in. This table was made before the rule.
FORMS = """carry carries carried carrying/borrow borrows borrowed/flip flips flipped flipping/add adds added
adding/ratio ratios/ring rings/log logs logged logging/divide divides divided dividing/sum sums summed summing/square
squares squared squaring/box boxes/class classes/multiply multiplies multiplying/zero zeros zeroes/prime primes/rate
rates rated rating/rat rats/travel travelled traveled/mix mixed mixing/play played/pass passes passed/use used
using/mean means"""
OTHERS = """art party artist/log logic blog/sin sing sine since/ring string spring/car care cared caring/rat rate rated
ratio/plan plane planed/hop hoped/one on/the thing/mod mode modes/add address adder/factor factorial/pi pin pies/use
us/fee feed/she shed/sum summary assume/ten tenth often/prime primary/number numb/unit unite/part party parties"""
MISSED = "half halves/matrix matrices/find found/divide division/agree agreed/tie tying"  # as `inflections` says
MISTAKEN = "unit united/even evening/new news"


def stands(notion: str, text: str) -> bool:
    return notion_reward([notion], [text], [True], "") == 1.0


@pytest.mark.parametrize("words", f"{FORMS}/{MISTAKEN}".replace("\n", " ").split("/"))
def test_a_notion_stands_in_its_inflected_forms_and_they_in_it(words):
    first, *forms = words.split()
    for form in forms:
        assert stands(first, f"We {form.upper()}, then") and stands(form, first) and stands(f"to {form}", f"to {first}")
        assert notion_reward([first], [first], [True], problem=f"x {form}") == 0.0  # struck out


@pytest.mark.parametrize("words", f"{OTHERS}/{MISSED}".replace("\n", " ").split("/"))
def test_a_notion_does_not_stand_in_other_words(words):
    first, *others = words.split()
    assert not any(stands(first, other) or stands(other, first) for other in others)


def test_phrases_and_other_scripts():
    assert stands("prime number", "two PRIME\n numbers") and stands("cross-multiply", "cross-multiplying")
    assert stands("进位", "用 进位") and not stands("进位", "需要进位")  # words must be separated, as before
    assert stands("théorème", "le théorème") and not stands("thé", "le théorème")
    assert not stands("a" * 30, "a" * 30 + "s") and stands("a" * 9999, "a" * 9999)


@given(st.from_regex("[a-z]{1,12}", fullmatch=True))
def test_every_form_of_a_word_finds_it(word):
    assert word in inflections(word)
    assert all(stands(word, form) and stands(form, word) for form in inflections(word))


@given(st.text(st.characters(exclude_categories=["Zs", "Cc"]), min_size=1, max_size=9), st.text(max_size=20))
def test_what_is_not_an_english_word_is_found_as_it_is(word, text):
    """Whatever the script: the words of a-z are changed into digits here."""
    notion, text = (re.sub("[a-z]", "7", some.casefold()) for some in (word, f"{text} {word} {text}"))
    plain = [r"(?<!\w)" * bool(re.match(r"\w", notion)), re.escape(notion), r"(?!\w)" * bool(re.search(r"\w$", notion))]
    assert stands(notion, text) == bool(notion.split() and re.search("".join(plain), text))


@given(st.lists(st.text(max_size=8), max_size=4), st.lists(st.tuples(st.text(max_size=30), st.booleans()), max_size=4))
def test_notion_reward_is_a_share(notions, rollouts):
    responses, correct = [text for text, _ in rollouts], [right for _, right in rollouts]
    assert 0.0 <= notion_reward(notions, responses, correct, "problem") <= 1.0


def test_the_meta_reward_is_the_mean_of_the_chosen_components():
    prediction = MetaPrediction(0.5, 25, ("carry", "borrow"))
    rewards = alignment_rewards(prediction, [20, 30], 0.75, RESPONSES, CORRECT, "A chain of sums")
    assert rewards == AlignmentRewards(1.0, pytest.approx(0.01**0.25), 0.5)
    assert rewards.mean() == pytest.approx((1 + 0.31623 + 0.5) / 3, abs=1e-5)
    assert rewards.mean(("length", "notion")) == 0.75
    milder = alignment_rewards(prediction, [20, 30], 0.75, RESPONSES, CORRECT, "A chain of sums", difficulty_base=0.25)
    assert milder.difficulty == pytest.approx(0.25**0.25)
    assert rewards.mean(()) == 0.0
    assert mean_rewards([rewards, AlignmentRewards()])["reward_notion"] == 0.25
    assert mean_rewards([]) == {"reward_length": None, "reward_difficulty": None, "reward_notion": None}


def test_components_are_chosen_by_name():
    assert RewardOptions("length, notion").components == ("length", "notion")
    assert RewardOptions("").components == ()
    with pytest.raises(ValueError, match="--meta-rewards: found speed, expected some of length, difficulty, notion"):
        RewardOptions("length,speed").components  # noqa: B018


def test_a_prediction_that_did_not_parse_earns_nothing():
    assert alignment_rewards(None, [20], 1.0, ["x"], [True], "").mean() == 0.0


LETTERS = ["B", "(b)", "B.", r"\text{B}", "(B) Paris", "B) Paris", "B: Paris", r"\textbf{(B)}"]


@pytest.mark.parametrize(
    "kind, answer, truth, reward",
    [
        *[("choice", answer, "B", 1.0) for answer in LETTERS],  # the letter counts, whatever is written after it
        *[("choice", answer, "C", 0.0) for answer in LETTERS],
        ("choice", "Bern", "B", 0.0),  # a word is no letter
        ("choice", "Paris", "B", 0.0),
        ("truth", "True", "true", 1.0),
        ("truth", "yes", "True", 1.0),
        ("truth", r"\text{False}.", "false", 1.0),
        ("truth", "Uncertain", "unknown", 1.0),
        ("truth", "unknown", "Uncertain", 1.0),
        ("truth", "true", "unknown", 0.0),
        ("truth", "no", "true", 0.0),
        ("truth", "not true", "true", 0.0),
        ("truth", "7", "true", 0.0),
    ],
)
def test_solution_reward_by_kind_of_answer(kind, answer, truth, reward):
    assert solution_reward(f"\\boxed{{{answer}}}", truth, kind) == reward


def test_solutions_are_verified_by_the_kind_of_their_problem():
    attempt = Attempt(Problem("Is it true?", "Uncertain", kind="truth"))
    policy = loading.load("tiny", device="cpu")
    policy.decode = lambda ids: r"\boxed{unknown}"
    solve(policy, [attempt], SamplingOptions(samples=2, max_new_tokens=4), torch.Generator().manual_seed(0))
    assert attempt.correct == [True, True]
