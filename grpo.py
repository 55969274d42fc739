"""GRPO: turn the rewards of rollouts into one update of the policy, in plain PyTorch.

    rewards of a group -> advantages -> log-probs of every token -> clipped loss -> gradients -> one step of AdamW

GRPO (section 3.1 of the paper) compares the rollouts of one prompt with each other: those with a higher reward than
their group become more likely, the others less. Two pieces of DAPO are built in: the wider upper clip range
("clip-higher") and a loss that is a mean over all tokens. Predictions and solutions are separate groups, and the loss
is averaged over each kind separately, so that --meta-weight alone says how much predictions count.

This file is complete, and it is the reference: `engine/update.py` makes the same gradients faster, within less memory
or on several devices, by replacing one function, `over_batches`. Left out: a critic, an entropy bonus, and importance
sampling between sampler and trainer (their gap is measured instead). Run `python grpo.py` for a worked example.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

Aggregation = Literal["token-mean", "sequence-mean", "dr-grpo", "joint-mean"]
CLIP_LOW = 0.2  # the ratio is clipped below 1 - 0.2 (the paper's value)
MAX_GRAD_NORM = 1.0  # gradients are scaled down to this norm (the paper's value)
WEIGHT_DECAY = 0.1  # of AdamW in the GRPO update (the paper's value)
# Logits are made for this many entries at once (256 MiB in float32) and made again in the backward pass. With a
# vocabulary of 150,000 tokens, the logits of a whole batch would be by far the largest tensor of all.
LOGITS_AT_ONCE = 2**26


@dataclass
class UpdateOptions:
    """How a batch of rollouts becomes an update."""

    lr: Annotated[float, "learning rate of the GRPO update", {"above": 0, "real": 1e-6}] = 3e-4
    lr_end: Annotated[float, "the rate falls linearly, to this share of --lr at least", {"least": 0, "real": 1.0}] = 0.1
    warmup_steps: Annotated[int, "steps over which the learning rate rises from 0", {"least": 0, "real": 20}] = 5
    clip_high: Annotated[float, "the ratio is clipped above 1 + this (clip-higher)", {"least": 0}] = 0.28
    aggregation: Annotated[Aggregation, "what the loss is a mean over"] = "token-mean"
    normalize_std: Annotated[bool, "divide advantages by the standard deviation of their group"] = True
    kl_coef: Annotated[float, "weight of a KL penalty towards the initial policy; 0 for none", {"least": 0}] = 0.0
    meta_weight: Annotated[float, "weight of predictions in the loss (solutions: 1)", {"least": 0, "real": 1.0}] = 0.3
    minibatches: Annotated[int, "optimizer steps for each batch of rollouts", {"least": 1}] = 1
    token_budget: Annotated[int, "padded tokens in a micro-batch: less saves memory", {"least": 1, "real": 8192}] = 2048


@dataclass
class Sample:
    """A rollout to learn from: token lists and numbers, no tensors until the update needs them.

    advantage: one number for all of its tokens.  kind: "solution" or "meta" (a prediction).  group: the number of its
    group, which `engine/parallel.py` shares out whole.  sampled_logprobs: log-probs as the sampler saw them, only to
    measure how far the trainer's differ.  weight: what each of its tokens counts in the loss (`set_weights`).  kept:
    log-probs (T,) from before the update, "old" for several minibatches, "reference" for a KL penalty.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    advantage: float = 0.0
    kind: str = "solution"
    group: int = 0
    sampled_logprobs: list[float] = field(default_factory=list)
    weight: float = 0.0
    kept: dict[str, Tensor] = field(default_factory=dict)

    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


# ---- advantages and loss: pure functions


