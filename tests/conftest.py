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
    """Run a script as `python NAME.py ARGUMENTS` or `python -m ROOM.NAME ARGUMENTS` would, in this process.

    A new process would take seconds to import torch.
    """
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, [name, *arguments]
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if name.endswith(".py"):
                runpy.run_path(str(ROOT / name), run_name="__main__")
            else:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        err.write(str(stop.code))
    finally:
        sys.argv = argv
    return Finished(out.getvalue(), err.getvalue(), status)
