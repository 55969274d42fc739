"""The update against hand-worked numbers, an independently written loss, and finite differences."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from random_models import BOTH, SHAPE, llama
from transformers import MistralConfig, MistralForCausalLM

import grpo
from engine import logprobs
from engine.logprobs import token_logprobs
from grpo import Sequence, UpdateSettings, group_advantages, kl_penalty, policy_loss, update
from models import policy

SETTINGS = UpdateSettings(max_lengths=(("solution", 12), ("meta", 6)))


def sequences(seed: int = 0, count: int = 8) -> list[Sequence]:
    """Ragged sequences of both kinds with ragged prompts, some without advantage."""
    rng = np.random.default_rng(seed)
    return [
        Sequence(
            prompt_ids=rng.integers(2, 37, rng.integers(1, 9)).tolist(),
            response_ids=rng.integers(1, 37, rng.integers(1, 12)).tolist(),
            advantage=[1.3, -0.7, 0.0, 0.4][i % 4],
            kind="meta" if i >= count - 3 else "solution",
        )
        for i in range(count)
    ]


def reference_logprobs(model, s: Sequence) -> torch.Tensor:
    """One sequence alone, from the full logits."""
    logits = model(torch.tensor([s.prompt_ids + s.response_ids])).logits[0]
    logprobs = logits.log_softmax(-1)[len(s.prompt_ids) - 1 : -1]
    return logprobs[torch.arange(len(s.response_ids)), torch.tensor(s.response_ids)]


# ---- advantages


def test_advantages_worked_out_by_hand():
    # mean .5, squared deviations 4 x .25, Bessel: sqrt(1 / 3) = .57735
    assert group_advantages(torch.tensor([[1.0, 0, 0, 1]])).tolist()[0] == pytest.approx(
        [0.8660239, -0.8660239, -0.8660239, 0.8660239]
    )
    assert group_advantages(torch.tensor([[3.0, 0, 0, 1]]), normalize_std=False).tolist() == [[2, -1, -1, 0]]


def test_a_group_without_variance_has_exactly_no_advantage():
    for value in (0.0, 1.0, 0.1, 1 / 3, 1e9 / 7):
        for normalize_std in (True, False):
            assert not group_advantages(torch.full((1, 7), value), normalize_std).any()
    assert not group_advantages(torch.ones(2, 1)).any()
    assert group_advantages(torch.zeros(2, 0)).shape == (2, 0) and group_advantages(torch.zeros(0, 4)).shape == (0, 4)


def test_groups_do_not_mix():
    rewards = torch.rand(5, 8)
    together = group_advantages(rewards)
    for row in range(5):
        assert torch.equal(together[row], group_advantages(rewards[row : row + 1])[0])
    torch.testing.assert_close(together.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(together.std(1), torch.ones(5), atol=1e-4, rtol=0)


# ---- the loss


def loop_loss(logprobs, old, advantages, mask, denominator, low, high) -> float:
    """The clipped surrogate written once more, in plain Python, one token after the other."""
    total = 0.0
    for b in range(len(logprobs)):
        for t in range(len(logprobs[b])):
            ratio = math.exp(logprobs[b][t] - old[b][t])
            clipped = min(max(ratio, 1 - low), 1 + high)
            total += mask[b][t] * min(ratio * advantages[b], clipped * advantages[b])
    return -total / denominator


@pytest.fixture
def batch():
    torch.manual_seed(0)
    old = torch.rand(6, 9, dtype=torch.float64).log()
    new = old + 0.5 * torch.randn(6, 9, dtype=torch.float64)
    mask = (torch.rand(6, 9) > 0.3) * torch.rand(6, 1)
    return new, old, torch.randn(6, dtype=torch.float64), mask.double()


@pytest.mark.parametrize("low, high", [(0.2, 0.28), (0.2, 0.2), (0.1, 3.0)])
def test_loss_equals_an_independent_one(batch, low, high):
    new, old, advantages, mask = batch
    expected = loop_loss(new.tolist(), old.tolist(), advantages.tolist(), mask.tolist(), 7.0, low, high)
    assert policy_loss(new, old, advantages, mask, 7.0, low, high).item() == pytest.approx(expected, rel=1e-12)
    spread = advantages[:, None].expand(6, 9)
    assert policy_loss(new, old, spread, mask, 7.0, low, high).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_equals_finite_differences(batch):
    new, old, advantages, mask = batch
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, old, advantages, mask, 7.0), new.clone().requires_grad_(), eps=1e-7, atol=1e-6
    )


def test_masks_of_any_number_type_and_masked_garbage():
    new = torch.tensor([[0.0, float("-inf")]], requires_grad=True)
    old = torch.tensor([[0.0, float("-inf")]])
    for dtype in (torch.bool, torch.int64, torch.float32):
        loss = policy_loss(new, old, torch.tensor([2.0]), torch.tensor([[1, 0]], dtype=dtype), 1)
        assert loss.item() == -2.0
        (gradient,) = torch.autograd.grad(loss, new)
        assert gradient.tolist() == [[-2.0, 0.0]]


def test_a_ratio_beyond_all_bounds_makes_no_nan():
    for advantage in (1.0, 0.0, -1.0):
        new = torch.tensor([[0.0]], requires_grad=True)
        loss = policy_loss(new, torch.tensor([[-100.0]]), torch.tensor([advantage]), torch.ones(1, 1), 1)
        (gradient,) = torch.autograd.grad(loss, new)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_kl_is_zero_at_equality_and_k3_elsewhere():
    assert kl_penalty(torch.tensor(-1.0), torch.tensor(-1.0)).item() == 0
    assert kl_penalty(torch.tensor(-1.0), torch.tensor(-2.0)).item() == pytest.approx(math.exp(-1) + 1 - 1)


@pytest.mark.parametrize(
    "aggregation, expected",
    [
        ("token-mean", [1 / 6, 1 / 6, 0.5 / 5]),
        ("sequence-mean", [1 / (2 * 2), 1 / (2 * 4), 0.5 / 5]),
        ("dr-grpo", [1 / (2 * 12), 1 / (2 * 12), 0.5 / 6]),
    ],
)
def test_weights_worked_out_by_hand(aggregation, expected):
    batch = [
        Sequence([5], [1] * 2, 1.0),
        Sequence([5], [1] * 4, 0.0),  # without advantage, but it counts in the denominator
        Sequence([5], [1] * 5, 1.0, "meta"),
    ]
    settings = UpdateSettings(aggregation=aggregation, meta_weight=0.5, max_lengths=SETTINGS.max_lengths)
    assert grpo.token_weights(batch, settings) == pytest.approx(expected)


# ---- log-probs


@pytest.mark.parametrize("shape", BOTH)
def test_token_logprobs_equal_a_plain_forward_pass(shape, monkeypatch):
    model, batch = BOTH[shape](), sequences()
    expected = torch.cat([reference_logprobs(model, s) for s in batch])
    torch.testing.assert_close(token_logprobs(model, batch), expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 37 * 5)  # five positions at once
    torch.testing.assert_close(token_logprobs(model, batch), expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_caps_its_logits_is_refused():
    model = llama()
    logprobs.check_head(model)
    plain = model.forward

    def capped(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = 2 * torch.tanh(output.logits / 2)
        return output

    model.forward = capped
    with pytest.raises(ValueError, match="changes its logits"):
        logprobs.check_head(model)


# ---- one update


def gradients(batch, settings=SETTINGS, model=None, lr=1.0, **changes) -> dict[str, torch.Tensor]:
    """The gradients that an update applies: plain SGD moves the parameters by just these, times its rate."""
    model = copy.deepcopy(model or llama())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    unclipped = {**settings.__dict__, "max_grad_norm": 1e9} | changes
    update(model, torch.optim.SGD(model.parameters(), lr=lr), batch, UpdateSettings(**unclipped))
    return {name: (before[name] - p.detach()) / lr for name, p in model.named_parameters()}


def assert_same(left, right):
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=2e-6, rtol=1e-4)


def test_update_equals_the_gradient_written_by_hand():
    """With one update the ratio is 1, so the gradient is that of -sum(advantage x weight x log-prob)."""
    model, batch = llama(), sequences()
    tokens = {kind: sum(len(s.response_ids) for s in batch if s.kind == kind) for kind in ("solution", "meta")}
    loss = -sum(s.advantage * reference_logprobs(model, s).sum() / tokens[s.kind] for s in batch)
    expected = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True)
    )
    assert_same(gradients(batch, model=model), expected)


def test_micro_batches_padding_and_chunks_change_nothing(monkeypatch):
    batch = sequences()
    whole = gradients(batch)
    for token_budget in (1, 25, 60):
        assert_same(gradients(batch, token_budget=token_budget), whole)
    assert_same(gradients(batch[::-1]), whole)
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 37 * 3)
    assert_same(gradients(batch), whole)


def grouped(seed: int = 0) -> list[Sequence]:
    """Four prompts with several responses each; one response is a single token."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(2, 37, length).tolist() for length in (1, 9, 4, 6)]
    lengths = [1, 12, 5, 3, 7, 7, 2, 10, 4, 11, 6, 8]
    return [
        Sequence(prompts[k % 4], rng.integers(1, 37, length).tolist(), [1.3, -0.7, 0.4][k % 3])
        for k, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("shape", BOTH)
@pytest.mark.parametrize("token_budget", [1, 30, 10_000])
def test_prompts_computed_once_give_the_gradient_of_whole_sequences(shape, token_budget, monkeypatch):
    model, batch = BOTH[shape](), grouped()
    loss = -sum(s.advantage * reference_logprobs(model, s).sum() for s in batch)
    loss = loss / sum(len(s.response_ids) for s in batch)
    expected = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True)
    )
    fed, forward = [], model.base_model.forward

    def watched(**inputs):
        fed.append(inputs["input_ids"].tolist())
        return forward(**inputs)

    assert_same(gradients(batch, model=model, token_budget=token_budget), expected)
    with torch.no_grad():
        monkeypatch.setattr(model.base_model, "forward", watched)
        grpo._store_logprobs(model, batch, "old_logprobs", UpdateSettings(token_budget=token_budget))
    prompt = batch[1].prompt_ids  # the longest of the four, hence without padding
    assert sum(row[-len(prompt) :] == prompt for rows in fed for row in rows) == 1
    for s in batch:
        torch.testing.assert_close(s.old_logprobs, reference_logprobs(model, s).detach(), atol=1e-5, rtol=1e-5)


