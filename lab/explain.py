"""Tell one training step in full, with real numbers: `python train.py --explain`, along with any other option.

The step is the trainer's own; its update is only watched, for log-probs before and after. Nothing is written to disk.
explain.txt holds a section for each stage of `Trainer.step`, with the figures of the whole step in braces; the methods
of `Story` add what there is to tell of each problem, or of each kind of rollout. Left out: weight gradients.
"""

import math
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean, median, pstdev, stdev
from typing import Any

import torch

import grpo
import masa
import rewards
import train
import variants
from engine import parallel
from rollout import Attempt, expert_answers

WIDTH, LONGEST_LINE = 100, 1000  # columns of a terminal; characters that are shown of a line before it is wrapped
SHOWN_PROBLEMS, SHOWN_SOLUTIONS, SHOWN_TOKENS = 3, 8, 8
KINDS = {"solution": "solutions", "meta": "predictions"}
# Few problems, predictions that are acted on at once, and the full learning rate: a warm-up would hide the change.
DEFAULTS = {"problems": 3, "samples": 6, "predictions": 4, "efficient_from": 1, "explore": 0.0, "warmup_steps": 0}


def tell(given: dict[str, Any]) -> None:
    """Print the story of one step. given: options from the command line, by name.  Raises OptionError."""
    if refused := [name for name in ("out", "resume") if name in given]:
        raise train.OptionError(f"--{refused[0]}: --explain writes and resumes nothing; --model takes a checkpoint")
    if parallel.world() > 1:
        raise train.OptionError("--explain tells of one process: start it without torchrun")
    options = train.Options.of(DEFAULTS | train.ALGORITHMS[given.get("algo", train.RunOptions.algo)] | given)
    kind = variants.load(options.run.variant) if options.run.variant else train.Trainer
    for line in Story(train.make_trainer(options, kind=kind)).lines():
        print(*fitted(line), sep="\n")


def fitted(line: str) -> list[str]:
    """Wrap a line for a terminal, with control characters escaped and the middle of a very long one left out."""
    if len(line) > LONGEST_LINE:
        half = LONGEST_LINE // 2
        line = f"{line[:half]} [... {len(line) - 2 * half} characters left out ...] {line[-half:]}"
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    hang = " " * (len(line) - len(line.lstrip()) + 3)
    return textwrap.wrap(line, WIDTH, subsequent_indent=hang, break_on_hyphens=False) or [""]


