"""One training step told in full, with real numbers: `python train.py --explain`, with any other options.

It is the trainer's own step: nothing is done over again here, only its update is watched, for the log-probs of the very
tokens it learns from, before and after. Nothing is written to disk. What a policy wrote is printed with its control
characters escaped, and shortened where it is long. A section of the story is a method of `Story`: its docstring is
printed, then the lines it yields. Left out: gradients.
"""

import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from statistics import fmean, median, pstdev, stdev
from typing import Any

import torch

import masa
from attempts import Attempt, experts
from engine import parallel
from engine.logprobs import Sequence, token_logprobs
from grpo import token_weights
from options import ALGORITHMS, OptionError, Options, preset
from rewards import notion_reward

WIDTH, LONGEST_TEXT = 100, 600  # columns of a terminal; characters of what others wrote
SHOWN_PROBLEMS, SHOWN_SOLUTIONS, SHOWN_TOKENS = 3, 8, 8
# Few problems, predictions acted on at once, and the full learning rate: a first step of a warm-up changes little.
DEFAULTS: dict[str, Any] = {
    "problems": 3,
    "samples": 6,
    "predictions": 4,
    "efficient_from": 1,
    "explore": 0.0,
    "warmup_steps": 0,
}


def tell(given: dict[str, Any], make_trainer: Callable) -> None:
    """Print the story of one step. given: from the command line.  make_trainer: of train.py.  Raises OptionError."""
    if unwanted := [name for name in ("out", "resume") if name in given]:
        raise OptionError(f"--{unwanted[0]}: --explain writes and resumes nothing; it takes a checkpoint by --model")
    if parallel.world() > 1:
        raise OptionError("--explain tells of one process: start it without torchrun")
    algo, model = given.get("algo", Options.algo), given.get("model", Options.model)
    options = Options(**preset(algo, model) | DEFAULTS | ALGORITHMS[algo] | given)
    print(*Story(make_trainer(options, options.model)).lines(), sep="\n")


