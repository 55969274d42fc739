"""Ask a policy a problem of your own: what does it say, what does it believe, and what comes true?

    python -m lab.ask "9+8-4" --answer 13
    python -m lab.ask --model runs/masa-efficient-tiny-seed0     # asks you for problems

Any model can be asked. Without an answer, equal answers are counted; which of them is right is left open.
"""

import argparse
import contextlib
from collections import Counter
from collections.abc import Iterator
from statistics import fmean

import torch

import masa
from engine.command_line import USAGE, add_flags, defaults_for, make
from engine.load import load_policy
from engine.terminal import ending
from lab.awareness import READ_AT
from lab.explain import fitted, votes
from masa import GateOptions
from models import tiny
from models.loading import ModelOptions
from models.policy import Policy
from problems.kinds import answer_groups
from problems.source import Problem
from problems.verify import extract_answer
from rewards import COMPONENTS
from rollout import Attempt, SamplingOptions, align, predict, read, solve

SHOWN = 3  # answers of which a solution is shown


def tell(policy: Policy, problem: Problem, sampling: SamplingOptions, gate: GateOptions, seed: int) -> Iterator[str]:
    """Yield what the policy predicts of a problem, what the gate would do, and what its solutions are."""
    attempt, stream = Attempt(problem), torch.Generator().manual_seed(seed)
    letters = tiny.untaught([problem.text]) if hasattr(policy.model.config, tiny.MARK) else ""
    if letters:
        yield f"warning: the embedded policy was never taught {letters!r}"
    predict(policy, [attempt], sampling, stream)
    yield from said(attempt)
    yield believed(policy, attempt, sampling)
    skips = masa.should_skip(attempt.predictions, margin=gate.gate_margin, easy=gate.gate == "both")
    limit = masa.length_limit(attempt.predictions, gate.cutoff, sampling.max_new_tokens)
    yield f"gate       {'would skip it' if skips else f'would let it be solved, in at most {limit} tokens'}"
    solve(policy, [attempt], sampling, stream)
    align([attempt])
    yield from happened(attempt)


def said(attempt: Attempt) -> Iterator[str]:
    """Yield what the policy says of its own solutions."""
    parsed = [prediction for prediction in attempt.predictions if prediction]
    if parsed:
        counts = [round(prediction.pass_rate * masa.PASS_RATE_SCALE) for prediction in parsed]
        lengths = [prediction.solution_length for prediction in parsed]
        notions = ", ".join(dict.fromkeys(notion for prediction in parsed for notion in prediction.notions)) or "none"
        yield f"said       {fmean(counts):.3g} of {masa.PASS_RATE_SCALE} right {counts}, tokens {lengths}"
        yield f"           notions {notions}"
    for text, prediction in zip(attempt.meta_responses, attempt.predictions, strict=True):
        if not prediction:
            yield f"unreadable {text}"


def believed(policy: Policy, attempt: Attempt, sampling: SamplingOptions) -> str:
    """Return what the policy believes of its own solutions, and whether the gate of --algo masa-read would skip it."""
    if not policy.counts:
        return "read       nothing: this tokenizer begins several of the counts 0 to 8 with the same token"
    read(policy, [attempt], sampling)
    right, alike = masa.expected_pass_rate(attempt.belief), masa.probability_alike(attempt.belief)
    told = f"{right * masa.PASS_RATE_SCALE:.3g} of {masa.PASS_RATE_SCALE} right, all alike with probability {alike:.2f}"
    return f"read       {told}: masa-read {'would skip it' if alike >= READ_AT else 'would let it be solved'}"


def happened(attempt: Attempt) -> Iterator[str]:
    """Yield how often each answer came, and one solution of each.

    If it is known which answer is right, yield a right and a wrong solution instead, and the rewards of predictions.
    """
    answers, knows = [extract_answer(text) for text in attempt.responses], bool(attempt.problem.answer)
    groups = answer_groups(answers)
    first = dict(zip(reversed(groups), reversed(answers), strict=True))  # of equal answers, the one that came first
    labels = [first[group] or "no answer" for group in groups]
    counts = ", ".join(f"{label} ({count}x)" for label, count in Counter(labels).most_common())
    yield f"happened   {f'{sum(attempt.correct)} of {len(labels)} right; ' if knows else ''}answers {counts}"
    shown = [label for label, _ in Counter(labels).most_common(SHOWN)]
    if knows:
        labels, shown = ["right" if right else "wrong" for right in attempt.correct], ["right", "wrong"]
    for label in (label for label in shown if label in labels):
        number = labels.index(label)
        yield f"{label:<10} {attempt.responses[number]} ({len(attempt.solutions[number].response_ids)} tokens)"
    if knows and attempt.alignments:
        means = {name: fmean(getattr(rewards, name) for rewards in attempt.alignments) for name in COMPONENTS}
        yield f"rewards    {', '.join(f'{name} {mean:.2f}' for name, mean in means.items())}; mean over the predictions"
        if right := attempt.correct_lengths:
            yield f"           right solutions have {min(right)} to {max(right)} tokens"
        notions = votes(attempt, tuple(notion for p in attempt.predictions if p for notion in p.notions))
        yield f"           right:wrong solutions with each notion: {notions}"


def typed() -> Iterator[tuple[str, str]]:
    """Yield problems and answers as they are typed, until an empty line."""
    with contextlib.suppress(EOFError):
        while text := input("\nproblem (empty to end): ").strip():
            yield text, input("its answer (empty if unknown): ").strip()


def main() -> None:
    parser = argparse.ArgumentParser("python -m lab.ask", description=__doc__.splitlines()[0], usage=USAGE)
    parser.add_argument("problem", nargs="?", help="what to ask (default: what you type)")
    parser.add_argument("--answer", default="", help="its answer, if you know it")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    in_training = ("gradient_checkpointing", "shard", "max_prompt_tokens")
    add_flags(parser, [ModelOptions, SamplingOptions], leave_out=in_training)
    given = vars(parser.parse_args())
    with ending("lab.ask"):
        model = make(ModelOptions, given)
        values = defaults_for(model.model, [SamplingOptions, GateOptions]) | {"predictions": 4} | given
        sampling, gate = make(SamplingOptions, values), make(GateOptions, values)
        policy = load_policy(model)
        for text, answer in [(given["problem"], given["answer"])] if given["problem"] else typed():
            for line in tell(policy, Problem(text, answer), sampling, gate, given["seed"]):
                print(*fitted(line), sep="\n")


if __name__ == "__main__":
    main()