class Story:
    """One step of a trainer, made when the story is, and the lines that tell it."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.options, self.policy = trainer, trainer.options, trainer.policy
        self.real_update, trainer.update = trainer.update, self.watched_update
        trainer.announce = lambda phase: print(f"{phase} ...", file=sys.stderr)
        self.figures, self.attempts = trainer.step(1)

    def watched_update(self, samples: list[grpo.Sample], step: int) -> dict[str, Any]:
        """Make the trainer's update; keep its samples, each with its log-probs "before" and "after"."""
        self.samples = samples
        self.keep("before")
        figures = self.real_update(samples, step)
        self.lr = self.trainer.optimizer.param_groups[0]["lr"]  # now: imitation may share the optimizer
        self.keep("after")
        return figures

    @torch.no_grad()
    def keep(self, name: str) -> None:
        """Keep log-probs in float32, whatever the update computes in: bf16 would round the change away."""
        o, work = self.options, partial(grpo.keep, name)
        grpo.over_batches(self.policy.model, self.samples, work, o.update.token_budget, o.sampling.temperature)

    def lines(self) -> Iterator[str]:
        """Yield each section of explain.txt, and below it the lines of each problem or of each kind of rollout."""
        problems = [(f"problem {i}", attempt) for i, attempt in enumerate(self.attempts[:SHOWN_PROBLEMS], 1)]
        solved = [(name, attempt) for name, attempt in problems if attempt.solutions]
        kinds = [(KINDS[kind], list(samples)) for kind, samples in groupby(self.samples, key=lambda s: s.kind)]
        stages: dict[str, list] = {"start": [], "predict": problems, "gate": problems, "solve": solved, "align": solved}
        stages |= {"advantages": solved, "update": kinds, "imitate": solved}
        for (stage, parts), section in zip(stages.items(), self.sections(), strict=True):
            yield from section.split("\n")
            for name, part in parts:
                first, *rest = getattr(self, stage)(part)
                yield from [f"   {name}: {first}", *(f"      {line}" for line in rest)]
            yield ""

    def sections(self) -> list[str]:
        """Return the sections of explain.txt, with the names in braces filled in."""
        o, trainer = self.options, self.trainer
        text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").strip()
        return text.format(
            **{"o": o, "lr": self.lr, "masa": masa, "grpo": grpo},
            figures={name: "none" if value is None else f"{value:.4g}" for name, value in self.figures.items()},
            prompt=o.sampling.ask("(the problem)"),
            rewards="\n".join(line[1:] for line in (rewards.__doc__ or "").split("\n") if line.startswith("    ")),
            waiting=f"{len(trainer.experts)}; imitation starts at {train.EXPERT_BATCH}",
            run=train.Options.of({"algo": o.run.algo, "model": o.model.model}),
        ).split("\n\n")

    def predict(self, attempt: Attempt) -> Iterator[str]:
        yield attempt.problem.text
        for j, (text, said) in enumerate(zip(attempt.meta_responses, attempt.predictions, strict=True), 1):
            yield f"{j}: {masa.render_meta(said) if said else f'cannot be read, earns nothing: {text}'}"

    def gate(self, attempt: Attempt) -> Iterator[str]:
        limit = attempt.limit or self.options.sampling.max_new_tokens
        by_option = attempt.skipped != self.trainer.would_skip(attempt)
        verdict = "SKIPPED" if attempt.skipped else f"solved, in up to {limit} tokens"
        yield verdict + (" (by --gate off, --explore, --efficient-from or --variant)" if by_option else "")
        if masa.predicted_pass_rate(attempt.predictions) is not None:
            rates = [said.pass_rate for said in attempt.predictions if said]
            agree = "they agree" if masa.should_skip(attempt.predictions, margin=1) else "they disagree"
            yield f"pass rates {rates}: mean {fmean(rates):.3f}, standard deviation {pstdev(rates):.3f}, {agree}"
            lengths = sorted(said.solution_length for said in attempt.predictions if said)
            yield f"lengths {lengths}: median {median(lengths):g}"

    def solve(self, attempt: Attempt) -> Iterator[str]:
        yield self.policy.decode(attempt.solutions[0].prompt_ids)
        rows = zip(attempt.solutions, attempt.responses, attempt.correct, strict=True)
        for j, (rollout, text, right) in enumerate(islice(rows, SHOWN_SOLUTIONS), 1):
            length = f"{len(rollout.response_ids)} tokens{'' if rollout.finish_reason == 'stop' else ', cut off'}"
            hint = f", hint {', '.join(attempt.hints[j - 1]) or 'none'}" if len(attempt.hints) > 1 else ""
            yield f"{j}: {'correct' if right else 'wrong'}, {length}{hint}: {text}"
        yield f"{sum(attempt.correct)} of {len(attempt.correct)} correct, the answer is {attempt.problem.answer}"

    def align(self, attempt: Attempt) -> Iterator[str]:
        chosen, base = self.options.rewards.components, self.options.rewards.difficulty_base
        lengths, share = sorted(attempt.correct_lengths), f"{sum(attempt.correct)}/{len(attempt.correct)}"
        yield f"pass rate {share} = {attempt.pass_rate:.3f}, correct lengths {lengths or 'none'}"
        for j, (said, earned) in enumerate(zip(attempt.predictions, attempt.alignments, strict=True), 1):
            if said:
                arithmetic = {
                    "length": f"{said.solution_length} {'inside' if earned.length else 'outside'}: ",
                    "difficulty": f"{base:g}^|{said.pass_rate:g} - {share}| = ",
                    "notion": f"{votes(attempt, said.notions)}: ",
                }
                values = {part: f"{getattr(earned, part):.4g}" for part in rewards.COMPONENTS}
                told = [f"{part} {arithmetic.get(part, '')}{value}" for part, value in values.items()]
                terms = ", ".join(values[part] for part in chosen) or "nothing"
                yield f"{j}: {'; '.join(told)}; reward = mean of {terms} = {earned.mean(chosen):.4g}"

    def advantages(self, attempt: Attempt) -> Iterator[str]:
        used = {id(sample.response_ids): f"{sample.advantage:+.3f}" for sample in self.samples}
        meta = [earned.mean(self.options.rewards.components) for earned in attempt.alignments]
        groups = [("solutions", attempt.solutions, [float(right) for right in attempt.correct])]
        groups += [("predictions", attempt.meta_rollouts, meta)] if meta else []
        for kind, rollouts, group in groups:
            std = f", std {stdev(group):.4f}" if self.options.update.normalize_std and len(group) > 1 else ""
            own = [used[id(rollout.response_ids)] for rollout in rollouts if id(rollout.response_ids) in used]
            yield f"rewards of {kind} {', '.join(f'{reward:.4g}' for reward in group)}"
            yield f"mean {fmean(group):.4f}{std}; advantages {', '.join(own) or 'none, left out (--variant)'}"

    def update(self, samples: list[grpo.Sample]) -> Iterator[str]:
        """Yield how the samples of one kind were pushed, and how far their tokens moved."""
        zero, weights = [s for s in samples if s.advantage == 0], [s.weight for s in samples for _ in s.response_ids]
        yield f"{len(samples)}, {len(zero)} of them with advantage 0, which push nothing"
        each = " to ".join(f"{weight:.6f}" for weight in sorted({min(weights), max(weights)}))
        yield f"{len(weights)} tokens, each of weight {each}, together {sum(weights):.4f}"
        for sign, side in ((1, "above"), (-1, "below")):
            some = [sample for sample in samples if sign * sample.advantage > 0]
            old, new = (float(sum(sample.kept[when].sum() for sample in some)) for when in ("before", "after"))
            yield f"{len(some)} with advantage {side} 0: sum of log p {old:.3f} -> {new:.3f}, {new - old:+.3f}"
        best = max(samples, key=lambda sample: sample.advantage)
        before, after, push = best.kept["before"].tolist(), best.kept["after"].tolist(), best.advantage * best.weight
        yield f"the {KINDS[best.kind][:-1]} with the largest advantage: {self.policy.decode(best.response_ids)}"
        yield f"advantage {best.advantage:+.3f} x weight {best.weight:.6f} = push {push:+.6f} on each of its tokens"
        yield f"{'the least certain tokens':<30}    log p       p    -> p  change of log p  push x (1 - p)"
        for t in sorted(sorted(range(len(before)), key=before.__getitem__)[:SHOWN_TOKENS]):
            token, p = f"{t + 1} {self.policy.tokenizer.decode(best.response_ids[t])!r:.25}", math.exp(before[t])
            moved = f"{math.exp(after[t]):>8.4f}{after[t] - before[t]:>+17.5f}{push * (1 - p):>+16.6f}"
            yield f"{token:<30}{before[t]:>9.4f}{p:>8.4f}{moved}"

    def imitate(self, attempt: Attempt) -> Iterator[str]:
        experts = dict(expert_answers([a for a in self.attempts if a.solutions], self.options.imitation))
        notion = max((earned.notion for earned in attempt.alignments), default=0.0)
        none = f"none: {sum(attempt.correct)} solutions correct, best notion reward {notion:.4g}"
        yield experts.get(attempt.problem.text, none)


def votes(attempt: Attempt, notions: tuple[str, ...]) -> str:
    """Return for each notion in how many correct and wrong solutions it appears."""
    shown = []
    for notion in dict.fromkeys(" ".join(notion.casefold().split()) for notion in notions if notion.strip()):
        texts = [attempt.problem.text, *attempt.responses]
        named, *used = [rewards.notion_reward([notion], [text], [True], problem="") == 1 for text in texts]
        right = sum(there and correct for there, correct in zip(used, attempt.correct, strict=True))
        shown.append(f"{notion} {'in the problem' if named else f'{right}:{sum(used) - right}'}")
    return ", ".join(shown) or "none"
