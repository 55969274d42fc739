"""Evaluation: how often is the policy right, and how well do its predictions fit what it does?

    pass@1     mean share of correct solutions, with a bootstrap confidence interval over problems, and the standard
               deviation over samplings (sampling j is solution j of every problem); the same for greedy solutions
    pass@k     the unbiased estimate of the chance that at least one of k solutions is correct
    vote@k     how often the most frequent of k answers is correct (`problems/kinds.py`)
    rewards    the three alignment rewards of predictions

`python eval.py --model DIR DIR --data arithmetic MATH500` evaluates each model on each source and prints tables. With
--out it writes eval.json (all figures) and evaluations.jsonl (problem by problem), which lab/awareness.py and
lab/spend.py read. Left out: sets whose answers are programs, which would have to be run.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from tqdm import tqdm

import masa
from engine.command_line import USAGE, add_flags, defaults_for, make
from engine.figures import eval_overview, eval_table, step_figures, transcript
from engine.load import load_policy
from engine.terminal import ending
from models.loading import ModelOptions
from models.policy import Policy
from problems import benchmarks, source
from problems.kinds import answer_groups, vote_at_k
from problems.verify import extract_answer
from rewards import COMPONENTS
from rollout import Attempt, SamplingOptions, align, predict, read, solve

# Figures that training steps have, too.
SHARED = ["zero_variance_frac", "mean_length", "parsed_frac", *(f"reward_{name}" for name in COMPONENTS)]
IN_METRICS = [f"eval_{name}" for name in ("pass1", "pass1_interval", "pass1_by_level", *SHARED)]
PUBLISHED = {"temperature": 0.6, "samples": 32, "max_new_tokens": 16384}  # the paper's evaluation; its top-p is 1
PROBLEMS_AT_ONCE = 64  # the unit of the progress bar, and what bounds memory


@dataclass
class EvalOptions:
    """Evaluation during training."""

    eval_every: Annotated[int, "steps between evaluations on held-out problems", {"least": 1}] = 40
    eval_problems: Annotated[int, "held-out problems", {"least": 1, "real": 64}] = 96
    eval_samples: Annotated[int, "solutions to each of them", {"least": 1, "real": 4}] = 16
    eval_predictions: Annotated[int, "predictions for each of them, with every algorithm", {"least": 0}] = 4


@dataclass
class TestOptions:
    """The evaluation."""

    levels: Annotated[str, "keep only problems of these levels, such as 1,2,3; empty for all"] = ""
    problems: Annotated[int, "how many held-out problems", {"least": 1}] = 128
    whole: Annotated[bool, "use all problems of a file, for files that were not trained on"] = False
    as_published: Annotated[bool, "as the paper: temperature 0.6, 32 samples, 16k tokens, whole sets"] = False
    hints: Annotated[bool, "solve once more with the predicted notions as hints"] = False
    greedy: Annotated[bool, "solve once more greedily"] = True
    top_p: Annotated[float, "nucleus sampling; 1 draws from all tokens", {"above": 0, "most": 1}] = 1.0
    seed: Annotated[int, "seed of the draws; the held-out problems stay the same"] = 0
    out: Annotated[str, "folder for eval.json and evaluations.jsonl; empty for none"] = ""


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
            if policy.counts:
                read(policy, batch, sampling)
        for attempt in batch if hints else ():
            attempt.hints = [masa.hint_notions(attempt.predictions)]
        solve(policy, batch, sampling, stream)
        align(batch)  # by the paper's rules, whatever was trained with
    return attempts


def summarize(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Return the figures of solved attempts as plain numbers, None where nothing defines them."""
    rates, shared = [a.pass_rate for a in attempts], step_figures(attempts, ())
    samples = len(attempts[0].solutions)
    levels = sorted({a.problem.level for a in attempts})
    ks = [2**j for j in range(samples.bit_length())]
    accuracies = np.mean([a.correct for a in attempts], axis=0)  # of each sampling j: the solutions j of all problems
    return {
        "problems": len(attempts),
        "samples": samples,
        "pass1": float(np.mean(rates)),
        "pass1_interval": bootstrap_interval(rates),
        "pass1_deviation": float(np.std(accuracies, ddof=1)) if samples > 1 else None,
        "pass_at_k": {str(k): float(np.mean([pass_at_k(samples, sum(a.correct), k) for a in attempts])) for k in ks},
        "pass1_by_level": {
            str(level): float(np.mean([a.pass_rate for a in attempts if a.problem.level == level])) for level in levels
        },
        "verifier_timeouts": sum(a.timeouts for a in attempts),
        **{name: shared[name] for name in ("truncated_frac", *SHARED)},
    }


