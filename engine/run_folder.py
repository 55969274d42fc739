"""Write and read the folder of a run, so that nothing is lost when the run dies.

    config.json          every option of the run (config-until-step-N.json: those before it was resumed with others)
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
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch
from safetensors import SafetensorError

from engine import parallel
from engine.command_line import OptionError

try:
    import fcntl
except ImportError:  # on Windows, where nothing keeps two processes out of one folder
    fcntl = None  # type: ignore[assignment]

STATE, MANIFEST, LOCK = "trainer.pt", "whole.json", "lock"
FIXED = "algo", "variant", "model", "data", "levels", "seed"  # what a run is of; no --resume changes it
ECHO_SECONDS = 1.0  # torchrun repeats a Ctrl-C that its processes have had already; this soon it is not a second one
MAX_BAD_STEPS = 5  # steps in a row with a gradient that is not finite: training will not recover


class RunError(ValueError):
    """A run cannot start or continue; the message says why, and from what it can be resumed."""


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
        self.writes, self.sharded = parallel.rank() == 0, config.get("shard", False)
        rows = read_rows(path / "metrics.jsonl") if resume else []
        # One rank looks for all: they must agree on the checkpoint.
        found = parallel.spread(lambda runs: [_newest_whole(run, rows) for run in runs], [path] if resume else [])
        self.checkpoint: Path | None = found[0] if found else None
        self.last = _step(self.checkpoint) if self.checkpoint else -1
        self.rows = [row for row in rows if row["step"] <= self.last]
        # As if the run had started when its rows say, so that the time between the two is not counted.
        self.started = time.monotonic() - (self.rows[-1]["wall_s"] if self.rows else 0.0)

    def restore(self, trainer: Any) -> int:
        """Give the trainer the state of the checkpoint and remove from the folder what came after it.

        The trainer's policy is loaded from `checkpoint` already. Returns the last step done, -1 if there is none.
        Raises RunError if the folder cannot be written, or if the state is more than plain data: it is never run.
        """
        if self.checkpoint:
            self._load_state(trainer, self.checkpoint / STATE)
        parallel.wait()  # all ranks have read the folder before rank 0 changes it
        if not self.writes:
            return self.last
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            texts = {"config.json": json.dumps(self.config, indent=2) + "\n"}
            before = read_config(self.path)
            changed = {name for name in before if before[name] != self.config.get(name)} - {"out", "resume"}
            if self.last >= 0 and changed:
                texts[f"config-until-step-{self.last}.json"] = json.dumps(before, indent=2) + "\n"
            for name in ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl"):
                kept = [row for row in read_rows(self.path / name) if row["step"] <= self.last]
                texts[name] = "".join(json.dumps(row) + "\n" for row in kept)
            for name, text in texts.items():  # each by a rename: if the process is killed meanwhile, the old one stays
                aside = self.path / f"writing-{name}"
                aside.write_text(text)
                put_in_place(aside, self.path / name)
            for path in checkpoints(self.path):
                if _step(path) > self.last:  # it cannot be used, but someone may need it
                    unusable = path.with_name(f"unusable-{path.name}")
                    shutil.rmtree(unusable, ignore_errors=True)
                    os.replace(path, unusable)
            self._delete_older()
        return self.last

    def _load_state(self, trainer: Any, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise RunError(f"{path}: expected only numbers, texts and tensors, found other objects") from error
        if state["data"] != trainer.source.checksum:
            raise RunError(f"--resume: the problems of {trainer.source.name} are others than when {path} was written")
        trainer.drawn, trainer.counters = state["drawn"], Counter(state["counters"])
        trainer.experts, trainer.lessons = ([tuple(pair) for pair in state[name]] for name in ("experts", "lessons"))
        trainer.explored.extend(tuple(judged) for judged in state["explored"])
        for name in ("optimizer", "expert_optimizer"):
            if self.sharded:
                parallel.split_state(state[name], list(trainer.policy.model.parameters()))
            getattr(trainer, name).load_state_dict(state[name])

    def _delete_older(self) -> None:
        for path in checkpoints(self.path)[: -self.keep]:
            shutil.rmtree(path)

    def log(self, step: int, figures: dict[str, Any], transcripts: list[dict]) -> None:
        """Append a step to metrics.jsonl and its transcripts to rollouts.jsonl.

        A figure that is not finite becomes null.  Raises RunError if the folder cannot be written.
        """
        infinite = {name: None for name, value in figures.items() if isinstance(value, float) and not isfinite(value)}
        wall = round(time.monotonic() - self.started, 3)
        self.rows.append({"step": step, "wall_s": wall, **figures, **infinite})
        self._append("rollouts.jsonl", transcripts)
        self._append("metrics.jsonl", self.rows[-1:])

    def log_evaluation(self, step: int, training_s: float, problems: list[dict]) -> None:
        """Append an evaluation to evaluations.jsonl.

        training_s: seconds of training so far, without evaluations.  problems: their transcripts.  Raises RunError.
        """
        self._append("evaluations.jsonl", [{"step": step, "training_s": round(training_s, 3), "problems": problems}])

    def _append(self, name: str, rows: list[dict]) -> None:
        if not self.writes:
            return
        with writing(self.path), open(self.path / name, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())  # on the disk before a checkpoint of this step may be there

    def save(self, trainer: Any, step: int) -> None:
        """Write the checkpoint of the step that was logged last, then delete all but the newest ones.

        Raises RunError, with the earlier checkpoints untouched, if the folder cannot be written.
        """
        whole = parallel.whole_state if self.sharded else lambda state: state  # a sharded model: all ranks gather it
        weights = whole(dict(trainer.policy.model.named_parameters())) if self.sharded else None
        state = {
            "data": trainer.source.checksum,
            "drawn": trainer.drawn,
            "counters": dict(trainer.counters),
            "experts": list(trainer.experts),
            "lessons": list(trainer.lessons),
            "explored": list(trainer.explored),
            "optimizer": whole(trainer.optimizer.state_dict()),
            "expert_optimizer": whole(trainer.expert_optimizer.state_dict()),
        }
        if not self.writes:
            return
        aside = self.path / "checkpoints" / "writing"
        with writing(self.path):
            shutil.rmtree(aside, ignore_errors=True)  # a killed run had no time to delete it
            try:
                trainer.policy.save(aside, weights)
                torch.save(state, aside / STATE)
                (aside / MANIFEST).write_text(json.dumps({"row": self.rows[-1], "files": _checksums(aside)}))
                put_in_place(aside, self.path / "checkpoints" / f"step-{step}")
            finally:
                shutil.rmtree(aside, ignore_errors=True)  # a failed one may be what fills the disk
            self._delete_older()


# ---- finding and reading


@contextlib.contextmanager
def hold(out: str, name: str, resume: bool) -> Iterator[Path]:
    """Choose the folder of a run, and keep other processes out of it for as long as the context lasts.

    It is `out` or, if that is empty, the first of runs/NAME, runs/NAME-2 ... that neither holds a run nor is held by
    another process; a run that resumes takes the last of those there are. With several processes, rank 0 chooses and
    holds it for all. Raises RunError if there is no such folder. One that is empty in the end is removed.
    """
    paths = [Path(out)] if out else [Path("runs", name), *(Path("runs", f"{name}-{n}") for n in range(2, 1000))]
    if resume:
        paths = [path for path in paths if path.exists()][-1:] or paths[:1]
    locks: list[IO] = []

    def choose(paths: Sequence[Path]) -> Path:
        for path in paths:
            reason = "holds a run already; add --resume to continue it, or name another folder"
            if resume or not (path / "metrics.jsonl").exists():
                reason = "another process is training into it; wait until it ends, or name another folder"
                if lock := _lock(path):
                    locks.append(lock)
                    return path
        raise RunError(f"--out {path}: {reason}")

    [path] = parallel.spread(lambda choices: [choose(paths) for paths in choices], [paths])
    try:
        yield path
    finally:
        for lock in locks:
            with contextlib.suppress(OSError):  # the folder is not empty, unless the run failed before it began
                (path / LOCK).unlink()
                path.rmdir()
            lock.close()


def _lock(path: Path) -> IO | None:
    """Lock a folder, made if need be, until the file that is returned is closed; None if another process holds it.

    The kernel releases the lock of a process that dies, so a killed run can be resumed at once.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / LOCK, "w")  # noqa: SIM115  # stays open
    ours = True
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(file.fileno()), os.stat(path / LOCK))
    except (BlockingIOError, FileNotFoundError):  # another process holds it, or has just ended and deleted it
        ours = False
    except OSError:
        pass  # a file system without locks
    if ours:
        return file
    file.close()
    return None


