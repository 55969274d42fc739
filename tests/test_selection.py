"""Which problems are solved, and how often: the rules by hand and by property, and the loop that follows them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_train import predict_always, small_trainer

import costs
import grpo
import masa
from attempts import Attempt
from masa import MetaPrediction
from problems.tasks import Problem
from rollout import Rollout
from variants import selection


def predictions(*rates: float | None) -> list[MetaPrediction | None]:
    return [None if rate is None else MetaPrediction(rate, 10, ()) for rate in rates]


def test_predicted_variance_by_hand():
    assert selection.predicted_variance(predictions(0.25, 0.75)) == 0.25
    assert selection.predicted_variance(predictions(0.0, 0.25, None)) == pytest.approx(0.125 * 0.875)
    assert selection.predicted_variance(predictions(0.0, None, None)) == 0.25  # too few to act on
    assert selection.predicted_variance(predictions(1.0)) == 0.0


def test_the_largest_are_chosen_and_the_first_of_equals():
    assert selection.most_informative([0.1, 0.25, 0.0, 0.25, 0.1], 3) == [0, 1, 3]
    assert selection.most_informative([0.1], 3) == [0]


def test_sharing_out_by_hand():
    assert selection.share_out([0.0, 0.25], 32, 4, 32) == [4, 28]
    assert selection.share_out([0.0, 0.25], 64, 4, 32) == [32, 32]  # the bound leaves the rest to the other
    assert selection.share_out([], 0, 4, 32) == []
    with pytest.raises(ValueError, match="0 < unit"):
        selection.share_out([1.0], 4, 0, 4)


@given(st.lists(st.floats(0, 0.25), min_size=1, max_size=12), st.sampled_from([2, 4, 8]))
def test_sharing_out_keeps_the_sum_the_bounds_and_the_order(scores, unit):
    counts = selection.share_out(scores, 16 * len(scores), unit, 32)
    assert sum(counts) == 16 * len(scores)
    assert all(unit <= count <= 32 and count % unit == 0 for count in counts)
    for a, count_a in zip(scores, counts, strict=True):
        for b, count_b in zip(scores, counts, strict=True):
            assert not a > b + 1e-9 or count_a >= count_b


def test_choosing_keeps_exploring_problems_and_the_most_informative():
    attempts = [Attempt(Problem("p", "a"), predictions=predictions(rate)) for rate in (0.5, 0.0, 1.0, 0.25)]
    attempts[1].exploring = True
    selection.choose(attempts, 2)
    assert [attempt.gated for attempt in attempts] == [False, False, True, True]


def solved(correct: list[bool], prompt: int, length: int) -> Attempt:
    rollouts = [Rollout([7] * prompt, [5] * length, [0.0] * length, "stop") for _ in correct]
    return Attempt(Problem("p", "a"), solutions=rollouts, correct=correct)


def test_costs_by_hand():
    attempts = [solved([True, False], prompt=3, length=10), solved([False, False], prompt=4, length=6)]
    attempts[0].meta_rollouts = [Rollout([7] * 5, [5] * 2, [0.0] * 2, "stop")]
    found = costs.of_rollouts(attempts, parameters=100)
    # 3 + 20, 4 + 12 and 5 + 2 tokens, at 2 x 100 operations each
    assert found["rollouts"] == 5 and found["flops"] == 200 * 46
    assert (found["tokens_solution"], found["tokens_meta"], found["tokens_zero_variance"]) == (32, 2, 12)
    trained = costs.of_training([grpo.Sequence([1] * 3, [2] * 4), grpo.Sequence([1], [2])], 100, passes=3)
    assert trained == {"tokens_trained": 9, "flops": 600 * 9}


# ---- in the loop


def test_of_the_candidates_only_the_most_informative_are_solved(monkeypatch):
    trainer = small_trainer(select="informative", candidates=3, gate=False)
    rates = iter([0.0] * 16 + [0.5] * 16 + [1.0] * 16)  # 12 candidates, four predictions each
    monkeypatch.setattr(masa, "parse_meta", lambda text: MetaPrediction(next(rates), 60, ()))
    figures, attempts = trainer.step(1)
    assert [attempt.gated for attempt in attempts] == [True] * 4 + [False] * 4 + [True] * 4
    assert figures["gated_frac"] == pytest.approx(2 / 3)
    assert trainer.counters["rollouts"] == 12 * 4 + 4 * 4


def test_solutions_are_shared_out_by_predicted_variance(monkeypatch):
    trainer = small_trainer(share_samples=True, gate=False, samples=8)
    rates = iter([0.0] * 8 + [0.5] * 8)
    monkeypatch.setattr(masa, "parse_meta", lambda text: MetaPrediction(next(rates), 60, ()))
    _, attempts = trainer.step(1)
    assert [len(attempt.solutions) for attempt in attempts] == [2, 2, 14, 14]
    assert all(len(attempt.correct) == len(attempt.solutions) for attempt in attempts)
    for attempt in attempts:  # each solution belongs to the problem it is counted for
        prompts = {trainer.policy.decode(rollout.prompt_ids) for rollout in attempt.solutions}
        assert len(prompts) == 1 and attempt.problem.text in prompts.pop()


def test_before_the_efficient_steps_nothing_is_chosen_or_shared(monkeypatch):
    trainer = small_trainer(select="informative", share_samples=True, efficient_from=2)
    predict_always(trainer, monkeypatch, MetaPrediction(0.5, 60, ()))
    _, attempts = trainer.step(1)
    assert len(attempts) == 4 and all(len(attempt.solutions) == 4 for attempt in attempts)


GRPO = {"predictions": 0, "gate": False, "cutoff": False, "experts": False}


def test_dynamic_sampling_trains_on_problems_that_vary_alone():
    trainer = small_trainer(**GRPO, dynamic_sampling=True, samples=2)
    taught = []
    sequences = trainer.sequences
    trainer.sequences = lambda attempts: taught.extend(attempts) or sequences(attempts)
    figures, attempts = trainer.step(1)
    assert len(taught) == 4 and not any(attempt.zero_variance for attempt in taught)
    assert len(attempts) > 4 and trainer.counters["problems_seen"] == len(attempts)
    assert trainer.counters["tokens_solution"] == sum(len(r.response_ids) for a in attempts for r in a.solutions)
    assert trainer.counters["tokens_zero_variance"] > 0 and figures["zero_variance_frac"] > 0


def test_the_oracle_skips_what_its_own_solutions_show(monkeypatch):
    trainer = small_trainer(**GRPO, oracle_gate=8)
    monkeypatch.setattr("selection.probe", lambda policy, attempts, n, how, generator: [0.0, 0.5, 1.0, 1 / n])
    _, attempts = trainer.step(1)
    assert [attempt.gated for attempt in attempts] == [True, False, True, False]
    assert trainer.counters["rollouts"] == 2 * 4


def test_the_oracle_chooses_by_what_its_own_solutions_show(monkeypatch):
    trainer = small_trainer(**GRPO, oracle_gate=8, select="informative", candidates=2)
    rates = [0.0, 0.9, 0.5, 0.4, 1.0, 0.05, 0.2, 0.98]
    monkeypatch.setattr("selection.probe", lambda policy, attempts, n, how, generator: rates)
    _, attempts = trainer.step(1)
    assert [attempt.gated for attempt in attempts] == [rate not in (0.9, 0.5, 0.4, 0.2) for rate in rates]
    assert trainer.counters["rollouts"] == 4 * 4
    rates[1:4] = [1.0, 1.0, 1.0]  # fewer that vary than are wanted: the others teach nothing
    assert sum(not attempt.gated for attempt in trainer.step(2)[1]) == 3


def test_what_the_oracle_draws_does_not_count():
    trainer = small_trainer(**GRPO, oracle_gate=6)
    attempts = trainer.next_attempts(3, step=1, explore=0.0)
    selection.ask_oracle(trainer, attempts, step=1, round_=0, count=3)
    assert all(attempt.solutions == [] for attempt in attempts)  # its rollouts are kept apart
    assert trainer.counters["training_ms"] < 0  # taken off what the step as a whole will add


@pytest.mark.parametrize("flag", [{"select": "informative"}, {"share_samples": True}])
def test_what_goes_by_predictions_needs_some(flag):
    with pytest.raises(ValueError, match="needs --predictions above 0"):
        small_trainer(**GRPO, **flag)
