"""Training: the real script as a user runs it, one step seen from inside, and what can be wrong with the input."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, Finished, run_script

import grpo
import masa
import train
from engine.command_line import OptionError
from engine.figures import cost_of_rollouts, cost_of_training, transcript
from engine.run_folder import RunError, RunFolder, hold
from masa import ImitationOptions, MetaPrediction
from models import loading
from problems.source import Problem, ProblemError, load_problems
from rewards import AlignmentRewards
from rollout import Attempt, Rollout, expert_answers
from train import Options, Trainer, make_trainer, resolve

CONTRACT = """step wall_s tokens_solution tokens_meta train_pass_rate zero_variance_frac gated_frac cutoff_frac
gate_precision gate_recall reward_length reward_difficulty reward_notion expert_loss logprob_gap skipped_updates
verifier_timeouts eval_pass1 eval_reward_length eval_reward_difficulty eval_reward_notion""".split()


def run(*arguments: str, out: Path, ok: bool = True) -> Finished:
    finished = run_script("train.py", *arguments, "--out", str(out))
    assert (finished.status == 0) == ok and "Traceback" not in finished.stderr, finished.stderr
    return finished


def metrics(out: Path) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} in metrics.jsonl")

    return [json.loads(line, parse_constant=refuse) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_time(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in rows]


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
    files = [finished_run / "checkpoints" / "step-3" / name for name in ("model.safetensors", "trainer.pt")]
    assert len({file.stat().st_mode for file in files}) == 1  # who may read them is for the umask to say


def test_the_same_seed_gives_the_same_metrics(finished_run, tmp_path):
    run(*SMALL, out=tmp_path / "again")
    assert without_time(metrics(tmp_path / "again")) == without_time(metrics(finished_run))
    run(*SMALL, "--seed", "1", out=tmp_path / "other")
    assert without_time(metrics(tmp_path / "other")) != without_time(metrics(finished_run))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "EXPERT_BATCH", 2)  # some experts are imitated, and one may wait for the next step
    flags = [*SMALL, *"--save-every 2 --algo masa-paper --experts --minibatches 2".split()]
    options = Options.of(vars(train.build_parser().parse_args(flags)))
    train.train(options, tmp_path)
    whole = metrics(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step-3")  # as if killed before it was written ...
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "wall_s"')  # ... while writing a line
    options.run.resume = True
    train.train(options, tmp_path)
    resumed = metrics(tmp_path)
    assert without_time(resumed) == without_time(whole) and whole[3]["experts_cloned"] > 0
    assert resumed[:3] == whole[:3] and resumed[3] != whole[3], "only the last step is made again"


def test_resume_with_nothing_to_resume_says_so_and_starts(tmp_path):
    printed = run(*SMALL, "--steps", "1", "--resume", out=tmp_path / "new").stdout
    assert "nothing to resume" in printed and len(metrics(tmp_path / "new")) == 2


def test_a_checkpoint_is_a_model(finished_run, tmp_path):
    checkpoint = str(finished_run / "checkpoints" / "step-3")
    assert loading.load(checkpoint, device="cpu").eos_ids == loading.load("tiny", device="cpu").eos_ids
    run("--model", checkpoint, *SMALL, *"--max-new-tokens 48 --max-meta-tokens 16 --steps 1".split(), out=tmp_path)


@pytest.mark.parametrize("algo", ["grpo", "masa"])
def test_each_algorithm_is_a_flag(algo, tmp_path):
    run("--algo", algo, *SMALL, out=tmp_path)
    rows = metrics(tmp_path)
    assert (rows[-1]["tokens_meta"] > 0) == (algo == "masa")
    assert all(row["gated_frac"] == row["cutoff_frac"] == 0 and row["expert_loss"] is None for row in rows[1:])
    assert rows[-1]["eval_reward_difficulty"] is not None


def test_masa_paper_is_as_published_and_single_flags_override(tmp_path):
    run("--algo", "masa-paper", "--minibatches", "2", *SMALL, "--efficient-from", "3", out=tmp_path)
    rows = metrics(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["predictions"], config["gate"], config["gate_margin"], config["cutoff"]) == (8, "both", 0.0, 2.0)
    assert not any((config["explore"], config["experts"], config["expert_failures"], config["meta_reasoning"]))
    assert (config["gate_loss"], config["aggregation"], config["meta_weight"]) == (1.0, "joint-mean", 1.0)
    assert config["hints"] == "draws" and config["expert_optimizer"] == "shared" and config["eval_predictions"] == 8
    assert rows[-1]["clip_frac"] is not None and rows[-1]["rollouts"] > 0
    assert rows[2]["gate_recall"] is not None and rows[3]["gate_recall"] is None  # nothing explores once it acts
    options = Options.of({"algo": "masa-paper", "explore": 0.5, "hints": "off", "experts": True})
    assert (options.gate.explore, options.gate.hints, options.imitation.experts) == (0.5, "off", True)


def test_presets_of_real_models():
    def limits(**given) -> tuple[bool, int]:
        sampling = Options.of({"model": "somewhere", "max_new_tokens": 700} | given).sampling
        return sampling.meta_reasoning, sampling.max_meta_tokens

    assert limits(algo="masa-paper") == limits(meta_reasoning=True) == (True, 700)
    assert limits(algo="masa-paper", max_meta_tokens=90) == (True, 90)
    assert limits(algo="masa-paper", meta_reasoning=False) == limits(algo="masa") == (False, 128)
    with pytest.raises(OptionError, match="--meta-reasoning: the embedded policy"):
        Options.of({"meta_reasoning": True})
    assert [Options.of({"algo": "masa-read", "model": m}).gate.gate for m in ("tiny", "x")] == ["both", "off"]


def test_all_kinds_of_options_work_together(tmp_path):
    flags = """--hints votes --variant refill --kl-coef 0.01 --minibatches 2 --aggregation dr-grpo --no-normalize-std
    --meta-rewards difficulty,notion --meta-weight 0.3 --gradient-checkpointing --levels 1,2 --explore 0.5 --gate both
    --cutoff 1.5 --expert-notion 0 --expert-optimizer shared --difficulty-base 0.1 --keep 1 --data arithmetic:0.3"""
    run(*SMALL, *flags.split(), out=tmp_path)
    assert metrics(tmp_path)[-1]["kl"] is not None


def small_trainer(kind: type[Trainer] = Trainer, **changes) -> Trainer:
    small = {"problems": 4, "samples": 4, "predictions": 4, "efficient_from": 0, "explore": 0.0, "eval_problems": 4}
    return make_trainer(Options.of(small | {"device": "cpu"} | changes), kind=kind)


def predict_always(monkeypatch, *prediction) -> None:
    """Take whatever the policy writes for this prediction; without one, for text that does not parse."""
    monkeypatch.setattr(masa, "parse_meta", lambda text: MetaPrediction(*prediction) if prediction else None)


def test_a_step_that_skips_every_problem_costs_predictions_only(monkeypatch):
    trainer = small_trainer()
    predict_always(monkeypatch, 0.0, 10, ())
    figures, attempts = trainer.step(1)
    assert figures["gated_frac"] == 1.0 and figures["train_pass_rate"] is None and figures["loss"] is None
    assert trainer.counters["tokens_solution"] == 0 < trainer.counters["tokens_meta"]
    assert all(attempt.solutions == [] for attempt in attempts)


def test_solutions_are_cut_at_twice_the_predicted_length(monkeypatch):
    trainer = small_trainer()
    predict_always(monkeypatch, 0.5, 5, ())
    figures, attempts = trainer.step(1)
    assert all(len(rollout.response_ids) <= 10 for attempt in attempts for rollout in attempt.solutions)
    assert 0 < figures["cutoff_frac"] <= 1


def test_exploring_problems_are_neither_skipped_nor_cut_and_judge_the_gate(monkeypatch):
    trainer = small_trainer(explore=1.0)
    predict_always(monkeypatch, 0.0, 1, ())
    figures, attempts = trainer.step(1)
    assert all(not attempt.skipped and attempt.limit is None for attempt in attempts)
    useless = [attempt.zero_variance for attempt in attempts]
    assert figures["gate_precision"] == sum(useless) / 4
    assert figures["gate_recall"] == (1.0 if any(useless) else None)
    right = sum(sum(attempt.correct) for attempt in attempts)  # all are longer than 2 tokens
    assert figures["wrongly_cut_frac"] == right / 16


def test_predictions_that_do_not_parse_are_counted_and_earn_nothing(monkeypatch):
    trainer = small_trainer()
    predict_always(monkeypatch)
    figures, attempts = trainer.step(1)
    assert figures["parsed_frac"] == 0 and trainer.counters["unparsed_predictions"] == 16
    assert figures["reward_difficulty"] == 0 and figures["gated_frac"] == 0
    assert all(attempt.limit == 96 for attempt in attempts)
    texts = [trainer.policy.decode(rollout.response_ids) for rollout in attempts[0].meta_rollouts]
    assert transcript(attempts[0], 1)["unparsed"] == texts


def test_a_step_without_a_correct_solution():
    trainer = small_trainer(problems=2, predictions=2, levels="6")  # products
    figures, _ = trainer.step(1)
    assert figures["train_pass_rate"] == 0 and figures["reward_length"] == 0
    assert figures["expert_loss"] is None
    assert trainer.experts == []  # failures alone would teach to predict 0, whatever the problem


def test_there_are_no_more_experts_of_failures_than_of_successes(monkeypatch):
    trainer = small_trainer(efficient_from=99, expert_notion=0.0)
    predict_always(monkeypatch, 0.5, 20, ("carry",))
    right = iter([True] * 8 + [False] * 999)  # 4 solutions each: two problems are solved, the others are not
    monkeypatch.setattr("rollout.solution_reward", lambda *_: float(next(right)))
    trainer.step(1)
    assert [json.loads(answer)["pass_rate"] for _, answer in trainer.experts] == [8, 8, 0, 0]  # of 8 attempts


def solved(problem: Problem, *correct: bool, length: int = 2, **known) -> Attempt:
    solutions = [Rollout([5], [6] * length, [0.0] * length, "stop") for _ in correct]
    return Attempt(problem, solutions=solutions, correct=list(correct), **known)


def test_successes_without_an_expert_make_no_room_for_failures():
    known = {"predictions": [MetaPrediction(0.5, 20, ("carry",))], "alignments": [AlignmentRewards(0.0, 0.0, 0.1)]}
    first, second = load_problems("arithmetic").train(0, 0, 2)
    batch = [solved(first, True, **known), solved(second, False, **known)]
    assert expert_answers(batch, ImitationOptions(expert_notion=0.2)) == []
    experts = expert_answers(batch, ImitationOptions(expert_notion=0.1))
    assert [json.loads(answer)["pass_rate"] for _, answer in experts] == [8, 0]


def test_a_gate_that_would_skip_problems_that_teach_does_not_act(monkeypatch):
    trainer = small_trainer()
    predict_always(monkeypatch, 0.0, 20, ())
    assert trainer.step(1)[0]["gated_frac"] == 1  # not judged yet
    judged = [(True, True)] * 20 + [(True, False)] * 2 + [(False, False)] * 8  # would skip, zero variance
    trainer.explored.extend((1, *pair, 0, 0) for pair in judged)
    assert trainer.step(2)[0]["gated_frac"] == 1  # it would lose 2 of the 10 that teach
    trainer.explored.append((2, True, False, 0, 0))
    _, attempts = trainer.step(3)  # 3 of 11, although 20 of the 23 that it would skip are useless
    assert all(attempt.explores and not attempt.skipped for attempt in attempts)


def test_a_gate_that_fails_while_it_acts_is_noticed(monkeypatch):
    """Few problems explore while it acts: the many that explored before must not vouch for it."""
    monkeypatch.setattr("train.WINDOW", 128)
    trainer = small_trainer(problems=8, efficient_from=17, explore=0.1, max_new_tokens=8)
    rewards = itertools.cycle((1.0, 0.0))
    monkeypatch.setattr("rollout.solution_reward", lambda *_: next(rewards))
    predict_always(monkeypatch, 0.5, 20, ())
    for step in range(1, 17):
        trainer.step(step)
    assert [judged[1:] for judged in trainer.explored] == [(False, False, 0, 0)] * 128  # all explored, and all teach
    predict_always(monkeypatch, 0.0, 20, ())
    gated = [trainer.step(step)[0]["gated_frac"] for step in range(17, 34)]
    assert gated[0] >= 0.5  # it acts, and skips whatever does not explore
    assert gated[-1] == 0  # none of the recent 128 problems explored before it acted


def test_trust_in_the_gate_is_kept_in_a_checkpoint(tmp_path):
    trainer, resumed = small_trainer(), small_trainer()
    assert trainer.acts(1) and resumed.acts(1)
    trainer.explored.append((1, True, False, 0, 0))
    trainer.lessons.append((torch.tensor([0.5, 1.5]), 5))
    folder = RunFolder(tmp_path, trainer.options.flat(), False, 2)
    folder.restore(trainer)
    folder.log(1, {}, [])
    folder.save(trainer, 1)
    assert RunFolder(tmp_path, trainer.options.flat(), True, 2).restore(resumed) == 1
    assert not trainer.acts(2) and not resumed.acts(2) and str(resumed.lessons) == str(trainer.lessons)
    resumed.source.checksum += 1
    with pytest.raises(RunError, match="--resume: the problems of arithmetic are others than when"):
        RunFolder(tmp_path, trainer.options.flat(), True, 2).restore(resumed)


@pytest.mark.parametrize(
    ("rate", "gate", "skipped"), [(0.0, "hopeless", 1), (1.0, "hopeless", 0), (1.0, "both", 1), (0.0, "off", 0)]
)
def test_the_gate_skips_what_it_is_set_to(rate, gate, skipped, monkeypatch):
    trainer = small_trainer(gate=gate)
    predict_always(monkeypatch, rate, 40, ("flip",))
    assert trainer.step(1)[0]["gated_frac"] == skipped


def test_hints_are_the_predicted_notions_in_the_solution_prompt(monkeypatch):
    trainer = small_trainer(hints="votes", gate="off")
    predict_always(monkeypatch, 0.5, 40, ("flip", "carry"))
    _, attempts = trainer.step(1)
    prompts = {trainer.policy.decode(rollout.prompt_ids) for a in attempts for rollout in a.solutions}
    assert len(prompts) >= 3 and all("These notions may help: flip, carry" in prompt for prompt in prompts)


def test_each_solution_has_a_hint_of_its_own(monkeypatch):
    trainer = small_trainer(hints="draws", gate="off", samples=24, normalize_std=False, cutoff=0.0)
    notions = itertools.cycle((("flip",), ("carry", "ok"), ("zero",) * 60, ()))  # 60 notions make the prompt too long
    monkeypatch.setattr(masa, "parse_meta", lambda text: MetaPrediction(0.5, 40, next(notions)))
    _, attempts = trainer.step(1)
    for attempt in attempts:
        assert set(attempt.hints) == {("flip",), ("carry", "ok"), ()} and len(attempt.hints) == 24
        for hint, solution in zip(attempt.hints, attempt.solutions, strict=True):
            assert trainer.policy.encode(masa.solution_prompt(attempt.problem.text, hint)) == solution.prompt_ids
    group = trainer.samples(attempts)[:24]  # one group, whatever the prompts
    assert {sample.group for sample in group} == {0} and len({tuple(sample.prompt_ids) for sample in group}) == 3
    advantages = [right - attempts[0].pass_rate for right in attempts[0].correct]
    assert [sample.advantage for sample in group] == pytest.approx(advantages)
    assert small_trainer(hints="draws", seed=1).step(1)[1][0].hints != attempts[0].hints


def test_a_prediction_that_reasons_is_asked_to_counted_shown_and_imitated(monkeypatch):
    trainer = small_trainer(efficient_from=99)
    sampling = trainer.options.sampling
    sampling.meta_reasoning, sampling.max_prompt_tokens = True, 999  # it is asked in characters
    monkeypatch.setattr(type(trainer.policy), "positions", 999)
    said = '<meta>7+5 needs a carry.</meta> {"pass_rate": 1, "solution_length": 9, "notions": ["7"]}'
    texts = itertools.cycle([said, "no"])
    monkeypatch.setattr(type(trainer.policy), "decode", lambda policy, ids: next(texts))
    monkeypatch.setattr("rollout.solution_reward", lambda *_: 1.0)
    monkeypatch.setattr(masa, "expert_target", lambda group, *_: dataclasses.replace(group[0], pass_rate=1.0))
    _, attempts = trainer.step(1)
    asked = trainer.policy.encode(masa.meta_prompt(attempts[0].problem.text, 96, reasoning=True))
    assert all(rollout.prompt_ids == asked for rollout in attempts[0].meta_rollouts)
    shown = transcript(attempts[0], 1)
    assert shown["predictions"][0]["thought"] == "<meta>7+5 needs a carry.</meta>" and shown["unparsed"] == ["no", "no"]
    expert = '<meta>7+5 needs a carry.</meta>\n{"pass_rate": 8, "solution_length": 9, "notions": ["7"]}'
    assert [answer for _, answer in trainer.experts] == [expert] * 4


def test_only_the_chosen_alignment_rewards_count():
    trainer = small_trainer(meta_rewards="difficulty", normalize_std=False)
    attempts = [attempt for attempt in trainer.step(1)[1] if attempt.solutions]
    advantages = [sample.advantage for sample in trainer.samples(attempts) if sample.kind == "meta"]
    for attempt, start in zip(attempts, range(0, len(advantages), 4), strict=True):
        rewards = [alignment.difficulty for alignment in attempt.alignments]
        expected = [reward - sum(rewards) / 4 for reward in rewards]
        assert advantages[start : start + 4] == pytest.approx(expected, abs=1e-6)


def test_solutions_and_predictions_are_separate_groups():
    trainer = small_trainer()
    attempts = [attempt for attempt in trainer.step(1)[1] if attempt.solutions]
    samples = trainer.samples(attempts)
    assert [sample.group for sample in samples] == [k // 4 for k in range(8 * len(attempts))]
    assert [sample.kind for sample in samples] == ["solution"] * 4 * len(attempts) + ["meta"] * 4 * len(attempts)
    for group in (samples[start : start + 4] for start in range(0, len(samples), 4)):
        assert sum(sample.advantage for sample in group) == pytest.approx(0, abs=1e-5)
        assert len({tuple(sample.prompt_ids) for sample in group}) == 1


def test_experts_are_imitated_once_there_is_a_full_batch(monkeypatch):
    trainer = small_trainer()
    monkeypatch.setattr(train, "EXPERT_BATCH", 3)
    monkeypatch.setattr(masa, "expert_target", lambda *arguments: MetaPrediction(0.5, 20, ("carry",)))
    attempts = [solved(problem, True) for problem in trainer.source.train(0, 0, 7)]
    losses = [trainer.imitate(some, 1)["expert_loss"] for some in (attempts[:2], attempts[2:])]
    assert losses[0] is None and losses[1] > 0
    assert trainer.counters["experts_cloned"] == 6 and len(trainer.experts) == 1


def test_the_learning_rates_warm_up_and_fade():
    published = small_trainer(expert_optimizer="shared", expert_lr=4e-4, steps=100)
    published.experts = [("9+8-4", "a prediction")] * train.EXPERT_BATCH
    published.imitate([], 99)
    assert published.expert_optimizer is published.optimizer and published.optimizer.param_groups[0]["lr"] == 4e-4
    trainer = small_trainer(warmup_steps=4, lr=1e-3, lr_end=0.9, expert_lr=4e-4, steps=100)
    rates = {}
    for step in (0, 1, 2, 4, 25, 100, 150):
        trainer.update([], step)
        trainer.experts = [("9+8-4", "a prediction")] * train.EXPERT_BATCH
        trainer.imitate([], step)
        rates[step] = [o.param_groups[0]["lr"] for o in (trainer.optimizer, trainer.expert_optimizer)]
    assert [rates[step][0] for step in (1, 2, 4, 25)] == pytest.approx([0.2475e-3, 0.49e-3, 0.96e-3, 0.9e-3])
    assert [rates[step][1] for step in (0, 25, 100, 150)] == pytest.approx([4e-4, 3e-4, 0.0, 0.0])


def test_problems_with_a_long_prompt_are_skipped_and_counted():
    # <user>, <assistant>, the two halves of the instruction and the two digits of 96 leave five characters.
    trainer = small_trainer(max_prompt_tokens=11, eval_problems=60)
    assert trainer.counters["prompts_too_long"] == (held_out := 60 - len(trainer.held_out)) > 0
    attempts = trainer.next_attempts(6, step=1, explore=0.0)
    assert all(len(attempt.problem.text) <= 5 for attempt in attempts)
    assert trainer.counters["prompts_too_long"] - held_out == trainer.drawn - 6 > 0
    assert all(len(problem.text) <= 5 for problem in trainer.held_out)
    with pytest.raises(OptionError, match="--max-prompt-tokens: the prompts of all held-out"):
        small_trainer(max_prompt_tokens=2)
    trainer.options.sampling.max_prompt_tokens = 2
    with pytest.raises(ProblemError, match="--max-prompt-tokens: the prompts of the last 1000"):
        trainer.next_attempts(1, step=1, explore=0.0)


def test_costs_worked_out_by_hand():
    attempts = [
        solved(Problem("p", "a"), True, False, length=10, meta_rollouts=[Rollout([7] * 5, [5] * 2, [0.0] * 2, "stop")]),
        solved(Problem("q", "a"), False, False, length=6),
    ]
    attempts[0].solutions[0].prompt_ids = [5, 8, 8]  # it has a hint
    costs = cost_of_rollouts(attempts, parameters=100)
    # 3 + 1 + 20, 1 + 12 and 5 + 2 tokens, at 2 x 100 operations each
    assert costs["rollouts"] == 5 and costs["flops"] == 200 * 44
    assert (costs["tokens_solution"], costs["tokens_meta"], costs["tokens_zero_variance"]) == (32, 2, 12)
    trained = cost_of_training([grpo.Sample([1] * 3, [2] * 4), grpo.Sample([1], [2])], 100, passes=3)
    assert trained == {"tokens_trained": 9, "flops": 600 * 9}


@pytest.mark.slow
def test_the_default_run_learns_to_solve_and_to_know_itself(tmp_path):
    """As a newcomer runs it: pass@1 rises by 0.20, and predictions get better on problems it never saw."""
    subprocess.run([sys.executable, "train.py", "--out", str(tmp_path / "run")], cwd=ROOT, check=True)
    rows = metrics(tmp_path / "run")
    first, last = rows[0], rows[-1]
    assert last["eval_pass1"] - first["eval_pass1"] >= 0.20
    assert last["eval_reward_length"] - first["eval_reward_length"] > 0.04
    assert last["eval_reward_difficulty"] - first["eval_reward_difficulty"] > 0.3
    assert last["eval_reward_notion"] - first["eval_reward_notion"] > 0.1
    assert any(row["gated_frac"] for row in rows) and any(row["cutoff_frac"] for row in rows)
    assert last["experts_cloned"] > 100 and last["skipped_updates"] == 0


WRONG = {"--levels hard": "levels: found 'hard'", "--meta-rewards speed": "--meta-rewards: found speed"}
WRONG |= {"--data nothing.jsonl": "nothing.jsonl", "--model no/such-model": "no/such-model", "--samples 1": "--samples"}
WRONG |= {"--algo ppo": "--algo", "--variant ppo": "--variant", "--temperature 0": "--temperature"}
WRONG |= {"--shard": "torchrun --nproc-per-node N train.py --shard"}
for given in ("--gate both", "--cutoff 2", "--hints draws", "--experts"):
    WRONG[f"--algo grpo {given}"] = f"--predictions 0 leaves {given.split()[0]} nothing"


@pytest.mark.parametrize("arguments, message", WRONG.items())
def test_what_is_wrong_is_named(arguments, message, tmp_path):
    assert message in run(*arguments.split(), out=tmp_path / "run", ok=False).stderr
    assert not (tmp_path / "run").exists()


def test_flags_override_the_presets_of_algorithm_and_model():
    options = Options.of({"algo": "masa", "gate": "both", "model": "somewhere", "lr": 0.5})
    assert options.gate.gate == "both" and not options.gate.cutoff and not options.imitation.experts
    assert options.update.lr == 0.5 and options.imitation.expert_lr == 1e-6 and options.data.data == "words"
    for model in ("tiny", "somewhere"):
        grpo = Options.of({"algo": "grpo", "model": model})
        assert (grpo.sampling.predictions, grpo.gate.gate, grpo.imitation.experts) == (0, "off", False)


def test_a_checkpoint_of_the_embedded_policy_keeps_its_defaults(finished_run):
    options = Options.of({"model": str(finished_run / "checkpoints" / "step-3")})
    assert options.data.data == "arithmetic" and options.update == Options.of({}).update


def test_resume_takes_the_newest_run_and_a_new_one_the_next_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("name", "name-2"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "metrics.jsonl").write_text('{"step": 1}\n')
    with hold("", "name", resume=True) as resumed, hold("", "name", resume=False) as new:
        assert (resumed.name, new.name) == ("name-2", "name-3")
        with hold("", "name", resume=False) as another:
            assert another.name == "name-4"
        for out, resume, message in (("runs/name", False, "--resume"), ("", True, "another process is training")):
            with pytest.raises(RunError, match=message), hold(out, "name", resume):
                pass
    assert sorted(path.name for path in Path("runs").iterdir()) == ["name", "name-2"]  # the empty ones are gone
    assert [path.name for path in Path("runs/name-2").iterdir()] == ["metrics.jsonl"]


def write_config(folder: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    config = Options.of({"algo": "masa", "model": "warm", "problems": 7}).flat() | changes
    kept = {name: value for name, value in config.items() if value != "missing"}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def test_a_resumed_run_keeps_its_options_and_tells_what_changes(tmp_path, capsys):
    run = write_config(tmp_path, lr=1)
    options = resolve({"resume": True, "model": "warm/", "lr": 0.5}, run)
    assert (options.run.algo, options.run.problems, options.update.lr) == ("masa", 7, 0.5)
    assert capsys.readouterr().out == "--lr 0.5 from here on; until now the run had 1\n"
    assert resolve({"model": "warm"}, run).run.problems == 16  # nothing is taken over without --resume


@pytest.mark.parametrize(
    "given, changes, message",
    [
        ({"algo": "grpo"}, {}, "--algo grpo: .* is a run of 'masa'; leave --algo out"),
        ({"model": "other"}, {}, "--model other: .* is a run of 'warm'"),
        ({"seed": 3}, {}, "--seed 3: .* is a run of 0"),
        ({}, {"speed": 3}, "config.json: found speed, expected no such option"),
        ({}, {"lr": "missing"}, "config.json: found no lr"),
        ({}, {"lr": "fast"}, "config.json: found lr = 'fast', expected a value of type float"),
        ({}, {"problems": True}, "config.json: found problems = True, expected a value of type int"),
        ({}, {"gate": "left"}, "--gate: found 'left', expected one of"),
    ],
)
def test_what_a_resumed_run_cannot_be_is_named(given, changes, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        resolve({"resume": True} | given, write_config(tmp_path, **changes))


def test_a_config_that_is_no_object_is_named(tmp_path):
    for text in ("[1]", "{torn"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RunError, match="expected an object in JSON"):
            resolve({"resume": True}, tmp_path)


def test_a_finished_run_is_not_overwritten(finished_run):
    printed = run(*SMALL, out=finished_run, ok=False).stderr
    assert "--resume" in printed and len(metrics(finished_run)) == 4


def test_figures_that_are_not_finite_become_null(tmp_path):
    RunFolder(tmp_path, {}, False, 2).log(1, {"loss": float("nan"), "grad_norm": float("inf"), "kl": 0.5}, [])
    (row,) = metrics(tmp_path)
    assert row["loss"] is None and row["grad_norm"] is None and row["kl"] == 0.5
