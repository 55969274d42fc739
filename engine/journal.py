"""What a run leaves behind, and what a person sees of it.

A run folder holds config.json (every option), metrics.jsonl (one object a step, each name explained in the README),
rollouts.jsonl (a few whole transcripts a step), evaluations.jsonl (each evaluation, problem by problem: what report.py
shows) and checkpoints/step-N (a model directory, and what --resume needs).
"""

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError

from attempts import Attempt, generated_tokens
from options import Options
from rewards import COMPONENTS, mean_rewards


class RunError(RuntimeError):
    """A run cannot go on; the message says why, and what is there to go on from."""


@contextlib.contextmanager
def writing(run: Path) -> Iterator[None]:
    """Raise RunError, naming the folder, if what is written inside fails: disk full, not writable, quota."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # the last two: how safetensors and torch.save say it
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(
            f"cannot write to {run}: {reason}\n"
            "Earlier checkpoints are as they were: make room or make it writable, then add --resume."
        ) from error


def flush(path: Path) -> None:
    """Have the disk hold a file or a folder before anything relies on it (Windows offers no such call for folders)."""
    if os.name != "nt":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a text file aside and put it in place in one move: whoever is killed meanwhile leaves the old one."""
    aside = path.with_name(f"writing-{path.name}")
    aside.write_text(text)
    flush(aside)
    os.replace(aside, path)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def read_rows(path: Path) -> list[dict]:
    """The whole lines of a .jsonl file, each a step; a torn line, as a killed run leaves it, is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def transcript(step: int, attempt: Attempt) -> dict:
    """One problem as a person wants to read it: what was predicted, what happened, one right and one wrong solution."""
    shown = {right: text for text, right in zip(attempt.responses, attempt.correct, strict=True)}
    return {
        "step": step,
        "problem": attempt.problem.text,
        "answer": attempt.problem.answer,
        "level": attempt.problem.level,
        "gated": attempt.gated,
        "exploring": attempt.exploring,
        "limit": attempt.limit,
        "hint": attempt.hint,
        "predictions": [prediction and dataclasses.asdict(prediction) for prediction in attempt.predictions],
        "rewards": [dataclasses.asdict(rewards) for rewards in attempt.alignments],
        "pass_rate": attempt.pass_rate if attempt.correct else None,
        "correct": [int(right) for right in attempt.correct],
        "lengths": [len(rollout.response_ids) for rollout in attempt.solutions],
        "tokens_meta": generated_tokens(attempt.meta_rollouts),
        "right_solution": shown.get(True),
        "wrong_solution": shown.get(False),
    }


def step_figures(attempts: Sequence[Attempt], explored: Collection[tuple[bool, bool, int, int]]) -> dict:
    """The figures of one step; None where nothing defines them. Each is explained in the README.

    explored: of the last explored problems (would be gated, zero variance, solutions beyond the limit, right of these).
    """
    solved = [attempt for attempt in attempts if attempt.solutions]
    solutions = [rollout for attempt in solved for rollout in attempt.solutions]
    predictions = [prediction for attempt in attempts for prediction in attempt.predictions]
    alignments = [rewards for attempt in solved for rewards in attempt.alignments]
    beyond_limit = sum(beyond for _, _, beyond, _ in explored)
    return {
        "train_pass_rate": _mean([attempt.pass_rate for attempt in solved]),
        "zero_variance_frac": _mean([attempt.zero_variance for attempt in solved]),
        "mean_length": _mean([len(rollout.response_ids) for rollout in solutions]),
        "truncated_frac": _mean([rollout.finish_reason == "length" for rollout in solutions]),
        "entropy": _mean([-logprob for rollout in solutions for logprob in rollout.logprobs]),
        "gated_frac": _mean([attempt.gated for attempt in attempts]),
        "cutoff_frac": _mean([rollout.finish_reason == "cutoff" for rollout in solutions]),
        "gate_precision": _mean([useless for gated, useless, _, _ in explored if gated]),
        "gate_recall": _mean([gated for gated, useless, _, _ in explored if useless]),
        "wrongly_cut_frac": sum(r for *_, r in explored) / beyond_limit if beyond_limit else None,
        "parsed_frac": _mean([prediction is not None for prediction in predictions]),
        **mean_rewards(alignments),
    }


def _mean(values: list) -> float | None:
    return sum(values) / len(values) if values else None


def _until(path: Path, last_step: int) -> list[dict]:
    return [row for row in read_rows(path) if row["step"] <= last_step]


class RunFolder:
    """metrics.jsonl and rollouts.jsonl of a run; on resume what lies beyond the checkpoint is dropped."""

    def __init__(self, path: Path, options: Options, last_step: int, writes: bool = True) -> None:
        """`last_step`: of the checkpoint that the run goes on from, -1 if it starts.  Raises RunError.

        `writes`: of several processes only one does; the others hold the same rows.
        """
        self.path, self.writes = path, writes
        if not writes:
            self.rows = _until(path / "metrics.jsonl", last_step)
        else:
            self._start(options, last_step)
        self.wall_before = self.rows[-1]["wall_s"] if self.rows else 0.0
        self.started = time.monotonic()

    def _start(self, options: Options, last_step: int) -> None:
        path = self.path
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            replace_text(path / "config.json", json.dumps(dataclasses.asdict(options), indent=2) + "\n")
            self.rows = self._rewind("metrics.jsonl", last_step)
            self._rewind("rollouts.jsonl", last_step)
            self._rewind("evaluations.jsonl", last_step)

    def _rewind(self, name: str, last_step: int) -> list[dict]:
        """Keep the whole lines up to `last_step`: a killed run may have left later ones, and a torn one."""
        kept = _until(self.path / name, last_step)
        replace_text(self.path / name, "".join(json.dumps(row) + "\n" for row in kept))
        return kept

    def _append(self, name: str, rows: list[dict]) -> None:
        with open(self.path / name, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())  # before a checkpoint of this step may be there

    def log(self, step: int, figures: dict, transcripts: list[dict]) -> None:
        """Append one step; a figure that is not finite is not defined, hence null.  Raises RunError."""
        wall = round(self.wall_before + time.monotonic() - self.started, 3)
        row = {"step": step, "wall_s": wall} | {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in figures.items()
        }
        self.rows.append(row)
        if not self.writes:
            return
        with writing(self.path):
            self._append("rollouts.jsonl", transcripts)
            self._append("metrics.jsonl", [row])

    def log_evaluation(self, step: int, training_s: float, attempts: Sequence[Attempt]) -> None:
        """Append an evaluation, problem by problem.  training_s: seconds so far without evaluations and probes.

        Raises RunError.
        """
        if self.writes:
            problems = [transcript(step, attempt) for attempt in attempts]
            with writing(self.path):
                row = {"step": step, "training_s": round(training_s, 3), "problems": problems}
                self._append("evaluations.jsonl", [row])


def live(rows: list[dict]) -> str:
    """The figures that a person wants to see while waiting."""
    row, shown = rows[-1], []
    evaluated = [r["eval_pass1"] for r in rows if r["eval_pass1"] is not None]
    if row["train_pass_rate"] is not None:
        shown.append(f"right {row['train_pass_rate']:.2f}")
    if row["gated_frac"]:
        shown.append(f"gated {row['gated_frac']:.0%}")
    shown.append(f"tokens {(row['tokens_solution'] + row['tokens_meta']) / 1e6:.2f}M")
    return ", ".join([*shown, f"held-out pass@1 {evaluated[-1]:.3f}"])


def summary(rows: list[dict]) -> str:
    """Before and after on held-out problems, and what it cost, as a table."""
    evaluated = [row for row in rows if row["eval_pass1"] is not None]
    first, last = evaluated[0], evaluated[-1]
    lines = [
        f"{'held-out problems':<28}{'step ' + str(first['step']):>10}{'step ' + str(last['step']):>10}{'change':>10}"
    ]
    labels = {"eval_pass1": "pass@1"} | {f"eval_reward_{name}": f"{name} reward" for name in COMPONENTS}
    for name, label in labels.items():
        if first[name] is not None and last[name] is not None:
            lines.append(f"{label:<28}{first[name]:>10.3f}{last[name]:>10.3f}{last[name] - first[name]:>+10.3f}")
    gated = [row["gated_frac"] for row in rows if row["gated_frac"]]
    cut = [row["cutoff_frac"] for row in rows if row["cutoff_frac"]]
    lines += [
        "",
        f"{'tokens in solutions':<28}{last['tokens_solution']:>10,}",
        f"{'tokens in predictions':<28}{last['tokens_meta']:>10,}",
        f"{'problems gated':<28}{sum(gated) / len(gated) if gated else 0:>10.1%} of a batch, in {len(gated)} steps",
        f"{'solutions cut':<28}{sum(cut) / len(cut) if cut else 0:>10.1%} of a batch, in {len(cut)} steps",
        f"{'expert predictions imitated':<28}{last['experts_cloned']:>10,}",
        f"{'predictions not parsed':<28}{last['unparsed_predictions']:>10,}",
    ]
    if last["skipped_updates"]:
        lines.append(f"{'updates lost':<28}{last['skipped_updates']:>10,} to gradients that were not finite")
    lines.append(f"{'wall time':<28}{last['wall_s']:>9.0f}s")
    return "\n".join(lines)
