"""Rewards, against values worked out by hand."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.figures import step_figures
from masa import MetaPrediction
from models import loading
from problems.notions import inflections
from problems.source import Problem
from rewards import (
    AlignmentRewards,
    RewardOptions,
    alignment_rewards,
    difficulty_reward,
    length_reward,
    notion_reward,
    solution_reward,
)
from rollout import Attempt, Rollout, SamplingOptions, solve


def test_solution_reward():
    for right in ("so \\boxed{17}", "so \\boxed{17.0}"):
        assert solution_reward(right, "17") == 1.0
    # The last box counts; then without a box, and cut off.
    for wrong in ("first \\boxed{17}, no: \\boxed{18}", "17", "\\boxed{17", "\\boxed{}", ""):
        assert solution_reward(wrong, "17") == 0.0


@pytest.mark.parametrize("predicted", [19, 20, 25, 30, 31])
def test_length_reward(predicted):
    assert length_reward(predicted, [30, 20]) == float(predicted not in (19, 31))  # both ends count
    assert length_reward(predicted, [predicted]) == 1.0 and length_reward(predicted, []) == 0.0


def test_difficulty_reward():
    assert difficulty_reward(0.5, 0.5) == 1.0 and difficulty_reward(1.0, 0.0) == pytest.approx(0.01)
    assert difficulty_reward(0.25, 0.75) == pytest.approx(0.1)
    assert difficulty_reward(0.0, 0.5, 0.25) == pytest.approx(0.5)


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
    solved = Attempt(Problem("9+8", "17"), solutions=[Rollout([1], [2], [0.0], "stop")], correct=[True])
    assert step_figures([solved], ())["reward_notion"] is None
    solved.alignments = [rewards, AlignmentRewards()]
    assert step_figures([solved], ())["reward_notion"] == 0.25


def test_components_are_chosen_by_name():
    assert RewardOptions("length, notion").components == ("length", "notion")
    assert RewardOptions("").components == ()
    with pytest.raises(ValueError, match="--meta-rewards: found speed, expected some of length, difficulty, notion"):
        RewardOptions("length,speed").components  # noqa: B018


def test_a_prediction_that_did_not_parse_earns_nothing():
    assert alignment_rewards(None, [20], 1.0, ["x"], [True], "").mean() == 0.0


LETTERS = ["B", "(b)", "B.", r"\text{B}", "(B) Paris", "B) Paris", "B: Paris", r"\textbf{(B)}"]


EQUAL = {"True": "true", "yes": "True", r"\text{False}.": "false", "Uncertain": "unknown", "unknown": "Uncertain"}
DIFFERENT = {"true": "unknown", "no": "true", "not true": "true", "7": "true"}


def test_solution_reward_by_kind_of_answer():
    for answer in LETTERS:  # the letter counts, whatever is written after it
        assert [solution_reward(f"\\boxed{{{answer}}}", truth, "choice") for truth in "BC"] == [1.0, 0.0], answer
    assert solution_reward(r"\boxed{Bern}", "B", "choice") == solution_reward(r"\boxed{Paris}", "B", "choice") == 0.0
    for answer, truth in (EQUAL | DIFFERENT).items():
        assert solution_reward(f"\\boxed{{{answer}}}", truth, "truth") == float(answer in EQUAL), answer


def test_solutions_are_verified_by_the_kind_of_their_problem():
    attempt = Attempt(Problem("Is it true?", "Uncertain", kind="truth"))
    policy = loading.load("tiny", device="cpu")
    policy.decode = lambda ids: r"\boxed{unknown}"
    solve(policy, [attempt], SamplingOptions(samples=2, max_new_tokens=4), torch.Generator().manual_seed(0))
    assert attempt.correct == [True, True]


def test_a_proper_score_pays_most_for_the_mean():
    """Two of three times nobody is right, else everybody: the power pays for saying 0, Brier's score for 1/3."""
    outcomes, said = [0.0, 0.0, 1.0], [k / 12 for k in range(13)]
    best = {b: max(said, key=lambda p: sum(difficulty_reward(p, o, b) for o in outcomes)) for b in (0.01, 0.0)}
    assert best == {0.01: 0.0, 0.0: 4 / 12}
    assert difficulty_reward(0.75, 0.5, base=0.0) == 1 - 0.0625
