"""One problem, what the policy predicts about it, and what really happens: shared by training and evaluation.

    predict -> (the caller decides what is skipped or limited) -> solve and verify -> align

An `Attempt` collects all of it for one problem; the functions fill in attempts, many at a time, because the sampler
is fastest on a large batch. Which attempts are gated or limited is decided in `train.py`, in the open.
Run `python attempts.py` for an example.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

import masa
from engine import parallel
from masa import MetaPrediction
from models.policy import Policy, load
from problems.tasks import Problem
from rewards import AlignmentRewards, alignment_rewards, solution_reward
from rollout import Rollout, sample


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn; lengths in tokens."""

    max_new_tokens: int
    max_meta_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    max_cache_tokens: int = 2**20


@dataclass
class Attempt:
    """What is known of one problem: M predictions, and G solutions with their verdicts.

    gated: the problem is not solved.  limit: response tokens a solution may have.  samples: solutions to draw; None
    for as many as the others.  exploring: neither gated nor cut, so that gate and cutoff can be judged on it.
    The lists of solutions are empty until it is solved.
    """

    problem: Problem
    exploring: bool = False
    gated: bool = False
    limit: int | None = None
    samples: int | None = None
    meta_rollouts: list[Rollout] = field(default_factory=list)
    predictions: list[MetaPrediction | None] = field(default_factory=list)
    hint: tuple[str, ...] = ()
    solutions: list[Rollout] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    alignments: list[AlignmentRewards] = field(default_factory=list)

    @property
    def pass_rate(self) -> float:
        """Share of correct solutions."""
        return sum(self.correct) / len(self.correct)

    @property
    def correct_lengths(self) -> list[int]:
        """Lengths of the correct solutions, in tokens."""
        return [len(s.response_ids) for s, right in zip(self.solutions, self.correct, strict=True) if right]

    @property
    def zero_variance(self) -> bool:
        """All right or all wrong: no solution has an advantage over another."""
        return len(set(self.correct)) == 1


def predict(policy: Policy, attempts: Sequence[Attempt], n: int, how: Sampling, generator: torch.Generator) -> None:
    """Draw n meta-predictions for each problem (paper section 3.1)."""
    prompts = [policy.encode(masa.meta_prompt(a.problem.text, how.max_new_tokens)) for a in parallel.share(attempts)]
    groups = parallel.gather(_draw(policy, prompts, n, how.max_meta_tokens, None, how, generator))
    for attempt, rollouts in zip(attempts, groups, strict=True):
        attempt.meta_rollouts = rollouts
        attempt.predictions = [masa.parse_meta(policy.decode(r.response_ids)) for r in rollouts]


def solve(policy: Policy, attempts: Sequence[Attempt], n: int, how: Sampling, generator: torch.Generator) -> None:
    """Draw n solutions to each problem, or attempt.samples, each within the attempt's limit, and verify them.

    With several processes each solves and verifies its share, and is given what the others found.
    """
    mine = parallel.share(attempts)
    counts = [attempt.samples or n for attempt in mine]
    unit = math.gcd(*counts) or n  # the sampler draws as many for each prompt, so a prompt stands there several times
    repeated = [attempt for attempt, count in zip(mine, counts, strict=True) for _ in range(count // unit)]
    prompts = [policy.encode(masa.solution_prompt(attempt.problem.text, attempt.hint)) for attempt in repeated]
    limits = [attempt.limit or how.max_new_tokens for attempt in repeated]
    groups = iter(_draw(policy, prompts, unit, how.max_new_tokens, limits, how, generator))
    for attempt, count in zip(mine, counts, strict=True):
        attempt.solutions = [rollout for _ in range(count // unit) for rollout in next(groups)]
        attempt.responses = [policy.decode(r.response_ids) for r in attempt.solutions]
        truth, kind = attempt.problem.answer, attempt.problem.kind
        attempt.correct = [solution_reward(text, truth, kind) == 1.0 for text in attempt.responses]
    found = parallel.gather([(attempt.solutions, attempt.responses, attempt.correct) for attempt in mine])
    for attempt, (solutions, responses, correct) in zip(attempts, found, strict=True):
        attempt.solutions, attempt.responses, attempt.correct = solutions, responses, correct


def _draw(policy, prompts, n, max_new_tokens, limits, how: Sampling, generator) -> list[list[Rollout]]:
    return sample(
        policy.sampling_model(),
        prompts,
        n=n,
        max_new_tokens=max_new_tokens,
        eos_ids=policy.eos_ids,
        limits=limits,
        temperature=how.temperature,
        top_p=how.top_p,
        generator=generator,
        max_cache_tokens=how.max_cache_tokens,
    )


def align(attempts: Sequence[Attempt]) -> None:
    """Score every prediction against the solutions of its problem (paper section 3.1)."""
    for attempt in attempts:
        attempt.alignments = [
            alignment_rewards(
                prediction,
                attempt.correct_lengths,
                attempt.pass_rate,
                attempt.responses,
                attempt.correct,
                attempt.problem.text,
            )
            for prediction in attempt.predictions
        ]


def experts(attempts: Sequence[Attempt], failures: bool, least_notion_reward: float) -> list[tuple[str, str]]:
    """(problem, expert answer) pairs to imitate, see `masa.expert_target`; no more failures than others among them.

    Where most problems come out all wrong, imitating all of them teaches to predict 0 whatever the problem.
    """

    def expert(attempt: Attempt) -> MetaPrediction | None:
        notions = [rewards.notion for rewards in attempt.alignments]
        happened = attempt.correct_lengths, attempt.pass_rate
        return masa.expert_target(attempt.predictions, notions, *happened, failures, least_notion_reward)

    found = [(attempt.problem.text, target) for attempt in attempts if (target := expert(attempt))]
    failed = [target.pass_rate == 0 for _, target in found]
    room = len(failed) - sum(failed)
    return [
        (text, masa.render_meta(target))
        for (text, target), failure, so_far in zip(found, failed, accumulate(failed), strict=True)
        if not failure or so_far <= room
    ]


def probe(
    policy: Policy, attempts: Sequence[Attempt], n: int, how: Sampling, generator: torch.Generator
) -> list[float]:
    """The pass rate of each problem over n solutions that nobody keeps: what an oracle knows of it."""
    asides = [Attempt(attempt.problem) for attempt in attempts]
    solve(policy, asides, n, how, generator)
    return [aside.pass_rate for aside in asides]


def generated_tokens(rollouts: Sequence[Rollout]) -> int:
    """What the rollouts cost, in generated tokens."""
    return sum(len(rollout.response_ids) for rollout in rollouts)


def main() -> None:
    attempt, how = Attempt(Problem("9+8-4", "13")), Sampling(max_new_tokens=96, max_meta_tokens=24)
    policy, generator = load("tiny", device="cpu", dtype="float32"), torch.Generator().manual_seed(0)
    predict(policy, [attempt], 3, how, generator)
    solve(policy, [attempt], 8, how, generator)
    align([attempt])
    print(f"{attempt.problem.text} is {attempt.problem.answer}. The embedded policy tries eight times:")
    for text, right, rollout in zip(attempt.responses, attempt.correct, attempt.solutions, strict=True):
        print(f"  {'right' if right else 'wrong'}, {len(rollout.response_ids):2} tokens: {text}")
    print(f"pass rate {attempt.pass_rate}, lengths of right solutions {attempt.correct_lengths}")
    print("What it had predicted, and what that earns:")
    for prediction, rewards in zip(attempt.predictions, attempt.alignments, strict=True):
        print(f"  {prediction}\n  {rewards}")


if __name__ == "__main__":
    main()
