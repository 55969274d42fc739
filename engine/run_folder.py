"""Write and read the folder of a run, so that nothing is lost when the run dies.

    config.json          every option of the run
    metrics.jsonl        one object per step; docs/glossary.md explains every name
    rollouts.jsonl       a few whole transcripts per step
    evaluations.jsonl    each evaluation, problem by problem, for lab/report.py
    checkpoints/step-N/  a model directory (safetensors), trainer.pt (all other state), whole.json (checksums)

A checkpoint is written under another name, flushed to the disk, and put in place with a single rename, so it is either
whole or not there. Disks fail and folders are copied halfway, so a resumed run checks it nevertheless, against the
checksums and against metrics.jsonl. Two things need no saved state: the learning rate follows from the step, and every
random stream is named by the seed, the step and its purpose (`Trainer.stream`).

With several processes all ranks call the same methods: rank 0 writes, and every rank holds the same rows.
Left out: saving in the background while training continues, and one file per process for a sharded model.
"""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError

from engine import parallel

STATE, MANIFEST = "trainer.pt", "whole.json"
ECHO_SECONDS = 1.0  # torchrun repeats a Ctrl-C that its processes have had already; this soon it is not a second one
MAX_BAD_STEPS = 5  # steps in a row with a gradient that is not finite: training will not recover


class RunError(RuntimeError):
    """A run cannot continue; the message says why, and from what it can be resumed."""


class RunFolder:
    """The folder of one run: what it has logged so far, and its checkpoints.

    rows: the rows of metrics.jsonl.  checkpoint: what the run resumes from, or None.
    """

    def __init__(self, path: Path, config: dict[str, Any], resume: bool, keep: int) -> None:
        """Find where the run resumes; nothing is written before `restore`.

        config: all options, for config.json.  keep: number of checkpoints to keep.  Raises RunError if the folder holds
        checkpoints, but none that can be used.
        """
        self.path, self.config, self.keep = path, config, keep
        rows = read_rows(path / "metrics.jsonl") if resume else []
        # One rank looks for all: they must agree on the checkpoint.
        self.checkpoint: Path | None = parallel.from_first(lambda: _newest_whole(path, rows) if resume else None)
        self.last = _step(self.checkpoint) if self.checkpoint else -1
        self.rows = [row for row in rows if row["step"] <= self.last]
        self.wall_before = self.rows[-1]["wall_s"] if self.rows else 0.0
        self.started = time.monotonic()

    def restore(self, trainer: Any) -> int:
        """Give the trainer the state of the checkpoint and remove from the folder what came after it.

        The trainer's policy is loaded from `checkpoint` already. Returns the last step done, -1 if there is none.
        Raises RunError if the folder cannot be written, or if the state is more than plain data: it is never run.
        """
        if self.checkpoint:
            _set_state(trainer, self.checkpoint / STATE)
        parallel.wait()  # all ranks have read the folder before rank 0 changes it
        if parallel.rank() == 0:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                replace_text(self.path / "config.json", json.dumps(self.config, indent=2) + "\n")
                for name in ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl"):
                    kept = [row for row in read_rows(self.path / name) if row["step"] <= self.last]
                    replace_text(self.path / name, "".join(json.dumps(row) + "\n" for row in kept))
                self._tidy()
        return self.last

    def _tidy(self) -> None:
        """Rename checkpoints that cannot be used, and delete what a killed run had no time to delete."""
        for path in (self.path / "checkpoints").glob("writing-*"):
            shutil.rmtree(path)
        for path in checkpoints(self.path):
            if _step(path) > self.last:
                unusable = path.with_name(f"unusable-{path.name}")
                shutil.rmtree(unusable, ignore_errors=True)
                os.replace(path, unusable)
        self._delete_older()

    def _delete_older(self) -> None:
        for path in checkpoints(self.path)[: -self.keep]:
            shutil.rmtree(path)

    def log(self, step: int, figures: dict[str, Any], transcripts: list[dict]) -> None:
        """Append a step to metrics.jsonl and its transcripts to rollouts.jsonl.

        A figure that is not finite becomes null.  Raises RunError if the folder cannot be written.
        """
        wall = round(self.wall_before + time.monotonic() - self.started, 3)
        infinite = {name: None for name, value in figures.items() if isinstance(value, float) and not isfinite(value)}
        self.rows.append({"step": step, "wall_s": wall, **figures, **infinite})
        self._append("rollouts.jsonl", transcripts)
        self._append("metrics.jsonl", self.rows[-1:])

    def log_evaluation(self, step: int, training_s: float, problems: list[dict]) -> None:
        """Append an evaluation to evaluations.jsonl.

        training_s: seconds of training so far, without evaluations.  problems: their transcripts.  Raises RunError.
        """
        self._append("evaluations.jsonl", [{"step": step, "training_s": round(training_s, 3), "problems": problems}])

    def _append(self, name: str, rows: list[dict]) -> None:
        if parallel.rank() > 0:
            return
        with writing(self.path), open(self.path / name, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())  # on the disk before a checkpoint of this step may be there

    def save(self, trainer: Any, step: int) -> None:
        """Write the checkpoint of the step that was logged last, then delete all but the newest ones.

        Raises RunError, with the earlier checkpoints untouched, if the folder cannot be written.
        """
        weights, state = _state_of(trainer)  # all ranks, because a sharded model is gathered from all
        if parallel.rank() > 0:
            return
        directory = self.path / "checkpoints" / f"step-{step}"
        aside = directory.with_name(f"writing-{directory.name}")
        with writing(self.path):
            shutil.rmtree(aside, ignore_errors=True)
            try:
                trainer.policy.save(aside, weights)
                torch.save(state, aside / STATE)
                (aside / MANIFEST).write_text(json.dumps({"row": self.rows[-1], "files": _checksums(aside)}))
                for path in [*aside.rglob("*"), aside]:
                    flush(path)
                os.replace(aside, directory)
                flush(directory.parent)
            finally:
                shutil.rmtree(aside, ignore_errors=True)  # a failed one may be what fills the disk
            self._delete_older()


