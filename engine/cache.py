"""The cache of the sampler: keys and values of many rows of unlike length, which all end at the same column.

    prompt 0, draw 0   . . p p p r r |          p: prompt   r: response   .: padding, masked
    prompt 0, draw 1   . . p p p r r |          | the column that the next token is written to
    prompt 1, draw 0   p p p p p p p |          (this row came in later, when another had ended)

So a decoding step writes one column in place, and nothing is copied. `prefill` computes prompts; `join` makes one
cache of rows from several, with free columns behind them, and cuts off the columns that no row needs any more.
Run `python cache.py` for a worked example.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer


class ColumnLayer(DynamicLayer):
    """Keys and values of one layer, (R, heads, W, head size): a step writes one column in place."""

    keys: Any
    values: Any
    column: Any = None  # (1,), shared by all layers; None while prompts are computed

    def update(self, key_states: Tensor, value_states: Tensor, *arguments, **named) -> tuple[Tensor, Tensor]:
        if self.column is None:
            # Rotary embeddings are float32 under autocast and make the keys so: the cache would be twice as large.
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
    """Rows in a cache.

    real: (R, 1, W, 1) is there a token in the column?  column: (1,) the next column to write to.
    """

    cache: Cache
    real: Tensor
    column: Tensor


@dataclass
class Chosen:
    """Some rows of a cache, `which` (K,), and the columns that they need of it."""

    rows: Rows
    which: Tensor
    first: int
    last: int


def join(sources: list[Chosen], free: int) -> Rows:
    """One cache of rows from several, all ending at the same column, with `free` columns behind it."""
    width = max(source.last - source.first for source in sources)
    total = sum(len(source.which) for source in sources)

    def joined(tensors: Iterable[Tensor]) -> Tensor:
        """From tensors of (rows, heads, columns, size), one for each source. Each number is copied once."""
        parts = list(tensors)
        out = parts[0].new_empty(total, parts[0].shape[1], width + free, parts[0].shape[3])
        out[:, :, width:] = 0  # masked, but it must be a number: 0 x NaN is NaN
        start = 0
        for part, source in zip(parts, sources, strict=True):
            rows = out[start : start + len(source.which)]
            padding = width - (source.last - source.first)
            rows[:, :, :padding] = 0
            columns = part[:, :, source.first : source.last]
            torch.index_select(columns, 0, source.which, out=rows[:, :, padding:width])
            start += len(source.which)
        return out

    real = joined(source.rows.real for source in sources)
    column = torch.full((1,), width, device=real.device)
    caches: list[Any] = [source.rows.cache for source in sources]
    for k, layer in enumerate(caches[0].layers):  # layer by layer: there is never a second copy of the whole
        layer.keys = joined(cache.layers[k].keys for cache in caches)
        layer.values = joined(cache.layers[k].values for cache in caches)
        layer.column = column
    return Rows(caches[0], real, column)


def prefill(model, prompts: list[list[int]]) -> tuple[Tensor, Rows]:
    """Run each prompt once: next-token logits (P, V), and what is kept of the prompts.

    Padding stands on the left, so that the last position is the prompt's last token in every row. Positions
    are explicit, so that a token's position does not count the padding before it.
    """
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=model.device)  # (P, W)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    cache = Cache(layer_class_to_replicate=ColumnLayer)
    logits = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits, Rows(cache, mask.bool()[:, None, :, None], torch.full((1,), longest, device=model.device))


def layer_kinds(model) -> set[type]:
    """What transformers would keep for the layers of the model."""
    return {type(layer) for layer in DynamicCache(config=model.config).layers}


@torch.no_grad()
def main() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    def picture(rows: Rows) -> str:
        return "\n".join("  " + " ".join("x" if real else "." for real in row) for row in rows.real[:, 0, :, 0])

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2))
    prompts = [[5, 6, 7], [5, 6, 7], [8], [2, 9, 3, 4, 5]]
    (_, first), (_, later) = prefill(model, prompts[1:3]), prefill(model, prompts[3:])
    rows = join([Chosen(first, torch.tensor([0, 0, 1]), 0, 3), Chosen(later, torch.tensor([0]), 0, 5)], free=2)
    print(f"two rows of {prompts[0]}, one of {prompts[2]}, and later one of {prompts[3]}; two columns are free:")
    print(picture(rows))
    column, positions = int(rows.column), torch.tensor([[len(prompt)] for prompt in prompts])
    rows.real[:, :, column] = True
    mask, token = rows.real[:, 0, :, 0], torch.full((4, 1), 11)
    logits = model(token, attention_mask=mask, position_ids=positions, past_key_values=rows.cache).logits[:, -1]
    print(f"token 11 for each row is written to column {column}, at positions {positions.flatten().tolist()}:")
    print(picture(rows))
    alone = torch.cat([model(torch.tensor([[*prompt, 11]])).logits[:, -1] for prompt in prompts])
    print(f"its logits differ from those of each row by itself, without a cache, by {(logits - alone).abs().max():.4f}")
    print("the last row leaves, the others need four columns:")
    print(picture(join([Chosen(rows, torch.arange(3), column - 3, column + 1)], free=1)))


if __name__ == "__main__":
    main()
