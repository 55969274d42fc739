"""Two processes on the CPU make the update of one, sharded or not, and so does the real script under torchrun."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import ranks
import torch
from conftest import run_script
from test_checkpoint import spawn, wait_for_step
from test_train import metrics

from engine import parallel, update
from engine.run_folder import checkpoints

# Draws are greedy, so no group has an advantage; the KL penalty and the experts train all the same, and --minibatches
# makes the penalty act within a step.
RUN = """--problems 5 --samples 2 --predictions 4 --efficient-from 1 --gate off --kl-coef 0.1 --lr 1e-3 --dtype float32
--warmup-steps 0 --minibatches 2 --max-new-tokens 40 --eval-problems 6 --eval-samples 2 --eval-predictions 2
--eval-every 2 --save-every 2 --steps 4""".split()


def torchrun(*arguments: str) -> subprocess.Popen:
    return spawn("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments)


def finish(process: subprocess.Popen, ok: bool = True) -> str:
    printed, _ = process.communicate(timeout=400)
    assert (process.returncode == 0) == ok, printed
    return printed


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("ranks") / "results.pt"
    finish(torchrun("tests/ranks.py", str(file)))
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", [*ranks.CASES, "gradient checkpointing"])
def test_two_ranks_give_the_update_of_one(name, shard, on_two_ranks):
    found = on_two_ranks[name, shard]
    expected = ranks.updated(ranks.CASES.get(name, {}), shard=False, over_batches=update.over_batches)
    start = dict(ranks.qwen3(0).named_parameters())
    assert expected["weights"].keys() == found["weights"].keys()
    for parameter, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][parameter], value, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(value, start[parameter], atol=1e-4)  # the update moves it by far more than that
    for index, moments in expected["moments"].items():
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(found["moments"][index][moment], moments[moment], atol=1e-5, rtol=1e-3)
    for left, right in zip(found["figures"], expected["figures"], strict=True):
        assert_close(left, right, rel=1e-3)


def assert_close(ours: dict, theirs: dict, rel: float) -> None:
    """Compare figures within float tolerance, and everything else exactly."""
    for name in ours.keys() - {"wall_s", "logprob_gap"}:  # the gap consists of rounding
        if isinstance(theirs[name], float):
            assert ours[name] == pytest.approx(theirs[name], rel=rel, abs=1e-5), name
        else:
            assert ours[name] == theirs[name], name


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    assert run_script("tests/ranks.py", "train", "4", *RUN, "--out", str(out)).status == 0
    return out


def test_the_script_under_torchrun_gives_the_metrics_of_one_process(one_process, tmp_path):
    printed = finish(torchrun("tests/ranks.py", "train", "4", *RUN, "--out", str(tmp_path / "two")))
    for ours, theirs in zip(metrics(tmp_path / "two"), metrics(one_process), strict=True):
        assert_close(ours, theirs, rel=1e-3)
    assert printed.count("trained policy") == 1  # one rank speaks
    assert metrics(one_process)[-1]["experts_cloned"] > 0 and metrics(one_process)[-1]["kl"] > 0
    first, *_, last = metrics(one_process)
    assert first["eval_reward_difficulty"] != last["eval_reward_difficulty"]  # it is not all the same anyway


@pytest.mark.slow
def test_a_sharded_run_resumes_on_any_number_of_processes(one_process, tmp_path):
    out = str(tmp_path)
    assert run_script("tests/ranks.py", "train", "2", *RUN, "--out", out).status == 130
    finish(torchrun("tests/ranks.py", "train", "3", "--resume", "--shard", "--out", out), ok=False)
    assert run_script("tests/ranks.py", "train", "4", "--resume", "--no-shard", "--out", out).status == 0
    for ours, theirs in zip(metrics(tmp_path), metrics(one_process), strict=True):
        assert_close(ours, theirs, rel=1e-3)
    saved = [checkpoints(run)[-1] / "model.safetensors" for run in (tmp_path, one_process)]
    assert saved[0].stat().st_size == saved[1].stat().st_size  # float32, nothing doubled


@pytest.mark.slow
def test_ctrl_c_under_torchrun_ends_all_ranks_after_the_same_step(tmp_path):
    process = torchrun("train.py", *RUN, "--steps", "2000", "--out", str(tmp_path / "run"))
    wait_for_step(tmp_path / "run", 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and to the processes
    printed = finish(process, ok=False)
    last = metrics(tmp_path / "run")[-1]["step"]
    assert f"ended by SIGINT after step {last} of 2000" in printed
    assert checkpoints(tmp_path / "run")[-1].name == f"step-{last}"


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1000")
    with pytest.raises(parallel.LaunchError, match="one per GPU, found more"), parallel.processes("cuda"):
        pass


def test_one_process_is_handed_back_what_it_gave():
    with parallel.processes("cpu"):
        assert parallel.spread(lambda items: [item * 10 for item in items], [1, 2]) == [10, 20]
        assert parallel.largest(3) == 3
        assert parallel.total({"loss": -0.5}) == {"loss": -0.5}
