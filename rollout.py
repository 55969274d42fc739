"""The policy sampler: how tokens are drawn from a causal language model, in plain PyTorch.

    prefill once -> clone the cache for the n draws -> draw a token for every row -> drop rows that ended -> repeat

Four things make it fast without an inference server: a prompt goes through the model once however often it is
drawn from; finished rows leave the batch, so a straggler does not drag the others along; a limit per prompt
ends a row the moment it is reached; and a batch whose cache would not fit is split. Each rollout has its own
stream of random numbers, so what it draws does not depend, but for rounding, on what else is in the batch.

Left out: beam search, repetition penalties, streaming, speculative decoding, and refilling the batch with fresh
prompts while it runs. Run `python rollout.py` for a worked example.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

# Copying a cache to drop rows costs about as much as a decoding step; an eighth of dead rows pays for it.
COMPACT_SHARE = 1 / 8


@dataclass
class Rollout:
    """One response to one prompt; these lists are the truth, tensors are made from them only for the update.

    prompt_ids, response_ids: token ids; the response ends with an end token exactly when it ended by "stop".
    logprobs: log-probability of each response token under softmax(logits / temperature), before top-p.
    finish_reason: "stop" (drew an end token), "cutoff" (its prompt's limit) or "length" (max_new_tokens).
    """

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    finish_reason: str


class AutocastCache(DynamicCache):
    """A cache that keeps keys and values in the precision of autocast, where it is on.

    Rotary embeddings are float32 under autocast and make the keys so; the cache would be twice as large.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *arguments, **named) -> tuple[Tensor, Tensor]:
        device = key_states.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            key_states, value_states = key_states.to(dtype), value_states.to(dtype)
        return super().update(key_states, value_states, *arguments, **named)


@torch.no_grad()
def sample(
    model,
    prompts: Sequence[Sequence[int]],
    *,
    n: int,
    max_new_tokens: int,
    eos_ids: Collection[int],
    limits: Sequence[int] | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    max_cache_tokens: int = 2**20,
) -> list[list[Rollout]]:
    """Draw n responses to each prompt; returns one list of n rollouts per prompt, in the order of the prompts.

    prompts: token ids, ragged.  limits: the most response tokens for each prompt (early cutoff), else
    max_new_tokens.  eos_ids: any of these ends a response and is part of it.  temperature 0 is greedy (its
    log-probs are then those at temperature 1).  top_p: draw from the smallest set of tokens with this mass.
    generator: a CPU generator; the same seed gives the same draws.  max_cache_tokens: rows x longest
    sequence that may be in the cache at once; more is done in several batches, with the same result.

    Raises ValueError for an empty prompt, an n, max_new_tokens or limit below 1, or a bad temperature or top_p.
    """
    limits = [max_new_tokens] * len(prompts) if limits is None else [min(x, max_new_tokens) for x in limits]
    _check(prompts, limits, n, max_new_tokens, temperature, top_p)
    # (P, n, T) one uniform number for each token that may be drawn: row by row, hence independent of the batch
    uniforms = torch.rand(len(prompts), n, max_new_tokens, generator=generator, dtype=torch.float64)
    was_training = model.training
    model.eval()
    rollouts: list[list[Rollout]] = [[] for _ in prompts]
    for indices, draws in _batches([len(prompt) for prompt in prompts], limits, n, max_cache_tokens):
        batch = _sample_batch(
            model,
            [list(prompts[i]) for i in indices],
            [limits[i] for i in indices],
            uniforms[indices][:, draws],
            torch.tensor(sorted(eos_ids)),
            temperature,
            top_p,
        )
        for k, (response_ids, logprobs, ended) in enumerate(batch):
            i = indices[k // (draws.stop - draws.start)]
            capped = "cutoff" if limits[i] < max_new_tokens else "length"
            rollouts[i].append(Rollout(list(prompts[i]), response_ids, logprobs, "stop" if ended else capped))
    model.train(was_training)
    return rollouts


def _check(prompts, limits, n, max_new_tokens, temperature, top_p) -> None:
    if len(limits) != len(prompts):
        raise ValueError(f"limits: expected one per prompt ({len(prompts)}), found {len(limits)}")
    if n < 1 or max_new_tokens < 1 or any(limit < 1 for limit in limits):
        raise ValueError(f"n ({n}), max_new_tokens ({max_new_tokens}) and limits must be at least 1")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"expected temperature >= 0 and 0 < top_p <= 1, found {temperature} and {top_p}")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty: the first token cannot be drawn from nothing")


def _batches(lengths: list[int], limits: list[int], n: int, max_cache_tokens: int) -> list[tuple[list[int], slice]]:
    """Cut P prompts x n draws into (prompt indices, slice of draws) whose caches fit, like lengths together.

    A single row that is too long is still a batch of its own: nothing is lost, at worst it does not fit.
    """

    def split(indices: list[int], draws: slice) -> list[tuple[list[int], slice]]:
        count = draws.stop - draws.start
        longest = max(lengths[i] for i in indices) + max(limits[i] for i in indices)
        if len(indices) * count * longest <= max_cache_tokens or (len(indices) == 1 and count == 1):
            return [(indices, draws)]
        if len(indices) > 1:
            half = len(indices) // 2
            return split(indices[:half], draws) + split(indices[half:], draws)
        middle = draws.start + count // 2
        return split(indices, slice(draws.start, middle)) + split(indices, slice(middle, draws.stop))

    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return split(by_length, slice(0, n)) if lengths else []


