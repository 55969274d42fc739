"""Draw the same tokens as `rollout.sample`, faster: the sampler that training uses where speed matters.

    admit prompts -> draw a token for every row -> ... -> drop finished rows, admit waiting ones -> ...

Read `rollout.sample` first; it defines what is drawn. This file changes only how the work is arranged:

- One row of the batch is one rollout. Finished rows are dropped from time to time ("packing") and rows that are still
  waiting take their place, so one long response does not keep the others from starting.
- The cache has spare columns, and a decoding step writes its keys and values into the next one in place. The plain
  sampler copies the whole cache at every step.
- On CUDA a step is captured as a graph, because launching its kernels one by one takes longer than running them.

All rows of the cache end at the same column, whatever their length:

    prompt 0, draw 0   . . p p p r r |          p: prompt   r: response   .: padding, masked
    prompt 0, draw 1   . . p p p r r |          |: the column that the next token is written to
    prompt 1, draw 0   p p p p p p p |          (this row was admitted later, after another had finished)

Left out: beam search, repetition penalties, streaming, speculative decoding, paged caches. `python -m lab.bench`
measures the speed.
"""

import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, DynamicLayer

from rollout import Rollout, check_arguments, draw_token

PACK_SHARE = 1 / 4  # pack once this share of the rows has finished: packing costs about as much as two steps
# Spare cache columns after packing, at least. Attention reads them in vain, but more columns need a new CUDA graph.
SPARE_COLUMNS = {"cpu": 8, "cuda": 128}
CHECK_EVERY = {"cpu": 1, "cuda": 16}  # steps between counts of the finished rows: on CUDA each makes the host wait
GRAPH_DEVICES = {"cuda"}  # device types whose steps are captured as graphs


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
    """Draw n responses to each prompt and return one list of n rollouts per prompt, in the order of the prompts.

    The arguments are those of `rollout.sample`, and so are the tokens drawn, as far as rounding allows: each rollout
    has its own random numbers, so what it draws does not depend on what else is in the batch. `max_cache_tokens`
    limits rows x longest sequence in the cache (spare columns add an eighth); rows that do not fit wait.

    Raises ValueError for arguments that cannot be used (see `rollout.check_arguments`).
    """
    limits = [max_new_tokens] * len(prompts) if limits is None else [min(limit, max_new_tokens) for limit in limits]
    check_arguments(model, prompts, limits, n, max_new_tokens, temperature, top_p)
    was_training = model.training
    model.eval()
    uniforms = torch.rand(len(prompts) * n, max_new_tokens, generator=generator, dtype=torch.float64)
    batch = _Batch(model, prompts, limits, n, eos_ids, temperature, top_p, uniforms, max_cache_tokens)
    try:
        while batch.pack():
            batch.decode()
    finally:
        model.train(was_training)

    groups: list[list[Rollout]] = [[] for _ in prompts]
    drawn = zip(batch.tokens.tolist(), batch.logprobs.tolist(), batch.lengths.tolist(), strict=True)
    for number, (ids, logprobs, length) in enumerate(drawn):
        i = number // n
        at_limit = "cutoff" if limits[i] < max_new_tokens else "length"
        reason = "stop" if ids[length - 1] in eos_ids else at_limit
        groups[i].append(Rollout(list(prompts[i]), ids[:length], logprobs[:length], reason))
    return groups


