"""Adding things stays small: three changes apply to the code as it is, touch few lines, and work.

Two are in tests/changes, the third stands in README.md. Each is applied to a copy of the repository; there the checks
in tests/changes/check_NAME.py run, and the tests of what it touches.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MAX_FILES, MAX_LINES = 3, 30
TESTS = {
    "confidence": ["tests/test_masa.py", "tests/test_rewards.py"],
    "family": ["tests/test_tasks.py"],
    "estimator": ["tests/test_grpo.py"],
}
REGENERATE = """
The code around the change {name!r} has changed, so its diff must be made again. It is tests/changes/{name}.diff, or,
of the estimator, the block of README.md that begins with ```diff. On a clean tree:

    git apply --reject THE.diff      # applies what it can; make by hand what *.rej hold, and delete these
    git diff -- '*.py' README.md | grep -v '^diff --git\\|^index ' > NEW.diff
    git checkout -- '*.py' README.md

and put NEW.diff in its place. What git said:

"""


def change(name: str) -> str:
    """The diff of that name."""
    file = ROOT / "tests" / "changes" / f"{name}.diff"
    if file.exists():
        return file.read_text()
    (block,) = re.findall(r"^```diff\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return block


def copy_repository(to: Path) -> None:
    """Without hidden files: the .git of a worktree is one, and `git apply` would look there."""
    for path in ROOT.glob("[!.]*"):
        if path.is_file():
            shutil.copy(path, to)
    for folder in ("tests", "problems", "models", "engine", "variants", "lab"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize("name", TESTS)
def test_a_change_is_small_applies_and_works(name, tmp_path):
    diff = change(name)
    files = set(re.findall(r"^\+\+\+ b/(.*)", diff, re.MULTILINE)) - {"README.md"}
    added = re.findall(r"^\+(?!\+\+ )", diff, re.MULTILINE)
    assert len(files) <= MAX_FILES and len(added) <= MAX_LINES

    copy_repository(tmp_path)
    applied = subprocess.run(["git", "apply"], cwd=tmp_path, input=diff, text=True, capture_output=True)
    assert applied.returncode == 0, REGENERATE.format(name=name) + applied.stderr
    for command in (
        ["ruff", "check", *files],
        ["ruff", "format", "--check", *files],
        ["pytest", "-q", f"tests/changes/check_{name}.py", *TESTS[name]],
    ):
        finished = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=240,
        )
        assert finished.returncode == 0, finished.stdout
