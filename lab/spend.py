"""Using predictions at inference: predict first, then spend. Majority votes, and how their samples are shared out.

    the same for all   each problem gets k samples, and the most frequent answer is given
    limit              each sample stops at twice the predicted length (it then has no answer)
    shared out         and k samples a problem are shared out by predicted p(1 - p), at least one each
    hopeless: none     and problems predicted all wrong get no sample, hence no answer

The tokens of the predictions count. Everything is worked out from solutions drawn once without a limit, by picking
among them at random: a solution under a limit is the same one cut short. Functions are pure. Run `python spend.py`.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

import masa
from lab.awareness import read_predictions
from rewards import extract_answer, same_answer
from variants import selection

PICKS = 32  # random choices among the drawn solutions, averaged


def answer_groups(responses: Sequence[str], kind: str = "free") -> list[int]:
    """A number for each response: equal answers get equal numbers, -1 stands for no answer."""
    seen: dict[str, int] = {}
    first: list[str] = []  # an answer of each group
    groups = []
    for answer in map(extract_answer, responses):
        if answer is None:
            groups.append(-1)
            continue
        if answer not in seen:
            equal = (g for g, other in enumerate(first) if same_answer(answer, other, kind))
            seen[answer] = next(equal, len(first))
            if seen[answer] == len(first):
                first.append(answer)
        groups.append(seen[answer])
    return groups


def majority(votes: Sequence[int], correct: Sequence[int]) -> bool:
    """Is the most frequent answer right? Of equally frequent ones the first counts; -1 does not vote; none is wrong."""
    counted = Counter(vote for vote in votes if vote >= 0)
    if not counted:
        return False
    winner, _ = counted.most_common(1)[0]  # the first of equals
    return bool(correct[list(votes).index(winner)])


def vote(problem: dict, k: int, limit: int | None = None, seed: int = 0) -> tuple[float, float]:
    """(share of right majority votes, tokens) of k solutions picked at random, averaged over PICKS choices.

    problem: as evaluations.jsonl has it, with `votes`.  limit: longer solutions have no answer and cost the limit.
    Raises ValueError if fewer than k solutions were drawn.
    """
    drawn = len(problem["votes"])
    if k > drawn:
        raise ValueError(f"expected at most {drawn} samples, as many as were drawn, found {k}")
    cap = limit or max(problem["lengths"])
    rng = np.random.default_rng(seed)
    right, tokens = 0, 0
    for _ in range(PICKS if k else 0):
        picked = rng.permutation(drawn)[:k]
        votes = [problem["votes"][i] if problem["lengths"][i] <= cap else -1 for i in picked]
        right += majority(votes, [problem["correct"][i] for i in picked])
        tokens += sum(min(problem["lengths"][i], cap) for i in picked)
    return right / PICKS, tokens / PICKS


Plan = Callable[[Sequence[dict], int], list[int]]  # (problems, mean samples k) -> samples for each problem


def same_for_all(problems: Sequence[dict], k: int) -> list[int]:
    return [k] * len(problems)


def shared_out(problems: Sequence[dict], k: int) -> list[int]:
    """k samples a problem in all, in proportion to predicted p(1 - p); one at least, at most as many as were drawn."""
    scores = [selection.predicted_variance(read_predictions(problem)) for problem in problems]
    return selection.share_out(scores, k * len(problems), 1, len(problems[0]["votes"]))


def hopeless_none(problems: Sequence[dict], k: int) -> list[int]:
    """Shared out, but nothing for problems that the gate takes for all wrong."""
    hopeless = [masa.should_skip(read_predictions(problem), easy=False) for problem in problems]
    return [0 if skip else count for skip, count in zip(hopeless, shared_out(problems, k), strict=True)]


def curve(
    problems: Sequence[dict], plan: Plan, limits: Sequence[int] | None = None, predicts: bool = True
) -> list[dict[str, float]]:
    """Accuracy against generated tokens a problem, at 1, 2, 4 ... samples a problem on average.

    limits: of each problem, in tokens.  predicts: the tokens of the predictions count.
    """
    drawn = len(problems[0]["votes"])
    overhead = sum(problem["tokens_meta"] for problem in problems) if predicts else 0
    points = []
    for k in (2**j for j in range(drawn.bit_length())):
        counts = plan(problems, k)
        found = [
            vote(problem, count, limits[i] if limits else None)
            for i, (problem, count) in enumerate(zip(problems, counts, strict=True))
        ]
        tokens = (sum(tokens for _, tokens in found) + overhead) / len(problems)
        points.append({"samples": k, "tokens": tokens, "accuracy": float(np.mean([right for right, _ in found]))})
    return points


def curves(problems: Sequence[dict], multiplier: float, max_new_tokens: int) -> dict[str, list[dict[str, float]]]:
    """The curve of each way to spend, by its name; without predictions there is only one way."""
    found = {"the same for all": curve(problems, same_for_all, predicts=False)}
    if any(problem["predictions"] for problem in problems):
        limits = [masa.length_limit(read_predictions(p), multiplier, max_new_tokens) for p in problems]
        found["limit"] = curve(problems, same_for_all, limits)
        found["shared out"] = curve(problems, shared_out, limits)
        found["hopeless: none"] = curve(problems, hopeless_none, limits)
    return found


def main() -> None:
    responses = [r"\boxed{12}", r"\boxed{7}", r"\boxed{12.0}", "no answer", r"\boxed{7}", r"\boxed{12}"]
    votes = answer_groups(responses)
    print("answers", responses, "are in the groups", votes)
    print("the majority says 12, which is right:", majority(votes, [1, 0, 1, 0, 0, 1]))

    def problem(rate: float, right: int) -> dict:
        prediction = {"pass_rate": rate, "solution_length": 20, "notions": []}
        correct = [1] * right + [0] * (8 - right)
        votes = [0] * right + list(range(1, 9 - right))
        return {"predictions": [prediction], "correct": correct, "votes": votes, "lengths": [20] * 8, "tokens_meta": 5}

    print("Three problems, predicted and really 8, 3 and 0 of 8 right, 20 tokens a solution, 5 a prediction.")
    print("With one sample each, (1 + 3/8 + 0) / 3 = .46 are right:")
    problems = [problem(1.0, 8), problem(0.375, 3), problem(0.0, 0)]
    for name, points in curves(problems, 2.0, 96).items():
        shown = ", ".join(f"{point['accuracy']:.2f} for {point['tokens']:.0f}" for point in points)
        print(f"  {name:<17} accuracy {shown} tokens a problem")


if __name__ == "__main__":
    main()
