"""Evaluation: how often is the policy right, and how well do its predictions fit what it does?

    pass@1     mean share of correct solutions, with a bootstrap confidence interval over problems; greedy as well
    pass@k     the unbiased estimate of the chance that at least one of k solutions is correct
    vote@k     how often the most frequent of k answers is correct
    rewards    the three alignment rewards of predictions

`python eval.py --model DIR DIR --data arithmetic MATH500` evaluates each model on each source and prints tables. With
--out it writes eval.json (all figures) and evaluations.jsonl (problem by problem), which `python -m lab.awareness` and
`python -m lab.spend` read. Left out: sets whose answers are programs (running what a model wrote needs a sandbox).
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from tqdm import tqdm

import masa
from engine.command_line import OptionError, add_flags, defaults_for, make
from engine.figures import transcript
from engine.load import load_policy
from models.loading import ModelOptions
from models.policy import Policy
from problems import benchmarks, source
from problems.kinds import answer_groups
from problems.verify import extract_answer
from rewards import COMPONENTS, mean_rewards
from rollout import Attempt, SamplingOptions, align, generated_tokens, predict, solve

# The figures that training writes to metrics.jsonl as eval_NAME.
IN_METRICS = """pass1 pass1_interval pass1_by_level zero_variance_frac mean_length parsed_frac""".split()
IN_METRICS += [f"reward_{name}" for name in COMPONENTS]
PROBLEMS_AT_ONCE = 64  # the unit of the progress bar, and what bounds memory
VOTE_PICKS = 32  # random choices of k solutions, over which majority votes are averaged


@dataclass
class EvalOptions:
    """Evaluation during training."""

    eval_every: Annotated[int, "steps between evaluations on held-out problems", {"least": 1}] = 40
    eval_problems: Annotated[int, "held-out problems", {"least": 1, "real": 64}] = 96
    eval_samples: Annotated[int, "solutions to each of them", {"least": 1, "real": 4}] = 16
    eval_predictions: Annotated[int, "predictions for each of them, with every algorithm", {"least": 0}] = 4


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate the chance that k solutions hold a correct one, from n drawn of which c are correct.

    1 - C(n - c, k) / C(n, k), the unbiased estimate of Chen et al. 2021. Raises ValueError unless 0 <= c <= n and
    1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"expected 0 <= c <= n and 1 <= k <= n, found n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def bootstrap_interval(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Return the 95% bootstrap confidence interval of the mean of `values`, one for each problem."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(np.asarray(values)[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def majority(votes: Sequence[int], correct: Sequence[int]) -> bool:
    """Say whether the most frequent answer is correct; the first of equally frequent ones counts.

    A vote of -1 abstains; if nobody votes, the answer counts as wrong.
    """
    counted = Counter(vote for vote in votes if vote >= 0)
    if not counted:
        return False
    winner, _ = counted.most_common(1)[0]
    return bool(correct[list(votes).index(winner)])


def vote_at_k(rows: Sequence[dict], k: int, seed: int = 0) -> float:
    """Return the share of correct majority votes of k solutions; rows: problems with "votes" and "correct"."""
    rng, right = np.random.default_rng(seed), []
    for row in rows:
        for picked in (rng.permutation(len(row["votes"]))[:k] for _ in range(VOTE_PICKS)):
            right.append(majority([row["votes"][i] for i in picked], [row["correct"][i] for i in picked]))
    return float(np.mean(right))


def attempt_all(
    policy: Policy,
    problems: Sequence[source.Problem],
    sampling: SamplingOptions,
    *,
    seed: int = 0,
    hints: bool = False,
    label: str = "",
) -> list[Attempt]:
    """Predict and solve every problem, with neither gate nor cutoff; the same seed draws the same random numbers.

    hints: put the predicted notions into the solution prompts.  label: of the progress bar.
    """
    attempts = [Attempt(problem) for problem in problems]
    stream = torch.Generator().manual_seed(seed + policy.rank)
    starts = range(0, len(attempts), PROBLEMS_AT_ONCE)
    for start in tqdm(starts, label, unit="batch", leave=False, disable=policy.rank > 0):
        batch = attempts[start : start + PROBLEMS_AT_ONCE]
        if sampling.predictions:
            predict(policy, batch, sampling, stream)
        for attempt in batch if hints else ():
            attempt.hint = masa.hint_notions(attempt.predictions)
        solve(policy, batch, sampling, stream)
        align(batch)
    return attempts


def summarize(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Return the figures of solved attempts as plain numbers, None where nothing defines them."""
    if not attempts:
        raise ValueError("no problems to evaluate on")
    rates = [a.pass_rate for a in attempts]
    samples = len(attempts[0].solutions)
    solutions = [rollout for a in attempts for rollout in a.solutions]
    parsed = [prediction is not None for a in attempts for prediction in a.predictions]
    levels = sorted({a.problem.level for a in attempts})
    ks = [2**j for j in range(samples.bit_length())]
    return {
        "problems": len(attempts),
        "samples": samples,
        "pass1": float(np.mean(rates)),
        "pass1_interval": bootstrap_interval(rates),
        "pass_at_k": {str(k): float(np.mean([pass_at_k(samples, sum(a.correct), k) for a in attempts])) for k in ks},
        "pass1_by_level": {
            str(level): float(np.mean([a.pass_rate for a in attempts if a.problem.level == level])) for level in levels
        },
        "zero_variance_frac": float(np.mean([a.zero_variance for a in attempts])),
        "mean_length": generated_tokens(solutions) / len(solutions),
        "truncated_frac": float(np.mean([rollout.finish_reason != "stop" for rollout in solutions])),
        "parsed_frac": float(np.mean(parsed)) if parsed else None,
        "verifier_timeouts": sum(a.timeouts for a in attempts),
        **mean_rewards([rewards for a in attempts for rewards in a.alignments]),
    }


