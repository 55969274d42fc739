"""Rewards: was the solution right, and did the prediction fit what happened?

The solution reward asks the verifier (`problems/verify.py`). The three alignment rewards (section 3.2) compare a
prediction with the statistics of the policy's *own* solutions to the same problem, so nobody has to label anything:

    length       1 if the predicted length lies within the lengths of the correct solutions, else 0
    difficulty   0.01 ^ |predicted pass rate - actual pass rate|
    notion       the share of the predicted notions that appear in more correct than wrong solutions

A notion appears in a text if it occurs there as a whole word or phrase, whatever its case, spacing and inflection: the
notion "carry" appears in "carried" (`problems/notions.py`). An example: `python rewards.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated

from masa import MetaPrediction
from problems.kinds import same_answer
from problems.notions import stands, whole_phrase
from problems.verify import answers_match as answers_match  # for users of this file
from problems.verify import extract_answer


def solution_reward(response: str, truth: str, kind: str = "free") -> float:
    """Return 1.0 if `response` has a boxed answer that equals `truth`, else 0.0.  kind: of answer (`same_answer`)."""
    answer = extract_answer(response)
    return float(answer is not None and same_answer(answer, truth, kind))


def length_reward(predicted: float, correct_lengths: Sequence[int]) -> float:
    """Return 1.0 if the predicted length lies between the shortest and the longest correct rollout, else 0.0.

    All lengths are in tokens; both ends count (the released code excludes them, so that one correct rollout alone could
    never be hit). The reward is 0.0 if no rollout was correct.
    """
    return float(len(correct_lengths) > 0 and min(correct_lengths) <= predicted <= max(correct_lengths))


def difficulty_reward(predicted: float, pass_rate: float, base: float = 0.01) -> float:
    """Return base ^ |predicted - actual pass rate|, both fractions: 1 if exact, 0.1 if off by half, 0.01 at worst.

    base 0: return Brier's 1 - |predicted - actual|^2 instead. It is a proper score: on average it pays most for the
    true pass rate. The power pays most near the most frequent outcomes, even if the mean is far from them.
    """
    distance = abs(predicted - pass_rate)
    return base**distance if base else 1 - distance**2


def notion_reward(notions: Sequence[str], responses: Sequence[str], correct: Sequence[bool], problem: str) -> float:
    """Return the share of predicted notions that appear in more correct than wrong responses, a fraction.

    Each response counts once, however often it names a notion, and a notion predicted twice counts once. Notions that
    the problem statement names are struck out first; if none is left, the reward is 0.0.
    """
    patterns = {pattern for notion in notions if (pattern := whole_phrase(notion)) and not stands(pattern, problem)}
    useful = 0
    for pattern in patterns:
        votes = [1 if right else -1 for text, right in zip(responses, correct, strict=True) if stands(pattern, text)]
        useful += sum(votes) > 0
    return useful / max(1, len(patterns))


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
    difficulty_base: Annotated[float, "of the difficulty reward; 0: Brier's score instead", {"least": 0}] = 0.01

    def __post_init__(self) -> None:
        """Split the names into `components`.  Raises ValueError for an unknown one."""
        self.components = tuple(name.strip() for name in self.meta_rewards.split(",") if name.strip())
        if unknown := set(self.components) - set(COMPONENTS):
            raise ValueError(f"--meta-rewards: found {', '.join(unknown)}, expected some of {', '.join(COMPONENTS)}")


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
    steps = "carry 17;17-4=13", "carry 17;ok 17;17-4=13", "7;ok 7;7-4=3", "7;7-4=3"
    responses = [f"9+8= {text};\\boxed{{{text.rpartition('=')[2]}}}" for text in steps]
    correct = [solution_reward(response, truth) == 1.0 for response in responses]
    print(f"Problem {problem}, answer {truth}. Four solutions: {responses}\nRight: {correct}, with 20 and 24 tokens")
    prediction = MetaPrediction(pass_rate=0.75, solution_length=23, notions=("Carry", "ok", "9", "borrow"))
    print(prediction)
    print("length:     20 <= 23 <= 24, so 1")
    print("difficulty: 0.01 ^ |0.75 - 0.5| = 0.3162")
    print("notion:     '9' appears in the problem; carry 2 right : 0 wrong, ok 1 : 1, borrow 0 : 0, so one of three")
    rewards = alignment_rewards(prediction, [20, 24], 0.5, responses, correct, problem)
    print(rewards, f"\nThe reward of the prediction is their mean, {rewards.mean():.4f}")


if __name__ == "__main__":
    main()