def group_advantages(rewards: Tensor, normalize_std: bool = True) -> Tensor:
    """Return the advantages within each group: (P, G) rewards -> (P, G), with mean 0 in each row.

    They are divided by the group's standard deviation (with Bessel's correction) plus 1e-6, unless `normalize_std` is
    off (Dr.GRPO). A group whose rewards are all equal gets exactly 0: it teaches nothing.
    """
    rewards = torch.as_tensor(rewards)
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    if rewards.numel() == 0:
        return rewards
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if normalize_std and rewards.shape[1] > 1:
        advantages = advantages / (rewards.std(dim=1, keepdim=True) + 1e-6)
    # The mean of equal numbers may differ from them in the last bit; divided by 1e-6, that would look like a signal.
    constant = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return advantages.masked_fill(constant, 0.0)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    denominator: float | Tensor,
    clip_low: float = CLIP_LOW,
    clip_high: float = 0.28,
) -> Tensor:
    """Return the clipped loss -sum(mask * min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)) / denominator.

    logprobs, old_logprobs, mask: of one shape, (B, T) or flat (N,).  advantages: that shape, or (B,) for one number
    per row.  mask: of any number type; it may carry weights (see `set_weights`).  The result is a scalar.
    """
    if advantages.ndim < logprobs.ndim:
        advantages = advantages.unsqueeze(-1)
    # Masked log-probs can be garbage and ratios can overflow; this keeps both, and their gradients, free of NaN.
    log_ratio = (logprobs - old_logprobs).masked_fill(mask == 0, 0.0).clamp(-20, 20)
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    return -(surrogate * mask).sum() / denominator


def kl_penalty(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Estimate KL(policy || reference) for each token with k3: exp(d) - d - 1, where d = reference - policy."""
    difference = (reference_logprobs - logprobs).clamp(-20, 20)  # as the ratio is, so that it cannot overflow
    return difference.exp() - difference - 1


def set_weights(samples: Sequence[Sample], options: UpdateOptions, max_lengths: Mapping[str, int]) -> None:
    """Set the weight of every sample so that the sum of weight x loss over tokens is the mean that --aggregation names.

    token-mean: 1 / all tokens of its kind (DAPO).  sequence-mean: 1 / (its own length x samples of its kind) (GRPO as
    first published).  dr-grpo: 1 / (longest allowed length x samples of its kind).  joint-mean: 1 / (its own length x
    all samples), so that solutions and predictions share one mean (equation 1).  max_lengths: kind -> tokens.
    """
    count = Counter(sample.kind for sample in samples)
    tokens = Counter(sample.kind for sample in samples for _ in sample.response_ids)
    for sample in samples:
        denominator = {
            "token-mean": tokens[sample.kind],
            "sequence-mean": count[sample.kind] * len(sample.response_ids),
            "dr-grpo": count[sample.kind] * max_lengths.get(sample.kind, 1),
            "joint-mean": len(samples) * len(sample.response_ids),
        }[options.aggregation]
        sample.weight = (options.meta_weight if sample.kind == "meta" else 1.0) / denominator


# ---- log-probs of responses, with gradients


def without_randomness(model: Any) -> None:
    """Turn off dropout and noise, as in sampling; only layers that recompute activations need training mode."""
    for module in model.modules():
        module.training = getattr(module, "gradient_checkpointing", False)


def token_logprobs(model: Any, samples: Sequence[Sample], temperature: float = 1.0) -> Tensor:
    """Return the log-probs of all response tokens, flat and in order: (N,), N the sum of the response lengths."""
    rows = [torch.tensor(s.prompt_ids + s.response_ids) for s in samples]
    marks = [torch.tensor([False] * len(s.prompt_ids) + [True] * len(s.response_ids)) for s in samples]
    ids, is_response = (pad_sequence(x, batch_first=True).to(model.device) for x in (rows, marks))  # (B, L)
    # Padding stands on the right, where causal attention never looks, so no attention mask is needed.
    hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state  # (B, L - 1, H)
    predicts_response = is_response[:, 1:].flatten().nonzero().squeeze(1)  # (N,)
    hidden = hidden.flatten(0, 1).index_select(0, predicts_response)  # (N, H); cheaper to go back through than a mask
    return head_logprobs(model, hidden, ids[is_response], temperature)


def head_logprobs(model: Any, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log-probs (N,) of targets (N,) under softmax(logits / temperature), from last hidden states (N, H)."""
    head = model.get_output_embeddings()

    def chunk_logprobs(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = head(hidden)  # (chunk, V), then at least in float32
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)

    size = max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
    if len(targets) <= size:
        return chunk_logprobs(hidden, targets)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(chunk_logprobs, h, t, use_reentrant=False) for h, t in chunks])


