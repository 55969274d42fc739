"""Beliefs: what is read in one forward pass is what sampling would show; it learns from outcomes, and the gate acts."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

import masa
import train
from engine.command_line import OptionError
from masa import pass_rate_count
from models.loading import load
from models.policy import Policy
from problems.source import Problem
from rollout import Attempt, Rollout, SamplingOptions, predict, read
from train import Options, make_trainer
from variants.read import RIDGE, Reader, fit

SMALL = {"problems": 4, "samples": 4, "eval_problems": 2, "efficient_from": 1, "explore": 0.0, "warmup_steps": 0}


@pytest.fixture(scope="module")
def embedded() -> Policy:
    return load("tiny", device="cpu", dtype="float32")


def reader(**options):
    return make_trainer(Options.of({"algo": "masa-read", "dtype": "float32"} | SMALL | options), kind=Reader)


def test_beliefs_are_those_of_a_plain_forward_pass_whatever_is_beside_them(embedded):
    prompts = [embedded.encode(masa.meta_prompt(text, 96)) for text in ("9+8-4", "5*3+27-8+9", "1+1")]
    opening, tokens = embedded.counts
    assert embedded.decode(opening + tokens[:1]) == '{"pass_rate": 0'
    with torch.no_grad():
        logits = [embedded.model(torch.tensor([prompt + opening])).logits[0, -1, tokens] for prompt in prompts]
    expected = torch.stack(logits).softmax(-1)
    for at_once in (1, 64):
        beliefs = embedded.beliefs(embedded.states(prompts, at_once))
        torch.testing.assert_close(torch.tensor(beliefs), expected)


def test_drawn_predictions_follow_the_belief(embedded):
    attempt = Attempt(Problem("9+8-4", "13"))
    sampling = SamplingOptions(predictions=2000)
    tokens = read(embedded, [attempt], sampling)
    predict(embedded, [attempt], sampling, torch.Generator().manual_seed(0))
    drawn = Counter(pass_rate_count(said.pass_rate) for said in attempt.predictions if said)
    assert tokens == len(attempt.meta_rollouts[0].prompt_ids) + len(embedded.counts[0])
    for count, probability in enumerate(attempt.belief):
        assert drawn[count] / drawn.total() == pytest.approx(probability, abs=0.045)  # four standard errors of 1/2


@pytest.mark.parametrize(
    ("encode", "counts"),
    [
        (lambda text: [ord(c) for c in text], ([ord(c) for c in '{"pass_rate": '], [ord(c) for c in "012345678"])),
        (lambda text: [7, *(ord(c) for c in text.split(": ", 1)[1])], ([7], [ord(c) for c in "012345678"])),
        (lambda text: [7, 1 if text[14] in "01" else 2, ord(text[14])], None),  # 0 and 1 begin alike, and the others
    ],
)
def test_any_tokenizer_is_read_or_refused(encode, counts):
    tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: encode(text))
    assert Policy(None, tokenizer, frozenset()).counts == counts


def test_a_policy_that_cannot_be_read_is_refused_at_the_start(monkeypatch):
    monkeypatch.setattr(Policy, "counts", None)
    with pytest.raises(OptionError, match="--variant read: this tokenizer"):
        reader()


def test_a_belief_worked_out_by_hand():
    belief = [0.5, 0, 0.25, 0, 0, 0, 0, 0, 0.25]
    assert masa.expected_pass_rate(belief) == 0.25 * 2 / 8 + 0.25
    assert (masa.probability_alike(belief), masa.probability_alike(belief, easy=False)) == (0.75, 0.5)


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_only_all_right_is_8_and_only_none_right_is_0(drawn):
    right, n = drawn
    count = pass_rate_count(right / n)
    assert (count == 0) == (right == 0) and (count == 8) == (right == n)
    assert abs(count - 8 * right / n) <= (0.5 if 0.5 <= 8 * right / n <= 7.5 else 1)


def solved(text: str, right: int) -> Attempt:
    solutions = [Rollout([1], [2], [0.0], "stop")] * 4
    return Attempt(Problem(text, "0"), solutions=solutions, correct=[True] * right + [False] * (4 - right))


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_probe_is_the_logistic_regression_of_scikit_learn(offset):
    states = torch.randn(200, 30, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 5, 30) + offset
    counts = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(1))
    probe, operations = fit(states, counts)
    inputs = (states - states.mean(0)) / states.std(unbiased=False, dim=0).square().mean().sqrt()
    peer = LogisticRegression(C=1 / RIDGE, max_iter=5000).fit(inputs.numpy(), counts.numpy())
    ours = (states @ probe[:, :-1].T + probe[:, -1]).softmax(-1)
    np.testing.assert_allclose(ours, peer.predict_proba(inputs.numpy()), atol=0.005)
    assert operations % (4 * 200 * 9 * 30) == 0 and operations > 0


def test_a_probe_of_one_outcome_or_one_problem_expects_it_again():
    for states, counts in ((torch.randn(32, 30), [0] * 32), (torch.ones(1, 30), [8])):
        probe, _ = fit(states, torch.tensor(counts))
        beliefs = (states @ probe[:, :-1].T + probe[:, -1]).softmax(-1)
        assert probe.isfinite().all() and (beliefs[:, counts[0]] > 0.9).all()


def test_beliefs_move_to_what_happened_and_a_checkpoint_keeps_them(tmp_path):
    trainer = reader()
    attempts = [solved("9+8-4", 0), solved("1+1", 4), solved("7-2+1", 2)]
    losses = []
    for _ in range(40):
        trainer.predict(attempts, 1, 0)
        losses.append(trainer.imitate(attempts, step=1)["read_loss"])
    assert losses[-1] < 0.2 * losses[0]
    assert [max(range(9), key=a.belief.__getitem__) for a in attempts] == [0, 8, 4]
    trainer.policy.save(tmp_path)
    kept, beliefs = load(str(tmp_path), device="cpu", dtype="float32"), [attempt.belief for attempt in attempts]
    read(kept, attempts, trainer.options.sampling)
    torch.testing.assert_close(kept.probe, trainer.policy.probe)
    assert [attempt.belief for attempt in attempts] != beliefs  # the last fit came after they were read
    assert [max(range(9), key=a.belief.__getitem__) for a in attempts] == [0, 8, 4]


def test_the_loss_is_that_of_the_belief_before_the_solutions():
    trainer, attempts = reader(), [solved("9+8-4", 0), solved("7-2+1", 2)]
    trainer.predict(attempts, 1, 0)
    expected = -(math.log(attempts[0].belief[0]) + math.log(attempts[1].belief[4])) / 2
    assert trainer.imitate(attempts, step=1)["read_loss"] == pytest.approx(expected)
    assert trainer.imitate([], step=1)["read_loss"] is None


def test_without_the_gate_reading_leaves_training_as_it_is():
    options = {"gate": "off", "efficient_from": 100, "seed": 3}
    trainers = [reader(**options), make_trainer(Options.of({"algo": "grpo", "dtype": "float32"} | SMALL | options))]
    for trainer in trainers:
        for step in range(1, 4):
            trainer.step(step)
    with_beliefs, without = (trainer.policy.model.state_dict() for trainer in trainers)
    assert all(torch.equal(with_beliefs[name], without[name]) for name in without)
    assert not torch.equal(without["lm_head.weight"], load("tiny", device="cpu").model.state_dict()["lm_head.weight"])


@pytest.mark.parametrize(("gate", "skipped"), [("hopeless", [True, False, False]), ("both", [True, True, False])])
def test_the_gate_acts_on_the_probability_that_all_are_alike(gate, skipped):
    trainer = reader(gate=gate, gate_margin=0.2)
    beliefs = [(0.8, *[0.025] * 8), (0.5, *[0.0] * 7, 0.5), (0.79, *[0.03] * 7, 0.0)]
    attempts = [Attempt(Problem(str(n), "0"), belief=belief) for n, belief in enumerate(beliefs)]
    trainer.gate(attempts)
    assert [attempt.skipped for attempt in attempts] == skipped


def test_reading_costs_a_forward_pass_and_no_generated_token(monkeypatch):
    trainer = reader()
    monkeypatch.setattr(Policy, "beliefs", lambda self, states: [(1.0, *[0.0] * 8)] * len(states))
    figures, attempts = trainer.step(1)
    prompts = [trainer.policy.encode(masa.meta_prompt(a.problem.text, 96)) for a in attempts]
    tokens = sum(len(prompt) + len(trainer.policy.counts[0]) for prompt in prompts)
    assert figures["gated_frac"] == 1 and figures["read_loss"] is None
    assert trainer.counters["tokens_read"] == tokens and trainer.counters["tokens_solution"] == 0
    assert trainer.counters["flops"] == 2 * tokens * trainer.policy.model.num_parameters()


def test_the_gate_of_beliefs_is_judged_on_explored_problems(monkeypatch):
    trainer = reader(explore=1.0)
    monkeypatch.setattr(Policy, "beliefs", lambda self, states: [(1.0, *[0.0] * 8)] * len(states))
    monkeypatch.setattr("rollout.solution_reward", lambda *_: 0.0)
    assert trainer.step(1)[0]["gate_precision"] == 1.0
    assert [judged[:3] for judged in trainer.explored] == [(1, True, True)] * 4
    assert train.WINDOW * train.ALGORITHMS["masa-read"]["explore"] >= 10, "so many explored problems judge the gate"