def _sample_batch(
    model, prompts: list[list[int]], limits: list[int], uniforms: Tensor, eos: Tensor, temperature: float, top_p: float
) -> list[tuple[list[int], list[float], bool]]:
    """Decode P prompts x n draws together; returns (response_ids, logprobs, ended by an end token) row by row."""
    device, n = model.device, uniforms.shape[1]
    steps, eos = max(limits), eos.to(device)
    uniforms = uniforms.flatten(0, 1).to(device)  # (R, T) with R = P n
    limit = torch.tensor(limits, device=device).repeat_interleave(n)  # (R,)

    logits, cache, mask = _prefill(model, prompts)
    cache.batch_repeat_interleave(n)
    logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)  # (R, V), (R, L)

    total = len(limit)
    tokens = torch.zeros(total, steps, dtype=torch.long, device=device)
    logprobs = torch.zeros(total, steps, device=device)
    length = torch.zeros(total, dtype=torch.long, device=device)  # 0 while the row is being drawn
    stopped = torch.zeros(total, dtype=torch.bool, device=device)
    rows = torch.arange(total, device=device)  # which of the R rows are still in the batch

    for t in range(steps):
        token, logprob = _draw(logits, uniforms[rows, t], temperature, top_p)  # (rows,), (rows,)
        tokens[rows, t], logprobs[rows, t] = token, logprob
        is_end = torch.isin(token, eos)
        ends_now = (length[rows] == 0) & (is_end | (limit[rows] == t + 1))
        stopped[rows] |= ends_now & is_end
        length[rows] = torch.where(ends_now, t + 1, length[rows])

        alive = length[rows] == 0
        n_alive = int(alive.sum())
        if n_alive == 0:
            break
        if n_alive <= (1 - COMPACT_SHARE) * len(rows):
            keep = alive.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, token, mask = rows[keep], token[keep], mask[keep]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]

    return [
        (ids[:end], values[:end], stop)
        for ids, values, end, stop in zip(
            tokens.tolist(), logprobs.tolist(), length.tolist(), stopped.tolist(), strict=True
        )
    ]


def _prefill(model, prompts: list[list[int]]) -> tuple[Tensor, DynamicCache, Tensor]:
    """Run each prompt once: next-token logits (P, V), the cache, and the mask of real tokens (P, L).

    Padding stands on the left, so that the last position is the prompt's last token in every row. Positions
    are explicit, so that a token's position does not count the padding before it.
    """
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)  # (P, L)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    cache = AutocastCache(config=model.config)
    logits = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits, cache, mask


def _draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token for each row from logits (R, V) and uniform numbers (R,): tokens (R,) and their log-probs (R,).

    Drawn by inverting the cumulative distribution: the token in whose interval the uniform number falls.
    """
    all_logprobs = (logits.float() / (temperature or 1.0)).log_softmax(-1)  # (R, V)
    if temperature == 0:
        token = all_logprobs.argmax(-1)
    else:
        probs = all_logprobs.exp()
        if top_p < 1:
            ranked, order = probs.sort(-1, descending=True)
            outside = ranked.cumsum(-1) - ranked >= top_p  # the mass before the token is enough already
            probs = probs.scatter(-1, order, ranked.masked_fill(outside, 0.0))
        cumulative = probs.double().cumsum(-1)
        # right=True never picks a token of probability 0: its interval is empty.
        token = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
        token = token.clamp(max=logits.shape[-1] - 1)
    return token, all_logprobs.gather(-1, token[:, None]).squeeze(-1)


def main() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    print("A random model of 12 tokens; 0 and 1 end a response; prompts [5, 6, 7] and [8]; limits 4 and 9 of 9.")
    generator = torch.Generator().manual_seed(0)
    groups = sample(model, [[5, 6, 7], [8]], n=3, max_new_tokens=9, eos_ids={0, 1}, limits=[4, 9], generator=generator)
    for group in groups:
        for rollout in group:
            print(f"{rollout.prompt_ids} -> {rollout.response_ids}  ({rollout.finish_reason})")
    first = groups[0][0]
    logits = model(torch.tensor([first.prompt_ids + first.response_ids])).logits[0]
    expected = logits.log_softmax(-1)[len(first.prompt_ids) - 1 + torch.arange(len(first.response_ids))]
    expected = expected.gather(-1, torch.tensor(first.response_ids)[:, None]).squeeze(-1).tolist()
    print("log-probs of the first, as drawn:          ", [round(x, 4) for x in first.logprobs])
    print("the same from one plain forward pass:      ", [round(x, 4) for x in expected])


if __name__ == "__main__":
    main()
