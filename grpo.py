"""GRPO: group advantages, token log-probs, the clipped loss, and one update of the policy.

    rewards of a group -> advantages -> every rollout a `Sequence` -> log-probs -> loss -> gradients -> one step

The paper's objective (section 3.2) is GRPO with two of DAPO's pieces: clip-higher (0.2 / 0.28) and a mean over all
tokens of the batch instead of a mean per rollout. Solution and meta rollouts are separate groups, and here each
kind also has a denominator of its own: under a common one, ten-token predictions would hardly count.

Left out: a critic, an entropy bonus, importance sampling between sampler and trainer (their gap is measured
instead). Run `python grpo.py` for a worked example.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import parallel
from engine.logprobs import FILLER, Sequence, batches, longest_length, token_logprobs
from engine.memory import within_memory


@dataclass(frozen=True)
class UpdateSettings:
    """How a batch becomes an update; `train.py --help` explains each."""

    aggregation: str = "token-mean"  # "token-mean" | "sequence-mean" | "dr-grpo"
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_coef: float = 0.0
    meta_weight: float = 1.0
    minibatches: int = 1
    max_grad_norm: float = 1.0
    token_budget: int = 16384  # padded tokens in a micro-batch
    temperature: float = 1.0
    max_lengths: tuple[tuple[str, int], ...] = ()  # (kind, tokens): the constant lengths of Dr.GRPO


def group_advantages(rewards: Tensor, normalize_std: bool = True) -> Tensor:
    """Advantages within each group: (P, G) rewards -> (P, G), mean 0 in each row (GRPO, paper section 3.2).

    Divided by the group's standard deviation (Bessel's correction) + 1e-6 unless `normalize_std` is off
    (Dr.GRPO). A group whose rewards are all the same gets exactly 0: it teaches nothing.
    """
    rewards = torch.as_tensor(rewards)
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    if rewards.numel() == 0:
        return rewards
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if normalize_std and rewards.shape[1] > 1:
        advantages = advantages / (rewards.std(dim=1, keepdim=True) + 1e-6)
    # The mean of equal numbers may differ from them in the last bit; divided by 1e-6 that would be a signal.
    constant = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return advantages.masked_fill(constant, 0.0)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    denominator: float | Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Tensor:
    """The clipped surrogate: -sum(mask * min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)) / denominator.

    logprobs, old_logprobs, mask: the same shape, (B, T) or flat (N,).  advantages: that shape, or (B,) to hold
    for all tokens of a row.  mask may carry weights (see `token_weights`).  Returns a scalar.
    """
    if advantages.ndim < logprobs.ndim:
        advantages = advantages.unsqueeze(-1)
    # A masked log-prob may be anything, and a ratio may overflow: neither may become NaN, nor its gradient.
    log_ratio = (logprobs - old_logprobs).masked_fill(mask == 0, 0.0).clamp(-20, 20)
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    return -(surrogate * mask).sum() / denominator


def kl_penalty(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference) for each token: exp(d) - d - 1 with d = reference - policy."""
    difference = reference_logprobs - logprobs
    return difference.exp() - difference - 1


def token_weights(sequences: list[Sequence], settings: UpdateSettings) -> list[float]:
    """The weight of every token of each sequence; multiplied by it, a plain sum over tokens is the mean wanted.

    token-mean: 1 / all tokens of its kind (the paper, DAPO).  sequence-mean: 1 / (its length x sequences of
    its kind) (GRPO as first published).  dr-grpo: 1 / (longest allowed length x sequences of its kind).
    """
    count: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for sequence in sequences:
        count[sequence.kind] = count.get(sequence.kind, 0) + 1
        tokens[sequence.kind] = tokens.get(sequence.kind, 0) + len(sequence.response_ids)
    max_lengths = dict(settings.max_lengths)

    def denominator(sequence: Sequence) -> float:
        if settings.aggregation == "token-mean":
            return tokens[sequence.kind]
        if settings.aggregation == "sequence-mean":
            return count[sequence.kind] * len(sequence.response_ids)
        if settings.aggregation == "dr-grpo":
            return count[sequence.kind] * max_lengths[sequence.kind]
        raise ValueError(f"unknown aggregation {settings.aggregation!r}")

    return [
        (settings.meta_weight if sequence.kind == "meta" else 1.0) / denominator(sequence) for sequence in sequences
    ]


