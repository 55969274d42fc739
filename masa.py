"""MASA: meta-awareness via self-alignment (arXiv 2510.03259), what the paper adds to GRPO.

Before a policy solves a problem, it is asked how its own attempts will go. Its answer is a `MetaPrediction`: how often
it will be right (pass rate), how long a solution will be (tokens) and which concepts it will use (notions). This file
holds everything that is said and decided about such predictions:

    prompts                solution_prompt, meta_prompt            section 3.2
    reading and writing    parse_meta, render_meta                 section 3.2
    predictive gating      should_skip                             section 3.3
    early cutoff           length_limit                            section 3.3
    expert predictions     expert_target                           section 3.3
    hints                  hint_notions, draw_hints                version 2 of the paper
    beliefs                expected_pass_rate, probability_alike   not in the paper

`rewards.py` scores predictions, and `train.py` is the loop that uses all of this. No function here keeps a state.
Run `python masa.py` for a worked example. Left out: the paper's own prompts, and JSON read by string matching.
"""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, median, pstdev
from typing import Annotated, Literal

GateSide = Literal["off", "hopeless", "both"]
Hints = Literal["off", "votes", "draws"]
SHARE = {"least": 0, "most": 1}  # limits of an option
# In text a pass rate is a count out of this many attempts; in `MetaPrediction` it is a fraction. A model writes "5"
# more reliably than "0.625", and one constant keeps question and answer on one scale.
PASS_RATE_SCALE = 8
MAX_SOLUTION_LENGTH = 1_000_000  # tokens; a longer prediction is out of range
MAX_META_CHARACTERS = 20_000  # only the end of a longer answer is searched, which bounds the time `parse_meta` takes
ROUNDING = 1e-9  # 1.1 x 100 is 110.00000000000001 in floating point, and the mean of three 0.1 is above 0.1

SOLVE_INSTRUCTION = "\nReason step by step. The last line must be: The final answer is \\boxed{answer}."
HINT_INSTRUCTION = "\nThese notions may help: "
META_INSTRUCTION = (
    "\nDo not solve this problem yet. Predict how your own attempts at it will go: how many of "
    f"{PASS_RATE_SCALE} attempts will be right (pass_rate, an integer from 0 to {PASS_RATE_SCALE}), how many tokens a "
    "right solution will take (solution_length, an integer up to "
)
META_NOTIONS = ") and which concepts it will use that the problem does not name (notions). "
META_FORM = (
    "one JSON object like this, with your own values: "
    '{"pass_rate": 4, "solution_length": 60, "notions": ["ratio", "average"]}'
)
META_INSTRUCTION_END = f"{META_NOTIONS}Answer with nothing but {META_FORM}"
# With --meta-reasoning, a prediction begins with a thought, as in the paper.
THOUGHT_START, THOUGHT_END = "<meta>", "</meta>"
META_REASONING_END = (
    f"{META_NOTIONS}First think step by step, between {THOUGHT_START} and {THOUGHT_END}, about what the problem asks "
    f"for and where attempts may fail. Then, after {THOUGHT_END}, write {META_FORM}"
)


@dataclass
class GateOptions:
    """How predictions are acted on (MASA-efficient)."""

    efficient_from: Annotated[int, "first step that acts on predictions", {"least": 0, "real": 50}] = 30
    gate: Annotated[GateSide, "off: skip nothing; hopeless: predicted all wrong; both: all correct, too"] = "hopeless"
    gate_margin: Annotated[float, "how far a predicted rate may be from 0 (or 1), a belief from 1", {"least": 0}] = 0.1
    gate_loss: Annotated[float, "act while the gate would skip at most this share of what teaches", SHARE] = 0.2
    explore: Annotated[float, "share of problems that are neither skipped nor cut", SHARE] = 0.1
    cutoff: Annotated[float, "stop solutions at this multiple of the predicted length; 0: never", {"least": 0}] = 2.0
    hints: Annotated[
        Hints, "notions put into solution prompts; votes: the most named; draws: for each, those of one prediction"
    ] = "off"


@dataclass
class ImitationOptions:
    """How expert predictions are imitated: the policy's own best ones, corrected by what really happened."""

    experts: Annotated[bool, "imitate expert predictions"] = True
    expert_lr: Annotated[float, "learning rate; falls to 0 during the run", {"above": 0, "real": 1e-6}] = 1e-4
    expert_failures: Annotated[bool, "also imitate a pass rate of 0 on problems without a correct solution"] = True
    expert_notion: Annotated[float, "least notion reward of an expert prediction", SHARE] = 0.2
    expert_optimizer: Annotated[
        Literal["own", "shared"], "own: an AdamW of its own; shared: that of the update, at a rate that does not fall"
    ] = "own"


