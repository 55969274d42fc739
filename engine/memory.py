"""Estimate what fits on a GPU before the first step, and name the options that would make a model fit.

`python -m engine.memory` prints the table in docs/running.md; `train.py` prints `report` before the first step on CUDA.
Memory peaks twice in a step, and `needs` adds up both: while sampling there is a cache, during the update there are
gradients, activations and logits. Weights, optimizer states and the copy to sample from are always there.

Left out: memory that the allocator cannot use because it is fragmented. `MARGIN` stands for it, and for CUDA itself.
What happens when memory does run out is in `engine/update.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from engine import parallel
from engine.command_line import as_flags, declared
from grpo import LOGITS_AT_ONCE, UpdateOptions
from masa import ImitationOptions
from models.loading import ModelOptions
from rollout import SamplingOptions

GB = 10**9
MARGIN = 1.0 * GB
SIZES = (16, 24, 80, 141)  # GB: T4 or 4060 Ti, 3090 or 4090, A100 or H100, H200
Options = Mapping[str, Any]  # names -> values of a run's options, all of them or those that `needs` reads
# Options that save memory, by the letters that stand for them in the table: each row adds one to those before it.
G = {"gradient_checkpointing": True}
GS = G | {"max_cache_tokens": 2**15, "token_budget": 4096}
REMEDIES: dict[str, dict[str, Any]] = {"yes": {}, "G": G, "GS": GS, "GSE": GS | {"experts": False}}


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its memory depends on. queries, keys: (key-value) heads x head size."""

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
    """Read the shape of a transformers model from its config."""
    config = model.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", 4 * config.hidden_size),
        queries=config.num_attention_heads * head_size,
        keys=getattr(config, "num_key_value_heads", config.num_attention_heads) * head_size,
        vocabulary=config.vocab_size,
    )


def activation_bytes(shape: Shape) -> int:
    """Return the bytes that one layer keeps of one token for the backward pass, under bf16 autocast.

    This counts a Qwen3 layer; a Llama layer keeps less. Of the hidden size: two norms (float32 in and out) and the
    inputs of five matrices (bf16). Of queries and keys: their norms, rotation and attention. Of the intermediate size:
    the gate, its activation, the up projection, and their product.
    """
    return 26 * shape.hidden + 10 * (shape.queries + shape.keys) + 8 * shape.intermediate


def needs(shape: Shape, options: Options, world: int = 1) -> dict[str, float]:
    """Return the bytes needed on each of `world` GPUs, by what needs them, and their "peak"."""
    each = shape.parameters / (world if options["shard"] else 1)
    layer = (shape.parameters - 2 * shape.vocabulary * shape.hidden) / shape.layers
    if options["gradient_checkpointing"]:  # the input of each layer, and everything that a single layer keeps
        activations = options["token_budget"] * (4 * shape.hidden * shape.layers + activation_bytes(shape))
    else:  # autocast also keeps the weights in bf16
        graphs = 1 if options["shard"] else 2  # that of a micro-batch, and that of the prompts it shares with others
        activations = graphs * options["token_budget"] * activation_bytes(shape) * shape.layers + 2 * shape.parameters
    parts = {
        "weights": 4 * each,
        "optimizer": 8 * each * (2 if options["experts"] and options["expert_optimizer"] == "own" else 1),
        "reference": 4 * each if options["kl_coef"] > 0 else 0.0,
        "copy to sample from": 2.0 * shape.parameters,  # never split
        "cache": 2.0 * options["max_cache_tokens"] * shape.layers * 2 * shape.keys,
        "gradients": 4 * each,
        "activations": float(activations),
        "logits": 16.0 * LOGITS_AT_ONCE,  # in bf16, in float32, their exponentials, their gradient
        # Two layers, the embeddings and the output head are whole while they are in use.
        "gathered": 4.0 * (2 * layer + 2 * shape.vocabulary * shape.hidden) if options["shard"] else 0.0,
    }
    always = sum(parts[name] for name in ("weights", "optimizer", "reference", "copy to sample from"))
    update = sum(parts[name] for name in ("gradients", "activations", "logits", "gathered"))
    return parts | {"peak": always + max(parts["cache"], update) + MARGIN}


def remedy(shape: Shape, options: Options, capacity: float, world: int = 1) -> tuple[str, dict, int] | None:
    """Find what makes a model fit into `capacity` bytes on each GPU.

    Returns a name from `REMEDIES`, the options to change, and the number of GPUs; None if nothing helps.
    """
    ways: list[tuple[int, dict[str, Any]]] = [(world, {})]
    ways += [(gpus, {"shard": True}) for gpus in (2, 4, 8, 16, 32, 64) if gpus >= world]
    for gpus, shard in ways:
        for name, saving in REMEDIES.items():
            changes = {option: value for option, value in (saving | shard).items() if options[option] != value}
            if needs(shape, {**options, **changes}, gpus)["peak"] <= capacity:
                return name, changes, gpus
    return None


def report(shape: Shape, options: Options, capacity: float, world: int = 1) -> str:
    """Describe what each GPU will hold and, if that exceeds its `capacity` in bytes, what would fit."""
    parts = needs(shape, options, world)
    listed = ", ".join(f"{name} {size / GB:.1f}" for name, size in parts.items() if name != "peak" and size)
    text = f"estimated memory, GB on each GPU: {listed}; at the peak {parts['peak'] / GB:.1f} of {capacity / GB:.1f}"
    if parts["peak"] <= capacity:
        return text
    if not (way := remedy(shape, options, capacity, world)):
        return f"{text}\nThis is too much, and no option makes it fit. Take a smaller model."
    _, changes, gpus = way
    launcher = f" under torchrun --nproc-per-node {gpus}" if gpus > world else ""
    return f"{text}\nThis is too much; this would fit: {' '.join(as_flags(changes))}{launcher}"


def announce(policy: Any, options: Options) -> None:
    """Print the report for a policy that is on CUDA. On a CPU, memory is rarely the limit."""
    if policy.device.type == "cuda":
        capacity = torch.cuda.get_device_properties(policy.device).total_memory
        print(report(shape_of(policy.model), options, capacity, parallel.world()))


def real_options() -> dict[str, Any]:
    """Return the options of a run with the defaults of real models, as far as `needs` reads them, and some more."""
    parts = (SamplingOptions, UpdateOptions, ImitationOptions, ModelOptions)
    return {option.name: option.bounds.get("real", option.default) for part in parts for option in declared(part)}


def main() -> None:
    options = real_options()
    names = ("weights", "gradients", "optimizer", "copy to sample from", "cache", "activations", "logits", "peak")
    print(f"| model | {' | '.join(names)} | {' | '.join(f'{size} GB' for size in SIZES)} |")
    print("|" + "---|" * (1 + len(names) + len(SIZES)))
    for model, shape in KNOWN.items():
        parts = needs(shape, options)
        cells = [f"{parts[name] / GB:.1f}" for name in names]
        for size in SIZES:
            remedies, _, gpus = remedy(shape, options, size * GB) or ("no", {}, 1)
            cells.append(remedies + (f", {gpus} GPUs" if gpus > 1 else ""))
        print(f"| {model} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
