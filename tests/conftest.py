"""What all tests share: no network, and scripts run without a new process for each."""

import contextlib
import io
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # hubs answer at once that they are out of reach, in every process a test starts

ROOT = Path(__file__).parent.parent


@dataclass
class Finished:
    """What a script printed, and its exit status."""

    stdout: str
    stderr: str
    status: int


def run_script(name: str, *arguments: str) -> Finished:
    """Run a script of the project as `python NAME ARGUMENTS` would, in this process: importing torch takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, [name, *arguments]
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        err.write(str(stop.code))
    finally:
        sys.argv = argv
    return Finished(out.getvalue(), err.getvalue(), status)
