"""The real script, run as a user runs it: variants, resuming, and everything that can be wrong with the input."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Finished, run_script

import grpo
import masa
import options
from attempts import Attempt, experts
from engine import checkpoint
from engine.journal import RunFolder
from models import policy
from options import OptionError, Options
from problems import tasks
from rewards import AlignmentRewards
from rollout import Rollout
from train import Trainer, resolve_options

SMALL = (
    "--steps 3 --problems 4 --samples 4 --efficient-from 1 --eval-problems 6 --eval-samples 2 --eval-every 2".split()
)
CONTRACT = """step wall_s tokens_solution tokens_meta train_pass_rate zero_variance_frac gated_frac cutoff_frac
gate_precision gate_recall reward_length reward_difficulty reward_notion expert_loss logprob_gap skipped_updates
verifier_timeouts eval_pass1 eval_reward_length eval_reward_difficulty eval_reward_notion""".split()


def run(*arguments: str, out: Path, ok: bool = True) -> Finished:
    finished = run_script("train.py", *arguments, "--out", str(out))
    assert (finished.status == 0) == ok, finished.stderr
    return finished


def metrics(out: Path) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} in metrics.jsonl")

    return [json.loads(line, parse_constant=refuse) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_time(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in rows]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """One run by the script itself, in a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "run"
    subprocess.run([sys.executable, "train.py", *SMALL, "--out", str(out)], cwd=ROOT, check=True, timeout=240)
    return out


def test_a_run_leaves_what_is_promised(finished_run):
    rows = metrics(finished_run)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert set(CONTRACT) <= set(row)
        assert row.keys() == rows[1].keys()
    assert [row["eval_pass1"] is not None for row in rows] == [True, False, True, True]
    assert rows[0]["train_pass_rate"] is None and rows[1]["train_pass_rate"] is not None
    assert rows[3]["tokens_solution"] > rows[1]["tokens_solution"] > rows[0]["tokens_solution"] == 0
    assert json.loads((finished_run / "config.json").read_text())["steps"] == 3
    shown = [json.loads(line) for line in (finished_run / "rollouts.jsonl").read_text().splitlines()]
    assert {row["step"] for row in shown} == {1, 2, 3} and all(row["problem"] for row in shown)
    assert [path.name for path in (finished_run / "checkpoints").iterdir()] == ["step-3"]


def test_the_same_seed_gives_the_same_metrics(finished_run, tmp_path):
    run(*SMALL, out=tmp_path / "again")
    assert without_time(metrics(tmp_path / "again")) == without_time(metrics(finished_run))
    run(*SMALL, "--seed", "1", out=tmp_path / "other")
    assert without_time(metrics(tmp_path / "other")) != without_time(metrics(finished_run))


def test_a_resumed_run_equals_an_uninterrupted_one(finished_run, tmp_path):
    out = tmp_path / "run"
    arguments = [argument if argument != "3" else "2" for argument in SMALL]
    run(*arguments, "--expert-batch", "1", out=out)
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "wall_s"')  # a torn line, as a killed run leaves it
    run("--resume", "--steps", "3", out=out)
    run(*SMALL, "--expert-batch", "1", out=tmp_path / "whole")
    resumed, whole = without_time(metrics(out)), without_time(metrics(tmp_path / "whole"))
    assert resumed[3] == whole[3]
    assert resumed[:2] == whole[:2] and [row["step"] for row in resumed] == [0, 1, 2, 3]


def test_resume_with_nothing_to_resume_says_so_and_starts(tmp_path):
    printed = run(*SMALL, "--steps", "1", "--resume", out=tmp_path / "new").stdout
    assert "nothing to resume" in printed and len(metrics(tmp_path / "new")) == 2


def test_a_checkpoint_is_a_model(finished_run, tmp_path):
    checkpoint = str(finished_run / "checkpoints" / "step-3")
    assert policy.load(checkpoint, device="cpu").eos_ids == policy.load("tiny", device="cpu").eos_ids
    small = ["--max-new-tokens", "48", "--max-meta-tokens", "16", "--data", "arithmetic", "--steps", "1"]
    run("--model", checkpoint, *SMALL, *small, out=tmp_path / "next")


@pytest.mark.parametrize("algo", ["grpo", "masa"])
def test_variants_run_by_flag_alone(algo, tmp_path):
    run("--algo", algo, *SMALL, out=tmp_path)
    rows = metrics(tmp_path)
    assert (rows[-1]["tokens_meta"] > 0) == (algo == "masa")
    assert all(row["gated_frac"] == row["cutoff_frac"] == 0 and row["expert_loss"] is None for row in rows[1:])
    assert rows[-1]["eval_reward_difficulty"] is not None


