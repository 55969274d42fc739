"""Compute the gradients of `grpo.over_batches` faster, and within the memory there is.

`grpo.update` and `grpo.imitate` take the function `over_batches` as an argument. The one here is given to them where it
pays, and differs from the plain one in two ways:

- A prompt goes through the model once for all of its responses, not once for each (`SharedPrompts`). Two responses of
  3 and 2 tokens to a prompt of 3 cost 3 + 2 + 1 = 6 tokens, not 5 + 4 = 9 (the last of each is never fed).
- When memory runs out, the pass over the batch starts again with half the token budget.

Several processes divide the work in `engine/parallel.py`. Left out: packing several sequences into one row, which needs
attention kernels that not every device has.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, DynamicLayer

import grpo
from grpo import Sample, Work, head_logprobs, micro_batches
from rollout import layer_kinds, run_prompts


class OutOfMemory(RuntimeError):
    """Memory runs out even with the smallest micro-batch."""


def over_batches(
    model: Any, samples: Sequence[Sample], work: Work, token_budget: int, temperature: float = 1.0
) -> Counter:
    """Call work(micro-batch, its log-probs (N,)) on all samples, and return the sum of the figures it returns.

    As in `grpo.over_batches`, `work` goes backward itself if it wants gradients. No parameter may have a gradient
    before the call. The figure "oom_retries" counts how often memory ran out and the pass started again with half the
    token budget.  Raises OutOfMemory if the longest sample alone does not fit.
    """
    longest = max((len(sample.prompt_ids) + len(sample.response_ids) for sample in samples), default=0)
    retries = 0
    while True:
        try:
            figures = _one_pass(model, samples, work, token_budget, temperature)
            figures["oom_retries"] = retries
            return figures
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            reason = str(error).splitlines()[0]
        # Not inside the handler: until it is left, the error keeps alive all tensors that existed when memory ran out.
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()  # does nothing without CUDA
        if token_budget <= longest:
            raise OutOfMemory(
                f"out of memory in the update: micro-batches had at most {token_budget} tokens, the longest sample has "
                f"{longest}: {reason}\nLower --token-budget or --max-new-tokens, or add --gradient-checkpointing."
            )
        token_budget //= 2
        retries += 1


def _one_pass(model: Any, samples: Sequence[Sample], work: Work, token_budget: int, temperature: float) -> Counter:
    """Call `work` on all micro-batches, with each prompt computed once, and return the sum of the figures."""
    # Prompts cannot run apart from their responses with gradient checkpointing, which keeps no keys and values, nor
    # with sliding windows, which keep only the last.
    if model.is_activation_checkpointing or layer_kinds(model) != {DynamicLayer}:
        return grpo.over_batches(model, samples, work, token_budget, temperature)
    figures: Counter = Counter()
    groups: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(tuple(sample.prompt_ids), []).append(sample)
    for some in micro_batches([Sample(list(prompt), []) for prompt in groups], token_budget):
        distinct = [tuple(sample.prompt_ids) for sample in some]
        prompts = SharedPrompts(model, distinct)
        for batch in micro_batches([sample for prompt in distinct for sample in groups[prompt]], token_budget):
            figures.update(work(batch, prompts.response_logprobs(batch, temperature)))
        prompts.backward()
    return figures


class SharedPrompts:
    """Prompts that have gone through the model once, for all micro-batches of their responses.

    What responses need of a prompt (its keys and values, and its last hidden state) is detached from the graph: each
    micro-batch adds its gradient there, and `backward` finally sends the sum through the prompts, once.
    """

    def __init__(self, model: Any, prompts: list[tuple[int, ...]]) -> None:
        self.model = model
        self.row = {prompt: row for row, prompt in enumerate(prompts)}
        cache: Any = DynamicCache(config=model.config)
        output, self.mask = run_prompts(model.base_model, prompts, cache)  # the mask is (P, L)
        last = output.last_hidden_state[:, -1]  # (P, H), which predicts the first token of each response
        self.computed = [last] + [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        # Float32 even under autocast, because the gradients of many responses are added up here.
        self.detached = [
            tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).requires_grad_(tensor.requires_grad)
            for tensor in self.computed
        ]

    def response_logprobs(self, samples: list[Sample], temperature: float) -> Tensor:
        """Return the log-probs of all response tokens of these samples, flat and in order: (N,)."""
        device = self.model.device
        rows = torch.tensor([self.row[tuple(sample.prompt_ids)] for sample in samples], device=device)  # (B,)
        first, *keys_and_values = (
            detached.index_select(0, rows).to(computed.dtype)
            for computed, detached in zip(self.computed, self.detached, strict=True)
        )
        cache = DynamicCache(config=self.model.config)
        for k in range(0, len(keys_and_values), 2):
            cache.update(keys_and_values[k], keys_and_values[k + 1], k // 2)
        responses = [torch.tensor(sample.response_ids, device=device) for sample in samples]
        ids = pad_sequence(responses, batch_first=True)  # (B, T), padded on the right
        is_token = pad_sequence([torch.ones_like(response) for response in responses], batch_first=True).bool()
        hidden = first[:, None]  # (B, 1, H)
        if ids.shape[1] > 1:  # the last token of a response predicts nothing, so it is not fed to the model
            rest = self.model.base_model(
                input_ids=ids[:, :-1],
                attention_mask=torch.cat([self.mask[rows], is_token[:, 1:].long()], dim=1),
                position_ids=self.mask.sum(1)[rows, None] + torch.arange(ids.shape[1] - 1, device=device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            hidden = torch.cat([hidden, rest], dim=1)  # (B, T, H)
        # Selecting by index has a cheaper gradient than hidden[is_token].
        hidden = hidden.flatten(0, 1).index_select(0, is_token.flatten().nonzero().squeeze(1))  # (N, H)
        return head_logprobs(self.model, hidden, ids[is_token], temperature)

    def backward(self) -> None:
        """Send the gradients that the responses have left through the prompts."""
        pairs = [(t, d.grad) for t, d in zip(self.computed, self.detached, strict=True) if d.grad is not None]
        if pairs:
            torch.autograd.backward([t for t, _ in pairs], [gradient.to(t.dtype) for t, gradient in pairs])
