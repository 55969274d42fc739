"""Memory: what fits on a GPU, and what to do when it does not."""

from collections.abc import Callable

import torch

import parallel


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
