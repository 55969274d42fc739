"""Read: what the policy knows about a problem is read from its hidden state, learned, and acted on.

A drawn prediction *says* one count out of 8. The hidden state from which that count would be drawn, after the words
that open a prediction, holds what the policy *knows*; one forward pass over the prompt shows it, and no token is
generated. So it can gate early. This goes beyond the paper; with --predictions, some are also drawn.

1. Predict    read the belief about each problem, the probabilities of the counts 0..8   `Policy.beliefs`
2. Gate       skip what is believed to be all alike (--gate hopeless: all wrong)         `masa.probability_alike`
8. Imitate    fit the probe to the counts that came true                                 `fit`

At first a belief is what the policy would say: the nine rows of its output matrix that write the counts turn the hidden
state into probabilities. After the first step a *probe* takes their place, a linear map that is fitted to what came
true. Its loss is the cross-entropy, a *proper* score: its mean is least if beliefs are the frequencies with which the
counts come true. The policy's weights are not changed by this: with --gate off they are trained exactly as by --algo
grpo, if no prompt is too long. Teaching the policy to write the counts spoils solving (docs/real-model.md).
"""

from collections.abc import Sequence
from math import log
from statistics import fmean
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import masa
from engine.command_line import OptionError
from problems.source import Problem
from rollout import Attempt, read
from train import Trainer

LESSONS = 1024  # the probe is fitted to the last problems; older states are those of another policy
RIDGE = 10.0  # weight of the penalty: there may be fewer problems than slopes


def fit(states: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Fit a linear map from hidden states (N, H) to logits of the nine counts, given those that came true (N,).

    Multinomial logistic regression on centred states of mean square 1, with an L2 penalty on the slopes. Returns the
    map for states as they are, (9, H + 1) with the offsets in the last column, and how many operations the fit took.
    """
    mean = states.mean(0)
    scale = (states - mean).square().mean().sqrt().clamp(min=1e-6)
    inputs = (states - mean) / scale  # (N, H)
    slopes = torch.zeros(masa.PASS_RATE_SCALE + 1, inputs.shape[1], requires_grad=True)
    offsets = torch.zeros(masa.PASS_RATE_SCALE + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([slopes, offsets], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(inputs @ slopes.T + offsets, counts) + RIDGE / 2 * slopes.square().sum() / len(counts)
        loss.backward()
        return loss

    optimizer.step(closure)
    # Each evaluation multiplies and adds once for each slope going forward, and once more for its gradient.
    operations = 4 * len(counts) * slopes.numel() * optimizer.state[slopes]["func_evals"]
    raw = slopes.detach() / scale
    return torch.cat([raw, (offsets.detach() - raw @ mean)[:, None]], dim=1), operations


class Reader(Trainer):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if not self.policy.counts:
            raise OptionError("--variant read: this tokenizer begins several of the counts 0 to 8 with the same token")

    def fits(self, problem: Problem, hint: tuple[str, ...] = ()) -> bool:
        asked = self.policy.encode(masa.meta_prompt(problem.text, self.options.sampling.max_new_tokens))
        return len(asked) <= self.options.sampling.max_prompt_tokens and super().fits(problem, hint)

    def predict(self, attempts: Sequence[Attempt], step: int, draw: int) -> None:
        """Read beliefs, and count what that costs: a forward pass over each prompt."""
        super().predict(attempts, step, draw)
        tokens = read(self.policy, attempts, self.options.sampling)
        self.counters.update(tokens_read=tokens, flops=2 * self.policy.model.num_parameters() * tokens)

    def would_skip(self, attempt: Attempt) -> bool:
        easy = self.options.gate.gate == "both"
        return masa.probability_alike(attempt.belief, easy) >= 1 - self.options.gate.gate_margin

    def imitate(self, solved: Sequence[Attempt], step: int) -> dict[str, Any]:
        """Imitate experts, if there are any, and fit the probe; report the loss that the beliefs had."""
        happened = [(a, masa.pass_rate_count(a.pass_rate)) for a in solved]
        losses = [-log(max(1e-9, a.belief[count])) for a, count in happened]
        new = [(a.state, count) for a, count in happened if a.state is not None]
        self.lessons = [*self.lessons, *new][-LESSONS:]
        if new:
            states, counts = zip(*self.lessons, strict=True)
            self.policy.probe, flops = fit(torch.stack(states), torch.tensor(counts))
            self.counters["flops"] += flops
        return super().imitate(solved, step) | {"read_loss": fmean(losses) if losses else None}