class _Batch:
    """The state of one call of `sample`: all P x n rollouts, and the R of them that are being decoded.

    `pack` chooses the rows and gathers their state, `decode` takes steps with it, `_store` writes back what was drawn.
    """

    def __init__(self, model, prompts, limits, n, eos_ids, temperature, top_p, uniforms, max_cache_tokens) -> None:
        device, total, longest = model.device, len(prompts) * n, max(limits, default=1)
        self.model, self.prompts, self.n, self.temperature, self.top_p = model, prompts, n, temperature, top_p
        self.eos = torch.tensor(sorted(eos_ids), dtype=torch.long, device=device)
        # Plain attention takes a ready-made mask. Sliding windows, ALiBi and other attention kernels derive their own
        # from the 2-d mask in Python, which a graph cannot capture.
        plain = layer_kinds(model) == {DynamicLayer} and not getattr(model.config, "alibi", False)
        self.plain = plain and model.config._attn_implementation == "sdpa"
        self.captures = self.plain and device.type in GRAPH_DEVICES

        # The state of all rollouts. A finished row keeps drawing until it is dropped; what it draws lands behind its
        # end, where nothing reads it.
        self.uniforms = uniforms.to(device)  # (P n, T)
        self.start = torch.tensor([len(prompt) for prompt in prompts], device=device).repeat_interleave(n)  # (P n,)
        self.limit = torch.tensor(limits, device=device).repeat_interleave(n)  # (P n,)
        self.tokens = torch.zeros(total, longest + 1, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(total, longest + 1, device=device)
        self.lengths = torch.zeros(total, dtype=torch.long, device=device)
        self.max_cache_tokens = max_cache_tokens
        self.reach = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True) for _ in range(n)]
        self.waiting = deque(sorted(range(total), key=lambda number: -self.reach[number]))  # longest first

        # The state of the rows; `_gather` makes the rest.
        self.number = torch.zeros(0, dtype=torch.long, device=device)  # (R,) which of the P n rollouts a row draws

    def pack(self) -> bool:
        """Drop finished rows, admit waiting ones and make room for new columns; return False when nothing is left."""
        number, parts = self.number, []
        if len(number):
            self._store()
            alive = (~self.finished).nonzero().squeeze(1)
            number = number[alive]
            if len(alive):
                end = self.width + self.steps
                parts.append(Part(self.rows, alive, end - int(self.position[alive].max()), end))
        if admitted := self._admit(number.tolist()):
            wanted = [tuple(self.prompts[k // self.n]) for k in admitted]
            row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(wanted))}  # equal prompts run once
            logits, computed = prefill(self.model, list(row_of))
            prompt_rows = torch.tensor([row_of[prompt] for prompt in wanted], device=number.device)
            new = torch.tensor(admitted, device=number.device)
            token, logprob = draw_token(logits[prompt_rows], self.uniforms[new, 0], self.temperature, self.top_p)
            self.tokens[new, 0], self.logprobs[new, 0], self.lengths[new] = token, logprob, 1
            parts.append(Part(computed, prompt_rows, 0, computed.is_token.shape[2]))
            number = torch.cat([number, new])
        self.number = number
        if parts:
            self._gather(parts)
        return bool(parts)

    def _admit(self, alive: list[int]) -> list[int]:
        """Take as many waiting rollouts as fit beside those alive. A rollout alone is admitted whatever its length."""
        if not self.waiting:
            return []
        longest = max(self.reach[k] for k in [*alive, self.waiting[0]])
        room = max(self.max_cache_tokens // longest - len(alive), 0 if alive else 1)
        return [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]

    def _gather(self, parts: list["Part"]) -> None:
        """Make the tensors of a decoding step for the rows now in the batch."""
        number = self.number
        drawn = self.lengths[number]  # (R,) tokens drawn so far
        self.token = self.tokens[number, drawn - 1]  # (R,) the last one drawn, which is not in the cache yet
        self.position = self.start[number] + drawn - 1  # (R,)
        self.left = self.limit[number] - drawn  # (R,) tokens until the limit
        self.finished = self._is_end(self.token) | (self.left <= 0)  # (R,)
        self.width, self.steps = max(part.end - part.first for part in parts), 0
        spare = min(max(SPARE_COLUMNS[number.device.type], self.width // 8), int(self.left.max()))
        columns = drawn[:, None] + torch.arange(spare, device=number.device)  # (R, spare)
        self.uniform = self.uniforms[number[:, None], columns.clamp(max=self.uniforms.shape[1] - 1)]
        self.new_tokens = torch.zeros_like(columns)
        self.new_logprobs = self.logprobs.new_zeros(columns.shape)
        self.step = number.new_zeros(1)
        self.rows = join(parts, spare)

    def _store(self) -> None:
        """Write what the rows have drawn since `_gather` to the state of all rollouts."""
        columns = self.lengths[self.number][:, None] + torch.arange(self.steps, device=self.number.device)
        columns = columns.clamp(max=self.tokens.shape[1] - 1)  # (R, steps)
        self.tokens[self.number[:, None], columns] = self.new_tokens[:, : self.steps]
        self.logprobs[self.number[:, None], columns] = self.new_logprobs[:, : self.steps]
        self.lengths[self.number] = self.position + 1 - self.start[self.number]

    def decode(self) -> None:
        """Take steps until enough rows have finished for packing to pay, or the spare columns are used up."""
        device, take_step = self.number.device.type, self._step
        while self.steps < self.new_tokens.shape[1]:
            if self.steps % CHECK_EVERY[device] == 0 and int(self.finished.sum()) >= PACK_SHARE * len(self.number):
                return
            if self.steps == 1 and self.captures:  # the first step has run without a graph, as a warm-up
                take_step = _captured(self._step, self.number.device) or self._step
                self.captures = take_step != self._step
            take_step()
            self.steps += 1

    def _step(self) -> None:
        """Feed the last token of every row to the model and draw the next.

        A graph replays exactly this on the same memory: shapes are fixed, results are written in place, and nothing
        waits for the host.
        """
        is_token, column = self.rows.is_token, self.rows.column
        is_token.index_fill_(2, column, True)
        logits = self.model(
            input_ids=self.token[:, None],
            attention_mask=is_token.transpose(2, 3) if self.plain else is_token[:, 0, :, 0],
            position_ids=self.position[:, None],
            past_key_values=self.rows.cache,
            use_cache=True,
        ).logits[:, -1]  # (R, V)
        uniform = self.uniform.index_select(1, self.step).squeeze(1)
        token, logprob = draw_token(logits, uniform, self.temperature, self.top_p)
        self.new_tokens.index_copy_(1, self.step, token[:, None])
        self.new_logprobs.index_copy_(1, self.step, logprob[:, None])
        self.token.copy_(token)
        self.position += ~self.finished
        self.left -= 1
        self.finished |= self._is_end(token) | (self.left <= 0)
        column += 1  # the layers of the cache share this tensor and write where it points
        self.step += 1

    def _is_end(self, token: Tensor) -> Tensor:
        return (token[:, None] == self.eos).any(1)


def _captured(step: Callable[[], None], device: torch.device) -> Callable[[], None] | None:
    """Capture a step as a CUDA graph and return what replays it, or None with a warning if that is not possible."""
    graph, before, aside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device), torch.cuda.Stream(device)
    try:
        # Thread-local, because what other threads (NCCL's) do during the capture is no error.
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.set_stream(before)  # a failed capture leaves its own stream behind
        warnings.warn(f"decoding without a CUDA graph, which is slower: {error}", stacklevel=2)
        return None
    return graph.replay


# ---- the cache


class ColumnLayer(DynamicLayer):
    """Hold the keys and values of one layer, (R, heads, W, head size), and write one column in place at each step."""

    keys: Any
    values: Any
    column: Any = None  # (1,), shared by all layers; None while prompts are computed

    def update(self, key_states: Tensor, value_states: Tensor, *arguments, **named) -> tuple[Tensor, Tensor]:
        if self.column is None:
            # Under autocast, rotary embeddings are float32 and make the keys float32 too, which would double the cache.
            device = key_states.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else key_states.dtype
            return super().update(key_states.to(dtype), value_states.to(dtype))
        self.keys.index_copy_(2, self.column, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.column, value_states.to(self.values.dtype))
        return self.keys, self.values

    def get_seq_length(self) -> Any:  # an int, or a tensor where graphs are captured
        return super().get_seq_length() if self.column is None else self.column

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return super().get_mask_sizes(query_length) if self.column is None else (self.keys.shape[2], 0)


@dataclass
class Rows:
    """The rows of a cache: `is_token` (R, 1, W, 1) is False for padding, `column` (1,) is the next one to write."""

    cache: Cache
    is_token: Tensor
    column: Tensor


@dataclass
class Part:
    """Some rows of a cache, given by their indices (K,), and the range of columns that these rows occupy."""

    rows: Rows
    indices: Tensor
    first: int
    end: int


def join(parts: list[Part], spare: int) -> Rows:
    """Copy parts of several caches into one, with all rows ending at the same column and `spare` columns after it."""
    width = max(part.end - part.first for part in parts)
    total = sum(len(part.indices) for part in parts)

    def joined(tensors: Iterable[Tensor]) -> Tensor:
        """Join one tensor of (rows, heads, columns, size) from each part, copying every number once."""
        sources = list(tensors)
        out = sources[0].new_empty(total, sources[0].shape[1], width + spare, sources[0].shape[3])
        out[:, :, width:] = 0  # masked columns must still hold numbers: 0 x NaN is NaN
        start = 0
        for source, part in zip(sources, parts, strict=True):
            target = out[start : start + len(part.indices)]
            padding = width - (part.end - part.first)
            target[:, :, :padding] = 0
            columns = source[:, :, part.first : part.end]
            torch.index_select(columns, 0, part.indices, out=target[:, :, padding:width])
            start += len(part.indices)
        return out

    is_token = joined(part.rows.is_token for part in parts)
    column = torch.full((1,), width, device=is_token.device)
    caches: list[Any] = [part.rows.cache for part in parts]
    for k, layer in enumerate(caches[0].layers):  # layer by layer, so that there is never a second copy of everything
        layer.keys = joined(cache.layers[k].keys for cache in caches)
        layer.values = joined(cache.layers[k].values for cache in caches)
        layer.column = column
    return Rows(caches[0], is_token, column)


def prefill(model, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Rows]:
    """Run each prompt once and return its next-token logits, (P, V), with the cache that this leaves."""
    cache = Cache(layer_class_to_replicate=ColumnLayer)
    last, mask = run_prompts(model, prompts, cache)
    column = torch.full((1,), mask.shape[1], device=model.device)
    return model.get_output_embeddings()(last), Rows(cache, mask.bool()[:, None, :, None], column)


def run_prompts(model, prompts: Sequence[Sequence[int]], cache: Cache) -> tuple[Tensor, Tensor]:
    """Run each prompt once; return the last hidden states, (P, H), which predict the next tokens, and the mask (P, W).

    The keys and values of the prompts are left in the cache.
    """
    input_ids, mask = pad_left(prompts, model.device)
    hidden = model.base_model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),  # padding is not counted
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return hidden[:, -1], mask


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad prompts on the left, so that the last column holds the last token of each: ids and mask, both (P, W)."""
    rows = [torch.tensor(prompt) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return ids.to(device), mask.to(device)


def layer_kinds(model) -> set[type]:
    """Return the classes of cache layer that transformers would use for this model."""
    return {type(layer) for layer in DynamicCache(config=model.config).layers}
