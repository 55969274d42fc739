"""Rollouts: draw responses from a language model in plain PyTorch, and try one problem with them.

    sample                        draw n responses to each prompt (the policy sampler)
    Attempt                       one problem, what the policy predicts about it, and what really happens
    read                          read what the policy believes about a problem, without drawing anything
    predict, solve, align         fill in attempts, many at a time, because the sampler is fastest on large batches

The sampler runs each prompt once, copies its keys and values for the n draws, and then draws one token per row at a
time. Rows that have ended are dropped from the batch now and then. Each rollout has random numbers of its own, so what
it draws does not depend on what else is in the batch, apart from rounding. `engine/sampler.py` draws the same faster.

Left out: beam search, repetition penalties, streaming, speculative decoding. Run `python rollout.py` for an example.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer
from transformers.cache_utils import DynamicSlidingWindowLayer

import masa
from masa import ImitationOptions, MetaPrediction
from problems.source import Problem
from problems.verify import timeouts
from rewards import AlignmentRewards, alignment_rewards, solution_reward

ALIVE = 0.75  # finished rows are dropped when at most this share of the rows is still drawing


@dataclass
class SamplingOptions:
    """How many rollouts are drawn, and how."""

    samples: Annotated[int, "solutions to each problem (G)", {"least": 1, "real": 16}] = 4
    predictions: Annotated[int, "predictions for each problem (M); 0 for none", {"least": 0, "real": 4}] = 2
    max_prompt_tokens: Annotated[int, "leave out problems with a longer prompt", {"least": 1, "real": 512}] = 128
    max_new_tokens: Annotated[int, "longest solution, in tokens", {"least": 1, "real": 1024}] = 96
    max_meta_tokens: Annotated[int, "longest prediction, in tokens", {"least": 1, "real": 128}] = 24
    meta_reasoning: Annotated[bool, "predictions begin with a thought"] = False
    temperature: Annotated[float, "sampling temperature; 0 is greedy", {"least": 0}] = 1.0
    max_cache_tokens: Annotated[int, "rows x length in the sampler's cache", {"least": 1, "real": 2**17}] = 2**20
    top_p: float = 1.0  # not an option of train.py: an update uses the log-probs of the whole distribution

    def ask(self, problem: str) -> str:
        """Return the user message that asks for a prediction about a problem."""
        return masa.meta_prompt(problem, self.max_new_tokens, self.meta_reasoning)


@dataclass
class Rollout:
    """One response to one prompt, as lists; tensors are made from them only for the update.

    prompt_ids, response_ids: token ids; the response ends with an end token exactly if its finish_reason is "stop".
    logprobs: of each response token under softmax(logits / temperature), before top-p.
    finish_reason: "stop" (an end token), "cutoff" (the limit given for its prompt) or "length" (max_new_tokens).
    """

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    finish_reason: str


# ---- the policy sampler


Drawn = Iterator[tuple[Tensor, Tensor, Tensor]]  # for R rollouts each: tokens (R, T), log-probs (R, T), lengths (R,)


@torch.inference_mode()
def sample(
    model: Any,
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
    draw: Callable[..., Drawn] | None = None,
) -> list[list[Rollout]]:
    """Draw n responses to each prompt, and return n rollouts per prompt, in the order of the prompts.

    prompts: token ids, of any lengths.  limits: the most response tokens for each prompt (early cutoff).  eos_ids: each
    of these ends a response and is part of it.  temperature: 0 is greedy, with log-probs as at temperature 1.  top_p:
    draw from the smallest set of tokens with this probability.  generator: on the CPU; the same seed gives the same
    draws.  max_cache_tokens: rows x longest sequence in the cache at once; what is beyond that waits.  draw: what does
    the work, `draw_plainly` or a faster function from engine/.
    Raises ValueError for arguments out of range, and for a cache of more than keys and values, such as Mamba's.
    """
    limits = [max_new_tokens] * len(prompts) if limits is None else [min(x, max_new_tokens) for x in limits]
    check_arguments(model, prompts, limits, n, max_new_tokens, temperature, top_p)
    uniforms = torch.rand(len(prompts) * n, max_new_tokens, generator=generator, dtype=torch.float64).to(model.device)
    end_tokens = torch.tensor(sorted(eos_ids), dtype=torch.long, device=model.device)
    choose = partial(draw_token, temperature=temperature, top_p=top_p)
    was_training = model.training
    model.eval()
    try:
        rows: list[tuple] = []
        for part in (draw or draw_plainly)(model, prompts, limits, n, end_tokens, uniforms, choose, max_cache_tokens):
            rows += zip(*(tensor.tolist() for tensor in part), strict=True)  # (token ids, log-probs, length) of each
    finally:
        model.train(was_training)
    rollouts = []
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        capped = "cutoff" if limit < max_new_tokens else "length"
        group = [(ids[:end], logprobs[:end]) for ids, logprobs, end in rows[i * n : (i + 1) * n]]
        rollouts.append([Rollout(list(prompt), t, lps, "stop" if t[-1] in eos_ids else capped) for t, lps in group])
    return rollouts


def check_arguments(model, prompts, limits, n, max_new_tokens, temperature, top_p) -> None:
    """Check the arguments of `sample`.  Raises ValueError."""
    if len(limits) != len(prompts):
        raise ValueError(f"limits: expected one per prompt ({len(prompts)}), found {len(limits)}")
    if min(n, max_new_tokens, *limits) < 1:
        raise ValueError(f"n ({n}), max_new_tokens ({max_new_tokens}) and limits must be at least 1")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"expected temperature >= 0 and 0 < top_p <= 1, found {temperature} and {top_p}")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty: the first token cannot be drawn from nothing")
    if unknown := layer_kinds(model) - {DynamicLayer, DynamicSlidingWindowLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in unknown))
        raise ValueError(f"{type(model).__name__} keeps more than keys and values ({names}), which is not supported")


def layer_kinds(model: Any) -> set[type]:
    """Return the classes of cache layer that transformers would use for this model."""
    return {type(layer) for layer in DynamicCache(config=model.config).layers}


def draw_plainly(model, prompts, limits, n, end_tokens, uniforms, choose, max_cache_tokens) -> Drawn:
    """Draw n responses to each prompt, as many prompts at a time as fit into the cache."""
    longest = max((len(p) + limit for p, limit in zip(prompts, limits, strict=True)), default=1)
    at_once = max(1, max_cache_tokens // (n * longest))
    for i in range(0, len(prompts), at_once):
        some, numbers = slice(i, i + at_once), uniforms[i * n : (i + at_once) * n]
        yield _draw_batch(model, prompts[some], limits[some], n, end_tokens, numbers, choose)


def _draw_batch(model, prompts, limits, n, end_tokens, uniforms, choose) -> tuple[Tensor, Tensor, Tensor]:
    """Draw n responses to each prompt in one batch."""
    limit = torch.tensor(limits, device=model.device).repeat_interleave(n)  # (R,) with R = P n rollouts

    # 1. Run each prompt once, then repeat its keys and values for its n draws.
    cache = DynamicCache()
    output, mask = run_prompts(model, prompts, cache, logits_to_keep=1)
    logits = output.logits[:, -1].repeat_interleave(n, 0)  # (R, V)
    cache.batch_repeat_interleave(n)
    mask = mask.repeat_interleave(n, 0)
    position = mask.sum(1, keepdim=True)  # (R, 1) of the next token

    # 2. Draw a token for each row and feed it back, until all have ended.
    tokens = torch.zeros(len(limit), max(limits), dtype=torch.long, device=model.device)
    logprobs = torch.zeros(len(limit), max(limits), device=model.device)
    length = torch.zeros_like(limit)
    row = torch.arange(len(limit), device=model.device)  # which rollout each row of the batch is
    ended = torch.zeros_like(limit, dtype=torch.bool)
    for t in range(max(limits)):
        token, logprob = choose(logits, uniforms[row, t])
        tokens[row, t], logprobs[row, t] = token, logprob
        length[row] += ~ended
        ended = ended | (token[:, None] == end_tokens).any(1) | (t + 1 >= limit[row])
        alive = (~ended).nonzero().squeeze(1)
        if len(alive) == 0:
            break
        if len(alive) <= ALIVE * len(row):  # until then finished rows keep drawing; `length` tells where they end
            cache.batch_select_indices(alive)
            row, token, mask, position, ended = (x[alive] for x in (row, token, mask, position, ended))
        mask = torch.cat([mask, mask.new_ones(len(row), 1)], 1)
        inputs = {"attention_mask": mask, "position_ids": position + t, "past_key_values": cache}
        logits = model(input_ids=token[:, None], **inputs).logits[:, -1]
    return tokens, logprobs, length


def run_prompts(model: Any, prompts: Sequence[Sequence[int]], cache: Cache, **more: Any) -> tuple[Any, Tensor]:
    """Run each prompt once, padded on the left, and leave its keys and values in the cache.

    Returns the output of the model, and the mask (P, W) that is 0 for padding.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=model.device)  # (P, W)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    position = (mask.cumsum(1) - 1).clamp(min=0)  # padding does not count
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position, "past_key_values": cache}
    return model(**inputs, use_cache=True, **more), mask


