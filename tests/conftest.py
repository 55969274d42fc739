"""What all tests share: no network, and scripts that run without a new process for each."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # in every process a test starts, the hub is reported unreachable at once

ROOT = Path(__file__).parent.parent
SMALL = "--steps 3 --problems 4 --samples 4 --efficient-from 1 --eval-problems 6 --eval-samples 2".split()
SMALL += ["--eval-every", "2"]


@dataclass
class Finished:
    """What a script printed, and its exit status."""

    stdout: str
    stderr: str
    status: int


def run_script(name: str, *arguments: str) -> Finished:
    """Run a script as `python NAME.py ARGUMENTS` or `python -m ROOM.NAME ARGUMENTS` would, in this process.

    A new process would take seconds to import torch.
    """
    file = ROOT / name if name.endswith(".py") else ROOT / f"{name.replace('.', '/')}.py"
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, [name, *arguments]
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(file), run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        err.write(str(stop.code))
    finally:
        sys.argv = argv
    return Finished(out.getvalue(), err.getvalue(), status)


def printed(name: str, *arguments: str) -> str:
    """Return what a script prints that must succeed."""
    finished = run_script(name, *arguments)
    assert finished.status == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """One run by the script itself, in a process of its own. No test may change it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    subprocess.run([sys.executable, "train.py", *SMALL, "--out", str(out)], cwd=ROOT, check=True, timeout=240)
    return out
