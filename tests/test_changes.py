"""Extensions stay small: each diff in tests/changes applies to the current code, touches few lines, and works.

A diff is applied to a copy of the repository. There its own checks run (tests/changes/check_NAME.py), and the tests of
the files that it touches. A reader who has applied a diff already still passes: the copy then has it, too.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

CHANGES = ROOT / "tests" / "changes"
# For each diff: how many files it may touch outside tests, how many lines it may add there, and what else tests them.
LIMITS = {
    "confidence": (3, 40, ["tests/test_masa.py", "tests/test_rewards.py"]),
    "estimator": (2, 30, ["tests/test_grpo.py", "-k", "advantages or weights"]),
    "family": (2, 16, ["tests/test_problems.py", "-k", "streams or levels or names"]),
    "lora": (5, 75, ["tests/test_policy.py"]),
}
HOW_TO_MEND = """
The code around tests/changes/{name}.diff has changed, so the diff must be made again. On a clean working tree:

    git apply --reject tests/changes/{name}.diff    # then make the changes in *.rej by hand, and delete these files
    git add --all && git diff --cached > /tmp/{name}.diff && git reset --hard
    mv /tmp/{name}.diff tests/changes/

What git said:

"""


def copy_repository(to: Path) -> None:
    """Copy the code without hidden files: `git apply` must not find a .git folder above the copy."""
    for path in ROOT.glob("[!.]*"):
        if path.is_file():
            shutil.copy(path, to)
    for folder in ("tests", "problems", "models", "engine", "variants", "lab", "docs"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=240)


def apply_unless_applied(name: str, folder: Path) -> bool:
    """Apply a diff to the repository in `folder`; return False if it was applied already."""
    diff = str(CHANGES / f"{name}.diff")
    if run(folder, "git", "apply", "--reverse", "--check", diff).returncode == 0:
        return False
    applied = run(folder, "git", "apply", diff)
    assert applied.returncode == 0, HOW_TO_MEND.format(name=name) + applied.stderr
    return True


@pytest.mark.parametrize("name", LIMITS)
def test_a_change_is_small_applies_and_works(name, tmp_path):
    max_files, max_lines, tests = LIMITS[name]
    diff = (CHANGES / f"{name}.diff").read_text()
    parts = re.split(r"^\+\+\+ b/", diff, flags=re.MULTILINE)[1:]  # each begins with the path of its file
    code = [part for part in parts if not part.startswith("tests/")]
    files = [part.split()[0] for part in code]
    added = [line for part in code for line in part.split("\n") if line.startswith("+")]
    assert len(files) <= max_files and len(added) <= max_lines

    copy_repository(tmp_path)
    apply_unless_applied(name, tmp_path)
    for command in (
        ["ruff", "check", *files],
        ["ruff", "format", "--check", *files],
        ["pytest", "-q", f"tests/changes/check_{name}.py", *tests],
    ):
        finished = run(tmp_path, sys.executable, "-m", *command)
        assert finished.returncode == 0, finished.stdout + finished.stderr


def test_changes_can_be_applied_together_and_are_then_recognised(tmp_path):
    copy_repository(tmp_path)
    for name in LIMITS:
        apply_unless_applied(name, tmp_path)
    assert not any(apply_unless_applied(name, tmp_path) for name in LIMITS)
