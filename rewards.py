"""Rewards: was the solution right, and did the prediction fit what happened?

The solution reward asks the verifier (`problems/verify.py`). The three alignment rewards (section 3.2) compare a
prediction with the statistics of the policy's *own* solutions to the same problem, so nobody has to label anything:

    length       1 if the predicted length lies within the lengths of the correct solutions, else 0
    difficulty   0.01 ^ |predicted pass rate - actual pass rate|
    notion       the share of the predicted notions that appear in more correct than wrong solutions

A notion appears in a text if it occurs there as a whole word or phrase, whatever its case, spacing and inflection: the
notion "carry" appears in "carried" (`inflections`). Every function is pure. Run `python rewards.py` for an example.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from statistics import fmean
from typing import Annotated

from masa import MetaPrediction
from problems.kinds import same_answer
from problems.verify import answers_match as answers_match  # offered here, too
from problems.verify import extract_answer


def solution_reward(response: str, truth: str, kind: str = "free") -> float:
    """Return 1.0 if the boxed answer of `response` equals `truth`, else 0.0; no box, no reward.

    kind: of answer, "free", "choice" or "truth" (see `same_answer`).
    """
    answer = extract_answer(response)
    return float(answer is not None and same_answer(answer, truth, kind))


def length_reward(predicted: float, correct_lengths: Sequence[int]) -> float:
    """Return 1.0 if the predicted length lies between the shortest and the longest correct rollout, else 0.0.

    All lengths are in tokens; both ends count (the released code excludes them, so that one correct rollout alone could
    never be hit). The reward is 0.0 if no rollout was correct.
    """
    return float(len(correct_lengths) > 0 and min(correct_lengths) <= predicted <= max(correct_lengths))


def difficulty_reward(predicted: float, pass_rate: float, base: float = 0.01) -> float:
    """Return base ^ |predicted - actual pass rate|, both fractions: 1 if exact, 0.1 if off by half, 0.01 at worst."""
    return base ** abs(predicted - pass_rate)


def notion_reward(notions: Sequence[str], responses: Sequence[str], correct: Sequence[bool], problem: str) -> float:
    """Return the share of predicted notions that appear in more correct than wrong responses, a fraction.

    Each response counts once, however often it names a notion, and a notion predicted twice counts once. Notions that
    the problem statement names are struck out first; if none is left, the reward is 0.0.
    """
    patterns = {pattern for notion in notions if (pattern := _whole_phrase(notion)) and not _stands(pattern, problem)}
    if not patterns:
        return 0.0
    useful = 0
    for pattern in patterns:
        votes = [1 if right else -1 for text, right in zip(responses, correct, strict=True) if _stands(pattern, text)]
        useful += sum(votes) > 0
    return useful / len(patterns)


@lru_cache(maxsize=2**12)
def _whole_phrase(notion: str) -> str:
    """Return a pattern for the notion as whole words, in any form, with any white space between them; "" for none.

    If the notion begins or ends with a letter or digit, no other may stand next to it there: "art" is not in "party",
    but "+" is in "9+8".
    """
    words = notion.casefold().split()
    if not words:
        return ""
    before = r"(?<!\w)" if re.match(r"\w", words[0]) else ""
    after = r"(?!\w)" if re.search(r"\w$", words[-1]) else ""
    return before + r"\s+".join("".join(map(_any_form, re.split(r"(\W+)", word))) for word in words) + after


def _any_form(word: str) -> str:
    """Return a pattern for the forms of a word, and for those of any word that it may itself be a form of."""
    bases = {base for cut in (1, 2, 3, 4) for end in ("", "e", "y") if word in inflections(base := word[:-cut] + end)}
    return f"(?:{'|'.join(map(re.escape, sorted(inflections(word).union(*map(inflections, bases)))))})"


def inflections(word: str) -> set[str]:
    """Return a word and its regular English forms: carry -> carry, carries, carried, carrying.

    This is a rule of spelling, without a dictionary, where the paper compares lemmas. It has limits. Only words of 3 to
    20 letters a to z have forms. Irregular forms (halves, matrices, found) and words that are derived (division) are
    missed, and what is spelled like a form counts as one: "united" of "unit", "evening" of "even", "news" of "new".
    """
    if not re.fullmatch("[a-z]{3,20}", word):
        return {word}
    if re.search("[^aeiou]y$", word):
        return {word, word[:-1] + "ies", word[:-1] + "ied", word + "ing"}
    if re.search("[aeiou].*[^e]e$", word):
        return {word, word + "s", word + "d", word[:-1] + "ing"}
    plurals = {word + "s"} if not re.search("(s|x|z|ch|sh)$", word) else set()
    plurals |= {word + "es"} if re.search("(s|x|z|ch|sh|o)$", word) else set()
    stems = [word + word[-1]] if re.search("[aeiou][^aeiouwxy]$", word) else []  # flip, flipped
    stems += [word] if not re.fullmatch("[^aeiou]*[aeiou][^aeiouwxy]", word) else []  # "hoped" is no form of "hop"
    return {word, *plurals, *(stem + end for stem in stems for end in ("ed", "ing"))}


def _stands(pattern: str, text: str) -> bool:
    return re.search(pattern, text.casefold()) is not None


@dataclass(frozen=True)
class AlignmentRewards:
    """The alignment rewards of one prediction, each in [0, 1]."""

    length: float = 0.0
    difficulty: float = 0.0
    notion: float = 0.0

    def mean(self, components: Sequence[str] = ("length", "difficulty", "notion")) -> float:
        """Return the meta reward: the mean of the named rewards (in the paper, of all three); 0.0 without any."""
        return sum(getattr(self, name) for name in components) / len(components) if components else 0.0


COMPONENTS = tuple(field.name for field in fields(AlignmentRewards))


@dataclass
class RewardOptions:
    """What predictions are rewarded for."""

    meta_rewards: Annotated[str, "alignment rewards whose mean trains predictions"] = ",".join(COMPONENTS)
    difficulty_base: Annotated[
        float, "the difficulty reward of a pass rate that is entirely wrong", {"above": 0, "most": 1}
    ] = 0.01

    def __post_init__(self) -> None:
        """Split the names into `components`.  Raises ValueError for an unknown one."""
        self.components = tuple(name.strip() for name in self.meta_rewards.split(",") if name.strip())
        if unknown := set(self.components) - set(COMPONENTS):
            raise ValueError(f"--meta-rewards: found {', '.join(unknown)}, expected some of {', '.join(COMPONENTS)}")


def mean_rewards(alignments: Sequence[AlignmentRewards]) -> dict[str, float | None]:
    """Return the mean of each alignment reward as "reward_length" and so on; None where there are no rewards."""
    return {
        f"reward_{name}": fmean(getattr(rewards, name) for rewards in alignments) if alignments else None
        for name in COMPONENTS
    }


def alignment_rewards(
    prediction: MetaPrediction | None,
    correct_lengths: Sequence[int],
    pass_rate: float,
    responses: Sequence[str],
    correct: Sequence[bool],
    problem: str,
    difficulty_base: float = 0.01,
) -> AlignmentRewards:
    """Score one prediction against the solutions of its problem; one that did not parse (None) earns 0 everywhere."""
    if prediction is None:
        return AlignmentRewards()
    return AlignmentRewards(
        length_reward(prediction.solution_length, correct_lengths),
        difficulty_reward(prediction.pass_rate, pass_rate, difficulty_base),
        notion_reward(prediction.notions, responses, correct, problem),
    )


def main() -> None:
    problem, truth = "9+8-4", "13"
    responses = [
        "9+8= carry 17;17-4=13;\\boxed{13}",
        "9+8= carry 17;ok 17;17-4=13;\\boxed{13}",
        "9+8=7;ok 7;7-4=3;\\boxed{3}",
        "9+8=7;7-4=3;\\boxed{3}",
    ]
    correct = [solution_reward(response, truth) == 1.0 for response in responses]
    lengths = [20, 24, 22, 18]
    correct_lengths = [length for length, right in zip(lengths, correct, strict=True) if right]
    print(f"Problem {problem}, answer {truth}. Four solutions, right: {correct}, correct lengths: {correct_lengths}")
    prediction = MetaPrediction(pass_rate=0.75, solution_length=23, notions=("Carry", "ok", "9", "borrow"))
    print(prediction)
    print("length:     20 <= 23 <= 24, so 1")
    print("difficulty: 0.01 ^ |0.75 - 0.5| = 0.3162")
    print("notion:     '9' appears in the problem; carry 2 right : 0 wrong, ok 1 : 1, borrow 0 : 0, so one of three")
    rewards = alignment_rewards(prediction, correct_lengths, 0.5, responses, correct, problem)
    print(rewards, f"\nThe reward of the prediction is their mean, {rewards.mean():.4f}")


if __name__ == "__main__":
    main()
