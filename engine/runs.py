"""Run several trainings side by side, each a process with a folder of its own; continue what was interrupted."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.command_line import OptionError, as_flags
from engine.run_folder import read_config

TRAIN = Path(__file__).parent.parent / "train.py"
MAY_DIFFER = ("out", "resume", "device", "steps")  # options that may be others when a run is continued
POLL_SECONDS = 0.5
LOG_LINES = 5  # shown of a failed run


@dataclass
class Planned:
    """A run to be made: its variant, its folder, and the options it is given."""

    variant: str
    folder: Path
    options: dict[str, Any]

    def steps_done(self) -> int:
        """Return the last whole step in metrics.jsonl, 0 before there is one."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return json.loads((self.folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        return 0

    def finished(self) -> bool:
        steps = self.options["steps"]
        return self.steps_done() == steps and (self.folder / "checkpoints" / f"step-{steps}").exists()

    def check(self, every_option: dict[str, Any]) -> None:
        """Raise OptionError if the folder holds a run that was made with other options than these."""
        config = read_config(self.folder)
        for name, wanted in every_option.items():
            if name not in MAY_DIFFER and name in config and config[name] != wanted:
                found = f"{self.folder / 'config.json'}: found {name} = {config[name]!r}"
                raise OptionError(f"{found}, expected {wanted!r}; name another --out")
        if (done := self.steps_done()) > self.options["steps"]:
            raise OptionError(f"{self.folder}: found {done} steps, expected at most {self.options['steps']}")


def run_all(runs: Sequence[Planned], jobs: int) -> list[Planned]:
    """Make the runs, `jobs` at a time, under one bar over all their steps; return those that failed."""
    waiting = [run for run in runs if not run.finished()]
    bar = tqdm(total=sum(run.options["steps"] for run in runs), unit="step", smoothing=0.02)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} | dict(os.environ)
    running: list[tuple[Planned, subprocess.Popen]] = []
    failed = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                run.folder.mkdir(parents=True, exist_ok=True)
                with open(run.folder / "log.txt", "a") as log:
                    # In a session of its own: Ctrl-C is for this process, which then ends each run once.
                    command = [sys.executable, str(TRAIN), "--resume", f"--out={run.folder}", *as_flags(run.options)]
                    process = subprocess.Popen(command, stdout=log, stderr=log, env=threads, start_new_session=True)
                running.append((run, process))
            time.sleep(POLL_SECONDS)
            bar.n = sum(run.steps_done() for run in runs)
            bar.set_postfix_str(", ".join(f"{run.variant} seed {run.options['seed']}" for run, _ in running))
            for run, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((run, process))
                failed += [run] if process.returncode else []
    finally:  # after Ctrl-C as well: no run is left behind, and each resumes from its checkpoint
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.wait()
        bar.close()
    return failed


def last_lines(run: Planned) -> str:
    """Return the folder of a failed run and the end of its log."""
    lines = (run.folder / "log.txt").read_text().splitlines()[-LOG_LINES:]
    return "\n  ".join([f"{run.folder} failed; log.txt ends with:", *lines])
