"""Log-probs of responses under the policy that is being trained, with gradients, in bounded memory.

    for batch, prompts in batches(model, sequences, token_budget):
        loss(token_logprobs(model, batch, temperature, prompts)).backward()

Nothing is computed twice or in vain: a prompt goes through the model once for all its responses; responses of like
length share a micro-batch, so there is little padding; and only positions that predict a response token reach the
vocabulary, a chunk at a time, so the logits of a batch never exist at once.

Left out: packing several sequences into one row, which needs attention kernels that not every device has.
Run `python logprobs.py` for a worked example.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, DynamicLayer

from engine import parallel
from engine.cache import layer_kinds

# Logits are made for this many entries at once (256 MiB in float32), and made again in the backward pass. The
# logits of a whole batch, with a vocabulary of 150,000 words, would be the largest tensor of all by far.
LOGITS_AT_ONCE = 2**26


@dataclass
class Sequence:
    """One response with what the update must know about it.

    advantage: one number for all its tokens.  kind: "solution" or "meta"; each kind has its own denominator.
    sampled_logprobs: as the sampler saw them, only to measure how far the trainer's own differ.
    old_logprobs: (T,) before the first of several updates; None with a single one.
    reference_logprobs: (T,) of the frozen reference; None without a KL term.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    advantage: float = 0.0
    kind: str = "solution"
    sampled_logprobs: list[float] = field(default_factory=list)
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None


