"""Rewards: was the solution right, and did the prediction fit what happened?

The solution reward asks the verifier (`verify.py`). The three alignment rewards (paper section 3.1) compare a
prediction with the statistics of the policy's *own* solution rollouts of the same problem; nobody labels anything.

    length       1 if the predicted length lies within the lengths of the correct rollouts, else 0
    difficulty   0.01 ^ |predicted pass rate - actual pass rate|
    notions      share of the predicted notions that stand in more correct than wrong rollouts

A notion stands in a text when it occurs there as a whole word or phrase, whatever its case and spacing.
Every function is pure. Run `python rewards.py` for a worked example.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean

from masa import MetaPrediction
from problems.verify import answers_match, extract_answer

__all__ = [
    "COMPONENTS",
    "AlignmentRewards",
    "alignment_rewards",
    "answers_match",
    "difficulty_reward",
    "extract_answer",
    "length_reward",
    "mean_rewards",
    "notion_reward",
    "same_answer",
    "solution_reward",
]


def solution_reward(response: str, truth: str, kind: str = "free") -> float:
    """1.0 if the boxed answer of `response` equals `truth`, else 0.0 (no box, no reward); `kind`: see same_answer."""
    answer = extract_answer(response)
    return float(answer is not None and same_answer(answer, truth, kind))


# What stands for each verdict in answers of the kind "truth", lower case.
VERDICTS = {
    "true": ("true", "yes", "t"),
    "false": ("false", "no", "f"),
    "unknown": ("unknown", "uncertain", "undetermined", "cannot be determined", "neither"),
}


def same_answer(answer: str, truth: str, kind: str = "free") -> bool:
    """Do the answers agree, read as their kind?

    "free": mathematically the same.  "choice": the same letter A to H, whatever is written behind it ("(B) Paris" is
    B).  "truth": the same verdict: true, false or unknown, by any of the words in VERDICTS.
    """
    if kind == "choice" and (letter := _letter(truth)):
        return _letter(answer) == letter
    if kind == "truth" and (verdict := _verdict(truth)):
        return _verdict(answer) == verdict
    return answers_match(answer, truth)


def _plain(text: str) -> str:
    r"""The text without \text{...}, its kin, and outer white space, full stops and dollar signs."""
    return re.sub(r"\\(?:text|textbf|mathrm|mathbf|bf|rm)\b|[{}]", "", text).strip().strip("$.").strip()


def _letter(text: str) -> str:
    """The letter of a choice: "b", "(B)", "B.", "B) Paris" and "B: Paris" are B; "" if there is none."""
    found = re.match(r"\(?([A-Ha-h])(?:$|\)|[.:,](?:\s|$))", _plain(text))
    return found[1].upper() if found else ""


def _verdict(text: str) -> str:
    words = _plain(text).casefold()
    return next((verdict for verdict, names in VERDICTS.items() if words in names), "")


def length_reward(predicted: float, correct_lengths: Sequence[int]) -> float:
    """1.0 if the predicted length is one that correct rollouts really have, shortest to longest, both included.

    All in tokens. 0.0 when no rollout was correct. (The released code excludes the ends, which one correct
    rollout can never satisfy.)
    """
    return float(len(correct_lengths) > 0 and min(correct_lengths) <= predicted <= max(correct_lengths))


def difficulty_reward(predicted: float, pass_rate: float, base: float = 0.01) -> float:
    """base ^ |predicted - actual pass rate|, both fractions: 1 when exact, .1 when off by half, .01 at worst."""
    return base ** abs(predicted - pass_rate)


def notion_reward(notions: Sequence[str], responses: Sequence[str], correct: Sequence[bool], problem: str) -> float:
    """The share of predicted notions that stand in more correct than wrong responses, a fraction.

    Each response counts once however often it says a notion; a notion predicted twice counts once. Notions
    that the problem statement names are struck out first; 0.0 when none is left.
    """
    patterns = {pattern for notion in notions if (pattern := _whole_phrase(notion)) and not _found(pattern, problem)}
    if not patterns:
        return 0.0
    useful = 0
    for pattern in patterns:
        votes = [1 if right else -1 for text, right in zip(responses, correct, strict=True) if _found(pattern, text)]
        useful += sum(votes) > 0
    return useful / len(patterns)


def _whole_phrase(notion: str) -> str:
    """A pattern for the notion as whole words, any run of white space between them; "" for an empty notion.

    Only a letter or digit at its edge must not go on: "carry" is not in "carrying", but "+" is in "9+8".
    """
    words = notion.casefold().split()
    if not words:
        return ""
    before = r"(?<!\w)" if re.match(r"\w", words[0]) else ""
    after = r"(?!\w)" if re.search(r"\w$", words[-1]) else ""
    return before + r"\s+".join(map(re.escape, words)) + after


def _found(pattern: str, text: str) -> bool:
    return re.search(pattern, text.casefold()) is not None


@dataclass(frozen=True)
class AlignmentRewards:
    """The alignment rewards of one prediction, each in [0, 1]."""

    length: float = 0.0
    difficulty: float = 0.0
    notion: float = 0.0

    def mean(self, components: Sequence[str] = ("length", "difficulty", "notion")) -> float:
        """The meta reward: the mean of the named components (the paper: of all three); 0.0 of none."""
        return sum(getattr(self, name) for name in components) / len(components) if components else 0.0


COMPONENTS = tuple(field.name for field in fields(AlignmentRewards))


def mean_rewards(alignments: Sequence[AlignmentRewards]) -> dict[str, float | None]:
    """The mean of each alignment reward as a figure, "reward_length" and so on; None where there are no rewards."""
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
) -> AlignmentRewards:
    """All rewards of one prediction against the solution rollouts of its problem.

    A prediction that did not parse (None) earns 0 of each.
    """
    if prediction is None:
        return AlignmentRewards()
    return AlignmentRewards(
        length_reward(prediction.solution_length, correct_lengths),
        difficulty_reward(prediction.pass_rate, pass_rate),
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
    print(f"problem {problem}, answer {truth}; four rollouts, right: {correct}, correct lengths {correct_lengths}")
    prediction = MetaPrediction(pass_rate=0.75, solution_length=23, notions=("Carry", "ok", "9", "borrow"))
    print(prediction)
    print("length:     20 <= 23 <= 24")
    print("difficulty: .01 ^ |.75 - .5| = .3162")
    print("notions:    '9' stands in the problem; carry 2 right : 0 wrong, ok 1 : 1, borrow 0 : 0; one of three")
    rewards = alignment_rewards(prediction, correct_lengths, 0.5, responses, correct, problem)
    print(rewards, f"\nmeta reward: their mean, {rewards.mean():.4f}")


if __name__ == "__main__":
    main()
