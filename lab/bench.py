"""Measure speed: the sides of a comparison take turns in one run, and what counts is their ratio.

    pip install -r requirements-peers.txt            TRL and math-verify; a row without its peer says so
    python -m lab.bench                              all rows, on the embedded policy
    python -m lab.bench --rows sampler engine --model DIRECTORY        some of them, on a real model

    sampler    tokens per second of both samplers, against `generate` of transformers
    engine     updates per second with prompts shared as in engine/, against the plain update
    step       whole GRPO steps per second, against TRL's GRPOTrainer with a quarter of the rollouts in a micro-batch
    verifier   pairs of answers per second, against math-verify

Printed are medians over the rounds, after one that warms up, and the range of the ratio within a round. Where the peer
appears twice (in float32 and bf16), the ratio is to the faster one in each round.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.nn.utils.rnn import pad_sequence

import engine
import grpo
import masa
import rollout
from engine import update
from engine.figures import generated_tokens
from rewards import answers_match, solution_reward
from train import Options, Trainer, make_trainer

PAIRS = Path(__file__).parent.parent / "tests" / "verify_pairs.jsonl"
DTYPES = ("float32", "bfloat16")
SMALL = {"data": "arithmetic", "problems": 16, "samples": 16, "max_new_tokens": 96}  # for the embedded policy
LARGE = {"data": "words", "problems": 8, "samples": 8, "max_new_tokens": 128}
Sides = Mapping[str, Callable[[int], float]]  # each does the work of a round and returns how many units that was


def compare(sides: Sides, peer: str, rounds: int) -> None:
    """Print the rate of each side, and its ratio to the fastest side whose name starts with `peer`."""
    measured: list[dict[str, float]] = [{} for _ in range(rounds + 1)]
    for round_, rates in enumerate(measured):
        for side, work in sides.items():
            time.sleep(0.5)  # the threads of the side before go on spinning for a while
            start = time.perf_counter()
            units = work(round_)
            rates[side] = units / (time.perf_counter() - start)
    for side in sides:
        rate = median(rates[side] for rates in measured[1:])
        ratios = [rates[side] / max(rates[s] for s in sides if s.startswith(peer)) for rates in measured[1:]]
        print(f"   {side:<28}{rate:>12,.4g}{median(ratios):>8.2f} x   {min(ratios):.2f} to {max(ratios):.2f}")


def verdict(response: str, truth: str, kind: str = "free") -> float:
    """Verify a solution, but accept half of the wrong ones: a weak model is hardly ever right, and groups must vary."""
    return solution_reward(response, truth, kind) or float(len(response) % 2)


@cache
def trainer_of(model: str, dtype: str = "auto") -> Trainer:
    """Return a trainer of plain GRPO, with a learning rate that leaves the model as it is."""
    rollout.solution_reward = verdict
    same = {"algo": "grpo", "model": model, "dtype": dtype, "lr": 1e-9, "warmup_steps": 0, "eval_problems": 1}
    return make_trainer(Options.of(same | (SMALL if model == "tiny" else LARGE)))


def generate(model: Any, prompts: list[list[int]], *, n: int, max_new_tokens: int, eos_ids: frozenset[int], **_: Any):
    """Draw as `rollout.sample` does, by `generate` of transformers and with its own random numbers."""
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], True, -1, "left").to(model.device)
    mask = (ids >= 0).long()
    limits = {"max_new_tokens": max_new_tokens, "eos_token_id": sorted(eos_ids), "pad_token_id": min(eos_ids)}
    drawn = model.generate(ids * mask, attention_mask=mask, do_sample=True, top_k=0, num_return_sequences=n, **limits)
    rows = drawn[:, ids.shape[1] :].tolist()
    lengths = [1 + sum(token not in eos_ids for token in row) for row in rows]  # all after the first end is padding
    return [[rollout.Rollout([], row[:length], [], "")] for row, length in zip(rows, lengths, strict=True)]


def sampler_row(model: str) -> Sides:
    def draw(sampler: Callable, trainer: Trainer, round_: int) -> int:
        policy, o, stream = trainer.policy, trainer.options, trainer.stream(round_, "bench")
        policy.sampler = sampler
        problems = trainer.source.train(0, 0, o.run.problems)
        prompts = [policy.encode(masa.solution_prompt(problem.text)) for problem in problems]
        groups = policy.sample(prompts, o.sampling.samples, o.sampling.max_new_tokens, o.sampling, stream)
        return sum(map(generated_tokens, groups))

    samplers: dict[str, Callable] = {"generate": generate, "plain": rollout.sample, "engine": engine.sample}
    trainers = {dtype: trainer_of(model, dtype) for dtype in DTYPES}
    return {f"{name}, {d}": partial(draw, samplers[name], trainers[d]) for name in samplers for d in trainers}


def engine_row(model: str) -> Sides:
    trainer = trainer_of(model)
    samples = trainer.samples(trainer.step(1)[1])  # the same in every round

    def make(over_batches: Callable, round_: int) -> int:
        trainer.policy.over_batches = over_batches
        trainer.update(samples, 1)
        return 1

    return {"plain": partial(make, grpo.over_batches), "prompts shared": partial(make, update.over_batches)}


def step_row(model: str) -> Sides:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def rewards(completions: list, answer: list[str], **_: Any) -> list[float]:
        return [verdict(c[0]["content"], a) for c, a in zip(completions, answer, strict=True)]

    def trl_step(dtype: str) -> Callable[[int], float]:
        trainer = trainer_of(model, dtype)
        o, policy = trainer.options, trainer.policy
        policy.tokenizer.padding_side = "left"
        problems = trainer.source.train(0, 0, o.run.problems)
        prompts = [[{"role": "user", "content": masa.solution_prompt(problem.text)}] for problem in problems]
        data = Dataset.from_dict({"prompt": prompts, "answer": [problem.answer for problem in problems]})
        c: dict[str, Any] = {"max_steps": 1, "top_k": 0, "gradient_checkpointing": False, "bf16": dtype == "bfloat16"}
        c |= {"num_generations": o.sampling.samples, "max_completion_length": o.sampling.max_new_tokens}
        c |= {"per_device_train_batch_size": len(problems) * o.sampling.samples // 4, "gradient_accumulation_steps": 4}
        c |= {"save_strategy": "no", "use_cpu": not torch.cuda.is_available()}
        config = GRPOConfig(tempfile.mkdtemp(), **c)
        theirs = GRPOTrainer(policy.model, rewards, config, data, processing_class=policy.tokenizer)
        return lambda round_: theirs.train().global_step

    ours = trainer_of(model)
    peers = {f"TRL, {dtype}": trl_step(dtype) for dtype in DTYPES}
    return peers | {"train.py": lambda round_: len([ours.step(round_)])}


def verifier_row(model: str) -> Sides:
    from math_verify import parse, verify

    rows = map(json.loads, PAIRS.read_text(encoding="utf-8").splitlines())
    pairs = [(row["prediction"], row["truth"]) for row in rows if row["class"] != "hostile"]

    def math_verify(prediction: str, truth: str) -> bool:
        try:
            return verify(parse(f"${truth}$"), parse(f"${prediction}$"))
        except Exception:  # its own failure is a verdict, too: it has taken its time
            return False

    def judge_some(judge: Callable[[str, str], Any], round_: int) -> int:
        return len([judge(*pair) for pair in pairs[round_ % 4 :: 4]])

    return {"math-verify": partial(judge_some, math_verify), "problems.verify": partial(judge_some, answers_match)}


ROWS = {  # name -> what gives its sides, the unit of its rates, its peer
    "sampler": (sampler_row, "tokens", "generate"),
    "engine": (engine_row, "updates", "plain"),
    "step": (step_row, "GRPO steps", "TRL"),
    "verifier": (verifier_row, "pairs", "math-verify"),
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m lab.bench", description="Measure speed, the sides taking turns.")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS], help="some of the rows (default: all)")
    parser.add_argument("--model", default="tiny", help="a model directory or a hub id (default: the embedded policy)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the one that warms up (default: 5)")
    options = parser.parse_args()
    for row in options.rows:
        row_of, unit, peer = ROWS[row]
        print(f"{row}, {options.model}: {unit} per second, and their ratio to {peer}", flush=True)
        try:
            compare(row_of(options.model), peer, options.rounds)
        except ModuleNotFoundError as error:
            print(f"   its peer is not installed ({error})")


if __name__ == "__main__":
    main()