@dataclass(frozen=True)
class MetaPrediction:
    """What a policy says about its own attempts at a problem before it makes them.

    pass_rate: predicted share of correct attempts, a fraction in [0, 1].
    solution_length: predicted length of a correct solution, in tokens, end token included.
    notions: predicted concepts, as the model wrote them.
    thought: what it wrote before, up to </meta>; two predictions that differ only here are equal.
    """

    pass_rate: float
    solution_length: int
    notions: tuple[str, ...]
    thought: str = field(default="", compare=False, kw_only=True)


# ---- prompts, reading and writing


def solution_prompt(problem: str, hint: Sequence[str] = ()) -> str:
    """Return the user message that asks for a solution; `hint` lists notions to suggest."""
    hinted = HINT_INSTRUCTION + ", ".join(hint) if hint else ""
    return problem + hinted + SOLVE_INSTRUCTION


def meta_prompt(problem: str, max_length: int, reasoning: bool = False) -> str:
    """Return the user message that asks for a prediction and, with `reasoning`, for a thought before it.

    max_length: the longest allowed *response*, in tokens.
    """
    return f"{problem}{META_INSTRUCTION}{max_length}{META_REASONING_END if reasoning else META_INSTRUCTION_END}"


def render_meta(prediction: MetaPrediction) -> str:
    """Write a prediction as `parse_meta` reads it: its thought, and JSON with the pass rate as a count."""
    written = asdict(prediction) | {"pass_rate": pass_rate_count(prediction.pass_rate)}
    thought = written.pop("thought")
    # Written as escapes: a lone surrogate, which a model can smuggle in as \ud800, would crash a tokenizer, and a mark
    # of a thought would hide the object from `parse_meta`.
    special = f"[\ud800-\udfff]|<(?=/?{THOUGHT_START[1:]})"  # a surrogate, or the < of <meta> and </meta>
    text = re.sub(special, lambda match: f"\\u{ord(match[0]):04x}", json.dumps(written, ensure_ascii=False))
    return f"{thought}\n{text}" if thought else text


def pass_rate_count(pass_rate: float) -> int:
    """Return a pass rate as a count out of 8, rounded inward: 8 stands only for all right, 0 only for none.

    Rounded to the nearest, 15 right of 16 would be 8, and predictions would learn to call such a problem certain.
    """
    return min(max(round(pass_rate * PASS_RATE_SCALE), int(pass_rate > 0)), PASS_RATE_SCALE - int(pass_rate < 1))


def parse_meta(text: str) -> MetaPrediction | None:
    """Read the last whole JSON object with all three keys out of a model's answer; return None if there is none.

    Key order, spacing, code fences and prose around the object do not matter. A wrong type (true is not a number), a
    number out of range or NaN makes the whole prediction None. Objects in the thought, which is all before the last
    </meta>, do not count; a thought that does not end makes it None, too. Nothing is raised.
    """
    answer = text.rpartition(THOUGHT_END)[2]
    if THOUGHT_START in answer:
        return None
    keys = ("pass_rate", "solution_length", "notions")
    answers = [found for found in _json_objects(answer[-MAX_META_CHARACTERS:]) if found.keys() >= set(keys)]
    if not answers:
        return None
    count, length, notions = (answers[-1][key] for key in keys)
    if type(count) is not int or not 0 <= count <= PASS_RATE_SCALE:
        return None
    if type(length) is not int or not 1 <= length <= MAX_SOLUTION_LENGTH:
        return None
    if type(notions) is not list or not all(type(notion) is str for notion in notions):
        return None
    thought = text[: len(text) - len(answer)]
    return MetaPrediction(count / PASS_RATE_SCALE, length, tuple(notions), thought=thought)