def test_everything_that_is_a_flag_runs(tmp_path):
    flags = "--hints --fill fresh --kl-coef 0.01 --minibatches 2 --aggregation dr-grpo --no-normalize-std --top-p 0.9"
    flags += (
        " --no-reward-length --meta-weight 0.3 --gradient-checkpointing --expert-batch 1 --levels 1,2 --explore 0.5"
    )
    run(*SMALL, *flags.split(), out=tmp_path)
    assert metrics(tmp_path)[-1]["kl"] is not None


# ---- one step from inside


def small_trainer(**changes) -> Trainer:
    small = {"problems": 4, "samples": 4, "predictions": 4, "efficient_from": 0, "explore": 0.0, "eval_problems": 4}
    chosen = Options(**small | changes)
    return Trainer(chosen, policy.load("tiny", device="cpu"), tasks.load_problems("arithmetic"))


def predict_always(trainer: Trainer, monkeypatch, prediction) -> None:
    """Whatever the policy writes, it is taken for this prediction."""
    monkeypatch.setattr(masa, "parse_meta", lambda text: prediction)


def test_every_prompt_gated_costs_predictions_only(monkeypatch):
    trainer = small_trainer()
    predict_always(trainer, monkeypatch, masa.MetaPrediction(0.0, 10, ()))
    figures, attempts = trainer.step(1)
    assert figures["gated_frac"] == 1.0 and figures["train_pass_rate"] is None and figures["loss"] is None
    assert trainer.counters["tokens_solution"] == 0 < trainer.counters["tokens_meta"]
    assert all(attempt.solutions == [] for attempt in attempts)


def test_a_fresh_problem_takes_the_place_of_a_gated_one(monkeypatch):
    trainer = small_trainer(fill="fresh")
    calls = iter(range(10_000))
    first_four = lambda text: masa.MetaPrediction(0.0 if next(calls) < 16 else 0.5, 40, ())  # noqa: E731
    monkeypatch.setattr(masa, "parse_meta", first_four)
    figures, attempts = trainer.step(1)
    assert len(attempts) == 8 and figures["gated_frac"] == 0.5
    assert sum(not attempt.gated for attempt in attempts) == 4
    assert len({id(attempt.problem) for attempt in attempts}) == 8


def test_solutions_are_cut_at_twice_the_predicted_length(monkeypatch):
    trainer = small_trainer()
    predict_always(trainer, monkeypatch, masa.MetaPrediction(0.5, 5, ()))
    figures, attempts = trainer.step(1)
    assert all(len(rollout.response_ids) <= 10 for attempt in attempts for rollout in attempt.solutions)
    assert 0 < figures["cutoff_frac"] <= 1


def test_exploring_problems_are_neither_gated_nor_cut_and_judge_the_gate(monkeypatch):
    trainer = small_trainer(explore=1.0)
    predict_always(trainer, monkeypatch, masa.MetaPrediction(0.0, 1, ()))
    figures, attempts = trainer.step(1)
    assert all(not attempt.gated and attempt.limit is None for attempt in attempts)
    useless = [attempt.zero_variance for attempt in attempts]
    assert figures["gate_precision"] == sum(useless) / 4
    assert figures["gate_recall"] == (1.0 if any(useless) else None)
    right = sum(sum(attempt.correct) for attempt in attempts)  # all are longer than 2 tokens
    assert figures["wrongly_cut_frac"] == right / 16


def test_no_prediction_parsed_is_counted_and_earns_nothing(monkeypatch):
    trainer = small_trainer()
    predict_always(trainer, monkeypatch, None)
    figures, attempts = trainer.step(1)
    assert figures["parsed_frac"] == 0 and trainer.counters["unparsed_predictions"] == 16
    assert figures["reward_difficulty"] == 0 and figures["gated_frac"] == 0
    assert all(attempt.limit == 96 for attempt in attempts)


def test_no_correct_rollout_is_handled():
    trainer = Trainer(
        Options(problems=2, samples=4, efficient_from=0, eval_problems=4),
        policy.load("tiny", device="cpu"),
        tasks.load_problems("arithmetic", levels=(tasks.PRODUCT_LEVEL,)),
    )
    figures, _ = trainer.step(1)
    assert figures["train_pass_rate"] == 0 and figures["reward_length"] == 0
    assert figures["expert_loss"] is None
    assert trainer.experts == []  # failures alone would teach to predict 0, whatever the problem