def _share(sequences: list[Sequence]) -> list[Sequence]:
    """The sequences whose gradients this rank computes; those of one prompt stay together."""
    by_prompt: dict[tuple[int, ...], list[Sequence]] = {}
    for sequence in sequences:
        by_prompt.setdefault(tuple(sequence.prompt_ids), []).append(sequence)
    return [sequence for group in parallel.share(list(by_prompt.values())) for sequence in group]


def _per_token(values: list[float], sequences: list[Sequence], device) -> Tensor:
    """One value per sequence -> one per response token, flat (N,)."""
    lengths = torch.tensor([len(s.response_ids) for s in sequences])
    return torch.tensor(values).repeat_interleave(lengths).to(device)


def _optimizer_step(model, optimizer, max_grad_norm: float) -> tuple[float, bool]:
    """Clip and step; returns the norm before clipping and whether a step was made (never with inf or NaN in it)."""
    norm = parallel.whole(torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
    finite = bool(torch.isfinite(norm))
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm), finite


def _accumulate(model, sequences: list[Sequence], weights: list[float], loss_of: Callable, sums, settings) -> None:
    """Gradients of loss_of(logprobs, weights, micro-batch), summed over micro-batches and ranks: their sizes do not
    matter. Each rank gives its own sequences. loss_of adds its figures to `sums`, as does this to sums["oom_retries"].
    """
    weight_of = {id(sequence): weight for sequence, weight in zip(sequences, weights, strict=True)}
    before = dict(sums)

    def compute(token_budget: int) -> None:
        sums.update(before)
        for batch, prompts in batches(model, sequences, token_budget):
            logprobs = parallel.run(model, token_logprobs, model, batch, settings.temperature, prompts)  # (N,)
            if batch is FILLER:
                (0 * logprobs.sum()).backward()
                continue
            weight = _per_token([weight_of[id(s)] for s in batch], batch, logprobs.device)  # (N,)
            loss_of(logprobs, weight, batch).backward()

    sums["oom_retries"] += within_memory(model, settings.token_budget, longest_length(sequences), compute)
    parallel.sum_gradients(model)


def _store_logprobs(model, sequences: list[Sequence], attribute: str, settings: UpdateSettings) -> int:
    """Keep the log-probs that `model` gives now as `attribute` of each sequence; returns how often memory ran out."""

    @torch.no_grad()
    def compute(token_budget: int) -> None:
        for batch, prompts in batches(model, sequences, token_budget):
            logprobs = parallel.run(model, token_logprobs, model, batch, settings.temperature, prompts)
            for sequence, values in zip(batch, logprobs.split([len(s.response_ids) for s in batch]), strict=True):
                setattr(sequence, attribute, values)

    return within_memory(model, settings.token_budget, longest_length(sequences), compute)


def _stored(sequences: list[Sequence], attribute: str) -> Tensor:
    """What `_store_logprobs` kept, flat (N,)."""
    return torch.cat([getattr(sequence, attribute) for sequence in sequences])


