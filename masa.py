"""MASA: meta-awareness via self-alignment (arXiv 2510.03259), the part that is the paper.

A policy is asked, *before* it solves a problem, how its own attempts at it will go. The answer is a
`MetaPrediction`: how often right (pass rate), how long (tokens), with which concepts (notions). This file
holds everything that is said and decided about such predictions:

    the prompts            solution_prompt, meta_prompt            section 3.1
    reading and writing    parse_meta, render_meta                 section 3.1
    predictive gating      should_skip                             section 3.3
    early cutoff           length_limit                            section 3.3
    expert trajectories    expert_target                           section 3.3
    hints (v2)             hint_notions

Rewards for predictions are in `rewards.py`, the loop that uses all of this is in `train.py`. Every function
here is pure: no model, no file, no clock. Run `python masa.py` for a worked example.

Left out: the paper's own prompt wording (ours is our own, and short), and its string-matched JSON.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, pstdev

# In text a pass rate is a count out of this many attempts; in `MetaPrediction` it is a fraction. A model writes
# "5" more reliably than "0.625", and one constant keeps question and answer on one scale.
PASS_RATE_SCALE = 8
MAX_SOLUTION_LENGTH = 1_000_000  # a longer prediction, in tokens, is out of range
MAX_META_CHARACTERS = 20_000  # only the end of a longer answer is searched: bounds the time of `parse_meta`
ROUNDING = 1e-9  # 1.1 x 100 is 110.00000000000001 in floating point, and the mean of three .1 is above .1

SOLVE_INSTRUCTION = "\nReason step by step. The last line must be: The final answer is \\boxed{answer}."
HINT_INSTRUCTION = "\nThese notions may help: "
META_INSTRUCTION = (
    "\nDo not solve this problem yet. Predict how your own attempts at it will go: how many of "
    f"{PASS_RATE_SCALE} attempts will be right (pass_rate, an integer from 0 to {PASS_RATE_SCALE}), how many tokens a "
    "right solution will take (solution_length, an integer up to "
)
META_INSTRUCTION_END = (
    ") and which concepts it will use that the problem does not name (notions). Answer with nothing but one JSON "
    'object like this, with your own values: {"pass_rate": 4, "solution_length": 60, "notions": ["ratio", "average"]}'
)


@dataclass(frozen=True)
class MetaPrediction:
    """What a policy says of its own attempts at a problem, before it makes them.

    pass_rate: predicted share of right attempts, a fraction in [0, 1].
    solution_length: predicted length of a right solution, in tokens (end token included).
    notions: predicted concepts, as the model wrote them.
    """

    pass_rate: float
    solution_length: int
    notions: tuple[str, ...]


def solution_prompt(problem: str, hint: Sequence[str] = ()) -> str:
    """The user message that asks for a solution; `hint` lists notions to suggest (paper v2: hints)."""
    hinted = HINT_INSTRUCTION + ", ".join(hint) if hint else ""
    return problem + hinted + SOLVE_INSTRUCTION


def meta_prompt(problem: str, max_length: int) -> str:
    """The user message that asks for a prediction; `max_length` bounds a solution, in tokens.

    The bound is that of *responses*; the released code shows the model the limit of prompts instead.
    """
    return f"{problem}{META_INSTRUCTION}{max_length}{META_INSTRUCTION_END}"


def render_meta(prediction: MetaPrediction) -> str:
    """Write a prediction as the JSON that `parse_meta` reads; the pass rate is rounded to the nearest 1/8."""
    text = json.dumps(
        {
            "pass_rate": round(prediction.pass_rate * PASS_RATE_SCALE),
            "solution_length": prediction.solution_length,
            "notions": list(prediction.notions),
        },
        ensure_ascii=False,
    )
    # A lone surrogate, which a model can smuggle in as the escape \ud800, would crash a tokenizer.
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def parse_meta(text: str) -> MetaPrediction | None:
    """Read the last whole JSON object with the three keys out of a model's answer; None if there is none.

    Key order, spacing, code fences and prose around the object do not matter. A wrong type (a bool is not a
    number), a number out of range or NaN makes the whole prediction None; it never raises.
    """
    answers = [o for o in _json_objects(text[-MAX_META_CHARACTERS:]) if set(o) >= _META_KEYS]
    if not answers:
        return None
    count, length, notions = (answers[-1][key] for key in ("pass_rate", "solution_length", "notions"))
    if type(count) is not int or not 0 <= count <= PASS_RATE_SCALE:
        return None
    if type(length) is not int or not 1 <= length <= MAX_SOLUTION_LENGTH:
        return None
    if type(notions) is not list or not all(type(notion) is str for notion in notions):
        return None
    return MetaPrediction(count / PASS_RATE_SCALE, length, tuple(notions))


_META_KEYS = {"pass_rate", "solution_length", "notions"}


def _json_objects(text: str) -> Iterator[dict]:
    """The outermost whole JSON objects in `text`, in order; what is not JSON is passed over."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):  # not JSON, a number of absurd length, or nested absurdly deep
            end = start + 1
        else:
            yield value
        start = text.find("{", end)


