"""Nothing lost: resuming exactly, orderly ends, kill -9, damaged checkpoints, full disks; each fault really caused."""

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

import pytest
import torch
from conftest import ROOT, run_script
from test_train import metrics, without_time

from engine import checkpoint
from engine.journal import RunFolder, checkpoints, read_rows
from options import Options

SMALLEST = """--problems 2 --samples 2 --predictions 2 --efficient-from 1 --expert-batch 2 --max-new-tokens 32
--eval-problems 2 --eval-samples 2 --eval-predictions 1 --eval-every 4 --save-every 2""".split()
STEPS = 9


def start(out: Path, *arguments: str, steps: int = STEPS, **options) -> subprocess.Popen:
    command = [sys.executable, "train.py", *SMALLEST, "--steps", str(steps), "--out", str(out), *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **options,
    )


def train(out: Path, *arguments: str, steps: int = STEPS) -> str:
    """The script within this process, to its end; returns what it printed."""
    finished = run_script("train.py", *SMALLEST, "--steps", str(steps), "--out", str(out), *arguments)
    assert finished.status == 0, finished.stderr
    return finished.stdout


def wait_for_step(out: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while not any(row["step"] >= step for row in read_rows(out / "metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_nothing_lost(out: Path, whole: Path) -> None:
    """The same steps with the same figures and transcripts, the same last checkpoint, and nothing left over."""
    assert without_time(metrics(out)) == without_time(metrics(whole))
    assert (out / "rollouts.jsonl").read_text() == (whole / "rollouts.jsonl").read_text()
    last = [checkpoints(run)[-1] for run in (out, whole)]
    assert last[0].name == last[1].name
    assert (last[0] / "model.safetensors").read_bytes() == (last[1] / "model.safetensors").read_bytes()
    for folder in (".", "checkpoints"):
        left = [sorted(path.name for path in (run / folder).iterdir()) for run in (out, whole)]
        assert left[0] == left[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out)
    return out


@pytest.fixture
def broken_off(whole, tmp_path) -> Path:
    """The same run, ended at step 4 with checkpoints of steps 2 and 4, and resumed by the tests."""
    out = tmp_path / "run"
    train(out, steps=4)
    return out


# ---- orderly ends, and kills


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_run_after_the_step_and_resume_goes_on_exactly(name, whole, tmp_path, monkeypatch):
    out, number, log = tmp_path / "run", getattr(signal, name), RunFolder.log

    def log_and_send(self, step: int, *figures) -> None:
        log(self, step, *figures)
        if step == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(RunFolder, "log", log_and_send)
    finished = run_script("train.py", *SMALLEST, "--save-every", "100", "--steps", str(STEPS), "--out", str(out))
    monkeypatch.undo()
    assert finished.status == 128 + number
    assert f"ended by {name} after step 3 of {STEPS}; to go on: python train.py --resume --out {out}" in finished.stdout
    assert [path.name for path in checkpoints(out)] == ["step-3"]
    train(out, "--resume", "--save-every", "2")
    assert without_time(metrics(out)) == without_time(metrics(whole))


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    process = start(tmp_path / "run", "--samples", "6000", "--max-new-tokens", "96")  # a step takes long
    wait_for_step(tmp_path / "run", 0)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(checkpoint.ECHO_SECONDS + 0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and "ended at once" in printed and "Traceback" not in printed
    assert checkpoints(tmp_path / "run") == []


def kill_and_resume(out: Path, kills: int, seed: int, steps: int = STEPS) -> int:
    """Kill the run `kills` times at random moments, each time resuming it; returns how many kills hit it running.

    The delay runs from the moment the folder is touched, else most kills would hit the import of torch.
    """
    rng, hits = random.Random(seed), 0
    for _ in range(kills):
        before = os.stat(out / "config.json").st_mtime_ns if out.exists() else 0
        process = start(out, "--resume", steps=steps)
        while process.poll() is None and not (
            (out / "config.json").exists() and os.stat(out / "config.json").st_mtime_ns > before
        ):
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
    """On three runs, ten kills each."""
    whole, hits = tmp_path / "whole", 0
    train(whole, steps=30)
    for seed in range(3):
        hits += kill_and_resume(tmp_path / f"run{seed}", kills=10, seed=seed, steps=30)
        assert_nothing_lost(tmp_path / f"run{seed}", whole)
    print(f"{hits} of 30 kills hit a process that was running")
    assert hits >= 20


def test_torn_last_lines_are_repaired(whole, broken_off):
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        with open(broken_off / name, "a") as file:
            file.write('{"step": 5, "wall_s": 1.0}\n{"step": 6, "wall_s"')
    train(broken_off, "--resume")
    assert [row["step"] for row in metrics(broken_off)] == list(range(STEPS + 1))
    assert without_time(metrics(broken_off)) == without_time(metrics(whole))
    assert (broken_off / "rollouts.jsonl").read_text() == (whole / "rollouts.jsonl").read_text()


# ---- damaged checkpoints


def cut_short(directory: Path) -> None:
    os.truncate(directory / "trainer.pt", 1000)


def flip_a_bit(directory: Path) -> None:
    data = bytearray((directory / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (directory / "model.safetensors").write_bytes(data)


def drop_a_file(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def drop_the_manifest(directory: Path) -> None:
    (directory / checkpoint.MANIFEST).unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut_short, "torn: trainer.pt"),
        (flip_a_bit, "torn: model.safetensors"),
        (drop_a_file, "torn: tokenizer.json"),
        (drop_the_manifest, "not one of train.py's"),
    ],
)
def test_a_torn_checkpoint_is_named_and_the_one_before_used(damage, message, whole, broken_off):
    damage(broken_off / "checkpoints" / "step-4")
    printed = train(broken_off, "--resume")
    assert "step-4 cannot be used" in printed and message in printed
    assert without_time(metrics(broken_off)) == without_time(metrics(whole))
    kept = {path.name for path in (broken_off / "checkpoints").iterdir()}
    assert kept == {"step-8", "step-9", "unusable-step-4"}  # renamed, not deleted: it may be somebody's


def test_a_foreign_checkpoint_is_named_and_not_used(whole, broken_off, tmp_path):
    train(tmp_path / "other", "--seed", "1", steps=6)
    shutil.copytree(checkpoints(tmp_path / "other")[-1], broken_off / "checkpoints" / "step-6")
    (broken_off / "checkpoints" / "step-mine").mkdir()
    printed = train(broken_off, "--resume")
    assert "step-6 cannot be used: foreign" in printed
    assert without_time(metrics(broken_off)) == without_time(metrics(whole))


def test_without_a_checkpoint_that_can_be_used_nothing_is_overwritten(broken_off):
    for directory in checkpoints(broken_off):
        cut_short(directory)
    before = (broken_off / "metrics.jsonl").read_text()
    finished = run_script("train.py", "--resume", "--out", str(broken_off))
    assert finished.status == 1 and "no checkpoint that can be used" in finished.stderr
    assert (broken_off / "metrics.jsonl").read_text() == before


def test_the_last_checkpoints_are_kept(tmp_path):
    train(tmp_path, "--keep", "3", "--save-every", "1", steps=5)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-3", "step-4", "step-5"]


class Malicious:
    """Unpickled, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_pickle_in_a_checkpoint_is_not_run(broken_off, tmp_path):
    newest = checkpoints(broken_off)[-1]
    torch.save({"drawn": Malicious(tmp_path / "owned")}, newest / "trainer.pt")
    manifest = json.loads((newest / checkpoint.MANIFEST).read_text())
    manifest["files"] = checkpoint._checksums(newest)  # as whoever made it would have done
    (newest / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    finished = run_script("train.py", "--resume", "--out", str(broken_off))
    assert finished.status == 1 and "trainer.pt" in finished.stderr and "Traceback" not in finished.stderr
    assert not (tmp_path / "owned").exists()


# ---- a disk that is full, a folder that cannot be written


def limit_file_size() -> None:
    """No file may grow beyond a megabyte: metrics fit, a model of 1.8 MB does not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(whole, broken_off):
    process = start(broken_off, "--resume", preexec_fn=limit_file_size)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and f"cannot write to {broken_off}" in printed and "Traceback" not in printed
    assert [path.name for path in checkpoints(broken_off)] == ["step-2", "step-4"]
    assert not list((broken_off / "checkpoints").glob("writing-*"))  # what filled the disk is gone
    train(broken_off, "--resume")
    assert_nothing_lost(broken_off, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB, where one may be mounted (as root, on Linux): a checkpoint needs 5.5 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=14m", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("cannot mount a file system here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_named_and_the_earlier_checkpoint_whole(whole, small_disk):
    out = small_disk / "run"
    finished = run_script("train.py", *SMALLEST, "--steps", str(STEPS), "--out", str(out))
    assert finished.status == 1 and f"cannot write to {out}" in finished.stderr
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-2"]
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    train(out, "--resume")
    assert_nothing_lost(out, whole)


def test_metrics_that_cannot_be_written_end_the_run_with_the_folder_named(tmp_path):
    folder = RunFolder(tmp_path, Options(), -1)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(checkpoint.RunError, match=f"cannot write to {tmp_path}: .*No space left"):
        folder.log(0, {}, [])


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    finished = run_script("train.py", *SMALLEST, "--out", str(tmp_path / "file" / "run"))
    assert finished.status == 1 and "cannot write to" in finished.stderr and "Traceback" not in finished.stderr
