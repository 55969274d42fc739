"""A warm start for a weak real model: it imitates its own right solutions before RL begins.

    python warm_start.py --model DIRECTORY --levels 1,2 --out warm/
    python train.py --model warm/ --levels 1,2 --max-new-tokens 64

A model that is never right teaches GRPO nothing: all its groups are all wrong. With worked examples in sight it is
right now and then. So draw solutions after examples, keep the right ones, and train the model to give them without
(rejection sampling: STaR, arXiv 2203.14465). No teacher is needed, and no solution is learned that it did not write.
Beside them it imitates well-formed predictions that know nothing, as the embedded policy did (`tiny.py`): the form is
given, meta-awareness is for RL to find.

Left out: rounds of it, other examples than those below (they suit `words`), several processes.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import torch
from tqdm import tqdm

import grpo
import masa
from models.policy import Policy, load
from models.tiny import WARM_START_SEED, meta_demonstration
from options import Options
from problems import tasks
from rewards import solution_reward
from rollout import sample

EXAMPLES = [
    ("Tom buys 4 pens for $3 each. How many dollars does Tom pay?", "Multiply: 4 * 3 = 12.", 12),
    (
        "The boat of Eva is 4 years old. That of Max is 5 years older. How old is the boat of Max?",
        "Add: 4 + 5 = 9.",
        9,
    ),
    (
        "Tom has 6 shells and Mia has 3 more than Tom. How many shells do they have together?",
        "Mia: add: 6 + 3 = 9. Together: add: 6 + 9 = 15.",
        15,
    ),
    (
        "Lea has $30 and spends $4 on lunch. Then Lea spends $2 on a book. How many dollars does Lea have now?",
        "Subtract: 30 - 4 = 26. Subtract: 26 - 2 = 24.",
        24,
    ),
    (
        "Max has 20 coins, and 1/5 of them are red. Lea takes away 2 of the red coins. "
        "How many red coins does Max have now?",
        "Divide: 20 / 5 = 4. Subtract: 4 - 2 = 2.",
        2,
    ),
    (
        "A lamp shines for 2 hours and 5 minutes. How many minutes does it shine in all?",
        "Multiply: 2 * 60 = 120. Add: 120 + 5 = 125.",
        125,
    ),
]
SHOWN = [(text, f"{work} The final answer is \\boxed{{{answer}}}.") for text, work, answer in EXAMPLES]
NOTIONS = ("add", "subtract", "multiply", "divide", "together", "each", "hours", "dollars")
AT_ONCE = 32  # problems drawn for at once


def right_solutions(policy: Policy, source: tasks.Source, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(problem, right solution drawn after the examples) pairs, at most two for a problem, of `give_up` problems."""
    generator = torch.Generator().manual_seed(options.seed)
    for start in count(step=AT_ONCE):
        problems = source.train(WARM_START_SEED, start, AT_ONCE)
        groups = sample(
            policy.sampling_model(),
            [policy.encode(problem.text, SHOWN) for problem in problems],
            n=options.samples,
            max_new_tokens=options.max_new_tokens,
            eos_ids=policy.eos_ids,
            temperature=options.temperature,
            generator=generator,
        )
        for problem, rollouts in zip(problems, groups, strict=True):
            texts = {policy.decode(r.response_ids) for r in rollouts if r.finish_reason == "stop"}
            right = sorted(t for t in texts if solution_reward(t, problem.answer, problem.kind) == 1.0)
            yield from ((problem.text, text) for text in right[:2])
        if start + AT_ONCE >= options.give_up:
            return


def imitate(policy: Policy, pairs: Sequence[tuple[str, str]], options: argparse.Namespace) -> int:
    """Train on solutions without the examples, and on a blind prediction for every other one.

    Returns how many steps were lost to gradients that were not finite.
    """
    lost = 0
    rng, limit = random.Random(options.seed), options.max_new_tokens
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=options.lr, weight_decay=0.0)
    settings = grpo.UpdateSettings(token_budget=options.token_budget)
    for _ in (bar := tqdm(range(options.steps), desc="imitating", unit="step")):
        texts = [(masa.solution_prompt(problem), text) for problem, text in rng.choices(pairs, k=options.batch)]
        texts += [
            (masa.meta_prompt(problem, limit), meta_demonstration(rng, NOTIONS, limit))
            for problem, _ in rng.choices(pairs, k=options.batch // 2)
        ]
        with policy.autocast():
            loss, stepped, _ = grpo.clone(
                policy.model,
                optimizer,
                [grpo.Sequence(policy.encode(message), policy.encode_response(answer)) for message, answer in texts],
                settings,
            )
        lost += not stepped
        bar.set_postfix(loss=f"{loss:.3f}")
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Warm-start a weak model: it imitates its own right solutions, drawn after worked examples.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    no_default = argparse.SUPPRESS
    parser.add_argument("--model", required=True, default=no_default, help="a model directory or a hub id")
    parser.add_argument("--out", type=Path, required=True, default=no_default, help="folder of the warm-started model")
    parser.add_argument("--data", default="words", help=f"{', '.join(tasks.GENERATORS)}, a file or a hub id")
    parser.add_argument("--levels", default="1,2", help="keep only problems of these levels; empty for all")
    parser.add_argument("--solutions", type=int, default=256, help="right solutions to collect")
    parser.add_argument("--give-up", type=int, default=2000, help="problems after which fewer must do")
    parser.add_argument("--samples", type=int, default=4, help="draws for each problem")
    parser.add_argument("--temperature", type=float, default=0.6, help="of these draws")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest solution, in tokens")
    parser.add_argument("--steps", type=int, default=48, help="steps of imitation")
    parser.add_argument("--batch", type=int, default=16, help="solutions in a step, and half as many predictions")
    parser.add_argument("--token-budget", type=int, default=1024, help="padded tokens in a micro-batch: more on a GPU")
    parser.add_argument("--lr", type=float, default=5e-5, help="learning rate of imitation (AdamW)")
    parser.add_argument("--seed", type=int, default=0, help="of draws and of the order of imitation")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run")
    options = parser.parse_args()
    least = {"solutions": 1, "give_up": 1, "samples": 1, "max_new_tokens": 5, "steps": 1, "batch": 1, "token_budget": 1}
    for name, bound in least.items():
        if getattr(options, name) < bound:
            parser.error(f"--{name.replace('_', '-')}: found {getattr(options, name)}, expected at least {bound}")
    try:
        source = tasks.load_problems(options.data, levels=Options(levels=options.levels).chosen_levels)
        policy = load(options.model, options.device)
        options.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:  # of levels, problems, policy or folder: each message says what is wrong
        sys.exit(f"warm_start.py: {error}")
    drawn = islice(right_solutions(policy, source, options), options.solutions)
    pairs = list(tqdm(drawn, desc="right solutions", total=options.solutions, unit="solution"))
    if not pairs:
        sys.exit(f"warm_start.py: not one right solution to {options.give_up} problems; try easier --levels")
    lost = imitate(policy, pairs, options)
    if lost == options.steps:
        sys.exit("warm_start.py: no step had a finite gradient, so nothing was learned; try a lower --lr")
    policy.save(options.out)
    print(f"{len(pairs)} right solutions imitated; written to {options.out}. The last of them:\n  {pairs[-1][1]}")
    if lost:
        print(f"{lost} of {options.steps} steps lost to gradients that were not finite")


if __name__ == "__main__":
    main()
