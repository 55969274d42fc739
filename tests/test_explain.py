"""Test `train.py --explain`: its figures are those of a step that a trainer really makes, and it writes nothing."""

import dataclasses
import math
import re
import statistics

import pytest
from conftest import run_script

import masa
import train
from grpo import Sample
from lab import explain
from lab.explain import DEFAULTS, Story, fitted
from rewards import COMPONENTS, AlignmentRewards
from train import Options, Trainer

SEED = 2  # one of its predictions cannot be read, one of its problems is never solved


def trainer(**changes) -> Trainer:
    return train.make_trainer(Options.of(DEFAULTS | {"seed": SEED, "eval_problems": 4, "device": "cpu"} | changes))


@pytest.fixture(scope="module")
def story() -> Story:
    return Story(trainer())


@pytest.fixture(scope="module")
def sections(story) -> dict[str, str]:
    """Return the text of each section by its number; "0" is the introduction."""
    text = "\n".join(story.lines())
    return {(part[0] if part[0].isdigit() else "0"): part for part in text.split("\n\n") if part}


@pytest.fixture(scope="module")
def real() -> tuple[list, list[Sample], dict]:
    """Return attempts, samples and figures of the same step, made by a trainer that nobody watches."""
    unwatched = trainer()
    figures, attempts = unwatched.step(1)
    return attempts, unwatched.samples(attempts), figures