def micro_batches(samples: Sequence[Sample], token_budget: int) -> Iterator[list[Sample]]:
    """Yield samples of similar length together, at most `token_budget` padded tokens; a longer one stands alone."""
    batch: list[Sample] = []
    for sample in sorted(samples, key=Sample.length):
        if batch and (len(batch) + 1) * sample.length() > token_budget:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


Work = Callable[[list[Sample], Tensor], Mapping[str, float]]


def over_batches(
    model: Any, samples: Sequence[Sample], work: Work, token_budget: int, temperature: float = 1.0
) -> Counter:
    """Call work(micro-batch, its log-probs (N,)) on all samples, and return the sum of the figures it returns.

    `work` goes backward itself if it wants gradients: they add up, so the sizes of the micro-batches do not matter.
    """
    figures: Counter = Counter()
    for batch in micro_batches(samples, token_budget):
        figures.update(work(batch, token_logprobs(model, batch, temperature)))
    return figures


# ---- one update


def update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    options: UpdateOptions,
    *,
    temperature: float = 1.0,
    max_lengths: Mapping[str, int] | None = None,
    reference: Any = None,
    seed: int = 0,
    over_batches: Callable[..., Counter] = over_batches,  # engine/ has a faster one
) -> dict[str, Any]:
    """Make one GRPO update, or one for each of `options.minibatches` parts, on a batch of rollouts.

    Samples with advantage 0 cost nothing unless a KL penalty needs them, but they count in the denominators.
    max_lengths: kind -> longest allowed response, in tokens, for dr-grpo.  reference: the frozen model of the KL
    penalty.  seed: of the order of minibatches.  Returns the loss, summed over the parts; grad_norm before clipping;
    logprob_gap, the mean |sampled - trainer's| log-prob; clip_frac, the share of tokens outside the clip range; the
    mean kl; skipped_updates, those whose gradient was not finite; and oom_retries (engine/update.py). What is not
    defined is None.
    """
    use_kl = reference is not None and options.kl_coef > 0
    learning = [sample for sample in samples if sample.advantage != 0 or use_kl]
    passes = partial(over_batches, token_budget=options.token_budget, temperature=temperature)
    figures: Counter = Counter()
    norms, order = [], list(samples)
    without_randomness(model)
    if use_kl:
        with torch.no_grad():
            figures.update(passes(reference, learning, partial(keep, "reference")))
    if options.minibatches > 1:
        order = random.Random(seed).sample(order, len(order))
        with torch.no_grad():
            figures.update(passes(model, learning, partial(keep, "old")))
    for part in (order[k :: options.minibatches] for k in range(options.minibatches)):
        set_weights(part, options, max_lengths or {})
        learning = [sample for sample in part if sample.advantage != 0 or use_kl]  # after the weights: all count there
        if learning:
            figures.update(passes(model, learning, partial(go_backward, options)))
            norm, stepped = clip_and_step(model, optimizer)
            norms.append(norm)
            figures["skipped_updates"] += not stepped
    model.eval()
    tokens = figures["tokens"]
    return {
        "loss": figures["loss"] if tokens else None,
        "grad_norm": max(norms, default=None),
        "logprob_gap": figures["gap"] / tokens if tokens else None,
        "clip_frac": figures["clipped"] / tokens if tokens else None,
        "kl": figures["kl"] / tokens if tokens and use_kl else None,
        "skipped_updates": figures["skipped_updates"],
        "oom_retries": figures["oom_retries"],
    }


