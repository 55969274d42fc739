"""Faults during training, each really caused: numbers that are not finite, a dead verifier, malicious input."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from conftest import run_script
from test_checkpoint import SMALLEST, Malicious, train
from test_train import metrics, small_trainer

import grpo
from engine.run_folder import RunError, check_health, checkpoints
from engine.terminal import summary
from models import loading
from problems import verify, worker


def test_a_gradient_that_is_not_finite_is_skipped_and_counted_and_training_continues():
    trainer = small_trainer(experts=False)
    model = trainer.policy.model
    handle = model.get_output_embeddings().weight.register_hook(lambda gradient: gradient * float("nan"))
    before = [p.detach().clone() for p in model.parameters()]
    trainer.step(1)
    assert trainer.counters["skipped_updates"] == trainer.counters["bad_steps_in_a_row"] == 1
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    handle.remove()
    trainer.step(2)
    check_health(model, trainer.counters["bad_steps_in_a_row"], 2)
    assert trainer.counters["skipped_updates"] == 1 and trainer.counters["bad_steps_in_a_row"] == 0
    assert not all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_loss_that_is_not_finite_is_skipped_too(monkeypatch):
    trainer, plain = small_trainer(experts=False), grpo.policy_loss
    monkeypatch.setattr(grpo, "policy_loss", lambda *arguments: plain(*arguments) / 0.0)
    trainer.step(1)
    assert trainer.counters["skipped_updates"] == 1


def test_the_summary_tells_lost_updates_and_takes_the_columns_there_are():
    row = {"step": 0, "eval_pass1": 0.25, "tokens_solution": 7, "tokens_meta": 0, "wall_s": 1.0, "skipped_updates": 0}
    assert "lost" not in summary([row]) and "reward" not in summary([row])
    later = row | {"step": 4, "eval_pass1": 0.5, "eval_reward_notion": 0.3, "gated_frac": 0.5, "skipped_updates": 3}
    assert "updates lost to NaN or inf           3" in summary([row, later])
    assert "reward" not in summary([row, later])  # there is nothing to compare it with
    table = summary([row | {"eval_reward_notion": 0.1}, later])
    assert "pass@1                           0.250     0.500    +0.250" in table
    assert "notion reward                    0.100     0.300    +0.200" in table
    assert "problems gated                   50.0% on average over all steps" in table


def test_a_run_in_which_nothing_worked_says_what_to_try():
    row = {"step": 0, "eval_pass1": 0.0, "tokens_solution": 7, "tokens_meta": 0, "wall_s": 1.0}
    later = row | {"step": 1, "train_pass_rate": 0.0, "parsed_frac": 0.0, "truncated_frac": 0.25}
    told = summary([row, later])
    assert "--levels 1" in told and "--max-new-tokens: 25% of" in told and "--max-meta-tokens" in told
    assert "models.warm_start" in told
    assert "No solution" not in summary([row, later, later | {"train_pass_rate": 0.1}])
    assert "warm_start" not in summary([row, later | {"train_pass_rate": 0.1, "parsed_frac": None}])


def test_after_several_in_a_row_the_run_stops_and_says_why(tmp_path, monkeypatch):
    plain = grpo.policy_loss

    def spoilt(logprobs, *rest):
        return plain(logprobs, *rest) * float("nan" if (tmp_path / "run/checkpoints/step-3").exists() else 1)

    monkeypatch.setattr(grpo, "policy_loss", spoilt)
    many = ["--problems", "6", "--samples", "4", "--no-experts", "--steps", "30", "--save-every", "3", "--levels", ""]
    finished = run_script("train.py", *SMALLEST, *many, "--out", str(tmp_path / "run"))
    rows = metrics(tmp_path / "run")
    assert finished.status == 1 and "Traceback" not in finished.stderr
    assert "the gradient was not finite 5 times in a row" in finished.stderr and "--lr" in finished.stderr
    assert rows[-1]["step"] == 8 and rows[-1]["skipped_updates"] == 5
    monkeypatch.undo()
    last = checkpoints(tmp_path / "run")[-1]
    assert all(p.isfinite().all() for p in loading.load(str(last), device="cpu").model.parameters())
    train(
        tmp_path / "run", "--resume", "--lr", "1e-5", "--levels", "", steps=7
    )  # and it can be resumed as the message says
    assert metrics(tmp_path / "run")[-1]["step"] == 7


def test_imitation_that_fails_counts_as_a_bad_step(monkeypatch):
    trainer = small_trainer()
    lost = {"expert_loss": float("nan"), "skipped_updates": 1, "oom_retries": 0}
    monkeypatch.setattr(grpo, "imitate", lambda *arguments, **named: dict(lost))
    for step in (1, 2):
        trainer.experts = [("1+1", "an answer")] * 16  # a full batch
        trainer.step(step)
        assert trainer.counters["bad_steps_in_a_row"] == step
    monkeypatch.undo()
    trainer.experts = []
    trainer.step(3)
    assert trainer.counters["bad_steps_in_a_row"] == 0


def test_weights_that_are_not_finite_are_never_saved():
    trainer = small_trainer()
    with torch.no_grad():
        next(trainer.policy.model.parameters())[0, 0] = float("inf")
    with pytest.raises(RunError, match="step 7: a weight is not finite"):
        check_health(trainer.policy.model, 0, 7)


def test_a_run_continues_when_its_verifier_is_killed_again_and_again(tmp_path):
    """The answers contain a variable, so that the worker must be asked; a thread kills whatever worker there is."""
    problems, over, killed = tmp_path / "problems.jsonl", threading.Event(), []
    rows = [{"problem": f"{n % 10}+{n // 10 % 10}", "answer": f"x^2+{n}x"} for n in range(100)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def kill() -> None:
        while not over.wait(0.05):
            process = worker.WORKER.process
            if process and process.poll() is None and len(killed) < 5:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)

    assert verify.answers_match("x(x+1)", "x^2+x")  # a worker is there before the run
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        train(tmp_path / "run", "--data", str(problems), "--levels", "", "--max-new-tokens", "16", steps=4)
    finally:
        over.set()
        thread.join()
    assert killed and [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert verify.answers_match("x(x+1)", "x^2+x")  # and one is there after it


@pytest.fixture
def model_directory(tmp_path) -> Path:
    loading.load("tiny", device="cpu").save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_weights_in_a_pickle_are_refused_and_not_opened(name, model_directory, tmp_path):
    (model_directory / "model.safetensors").unlink()
    torch.save({"weight": Malicious(tmp_path / "owned")}, model_directory / name)
    with pytest.raises(loading.PolicyError, match=f"{name} is a pickle, which can run any code"):
        loading.load(str(model_directory), device="cpu")
    assert not (tmp_path / "owned").exists()
    torch.load(model_directory / name, weights_only=False)
    assert (tmp_path / "owned").exists(), "the pickle is harmless: this test shows nothing"


def test_a_pickle_beside_safetensors_is_not_opened(model_directory, tmp_path):
    torch.save({"weight": Malicious(tmp_path / "owned")}, model_directory / "pytorch_model.bin")
    loading.load(str(model_directory), device="cpu")
    assert not (tmp_path / "owned").exists()


def test_python_files_of_a_model_run_only_when_asked_for(model_directory, tmp_path):
    config = json.loads((model_directory / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (model_directory / "config.json").write_text(json.dumps(config))
    (model_directory / "own.py").write_text(
        f"open({str(tmp_path / 'owned')!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(loading.PolicyError, match="--trust-remote-code would run them"):
        loading.load(str(model_directory), device="cpu")
    assert not (tmp_path / "owned").exists()
    loading.load(str(model_directory), device="cpu", trust_remote_code=True)
    assert (tmp_path / "owned").exists()


def test_the_flag_says_what_it_means():
    printed = " ".join(run_script("train.py", "--help").stdout.split())
    assert "--trust-remote-code" in printed and "they can do all you can do" in printed


def test_names_from_data_are_never_paths(tmp_path):
    """Problems, answers and levels that look like paths leave no files outside the run folder."""
    names = ["../../evil", f"/{tmp_path.name}/evil", "..\\evil", "~/evil"]
    rows = [{"problem": f"{n}+{n}? {names[n % 4]}", "answer": names[n % 4], "id": names[n % 4]} for n in range(60)]
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--data", str(folder / "problems.jsonl"), "--levels", ""]
    train(folder / "run", *data, "--transcripts", "2", steps=2)
    allowed = {"config.json", "metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl", "checkpoints"}
    assert {path.name for path in (folder / "run").iterdir()} == allowed
    assert sorted(path.name for path in tmp_path.rglob("*evil*")) == []
    assert sorted(path.name for path in folder.iterdir()) == ["problems.jsonl", "run"]
    assert "../../evil" in (folder / "run" / "rollouts.jsonl").read_text()  # they were really used


def test_names_in_a_manifest_are_never_opened(tmp_path):
    train(tmp_path / "run", steps=2)
    newest = checkpoints(tmp_path / "run")[-1]
    manifest = json.loads((newest / "whole.json").read_text())
    secret = tmp_path / "secret"
    os.mkfifo(secret)  # opening it would wait forever
    manifest["files"]["../../../secret"] = "0"
    (newest / "whole.json").write_text(json.dumps(manifest))
    finished = run_script("train.py", "--resume", "--out", str(tmp_path / "run"))
    assert finished.status == 1 and "torn: ../../../secret" in finished.stdout
