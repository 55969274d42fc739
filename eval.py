"""Evaluation: how often is the policy right, and how well does it know itself?

    pass@1     mean share of right solutions, with a bootstrap confidence interval over problems; greedy too
    pass@k     the unbiased estimator: the chance that at least one of k solutions is right
    vote@k     is the most frequent of k answers right? (spend.py)
    meta       the three alignment rewards, and how predictions fit what happens (awareness.py)
    spending   accuracy against tokens, with and without predictions (spend.py)

`python eval.py --model DIR DIR --data arithmetic MATH500` evaluates each model on each source, prints tables and, with
--out, writes eval.json (all figures) and evaluations.jsonl (problem by problem).
Left out: sets whose answers are programs (running code that a model wrote needs a sandbox).
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import masa
from attempts import Attempt, Sampling, align, generated_tokens, predict, solve
from engine import parallel
from engine.journal import transcript
from lab import spend
from lab.awareness import awareness
from models import policy as policies
from models.policy import Policy
from options import Options, preset
from problems import benchmarks, tasks, verify
from rewards import COMPONENTS, mean_rewards

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
    *(f"reward_{name}" for name in COMPONENTS),
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
    hints: bool = False,
    progress: Callable = lambda batches: batches,
) -> list[Attempt]:
    """Solve every problem `samples` times and predict it `predictions` times, with neither gate nor cutoff.

    hints: suggest the predicted notions to the solver.  The same seed draws with the same random numbers, whatever was
    trained in between.  `progress` wraps the iterable of batches.
    """
    attempts = [Attempt(problem) for problem in problems]
    generator = torch.Generator().manual_seed(seed + parallel.rank())
    for start in progress(range(0, len(attempts), PROBLEMS_AT_ONCE)):
        batch = attempts[start : start + PROBLEMS_AT_ONCE]
        if predictions:
            predict(policy, batch, predictions, how, generator)
        for attempt in batch if hints else ():
            attempt.hint = masa.hint_notions(attempt.predictions)
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
        **mean_rewards(alignments),
    }


def evaluate(
    policy: Policy, problems: Sequence[tasks.Problem], options: argparse.Namespace, how: Sampling, label: str
) -> tuple[dict[str, Any], list[dict]]:
    """All figures of one policy on one source, and the problems with what was predicted and what happened."""

    def draw(what: str, samples: int, predictions: int, how: Sampling, hints: bool = False) -> list[Attempt]:
        return attempt_all(
            policy,
            problems,
            samples=samples,
            predictions=predictions,
            how=how,
            seed=options.seed,
            hints=hints,
            progress=lambda batches: tqdm(batches, desc=f"{label}, {what}", unit="batch", leave=False),
        )

    before = verify.timeouts()
    attempts = draw("sampling", options.samples, options.predictions, how)
    result: dict[str, Any] = summarize(attempts)
    shown = [with_votes(attempt) for attempt in attempts]
    result["spending"] = spend.curves(shown, options.cutoff_multiplier, how.max_new_tokens)
    result["vote_at_k"] = {str(p["samples"]): p["accuracy"] for p in result["spending"]["the same for all"]}
    greedy = dataclasses.replace(how, temperature=0.0)
    result["greedy"] = summarize(draw("greedy", 1, 0, greedy))["pass1"] if options.greedy else None
    if options.predictions:
        result["awareness"] = awareness(
            shown,
            group=options.group,
            gate_std=options.gate_std,
            gate_margin=options.gate_margin,
            gate_easy=options.gate_easy,
            cutoff_multiplier=options.cutoff_multiplier,
            max_new_tokens=how.max_new_tokens,
        )
    if options.hints:
        hinted = draw("with hints", options.samples, options.predictions, how, hints=True)
        result["pass1_with_hints"] = summarize(hinted)["pass1"]
        result["spending"]["with hints"] = spend.curve([with_votes(attempt) for attempt in hinted], spend.same_for_all)
    return result | {"verifier_timeouts": verify.timeouts() - before}, shown


def with_votes(attempt: Attempt) -> dict:
    """A problem as evaluations.jsonl has it, with the group of equal answers that each solution belongs to."""
    return transcript(0, attempt) | {"votes": spend.answer_groups(attempt.responses, attempt.problem.kind)}


def table(result: dict) -> str:
    """The figures as lines a person reads."""
    low, high = result["pass1_interval"]
    lines = [
        f"{result['problems']} problems x {result['samples']} samples",
        f"pass@1            {result['pass1']:.3f}   95% interval {low:.3f} to {high:.3f}",
        f"greedy            {_shown(result['greedy'])}",
        "pass@k            " + _listed(result["pass_at_k"], "k="),
        "majority vote@k   " + _listed(result["vote_at_k"], "k="),
        "pass@1 by level   " + _listed(result["pass1_by_level"]),
        f"mean length       {result['mean_length']:.1f} tokens, {result['truncated_frac']:.1%} truncated, "
        f"{result['verifier_timeouts']} verifier time-outs",
    ]
    if "pass1_with_hints" in result:
        lines.append(f"pass@1 with hints {result['pass1_with_hints']:.3f}")
    if "awareness" in result:
        lines += _awareness_lines(result)
    lines.append("accuracy of a vote for so many tokens a problem, predictions included:")
    for name, points in result["spending"].items():
        lines.append(f"  {name:<17} " + "   ".join(f"{p['accuracy']:.3f} for {p['tokens']:.0f}" for p in points))
    return "\n".join(lines)


def _awareness_lines(result: dict) -> list[str]:
    found = result["awareness"]
    rate, length, gate, cutoff = found.get("pass_rate", {}), found["length"], found["gate"], found["cutoff"]
    rewards = {name: result[f"reward_{name}"] for name in COMPONENTS}
    lines = [
        f"predictions       {result['parsed_frac']:.1%} parsed; rewards   {_listed(rewards)}",
        "predicted rate    "
        + _listed({k: rate.get(k) for k in ("correlation", "error", "calibration_error", "spread")}),
        "Brier score       "
        + _listed({"of one prediction for all": rate.get("brier_of_a_constant"), "found": rate.get("brier")}),
        "predicted length  " + _listed(length),
        f"notion precision  {_shown(found['notion_precision'])}",
    ]
    for name, point in (
        ("gate", gate),
        ("best thresholds", gate["best_f1"] or {}),
        ("oracle, as many", gate["oracle"]["same_share"]),
        ("oracle, best F1", gate["oracle"]["best_f1"]),
        ("cutoff", cutoff),
    ):
        names = ("precision", "recall", "f1", "share", "margin")
        lines.append(f"{name:<18}" + _listed({key: point[key] for key in names if key in point}))
    lines += [
        f"the gate saves    {gate['tokens_saved']:,} of {gate['tokens']:,} tokens for {gate['tokens_predicting']:,} in "
        f"predictions, and loses {gate['right_lost']} of {gate['right']} right answers",
        f"the cutoff saves  {cutoff['tokens_saved']:,} tokens, and loses {cutoff['right_lost']} right answers in "
        f"{cutoff['cut']} cut",
    ]
    return lines


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _listed(values: dict, before: str = "") -> str:
    return "   ".join(f"{before}{name}: {_shown(value)}" for name, value in values.items())


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line; ones that are not given are those of training."""
    parser = argparse.ArgumentParser(
        description="Evaluate policies: how often right, by level, and how well their predictions fit what they do.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", nargs="+", default=["tiny"], help="each is tiny, a model directory or a hub id")
    parser.add_argument(
        "--data",
        nargs="+",
        default=["arithmetic"],
        help=f"each is {', '.join(tasks.GENERATORS)}, a file of problems, or {', '.join(benchmarks.BENCHMARKS)}",
    )
    parser.add_argument("--levels", default="", help="keep only problems of these levels, such as 1,2,3; empty for all")
    parser.add_argument("--problems", type=int, default=128, help="how many held-out problems")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="all problems of a file or set, held out or not, for one that was never trained on",
    )
    parser.add_argument("--samples", type=int, default=32, help="solutions to each problem")
    parser.add_argument("--predictions", type=int, default=4, help="meta-predictions for each problem; 0 for none")
    parser.add_argument("--group", type=int, default=16, help="G: the gate is to foresee whether so many are alike")
    parser.add_argument("--hints", action="store_true", help="solve once more with the predicted notions as hints")
    parser.add_argument(
        "--greedy", action=argparse.BooleanOptionalAction, default=True, help="solve once greedily, too"
    )
    for name, text in LIMITS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, help=f"{text}; without it as in training: see options.py")
    parser.add_argument("--gate-std", type=float, default=0.1, help="predictions agree below this standard deviation")
    parser.add_argument("--gate-margin", type=float, default=0.1, help="a mean this near to 0 is skipped")
    parser.add_argument(
        "--gate-easy",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="a mean near 1 is skipped, too (so are they in the training of real models)",
    )
    parser.add_argument("--cutoff-multiplier", type=float, default=2.0, help="limit: this times the predicted length")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; the held-out problems stay the same")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files that come with a model: they can do all that you can do",
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for eval.json and evaluations.jsonl")
    options = parser.parse_args(arguments)
    for name in ("problems", "samples", "group"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: found {getattr(options, name)}, expected at least 1")
    return options


def load_held_out(name: str, options: argparse.Namespace) -> list[tasks.Problem]:
    """Problems of a source that training never sees; of a benchmark any, and with --whole all there are."""
    levels = Options(levels=options.levels).chosen_levels
    if benchmark := name in benchmarks.BENCHMARKS:
        source = tasks.listed_source(name, benchmarks.load(name), levels)
    else:
        source = tasks.load_problems(name, levels=levels)
    source.print_skipped()
    everything = options.whole and name not in tasks.GENERATORS  # of which there is no end
    return source.heldout(None if everything else options.problems, whole=benchmark or options.whole)


def sampling(model: str, options: argparse.Namespace) -> Sampling:
    """How a model's responses are drawn: limits that are not given are those of its training."""
    trained = Options(**preset("masa", model))
    limits = {name: getattr(options, name) or getattr(trained, name) for name in LIMITS}
    return Sampling(**limits, temperature=options.temperature, top_p=options.top_p)


def main() -> None:
    options = parse_arguments()
    results, shown = [], []
    try:
        sources = {name: load_held_out(name, options) for name in options.data}
        for model in options.model:
            policy = policies.load(model, options.device, trust_remote_code=options.trust_remote_code)
            for name, problems in sources.items():
                of = {"model": model, "data": name}
                result, rows = evaluate(policy, problems, options, sampling(model, options), f"{model} on {name}")
                results.append(of | result)
                shown.append(of | {"problems": rows})
                print(f"\n{model} on {name}\n{table(result)}")
    except ValueError as error:  # of problems, policy or sampler: each message says what is wrong
        sys.exit(f"eval.py: {error}")
    if len(results) > 1:
        print(f"\n{'pass@1':<10}{'greedy':<10}{'tokens':<10}model, data")
        for r in results:
            print(f"{r['pass1']:<10.3f}{_shown(r['greedy']):<10}{r['mean_length']:<10.1f}{r['model']}, {r['data']}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"options": vars(options), "results": results}, indent=2, default=str)
        (options.out / "eval.json").write_text(text + "\n")
        with open(options.out / "evaluations.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in shown)
        print(f"\nwritten to {options.out / 'eval.json'}")


if __name__ == "__main__":
    main()
