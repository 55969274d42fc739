"""The engine against the plain core: the same tokens from the sampler, gradients within 1e-5 from the update."""

from functools import partial
from itertools import chain

import pytest
import test_rollout
import torch
from random_models import ALL, BOTH, llama, ragged_samples
from test_rollout import assert_same_draws

import engine
import grpo
import rollout
from engine import sampler, update
from engine.sampler import join
from grpo import Sample, UpdateOptions
from models import loading

draw = partial(test_rollout.draw, n=6, max_new_tokens=30)


@pytest.mark.parametrize("shape", ALL)
@pytest.mark.parametrize(
    "changes", [{}, {"limits": [3, 30, 9, 17]}, {"temperature": 0}, {"temperature": 0.7, "top_p": 0.8}, {"n": 1}]
)
def test_the_tokens_are_those_of_the_plain_sampler(shape, changes):
    model = ALL[shape]()
    fast = draw(engine.sample, model, **changes)
    assert_same_draws(fast, draw(rollout.sample, model, **changes))
    assert max(len(one.response_ids) for one in chain(*fast)) > 12, "rows must be longer than the window"


def test_the_embedded_policy_draws_the_same_tokens():
    loaded = loading.load("tiny", device="cpu", dtype="float32")
    prompts = [loaded.encode(problem) for problem in ("9+8-4", "3*4", "7-9+2+5", "12*34", "1+1", "8+7-6+9-3")]
    long = {"n": 8, "max_new_tokens": 64, "eos_ids": loaded.eos_ids}
    fast, plain = (draw(sample, loaded.model, prompts, **long) for sample in (engine.sample, rollout.sample))
    assert_same_draws(fast, plain)


@pytest.mark.parametrize("cap", [500, 100, 1])  # several prompts, a few draws, one row at a time
@pytest.mark.parametrize("shape", BOTH)
def test_the_tokens_do_not_depend_on_which_rows_wait(shape, cap, monkeypatch):
    model, joined, held = BOTH[shape](), [], []

    def watched(parts, width, spare):
        joined.append(len(parts))
        held.append(sum(len(rows) for _, rows in parts) * width)
        return join(parts, width, spare)

    monkeypatch.setattr(sampler, "join", watched)
    assert_same_draws(draw(engine.sample, model, max_cache_tokens=cap), draw(rollout.sample, model))
    assert max(held) <= max(cap, 37), "no more rows than allowed"  # the longest row alone takes 37 columns
    assert (2 in joined) == (cap > 1), "fresh rows must have come in beside others"


@pytest.mark.parametrize("pack_share, spare", [(0.01, 1), (0.5, 3), (2.0, 1000)])
def test_the_tokens_do_not_depend_on_when_the_batch_is_packed(pack_share, spare, monkeypatch):
    model = llama()
    monkeypatch.setattr(sampler, "PACK_SHARE", pack_share)
    monkeypatch.setattr(sampler, "SPARE_COLUMNS", {"cpu": spare})
    monkeypatch.setattr(sampler, "CHECK_EVERY", {"cpu": 1 if spare == 1 else 7})
    assert_same_draws(draw(engine.sample, model), draw(rollout.sample, model))


def test_a_captured_step_draws_the_same(monkeypatch):
    """The path that CUDA takes, with a stand-in for the graph: fixed shapes, and the same tensors in each step."""
    model = llama()

    def stand_in(step, device):
        batch = step.__self__

        def tensors():
            state = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
            layer = batch.cache.layers[0]
            return state | {"keys": layer.keys, "values": layer.values, "written": layer.cumulative_length}

        captured = tensors()

        def replay():
            for name, value in tensors().items():
                assert captured[name] is value, f"a graph would continue with the old {name}"
            step()

        return replay

    monkeypatch.setattr(sampler, "_captured", stand_in)
    monkeypatch.setattr(sampler, "GRAPH_DEVICES", {"cpu"})
    monkeypatch.setattr(sampler, "CHECK_EVERY", {"cpu": 16})
    long = {"max_new_tokens": 40}
    assert_same_draws(draw(engine.sample, model, **long), draw(rollout.sample, model, **long))


def test_other_attention_is_given_the_masks_it_wants():
    model = llama()
    expected = draw(rollout.sample, model)
    model.set_attn_implementation("eager")
    assert_same_draws(draw(engine.sample, model), expected)


def test_the_training_mode_is_kept(monkeypatch):
    model = llama().train()
    draw(engine.sample, model, n=1)
    monkeypatch.setattr(model, "forward", lambda **inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(engine.sample, model, n=1)
    assert model.training


def go_backward(batch: list[Sample], logprobs: torch.Tensor) -> dict[str, float]:
    """Weigh every token differently, so that no two of them could be mixed up."""
    advantages = grpo.per_token([s.advantage + 0.5 for s in batch], batch, logprobs)
    (logprobs * advantages * torch.cat([torch.tensor(s.response_ids) for s in batch]) / 1000).sum().backward()
    return {"sum": float(logprobs.detach().sum()), "tokens": len(logprobs)}


def gradients(over_batches, model, samples, token_budget=10_000) -> tuple[dict[str, torch.Tensor], dict]:
    model.zero_grad()
    figures = over_batches(model, samples, go_backward, token_budget)
    return {name: p.grad.clone() for name, p in model.named_parameters()}, dict(figures)


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        torch.testing.assert_close(gradient, right[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", ALL)  # the windowed one goes through in whole sequences
@pytest.mark.parametrize("token_budget", [1, 30, 10_000])
def test_the_gradients_are_those_of_the_plain_update(shape, token_budget):
    model, samples = ALL[shape](), ragged_samples()
    expected, plain = gradients(grpo.over_batches, model, samples)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 0.1
    found, figures = gradients(update.over_batches, model, samples, token_budget)
    assert_close(found, expected)
    assert figures == pytest.approx(plain | {"oom_retries": 0}, rel=1e-5)


def test_each_prompt_goes_through_the_model_once(monkeypatch):
    model, samples = llama(), ragged_samples()
    fed, forward = [], model.base_model.forward

    def watched(**inputs):
        fed.append(inputs["input_ids"].tolist())
        return forward(**inputs)

    monkeypatch.setattr(model.base_model, "forward", watched)
    with torch.no_grad():
        update.over_batches(model, samples, lambda batch, logprobs: grpo.keep("fast", batch, logprobs), 40)
    prompt = samples[1].prompt_ids  # the longest, hence without padding
    assert sum(row[-len(prompt) :] == prompt for rows in fed for row in rows) == 1
    with torch.no_grad():
        grpo.over_batches(model, samples, lambda batch, logprobs: grpo.keep("plain", batch, logprobs), 40)
    for sample in samples:
        torch.testing.assert_close(sample.kept["fast"], sample.kept["plain"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("minibatches", [1, 3])
def test_a_whole_update_is_that_of_the_plain_one(minibatches):
    options, reports, weights = UpdateOptions(kl_coef=0.1, minibatches=minibatches, token_budget=40), [], []
    for over_batches in (grpo.over_batches, update.over_batches):
        model = llama()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with_reference = {"reference": llama(1), "over_batches": over_batches}
        reports.append(grpo.update(model, optimizer, ragged_samples(), options, **with_reference))
        weights.append(dict(model.named_parameters()))
    assert reports[1] == pytest.approx(reports[0], rel=1e-4, abs=1e-6)
    assert_close(*weights)
