"""Read: what the policy knows about a problem is read from its own probabilities, taught, and acted on.

A drawn prediction *says* one count out of 8. The probabilities of all nine counts, after the words that open a
prediction, show what the policy *believes*; one forward pass over the prompt reads them, and no token is generated. So
self-knowledge costs almost nothing, and it can gate from the first steps on. It goes beyond the paper, in which
predictions are drawn; with --predictions they can be drawn as well.

1. Predict    read the belief about each problem                              `Policy.beliefs`
2. Gate       skip what is believed to be all wrong (--gate both: all alike)  `masa.probability_alike`
8. Imitate    teach the counts that came true, one token for each of the last --read-lessons problems

Teaching is one supervised step. Its loss is the cross-entropy of the counts that came true, a *proper* score: its mean
is least if beliefs are the frequencies with which the counts come true. Rewarding a drawn count does not have this
effect, since it makes the likeliest count still likelier. So with --predictions, leave the pass rate out of their
reward: --meta-rewards length,notion. The problems of a single step would do for teaching (--read-lessons 32), but the
gradient of four times as many is less noisy, and the policy knows more at the same learning rate. Keep --read-lr well
below --lr: on SmolLM2 (docs/real-model.md) teaching at half of it cost more solving than the gate can save.
"""

from collections.abc import Sequence
from typing import Any

import masa
from engine.command_line import OptionError
from grpo import Sample
from problems.source import Problem
from rollout import Attempt, read
from train import Trainer


class Reader(Trainer):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if not self.policy.counts:
            raise OptionError("--variant read: this tokenizer begins several of the counts 0 to 8 with the same token")

    def meta_prompt(self, text: str) -> list[int]:
        return self.policy.encode(masa.meta_prompt(text, self.options.sampling.max_new_tokens))

    def fits(self, problem: Problem, hint: tuple[str, ...] = ()) -> bool:
        short_enough = len(self.meta_prompt(problem.text)) <= self.options.sampling.max_prompt_tokens
        return short_enough and super().fits(problem, hint)

    def predict(self, attempts: Sequence[Attempt], step: int, draw: int) -> None:
        """Read beliefs, and count what that costs: a forward pass over each prompt."""
        super().predict(attempts, step, draw)
        tokens = read(self.policy, attempts, self.options.sampling)
        self.counters.update(tokens_read=tokens, flops=2 * self.policy.model.num_parameters() * tokens)

    def would_skip(self, attempt: Attempt) -> bool:
        easy = self.options.gate.gate == "both"
        return masa.probability_alike(attempt.belief, easy) >= 1 - self.options.gate.gate_margin

    def imitate(self, solved: Sequence[Attempt], step: int) -> dict[str, Any]:
        """Imitate experts, if there are any, and teach what came true."""
        self.lessons += [(a.problem.text, masa.pass_rate_count(a.pass_rate)) for a in solved]
        self.lessons = self.lessons[-self.options.imitation.read_lessons :]
        return super().imitate(solved, step) | {"read_loss": self.teach(step)}

    def teach(self, step: int) -> float | None:
        """Teach the counts that came true; return their mean negative log-likelihood before the step."""
        lr = self.options.imitation.read_lr * max(0.1, 1 - step / self.options.run.steps)
        if not self.lessons or not lr or not self.policy.counts:
            return None
        opening, tokens = self.policy.counts
        asked = [(self.meta_prompt(text) + opening, tokens[count]) for text, count in self.lessons]
        return self.supervise([Sample(prompt, [token]) for prompt, token in asked], lr)