def with_votes(attempt: Attempt) -> dict[str, Any]:
    """Return a problem for evaluations.jsonl, with the number of the group of equal answers of each solution."""
    answers = [extract_answer(text) for text in attempt.responses]
    return transcript(attempt, 0) | {"votes": answer_groups(answers, attempt.problem.kind)}


def evaluate(
    policy: Policy, problems: Sequence[source.Problem], sampling: SamplingOptions, options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict]]:
    """Return all figures of one policy on one source, and its problems with what was predicted and what happened."""
    attempts = attempt_all(policy, problems, sampling, seed=options.seed, label="sampling")
    result, rows = summarize(attempts), [with_votes(attempt) for attempt in attempts]
    result["vote_at_k"] = {k: vote_at_k(rows, int(k)) for k in result["pass_at_k"]}
    if options.greedy:
        greedy = dataclasses.replace(sampling, temperature=0.0, samples=1, predictions=0)
        result["greedy"] = summarize(attempt_all(policy, problems, greedy, label="greedy"))["pass1"]
    if options.hints:
        hinted = attempt_all(policy, problems, sampling, seed=options.seed, hints=True, label="with hints")
        result["pass1_with_hints"] = summarize(hinted)["pass1"]
    return result, rows


def table(result: dict[str, Any]) -> str:
    """Return the figures as lines for a person."""
    low, high = result["pass1_interval"]
    rewards = {name: result[f"reward_{name}"] for name in COMPONENTS}
    lines = [
        f"{result['problems']} problems x {result['samples']} solutions",
        f"pass@1            {result['pass1']:.3f}   95% interval {low:.3f} to {high:.3f}",
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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of eval.py; limits that are not given are those of training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], argument_default=argparse.SUPPRESS)
    sets = ", ".join(benchmarks.BENCHMARKS)
    parser.add_argument("--model", nargs="+", default=["tiny"], help="each is tiny, a model directory or a hub id")
    parser.add_argument(
        "--data", nargs="+", default=["arithmetic"], help=f"each is a generator, a file of problems, or one of {sets}"
    )
    parser.add_argument("--levels", default="", help="keep only problems of these levels, such as 1,2,3")
    parser.add_argument("--problems", type=int, default=128, help="how many held-out problems (default: 128)")
    parser.add_argument("--whole", action="store_true", default=False, help="all problems of a file, held out or not")
    parser.add_argument("--hints", action="store_true", default=False, help="solve once more with notions as hints")
    parser.add_argument("--greedy", action=argparse.BooleanOptionalAction, default=True, help="also solve greedily")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default: 1, all tokens)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; held-out problems stay the same")
    parser.add_argument("--out", type=Path, default=None, help="folder for eval.json and evaluations.jsonl")
    add_flags(parser, [SamplingOptions, ModelOptions], leave_out=("model", "max_prompt_tokens"))
    parser.set_defaults(samples=32, predictions=4)
    return parser


def held_out_problems(name: str, options: argparse.Namespace) -> list[source.Problem]:
    """Return problems of a source that training never sees; of one of the paper's sets, or with --whole, any."""
    levels = source.DataOptions(levels=options.levels).chosen_levels
    is_benchmark, is_endless = name in benchmarks.BENCHMARKS, name.partition(":")[0] in source.GENERATORS
    if is_benchmark:
        found = source.listed_source(name, benchmarks.load(name), levels)
    else:
        found = source.load_problems(name, levels=levels)
    found.print_skipped()
    count = None if options.whole and not is_endless else options.problems
    return found.heldout(count, whole=is_benchmark or options.whole)


def main() -> None:
    options = build_parser().parse_args()
    results, shown = [], []
    try:
        if options.problems < 1:
            raise OptionError(f"--problems: found {options.problems}, expected at least 1")
        sources = {name: held_out_problems(name, options) for name in options.data}
        for model in options.model:
            values = defaults_for(model, [SamplingOptions]) | vars(options)
            sampling = dataclasses.replace(make(SamplingOptions, values), top_p=options.top_p)
            policy = load_policy(make(ModelOptions, values | {"model": model}))
            for name, problems in sources.items():
                result, rows = evaluate(policy, problems, sampling, options)
                results.append({"model": model, "data": name} | result)
                shown.append({"model": model, "data": name, "problems": rows})
                print(f"\n{model} on {name}\n{table(result)}")
    except ValueError as error:  # from options, problems, policy or sampler: each message says what is wrong
        sys.exit(f"eval.py: {error}")
    if len(results) > 1:
        print(f"\n{'pass@1':<10}{'greedy':<10}{'tokens':<10}model, data")
        for r in results:
            greedy = _shown(r.get("greedy"))
            print(f"{r['pass1']:<10.3f}{greedy:<10}{r['mean_length']:<10.1f}{r['model']}, {r['data']}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"options": vars(options), "results": results}, indent=2, default=str)
        (options.out / "eval.json").write_text(text + "\n")
        with open(options.out / "evaluations.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in shown)
        print(f"\nwritten to {options.out}; its self-knowledge: python -m lab.awareness {options.out}")


if __name__ == "__main__":
    main()