def test_failures_have_experts_but_no_more_than_problems_were_solved(monkeypatch):
    trainer = small_trainer(efficient_from=99, expert_batch=99, expert_notion=0.0)
    predict_always(trainer, monkeypatch, masa.MetaPrediction(0.5, 20, ("carry",)))
    right = iter([True] * 8 + [False] * 999)  # 4 solutions a problem: two problems solved, the others not

    def reward(*_):
        return float(next(right))

    monkeypatch.setattr("attempts.solution_reward", reward)
    trainer.step(1)
    assert [json.loads(answer)["pass_rate"] for _, answer in trainer.experts] == [8, 8, 0, 0]  # of 8 attempts


def test_solved_problems_without_an_expert_make_no_room_for_failures():
    said = masa.MetaPrediction(0.5, 20, ("carry",))
    batch = [Attempt(problem, predictions=[said]) for problem in tasks.load_problems("arithmetic").train(0, 0, 2)]
    for attempt, right in zip(batch, (True, False), strict=True):
        attempt.solutions, attempt.correct = [Rollout([5], [6, 4], [0.0, 0.0], "stop")], [right]
        attempt.alignments = [AlignmentRewards(0.0, 0.0, 0.1)]
    assert experts(batch, True, 0.2) == []
    assert [json.loads(answer)["pass_rate"] for _, answer in experts(batch, True, 0.1)] == [8, 0]


def test_a_gate_that_would_skip_explored_problems_that_teach_does_not_act(monkeypatch):
    trainer = small_trainer(efficient_from=0, explore=0.0)
    predict_always(trainer, monkeypatch, masa.MetaPrediction(0.0, 20, ()))
    assert trainer.step(1)[0]["gated_frac"] == 1  # not judged yet
    trainer.recent.append([(True, True, 0, 0)] * 20 + [(True, False, 0, 0)] * 2 + [(False, False, 0, 0)] * 8)
    assert trainer.step(2)[0]["gated_frac"] == 1  # 2 of 10 that teach
    trainer.recent.append([(True, False, 0, 0)])
    _, attempts = trainer.step(3)  # 3 of 11, although 20 of its 23 are rightly skipped
    assert all(attempt.exploring and not attempt.gated for attempt in attempts)


def test_a_gate_that_fails_while_it_acts_is_noticed(monkeypatch):
    """Few problems explore then: the many that explored before must not vouch for it."""
    trainer = small_trainer(problems=8, efficient_from=17, explore=0.1, max_new_tokens=8)
    rewards = itertools.cycle((1.0, 0.0))
    monkeypatch.setattr("attempts.solution_reward", lambda *_: next(rewards))
    predict_always(trainer, monkeypatch, masa.MetaPrediction(0.5, 20, ()))
    for step in range(1, 17):
        trainer.step(step)
    assert list(trainer.explored) == [(False, False, 0, 0)] * 128  # all explored, and each of them teaches
    predict_always(trainer, monkeypatch, masa.MetaPrediction(0.0, 20, ()))
    gated = [trainer.step(step)[0]["gated_frac"] for step in range(17, 34)]
    assert gated[0] >= 0.5  # it acts, and skips whatever does not explore
    assert gated[-1] == 0  # of 128 problems nothing is left that explored before


def test_trust_in_the_gate_is_kept_in_a_checkpoint(tmp_path):
    trainer, resumed = small_trainer(), small_trainer()
    assert trainer.acts(1) and resumed.acts(1)
    trainer.recent.append([(True, False, 0, 0)])
    (tmp_path / "checkpoints").mkdir()
    checkpoint.save(trainer, tmp_path, {"step": 1})
    checkpoint.restore(resumed, tmp_path / "checkpoints" / "step-1")
    assert not trainer.acts(2) and not resumed.acts(2)


def test_imitation_fades():
    trainer = small_trainer(expert_lr=4e-4, expert_steps=100)
    found = {}
    for step in (0, 25, 100, 150):
        trainer.update([], step)
        found[step] = trainer.expert_optimizer.param_groups[0]["lr"]
    assert found == pytest.approx({0: 4e-4, 25: 3e-4, 100: 0.0, 150: 0.0})


@pytest.mark.parametrize(("rate", "easy", "gated"), [(0.0, False, True), (1.0, False, False), (1.0, True, True)])
def test_easy_problems_are_gated_only_if_asked_for(rate, easy, gated, monkeypatch):
    trainer = small_trainer(gate_easy=easy, explore=0.0)
    predict_always(trainer, monkeypatch, masa.MetaPrediction(rate, 40, ("flip",)))
    _, attempts = trainer.step(1)
    assert {attempt.gated for attempt in attempts} == {gated}