def test_windows_of_attention_are_kept_in_the_update():
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5)).eval()
    batch = grouped()
    loss = -sum(s.advantage * reference_logprobs(model, s).sum() for s in batch)
    loss = loss / sum(len(s.response_ids) for s in batch)
    expected = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True)
    )
    assert_same(gradients(batch, model=model, token_budget=60), expected)


def test_micro_batches_hold_the_budget_and_lose_nothing():
    batch = sequences(count=40)
    for token_budget in (1, 30, 100, 10_000):
        parts = list(logprobs.micro_batches(batch, token_budget))
        assert sorted(id(s) for part in parts for s in part) == sorted(map(id, batch))
        for part in parts:
            longest = max(len(s.prompt_ids) + len(s.response_ids) for s in part)
            assert len(part) == 1 or len(part) * longest <= token_budget


def test_sequences_without_advantage_are_not_computed_but_count(monkeypatch):
    batch = sequences()
    seen = []
    original = grpo.token_logprobs
    monkeypatch.setattr(grpo, "token_logprobs", lambda m, s, *rest: seen.extend(s) or original(m, s, *rest))
    gradients(batch)
    assert seen and all(s.advantage != 0 for s in seen)
    fewer = gradients([s for s in batch if s.advantage != 0])
    assert not torch.allclose(fewer["lm_head.weight"], gradients(batch)["lm_head.weight"], rtol=1e-3)


