"""Nothing is lost: exact resume, orderly ends, kill -9, damaged checkpoints, failed writes; each really happens."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import ROOT, Finished, printed, run_script
from test_train import metrics, without_time

from engine import run_folder
from engine.run_folder import RunError, RunFolder, checkpoints, read_rows

# By step 4 there are experts, and step 5 imitates them: a run that resumes in between must have kept them.
SMALLEST = """--problems 4 --samples 2 --predictions 4 --levels 2 --expert-notion 0 --efficient-from 1
--max-new-tokens 32 --eval-problems 2 --eval-samples 2 --eval-predictions 1 --eval-every 4 --save-every 2""".split()
STEPS = 7


def spawn(*command: str | Path, **options) -> subprocess.Popen:
    """Start Python on these arguments, in the root of the project unless cwd says otherwise, as a group's leader."""
    options = {"cwd": ROOT, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True} | options
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, **options)


def start(out: Path, *arguments: str, steps: int = STEPS, **options) -> subprocess.Popen:
    return spawn("train.py", *SMALLEST, "--steps", str(steps), "--out", out, *arguments, **options)


def train(out: Path, *arguments: str, steps: int = STEPS) -> str:
    """Run the script to its end within this process; return what it printed."""
    return printed("train.py", *SMALLEST, "--steps", str(steps), "--out", str(out), *arguments)


def interrupt(out: Path, step: int, number: int, *arguments: str) -> Finished:
    """Run the script within this process, and send it a signal once it has logged the step."""
    log = RunFolder.log

    def log_and_send(self, logged: int, *figures) -> None:
        log(self, logged, *figures)
        if logged == step:
            os.kill(os.getpid(), number)

    with mock.patch.object(RunFolder, "log", log_and_send):
        return run_script("train.py", *SMALLEST, *arguments, "--steps", str(STEPS), "--out", str(out))


