"""The policy sampler: how tokens are drawn from a causal language model, in plain PyTorch.

    admit prompts -> draw a token for every row -> ... -> drop rows that ended, admit others -> ...

A prompt is computed once for all its draws that come in together. A `_Batch` holds the rows that are being decoded; in
the cache they all end at the same column (`cache.py`). Now and then it is packed: rows that ended leave, waiting ones
take their place. So a straggler holds up nobody, a limit pays the moment it is reached, and what does not fit waits
its turn. Each rollout has random numbers of its own: what it draws does not depend, but for rounding, on what else is
in the batch. On CUDA a step is captured as a graph: launching its kernels one by one takes longer than running them.

Left out: beam search, repetition penalties, streaming, speculative decoding, paged caches. Run `python rollout.py`
for a worked example; `bench.py` measures what each of these is worth.
"""

import warnings
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicLayer
from transformers.cache_utils import DynamicSlidingWindowLayer

from engine.cache import Chosen, join, layer_kinds, prefill

PACK_SHARE = 1 / 4  # of the rows have ended: packing, which costs about two steps, pays
HEADROOM = {"cpu": 8, "cuda": 128}  # fewest free columns after packing: read in vain, but a new graph is dearer
CAPTURES = {"cuda"}  # devices whose steps are captured as graphs
CHECK_EVERY = {"cpu": 1, "cuda": 16}  # steps between looks at which rows have ended: on CUDA the host waits for them


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