def _state_of(trainer: Any) -> tuple[dict | None, dict[str, Any]]:
    """Return the gathered weights of a sharded model (None for any other) and all other state, on rank 0."""
    model = trainer.policy.model
    with torch.no_grad():
        weights = parallel.whole_state(dict(model.named_parameters())) if parallel.is_sharded(model) else None
    return weights, {
        "drawn": trainer.drawn,
        "counters": dict(trainer.counters),
        "experts": list(trainer.experts),
        "explored": list(trainer.explored),
        "optimizer": parallel.whole_state(trainer.optimizer.state_dict()),
        "expert_optimizer": parallel.whole_state(trainer.expert_optimizer.state_dict()),
    }


def _set_state(trainer: Any, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(f"{path}: expected only numbers, texts and tensors, found other objects; not loaded") from error
    trainer.drawn, trainer.counters = state["drawn"], Counter(state["counters"])
    trainer.experts = [tuple(pair) for pair in state["experts"]]
    trainer.explored.extend(tuple(judged) for judged in state["explored"])
    parameters = list(trainer.policy.model.parameters())
    for name in ("optimizer", "expert_optimizer"):
        getattr(trainer, name).load_state_dict(parallel.split_state(state[name], parameters))


# ---- finding and reading


def choose_folder(out: str, name: str, resume: bool) -> Path:
    """Return the folder for a run: `out` or, if that is empty, runs/NAME, numbered if there are several.

    A run that resumes takes the newest of those.  Raises RunError if `out` holds a run that is not to be resumed.
    """
    if out:
        if not resume and (Path(out) / "metrics.jsonl").exists():
            raise RunError(f"--out {out}: holds a run already; add --resume to continue it, or name another folder")
        return Path(out)
    first = Path("runs", name)
    existing = [first, *(path for n in range(2, 1000) if (path := Path("runs", f"{name}-{n}")).exists())]
    if resume:
        return existing[-1]
    return first.with_name(f"{name}-{len(existing) + 1}") if (first / "metrics.jsonl").exists() else first


def read_rows(path: Path) -> list[dict]:
    """Read the rows of a .jsonl file that have a step, without a torn last line, as a killed run leaves it."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def read_config(run: Path) -> dict[str, Any]:
    """Return the options of a run, empty if the folder holds none.  Raises RunError if they cannot be read."""
    path = run / "config.json"
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise RunError(f"{path}: expected JSON, found {error}; start again with another --out") from error


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    paths = (run / "checkpoints").glob("step-*")
    return sorted((path for path in paths if path.name.removeprefix("step-").isdecimal()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _newest_whole(run: Path, rows: list[dict]) -> Path | None:
    """Return the newest checkpoint that is whole and belongs to these rows, and print the faults of newer ones."""
    paths = checkpoints(run)
    for directory in reversed(paths):
        fault = _fault(directory, rows)
        if not fault:
            return directory
        print(f"{directory} cannot be used: {fault}")
    if paths:
        raise RunError(f"{run}: none of its {len(paths)} checkpoints can be used; start again with another --out")
    print(f"{run} holds no checkpoint: nothing to resume, starting at step 0")
    return None


def _fault(directory: Path, rows: list[dict]) -> str:
    """Return what keeps a checkpoint from being used, or an empty string."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        files, row, step = manifest["files"], manifest["row"], manifest["row"]["step"]
        found = _checksums(directory)
    except (OSError, ValueError, KeyError, TypeError):
        return f"not written by train.py: expected a readable {MANIFEST} that lists its files"
    damaged = sorted(name for name in files.keys() | found.keys() if files.get(name) != found.get(name))
    if damaged:
        return f"torn: {', '.join(damaged)} differ from what was written"
    if directory.name != f"step-{step}" or row not in rows:
        return "foreign: metrics.jsonl of this run has no such step, or has it with other figures"
    return ""


def _checksums(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but the manifest. Names in a manifest are only compared, never opened."""
    sums = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with open(path, "rb") as file:
                sums[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


# ---- writing


@contextlib.contextmanager
def writing(run: Path) -> Iterator[None]:
    """Raise RunError, naming the folder, if writing inside fails: the disk is full, or the folder read-only."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # the last two come from safetensors and torch.save
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(
            f"cannot write to {run}: {reason}\n"
            "Earlier checkpoints are untouched. Make room or make the folder writable, then add --resume."
        ) from error


def flush(path: Path) -> None:
    """Wait until the disk holds a file or folder, before anything relies on it (Windows cannot do it for folders)."""
    if os.name != "nt":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Replace a text file with a single rename: a process that is killed meanwhile leaves the old one."""
    aside = path.with_name(f"writing-{path.name}")
    aside.write_text(text)
    flush(aside)
    os.replace(aside, path)


# ---- ending


class Stopped(Exception):
    """The run was asked to end, and ended after a whole step; `number` is that of the signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class StopRequest:
    """A context in which Ctrl-C and SIGTERM are only noted, so that the current step can finish.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """

    number, since = 0, 0.0  # the first signal that came, and when

    def __enter__(self) -> "StopRequest":
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT and time.monotonic() - self.since > ECHO_SECONDS:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self.since = number, time.monotonic()
            with contextlib.suppress(OSError):  # not print, because a handler may interrupt a print
                os.write(2, b"\nending after this step, with a checkpoint; press Ctrl-C again to end at once\n")

    def requested(self) -> int:
        """Return the number of the signal that any rank has noted, or 0. All ranks must call this."""
        return parallel.largest(self.number)


def check_health(model: Any, bad_steps: int, step: int) -> None:
    """Raise RunError if training cannot recover, before a checkpoint is written over a good one.

    bad_steps: how many steps in a row, up to this one, had a gradient that was not finite.
    """
    parts = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]  # this rank's, if sharded
    finite = not parallel.largest(not all(bool(part.isfinite().all()) for part in parts))
    if finite and bad_steps < MAX_BAD_STEPS:
        return
    fault = f"the gradient was not finite {bad_steps} times in a row" if finite else "a weight is not finite"
    raise RunError(
        f"step {step}: {fault}. The last checkpoint is good: resume from it with a lower --lr (or --expert-lr) or a "
        "longer --warmup-steps. A reward or a log-prob may also be at fault."
    )


# ---- what a person sees of a run


def live(rows: Sequence[dict]) -> str:
    """Return the figures that a person wants to see while waiting."""
    row, shown = rows[-1], []
    evaluated = [r["eval_pass1"] for r in rows if r.get("eval_pass1") is not None]
    if row.get("train_pass_rate") is not None:
        shown.append(f"right {row['train_pass_rate']:.2f}")
    if row.get("gated_frac"):
        shown.append(f"gated {row['gated_frac']:.0%}")
    shown.append(f"tokens {(row['tokens_solution'] + row['tokens_meta']) / 1e6:.2f}M")
    return ", ".join(shown + [f"held-out pass@1 {value:.3f}" for value in evaluated[-1:]])


def summary(rows: Sequence[dict]) -> str:
    """Return a table of the held-out figures before and after training, and of what the training cost."""
    evaluated = [row for row in rows if row.get("eval_pass1") is not None]
    first, last = evaluated[0], evaluated[-1]
    steps = [f"step {row['step']}" for row in (first, last)]
    lines = [f"{'held-out problems':<28}{steps[0]:>10}{steps[1]:>10}{'change':>10}"]
    for name in ["eval_pass1", *(name for name in last if name.startswith("eval_reward_"))]:
        before, after = first.get(name), last.get(name)
        label = "pass@1" if name == "eval_pass1" else f"{name.removeprefix('eval_reward_')} reward"
        if before is not None and after is not None:
            lines.append(f"{label:<28}{before:>10.3f}{after:>10.3f}{after - before:>+10.3f}")

    def count(label: str, name: str) -> str:
        return f"{label:<28}{last.get(name, 0):>10,}"

    def share(label: str, name: str) -> str:
        shares = [row[name] for row in rows if row.get(name)]
        return f"{label:<28}{sum(shares) / max(1, len(shares)):>10.1%} of a batch, in {len(shares)} steps"

    lines += ["", count("tokens in solutions", "tokens_solution"), count("tokens in predictions", "tokens_meta")]
    lines += [share("problems gated", "gated_frac"), share("solutions cut", "cutoff_frac")]
    lines.append(count("expert predictions imitated", "experts_cloned"))
    lines.append(count("predictions not parsed", "unparsed_predictions"))
    if last.get("skipped_updates"):
        lines.append(count("updates lost", "skipped_updates") + " to gradients that were not finite")
    return "\n".join([*lines, f"{'wall time':<28}{last['wall_s']:>9.0f}s"])