def _parsed(predictions: Sequence[MetaPrediction | None]) -> list[MetaPrediction]:
    """The predictions that parsed, or none of them when fewer than half did: too few to act on."""
    parsed = [prediction for prediction in predictions if prediction is not None]
    return parsed if 2 * len(parsed) >= len(predictions) else []


def predicted_pass_rate(predictions: Sequence[MetaPrediction | None]) -> float | None:
    """The mean predicted pass rate, a fraction; None when fewer than half of the predictions parsed."""
    parsed = _parsed(predictions)
    return fmean(prediction.pass_rate for prediction in parsed) if parsed else None


def should_skip(
    predictions: Sequence[MetaPrediction | None], std_threshold: float = 0.1, margin: float = 0.1, easy: bool = True
) -> bool:
    """Predictive gating: is the problem predicted to be all-right or all-wrong, hence without advantage?

    True when the M predicted pass rates agree (population standard deviation < `std_threshold`) and their mean
    is within `margin` of 0 or 1. The paper publishes the threshold 0.1 but no margin; 0.1 is our choice. With
    `easy` off only the all-wrong are skipped. False when fewer than half of the predictions parsed.
    """
    rates = [prediction.pass_rate for prediction in _parsed(predictions)]
    if not rates or pstdev(rates) >= std_threshold:
        return False
    return fmean(rates) <= margin + ROUNDING or (easy and fmean(rates) >= 1 - margin - ROUNDING)


def length_limit(predictions: Sequence[MetaPrediction | None], multiplier: float = 2.0, ceiling: int = 8192) -> int:
    """Early cutoff: after how many tokens a solution is stopped, `multiplier` x the median predicted length.

    Rounded up, at least 1 and never above `ceiling`; `ceiling` itself when fewer than half parsed.
    """
    lengths = [prediction.solution_length for prediction in _parsed(predictions)]
    if not lengths:
        return ceiling
    return max(1, min(ceiling, math.ceil(multiplier * median(lengths) - ROUNDING)))


def expert_target(
    predictions: Sequence[MetaPrediction | None],
    notion_rewards: Sequence[float],
    correct_lengths: Sequence[int],
    pass_rate: float,
    failures: bool = False,
    least_notion_reward: float = 0.2,
) -> MetaPrediction | None:
    """The expert trajectory of a problem: its best-scored notions with the *true* length and pass rate.

    The notions are those of the prediction with the highest notion reward, which must be at least
    `least_notion_reward` (the paper's: 0.2); the length is the median of the correct rollouts' lengths, in tokens.
    None when there is nothing to learn from.

    In the paper a problem without a right rollout has no expert, so what is imitated are successes only, and the
    policy learns to expect success. `failures`: such a problem's expert is its first prediction that parsed, with
    the true pass rate, 0; nothing is known against its length and notions.
    """
    if failures and not correct_lengths:
        first = next((prediction for prediction in predictions if prediction is not None), None)
        return first and replace(first, pass_rate=0.0)
    scored = [
        (reward, prediction)
        for reward, prediction in zip(notion_rewards, predictions, strict=True)
        if prediction is not None and reward >= least_notion_reward
    ]
    if not scored or not correct_lengths:
        return None
    _, best = max(scored, key=lambda pair: pair[0])  # the first of equals
    return replace(best, pass_rate=pass_rate, solution_length=round(median(correct_lengths)))


def hint_notions(predictions: Sequence[MetaPrediction | None], count: int = 3) -> tuple[str, ...]:
    """The `count` notions that most of the predictions name, to be fed into the solution prompt (paper v2)."""
    votes: Counter[str] = Counter()
    for prediction in _parsed(predictions):
        votes.update(dict.fromkeys(prediction.notions, 1))  # each prediction votes once for a notion
    return tuple(notion for notion, _ in votes.most_common(count))


def main() -> None:
    answers = [
        'I expect this to be hard.\n```json\n{"notions": ["carry"], "pass_rate": 1, "solution_length": 30}\n```',
        '{"pass_rate": 0, "solution_length": 41, "notions": ["carry", "borrow"]}',
        '{"pass_rate": 9, "solution_length": 20, "notions": []}',
    ]
    print("A prompt:", meta_prompt("9+8-4", max_length=96), sep="\n")
    predictions = [parse_meta(answer) for answer in answers]
    for answer, prediction in zip(answers, predictions, strict=True):
        print(f"\n{answer!r}\n  -> {prediction}")
    print("\nTwo of three parsed (9 of 8 attempts is out of range): their pass rates are .125 and 0,")
    print("mean .0625 <= .1, standard deviation .0625 < .1, so the gate skips the problem:", should_skip(predictions))
    print("median predicted length 35.5, twice that is the limit:", length_limit(predictions, ceiling=96))
    expert = expert_target(predictions, [0.0, 0.5, 0.0], correct_lengths=[28, 36, 40], pass_rate=3 / 8)
    print("3 of 8 attempts were right, with 28, 36 and 40 tokens; the expert answer:", expert)


if __name__ == "__main__":
    main()
