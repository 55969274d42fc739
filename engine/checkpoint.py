"""Checkpoints and an orderly end: what a run needs so that nothing is lost when it dies.

    checkpoints/step-N/    a model directory (safetensors), trainer.pt (all other state), whole.json (their checksums)

A checkpoint is written aside, flushed to the disk, and put in place in one move: it is there as a whole or not at all.
Disks fail and folders are copied halfway, so `last_whole` checks it all the same, against the checksums and against
the run's own metrics. Two things need no saved state: the learning rate follows from the step, and every random
stream is named by the seed, the step and its purpose (`Trainer.generator`).

Left out: checkpoints written while training goes on, and one file for each process of a sharded model.
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
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from engine import parallel
from engine.journal import RunError, checkpoints, flush, writing

STATE, MANIFEST = "trainer.pt", "whole.json"
ECHO_SECONDS = 1.0  # torchrun passes a Ctrl-C on that its processes have had already: that is not a second one


def save(trainer: Any, run: Path, row: dict) -> None:
    """Write the checkpoint of the step that `row` (of metrics.jsonl) logs, then drop all but the last `--keep`.

    All ranks call it, because a sharded model is gathered from all; rank 0 writes.  Raises RunError, with the earlier
    checkpoints as they were, if the folder cannot be written.
    """
    weights = trainer.policy.weights()
    state = {
        "drawn": trainer.drawn,
        "counters": dict(trainer.counters),
        "experts": trainer.experts,
        "explored": list(trainer.explored),
        "recent": list(trainer.recent),
        "optimizer": parallel.whole_state(trainer.optimizer.state_dict()),
        "expert_optimizer": parallel.whole_state(trainer.expert_optimizer.state_dict()),
    }
    if parallel.rank() == 0:
        with writing(run):
            directory = run / "checkpoints" / f"step-{row['step']}"
            _write(directory, row, state, lambda folder: trainer.policy.save(folder, weights))
            _drop_older(run, trainer.options.keep)
    parallel.wait()


def _write(directory: Path, row: dict, state: dict[str, Any], save_model: Callable[[Path], None]) -> None:
    """All files aside, onto the disk, then in place in one move."""
    aside = directory.with_name(f"writing-{directory.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        save_model(aside)
        torch.save(state, aside / STATE)
        (aside / MANIFEST).write_text(json.dumps({"row": row, "files": _checksums(aside)}))
        for path in [*aside.rglob("*"), aside]:
            flush(path)
        os.replace(aside, directory)
        flush(directory.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # after a failure: it may be what fills the disk


def last_whole(run: Path, rows: list[dict]) -> Path | None:
    """The newest checkpoint that is whole and belongs to these rows of metrics.jsonl; names each that is not.

    None if there is no checkpoint at all.  Raises RunError if there are some, but none that can be used.
    """
    found = checkpoints(run)
    for directory in reversed(found):
        fault = _fault(directory, rows)
        if not fault:
            return directory
        print(f"{directory} cannot be used: {fault}")
    if found:
        raise RunError(f"{run}: no checkpoint that can be used; start again with another --out")
    return None


def restore(trainer: Any, directory: Path) -> int:
    """Take up the state that `save` wrote (the policy is loaded already); returns its step.

    Raises RunError for a file that holds more than plain data: no code in it is ever run.
    """
    try:
        state = torch.load(directory / STATE, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(f"{directory / STATE}: holds more than numbers, texts and tensors; not loaded") from error
    trainer.drawn = state["drawn"]
    trainer.counters = Counter(state["counters"])
    trainer.experts = [tuple(pair) for pair in state["experts"]]
    trainer.explored.extend(state["explored"])
    trainer.recent.extend(state.get("recent", ()))  # older checkpoints have none
    parameters = list(trainer.policy.model.parameters())
    trainer.optimizer.load_state_dict(parallel.split_state(state["optimizer"], parameters))
    trainer.expert_optimizer.load_state_dict(parallel.split_state(state["expert_optimizer"], parameters))
    return int(directory.name.removeprefix("step-"))


def tidy(run: Path, after: int, keep: int) -> None:
    """Rename what lies beyond step `after`: it cannot be used. Drop what a run that was killed had no time to drop."""
    folder = run / "checkpoints"
    with writing(run):
        for path in folder.glob("writing-*"):
            shutil.rmtree(path)
        for path in checkpoints(run):
            if int(path.name.removeprefix("step-")) > after:
                shutil.rmtree(folder / f"unusable-{path.name}", ignore_errors=True)
                os.replace(path, folder / f"unusable-{path.name}")
        _drop_older(run, keep)


def _drop_older(run: Path, keep: int) -> None:
    for older in checkpoints(run)[:-keep]:
        shutil.rmtree(older)


def _checksums(directory: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, by name: the names in a manifest are compared, never opened."""
    sums = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with open(path, "rb") as file:
                sums[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _fault(directory: Path, rows: list[dict]) -> str:
    """What keeps a checkpoint from being used, or an empty string."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        files, row, step = manifest["files"], manifest["row"], manifest["row"]["step"]
        found = _checksums(directory)
    except (OSError, ValueError, KeyError, TypeError):
        return f"not one of train.py's: expected a readable {MANIFEST} that lists its files"
    damaged = sorted(name for name in files.keys() | found.keys() if files.get(name) != found.get(name))
    if damaged:
        return f"torn: {', '.join(damaged)} differ from what was written"
    if directory.name != f"step-{step}" or row not in rows:
        return "foreign: metrics.jsonl of this run has no such step, or has it with other figures"
    return ""


class Stopped(Exception):
    """The run was asked to end, and did so after a whole step; `number` is the signal's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class StopRequest:
    """While entered, Ctrl-C and SIGTERM are noted in `number` (else 0), and the step goes on to its end.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.number, self.since = 0, 0.0

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
            with contextlib.suppress(OSError):  # not print: a handler may interrupt a print
                os.write(2, b"\nending after this step, with a checkpoint; Ctrl-C once more ends at once\n")