def draw_token(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw one token per row from logits (R, V) and uniform numbers (R,): tokens (R,) and their log-probs (R,).

    The cumulative distribution is inverted: the token drawn is the one in whose interval the uniform number falls.
    """
    all_logprobs = (logits.float() / (temperature or 1.0)).log_softmax(-1)  # (R, V)
    if temperature == 0:
        token = all_logprobs.argmax(-1)
    else:
        probs = all_logprobs.exp()
        if top_p < 1:
            ranked, order = probs.sort(-1, descending=True)
            outside = ranked.cumsum(-1) - ranked >= top_p  # the tokens before it are probable enough already
            probs = probs.scatter(-1, order, ranked.masked_fill(outside, 0.0))
        cumulative = probs.double().cumsum(-1)
        # right=True never picks a token of probability 0: its interval is empty.
        token = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
        token = token.clamp(max=logits.shape[-1] - 1)
    return token, all_logprobs.gather(-1, token[:, None]).squeeze(-1)


# ---- one problem, predicted and solved


@dataclass
class Attempt:
    """What is known of one problem: its M predictions, and its G solutions with their verdicts.

    explores: neither skipped nor cut, so that gate and cutoff can be judged by it.  skipped: no solution is drawn.
    belief: what was read, the probabilities of the counts 0..8, and state (H,), the hidden state it was read from.
    limit: longest solution.  hints: the notions in each of its solution prompts; usually there is one prompt, without
    notions, for all solutions.  meta_responses, responses: texts of predictions and solutions.  timeouts: answers that
    the verifier gave up on.
    """

    problem: Problem
    explores: bool = False
    belief: tuple[float, ...] = ()
    state: Tensor | None = None
    skipped: bool = False
    limit: int | None = None
    hints: list[tuple[str, ...]] = field(default_factory=lambda: [()])
    meta_rollouts: list[Rollout] = field(default_factory=list)
    meta_responses: list[str] = field(default_factory=list)
    predictions: list[MetaPrediction | None] = field(default_factory=list)
    solutions: list[Rollout] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    alignments: list[AlignmentRewards] = field(default_factory=list)
    timeouts: int = 0

    @property
    def pass_rate(self) -> float:
        """The share of correct solutions."""
        return sum(self.correct) / len(self.correct)

    @property
    def correct_lengths(self) -> list[int]:
        """The lengths of the correct solutions, in tokens."""
        return [len(s.response_ids) for s, right in zip(self.solutions, self.correct, strict=True) if right]

    @property
    def zero_variance(self) -> bool:
        """Whether the solutions are all right or all wrong, so that none has an advantage."""
        return len(set(self.correct)) == 1


def predict(policy: Any, attempts: Sequence[Attempt], sampling: SamplingOptions, stream: torch.Generator) -> None:
    """Draw M predictions for each problem and parse them (section 3.2); `stream` is a random generator."""

    def draw(some: Sequence[Attempt]) -> list[list[Rollout]]:
        prompts = [policy.encode(sampling.ask(attempt.problem.text)) for attempt in some]
        return policy.sample(prompts, sampling.predictions, sampling.max_meta_tokens, sampling, stream)

    # spread: with several processes each draws for its share of the problems, and all get all results
    for attempt, rollouts in zip(attempts, policy.spread(draw, attempts), strict=True):
        attempt.meta_rollouts = rollouts
        attempt.meta_responses = [policy.decode(rollout.response_ids) for rollout in rollouts]
        attempt.predictions = [masa.parse_meta(text) for text in attempt.meta_responses]


def read(policy: Any, attempts: Sequence[Attempt], sampling: SamplingOptions) -> int:
    """Read the belief about each problem from one forward pass, and return how many tokens were read."""
    prompts = [policy.encode(masa.meta_prompt(a.problem.text, sampling.max_new_tokens)) for a in attempts]
    states = policy.spread(policy.states, prompts)
    for attempt, state, belief in zip(attempts, states, policy.beliefs(states), strict=True):
        attempt.state, attempt.belief = state, belief
    opening, _ = policy.counts  # the tokens up to the count, and the nine tokens that a count can be
    return sum(len(prompt) + len(opening) for prompt in prompts)


def solve(policy: Any, attempts: Sequence[Attempt], sampling: SamplingOptions, stream: torch.Generator) -> None:
    """Draw G solutions to each problem, each within the problem's limit, and verify them."""

    def draw(some: Sequence[Attempt]) -> list[tuple]:
        # Every attempt has one prompt for all its solutions or, with drawn hints, every attempt one for each of them.
        prompts = [policy.encode(masa.solution_prompt(a.problem.text, hint)) for a in some for hint in a.hints]
        limits = [attempt.limit or sampling.max_new_tokens for attempt in some for _ in attempt.hints]
        each = sampling.samples // max((len(attempt.hints) for attempt in some), default=1)
        groups = iter(policy.sample(prompts, each, sampling.max_new_tokens, sampling, stream, limits))
        return [verify(a.problem, [rollout for _ in a.hints for rollout in next(groups)]) for a in some]

    def verify(problem: Problem, group: list[Rollout]) -> tuple:
        texts, before = [policy.decode(rollout.response_ids) for rollout in group], timeouts()
        correct = [solution_reward(text, problem.answer, problem.kind) == 1.0 for text in texts]
        return group, texts, correct, timeouts() - before

    for attempt, solved in zip(attempts, policy.spread(draw, attempts), strict=True):
        attempt.solutions, attempt.responses, attempt.correct, attempt.timeouts = solved


def align(attempts: Sequence[Attempt], difficulty_base: float = 0.01) -> None:
    """Score every prediction against the solutions of its problem (section 3.2)."""
    for a in attempts:
        happened = a.correct_lengths, a.pass_rate, a.responses, a.correct, a.problem.text, difficulty_base
        a.alignments = [alignment_rewards(prediction, *happened) for prediction in a.predictions]


def expert_answers(attempts: Sequence[Attempt], options: ImitationOptions) -> list[tuple[str, str]]:
    """Return (problem, expert prediction) pairs to imitate (`masa.expert_target`), at most half of them failures.

    Where most problems come out all wrong, imitating all of them would teach the policy to predict 0 for every problem.
    """
    experts = []
    for a in attempts:
        notion_rewards = [rewards.notion for rewards in a.alignments]
        happened = a.correct_lengths, a.pass_rate, options.expert_failures, options.expert_notion
        if target := masa.expert_target(a.predictions, notion_rewards, *happened):
            experts.append((a.problem.text, target))
    failures = [i for i, (_, target) in enumerate(experts) if target.pass_rate == 0]
    too_many = failures[len(experts) - len(failures) :]  # there may be as many as there are successes
    return [(text, masa.render_meta(target)) for i, (text, target) in enumerate(experts) if i not in too_many]


def main() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2))
    print("A random model of 12 tokens; 0 and 1 end a response; prompts [5, 6, 7] and [8] with limits of 4 and 9.")
    groups = sample(model, [[5, 6, 7], [8]], n=3, max_new_tokens=9, eos_ids={0, 1}, limits=[4, 9])
    for rollout in groups[0] + groups[1]:
        print(f"{rollout.prompt_ids} -> {rollout.response_ids}  ({rollout.finish_reason})")
    first = groups[0][0]
    logits = model(torch.tensor([first.prompt_ids + first.response_ids])).logits[0, len(first.prompt_ids) - 1 :]
    expected = [row[token].item() for row, token in zip(logits.log_softmax(-1), first.response_ids, strict=False)]
    print("log-probs of the first, as drawn:    ", [round(x, 4) for x in first.logprobs])
    print("the same from one plain forward pass:", [round(x, 4) for x in expected])


if __name__ == "__main__":
    main()
