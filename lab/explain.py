"""Tell one training step in full, with real numbers: `python train.py --explain`, along with any other option.

The step is the trainer's own; its update is only watched, for log-probs before and after. Nothing is written to disk.
Text from models and data files is printed with control characters escaped, and shortened if it is long. explain.txt
holds the words for each stage of `Trainer.step`; the methods of `Story` add the numbers. Left out: weight gradients.
"""

import inspect
import math
import sys
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
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

STORY = (Path(__file__).parent / "explain.txt").read_text(encoding="utf-8")  # its words in braces are filled in
STAGES = "start", "predict", "gate", "solve", "align", "advantages", "update", "imitate"
WIDTH, LONGEST_TEXT = 100, 600  # columns of a terminal; characters shown of a text from a model or a file
SHOWN_PROBLEMS, SHOWN_SOLUTIONS, SHOWN_TOKENS = 3, 8, 8
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
    print(*Story(train.make_trainer(options, kind=kind)).lines(), sep="\n")


def safe(text: str) -> str:
    """Return a text as a terminal may show it: control characters escaped, the middle of a long one left out."""
    if len(text) > LONGEST_TEXT:
        half = LONGEST_TEXT // 2
        text = f"{text[:half]} [... {len(text) - 2 * half} characters left out ...] {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Story:
    """One step of a trainer, made when the story is, and the lines that tell it."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.options, self.policy = trainer, trainer.options, trainer.policy
        self.real_update, trainer.update = trainer.update, self.watched_update
        trainer.announce = lambda phase: print(f"{phase} ...", file=sys.stderr)
        self.figures, self.attempts = trainer.step(1)
        self.shown = [(f"problem {i}", attempt) for i, attempt in enumerate(self.attempts[:SHOWN_PROBLEMS], 1)]
        self.solved = [(name, attempt) for name, attempt in self.shown if attempt.solutions]

    def watched_update(self, samples: list[grpo.Sample], step: int) -> dict[str, Any]:
        """Make the trainer's update; keep its samples, each with its log-probs "before" and "after"."""
        self.keep("before", samples)
        figures = self.real_update(samples, step)
        self.keep("after", samples)
        self.samples = samples
        return figures

    @torch.no_grad()
    def keep(self, name: str, samples: Sequence[grpo.Sample]) -> None:
        """Keep log-probs in float32, whatever the update computes in: bf16 would round the change away."""
        o, keep = self.options, partial(grpo.keep, name)
        grpo.over_batches(self.policy.model, samples, keep, o.update.token_budget, o.sampling.temperature)

    def lines(self) -> Iterator[str]:
        """Yield the whole story, wrapped to the width of a terminal."""
        o = self.options
        std = "(reward - mean) / (std + 1e-6), std being the standard deviation"
        advantage = std if o.update.normalize_std else "reward - mean"
        agree = inspect.signature(masa.should_skip).parameters["std_threshold"].default
        words = STORY.format(o=o, s=o.sampling, scale=masa.PASS_RATE_SCALE, agree=agree, advantage=advantage)
        by_predictions = {"predict", "align", "imitate"} | (set() if o.run.variant else {"gate"})
        for stage, text in zip(STAGES, words.strip().split("\n\n"), strict=True):
            title, why = text.split("\n", 1)
            is_off = stage in by_predictions and not o.sampling.predictions
            for line in [title, *(["   Off: there are no predictions."] if is_off else [why, *getattr(self, stage)()])]:
                hang = " " * (len(line) - len(line.lstrip()) + 3 * line.startswith(" "))
                yield from textwrap.wrap(line, WIDTH, subsequent_indent=hang, break_on_hyphens=False)
            yield ""

    def start(self) -> Iterator[str]:
        run, model, data = self.options.run, self.options.model.model, self.options.data.data
        yield f"   model {safe(model)}, problems {safe(data)}, seed {run.seed}, variant {run.variant or 'none'}"
        if model == "tiny":
            yield "   This is the embedded policy before training: its predictions are random. After a run, compare"
            yield f"   python train.py --explain --model runs/{run.algo}-tiny-seed0/checkpoints/step-{run.steps}"

    def predict(self) -> Iterator[str]:
        yield f"   The first prompt: {safe(self.policy.decode(self.attempts[0].meta_rollouts[0].prompt_ids))}"
        for name, attempt in self.shown:
            yield f"   {name}: {safe(attempt.problem.text)}"
            for j, (rollout, said) in enumerate(zip(attempt.meta_rollouts, attempt.predictions, strict=True), 1):
                raw = f"cannot be read, earns nothing: {self.policy.decode(rollout.response_ids)}"
                yield f"      {j}: {safe(masa.render_meta(said) if said else raw)}"

    def gate(self) -> Iterator[str]:
        longest = self.options.sampling.max_new_tokens
        for name, attempt in self.shown:
            limit = attempt.limit or longest
            verdict = "SKIPPED" if attempt.skipped else f"solved, in up to {limit} tokens"
            if attempt.skipped != self.trainer.would_skip(attempt):
                verdict += " (by --gate off, --explore, --efficient-from or --variant)"
            yield f"   {name}: {verdict}"
            parsed = [said for said in attempt.predictions if said]
            if masa.predicted_pass_rate(attempt.predictions) is None:
                yield f"      {len(parsed)} of {len(attempt.predictions)} predictions can be read: too few to act on"
                continue
            rates, lengths = [said.pass_rate for said in parsed], sorted(said.solution_length for said in parsed)
            agree = "they agree" if masa.should_skip(attempt.predictions, margin=1) else "they disagree"
            yield f"      pass rates {rates}: mean {fmean(rates):.3f}, standard deviation {pstdev(rates):.3f}, {agree}"
            if attempt.limit and not attempt.skipped:
                times = f"{self.options.gate.cutoff:g} x their median {median(lengths):g}, rounded up"
                yield f"      lengths {lengths}: limit {limit} = {times}, at most {longest}"

    def solve(self) -> Iterator[str]:
        for name, attempt in self.solved:
            yield f"   {name}: {safe(self.policy.decode(attempt.solutions[0].prompt_ids))}"
            rows = list(zip(attempt.solutions, attempt.responses, attempt.correct, strict=True))
            for j, (rollout, text, right) in enumerate(rows[:SHOWN_SOLUTIONS], 1):
                length = f"{len(rollout.response_ids)} tokens{'' if rollout.finish_reason == 'stop' else ', cut off'}"
                yield f"      {j}: {'correct' if right else 'wrong'}, {length}: {safe(text)}"
            yield f"      {sum(attempt.correct)} of {len(rows)} correct, the answer is {safe(attempt.problem.answer)}"
        skipped, rate = sum(attempt.skipped for attempt in self.attempts), self.figures["train_pass_rate"] or 0.0
        yield f"   {skipped} of all {len(self.attempts)} problems skipped, mean pass rate of the others {rate:.3f}"

    def align(self) -> Iterator[str]:
        chosen, base = self.options.rewards.components, rewards.difficulty_reward(1, 0)  # base ^ 1
        for line in (rewards.__doc__ or "").splitlines():  # which says in a line what each reward is
            if line.startswith("    ") and line.split()[0] in rewards.COMPONENTS:
                yield line[1:]
        for name, attempt in self.solved:
            lengths, share = sorted(attempt.correct_lengths), f"{sum(attempt.correct)}/{len(attempt.correct)}"
            yield f"   {name}: pass rate {share} = {attempt.pass_rate:.3f}, correct lengths {lengths or 'none'}"
            for j, (said, earned) in enumerate(zip(attempt.predictions, attempt.alignments, strict=True), 1):
                if said is None:
                    yield f"      {j}: cannot be read: 0"
                    continue
                arithmetic = {
                    "length": f"{said.solution_length} {'inside' if earned.length else 'outside'}: ",
                    "difficulty": f"{base:g}^|{said.pass_rate:g} - {share}| = ",
                    "notion": f"{votes(attempt, said.notions)}: ",
                }
                values = {part: f"{getattr(earned, part):.4g}" for part in rewards.COMPONENTS}
                told = [f"{part} {arithmetic.get(part, '')}{value}" for part, value in values.items()]
                terms = ", ".join(values[part] for part in chosen) or "nothing"
                yield f"      {j}: {'; '.join(told)}; reward = mean of {terms} = {earned.mean(chosen):.4g}"

    def advantages(self) -> Iterator[str]:
        used = {id(sample.response_ids): f"{sample.advantage:+.3f}" for sample in self.samples}
        for name, attempt in self.solved:
            meta = [earned.mean(self.options.rewards.components) for earned in attempt.alignments]
            groups = [("solutions", attempt.solutions, [float(right) for right in attempt.correct])]
            for kind, rollouts, group in groups + ([("predictions", attempt.meta_rollouts, meta)] if meta else []):
                std = f", std {stdev(group):.4f}" if self.options.update.normalize_std and len(group) > 1 else ""
                own = [used[id(rollout.response_ids)] for rollout in rollouts if id(rollout.response_ids) in used]
                yield f"   {name}, {kind}: rewards {', '.join(f'{reward:.4g}' for reward in group)}"
                yield f"      mean {fmean(group):.4f}{std}; advantages {', '.join(own) or 'none, left out (--variant)'}"

    def update(self) -> Iterator[str]:
        loss, norm = (self.figures[name] or 0.0 for name in ("loss", "grad_norm"))
        rate = self.trainer.optimizer.param_groups[0]["lr"]
        yield f"   loss {loss:.4f}, gradient norm {norm:.3f} (clipped at {grpo.MAX_GRAD_NORM:g})"
        yield f"   {self.options.update.minibatches} x AdamW at learning rate {rate:g}"
        for kind, name in (("solution", "solutions"), ("meta", "predictions")):
            if samples := [sample for sample in self.samples if sample.kind == kind]:
                yield from self.pushes(name, samples)

    def pushes(self, name: str, samples: list[grpo.Sample]) -> Iterator[str]:
        """Yield how the samples of one kind were pushed, and how far their tokens moved."""
        zero, count = sum(sample.advantage == 0 for sample in samples), len(samples)
        weights = [sample.weight for sample in samples for _ in sample.response_ids]
        each = " to ".join(f"{weight:.6f}" for weight in sorted({min(weights), max(weights)}))
        yield f"   {count} {name}, {zero} of them ({zero / count:.0%}) with advantage 0, which push nothing"
        yield f"      {len(weights)} tokens, each of weight {each}, together {sum(weights):.4f}"
        if zero == count:
            return
        for sign, side in ((1, "above"), (-1, "below")):
            some = [sample for sample in samples if sign * sample.advantage > 0]
            old, new = (float(sum(sample.kept[when].sum() for sample in some)) for when in ("before", "after"))
            yield f"      {len(some)} with advantage {side} 0: sum of log p {old:.3f} -> {new:.3f}, {new - old:+.3f}"
        best = max(samples, key=lambda sample: sample.advantage)
        before, after, push = best.kept["before"].tolist(), best.kept["after"].tolist(), best.advantage * best.weight
        yield f"      the one of largest advantage: {safe(self.policy.decode(best.response_ids))}"
        yield f"      push on each of its tokens {best.advantage:+.3f} x {best.weight:.6f} = {push:+.6f}; least sure:"
        yield f"      {'token':<30}{'log p':>9}{'p':>8} {'-> p':>7}{'change of log p':>17}{'push x (1 - p)':>16}"
        for t in sorted(sorted(range(len(before)), key=before.__getitem__)[:SHOWN_TOKENS]):
            token, p = f"{t + 1} '{safe(self.policy.tokenizer.decode(best.response_ids[t]))[:20]}'", math.exp(before[t])
            moved = f"{math.exp(after[t]):>8.4f}{after[t] - before[t]:>+17.5f}{push * (1 - p):>+16.6f}"
            yield f"      {token:<30}{before[t]:>9.4f}{p:>8.4f}{moved}"

    def imitate(self) -> Iterator[str]:
        experts = dict(expert_answers([a for a in self.attempts if a.solutions], self.options.imitation))
        for name, attempt in self.solved:
            notion = max(earned.notion for earned in attempt.alignments)
            none = f"none: {sum(attempt.correct)} solutions correct, best notion reward {notion:.4g}"
            yield f"   {name}: {safe(experts.get(attempt.problem.text, none))}"
        loss, waiting = self.figures["expert_loss"], f"{len(self.trainer.experts)} of {train.EXPERT_BATCH} together"
        done = "nothing imitated yet" if loss is None else f"imitated after the update above, at loss {loss:.4f}"
        off = not (self.options.imitation.experts and self.trainer.expert_optimizer.param_groups[0]["lr"])
        yield "   not imitated (--no-experts, or the last of --steps)" if off else f"   {done}, {waiting}"


def votes(attempt: Attempt, notions: tuple[str, ...]) -> str:
    """Return for each notion in how many correct and wrong solutions it stands."""
    shown = []
    for notion in dict.fromkeys(" ".join(notion.casefold().split()) for notion in notions if notion.strip()):
        texts = [attempt.problem.text, *attempt.responses]
        named, *used = [rewards.notion_reward([notion], [text], [True], problem="") == 1 for text in texts]
        right = sum(there and correct for there, correct in zip(used, attempt.correct, strict=True))
        shown.append(f"{notion} {'in the problem' if named else f'{right}:{sum(used) - right}'}")
    return safe(", ".join(shown) or "none")
