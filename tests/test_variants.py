"""Variants: which problems each one solves, how many it draws, and what of that counts."""

import pytest
from test_train import predict_always, small_trainer

import masa
import train
import variants
from masa import MetaPrediction
from train import Trainer
from variants import dapo, history, oracle, read, refill

GRPO = {"algo": "grpo", "predictions": 0}


def test_each_variant_is_an_option_and_a_trainer():
    assert tuple(variants.CLASSES) == train.VARIANTS
    assert all(issubclass(variants.load(name), Trainer) for name in train.VARIANTS)
    both = variants.load("read,dapo")
    assert both.wanted is dapo.Dapo.wanted and both.predict is read.Reader.predict


def test_refill_replaces_skipped_problems_by_fresh_ones(monkeypatch):
    trainer = small_trainer(refill.Refill)
    rates = iter([0.0] * 16 + [0.5] * 16)  # four predictions each: the first four problems are skipped
    monkeypatch.setattr(masa, "parse_meta", lambda text: MetaPrediction(next(rates), 40, ()))
    figures, attempts = trainer.step(1)
    assert figures["gated_frac"] == 0.5
    assert [attempt.skipped for attempt in attempts] == [True] * 4 + [False] * 4
    assert [attempt.problem for attempt in attempts] == trainer.source.train(0, 0, 8)


def test_refill_gives_up_on_a_gate_that_refuses_everything(monkeypatch):
    trainer = small_trainer(refill.Refill)
    predict_always(monkeypatch, 0.0, 40, ())
    figures, attempts = trainer.step(1)
    assert len(attempts) == 4 * refill.MAX_DRAWS and figures["gated_frac"] == 1


def test_dynamic_sampling_learns_only_from_problems_that_vary(monkeypatch):
    trainer = small_trainer(dapo.Dapo, **GRPO, samples=2)
    learned, update = [], trainer.update
    monkeypatch.setattr(trainer, "update", lambda samples, step: learned.extend(samples) or update(samples, step))
    figures, attempts = trainer.step(1)
    varied = [attempt for attempt in attempts if not attempt.zero_variance][:4]
    expected = [rollout.response_ids for attempt in varied for rollout in attempt.solutions]
    assert [sample.response_ids for sample in learned] == expected and len(expected) == 4 * 2
    assert all(sample.advantage for sample in learned)
    assert len(attempts) > 4 and trainer.counters["problems_seen"] == len(attempts)
    assert trainer.counters["tokens_solution"] == sum(len(r.response_ids) for a in attempts for r in a.solutions)
    assert trainer.counters["tokens_zero_variance"] > 0 and figures["zero_variance_frac"] > 0


def test_dynamic_sampling_learns_from_the_predictions_of_all_problems_drawn(monkeypatch):
    trainer = small_trainer(dapo.Dapo, algo="masa", samples=2)
    learned = []
    monkeypatch.setattr(trainer, "update", lambda samples, step: learned.extend(samples) or {})
    _, attempts = trainer.step(1)
    kinds = {kind: [s.response_ids for s in learned if s.kind == kind] for kind in ("solution", "meta")}
    varied = [attempt for attempt in attempts if not attempt.zero_variance][:4]
    assert kinds["solution"] == [rollout.response_ids for attempt in varied for rollout in attempt.solutions]
    assert kinds["meta"] == [rollout.response_ids for attempt in attempts for rollout in attempt.meta_rollouts]
    assert len(attempts) > 4 == len({s.group for s in learned if s.kind == "solution"})
    assert len({s.group for s in learned}) == 4 + len(attempts)  # no group of predictions is mixed with another


def test_dynamic_sampling_gives_up_when_nothing_varies():
    trainer = small_trainer(dapo.Dapo, **GRPO, samples=2, max_new_tokens=4)  # too short for an answer
    figures, attempts = trainer.step(1)
    assert len(attempts) == 4 * dapo.MAX_DRAWS and figures["loss"] is None


def test_the_oracle_skips_what_its_own_solutions_show_to_be_useless(monkeypatch):
    trainer = small_trainer(oracle.OracleGate, **GRPO)
    outcomes = [[False] * 32, [True, False], [True] * 32, [False, True]]

    def solve(policy, probed, sampling, stream):
        assert sampling.samples == 32
        for attempt, correct in zip(probed, outcomes, strict=True):
            attempt.correct = correct

    monkeypatch.setattr(oracle, "solve", solve)
    _, attempts = trainer.step(1)
    assert [attempt.skipped for attempt in attempts] == [True, False, True, False]
    assert trainer.counters["rollouts"] == 2 * 4


def test_what_the_oracle_draws_does_not_count(monkeypatch):
    monkeypatch.setattr(oracle, "TRIALS", 6)
    trainer = small_trainer(oracle.OracleGate, **GRPO)
    attempts = trainer.next_attempts(3, step=1, explore=0.0)
    trainer.choose(attempts, step=1, draw=0)
    assert all(attempt.solutions == [] for attempt in attempts)  # its own are kept apart
    assert trainer.counters["tokens_solution"] == trainer.counters["rollouts"] == 0
    assert trainer.counters["training_ms"] < 0  # taken off the time that the whole step will add


def test_history_is_bayes_rule_over_nine_rates():
    # After 4 wrong of 4 under even weights: sum of (1 - c/8)^8 over sum of (1 - c/8)^4, and the all-right part
    even, rates = [1.0] * 9, [c / 8 for c in range(9)]
    by_hand = sum((1 - p) ** 4 * (p**4 + (1 - p) ** 4) for p in rates) / sum((1 - p) ** 4 for p in rates)
    assert history.alike_after(even, 0, 4, 4) == pytest.approx(by_hand)
    assert by_hand < history.LEAST < history.alike_after(even, 0, 8, 4)
    sure = [0.9] + [0.0125] * 8  # a belief of "nobody right" needs only one look
    assert history.alike_after(sure, 0, 4, 4) > history.LEAST > history.alike_after(sure, 1, 3, 4)


def test_history_skips_a_problem_that_was_always_wrong(monkeypatch):
    monkeypatch.setattr("rollout.solution_reward", lambda *_: 0.0)
    trainer = small_trainer(history.History, **GRPO, variant="history")
    same = trainer.source.train(0, 0, 4)
    monkeypatch.setattr(trainer.source, "problem", lambda seed, index: same[index % 4])
    gated = [trainer.step(step)[0]["gated_frac"] for step in (1, 2, 3)]
    assert gated == [0, 0, 1]
