"""Policies: a causal language model with its tokenizer, and the functions that draw from it and go through it.

Parameters are always float32. At a learning rate of 1e-6, AdamW changes a weight of 0.02 by 1e-6 a step, and bf16 has
no number between 0.02 and 0.0201: in pure bf16 such an update is rounded away, and nothing is learned. Where bf16 is
faster, responses are drawn from a bf16 copy of the weights, and the update runs under bf16 autocast.
"""

import contextlib
import copy
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, cycle, takewhile
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from transformers.utils.logging import disable_progress_bar

import grpo
import masa
import rollout

# The attention kernels that an update in bf16 may use. On the CPU the fused one goes backward eight times slower. On
# Hopper GPUs cuDNN's, which PyTorch prefers, gives NaN gradients for masked lengths of 64, 192, 320, ...
# (github.com/pytorch/pytorch/issues/196678): one update in eight was lost when SmolLM2 was trained on an H200.
ATTENTION = {
    "cpu": [SDPBackend.MATH],
    "cuda": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}


PROBE = "probe.safetensors"  # the file of a probe in a model directory


class PolicyError(ValueError):
    """A model cannot be used; the message says which one, why, and what would help."""


@dataclass
class Policy:
    """A causal language model, its tokenizer, and the functions that draw from it and go through it."""

    model: Any  # in float32, on its device
    tokenizer: Any
    eos_ids: frozenset[int]  # every token that ends a response
    sampling_dtype: torch.dtype = torch.float32  # precision of forward passes
    update_dtype: torch.dtype = torch.float32
    # The plain functions. `engine/load.py` replaces them by faster ones, or by ones for several processes.
    sampler: Callable[..., list[list[rollout.Rollout]]] = rollout.sample
    over_batches: Callable[..., Counter] = grpo.over_batches
    # Call a function on the items, or on this process's share of them, and return all results.
    spread: Callable[[Callable, Sequence], list] = lambda function, items: function(items)
    agree: Callable[[int], int] = lambda number: number  # the largest number of all processes
    whole: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor  # gathers a tensor that is split
    rank: int = 0  # the number of this process
    probe: torch.Tensor | None = None  # (9, H + 1): a linear map from hidden states to counts, see variants/read.py
    sampling_copy: Any = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def positions(self) -> float:
        """The most tokens that a prompt and its response may have together, infinite if the model sets no limit.

        LongRoPE has other frequencies once one row of a batch is longer than the original context, for all of its rows.
        So a response would depend on its neighbours, and the limit is the original context.
        """
        config = self.model.config.get_text_config()
        limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
        rope = getattr(config, "rope_parameters", None) or {}
        for part in (rope, *rope.values()):  # some models have other frequencies for each kind of layer
            if isinstance(part, dict) and part.get("rope_type") == "longrope":
                limits.append(part["original_max_position_embeddings"])
        return min((limit for limit in limits if limit and limit > 0), default=inf)

    def check_room(self, prompt: int, response: int) -> None:
        """Raise PolicyError if a prompt and a response of so many tokens do not fit into the model's positions."""
        if prompt + response > self.positions:
            found = f"found prompts of up to {prompt} and responses of up to {response}"
            advice = "lower --max-prompt-tokens, --max-new-tokens or --max-meta-tokens"
            raise PolicyError(f"{type(self.model).__name__} has room for {self.positions} tokens, {found}: {advice}")

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Set the precision of the update's passes; the backward pass belongs inside as well.

        Autocast's cache is off: it would keep bf16 copies of weights from before an optimizer step and use them after.
        """
        if self.update_dtype == torch.float32:
            yield
            return
        precision = torch.autocast(self.device.type, dtype=self.update_dtype, cache_enabled=False)
        with precision, sdpa_kernel(ATTENTION[self.device.type]):
            yield

    def encode(self, message: str, before: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Return the prompt ids of a user message: by the chat template (thinking off) or, without one, as plain text.

        `before`: (message, answer) pairs to show first, as earlier turns of the chat.
        """
        turns = [*chain(*before), message]
        if self.tokenizer.chat_template is None:
            return self.tokenizer.encode("".join(f"{text}\n\n" for text in turns))
        roles = cycle(("user", "assistant"))
        chat = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
        encode = self.tokenizer.apply_chat_template  # Qwen3's template reads enable_thinking, most others ignore it
        return encode(chat, add_generation_prompt=True, enable_thinking=False, return_dict=False)

    @cached_property
    def turn_end(self) -> int:
        """The token that ends a response: the first special one that the chat template writes after an answer.

        Without a template, or if it writes none, this is the tokenizer's end token.
        """
        if self.tokenizer.chat_template is not None:
            chat = [{"role": "user", "content": "9+8"}, {"role": "assistant", "content": "9+8=17"}]
            _, answer, after = self.tokenizer.apply_chat_template(chat, tokenize=False).rpartition("9+8=17")
            ids = self.tokenizer.encode(after, add_special_tokens=False)
            special = [i for i in ids if i in self.tokenizer.added_tokens_decoder]
            begins_next = self.tokenizer.decode(self.encode("9+8")).endswith(after)  # it always asks for an answer
            if answer and special and not begins_next:
                return special[0]
        return self.tokenizer.eos_token_id

    def encode_response(self, text: str) -> list[int]:
        """Return the token ids of a response as the policy would have written it, end token included."""
        return self.tokenizer.encode(text, add_special_tokens=False) + [self.turn_end]

    @cached_property
    def counts(self) -> tuple[list[int], list[int]] | None:
        """The tokens that open every prediction, up to its pass rate, and for each count 0..8 the token that is next.

        None if the tokenizer begins several counts with the same token, so that one token does not tell them apart.
        """
        predictions = [masa.MetaPrediction(c / masa.PASS_RATE_SCALE, 1, ()) for c in range(masa.PASS_RATE_SCALE + 1)]
        rows = [self.tokenizer.encode(masa.render_meta(p), add_special_tokens=False) for p in predictions]
        opening = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))]
        tokens = [row[len(opening)] for row in rows]
        return (opening, tokens) if len(set(tokens)) == len(tokens) else None

    @torch.no_grad()
    def states(self, prompts: Sequence[list[int]], at_once: int = 64) -> list[torch.Tensor]:
        """Return the hidden state (H,) after each meta prompt and the opening of a prediction, where its count is next.

        It takes one forward pass, and nothing is drawn. Only for a policy that has `counts`.
        """
        assert self.counts
        model, (opening, _), states = self.sampling_model(), self.counts, list[torch.Tensor]()
        for start in range(0, len(prompts), at_once):
            rows = [torch.tensor(prompt + opening) for prompt in prompts[start : start + at_once]]
            # Padding stands on the right, where causal attention never looks.
            ids = pad_sequence(rows, batch_first=True).to(model.device)  # (P, L)
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            states += hidden[torch.arange(len(rows)), [len(row) - 1 for row in rows]].float().cpu()
        return states

    @torch.no_grad()
    def beliefs(self, states: Sequence[torch.Tensor]) -> list[tuple[float, ...]]:
        """Return the probabilities of the counts 0..8, which add up to 1, for each hidden state of `states`.

        Without a probe these are the probabilities with which a prediction would begin with each count.
        """
        assert self.counts
        hidden = torch.stack(list(states))  # (P, H)
        if self.probe is not None:
            logits = torch.nn.functional.linear(hidden, self.probe[:, :-1], self.probe[:, -1])
        else:
            head = (self.sampling_copy or self.model).get_output_embeddings()  # `states` has just updated the copy
            logits = head(hidden.to(head.weight))[:, self.counts[1]].float()
        return [tuple(belief) for belief in logits.softmax(-1).tolist()]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def demonstration(self, message: str, answer: str) -> grpo.Sample:
        """Return a response to imitate: a user message and its answer, as the policy would have written it."""
        return grpo.Sample(self.encode(message), self.encode_response(answer))

    def imitate(self, optimizer: Any, samples: Sequence[grpo.Sample], options: grpo.UpdateOptions) -> dict[str, Any]:
        """Make one supervised step on the samples; return the figures of `grpo.imitate`."""
        with self.autocast():
            return grpo.imitate(self.model, optimizer, samples, options, over_batches=self.over_batches)

    def sample(
        self,
        prompts: Sequence[list[int]],
        n: int,
        longest: int,
        options: rollout.SamplingOptions,
        stream: torch.Generator,
        limits: Sequence[int] | None = None,
    ) -> list[list[rollout.Rollout]]:
        """Draw n responses of at most `longest` tokens to each prompt, with the weights as they are now.

        Raises PolicyError if they may not fit into the model's positions.
        """
        self.check_room(max(map(len, prompts), default=0), longest)
        drawing = {"temperature": options.temperature, "top_p": options.top_p, "generator": stream}
        drawing |= {"eos_ids": self.eos_ids, "limits": limits, "max_cache_tokens": options.max_cache_tokens}
        return self.sampler(self.sampling_model(), prompts, n=n, max_new_tokens=longest, **drawing)

    @torch.no_grad()
    def sampling_model(self) -> Any:
        """Return the model to draw from: the model itself, or its copy in `sampling_dtype` with the current weights."""
        if self.sampling_copy is None and self.sampling_dtype == torch.float32:
            return self.model
        self.sampling_copy = self.sampling_copy or self.make_copy()
        for parameter, now in zip(self.sampling_copy.parameters(), self.model.parameters(), strict=True):
            parameter.copy_(self.whole(now))
        return self.sampling_copy

    def make_copy(self) -> Any:
        """Return a copy of the model to draw from, in `sampling_dtype`."""
        made = copy.deepcopy(self.model).requires_grad_(False)
        for parameter in made.parameters():  # not the buffers: rotary frequencies must stay float32
            parameter.data = parameter.data.to(self.sampling_dtype)
        return made

    def save(self, directory: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write a model directory that `load` reads; `weights`: those of a sharded model, gathered before."""
        disable_progress_bar()  # it would break the bar of the training that saves
        model = self.model if weights is None else self.sampling_copy  # whose class has the name that counts
        model.save_pretrained(directory, state_dict=weights)
        self.tokenizer.save_pretrained(directory)
        if self.probe is not None:
            save_file({"probe": self.probe}, Path(directory) / PROBE)
        for file in Path(directory).glob("*.safetensors"):  # written as a temporary file, which only its owner may read
            shutil.copymode(Path(directory) / "config.json", file)