@torch.inference_mode()
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
    sequence that may be in the cache at once (and an eighth more, free columns); what does not fit waits.

    Raises ValueError for an empty prompt, an n, max_new_tokens or limit below 1, a bad temperature or top_p, or a
    model that keeps more than keys and values (a state space, say).
    """
    limits = [max_new_tokens] * len(prompts) if limits is None else [min(x, max_new_tokens) for x in limits]
    _check(model, prompts, limits, n, max_new_tokens, temperature, top_p)
    was_training = model.training
    model.eval()
    uniforms = torch.rand(len(prompts) * n, max_new_tokens, generator=generator, dtype=torch.float64)
    batch = _Batch(model, prompts, limits, n, eos_ids, temperature, top_p, uniforms, max_cache_tokens)
    try:
        while batch.pack():
            batch.decode()
    finally:
        model.train(was_training)

    rollouts: list[list[Rollout]] = [[] for _ in prompts]
    rows = zip(batch.tokens.tolist(), batch.logprobs.tolist(), batch.lengths.tolist(), strict=True)
    for row, (ids, logprobs, length) in enumerate(rows):
        i = row // n
        capped = "cutoff" if limits[i] < max_new_tokens else "length"
        reason = "stop" if ids[length - 1] in eos_ids else capped
        rollouts[i].append(Rollout(list(prompts[i]), ids[:length], logprobs[:length], reason))
    return rollouts


def _check(model, prompts, limits, n, max_new_tokens, temperature, top_p) -> None:
    if len(limits) != len(prompts):
        raise ValueError(f"limits: expected one per prompt ({len(prompts)}), found {len(limits)}")
    if n < 1 or max_new_tokens < 1 or any(limit < 1 for limit in limits):
        raise ValueError(f"n ({n}), max_new_tokens ({max_new_tokens}) and limits must be at least 1")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"expected temperature >= 0 and 0 < top_p <= 1, found {temperature} and {top_p}")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty: the first token cannot be drawn from nothing")
    if unknown := layer_kinds(model) - {DynamicLayer, DynamicSlidingWindowLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in unknown))
        raise ValueError(
            f"{type(model).__name__}: layers that keep more than keys and values ({names}) are not supported"
        )


class _Batch:
    """The rows in decoding, R of them in a cache of W columns, and what all P n rollouts have drawn so far.

    `pack` gathers what the rows need from what is kept for all rollouts, `decode` takes steps, `_unpack` puts back.
    """

    def __init__(self, model, prompts, limits, n, eos_ids, temperature, top_p, uniforms, max_cache_tokens) -> None:
        device, total, longest = model.device, len(prompts) * n, max(limits, default=1)
        self.model, self.prompts, self.n, self.temperature, self.top_p = model, prompts, n, temperature, top_p
        self.eos = torch.tensor(sorted(eos_ids), dtype=torch.long, device=device)
        # A prepared mask does for plain attention; windows, ALiBi and other kernels want what the model makes of it.
        plain = layer_kinds(model) == {DynamicLayer} and not getattr(model.config, "alibi", False)
        self.plain = plain and model.config._attn_implementation == "sdpa"
        self.captures = self.plain and device.type in CAPTURES

        # Of all rollouts. A row that has ended goes on until it leaves: what it draws lands behind its end, unread.
        self.uniforms = uniforms.to(device)  # (P n, T)
        self.start = torch.tensor([len(prompt) for prompt in prompts], device=device).repeat_interleave(n)  # (P n,)
        self.limit = torch.tensor(limits, device=device).repeat_interleave(n)  # (P n,)
        self.tokens = torch.zeros(total, longest + 1, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(total, longest + 1, device=device)
        self.lengths = torch.zeros(total, dtype=torch.long, device=device)
        self.max_cache_tokens = max_cache_tokens
        self.reach = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True) for _ in range(n)]
        self.waiting = deque(sorted(range(total), key=lambda row: -self.reach[row]))

        # Of the rows in decoding.
        self.row = torch.zeros(0, dtype=torch.long, device=device)  # (R,) which of the P n rollouts each is

    def pack(self) -> bool:
        """Let rows that ended go and waiting ones in, and make room for more columns; False when all is drawn."""
        row, sources = self.row, []
        if len(row):
            self._unpack()
            keep = (~self.ended).nonzero().squeeze(1)
            row = row[keep]
            if len(keep):
                last = self.width + self.steps
                sources.append(Chosen(self.rows, keep, last - int(self.position[keep].max()), last))
        if fresh := self._admit(row.tolist()):
            order = {i: k for k, i in enumerate(dict.fromkeys(r // self.n for r in fresh))}
            logits, computed = prefill(self.model, [self.prompts[i] for i in order])
            which = torch.tensor([order[r // self.n] for r in fresh], device=row.device)
            new = torch.tensor(fresh, device=row.device)
            token, logprob = _draw(logits[which], self.uniforms[new, 0], self.temperature, self.top_p)
            self.tokens[new, 0], self.logprobs[new, 0], self.lengths[new] = token, logprob, 1
            sources.append(Chosen(computed, which, 0, computed.real.shape[2]))
            row = torch.cat([row, new])
        self.row = row
        if sources:
            self._gather(sources)
        return bool(sources)

    def _admit(self, alive: list[int]) -> list[int]:
        """Take as many waiting rows as fit beside those that are alive; one alone is never too long."""
        if not self.waiting:
            return []
        longest = max(self.reach[row] for row in [*alive, self.waiting[0]])
        room = max(self.max_cache_tokens // longest - len(alive), 0 if alive else 1)
        return [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]

    def _gather(self, sources: list[Chosen]) -> None:
        """The tensors of a step, for the rows now in the batch."""
        row = self.row
        at = self.lengths[row]  # (R,)
        self.token = self.tokens[row, at - 1]  # (R,) the last one drawn, not in the cache yet
        self.position = self.start[row] + at - 1  # (R,)
        self.left = self.limit[row] - at  # (R,) tokens until the limit
        self.ended = self._is_end(self.token) | (self.left <= 0)  # (R,)
        self.width, self.steps = max(source.last - source.first for source in sources), 0
        free = min(max(HEADROOM[row.device.type], self.width // 8), int(self.left.max()))
        columns = at[:, None] + torch.arange(free, device=row.device)  # (R, free)
        self.uniform = self.uniforms[row[:, None], columns.clamp(max=self.uniforms.shape[1] - 1)]
        self.drawn = torch.zeros_like(columns)
        self.drawn_logprobs = self.logprobs.new_zeros(columns.shape)
        self.step = row.new_zeros(1)
        self.rows = join(sources, free)

    def _unpack(self) -> None:
        """Put what the rows have drawn where it is kept for all rollouts."""
        columns = self.lengths[self.row][:, None] + torch.arange(self.steps, device=self.row.device)
        columns = columns.clamp(max=self.tokens.shape[1] - 1)  # (R, steps)
        self.tokens[self.row[:, None], columns] = self.drawn[:, : self.steps]
        self.logprobs[self.row[:, None], columns] = self.drawn_logprobs[:, : self.steps]
        self.lengths[self.row] = self.position + 1 - self.start[self.row]

    def decode(self) -> None:
        """Draw token after token until so many rows have ended that packing pays, or the columns are used up."""
        device, take_step = self.row.device.type, self._step
        free = self.drawn.shape[1]
        while self.steps < free:
            if self.steps % CHECK_EVERY[device] == 0 and int(self.ended.sum()) >= PACK_SHARE * len(self.row):
                return
            if self.steps == 1 and self.captures:
                take_step = _captured(self._step, self.row.device) or self._step
                self.captures = take_step != self._step
            take_step()
            self.steps += 1

    def _step(self) -> None:
        """Feed the last token of every row to the model, and draw the next. Fixed shapes, no wait for the host."""
        real, column = self.rows.real, self.rows.column
        real.index_fill_(2, column, True)
        logits = self.model(
            input_ids=self.token[:, None],
            attention_mask=real.transpose(2, 3) if self.plain else real[:, 0, :, 0],
            position_ids=self.position[:, None],
            past_key_values=self.rows.cache,
            use_cache=True,
        ).logits[:, -1]  # (R, V)
        uniform = self.uniform.index_select(1, self.step).squeeze(1)
        token, logprob = _draw(logits, uniform, self.temperature, self.top_p)
        self.drawn.index_copy_(1, self.step, token[:, None])
        self.drawn_logprobs.index_copy_(1, self.step, logprob[:, None])
        self.token.copy_(token)
        self.position += ~self.ended
        self.left -= 1
        self.ended |= self._is_end(token) | (self.left <= 0)
        column += 1  # in place: the layers write where it says
        self.step += 1

    def _is_end(self, token: Tensor) -> Tensor:
        return (token[:, None] == self.eos).any(1)


def _captured(step: Callable[[], None], device: torch.device) -> Callable[[], None] | None:
    """The step as a CUDA graph; None, with a warning, for a model that cannot be captured."""
    graph, before, aside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device), torch.cuda.Stream(device)
    try:
        # Thread-local: what other threads (NCCL's) do meanwhile is no error.
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.set_stream(before)  # a capture that failed leaves its own
        warnings.warn(f"decoding without a CUDA graph, more slowly: {error}", stacklevel=2)
        return None
    return graph.replay


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
