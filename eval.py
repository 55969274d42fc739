"""Evaluation: how often is the policy right, and how well does it know itself?

    pass@1   mean share of right solutions, with a bootstrap confidence interval over problems
    pass@k   the unbiased estimator: the chance that at least one of k solutions is right
    meta     the three alignment rewards on problems that training never sees

`python eval.py --model DIR --data arithmetic` prints a table by difficulty level and writes `eval.json`.
Left out: sets whose answers are programs (running code that a model wrote needs a sandbox).
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import policy as policies
import tasks
from attempts import Attempt, Sampling, align, generated_tokens, predict, solve
from options import Options, preset
from policy import Policy

LIMITS = {
    "max_new_tokens": "longest solution, in tokens",
    "max_meta_tokens": "longest meta-prediction, in tokens",
    "max_cache_tokens": "rows x length in the sampler's cache; more is split",
}
# The figures that training writes to metrics.jsonl, as eval_NAME.
IN_METRICS = (
    "pass1",
    "pass1_interval",
    "pass1_by_level",
    "zero_variance_frac",
    "mean_length",
    "parsed_frac",
    "reward_length",
    "reward_difficulty",
    "reward_notion",
)
PROBLEMS_AT_ONCE = 64  # what the progress bar counts in, and what bounds memory


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n solutions, drawn without replacement, hold a right one when c are right.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of Chen et al. 2021. Raises ValueError unless
    0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"expected 0 <= c <= n and 1 <= k <= n, found n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def bootstrap_interval(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap confidence interval of the mean of `values` (one for each problem)."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(np.asarray(values)[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def attempt_all(
    policy: Policy,
    problems: Sequence[tasks.Problem],
    *,
    samples: int,
    predictions: int,
    how: Sampling,
    seed: int = 0,
    progress: Callable = lambda batches: batches,
) -> list[Attempt]:
    """Solve every problem `samples` times and predict it `predictions` times, with neither gate nor cutoff.

    The same seed draws with the same random numbers, whatever was trained in between. `progress` wraps the
    iterable of batches.
    """
    attempts = [Attempt(problem) for problem in problems]
    generator = torch.Generator().manual_seed(seed)
    for start in progress(range(0, len(attempts), PROBLEMS_AT_ONCE)):
        batch = attempts[start : start + PROBLEMS_AT_ONCE]
        if predictions:
            predict(policy, batch, predictions, how, generator)
        solve(policy, batch, samples, how, generator)
        align(batch)
    return attempts


def summarize(attempts: Sequence[Attempt]) -> dict:
    """The figures of solved attempts, as plain numbers; None where nothing defines them."""
    if not attempts:
        raise ValueError("no problems to evaluate on")
    rates = [attempt.pass_rate for attempt in attempts]
    samples = len(attempts[0].solutions)
    solutions = [rollout for attempt in attempts for rollout in attempt.solutions]
    alignments = [alignment for attempt in attempts for alignment in attempt.alignments]
    parsed = [prediction is not None for attempt in attempts for prediction in attempt.predictions]
    counts = [sum(attempt.correct) for attempt in attempts]
    levels = sorted({attempt.problem.level for attempt in attempts})
    return {
        "problems": len(attempts),
        "samples": samples,
        "pass1": float(np.mean(rates)),
        "pass1_interval": bootstrap_interval(rates),
        "pass_at_k": {
            str(k): float(np.mean([pass_at_k(samples, count, k) for count in counts]))
            for k in (2**j for j in range(samples.bit_length()))
        },
        "pass1_by_level": {
            str(level): float(np.mean([a.pass_rate for a in attempts if a.problem.level == level])) for level in levels
        },
        "zero_variance_frac": float(np.mean([attempt.zero_variance for attempt in attempts])),
        "mean_length": generated_tokens(solutions) / len(solutions),
        "truncated_frac": float(np.mean([rollout.finish_reason != "stop" for rollout in solutions])),
        "parsed_frac": float(np.mean(parsed)) if parsed else None,
        "reward_length": float(np.mean([a.length for a in alignments])) if alignments else None,
        "reward_difficulty": float(np.mean([a.difficulty for a in alignments])) if alignments else None,
        "reward_notion": float(np.mean([a.notion for a in alignments])) if alignments else None,
    }


def table(result: dict) -> str:
    """The summary as lines a person reads."""
    low, high = result["pass1_interval"]
    lines = [
        f"{result['problems']} problems x {result['samples']} samples",
        f"pass@1            {result['pass1']:.3f}   95% interval {low:.3f} to {high:.3f}",
        "pass@k            " + "   ".join(f"k={k}: {value:.3f}" for k, value in result["pass_at_k"].items()),
        "pass@1 by level   " + "   ".join(f"{level}: {v:.3f}" for level, v in result["pass1_by_level"].items()),
        f"mean length       {result['mean_length']:.1f} tokens, {result['truncated_frac']:.1%} truncated",
    ]
    if result["parsed_frac"] is not None:
        lines += [
            f"predictions       {result['parsed_frac']:.1%} parsed",
            *(f"reward {name:<10} {result[f'reward_{name}']:.3f}" for name in ("length", "difficulty", "notion")),
        ]
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Evaluate a policy: pass@k by level, and how well its predictions fit its own solutions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="tiny", help="tiny, a model directory or a hub id")
    parser.add_argument("--data", default="arithmetic", help="arithmetic, words, logic or a file of problems")
    parser.add_argument("--problems", type=int, default=128, help="how many held-out problems")
    parser.add_argument("--whole", action="store_true", help="all of a file, for a set that was never trained on")
    parser.add_argument("--samples", type=int, default=32, help="solutions to each problem")
    parser.add_argument("--predictions", type=int, default=4, help="meta-predictions for each problem; 0 for none")
    for name, text in LIMITS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, help=f"{text}; without it as in training: see options.py")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; the held-out problems stay the same")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run")
    parser.add_argument("--out", type=Path, default=None, help="folder for eval.json")
    options = parser.parse_args(arguments)
    trained = Options(**preset("masa", options.model))
    for name in LIMITS:
        if getattr(options, name) is None:
            setattr(options, name, getattr(trained, name))
    return options


def main() -> None:
    options = parse_arguments()
    try:
        problems = tasks.load_problems(options.data).heldout(options.problems, whole=options.whole)
        policy = policies.load(options.model, options.device)
        attempts = attempt_all(
            policy,
            problems,
            samples=options.samples,
            predictions=options.predictions,
            how=Sampling(
                options.max_new_tokens,
                options.max_meta_tokens,
                options.temperature,
                options.top_p,
                options.max_cache_tokens,
            ),
            seed=options.seed,
            progress=lambda batches: tqdm(batches, desc="evaluating", unit="batch"),
        )
    except ValueError as error:  # of problems, policy or sampler: each message says what is wrong
        sys.exit(f"eval.py: {error}")
    result = summarize(attempts)
    print(table(result))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "eval.json").write_text(json.dumps(vars(options) | result, indent=2, default=str) + "\n")
        print(f"written to {options.out / 'eval.json'}")


if __name__ == "__main__":
    main()