def go_backward(options: UpdateOptions, batch: list[Sample], logprobs: Tensor) -> dict[str, float]:
    """Send the loss of one micro-batch backward, and return its figures as sums over tokens."""
    advantages = per_token([sample.advantage for sample in batch], batch, logprobs)
    weights = per_token([sample.weight for sample in batch], batch, logprobs)
    # With one update for a batch, the policy that drew is the policy that learns: the ratio is exactly 1, only its
    # gradient matters, and a second forward pass for old log-probs would be wasted.
    old = torch.cat([s.kept["old"] for s in batch]) if "old" in batch[0].kept else logprobs.detach()
    loss = policy_loss(logprobs, old, advantages, weights, 1.0, CLIP_LOW, options.clip_high)
    kl = torch.zeros_like(logprobs)
    if "reference" in batch[0].kept:
        kl = kl_penalty(logprobs, torch.cat([s.kept["reference"] for s in batch]))
        loss = loss + options.kl_coef * (kl * weights).sum()
    loss.backward()
    ratio = (logprobs.detach() - old).exp()
    sampled = torch.tensor([x for sample in batch for x in sample.sampled_logprobs], device=logprobs.device)
    return {
        "loss": float(loss.detach()),
        "nll": -float((logprobs.detach() * weights).sum()),  # negative log-likelihood, which `imitate` reports
        "gap": float((logprobs.detach() - sampled).abs().sum()) if len(sampled) == len(logprobs) else 0.0,
        "clipped": int(((ratio < 1 - CLIP_LOW) | (ratio > 1 + options.clip_high)).sum()),
        "kl": float(kl.detach().sum()),
        "tokens": len(logprobs),
    }


def per_token(values: list[float], batch: Sequence[Sample], like: Tensor) -> Tensor:
    """Repeat one value per sample for each of its response tokens: flat (N,), on the device of `like`."""
    lengths = torch.tensor([len(sample.response_ids) for sample in batch])
    return torch.tensor(values).repeat_interleave(lengths).to(like.device)


def keep(name: str, batch: list[Sample], logprobs: Tensor) -> dict[str, float]:
    """Keep the log-probs of each sample under a name, for later micro-batches."""
    for sample, values in zip(batch, logprobs.split([len(s.response_ids) for s in batch]), strict=True):
        sample.kept[name] = values
    return {}


def clip_and_step(model: Any, optimizer: torch.optim.Optimizer) -> tuple[float, bool]:
    """Clip the gradients and step; return their norm before, and whether a step was made: never with inf or NaN."""
    norm: Any = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a model split over several devices
    finite = bool(torch.isfinite(norm))
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm), finite


def imitate(
    model: Any,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    options: UpdateOptions,
    *,
    over_batches: Callable[..., Counter] = over_batches,
) -> dict[str, Any]:
    """Make one supervised step on responses to imitate (behaviour cloning, section 3.3).

    Returns expert_loss, the mean negative log-likelihood per token before the step, skipped_updates and oom_retries.
    """
    tokens = sum(len(sample.response_ids) for sample in samples)
    for number, sample in enumerate(samples):  # with advantage 1 the gradient is that of the log-likelihood
        sample.group, sample.advantage, sample.weight = number, 1.0, 1 / tokens
    without_randomness(model)
    figures = over_batches(model, samples, partial(go_backward, options), options.token_budget)
    _, stepped = clip_and_step(model, optimizer)
    model.eval()
    return {"expert_loss": figures["nll"], "skipped_updates": int(not stepped), "oom_retries": figures["oom_retries"]}


def main() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    print("The rewards of two problems, four rollouts each:\n", rewards)
    print("Advantages: (1 - 0.5) / (0.5774 + 1e-6) = 0.8660; a group that is all correct teaches nothing:")
    print(group_advantages(rewards))
    old = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    new = torch.tensor([[0.5, 0.9], [0.3, 0.1]]).log().requires_grad_()
    mask = torch.tensor([[1, 1], [1, 0]])
    loss = policy_loss(new, old, torch.tensor([1.0, -1.0]), mask, denominator=3)
    print("Two responses of two tokens. Ratios: 1 and 1.8; 0.6 and a masked one. Advantages: +1 and -1.")
    print("loss = -(1 + min(1.8, 1.28) + min(-0.6, -0.8)) / 3 = -1.48 / 3 = -0.4933:", round(loss.item(), 4))
    loss.backward()
    print("Its gradient by log-prob is -1/3, and 0 where the ratio is clipped or the token masked:", new.grad)


if __name__ == "__main__":
    main()