def test_grpo_predicts_nothing_whatever_the_model():
    for model in ("tiny", "somewhere"):
        chosen, _ = resolve_options({"algo": "grpo", "model": model})
        assert (chosen.predictions, chosen.gate, chosen.experts) == (0, False, False)


def test_hints_are_the_predicted_notions_in_the_solution_prompt(monkeypatch):
    trainer = small_trainer(hints=True, gate=False)
    predict_always(trainer, monkeypatch, masa.MetaPrediction(0.5, 40, ("flip", "carry")))
    _, attempts = trainer.step(1)
    prompts = {trainer.policy.decode(rollout.prompt_ids) for a in attempts for rollout in a.solutions}
    assert len(prompts) >= 3 and all("These notions may help: flip, carry" in prompt for prompt in prompts)


def test_an_alignment_reward_that_is_off_does_not_count():
    trainer = small_trainer(reward_length=False, reward_notion=False, normalize_std=False)
    _, attempts = trainer.step(1)
    solved = [attempt for attempt in attempts if attempt.solutions]
    chosen = [s.advantage for s in trainer.sequences(solved) if s.kind == "meta"]
    for attempt, start in zip(solved, range(0, len(chosen), 4), strict=True):
        rewards = [alignment.difficulty for alignment in attempt.alignments]
        expected = [reward - sum(rewards) / 4 for reward in rewards]
        assert chosen[start : start + 4] == pytest.approx(expected, abs=1e-6)


def test_solution_and_meta_groups_get_advantages_apart():
    trainer = small_trainer()
    _, attempts = trainer.step(1)
    solved = [attempt for attempt in attempts if attempt.solutions]
    sequences = trainer.sequences(solved)
    for kind in ("solution", "meta"):
        chosen = [s.advantage for s in sequences if s.kind == kind]
        assert len(chosen) == 4 * len(solved)
        for start in range(0, len(chosen), 4):
            assert sum(chosen[start : start + 4]) == pytest.approx(0, abs=1e-5)


def test_experts_are_imitated_once_a_batch_is_full(monkeypatch):
    trainer = small_trainer(expert_batch=3)
    expert = masa.MetaPrediction(0.5, 20, ("carry",))
    monkeypatch.setattr(masa, "expert_target", lambda *arguments: expert)
    attempts = [Attempt(problem) for problem in trainer.source.train(0, 0, 7)]
    for attempt in attempts:
        attempt.correct = [True]
        attempt.solutions = []
        monkeypatch.setattr(Attempt, "correct_lengths", property(lambda self: []))
    losses = [trainer.clone_experts(attempts[:2]), trainer.clone_experts(attempts[2:])]
    assert losses[0] is None and losses[1] > 0
    assert trainer.counters["experts_cloned"] == 6 and len(trainer.experts) == 1


def test_learning_rate_rises_during_warm_up():
    trainer = small_trainer(warmup_steps=4, lr=1e-3)
    rates = []
    for step in (1, 2, 4, 5):
        trainer.step(step)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 1e-3, 1e-3])


def test_problems_with_a_long_prompt_are_skipped_and_counted():
    # <user>, <assistant>, the two halves of the instruction and the two digits of 96 leave five characters.
    trainer = small_trainer(max_prompt_tokens=11, eval_problems=60)
    attempts = trainer.next_attempts(6, step=1, explore=0.0)
    assert all(len(attempt.problem.text) <= 5 for attempt in attempts)
    assert trainer.counters["prompts_too_long"] == trainer.drawn - 6 > 0
    assert all(len(problem.text) <= 5 for problem in trainer.held_out)
    with pytest.raises(OptionError, match="--max-prompt-tokens 2: all"):
        small_trainer(max_prompt_tokens=2)
    trainer.options = dataclasses.replace(trainer.options, max_prompt_tokens=2)
    with pytest.raises(OptionError, match="--max-prompt-tokens 2: the last 1000"):
        trainer.next_attempts(1, step=1, explore=0.0)