def test_the_ratio_of_a_single_update_is_exactly_one(monkeypatch):
    ratios = []
    original = grpo.policy_loss

    def spy(logprobs, old, *rest):
        ratios.extend((logprobs - old).exp().tolist())
        return original(logprobs, old, *rest)

    monkeypatch.setattr(grpo, "policy_loss", spy)
    gradients(sequences(), token_budget=30)
    assert ratios and set(ratios) == {1.0}


def test_the_end_token_is_trained():
    s = Sequence([5, 6], [7, 8, 1], advantage=1.0)
    model = llama()
    before = reference_logprobs(model, s)[-1].item()
    update(model, torch.optim.SGD(model.parameters(), lr=0.01), [s], SETTINGS)
    assert reference_logprobs(model, s)[-1].item() > before


def test_several_minibatches_use_old_logprobs_of_the_trainer_and_clip():
    batch = [s for s in sequences(count=16) if s.advantage]
    model = llama()
    settings = UpdateSettings(minibatches=4, max_lengths=SETTINGS.max_lengths)
    report = update(model, torch.optim.SGD(model.parameters(), lr=0.5), batch, settings)
    expected = [reference_logprobs(llama(), s).detach() for s in batch]
    for s, values in zip(batch, expected, strict=True):
        torch.testing.assert_close(s.old_logprobs, values, atol=1e-5, rtol=1e-5)
    assert report["clip_frac"] > 0