def token_logprobs(
    model, sequences: list[Sequence], temperature: float = 1.0, prompts: "SharedPrompts | None" = None
) -> Tensor:
    """Log-probs of all response tokens, flat and in order: (N,) with N = the sum of the response lengths.

    With `prompts` only the responses go through the model. Only positions that predict a response token reach the
    vocabulary.
    """
    targets = torch.tensor([token for s in sequences for token in s.response_ids], device=model.device)  # (N,)
    hidden = prompts.hidden(sequences) if prompts else _whole_hidden(model, sequences)  # (N, H)
    head = model.get_output_embeddings()

    def chunk_logprobs(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = head(hidden).float() / temperature  # (chunk, V)
        return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)

    chunk = max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
    if len(targets) <= chunk:
        return chunk_logprobs(hidden, targets)
    return torch.cat(
        [
            checkpoint(chunk_logprobs, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
    )


def _whole_hidden(model, sequences: list[Sequence]) -> Tensor:
    """Last hidden states that predict the response tokens, (N, H), from whole sequences.

    Padding stands on the right, where causal attention never looks, so no attention mask is needed.
    """
    ids, real = _padded([s.prompt_ids + s.response_ids[:-1] for s in sequences], model.device)  # (B, L)
    first = torch.tensor([len(s.prompt_ids) - 1 for s in sequences], device=model.device)
    predicts = real & (torch.arange(ids.shape[1], device=model.device) >= first[:, None])
    return _chosen(model.base_model(input_ids=ids, use_cache=False).last_hidden_state, predicts)


def _chosen(hidden: Tensor, mask: Tensor) -> Tensor:
    """hidden (B, L, H) where mask (B, L) is set: (N, H). Its gradient is cheaper than that of hidden[mask]."""
    return hidden.flatten(0, 1).index_select(0, mask.flatten().nonzero().squeeze(1))


class SharedPrompts:
    """Prompts that go through the model once for all their responses, in as many micro-batches as they come.

    What the responses see of them (keys, values, the last hidden state) is cut out of the graph: each micro-batch
    adds its gradient there, and `backward` sends the sum through the prompts, once.
    """

    def __init__(self, model, sequences: list[Sequence]) -> None:
        self.model = model
        distinct = list(dict.fromkeys(tuple(s.prompt_ids) for s in sequences))
        self.row = {prompt: k for k, prompt in enumerate(distinct)}
        ids, self.real = _padded([list(prompt) for prompt in distinct], model.device, left=True)  # (P, L)
        cache: Any = DynamicCache(config=model.config)
        last = model.base_model(
            input_ids=ids,
            attention_mask=self.real.long(),
            position_ids=(self.real.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]  # (P, H): predicts the first response token
        self.computed = [last] + [t for layer in cache.layers for t in (layer.keys, layer.values)]
        # In float32 even under autocast: here the gradients of many responses are added up.
        wide = [torch.promote_types(t.dtype, torch.float32) for t in self.computed]
        self.seen = [t.detach().to(w).requires_grad_(t.requires_grad) for t, w in zip(self.computed, wide, strict=True)]

    def hidden(self, sequences: list[Sequence]) -> Tensor:
        """Last hidden states that predict the response tokens of these sequences, (N, H)."""
        rows = torch.tensor([self.row[tuple(s.prompt_ids)] for s in sequences], device=self.model.device)  # (B,)
        first, *keys_and_values = (
            seen.index_select(0, rows).to(t.dtype) for t, seen in zip(self.computed, self.seen, strict=True)
        )
        ids, real = _padded([s.response_ids[:-1] for s in sequences], self.model.device)  # (B, T)
        if not ids.shape[1]:
            return first
        cache = DynamicCache(config=self.model.config)
        for k in range(0, len(keys_and_values), 2):
            cache.update(keys_and_values[k], keys_and_values[k + 1], k // 2)
        rest = self.model.base_model(
            input_ids=ids,
            attention_mask=torch.cat([self.real[rows], real], dim=1).long(),
            position_ids=self.real.sum(1)[rows, None] + torch.arange(ids.shape[1], device=self.model.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # (B, T, H)
        hidden = torch.cat([first[:, None], rest], dim=1)
        return _chosen(hidden, torch.cat([real.new_ones(len(sequences), 1), real], dim=1))

    def backward(self) -> None:
        """Send the gradients that the responses left through the prompts."""
        pairs = [(t, seen.grad) for t, seen in zip(self.computed, self.seen, strict=True) if seen.grad is not None]
        if pairs:
            torch.autograd.backward([t for t, _ in pairs], [gradient.to(t.dtype) for t, gradient in pairs])


def _padded(rows: list[list[int]], device, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids (B, L), padded with 0 on one side, and which of them are real (B, L)."""
    longest = max(len(row) for row in rows)
    pads = [[0] * (longest - len(row)) for row in rows]
    ids = [pad + row if left else row + pad for pad, row in zip(pads, rows, strict=True)]
    lengths, columns = torch.tensor([len(row) for row in rows])[:, None], torch.arange(longest)
    real = columns >= longest - lengths if left else columns < lengths
    return torch.tensor(ids, dtype=torch.long).view(len(rows), longest).to(device), real.to(device)


@torch.no_grad()
def check_head(model) -> None:
    """Raise ValueError unless the model's logits are its output layer applied to its last hidden state.

    `token_logprobs` relies on it; a model that scales or caps its logits afterwards (Gemma 2, Cohere) does not.
    """
    ids = torch.arange(4, device=model.device)[None]
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    if not torch.allclose(model.get_output_embeddings()(hidden), model(input_ids=ids).logits, rtol=1e-2, atol=1e-2):
        raise ValueError(f"{type(model).__name__} changes its logits after the output layer: not supported")


def micro_batches(sequences: list[Sequence], token_budget: int) -> Iterator[list[Sequence]]:
    """Responses of like length together, at most `token_budget` tokens with prompts and padding."""
    by_length = sorted(sequences, key=lambda s: len(s.response_ids))
    return _within(by_length, lambda s: len(s.prompt_ids) + len(s.response_ids), token_budget)


def _within(items: Iterable, size: Callable[[Any], int], budget: int) -> Iterator[list]:
    """Cut into lists whose number x largest size is at most the budget; a larger item stands alone."""
    batch: list = []
    largest = 0
    for item in items:
        if batch and (len(batch) + 1) * max(largest, size(item)) > budget:
            yield batch
            batch, largest = [], 0
        batch.append(item)
        largest = max(largest, size(item))
    if batch:
        yield batch


def _shareable(model) -> bool:
    """Does the model keep plain keys and values, and is it free to make as many passes as it likes?

    Gradient checkpointing keeps none, a window of attention only the last; ranks of a sharded model go in step.
    """
    return (
        layer_kinds(model) == {DynamicLayer}
        and not model.is_activation_checkpointing
        and not parallel.is_sharded(model)
    )


# What a rank computes when others, of a sharded model, have more micro-batches than it has: nothing, but in step.
FILLER = [Sequence([0], [0])]


def batches(
    model, sequences: list[Sequence], token_budget: int
) -> Iterator[tuple[list[Sequence], SharedPrompts | None]]:
    """Micro-batches, each with the prompts that it shares with others; those are sent backward after the last.

    Where prompts cannot be shared, each is a batch of whole sequences, without prompts; of a sharded model there are
    equally many on all ranks, fillers last.
    """
    if not _shareable(model):
        whole = list(micro_batches(sequences, token_budget))
        if parallel.is_sharded(model):  # it gathers its weights in every pass: a pass too few, and all wait forever
            whole += [FILLER] * (parallel.largest(len(whole)) - len(whole))
        yield from ((batch, None) for batch in whole)
        return
    groups: dict[tuple[int, ...], list[Sequence]] = {}
    for sequence in sequences:
        groups.setdefault(tuple(sequence.prompt_ids), []).append(sequence)
    for some in _within(sorted(groups, key=len), len, token_budget):
        together = [sequence for prompt in some for sequence in groups[prompt]]
        prompts = SharedPrompts(model, together)
        yield from ((batch, prompts) for batch in micro_batches(together, token_budget))
        prompts.backward()


def longest_length(sequences: list[Sequence]) -> int:
    """Tokens of the longest sequence; 0 of none."""
    return max((len(s.prompt_ids) + len(s.response_ids) for s in sequences), default=0)


def main() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    model: Any = LlamaForCausalLM(config)
    sequences = [Sequence([5, 6, 7], [2, 3, 1]), Sequence([5, 6, 7], [4, 1]), Sequence([8], [9, 1])]
    print("Two responses, [2, 3, 1] and [4, 1], to the prompt [5, 6, 7]; one, [9, 1], to [8]. A random model.")
    prompts = SharedPrompts(model, sequences)
    for way, shared in (("whole sequences", None), ("prompts once", prompts)):
        logprobs = token_logprobs(model, sequences, prompts=shared)
        logprobs.sum().backward()
        if shared:
            shared.backward()
        norm = model.get_input_embeddings().weight.grad.norm()
        print(f"{way:<16}", [round(x, 4) for x in logprobs.tolist()], f"gradient of the embeddings {norm:.4f}")
        model.zero_grad()
    print("tokens through the model: 5 + 4 + 2 = 11 in whole sequences, 3 + 1 + 2 + 1 + 1 = 8 with prompts once")
    batched = [[s.response_ids for s in batch] for batch in micro_batches(sequences, token_budget=14)]
    print("micro-batches of at most 14 tokens (2 rows of 5; 3 of 6 would be 18):", batched)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    equal = token_logprobs(model, sequences[1:2]).tolist()
    print("all 12 tokens equally likely, log 1/12 = -2.4849:", [round(x, 4) for x in equal])


if __name__ == "__main__":
    main()