def read_rows(path: Path) -> list[dict]:
    """Read the rows of a .jsonl file, without a torn last line, as a killed run leaves it."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def read_config(run: Path) -> dict[str, Any]:
    """Return the options of a run, empty if the folder holds none.  Raises RunError if they cannot be read."""
    path = run / "config.json"
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        found = error
    if isinstance(found, dict):
        return found
    raise RunError(f"{path}: expected an object in JSON, found {found}; start again with another --out")


def check_changes(given: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Tell which options change from now on in a run with this config.  Raises OptionError for those that cannot."""
    for name in (name for name in given if name in config and name not in ("out", "resume")):
        now, before = given[name], config[name]
        if Path(str(now)) == Path(str(before)):  # also "warm/" and "warm"
            continue
        if name in FIXED:
            raise OptionError(f"--{name} {now}: {path} is a run of {before!r}; leave --{name} out to resume it")
        print(f"--{name.replace('_', '-')} {now} from here on; until now the run had {before}")


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
        if not (fault := _fault(directory, rows)):
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
        files, row, name = manifest["files"], manifest["row"], f"step-{manifest['row']['step']}"
        found = _checksums(directory)
    except (OSError, ValueError, KeyError, TypeError):
        return f"not written by train.py: expected a readable {MANIFEST} that lists its files"
    damaged = sorted(file for file in files.keys() | found.keys() if files.get(file) != found.get(file))
    if damaged:
        return f"torn: {', '.join(damaged)} differ from what was written"
    if directory.name != name or row not in rows:
        return "foreign: metrics.jsonl of this run has no such step, or has it with other figures"
    return ""