def test_a_kl_term_pulls_towards_the_reference_and_needs_all_sequences():
    model, reference = llama(0), llama(1)
    batch = [Sequence([5, 6], [7, 8, 1], 0.0)]
    settings = UpdateSettings(kl_coef=1.0, max_lengths=SETTINGS.max_lengths)
    kls = [
        update(model, torch.optim.SGD(model.parameters(), lr=0.05), batch, settings, reference=reference)["kl"]
        for _ in range(8)
    ]
    assert kls[-1] < kls[0]


def test_the_gap_between_sampler_and_trainer_is_measured():
    model, batch = llama(), [s for s in sequences() if s.advantage]
    for s in batch:
        s.sampled_logprobs = (reference_logprobs(model, s) + 0.25).tolist()
    report = update(model, torch.optim.SGD(model.parameters(), lr=0.0), batch, SETTINGS)
    assert report["logprob_gap"] == pytest.approx(0.25, abs=1e-4)


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    model = llama()
    before = copy.deepcopy(model.state_dict())
    report = update(model, torch.optim.SGD(model.parameters(), lr=1.0), [Sequence([5], [6], math.nan)], SETTINGS)
    assert report["skipped_updates"] == 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_empty_batch_and_one_without_advantage_change_nothing():
    model = llama()
    before = copy.deepcopy(model.state_dict())
    for batch in ([], [Sequence([5], [6, 1], 0.0)]):
        report = update(model, torch.optim.SGD(model.parameters(), lr=1.0), batch, SETTINGS)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert report["loss"] is None and report["grad_norm"] is None and report["skipped_updates"] == 0


def test_cloning_is_the_mean_negative_log_likelihood():
    model, batch = llama(), sequences()
    tokens = sum(len(s.response_ids) for s in batch)
    expected = -sum(reference_logprobs(model, s).sum().item() for s in batch) / tokens
    loss, stepped, _ = grpo.clone(model, torch.optim.SGD(model.parameters(), lr=0.01), batch, SETTINGS)
    assert loss == pytest.approx(expected, rel=1e-5) and stepped
    again, *_ = grpo.clone(model, torch.optim.SGD(model.parameters(), lr=0.01), batch, SETTINGS)
    assert again < loss


def test_gradient_checkpointing_changes_nothing():
    model = llama()
    plain = gradients(sequences(), model=model)
    model.activation_checkpointing_enable()
    assert_same(gradients(sequences(), model=model), plain)


@pytest.mark.parametrize("minibatches, threshold", [(1, 0.98), (2, 0.8)])  # with two, the rounding of ratios counts
def test_autocast_as_the_policy_sets_it_up_keeps_the_gradient(minibatches, threshold):
    loaded = policy.load("tiny", device="cpu", dtype="bfloat16")
    batch = [dataclasses.replace(s, prompt_ids=[2, *s.prompt_ids]) for s in grouped()]
    exact = gradients(batch, model=loaded.model, minibatches=minibatches, lr=1e-3)
    with loaded.autocast():
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()
        rough = gradients(batch, model=loaded.model, minibatches=minibatches, lr=1e-3)
    for name in exact:
        assert torch.cosine_similarity(rough[name].flatten(), exact[name].flatten(), dim=0) > threshold, name
