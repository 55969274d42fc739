"""Against ourselves: what each trick brings, how a step grows with its sizes, and what memory it takes."""

import dataclasses
import multiprocessing
import time
from typing import Any
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import grpo
import masa
import rollout
from engine import logprobs
from lab.measure import (
    SMOLLM2,
    TINY,
    Side,
    Step,
    compare,
    draw,
    load,
    peak_memory,
    problems_of,
    show,
    smollm2,
    tokens_per_second,
)


def without(target: Any, name: str, value: Any, side: Side) -> Side:
    """The side with one thing of a module replaced."""

    def changed(round_: int) -> float:
        with patch.object(target, name, value):
            return side(round_)

    return changed


def trick_rows(rounds: int) -> None:
    policy = load(TINY)
    full = tokens_per_second(policy, TINY)
    together = {"together": full}

    def one_by_one(round_: int) -> float:
        prompts = [policy.encode(masa.solution_prompt(p.text)) for p in problems_of(TINY, round_) for _ in range(16)]
        return tokens_per_second(policy, TINY, prompts=prompts, n=1)(round_)

    compare("a prompt is computed once for its draws", together, {"for each draw": one_by_one}, rounds, "tokens/s")
    staying = without(rollout, "PACK_SHARE", 2.0, without(rollout, "HEADROOM", {"cpu": 10**6, "cuda": 10**6}, full))
    compare("rows that ended leave", together, {"stay to the end": staying}, rounds, "tokens/s")

    quarter = 16 * 16 // 4 * (16 + 96)

    def in_quarters(round_: int) -> float:
        prompts = [policy.encode(masa.solution_prompt(p.text)) for p in problems_of(TINY, round_)]
        start = time.perf_counter()
        parts = [draw(policy, TINY, round_, prompts=prompts[k : k + 4]) for k in range(0, 16, 4)]
        seconds = time.perf_counter() - start
        return sum(len(r.response_ids) for groups in parts for group in groups for r in group) / seconds

    waiting = {"as places fall free": tokens_per_second(policy, TINY, max_cache_tokens=quarter)}
    compare("waiting rows (a cache for 64 of 256)", waiting, {"batch after batch": in_quarters}, rounds, "tokens/s")

    step = Step(policy, TINY)
    batches = [step.sequences(round_) for round_ in range(rounds + 1)]

    def update(step: Step) -> Side:
        return lambda round_: 1 / step.update(batches[round_])

    def all_rows(round_: int) -> float:
        barely = [dataclasses.replace(s, advantage=s.advantage or 1e-30) for s in batches[round_]]
        return 1 / step.update(barely)

    now = {"as it is": update(step)}
    compare(
        "update: a prompt once",
        now,
        {"in each row": without(grpo, "batches", whole_sequences, update(step))},
        rounds,
        "/s",
    )
    compare("update: no advantage, no cost", now, {"all rows": all_rows}, rounds, "/s")
    large = Step(policy, TINY, token_budget=2**20)
    compare("update: micro-batches of like length", now, {"one batch": update(large)}, rounds, "/s")
    plain = Step(load(TINY, "float32"), TINY)
    compare(f"update in {str(policy.update_dtype)[6:]}", now, {"float32": update(plain)}, rounds, "/s")
    if smollm2():
        smollm2_trick_rows(rounds)


def smollm2_trick_rows(rounds: int) -> None:
    """Prompts of a hundred tokens, and matrices that are worth multiplying in bf16."""
    step = Step(load(SMOLLM2), SMOLLM2)
    batches = [step.sequences(round_) for round_ in range(2)]

    def update(step: Step) -> Side:
        return lambda round_: 1 / step.update(batches[round_ % 2])

    now = {"as it is": update(step)}
    alone = without(grpo, "batches", whole_sequences, update(step))
    compare("SmolLM2, update: a prompt once", now, {"in each row": alone}, rounds, "/s")
    plain = Step(load(SMOLLM2, "float32"), SMOLLM2)
    compare("SmolLM2, update: precision", now, {"float32": update(plain)}, rounds, "/s")
    ours, theirs = (tokens_per_second(s.policy, SMOLLM2) for s in (step, plain))
    compare("SmolLM2, sampler: precision", {"auto": ours}, {"float32": theirs}, rounds, "tokens/s")


def whole_sequences(model, sequences, token_budget):
    """In place of logprobs.batches: micro-batches that share nothing."""
    return ((batch, None) for batch in logprobs.micro_batches(sequences, token_budget))


def random_llama(vocabulary: int, hidden: int = 96) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    return LlamaForCausalLM(config).eval()


def growth_rows(rounds: int) -> None:
    """Sampling and update with one size doubled; "more is better", so the ratio is that of the times."""
    base = {"G": 8, "prompt length": 64, "response length": 64, "vocabulary": 1024}

    def side(sizes: dict[str, int]) -> Side:
        model = random_llama(sizes["vocabulary"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

        def step(round_: int) -> float:
            generator = torch.Generator().manual_seed(round_)
            prompts = torch.randint(1024, (8, sizes["prompt length"]), generator=generator).tolist()
            start = time.perf_counter()
            groups = rollout.sample(
                model,
                prompts,
                n=sizes["G"],
                max_new_tokens=sizes["response length"],
                eos_ids=(),
                generator=generator,
            )
            sequences = [
                grpo.Sequence(r.prompt_ids, r.response_ids, 1.0 if k % 2 else -1.0)
                for group in groups
                for k, r in enumerate(group)
            ]
            grpo.update(model, optimizer, sequences, grpo.UpdateSettings(token_budget=2048))
            return time.perf_counter() - start

        return step

    for name, size in base.items():
        doubled = {f"{name} {2 * size}": side(base | {name: 2 * size})}
        compare(f"a step's time when {name} doubles", doubled, {f"{name} {size}": side(base)}, rounds, "s")


def update_memory(connection, rows: int) -> None:
    """How far an update of so many rows of 128 tokens, with 150,000 words, raises the peak above a small one's."""
    model = random_llama(150_000, hidden=32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    peaks = []
    for count in (1, rows):
        batch = [grpo.Sequence([1], [2] * 128, 1.0) for _ in range(count)]
        grpo.update(model, optimizer, batch, grpo.UpdateSettings(token_budget=2**20))
        peaks.append(peak_memory())
    connection.send(peaks)


def memory_rows(rounds: int) -> None:
    for rows in (8, 16, 32):
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        worker = context.Process(target=update_memory, args=(there, rows))
        worker.start()
        there.close()
        small, peak = here.recv()
        worker.join()
        logits = rows * 128 * 150_000 * 4 / 2**30
        show(
            f"update of {rows} x 128 tokens, 150,000 words",
            f"peak {peak:.2f} GiB",
            f"logits alone {logits:.2f} GiB",
            f"one row: {small:.2f} GiB",
        )
