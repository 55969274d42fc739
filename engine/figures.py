"""Figures: what a step did and cost, as metrics.jsonl, rollouts.jsonl and evaluations.jsonl hold it.

The cost in floating-point operations is the usual estimate, which does not depend on the machine: 2 N for a token that
is drawn and 6 N for one that is trained on (forward 2 N, backward twice that), where N is the number of parameters.
Equal prompts of a group count once. The part of attention that grows with the square of the length, the optimizer,
evaluations and the trials of the oracle gate are left out.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from grpo import Sample
from rewards import COMPONENTS
from rollout import Attempt, Rollout

# The cumulative figures in metrics.jsonl.
COUNTERS = """tokens_solution tokens_meta tokens_zero_variance tokens_trained tokens_read rollouts flops problems_seen
prompts_too_long unparsed_predictions experts_cloned skipped_updates oom_retries verifier_timeouts""".split()
# step, would be skipped, zero variance, solutions beyond the limit, correct ones among these
Judgement = tuple[int, bool, bool, int, int]


def judge(attempt: Attempt, step: int, would_skip: bool, limit: int) -> Judgement:
    """Compare what gate and cutoff would have done to an explored problem with what became of it."""
    lengths = [len(rollout.response_ids) for rollout in attempt.solutions]
    beyond = [right for length, right in zip(lengths, attempt.correct, strict=True) if length > limit]
    return step, would_skip, attempt.zero_variance, len(beyond), sum(beyond)


def step_figures(attempts: Sequence[Attempt], explored: Collection[Judgement]) -> dict[str, float | None]:
    """Return the figures of one step, None where nothing defines them; docs/glossary.md explains each.

    explored: what gate and cutoff would have done to the recently explored problems.
    """
    solved = [a for a in attempts if a.solutions]
    solutions = [rollout for a in solved for rollout in a.solutions]
    beyond = sum(count for *_, count, _ in explored)
    return {
        "train_pass_rate": _mean([a.pass_rate for a in solved]),
        "zero_variance_frac": _mean([a.zero_variance for a in solved]),
        "mean_length": _mean([len(rollout.response_ids) for rollout in solutions]),
        "truncated_frac": _mean([rollout.finish_reason == "length" for rollout in solutions]),
        "entropy": _mean([-logprob for rollout in solutions for logprob in rollout.logprobs]),
        "gated_frac": _mean([a.skipped for a in attempts]),
        "cutoff_frac": _mean([rollout.finish_reason == "cutoff" for rollout in solutions]),
        "gate_precision": _mean([useless for _, skip, useless, *_ in explored if skip]),
        "gate_recall": _mean([skip for _, skip, useless, *_ in explored if useless]),
        "wrongly_cut_frac": sum(correct for *_, correct in explored) / beyond if beyond else None,
        "parsed_frac": _mean([prediction is not None for a in attempts for prediction in a.predictions]),
        **{f"reward_{c}": _mean([getattr(r, c) for a in solved for r in a.alignments]) for c in COMPONENTS},
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def generated_tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(len(rollout.response_ids) for rollout in rollouts)


def cost_of_rollouts(attempts: Sequence[Attempt], parameters: int) -> Counter[str]:
    """Return what drawing the predictions and solutions cost, and what came of it, as counts."""
    solutions = [a.solutions for a in attempts if a.solutions]
    predictions = [a.meta_rollouts for a in attempts if a.meta_rollouts]
    useless = [a.solutions for a in attempts if a.solutions and a.zero_variance]
    tokens_solution, tokens_meta = sum(map(generated_tokens, solutions)), sum(map(generated_tokens, predictions))
    prompts = [prompt for group in solutions + predictions for prompt in {tuple(r.prompt_ids) for r in group}]
    tokens_prompt = sum(map(len, prompts))
    return Counter(
        problems_seen=len(attempts),
        rollouts=sum(map(len, solutions + predictions)),
        tokens_solution=tokens_solution,
        tokens_meta=tokens_meta,
        tokens_zero_variance=sum(map(generated_tokens, useless)),
        unparsed_predictions=sum(prediction is None for a in attempts for prediction in a.predictions),
        verifier_timeouts=sum(a.timeouts for a in attempts),
        flops=2 * parameters * (tokens_prompt + tokens_solution + tokens_meta),
    )


def cost_of_training(samples: Sequence[Sample], parameters: int, passes: int = 3) -> Counter[str]:
    """Return what training on the samples cost.

    passes: forward passes that it is worth: 3, and one more for each of a KL reference, old log-probs (several
    minibatches) and gradient checkpointing.
    """
    prompts = {tuple(sample.prompt_ids) for sample in samples}
    tokens = sum(map(len, prompts)) + sum(len(sample.response_ids) for sample in samples)
    return Counter(tokens_trained=tokens, flops=2 * parameters * passes * tokens)


def transcript(attempt: Attempt, step: int) -> dict[str, Any]:
    """Return an attempt as a person wants to read it, with one right and one wrong solution."""
    shown = {right: text for text, right in zip(attempt.responses, attempt.correct, strict=True)}
    return {
        "step": step,
        "problem": attempt.problem.text,
        "answer": attempt.problem.answer,
        "level": attempt.problem.level,
        "gated": attempt.skipped,
        "exploring": attempt.explores,
        "belief": [round(probability, 4) for probability in attempt.belief],
        "limit": attempt.limit,
        "hints": attempt.hints,
        "predictions": [prediction and dataclasses.asdict(prediction) for prediction in attempt.predictions],
        "unparsed": [t for t, p in zip(attempt.meta_responses, attempt.predictions, strict=True) if p is None],
        "rewards": [dataclasses.asdict(rewards) for rewards in attempt.alignments],
        "pass_rate": attempt.pass_rate if attempt.correct else None,
        "correct": [int(right) for right in attempt.correct],
        "lengths": [len(rollout.response_ids) for rollout in attempt.solutions],
        "tokens_meta": generated_tokens(attempt.meta_rollouts),
        "right_solution": shown.get(True),
        "wrong_solution": shown.get(False),
    }


def eval_table(result: dict[str, Any]) -> str:
    """Return the figures of eval.py for one model on one source, as lines for a person."""
    low, high = result["pass1_interval"]
    rewards = {name: result[f"reward_{name}"] for name in COMPONENTS}
    lines = [
        f"{result['problems']} problems x {result['samples']} solutions of at most {result['max_new_tokens']} tokens, "
        f"temperature {result['temperature']}, top-p {result['top_p']}",
        f"pass@1            {result['pass1']:.3f} ± {_shown(result['pass1_deviation'])} over samplings   "
        f"95% interval over problems {low:.3f} to {high:.3f}",
        f"greedy            {_shown(result.get('greedy'))}",
        f"with hints        {_shown(result.get('pass1_with_hints'))}",
        f"pass@k            {_listed(result['pass_at_k'], 'k=')}",
        f"majority vote@k   {_listed(result['vote_at_k'], 'k=')}",
        f"pass@1 by level   {_listed(result['pass1_by_level'])}",
        f"predictions       parsed: {_shown(result['parsed_frac'])}   rewards: {_listed(rewards)}",
        f"mean length       {result['mean_length']:.1f} tokens, {result['truncated_frac']:.1%} cut short, "
        f"{result['verifier_timeouts']} verifier time-outs",
    ]
    return "\n".join(line for line in lines if not line.endswith(" -"))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _listed(values: dict[str, float | None], before: str = "") -> str:
    return "   ".join(f"{before}{name}: {_shown(value)}" for name, value in values.items())


def eval_overview(results: Sequence[dict[str, Any]]) -> str:
    """Return a line for each model on each source."""
    lines = [f"{'pass@1':<10}{'greedy':<10}{'tokens':<10}model, data"]
    for r in results:
        figures = f"{r['pass1']:<10.3f}{_shown(r.get('greedy')):<10}{r['mean_length']:<10.1f}"
        lines.append(f"{figures}{r['model']}, {r['data']}")
    return "\n".join(lines)