def wait_for_step(out: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while not any(row["step"] >= step for row in read_rows(out / "metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_nothing_lost(out: Path, whole: Path) -> None:
    """Compare steps, figures, transcripts and the last checkpoint of two runs, and look for leftover files."""
    assert_same_steps(out, whole)
    last = [checkpoints(run)[-1] for run in (out, whole)]
    assert last[0].name == last[1].name
    assert (last[0] / "model.safetensors").read_bytes() == (last[1] / "model.safetensors").read_bytes()
    for folder in (".", "checkpoints"):
        left = [sorted(path.name for path in (run / folder).iterdir()) for run in (out, whole)]
        assert left[0] == left[1]


def assert_same_steps(out: Path, whole: Path) -> None:
    assert without_time(metrics(out)) == without_time(metrics(whole))
    assert (out / "rollouts.jsonl").read_text() == (whole / "rollouts.jsonl").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out)
    assert [row["experts_cloned"] for row in metrics(out)[4:6]] == [0, 16]
    return out


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    """The same run, ended after step 4 with checkpoints of steps 2 and 4."""
    out = tmp_path_factory.mktemp("ended") / "run"
    interrupt(out, 4, signal.SIGINT)
    assert [path.name for path in checkpoints(out)] == ["step-2", "step-4"]
    return out


@pytest.fixture
def broken_off(ended, tmp_path) -> Path:
    """A copy of that run for a test to damage and resume."""
    return shutil.copytree(ended, tmp_path / "run")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_run_after_the_step_and_it_resumes_exactly(name, whole, tmp_path):
    out, number = tmp_path / "run", getattr(signal, name)
    finished = interrupt(out, 3, number, "--save-every", "100")
    assert finished.status == 128 + number
    assert f"ended by {name} after step 3 of {STEPS}" in finished.stdout
    assert f"train.py --resume --out {out}" in finished.stdout
    assert [path.name for path in checkpoints(out)] == ["step-3"]
    train(out, "--resume", "--save-every", "2")
    assert_same_steps(out, whole)
    kept = [json.loads((out / f"config{when}.json").read_text())["save_every"] for when in ("-until-step-3", "")]
    assert kept == [100, 2]


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    process = start(tmp_path / "run", "--samples", "6000", "--max-new-tokens", "96")  # a step takes long
    wait_for_step(tmp_path / "run", 0)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(run_folder.ECHO_SECONDS + 0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "ended at once" in told and "Traceback" not in told
    assert checkpoints(tmp_path / "run") == []


def kill_and_resume(out: Path, kills: int, seed: int, steps: int = STEPS) -> int:
    """Kill the run `kills` times at random moments and resume it each time; return how many kills hit it running.

    The delay starts when the folder is touched. Otherwise most kills would hit the import of torch.
    """
    rng, hits = random.Random(seed), 0
    for _ in range(kills):
        before = os.stat(out / "config.json").st_mtime_ns if out.exists() else 0
        process = start(out, "--resume", steps=steps)
        config = out / "config.json"
        while process.poll() is None and not (config.exists() and config.stat().st_mtime_ns > before):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        hits += process.returncode == -signal.SIGKILL
    train(out, "--resume", steps=steps)
    return hits


def test_kill_9_at_random_moments_loses_and_doubles_nothing(whole, tmp_path):
    assert kill_and_resume(tmp_path / "run", kills=2, seed=0) >= 1
    assert_nothing_lost(tmp_path / "run", whole)


@pytest.mark.slow
def test_thirty_kills_lose_and_double_nothing(tmp_path):
    """Three runs are killed ten times each."""
    whole, hits = tmp_path / "whole", 0
    train(whole, steps=30)
    for seed in range(3):
        hits += kill_and_resume(tmp_path / f"run{seed}", kills=10, seed=seed, steps=30)
        assert_nothing_lost(tmp_path / f"run{seed}", whole)
    print(f"{hits} of 30 kills hit a process that was running")
    assert hits >= 20


def test_two_processes_never_share_a_folder_and_a_killed_one_leaves_it_free(tmp_path):
    options = {"cwd": tmp_path}  # so that runs/ is there
    command = [ROOT / "train.py", *SMALLEST, "--steps"]
    both = [spawn(*command, "1", **options) for _ in range(2)]  # at the same time
    assert [process.wait(timeout=240) for process in both] == [0, 0]
    names = ["masa-efficient-tiny-seed0", "masa-efficient-tiny-seed0-2"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == names
    assert all([row["step"] for row in metrics(tmp_path / "runs" / name)] == [0, 1] for name in names)

    out = tmp_path / "run"
    first = start(out, "--save-every", "9999", steps=9999)
    while not (out / run_folder.LOCK).exists():
        time.sleep(0.01)
    second = start(out, "--resume", steps=1)
    told, _ = second.communicate(timeout=240)
    assert second.returncode == 1 and "another process is training into it" in told and "Traceback" not in told
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    train(out, "--resume", steps=1)
    assert [row["step"] for row in metrics(out)] == [0, 1]


def test_torn_last_lines_are_repaired(whole, broken_off):
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        with open(broken_off / name, "a") as file:
            file.write('{"step": 5, "wall_s": 1.0}\n{"step": 6, "wall_s"')
    train(broken_off, "--resume")
    assert [row["step"] for row in metrics(broken_off)] == list(range(STEPS + 1))
    assert_same_steps(broken_off, whole)


def flip_a_bit(directory: Path) -> None:
    data = bytearray((directory / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (directory / "model.safetensors").write_bytes(data)


DAMAGE = {
    "torn: trainer.pt": lambda directory: os.truncate(directory / "trainer.pt", 1000),
    "torn: model.safetensors": flip_a_bit,
    "torn: tokenizer.json": lambda directory: (directory / "tokenizer.json").unlink(),
    "not written by train.py": lambda directory: (directory / run_folder.MANIFEST).unlink(),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_torn_checkpoint_is_named_and_the_one_before_used(message, whole, broken_off):
    DAMAGE[message](broken_off / "checkpoints" / "step-4")
    told = train(broken_off, "--resume")
    assert "step-4 cannot be used" in told and message in told
    assert_same_steps(broken_off, whole)
    kept = {path.name for path in (broken_off / "checkpoints").iterdir()}
    assert kept == {"step-6", "step-7", "unusable-step-4"}  # renamed, not deleted: someone may need it


def test_a_foreign_checkpoint_is_named_and_not_used(whole, broken_off, tmp_path):
    train(tmp_path / "other", "--seed", "1", steps=6)
    shutil.copytree(checkpoints(tmp_path / "other")[-1], broken_off / "checkpoints" / "step-6")
    (broken_off / "checkpoints" / "step-mine").mkdir()
    told = train(broken_off, "--resume")
    assert "step-6 cannot be used: foreign" in told
    assert_same_steps(broken_off, whole)


def test_without_a_checkpoint_that_can_be_used_nothing_is_overwritten(broken_off):
    for directory in checkpoints(broken_off):
        flip_a_bit(directory)
    before = (broken_off / "metrics.jsonl").read_text()
    finished = run_script("train.py", "--resume", "--out", str(broken_off))
    assert finished.status == 1 and "none of its 2 checkpoints can be used" in finished.stderr
    assert (broken_off / "metrics.jsonl").read_text() == before


def test_the_last_checkpoints_are_kept(tmp_path):
    train(tmp_path, "--keep", "3", "--save-every", "1", steps=5)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-3", "step-4", "step-5"]


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_pickle_in_a_checkpoint_is_not_run(broken_off, tmp_path):
    newest = checkpoints(broken_off)[-1]
    torch.save({"drawn": Malicious(tmp_path / "owned")}, newest / "trainer.pt")
    manifest = json.loads((newest / run_folder.MANIFEST).read_text())
    manifest["files"] = run_folder._checksums(newest)  # as an attacker would do
    (newest / run_folder.MANIFEST).write_text(json.dumps(manifest))
    finished = run_script("train.py", "--resume", "--out", str(broken_off))
    assert finished.status == 1 and "trainer.pt" in finished.stderr and "Traceback" not in finished.stderr
    assert not (tmp_path / "owned").exists()


def limit_file_size() -> None:
    """Let no file grow beyond a megabyte: metrics fit, a model of 1.8 MB does not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(whole, broken_off):
    process = start(broken_off, "--resume", preexec_fn=limit_file_size)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and f"cannot write to {broken_off}" in told and "Traceback" not in told
    assert [path.name for path in checkpoints(broken_off)] == ["step-2", "step-4"]
    assert not (broken_off / "checkpoints" / "writing").exists()  # what filled the disk is gone
    train(broken_off, "--resume")
    assert_nothing_lost(broken_off, whole)


def test_metrics_that_cannot_be_written_end_the_run_with_the_folder_named(tmp_path):
    folder = RunFolder(tmp_path, {}, resume=False, keep=2)
    assert folder.restore(None) == -1
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=f"cannot write to {tmp_path}: .*No space left"):
        folder.log(0, {}, [])


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    finished = run_script("train.py", *SMALLEST, "--out", str(tmp_path / "file" / "run"))
    assert finished.status == 1 and "cannot write to" in finished.stderr and "Traceback" not in finished.stderr