def _json_objects(text: str) -> Iterator[dict]:
    """Yield the outermost whole JSON objects in `text`, in order; anything else is passed over."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):  # not JSON, an absurdly long number, or absurdly deep nesting
            end = start + 1
        else:
            yield value
        start = text.find("{", end)


# ---- decisions


def _parsed(predictions: Sequence[MetaPrediction | None]) -> list[MetaPrediction]:
    """Return the predictions that parsed, or none of them if fewer than half did: too few to act on."""
    parsed = [prediction for prediction in predictions if prediction is not None]
    return parsed if 2 * len(parsed) >= len(predictions) else []


def predicted_pass_rate(predictions: Sequence[MetaPrediction | None]) -> float | None:
    """Return the mean predicted pass rate, a fraction; None if fewer than half of the predictions parsed."""
    parsed = _parsed(predictions)
    return fmean(prediction.pass_rate for prediction in parsed) if parsed else None


def should_skip(
    predictions: Sequence[MetaPrediction | None], std_threshold: float = 0.1, margin: float = 0.1, easy: bool = True
) -> bool:
    """Decide whether to skip a problem because all its solutions will be alike (predictive gating, section 3.3).

    True if the predicted pass rates agree (population standard deviation below `std_threshold`) and their mean is
    within `margin` of 0 or, with `easy`, of 1: a group that is all correct or all wrong has no advantages and teaches
    nothing. False if fewer than half parsed.
    """
    rates = [prediction.pass_rate for prediction in _parsed(predictions)]
    if not rates or pstdev(rates) >= std_threshold:
        return False
    return fmean(rates) <= margin + ROUNDING or (easy and fmean(rates) >= 1 - margin - ROUNDING)


def length_limit(predictions: Sequence[MetaPrediction | None], multiplier: float = 2.0, ceiling: int = 8192) -> int:
    """Return the number of tokens after which a solution is stopped: `multiplier` x the median predicted length.

    It is rounded up, at least 1 and at most `ceiling`; it is `ceiling` if fewer than half of the predictions parsed.
    """
    lengths = [prediction.solution_length for prediction in _parsed(predictions)]
    if not lengths:
        return ceiling
    return max(1, min(ceiling, math.ceil(multiplier * median(lengths) - ROUNDING)))


# ---- beliefs: the probabilities of the counts 0..8, read instead of drawn (`Policy.beliefs`): one forward pass over
# the prompt shows all nine. Not in the paper.


def expected_pass_rate(belief: Sequence[float]) -> float:
    """Return the mean of a belief, a fraction: the probabilities of the counts 0..8 -> the expected pass rate."""
    return sum(count * probability for count, probability in enumerate(belief)) / PASS_RATE_SCALE


def probability_alike(belief: Sequence[float], easy: bool = True) -> float:
    """Return the probability that all solutions will be wrong or, with `easy`, all wrong or all right."""
    return belief[0] + (belief[-1] if easy else 0.0)


# ---- experts and hints


def expert_target(
    predictions: Sequence[MetaPrediction | None],
    notion_rewards: Sequence[float],
    correct_lengths: Sequence[int],
    pass_rate: float,
    failures: bool = False,
    least_notion_reward: float = 0.2,
) -> MetaPrediction | None:
    """Return what should have been predicted: the best notions with the *true* length and pass rate, or None.

    The notions are those of the prediction with the highest notion reward, if that is at least `least_notion_reward`
    (0.2 in the released code); the length is the median of the correct rollouts' lengths, in tokens. The thought
    of that prediction is kept as it is, even where it argues for other figures.

    In the paper, a problem without a correct rollout has no expert, so only successes are imitated and the policy
    learns to expect success. With `failures`, the expert of such a problem is its first prediction that parsed, with
    the true pass rate 0; its length and notions stay, since no correct solution contradicts them.
    """
    if failures and not correct_lengths:
        first = next((prediction for prediction in predictions if prediction is not None), None)
        return first and replace(first, pass_rate=0.0)
    scored = [pair for pair in zip(notion_rewards, predictions, strict=True) if pair[1] is not None]
    reward, best = max(scored, key=lambda pair: pair[0], default=(0.0, None))  # the first of equally good ones
    if best is None or reward < least_notion_reward or not correct_lengths:
        return None
    return replace(best, pass_rate=pass_rate, solution_length=round(median(correct_lengths)))


def hint_notions(predictions: Sequence[MetaPrediction | None], count: int = 3) -> tuple[str, ...]:
    """Return the `count` notions named by the most predictions, to be put into the solution prompt."""
    named = (notion for prediction in _parsed(predictions) for notion in dict.fromkeys(prediction.notions))
    votes = Counter(named)  # each prediction votes once for a notion
    return tuple(notion for notion, _ in votes.most_common(count))


def draw_hints(predictions: Sequence[MetaPrediction | None], count: int, rng: random.Random) -> list[tuple[str, ...]]:
    """Return a hint for each of `count` solutions: the notions of one prediction, drawn at random (version 2).

    The paper also tells the predicted length. There are no hints if fewer than half of the predictions parsed.
    """
    parsed = _parsed(predictions)
    return [rng.choice(parsed).notions if parsed else () for _ in range(count)]


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
    print("\nTwo of three parsed (9 of 8 attempts is out of range). Their pass rates are 0.125 and 0: the mean 0.0625")
    print("is within 0.1 of 0, the standard deviation 0.0625 is below 0.1. Skip the problem:", should_skip(predictions))
    print("The median predicted length is 35.5, and twice that is the limit:", length_limit(predictions, ceiling=96))
    belief = [0.75, 0.125, 0, 0, 0, 0, 0, 0, 0.125]
    print(f"A belief in the counts 0 to 8: {belief}. The expected pass rate is")
    print(f"(0.125 x 1 + 0.125 x 8) / 8 = {expected_pass_rate(belief):.4f}; all alike: {probability_alike(belief)}.")
    expert = expert_target(predictions, [0.0, 0.5, 0.0], correct_lengths=[28, 36, 40], pass_rate=3 / 8)
    print("If 3 of 8 attempts are right, with 28, 36 and 40 tokens, the expert prediction is:", expert)


if __name__ == "__main__":
    main()