def _checksums(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but the manifest. Names in a manifest are only compared, never opened."""
    sums = {}
    for path in (path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST):
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
        advice = "Earlier checkpoints are untouched. Make room or make the folder writable, then add --resume."
        raise RunError(f"cannot write to {run}: {reason}\n{advice}") from error


def put_in_place(aside: Path, path: Path) -> None:
    """Rename a file or folder once the disk holds all of it, and wait until the disk holds the new name."""

    def flush(path: Path) -> None:
        if os.name != "nt":  # Windows cannot do it for folders
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    for written in (*aside.rglob("*"), aside):
        flush(written)
    os.replace(aside, path)
    flush(path.parent)


# ---- ending


class Stopped(Exception):
    """The run was asked to end, and ended after a whole step; `number` is that of the signal."""

    def __init__(self, number: int, after: str, path: Path) -> None:
        again = shlex.join([sys.executable, sys.argv[0], "--resume", "--out", str(path)])
        super().__init__(f"ended by {signal.Signals(number).name} after {after}; to continue: {again}")
        self.number = number


class StopRequest:
    """A context in which Ctrl-C and SIGTERM are only noted, so that the current step can finish.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """

    number, since = 0, 0.0  # the first signal that came, and when

    def __enter__(self) -> "StopRequest":
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

    def requested(self, agree: Callable[[int], int] = int) -> int:
        """Return the number of the signal that any rank has noted, or 0.  agree: see `Policy`; all ranks call this."""
        return agree(self.number)


def check_health(model: Any, bad_steps: int, step: int, agree: Callable[[int], int] = int) -> None:
    """Raise RunError if training cannot recover, before a checkpoint is written over a good one.

    bad_steps: how many steps in a row, up to this one, had a gradient that was not finite.  agree: see `Policy`.
    """
    parts = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]  # this rank's, if sharded
    spoilt = agree(not all(bool(part.isfinite().all()) for part in parts))
    if not spoilt and bad_steps < MAX_BAD_STEPS:
        return
    fault = "a weight is not finite" if spoilt else f"the gradient was not finite {bad_steps} times in a row"
    raise RunError(
        f"step {step}: {fault}. The last checkpoint is good: resume from it with a lower --lr (or --expert-lr) or a "
        "longer --warmup-steps. A reward or a log-prob may also be at fault."
    )
