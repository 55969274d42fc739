"""On a CUDA GPU: decoding against the bandwidth of its memory, the update against the speed of matrix products."""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import grpo
import rollout
from lab.measure import compare, median, show
from models import policy as policies


def cuda_rows(rounds: int) -> None:
    """Random weights in the shape of Qwen3-0.6B: speed does not depend on what they are."""
    if not torch.cuda.is_available():
        return show("decoding and update on CUDA", "not measured", "there is no CUDA device", "-")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    model: Any = Qwen3ForCausalLM(config)
    model.cuda()
    policy = policies.Policy(model, None, frozenset(), torch.bfloat16, torch.bfloat16)
    sampler, parameters = policy.sampling_model(), sum(p.numel() for p in model.parameters())
    bandwidth, multiplied = device_limits()
    prompts = [[5] * 64]

    def seconds(batch: int, tokens: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        rollout.sample(sampler, prompts, n=batch, max_new_tokens=tokens, eos_ids=())
        return time.perf_counter() - start

    for batch in (1, 8, 64):
        seconds(batch, 32)
        token_s = median([(seconds(batch, 512) - seconds(batch, 256)) / 256 for _ in range(rounds)])
        cache = batch * (64 + 384) * 28 * 2 * 8 * 128  # values read for a token, halfway between 256 and 512
        bound = 2 * (parameters + cache) / bandwidth
        show(
            f"decoding, batch {batch}",
            f"{1e3 * token_s:.2f} ms a token",
            f"bandwidth alone {1e3 * bound:.2f} ms",
            f"{bound / token_s:.0%}",
        )

    def generate(round_: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        ids = torch.tensor(prompts * 512, device="cuda")
        with torch.no_grad():
            sampler.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=256, eos_token_id=None
            )
        torch.cuda.synchronize()
        return 512 * 256 / (time.perf_counter() - start)

    ours = {"bfloat16": lambda round_: 512 * 256 / seconds(512, 256)}
    compare("sampler, batch 512, no row ends", ours, {"generate, bfloat16": generate}, rounds, "tokens/s")
    sequences = [grpo.Sequence([5] * 64, [7] * 960, 1.0) for _ in range(32)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    times = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with policy.autocast():
            grpo.update(model, optimizer, sequences, grpo.UpdateSettings(token_budget=16384))
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    rate = 6 * parameters * 32 * 960 / median(times[1:])
    show(
        "update, 32 x 960 tokens",
        f"{rate / 1e12:.0f} TFLOP/s",
        f"matrix products {multiplied / 1e12:.0f} TFLOP/s",
        f"{rate / multiplied:.0%}",
    )


def device_limits() -> tuple[float, float]:
    """Measured bytes per second of a copy, and operations per second of a bf16 matrix product."""

    def seconds(work: Callable[[], Any]) -> float:
        for _ in range(3):
            work()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / 20

    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 2**30 / seconds(lambda: target.copy_(source)), 2 * 8192**3 / seconds(lambda: square @ square)