@pytest.mark.slow
def test_the_default_run_learns_to_solve_and_to_know_itself(tmp_path):
    """The main job as a newcomer runs it: pass@1 up by 0.20, predictions better on problems it never saw."""
    subprocess.run([sys.executable, "train.py", "--out", str(tmp_path / "run")], cwd=ROOT, check=True)
    rows = metrics(tmp_path / "run")
    first, last = rows[0], rows[-1]
    assert last["eval_pass1"] - first["eval_pass1"] >= 0.20
    assert last["eval_reward_length"] - first["eval_reward_length"] > 0.1
    assert last["eval_reward_difficulty"] - first["eval_reward_difficulty"] > 0.3
    assert last["eval_reward_notion"] - first["eval_reward_notion"] > 0.1
    assert any(row["gated_frac"] for row in rows) and any(row["cutoff_frac"] for row in rows)
    assert last["experts_cloned"] > 100 and last["skipped_updates"] == 0


# ---- bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--model", "no/such-model"], "no/such-model"),
        (["--no-such-option"], "--no-such-option"),
        (["--algo", "ppo"], "--algo"),
        (["--steps", "many"], "--steps"),
        (["--samples", "1"], "--samples"),
        (["--algo", "grpo", "--gate"], "--gate needs --predictions"),
    ],
)
def test_what_is_wrong_is_named(arguments, message, tmp_path):
    printed = run(*arguments, out=tmp_path / "run", ok=False).stderr
    assert message in printed and "Traceback" not in printed


@pytest.mark.parametrize(
    "lines, message",
    [
        (['{"problem": "1+1", "answer": "2"}', '{"problem": "1+'], "problems.jsonl:2"),
        (['{"problem": "1+1", "answer": "2"}', '{"problem": "1+2"}'], "problems.jsonl:2"),
        ([], "problems.jsonl"),
    ],
)
def test_a_broken_file_names_its_line(lines, message, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("\n".join(lines))
    printed = run("--data", str(file), out=tmp_path / "run", ok=False).stderr
    assert message in printed and "Traceback" not in printed


@pytest.mark.parametrize("name", ["problems", "steps", "temperature", "top_p", "lr", "explore", "minibatches"])
def test_options_that_make_no_sense_are_refused(name):
    with pytest.raises(OptionError, match=f"--{name.replace('_', '-')}: found -1"):
        Options(**{name: -1})


def test_presets_are_overridden_by_single_flags():
    given = {"algo": "masa", "gate": True, "model": "somewhere", "lr": 0.5}
    chosen, _ = resolve_options(given)
    assert chosen.gate and not chosen.cutoff and not chosen.experts
    assert chosen.lr == 0.5 and chosen.expert_lr == options.REAL_MODEL["expert_lr"]


def test_a_checkpoint_of_the_embedded_policy_keeps_its_preset(finished_run):
    chosen, _ = resolve_options({"model": str(finished_run / "checkpoints" / "step-3"), "out": "new"})
    assert chosen.data == "arithmetic" and chosen.lr == Options().lr


def test_resume_takes_the_newest_run_and_no_other_algorithm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("masa-efficient-tiny-seed0", "masa-efficient-tiny-seed0-2"):
        RunFolder(Path("runs") / name, Options(), -1).log(1, {}, [])
    assert resolve_options({"resume": True})[1].name == "masa-efficient-tiny-seed0-2"
    assert resolve_options({})[1].name == "masa-efficient-tiny-seed0-3"
    with pytest.raises(OptionError, match="--algo grpo"):
        resolve_options({"resume": True, "algo": "grpo", "out": "runs/masa-efficient-tiny-seed0"})


def test_a_finished_run_is_not_overwritten(finished_run):
    printed = run(*SMALL, out=finished_run, ok=False).stderr
    assert "--resume" in printed and len(metrics(finished_run)) == 4


def test_every_option_is_in_the_help():
    printed = run_script("train.py", "--help").stdout
    for name in Options.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in printed


def test_figures_that_are_not_finite_become_null(tmp_path):
    RunFolder(tmp_path, Options(), -1).log(1, {"loss": float("nan"), "grad_norm": float("inf"), "kl": 0.5}, [])
    (row,) = metrics(tmp_path)
    assert row["loss"] is None and row["grad_norm"] is None and row["kl"] == 0.5


def test_each_metric_is_explained_in_the_readme(finished_run):
    readme = (ROOT / "README.md").read_text()
    for name in metrics(finished_run)[-1]:
        assert f"`{name}`" in readme, f"README.md does not define the metric {name}"


def test_the_settings_of_the_update_come_from_the_options():
    settings = small_trainer(clip_high=0.4, kl_coef=0.0, aggregation="sequence-mean").update_settings
    assert isinstance(settings, grpo.UpdateSettings)
    assert settings.clip_high == 0.4 and settings.aggregation == "sequence-mean"