def floats(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[+-]?\d+\.?\d*(?:e-?\d+)?", text)]


def test_the_command_tells_each_step_within_the_terminal_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished = run_script("train.py", "--explain", "--device", "cpu")
    assert finished.status == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert 120 <= len(lines) <= 200 and max(map(len, lines)) <= explain.WIDTH
    for number in "12345678":
        assert re.search(rf"(?m)(^| ){number}\. [A-Z]+", finished.stdout)
    assert "learning rate 0.0003" in finished.stdout and "before training" in finished.stdout
    assert "steps have 32 problems, 2 predictions and 4 solutions" in finished.stdout  # the run's own, not the story's
    assert list(tmp_path.iterdir()) == []


def test_a_step_is_told_the_same_way_twice(sections):
    again = "\n".join(Story(trainer()).lines())
    assert all(section in again for section in sections.values())


def test_predictions_are_shown_read_or_not(story, sections):
    for attempt in story.attempts:
        assert attempt.problem.text in sections["1"]
        for rollout, said in zip(attempt.meta_rollouts, attempt.predictions, strict=True):
            raw = f"cannot be read, earns nothing: {story.policy.decode(rollout.response_ids)}"
            assert (masa.render_meta(said) if said else raw[:60]) in sections["1"]
    assert sections["1"].count("cannot be read") == 1


def test_the_gate_is_told_with_its_figures(story, sections):
    for attempt in story.attempts:
        rates = [said.pass_rate for said in attempt.predictions if said]
        mean, std = statistics.fmean(rates), statistics.pstdev(rates)
        assert f"{rates}: mean {mean:.3f}, standard deviation {std:.3f}" in sections["2"]
        lengths = sorted(said.solution_length for said in attempt.predictions if said)
        assert f"{lengths}: median {statistics.median(lengths):g}" in sections["2"]
        assert f"solved, in up to {attempt.limit} tokens" in sections["2"]


def test_a_skipped_problem_is_not_solved(monkeypatch):
    gating = trainer()
    monkeypatch.setattr(gating, "would_skip", lambda attempt: attempt.problem == first)
    first = gating.source.train(SEED, 0, 1)[0]
    text = "\n".join(Story(gating).lines())
    assert "problem 1: SKIPPED" in text and "problem 1: rewards" not in text and "problem 2: rewards" in text


def test_rewards_are_those_of_the_step_and_their_arithmetic_holds(sections, real):
    text = " ".join(sections["5"].split())
    told = [floats(line) for line in re.findall(r"reward = mean of ([^=]*= \S+)", text)]
    expected = [rewards for a in real[0] for rewards, said in zip(a.alignments, a.predictions, strict=True) if said]
    assert len(told) == len(expected) == 11
    for (*terms, mean), rewards in zip(told, expected, strict=True):
        assert terms == pytest.approx([rewards.length, rewards.difficulty, rewards.notion], rel=1e-3)
        assert mean == pytest.approx(sum(terms) / 3, rel=1e-3)
    for guess, right, of, value in re.findall(r"0\.01\^\|(\S+) - (\d)/(\d)\| = ([\d.e-]+)", text):
        assert float(value) == pytest.approx(0.01 ** abs(float(guess) - int(right) / int(of)), rel=1e-3)


def test_votes_count_each_solution_once_and_leave_out_what_the_problem_names(story):
    attempt = max(story.attempts, key=lambda attempt: sum("flip" in text for text in attempt.responses))
    with_flip = [right for text, right in zip(attempt.responses, attempt.correct, strict=True) if "flip" in text]
    sign, right = attempt.problem.text[0], sum(with_flip)
    told = explain.votes(attempt, ("Flip", "flip", " ", sign, "\x1b"))
    assert with_flip and told == f"flip {right}:{len(with_flip) - right}, {sign} in the problem, \x1b 0:0"


def test_advantages_are_those_of_the_step_and_their_arithmetic_holds(sections, real):
    samples = real[1]
    groups = re.findall(r"rewards of \w+ (.*)\n +mean (\S+), std (\S+); advantages (.*)", sections["6"])
    told = [advantage for *_, advantages in groups for advantage in floats(advantages)]
    # Solutions and predictions of a problem are told one after the other; samples are sorted by kind.
    by_problem = [s for i in range(3) for s in samples[6 * i : 6 * i + 6] + samples[18 + 4 * i : 22 + 4 * i]]
    assert told == pytest.approx([sample.advantage for sample in by_problem], abs=6e-4)
    for rewards, mean, std, advantages in groups:
        for reward, advantage in zip(floats(rewards), floats(advantages), strict=True):
            assert advantage == pytest.approx((reward - float(mean)) / (float(std) + 1e-6), abs=0.02)
    assert "+0.000, +0.000" in sections["6"]  # the problem that nobody solved


def test_the_update_is_told_with_its_weights_and_figures(sections, real):
    _, samples, figures = real
    assert f"loss {figures['loss']:.4g}, gradient norm {figures['grad_norm']:.4g}" in sections["7"]
    for kind, name, share in (("solution", "solutions", 1.0), ("meta", "predictions", 0.3)):
        tokens = sum(len(s.response_ids) for s in samples if s.kind == kind)
        zero = [s.advantage == 0 for s in samples if s.kind == kind]
        assert f"{name}: {len(zero)}, {sum(zero)} of them with advantage 0" in sections["7"]
        assert f"{tokens} tokens, each of weight {share / tokens:.6f}, together {share:.4f}" in sections["7"]
    for advantage, weight, push in re.findall(r"advantage (\S+) x weight (\S+) = push (\S+) on each", sections["7"]):
        assert float(push) == pytest.approx(float(advantage) * float(weight), rel=2e-3)


def test_a_step_of_other_settings_is_told_as_it_was(monkeypatch):
    monkeypatch.setattr(train, "EXPERT_BATCH", 1)
    other = Story(trainer(aggregation="sequence-mean", meta_weight=0.5, normalize_std=False))
    text = "\n".join(other.lines())
    for kind, total in (("solution", 1.0), ("meta", 0.5)):
        weights = [s.weight for s in other.samples if s.kind == kind for _ in s.response_ids]
        assert sum(weights) == pytest.approx(total)
        assert f"each of weight {min(weights):.6f} to {max(weights):.6f}, together {total:.4f}" in text
    assert re.search(r"collected: 0; imitation starts at 1; loss of imitation, after the update above: \d", text)
    told = re.findall(r"rewards of \w+ (.*)\n +mean ([\d.]+); advantages (.*)", text)
    assert len(told) == 6 and "reward - mean without --normalize-std (here False)" in text
    for rewards, mean, advantages in told:
        assert floats(advantages) == pytest.approx([reward - float(mean) for reward in floats(rewards)], abs=1e-3)


def test_a_fourth_reward_is_told_by_itself(monkeypatch, story):
    more = dataclasses.make_dataclass("More", [("sure", float, 0.25)], bases=(AlignmentRewards,), frozen=True)
    monkeypatch.setattr("rewards.COMPONENTS", (*COMPONENTS, "sure"))
    for a in story.attempts:
        monkeypatch.setattr(a, "alignments", [more(*dataclasses.astuple(earned)) for earned in a.alignments])
    assert " ".join("".join(story.lines()).split()).count("; sure 0.25; ") == 11


def test_what_did_better_becomes_more_likely_and_what_did_worse_less(story, sections):
    change = {1: 0.0, -1: 0.0}
    for sample in story.samples:
        before, after = sample.kept["before"].tolist(), sample.kept["after"].tolist()
        assert before == pytest.approx(sample.sampled_logprobs, abs=1e-4)
        if sample.advantage:
            change[1 if sample.advantage > 0 else -1] += sum(after) - sum(before)
    assert change[1] > 0.1 and change[-1] < -0.1
    told = [floats(line)[-3:] for line in re.findall(r"sum of log p .*", sections["7"])]
    assert len(told) == 4 and sum(row[2] for row in told[::2]) == pytest.approx(change[1], abs=2e-3)
    for before, after, difference in told:
        assert difference == pytest.approx(after - before, abs=2e-3)


def test_the_tokens_shown_are_those_of_the_best_rollout(story, sections):
    best = max((sample for sample in story.samples if sample.kind == "solution"), key=lambda sample: sample.advantage)
    before, after = best.kept["before"].tolist(), best.kept["after"].tolist()
    table = re.findall(r"(?m)^      (\d+) '.*' +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", sections["7"])
    assert len(table) == 2 * explain.SHOWN_TOKENS
    for place, *columns in table[: explain.SHOWN_TOKENS]:
        t, p = int(place) - 1, math.exp(before[int(place) - 1])
        expected = [before[t], p, math.exp(after[t]), after[t] - before[t], best.advantage * best.weight * (1 - p)]
        assert [float(column) for column in columns] == pytest.approx(expected, abs=1e-4)


def test_experts_are_those_that_wait_to_be_imitated(story, sections):
    assert all(answer in sections["8"] for _, answer in story.trainer.experts)
    assert len(story.trainer.experts) == 2 and "collected: 2; imitation starts at 16; loss" in sections["8"]


def test_grpo_has_no_predictions_to_tell_of_and_flags_win_over_defaults():
    flags = "--algo grpo --problems 5 --samples 4 --warmup-steps 10 --seed 3 --device cpu".split()
    printed = run_script("train.py", "--explain", *flags).stdout
    assert printed.startswith("One step of grpo: 5 problems, 0 predictions and 4 solutions")
    assert "steps have 32 problems, 0 predictions and 4 solutions" in printed  # the run's own
    assert "It is asked 0 times" in printed and "experts collected: 0;" in printed and "of predictions" not in printed
    assert "learning rate 3e-05" in printed and "problems skipped 0," in printed and "solutions: 20," in printed


def test_a_variant_is_told_with_what_it_leaves_out():
    printed = run_script("train.py", "--explain", *f"--variant dapo --seed {SEED} --device cpu".split()).stdout
    assert "variant 'dapo'" in printed and "advantages none, left out (--variant)" in printed


def test_what_a_model_wrote_cannot_steer_the_terminal():
    assert fitted("a\x1b[31m\n\u202e\ud800é") == ["a\\x1b[31m\\n\\u202e\\ud800é"]
    assert "".join("".join(fitted("x" * 1100)).split()) == "x" * 500 + "[...100charactersleftout...]" + "x" * 500
    hostile = Story(trainer(samples=10))
    hostile.attempts[0].responses[:] = ["\x1b[2J" + "y" * 9000] * 10
    lines = [part for line in hostile.lines() for part in fitted(line)]
    assert max(map(len, lines)) <= explain.WIDTH and "characters left out" in " ".join(lines)
    assert "".join(lines).isprintable()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--samples", "1"], "--samples: found 1, expected at least 2"),
        (["--model", "no/such-model"], "no/such-model"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--out", "somewhere"], "--out: --explain writes and resumes nothing"),
        (["--resume"], "--resume: --explain writes and resumes nothing"),
        (["--algo", "ppo"], "--algo"),
    ],
)
def test_what_is_wrong_is_named(arguments, message):
    finished = run_script("train.py", "--explain", *arguments)
    assert finished.status and message in finished.stderr and "Traceback" not in finished.stderr
