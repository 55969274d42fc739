"""Warm-start a weak real model: let it imitate its own correct solutions before RL begins.

    python -m models.warm_start --model DIRECTORY --levels 1,2 --out warm/
    python train.py --model warm/ --levels 1,2 --max-new-tokens 64

A model that is never right teaches GRPO nothing, because in every group all rollouts are equally wrong. With worked
examples in its prompt, the same model is right now and then. So this script draws solutions after examples, keeps the
correct ones, and trains the model to write them without examples (rejection sampling, as in STaR, arXiv 2203.14465).
No teacher is needed. It also imitates well-formed predictions with random content (models/tiny.py): they give the form,
and meta-awareness is left for RL to find. Left out: several rounds or processes, and examples for other data.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

import grpo
import masa
from models.checks import check_passes
from models.loading import load
from models.policy import Policy
from models.tiny import WARM_START_SEED, meta_demonstration
from problems.source import GENERATORS, DataOptions, Source, load_problems
from rewards import solution_reward
from rollout import SamplingOptions

# Worked examples: a problem and, on the line below, its solution. Their people appear in no generated problem.
TEXT = (Path(__file__).parent / "warm_start.txt").read_text(encoding="utf-8")
EXAMPLES = [(problem, solution) for problem, solution in (pair.split("\n") for pair in TEXT.strip().split("\n\n"))]
NOTIONS = ("add", "subtract", "multiply", "divide", "together", "each", "hours", "dollars")
# Solutions drawn for each problem, problems in one batch of the sampler, and problems after which fewer must do.
SAMPLES, TEMPERATURE, AT_ONCE, GIVE_UP = 4, 0.6, 32, 2000
BATCH = 16  # solutions in a step of imitation; half as many predictions are added


def correct_solutions(policy: Policy, source: Source, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield (problem, correct solution drawn after the examples) pairs, at most two for each of GIVE_UP problems."""
    sampling, generator = SamplingOptions(temperature=TEMPERATURE), torch.Generator().manual_seed(options.seed)
    for start in range(0, GIVE_UP, AT_ONCE):
        problems = source.train(WARM_START_SEED, start, AT_ONCE)
        prompts = [policy.encode(problem.text, EXAMPLES) for problem in problems]
        groups = policy.sample(prompts, SAMPLES, options.max_new_tokens, sampling, generator)
        for problem, rollouts in zip(problems, groups, strict=True):
            texts = {policy.decode(r.response_ids) for r in rollouts if r.finish_reason == "stop"}
            correct = sorted(t for t in texts if solution_reward(t, problem.answer, problem.kind) == 1.0)
            yield from ((problem.text, text) for text in correct[:2])


def imitate(policy: Policy, pairs: Sequence[tuple[str, str]], options: argparse.Namespace) -> int:
    """Train on the solutions, now without the examples, and on half as many random predictions.

    Return the number of steps that were skipped because their gradient was not finite.
    """
    skipped = 0
    rng, limit = random.Random(options.seed), options.max_new_tokens
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=options.lr, weight_decay=0.0)
    settings = grpo.UpdateOptions(token_budget=options.token_budget)
    for _ in (bar := tqdm(range(options.steps), desc="imitating", unit="step")):
        texts = [(masa.solution_prompt(problem), text) for problem, text in rng.choices(pairs, k=BATCH)]
        asked = rng.choices(pairs, k=BATCH // 2)
        texts += [(masa.meta_prompt(problem, limit), meta_demonstration(rng, NOTIONS, limit)) for problem, _ in asked]
        figures = policy.imitate(optimizer, [policy.demonstration(*pair) for pair in texts], settings)
        skipped += figures["skipped_updates"]
        bar.set_postfix(loss=f"{figures['expert_loss']:.3f}")
    return skipped


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Warm-start a weak model on its own solutions.",
        usage="%(prog)s --model MODEL --out DIR [OPTIONS], which --help lists",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,  # prints no default of what is required
    )
    add = parser.add_argument
    add("--model", required=True, help="model directory or hub id")
    add("--out", type=Path, required=True, help="folder for the warm-started model")
    add("--data", default="words", help=f"{', '.join(GENERATORS)}, a file or a hub id")
    add("--levels", default="1,2", help="keep only problems of these levels; empty for all")
    add("--solutions", type=int, default=256, help="correct solutions to collect")
    add("--max-new-tokens", type=int, default=64, help="longest solution, in tokens")
    add("--steps", type=int, default=48, help="optimizer steps")
    add("--token-budget", type=int, default=1024, help="padded tokens in a micro-batch; raise it on a GPU")
    add("--lr", type=float, default=5e-5, help="learning rate (AdamW)")
    add("--seed", type=int, default=0, help="seed of sampling and of the order of imitation")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run")
    options = parser.parse_args()
    if min(options.solutions, options.steps, options.token_budget) < 1 or options.max_new_tokens < 5:
        parser.error("expected at least 1 for --solutions, --steps and --token-budget, and 5 for --max-new-tokens")
    try:
        source = load_problems(options.data, DataOptions(levels=options.levels).chosen_levels)
        policy = load(options.model, options.device)
        check_passes(policy)
        options.out.mkdir(parents=True, exist_ok=True)
        drawn = islice(correct_solutions(policy, source, options), options.solutions)
        pairs = list(tqdm(drawn, desc="correct solutions", total=options.solutions, unit="solution"))
    except (ValueError, OSError) as error:  # bad levels, problems, model, lengths or folder: each message says which
        sys.exit(f"warm_start.py: {error}")
    if not pairs:
        sys.exit(f"warm_start.py: found no correct solution to {GIVE_UP} problems; try easier --levels")
    skipped = imitate(policy, pairs, options)
    if skipped == options.steps:
        sys.exit("warm_start.py: no step had a finite gradient, so nothing was learned; try a lower --lr")
    policy.save(options.out)
    print(f"Imitated {len(pairs)} correct solutions; wrote {options.out}. The last solution:\n  {pairs[-1][1]}")
    print(f"{skipped} of {options.steps} steps were skipped because their gradient was not finite.")


if __name__ == "__main__":
    main()
