"""Memory: what fits on a GPU, worked out before the first step, and what happens when it does not.

`python memory.py` prints the table of RUNNING.md; `train.py` prints `report` before the first step on CUDA. Memory
has two peaks, and `needs` counts the parts of both: while sampling there is a cache, in the update there are
gradients, activations and logits. Weights, optimizer states and the copy to sample from are always there.

Left out: what the allocator cannot use because it is in pieces. `MARGIN` stands for it, and for CUDA itself.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine import parallel
from engine.logprobs import LOGITS_AT_ONCE

GB = 10**9
MARGIN = 1.0 * GB
SIZES = (16, 24, 80, 141)  # GB: T4 or 4060 Ti, 3090 or 4090, A100 or H100, H200
# What would make a model fit, each beside those before it; the letters stand in that table.
REMEDIES: dict[str, dict[str, Any]] = {
    "G": {"gradient_checkpointing": True},
    "S": {"max_cache_tokens": 2**15, "token_budget": 4096},
    "E": {"experts": False},
}


@dataclass(frozen=True)
class Shape:
    """What the memory of a model depends on; queries, keys: (key-value) heads x head size."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int


KNOWN = {
    "SmolLM2-135M": Shape(134_515_008, 30, 576, 1536, 576, 192, 49_152),
    "Qwen3-0.6B": Shape(596_049_920, 28, 1024, 3072, 2048, 1024, 151_936),
    "Qwen3-1.7B": Shape(1_720_574_976, 28, 2048, 6144, 2048, 1024, 151_936),
    "Qwen3-4B": Shape(4_022_468_096, 36, 2560, 9728, 4096, 1024, 151_936),
    "Qwen3-8B": Shape(8_190_735_360, 36, 4096, 12_288, 4096, 1024, 151_936),
    "Qwen3-32B": Shape(32_762_123_264, 64, 5120, 25_600, 8192, 1024, 151_936),
}


def shape_of(model) -> Shape:
    """The shape of a transformers model, from its config."""
    config = model.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", config.num_attention_heads) * head_size
    return Shape(
        sum(parameter.numel() for parameter in model.parameters()),
        config.num_hidden_layers,
        config.hidden_size,
        getattr(config, "intermediate_size", 4 * config.hidden_size),
        config.num_attention_heads * head_size,
        keys,
        config.vocab_size,
    )


def activation_bytes(shape: Shape) -> int:
    """Bytes that one layer keeps of one token for the backward pass, under bf16 autocast, of a Qwen3 (a Llama: less).

    Of the hidden size: two norms (float32 in and out) and what goes into five matrices (bf16).  Of queries and keys:
    norms, rotation and attention.  Of the intermediate size: gate, its activation, up, their product.
    """
    return 26 * shape.hidden + 10 * (shape.queries + shape.keys) + 8 * shape.intermediate


def needs(shape: Shape, options: Any, world: int = 1) -> dict[str, float]:
    """Bytes on each of `world` GPUs, by what takes them, and their "peak"."""
    split = world if options.shard else 1
    each = shape.parameters / split
    layer = (shape.parameters - 2 * shape.vocabulary * shape.hidden) / shape.layers
    if options.gradient_checkpointing:  # what goes into each layer, and all of one layer
        activations = options.token_budget * (4 * shape.hidden * shape.layers + activation_bytes(shape))
    else:  # autocast keeps the weights in bf16 too
        graphs = 1 if options.shard else 2  # of a micro-batch, and of the prompts that it shares with others
        activations = graphs * options.token_budget * activation_bytes(shape) * shape.layers + 2 * shape.parameters
    found = {
        "weights": 4 * each,
        "optimizer": 8 * each * (2 if options.experts else 1),  # the experts' has moments of its own
        "reference": 4 * each if options.kl_coef > 0 else 0.0,
        "copy to sample from": 2.0 * shape.parameters,  # never split
        "cache": 2.0 * options.max_cache_tokens * shape.layers * 2 * shape.keys,
        "gradients": 4 * each,
        "activations": float(activations),
        "logits": 16.0 * LOGITS_AT_ONCE,  # in bf16, in float32, their exponentials, their gradient
        # Two layers, and embeddings and head, are whole while they are in use.
        "gathered": 4.0 * (2 * layer + 2 * shape.vocabulary * shape.hidden) if options.shard else 0.0,
    }
    always = sum(found[name] for name in ("weights", "optimizer", "reference", "copy to sample from"))
    update = sum(found[name] for name in ("gradients", "activations", "logits", "gathered"))
    return found | {"peak": always + max(found["cache"], update) + MARGIN}