def evaluate(
    policy: Policy, problems: Sequence[source.Problem], sampling: SamplingOptions, options: TestOptions
) -> tuple[dict[str, Any], list[dict]]:
    """Return all figures of one policy on one source, and its problems with what was predicted and what happened."""
    attempts = attempt_all(policy, problems, sampling, seed=options.seed, label="sampling")
    drawing = {name: getattr(sampling, name) for name in (*PUBLISHED, "top_p")}
    result, rows = drawing | summarize(attempts), [transcript(attempt, 0) for attempt in attempts]
    for row, a in zip(rows, attempts, strict=True):  # a number for each solution, equal for equal answers
        row["votes"] = answer_groups([extract_answer(text) for text in a.responses], a.problem.kind)
    result["vote_at_k"] = {k: vote_at_k(rows, int(k)) for k in result["pass_at_k"]}
    if options.greedy:
        greedy = dataclasses.replace(sampling, temperature=0.0, samples=1, predictions=0)
        result["greedy"] = summarize(attempt_all(policy, problems, greedy, label="greedy"))["pass1"]
    if options.hints:
        hinted = attempt_all(policy, problems, sampling, seed=options.seed, hints=True, label="with hints")
        result["pass1_with_hints"] = summarize(hinted)["pass1"]
    return result, rows


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of eval.py; limits that are not given are those of training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage=USAGE)
    parser.add_argument(
        "--model", nargs="+", default=["tiny"], help="each is tiny, a model directory, a run's folder or a hub id"
    )
    sets = f"each is {', '.join(source.GENERATORS)}, a file, or one of {', '.join(benchmarks.BENCHMARKS)}"
    parser.add_argument("--data", nargs="+", default=["arithmetic"], help=sets)
    other_defaults = {"samples": 32, "predictions": 4}
    left_out = ("model", "max_prompt_tokens", "gradient_checkpointing", "shard")
    add_flags(parser, [TestOptions, SamplingOptions, ModelOptions], {"eval.py": other_defaults}, left_out)
    parser.set_defaults(**other_defaults)
    return parser


def held_out_problems(name: str, options: TestOptions) -> list[source.Problem]:
    """Return --problems held-out problems, or all. In the paper's sets, and with --whole, every problem is held out."""
    levels = source.DataOptions(levels=options.levels).chosen_levels
    is_set, is_endless = name in benchmarks.BENCHMARKS, name.partition(":")[0] in source.GENERATORS
    found = source.listed_source(name, benchmarks.load(name), levels) if is_set else source.load_problems(name, levels)
    found.print_skipped()
    print(f"{found.name}: {found.size}")
    take_all = (options.whole or (is_set and options.as_published)) and not is_endless
    return found.heldout(None if take_all else options.problems, whole=is_set or options.whole)


def main() -> None:
    given = vars(build_parser().parse_args())
    results, shown = [], []
    with ending("eval.py"):
        options = make(TestOptions, given)
        sources = {name: held_out_problems(name, options) for name in given["data"]}
        for model in given["model"]:
            values = defaults_for(model, [SamplingOptions]) | (PUBLISHED if options.as_published else {}) | given
            sampling = dataclasses.replace(make(SamplingOptions, values), top_p=options.top_p)
            policy = load_policy(make(ModelOptions, values | {"model": model}))
            for name, problems in sources.items():
                asked = [masa.solution_prompt(p.text) for p in problems]
                asked += [sampling.ask(p.text) for p in problems if sampling.predictions]
                longest = max(len(policy.encode(message)) for message in asked)
                if options.as_published and "max_new_tokens" not in given:  # or what the model's context leaves
                    context = policy.model.config.get_text_config().max_position_embeddings
                    sampling.max_new_tokens = min(int(PUBLISHED["max_new_tokens"]), context - longest)
                policy.check_room(longest, sampling.max_new_tokens)  # now, not after an hour
                result, rows = evaluate(policy, problems, sampling, options)
                results.append({"model": model, "data": name} | result)
                shown.append({"model": model, "data": name, "problems": rows})
                print(f"\n{model} on {name}\n{eval_table(result)}")
    if len(results) > 1:
        print(f"\n{eval_overview(results)}")
    if options.out:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "eval.json").write_text(json.dumps({"options": given, "results": results}, indent=2) + "\n")
        (out / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))
        print(f"\nwritten to {out}; for what the policy knows of itself: python -m lab.awareness {out}")


if __name__ == "__main__":
    main()
