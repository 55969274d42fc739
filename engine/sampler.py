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

Left out: paged caches. `python -m lab.bench` measures the speed.
"""

import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache, DynamicLayer, StaticLayer

import rollout
from models.loading import layer_kinds
from rollout import Drawn, run_prompts

PACK_SHARE = 1 / 4  # pack once this share of the rows has finished: packing costs about as much as two steps
# Spare cache columns after packing, at least. Attention reads them in vain, but more columns need a new CUDA graph.
SPARE_COLUMNS = {"cpu": 8, "cuda": 128}
CHECK_EVERY = {"cpu": 1, "cuda": 16}  # steps between counts of the finished rows: on CUDA each makes the host wait
GRAPH_DEVICES = {"cuda"}  # device types whose steps are captured as graphs


def draw_packed(*arguments) -> Drawn:
    """Draw what `rollout.draw_plainly` draws from the same arguments, as far as rounding allows.

    The cache holds rows x longest sequence up to max_cache_tokens (spare columns add an eighth).
    """
    batch = _Batch(*arguments)
    while batch.pack():
        batch.decode()
    yield batch.tokens, batch.logprobs, batch.length


sample = partial(rollout.sample, draw=draw_packed)


class _Batch:
    """The state of all N = P n rollouts, and the rows of the batch: the R rollouts that are being decoded.

    `pack` chooses the rows and moves their part of the cache, `decode` takes steps with them.
    """

    def __init__(self, model, prompts, limits, n, end_tokens, uniforms, choose, max_cache_tokens) -> None:
        device, longest = model.device, max(limits, default=1)
        self.model, self.prompts, self.n, self.end_tokens, self.choose = model, prompts, n, end_tokens, choose
        # Plain attention takes a ready-made mask. Sliding windows, ALiBi and other attention kernels derive their own
        # from the 2-d mask in Python, which a graph cannot capture.
        plain = layer_kinds(model) == {DynamicLayer} and not getattr(model.config, "alibi", False)
        self.plain = plain and model.config._attn_implementation == "sdpa"
        self.captures = self.plain and device.type in GRAPH_DEVICES

        # A finished row draws on until it is dropped: into the column behind its end, where nothing reads it.
        self.uniforms = pad(uniforms, (0, 1))  # (N, T + 1)
        self.start = torch.tensor([len(prompt) for prompt in prompts], device=device).repeat_interleave(n)  # (N,)
        self.limit = torch.tensor(limits, device=device).repeat_interleave(n)  # (N,)
        self.length = torch.zeros_like(self.limit)  # (N,) tokens drawn so far; the last one is not in the cache yet
        self.ended = torch.zeros_like(self.limit, dtype=torch.bool)
        self.tokens = self.limit.new_zeros(len(self.limit), longest + 1)
        self.logprobs = torch.zeros(len(self.limit), longest + 1, device=device)

        self.reach = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True) for _ in range(n)]
        self.waiting = deque(sorted(range(len(self.reach)), key=lambda number: -self.reach[number]))  # longest first
        self.max_cache_tokens = max_cache_tokens
        self.number = torch.zeros(0, dtype=torch.long, device=device)  # (R,) which rollout each row is
        self.cache: Any = None  # the keys and values of the rows

    def pack(self) -> bool:
        """Drop finished rows, admit waiting ones and make room for new columns; return False when nothing is left."""
        alive = (~self.ended[self.number]).nonzero().squeeze(1)
        self.number = self.number[alive]
        parts = [(self.cache, alive)] if len(alive) else []
        if admitted := self._admit(self.number.tolist()):
            new, cache = torch.tensor(admitted, device=alive.device), DynamicCache()
            distinct, rows = (new // self.n).unique(return_inverse=True)  # prompts, each of which is run once
            output, _ = run_prompts(self.model, [self.prompts[i] for i in distinct.tolist()], cache, logits_to_keep=1)
            self._draw(new, output.logits[:, -1][rows])
            parts.append((cache, rows))
            self.number = torch.cat([self.number, new])
        if parts:
            cached = (self.start + self.length)[self.number] - 1  # (R,) tokens of each row in the cache
            width, left = int(cached.max()), int((self.limit - self.length)[self.number].max())
            self.spare = min(max(SPARE_COLUMNS[alive.device.type], width // 8), left)
            self.cache = join(parts, width, self.spare)
            column = torch.arange(width + self.spare, device=alive.device)
            self.is_token = (column >= width - cached[:, None]) & (column < width)  # (R, W)
            self.column = torch.full((1,), width, device=alive.device)  # the next one to write
        return bool(parts)

    def _admit(self, alive: list[int]) -> list[int]:
        """Take as many waiting rollouts as fit beside those alive. A rollout alone is admitted whatever its length."""
        if not self.waiting:
            return []
        longest = max(self.reach[number] for number in [*alive, self.waiting[0]])
        room = max(self.max_cache_tokens // longest - len(alive), 0 if alive else 1)
        return [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]

    def decode(self) -> None:
        """Take steps until enough rows have finished for packing to pay, or the spare columns are used up."""
        device, take_step = self.number.device, self._step
        for step in range(self.spare):
            is_time_to_count = step % CHECK_EVERY[device.type] == 0
            if is_time_to_count and int(self.ended[self.number].sum()) >= PACK_SHARE * len(self.number):
                return
            if step == 1 and self.captures:  # the first step has run without a graph, as a warm-up
                take_step = _captured(self._step, device) or self._step
                self.captures = take_step != self._step
            take_step()

    def _step(self) -> None:
        """Feed the last token of every row to the model and draw the next.

        A graph replays exactly this on the same memory: shapes are fixed, results are written in place, and nothing
        waits for the host.
        """
        self.is_token.index_fill_(1, self.column, True)
        last = self.length[self.number] - 1  # (R,)
        logits = self.model(
            input_ids=self.tokens[self.number, last][:, None],
            attention_mask=self.is_token[:, None, None] if self.plain else self.is_token,
            position_ids=(self.start[self.number] + last)[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]  # (R, V)
        self._draw(self.number, logits)
        self.column += 1

    def _draw(self, number: Tensor, logits: Tensor) -> None:
        """Draw the next token of these rollouts (R,) from their logits (R, V)."""
        drawn, ended = self.length[number], self.ended[number]
        token, logprob = self.choose(logits, self.uniforms[number, drawn])
        self.tokens[number, drawn], self.logprobs[number, drawn] = token, logprob
        self.length[number] = drawn + ~ended
        is_end = (token[:, None] == self.end_tokens).any(1)
        self.ended[number] = ended | is_end | (drawn + 1 >= self.limit[number])


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


class ColumnLayer(StaticLayer):
    """The keys and values of one layer, (R, heads, W, size); each step writes one column in place."""

    keys: Any
    values: Any

    def update(self, key_states: Tensor, value_states: Tensor, *arguments, **named) -> tuple[Tensor, Tensor]:
        # Under autocast, keys come in float32 (by their rotation) and values in bf16.
        return super().update(key_states.to(self.keys.dtype), value_states.to(self.values.dtype))


def join(parts: list[tuple[Any, Tensor]], width: int, spare: int) -> Cache:
    """Move rows of several caches into one: all end at column `width`, and `spare` columns are left after it.

    parts: caches with the indices (K,) of the rows to take.
    """
    ends = [int(cache.get_seq_length()) for cache, _ in parts]

    def joined(tensors: list[Tensor]) -> Tensor:
        """Join one tensor of (rows, heads, columns, size) from each part."""
        count, (_, heads, _, size) = sum(len(rows) for _, rows in parts), tensors[0].shape
        out, start = tensors[0].new_zeros(count, heads, width + spare, size), 0  # masked columns must be numbers, too
        for tensor, (_, rows), end in zip(tensors, parts, ends, strict=True):
            used = min(width, end)  # what stands before it is padding of rows that are gone
            target = out[start : start + len(rows), :, width - used : width]
            torch.index_select(tensor[:, :, end - used : end], 0, rows, out=target)
            start += len(rows)
        return out

    layers: list[Any] = []
    while parts[0][0].layers:  # the old layers go one by one, so that there is never a second copy of everything
        old = [cache.layers.pop(0) for cache, _ in parts]
        layer = ColumnLayer(width + spare)
        layer.keys, layer.values = joined([o.keys for o in old]), joined([o.values for o in old])
        layer.device, layer.is_initialized = layer.keys.device, True
        layer.cumulative_length = torch.tensor(width, device=layer.device)
        layers.append(layer)
    return Cache(layers=layers)