def remedy(shape: Shape, options: Any, capacity: float, world: int = 1) -> tuple[str, dict[str, Any], int] | None:
    """What makes it fit into `capacity` bytes: letters of `REMEDIES`, their options, number of GPUs; None: nothing."""
    ways = [(letters, world, False) for letters in ("", "G", "GS", "GSE")]
    ways += [(letters, gpus, True) for gpus in (2, 4, 8, 16, 32, 64) for letters in ("GS", "GSE")]
    for letters, gpus, shard in ways:
        changes: dict[str, Any] = {"shard": True} if shard else {}
        for letter in letters:
            changes |= REMEDIES[letter]
        if needs(shape, dataclasses.replace(options, **changes), gpus)["peak"] <= capacity:
            return letters, changes, gpus
    return None


def flags(changes: dict[str, Any], options: Any) -> str:
    """Changes of options as they are written on a command line."""
    shown = []
    for name, value in changes.items():
        flag = name.replace("_", "-")
        if value != getattr(options, name):
            shown.append((f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag} {value}")
    return " ".join(shown)


def report(shape: Shape, options: Any, capacity: float, world: int = 1) -> str:
    """What each GPU will hold, and, if that is more than its `capacity` in bytes, what would fit."""
    found = needs(shape, options, world)
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in found.items() if name != "peak" and size)
    text = f"memory worked out, GB on each GPU: {parts}; at the peak {found['peak'] / GB:.1f} of {capacity / GB:.1f}"
    if found["peak"] <= capacity:
        return text
    way = remedy(shape, options, capacity, world)
    if not way:
        return f"{text}\nthat is too much, and no flag makes it fit: take a smaller model"
    _, changes, gpus = way
    launcher = f" under torchrun --nproc-per-node {gpus}" if gpus > world else ""
    return f"{text}\nthat is too much; this would fit: {flags(changes, options)}{launcher}"


def announce(policy: Any, options: Any) -> None:
    """Print the report of a policy that is on CUDA; elsewhere memory is not what limits."""
    if policy.device.type == "cuda":
        capacity = torch.cuda.get_device_properties(policy.device).total_memory
        print(report(shape_of(policy.model), options, capacity, parallel.world()))


class OutOfMemory(RuntimeError):
    """Not even the longest sequence alone fits; the message says what to lower."""


def within_memory(model, token_budget: int, longest: int, compute: Callable[[int], None]) -> int:
    """compute(token_budget), started afresh with half of it each time memory runs out; returns how often it did.

    `longest`: tokens of the longest sequence.  Raises OutOfMemory once that stands alone, and for a sharded model,
    whose ranks must stay in step.
    """
    retries = 0
    while True:
        try:
            compute(token_budget)
            return retries
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            reason = str(error).splitlines()[0]
        # Not in the handler: the error holds on to all the tensors that were alive when memory ran out.
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if token_budget <= longest or parallel.is_sharded(model):
            raise OutOfMemory(
                f"out of memory in the update, with micro-batches of {token_budget} tokens and a longest sequence of "
                f"{longest}: {reason}\nLower --token-budget or --max-new-tokens, or add --gradient-checkpointing."
            )
        token_budget //= 2
        retries += 1


def main() -> None:
    """The table of RUNNING.md, in Markdown: real models with their preset, in GB."""
    from options import REAL_MODEL, Options

    options = Options(**REAL_MODEL)
    names = ("weights", "gradients", "optimizer", "copy to sample from", "cache", "activations", "logits", "peak")
    print(f"| model | {' | '.join(names)} | {' | '.join(f'{size} GB' for size in SIZES)} |")
    print("|" + "---|" * (1 + len(names) + len(SIZES)))
    for model, shape in KNOWN.items():
        found = needs(shape, options)
        cells = [f"{found[name] / GB:.1f}" for name in names]
        for size in SIZES:
            letters, _, gpus = remedy(shape, options, size * GB) or ("no", {}, 1)
            cells.append((letters or "yes") + (f", {gpus} GPUs" if gpus > 1 else ""))
        print(f"| {model} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