def safe(text: str) -> str:
    """What others wrote, as a terminal may show it: control characters escaped, shortened in the middle."""
    if len(text) > LONGEST_TEXT:
        half = LONGEST_TEXT // 2
        text = f"{text[:half]} [... {len(text) - 2 * half} characters left out ...] {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Story:
    """One step of a trainer, made when the story is."""

    def __init__(self, trainer) -> None:
        self.trainer, self.o, self.policy = trainer, trainer.options, trainer.policy
        self.real_update, trainer.update = trainer.update, self.watched_update
        trainer.announce = lambda phase: print(f"{phase} ...", file=sys.stderr)
        self.figures, self.attempts = trainer.step(1)
        self.shown = [(f"problem {i}", attempt) for i, attempt in enumerate(self.attempts[:SHOWN_PROBLEMS], 1)]
        self.solved = [(name, attempt) for name, attempt in self.shown if attempt.solutions]

    def watched_update(self, sequences: list[Sequence], step: int) -> dict:
        """The trainer's update; keeps its sequences with the weight of their tokens, and log-probs before and after."""
        weights, before = token_weights(sequences, self.trainer.update_settings), self.logprobs(sequences)
        figures = self.real_update(sequences, step)
        self.rows = list(zip(sequences, weights, before, self.logprobs(sequences), strict=True))
        return figures

    @torch.no_grad()
    def logprobs(self, sequences: list[Sequence]) -> list[list[float]]:
        """In float32, whatever the update computes in: bf16 would round the change away."""
        return [token_logprobs(self.policy.model, [s], self.o.temperature).tolist() for s in sequences]

    def lines(self) -> Iterator[str]:
        for name in ("start", "predict", "gate", "solve", "align", "advantages", "update", "clone"):
            section = getattr(self, name)
            text = section.__doc__.format(o=self.o, ends="0 or 1" if self.o.gate_easy else "0")
            title, _, why = (" ".join(part.split()) for part in text.partition("\n\n"))
            off = name in ("predict", "gate", "align", "clone") and not self.o.predictions
            for line in [title, *(["   Off: there are no predictions."] if off else [why, *section()])]:
                hang = " " * (len(line) - len(line.lstrip()) + 3 * line.startswith(" "))
                yield from textwrap.wrap(line, WIDTH, subsequent_indent=hang, break_on_hyphens=False)
            yield ""

    def start(self) -> Iterator[str]:
        """One step of {o.algo}: {o.problems} problems, {o.predictions} predictions and {o.samples} solutions for each

        The idea: draw several answers to one question, score each, then make the tokens of the better ones more likely
        and those of the worse ones less. GRPO does so with solutions, MASA also with predictions of how these turn out.
        """
        yield f"   model {safe(self.o.model)}, problems {safe(self.o.data)}, seed {self.o.seed}; nothing is written"
        if self.o.model == "tiny":
            yield "   This is the embedded policy before training; its predictions are random. Once trained, look at"
            yield f"   python train.py --explain --model runs/{self.o.algo}-tiny-seed0/checkpoints/step-160"

    def predict(self) -> Iterator[str]:
        """1. PREDICT: how will my own attempts at this problem go?

        The policy is asked before it solves anything. Nobody labels the answers: they will be compared with what it
        then really does. They are short, so asking costs little beside solving.
        """
        yield f"   The first prompt: {safe(self.policy.decode(self.attempts[0].meta_rollouts[0].prompt_ids))}"
        for name, attempt in self.shown:
            yield f"   {name}: {safe(attempt.problem.text)}"
            for j, (rollout, said) in enumerate(zip(attempt.meta_rollouts, attempt.predictions, strict=True), 1):
                raw = f"cannot be read, earns nothing: {self.policy.decode(rollout.response_ids)}"
                yield f"      {j}: {safe(masa.render_meta(said) if said else raw)}"

    def gate(self) -> Iterator[str]:
        """2. GATE: is the problem worth solving, and how long may a solution get?

        Solutions are compared with one another: a problem that is all right or all wrong teaches nothing. It is skipped
        if the predicted pass rates agree (standard deviation below {o.gate_std:g}) on a mean within {o.gate_margin:g}
        of {ends}. And a solution far longer than predicted seldom ends well: it is stopped.
        """
        for name, attempt in self.shown:
            parsed = [said for said in attempt.predictions if said]
            rates, lengths = [said.pass_rate for said in parsed], sorted(said.solution_length for said in parsed)
            limit = attempt.limit or self.o.max_new_tokens
            verdict = "SKIPPED" if attempt.gated else f"solved, in up to {limit} tokens"
            if attempt.gated != self.trainer.predicted_useless(attempt):
                verdict += " (by --no-gate, --explore, --efficient-from, --select or --oracle-gate)"
            yield f"   {name}: {verdict}"
            if 2 * len(parsed) < len(attempt.predictions):
                yield "      fewer than half of its predictions can be read: nothing to go by"
                continue
            agree = "they agree" if pstdev(rates) < self.o.gate_std else "they disagree"
            yield f"      pass rates {rates}: mean {fmean(rates):.3f}, standard deviation {pstdev(rates):.3f}, {agree}"
            if attempt.limit and not attempt.gated:
                times = f"{self.o.cutoff_multiplier:g} x their median {median(lengths):g}, rounded up"
                yield f"      lengths {lengths}: limit {attempt.limit} = {times}, at most {self.o.max_new_tokens}"

    def solve(self) -> Iterator[str]:
        """3. SOLVE: draw several solutions of each problem. 4. VERIFY: which are right?

        One alone tells nothing; several of the same policy show which ways of going about it work. The reward is 1 if
        the boxed answer is the known one, else 0: no model judges.
        """
        for name, attempt in self.solved:
            yield f"   {name}: {safe(self.policy.decode(attempt.solutions[0].prompt_ids))}"
            rows = list(zip(attempt.solutions, attempt.responses, attempt.correct, strict=True))
            for j, (r, text, right) in enumerate(rows[:SHOWN_SOLUTIONS], 1):
                cut = "" if r.finish_reason == "stop" else ", cut off"
                yield f"      {j}: {'right' if right else 'wrong'}, {len(r.response_ids)} tokens{cut}: {safe(text)}"
            yield f"      {sum(attempt.correct)} of {len(rows)} right, the answer is {safe(attempt.problem.answer)}"
        if len(self.attempts) > SHOWN_PROBLEMS:
            skipped, rate = sum(attempt.gated for attempt in self.attempts), self.figures["train_pass_rate"] or 0.0
            yield f"   of all {len(self.attempts)} problems {skipped} skipped, pass rate of the others {rate:.3f}"

    def align(self) -> Iterator[str]:
        """5. ALIGN: how well did the predictions fit what happened?

        Length: 1 if the predicted one lies within those of the right solutions. Difficulty: 0.01 to the power of the
        error of the pass rate. Notions: the share that stand in more right than wrong solutions (right:wrong below);
        those that the problem itself names are left out.
        """
        for name, attempt in self.solved:
            lengths, share = sorted(attempt.correct_lengths), f"{sum(attempt.correct)}/{len(attempt.correct)}"
            yield f"   {name}: pass rate {share} = {attempt.pass_rate:.3f}, lengths of right ones {lengths or 'none'}"
            for j, (said, rewards) in enumerate(zip(attempt.predictions, attempt.alignments, strict=True), 1):
                if said is None:
                    yield f"      {j}: cannot be read: 0"
                    continue
                inside = bool(lengths) and lengths[0] <= said.solution_length <= lengths[-1]
                fits = f"{said.solution_length} {'inside' if inside else 'outside'}: {rewards.length:.4g}"
                error = f"0.01^|{said.pass_rate} - {share}| = {rewards.difficulty:.4g}"
                terms = ", ".join(f"{getattr(rewards, part):.4g}" for part in self.o.reward_components)
                mean = f"reward = mean of {terms} = {rewards.mean(self.o.reward_components):.4g}"
                yield f"      {j}: length {fits}; difficulty {error};"
                yield f"         notions {votes(attempt, said.notions)}: {rewards.notion:.4g}; {mean}"

    def advantages(self) -> Iterator[str]:
        """6. ADVANTAGES: was a rollout better or worse than the others of its group?

        A reward of 1 is no news where all have it. So each is compared with its own group, solutions and predictions
        of a problem apart: advantage = (reward - mean) / (std + 1e-6), std the standard deviation; 0 if all are equal.
        """
        of = {id(sequence.response_ids): sequence.advantage for sequence, *_ in self.rows}
        for name, attempt in self.solved:
            meta = [rewards.mean(self.o.reward_components) for rewards in attempt.alignments]
            groups = [("solutions", attempt.solutions, [float(right) for right in attempt.correct])]
            groups += [("predictions", attempt.meta_rollouts, meta)] if meta else []
            for what, rollouts, rewards in groups:
                mean, std = fmean(rewards), stdev(rewards) if len(rewards) > 1 else 0.0
                found = [f"{of[id(r.response_ids)]:+.3f}" for r in rollouts if id(r.response_ids) in of]
                advantages = ", ".join(found) or "none, left out (--dynamic-sampling)"
                yield f"   {name}, {what}: rewards {', '.join(f'{reward:.4g}' for reward in rewards)}"
                yield f"      mean {mean:.4f}, std {std:.4f}; advantages {advantages}"

    def update(self) -> Iterator[str]:
        """7. UPDATE: which tokens get how much of the loss, and what did it change?

        loss = -sum of weight x advantage x ratio over all tokens; the ratio, p now / p when drawn, is 1 at first. So
        weight x advantage is the push on the log-prob of a token. --aggregation {o.aggregation} sets the weights (1 /
        tokens for token-mean), for each kind apart, or the few tokens of predictions would hardly count; theirs are
        then multiplied by --meta-weight {o.meta_weight:g}. A sure token hardly moves: log p has the slope 1 - p by its
        own logit. And what is pushed up here may be pushed down harder in another rollout.
        """
        loss, norm = self.figures["loss"] or 0.0, self.figures["grad_norm"] or 0.0
        rate = f"AdamW at learning rate {self.trainer.optimizer.param_groups[0]['lr']:g}"
        parts = f", {self.o.minibatches} steps on parts with weights of their own" if self.o.minibatches > 1 else ""
        yield f"   loss {loss:.4f}, gradient norm {norm:.3f} (clipped at {self.o.max_grad_norm:g}), {rate}{parts}"
        for kind, name in (("solution", "solutions"), ("meta", "predictions")):
            if rows := [row for row in self.rows if row[0].kind == kind]:
                yield from self.pushes(name, rows)

    def pushes(self, name: str, rows: list[tuple]) -> Iterator[str]:
        """What the rollouts of one kind got of the loss, and what became of their tokens."""
        zero, weights = sum(s.advantage == 0 for s, *_ in rows), [w for s, w, *_ in rows for _ in s.response_ids]
        each = " to ".join(f"{weight:.6f}" for weight in sorted({min(weights), max(weights)}))
        yield f"   {len(rows)} {name}, {zero} of them ({zero / len(rows):.0%}) with advantage 0, which push nothing"
        yield f"      {len(weights)} tokens, each of weight {each}, together {sum(weights):.4f}"
        if zero == len(rows):
            return
        for sign, side in ((1, "above"), (-1, "below")):
            some = [row for row in rows if sign * row[0].advantage > 0]
            old, new = (sum(sum(row[k]) for row in some) for k in (2, 3))
            yield f"      {len(some)} with advantage {side} 0: sum of log p {old:.3f} -> {new:.3f}, {new - old:+.3f}"
        best, weight, before, after = max(rows, key=lambda row: row[0].advantage)
        ids, push = best.response_ids, best.advantage * weight
        yield f"      that of largest advantage: {safe(self.policy.decode(ids))}"
        yield f"      push on each of its tokens {best.advantage:+.3f} x {weight:.6f} = {push:+.6f}; the least sure:"
        yield f"      {'token':<30}{'log p':>9}{'p':>8} {'-> p':>7}{'change of log p':>17}{'push x (1 - p)':>16}"
        for t in sorted(sorted(range(len(ids)), key=before.__getitem__)[:SHOWN_TOKENS]):
            token, p = f"{t + 1} '{safe(self.policy.tokenizer.decode([ids[t]]))[:20]}'", math.exp(before[t])
            moved = f"{math.exp(after[t]):>8.4f}{after[t] - before[t]:>+17.5f}{push * (1 - p):>+16.6f}"
            yield f"      {token:<30}{before[t]:>9.4f}{p:>8.4f}{moved}"

    def clone(self) -> Iterator[str]:
        """8. CLONE THE EXPERTS: what should have been predicted?

        The update only chooses among what was said. So the prediction with the best notions (--expert-notion) is kept,
        with the true pass rate and the median length of right solutions, and imitated as in supervised training. Of a
        problem without right solutions, the first prediction is (--expert-failures), or success is all it learns; but
        there are never more of these than of the others, or failure is.
        """
        solved = [attempt for attempt in self.attempts if attempt.solutions]
        kept = dict(experts(solved, self.o.expert_failures, self.o.expert_notion))
        for name, attempt in self.solved:
            notion = max(rewards.notion for rewards in attempt.alignments)
            none = f"none: {sum(attempt.correct)} solutions right, best notion reward {notion:.4g}"
            yield f"   {name}: {safe(kept.get(attempt.problem.text, none))}"
        loss, waiting = self.figures["expert_loss"], f"{len(self.trainer.experts)} of {self.o.expert_batch} together"
        done = "nothing imitated yet" if loss is None else f"imitated after the update above, at loss {loss:.4f}"
        yield f"   {done}, {waiting} (--expert-batch)" if self.o.experts else "   not imitated (--no-experts)"


def votes(attempt: Attempt, notions: tuple[str, ...]) -> str:
    """For each notion, in how many right and wrong solutions it stands."""
    shown = []
    for notion in dict.fromkeys(" ".join(notion.casefold().split()) for notion in notions if notion.strip()):
        texts = [attempt.problem.text, *attempt.responses]
        named, *said = [notion_reward([notion], [text], [True], problem="") == 1 for text in texts]
        right = sum(found and correct for found, correct in zip(said, attempt.correct, strict=True))
        shown.append(f"{notion} {'in the problem' if named else f'{right}:{sum(said) - right}'}")
    return safe(", ".join(shown) or "none")