def update(model, optimizer, sequences: list[Sequence], settings: UpdateSettings, *, reference=None, seed=0) -> dict:
    """One GRPO update (or one for each of `settings.minibatches` parts) on a batch of rollouts.

    With a single update the old log-probs are the current ones, detached: the ratio is exactly 1, nothing is
    computed twice. Sequences with advantage 0 cost nothing unless a KL term asks for them, but they count in
    the denominators. `reference` is the frozen model of the KL term. With several processes each is given all
    sequences, and computes those of its share of the prompts: denominators and figures are those of all.

    Returns the loss, the gradient norm, the mean |log-prob sampled - log-prob in training| (logprob_gap), the
    share of tokens outside the clip range (clip_frac), the mean KL, the number of updates skipped because a
    gradient was not finite, and how often memory ran out (oom_retries). What is not defined is None.
    Raises OutOfMemory.
    """
    use_kl = settings.kl_coef > 0 and reference is not None
    mine = _share([s for s in sequences if s.advantage != 0 or use_kl])
    is_mine = {id(s) for s in mine}
    sums = {"loss": 0.0, "gap": 0.0, "clipped": 0.0, "kl": 0.0, "tokens": 0, "oom_retries": 0}
    norms: list[float] = []
    skipped = 0
    model.train()
    if use_kl:
        sums["oom_retries"] += _store_logprobs(reference, mine, "reference_logprobs", settings)
    if settings.minibatches > 1:
        sums["oom_retries"] += _store_logprobs(model, mine, "old_logprobs", settings)

    def loss_of(logprobs: Tensor, weight: Tensor, batch: list[Sequence]) -> Tensor:
        advantages = _per_token([s.advantage for s in batch], batch, logprobs.device)
        old = _stored(batch, "old_logprobs") if settings.minibatches > 1 else logprobs.detach()
        loss = policy_loss(logprobs, old, advantages, weight, 1.0, settings.clip_low, settings.clip_high)
        if use_kl:
            kl = kl_penalty(logprobs, _stored(batch, "reference_logprobs"))
            loss = loss + settings.kl_coef * (kl * weight).sum()
            sums["kl"] += float(kl.detach().sum())
        ratio = (logprobs.detach() - old).exp()
        sums["clipped"] += int(((ratio < 1 - settings.clip_low) | (ratio > 1 + settings.clip_high)).sum())
        sampled = torch.tensor([x for s in batch for x in s.sampled_logprobs], device=logprobs.device)
        if len(sampled) == len(logprobs):
            sums["gap"] += float((logprobs.detach() - sampled).abs().sum())
        sums["loss"] += float(loss.detach())
        sums["tokens"] += len(logprobs)
        return loss

    shuffled = random.Random(seed).sample(sequences, len(sequences)) if settings.minibatches > 1 else sequences
    for part in (shuffled[k :: settings.minibatches] for k in range(settings.minibatches)):
        weighted = [
            (s, w) for s, w in zip(part, token_weights(part, settings), strict=True) if s.advantage != 0 or use_kl
        ]
        if not weighted:
            continue
        own = [(s, w) for s, w in weighted if id(s) in is_mine]
        _accumulate(model, [s for s, _ in own], [w for _, w in own], loss_of, sums, settings)
        norm, stepped = _optimizer_step(model, optimizer, settings.max_grad_norm)
        norms.append(norm)
        skipped += not stepped
    model.eval()
    sums = parallel.total(sums)
    tokens = sums["tokens"]
    return {
        "loss": sums["loss"] if tokens else None,
        "grad_norm": max(norms, default=None),
        "logprob_gap": sums["gap"] / tokens if tokens else None,
        "clip_frac": sums["clipped"] / tokens if tokens else None,
        "kl": sums["kl"] / tokens if tokens and use_kl else None,
        "skipped_updates": skipped,
        "oom_retries": int(sums["oom_retries"]),
    }


def clone(model, optimizer, sequences: list[Sequence], settings: UpdateSettings) -> tuple[float, bool, int]:
    """One supervised step on expert trajectories (behaviour cloning, section 3.3).

    Returns the mean negative log-likelihood per token before the step, whether the step was made, and how often
    memory ran out. Raises OutOfMemory.
    """
    tokens = sum(len(s.response_ids) for s in sequences)
    sums = {"loss": 0.0, "oom_retries": 0}

    def loss_of(logprobs: Tensor, weight: Tensor, batch: list[Sequence]) -> Tensor:
        loss = -(logprobs * weight).sum()
        sums["loss"] += float(loss.detach())
        return loss

    model.train()
    mine = parallel.share(sequences)
    _accumulate(model, mine, [1 / tokens] * len(mine), loss_of, sums, settings)
    _, stepped = _optimizer_step(model, optimizer, settings.max_grad_norm)
    model.eval()
    sums = parallel.total(sums)
    return sums["loss"], stepped, int(sums["oom_retries"])


def main() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    print("rewards of two problems, four rollouts each:\n", rewards)
    print("advantages: (1 - .5) / (.5774 + 1e-6) = .8660; an all-right group teaches nothing:")
    print(group_advantages(rewards))
    old = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    new = torch.tensor([[0.5, 0.9], [0.3, 0.1]]).log().requires_grad_()
    mask = torch.tensor([[1, 1], [1, 0]])
    loss = policy_loss(new, old, torch.tensor([1.0, -1.0]), mask, denominator=3)
    print("ratios 1, 1.8 | 0.6, masked; advantages +1 | -1")
    print("loss = -(1 + min(1.8, 1.28) + min(-.6, -.8)) / 3 = -1.48 / 3 = -.4933:", round(loss.item(), 4))
    loss.backward()
    print("gradient by log-prob: -1/3, then 0 where clipped or masked:", new.grad)


if __name__ == "__main__":
    main()
