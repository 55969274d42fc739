"""The update, against numbers worked out by hand, a loss written independently, and finite differences."""

import copy
import dataclasses
import math
from functools import partial

import pytest
import torch
from random_models import ALL, BOTH, llama, plain_logprobs, ragged_samples

import engine.update
import grpo
from grpo import Sample, UpdateOptions, group_advantages, kl_penalty, policy_loss, token_logprobs, update
from models import loading

OPTIONS = UpdateOptions(token_budget=10_000)
SEAMS = {"plain": grpo.over_batches, "engine": engine.update.over_batches}
both_seams = pytest.mark.parametrize("over_batches", SEAMS.values(), ids=SEAMS)


def reference_logprobs(model, sample: Sample, temperature: float = 1.0) -> torch.Tensor:
    return plain_logprobs(model, sample.prompt_ids, sample.response_ids, temperature)


def sgd(model, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def test_advantages_worked_out_by_hand():
    # mean 0.5, squared deviations 4 x 0.25, with Bessel's correction sqrt(1 / 3) = 0.57735
    assert group_advantages(torch.tensor([[1.0, 0, 0, 1]])).tolist()[0] == pytest.approx(
        [x * 0.8660239 for x in (1, -1, -1, 1)]
    )
    assert group_advantages(torch.tensor([[3.0, 0, 0, 1]]), normalize_std=False).tolist() == [[2, -1, -1, 0]]


@pytest.mark.parametrize("normalize_std", [True, False])
def test_a_group_without_variance_has_advantages_of_exactly_zero(normalize_std):
    for value in (0.0, 1.0, 0.1, 1 / 3, 1e9 / 7):
        assert not group_advantages(torch.full((1, 7), value), normalize_std).any()
    assert not group_advantages(torch.ones(2, 1), normalize_std).any()
    for shape in ((2, 0), (0, 4)):
        assert group_advantages(torch.zeros(shape), normalize_std).shape == shape


def test_groups_do_not_mix():
    rewards = torch.rand(5, 8)
    together = group_advantages(rewards)
    for row in range(5):
        assert torch.equal(together[row], group_advantages(rewards[row : row + 1])[0])
    torch.testing.assert_close(together.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(together.std(1), torch.ones(5), atol=1e-4, rtol=0)


def loop_loss(logprobs, old, advantages, mask, denominator, low, high) -> float:
    """Compute the clipped loss a second time, as TRL writes it, in plain Python and one token after the other."""
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
def test_the_loss_equals_one_written_independently(batch, low, high):
    new, old, advantages, mask = batch
    expected = loop_loss(new.tolist(), old.tolist(), advantages.tolist(), mask.tolist(), 7.0, low, high)
    for shaped in (advantages, advantages[:, None].expand(6, 9)):
        assert policy_loss(new, old, shaped, mask, 7.0, low, high).item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_the_loss_equals_finite_differences(batch):
    new, old, advantages, mask = batch
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, old, advantages, mask, 7.0), new.clone().requires_grad_(), eps=1e-7, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_mask_may_be_of_any_number_type_and_hide_anything(dtype):
    new = torch.tensor([[0.0, float("-inf")]], requires_grad=True)
    old = torch.tensor([[0.0, float("-inf")]])
    loss = policy_loss(new, old, torch.tensor([2.0]), torch.tensor([[1, 0]], dtype=dtype), 1)
    (gradient,) = torch.autograd.grad(loss, new)
    assert loss.item() == -2.0 and gradient.tolist() == [[-2.0, 0.0]]


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_ratio_that_overflows_makes_no_nan(advantage):
    new = torch.tensor([[0.0]], requires_grad=True)
    loss = policy_loss(new, torch.tensor([[-100.0]]), torch.tensor([advantage]), torch.ones(1, 1), 1)
    (gradient,) = torch.autograd.grad(loss, new)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_the_kl_penalty_is_k3():
    assert kl_penalty(torch.tensor(-1.0), torch.tensor(-1.0)).item() == 0
    assert kl_penalty(torch.tensor(-1.0), torch.tensor(-2.0)).item() == pytest.approx(math.exp(-1) + 1 - 1)
    assert kl_penalty(torch.tensor(-99.0), torch.tensor(0.0)).item() == pytest.approx(math.exp(20) - 20 - 1)  # clamped


WEIGHTS = {"token-mean": [1 / 6, 1 / 6, 0.5 / 5], "sequence-mean": [1 / (2 * 2), 1 / (2 * 4), 0.5 / 5]}
WEIGHTS |= {"dr-grpo": [1 / (2 * 12), 1 / (2 * 12), 0.5 / 6], "joint-mean": [1 / (3 * 2), 1 / (3 * 4), 0.5 / (3 * 5)]}


@pytest.mark.parametrize("aggregation, expected", WEIGHTS.items())
def test_weights_worked_out_by_hand(aggregation, expected):
    samples = [Sample([5], [1] * 2, 1.0), Sample([5], [1] * 5, 1.0, "meta")]
    samples.insert(1, Sample([5], [1] * 4, 0.0))  # without advantage, but it counts in the denominator
    options = UpdateOptions(aggregation=aggregation, meta_weight=0.5)
    grpo.set_weights(samples, options, {"solution": 12, "meta": 6})
    assert [sample.weight for sample in samples] == pytest.approx(expected)


@pytest.mark.parametrize("shape", BOTH)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("logits_at_once", [grpo.LOGITS_AT_ONCE, 37 * 5])  # all positions at once, or five
def test_token_logprobs_equal_a_plain_forward_pass(shape, temperature, logits_at_once, monkeypatch):
    monkeypatch.setattr(grpo, "LOGITS_AT_ONCE", logits_at_once)
    model, samples = BOTH[shape](), ragged_samples()
    expected = torch.cat([reference_logprobs(model, sample, temperature) for sample in samples])
    torch.testing.assert_close(token_logprobs(model, samples, temperature), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("token_budget", [1, 30, 100, 10_000])
def test_micro_batches_keep_to_the_budget_and_lose_nothing(token_budget):
    samples = ragged_samples(count=40)
    parts = list(grpo.micro_batches(samples, token_budget))
    assert sorted(id(sample) for part in parts for sample in part) == sorted(map(id, samples))
    for part in parts:
        longest = max(len(sample.prompt_ids) + len(sample.response_ids) for sample in part)
        assert len(part) == 1 or len(part) * longest <= token_budget


@pytest.fixture
def unclipped(monkeypatch):
    monkeypatch.setattr(grpo, "MAX_GRAD_NORM", 1e9)


def gradients(model, samples, lr=1.0, options=OPTIONS, **arguments) -> dict[str, torch.Tensor]:
    """Return the gradients that an update applies: plain SGD moves the parameters by these, times its rate."""
    model = copy.deepcopy(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update(model, sgd(model, lr), samples, options, **arguments)
    return {name: (before[name] - p.detach()) / lr for name, p in model.named_parameters()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=2e-6, rtol=1e-4)


def gradients_by_hand(model, samples) -> dict[str, torch.Tensor]:
    """Return the gradient of -sum(advantage x weight x log-prob): with a single update, the ratio is 1."""
    tokens = {kind: sum(len(s.response_ids) for s in samples if s.kind == kind) for kind in ("solution", "meta")}
    weights = {"solution": 1 / tokens["solution"], "meta": 0.3 / tokens["meta"]}
    loss = -sum(s.advantage * weights[s.kind] * reference_logprobs(model, s).sum() for s in samples)
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


@both_seams
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize(
    "token_budget, logits_at_once, checkpointing",
    [(1, 2**26, False), (30, 37 * 3, False), (60, 37, True), (10_000, 2**26, False), (10_000, 2**26, True)],
)
def test_an_update_applies_the_gradient_written_by_hand(
    over_batches, make, token_budget, logits_at_once, checkpointing, unclipped, monkeypatch
):
    """Micro-batches, padding, chunks of logits, gradient checkpointing and the order of samples change nothing."""
    monkeypatch.setattr(grpo, "LOGITS_AT_ONCE", logits_at_once)
    model, samples = make(), ragged_samples()
    expected, options = gradients_by_hand(model, samples), UpdateOptions(token_budget=token_budget)
    if checkpointing:
        model.activation_checkpointing_enable()
    assert_same(gradients(model, samples, options=options, over_batches=over_batches), expected)
    assert_same(gradients(model, samples[::-1], options=options, over_batches=over_batches), expected)


def test_gradients_are_clipped_to_a_norm_of_one():
    model, samples = llama(), ragged_samples()
    for sample in samples:
        sample.advantage *= 100
    report = update(copy.deepcopy(model), sgd(model, 0.0), samples, OPTIONS)
    applied = gradients(model, samples)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in applied.values()))
    assert report["grad_norm"] > 10 and norm == pytest.approx(1.0, rel=1e-4)


def test_samples_without_advantage_are_not_computed_but_count(unclipped):
    model, samples, computed = llama(), ragged_samples(), []

    def watched(model, some, *arguments, **named):
        computed.extend(some)
        return grpo.over_batches(model, some, *arguments, **named)

    whole = gradients(model, samples, over_batches=watched)
    assert computed == [sample for sample in samples if sample.advantage]
    fewer = gradients(model, computed)
    assert not torch.allclose(fewer["lm_head.weight"], whole["lm_head.weight"], rtol=1e-3)


@both_seams
def test_the_ratio_of_a_single_update_is_exactly_one(over_batches, monkeypatch):
    ratios, original = [], grpo.policy_loss

    def watched(logprobs, old, *rest):
        ratios.extend((logprobs - old).exp().tolist())
        return original(logprobs, old, *rest)

    monkeypatch.setattr(grpo, "policy_loss", watched)
    gradients(llama(), ragged_samples(), options=UpdateOptions(token_budget=30), over_batches=over_batches)
    assert ratios and set(ratios) == {1.0}


@both_seams
def test_several_minibatches_clip_against_the_trainers_old_logprobs(over_batches):
    model, samples = llama(), [sample for sample in ragged_samples(count=16) if sample.advantage]
    expected = [reference_logprobs(model, sample).detach() for sample in samples]
    report = update(model, sgd(model, 0.5), samples, UpdateOptions(minibatches=4), over_batches=over_batches)
    for sample, values in zip(samples, expected, strict=True):
        torch.testing.assert_close(sample.kept["old"], values, atol=1e-5, rtol=1e-5)
    assert report["clip_frac"] > 0


@both_seams
def test_a_kl_penalty_pulls_towards_the_reference_and_needs_all_samples(over_batches):
    model, reference, options = llama(0), llama(1), UpdateOptions(kl_coef=1.0)
    step = partial(update, model, sgd(model, 0.05), reference=reference, over_batches=over_batches)
    kls = [step([Sample([5, 6], [7, 8, 1], 0.0)], options)["kl"] for _ in range(8)]
    assert kls[-1] < kls[0]


@both_seams
def test_the_gap_between_sampler_and_trainer_is_measured(over_batches):
    model, samples = llama(), [sample for sample in ragged_samples() if sample.advantage]
    for sample in samples:
        sample.sampled_logprobs = (reference_logprobs(model, sample) + 0.25).tolist()
    report = update(model, sgd(model, 0.0), samples, OPTIONS, over_batches=over_batches)
    assert report["logprob_gap"] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize(
    "samples, skipped",
    [([Sample([5], [6], math.nan)], 1), ([], 0), ([Sample([5], [6, 1], 0.0)], 0)],
    ids=["not finite", "empty", "without advantage"],
)
def test_an_update_that_cannot_be_made_changes_nothing(samples, skipped):
    model = llama()
    before = copy.deepcopy(model.state_dict())
    report = update(model, sgd(model, 1.0), samples, OPTIONS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert report["skipped_updates"] == skipped
    assert skipped or (report["loss"] is None and report["grad_norm"] is None)


@both_seams
def test_imitation_lowers_the_mean_negative_log_likelihood(over_batches):
    model, samples = llama(), ragged_samples()
    tokens = sum(len(sample.response_ids) for sample in samples)
    expected = -sum(reference_logprobs(model, sample).sum().item() for sample in samples) / tokens
    step = partial(grpo.imitate, model, sgd(model, 0.01), samples, OPTIONS, over_batches=over_batches)
    report, again = step(), step()
    assert report["expert_loss"] == pytest.approx(expected, rel=1e-5) and report["skipped_updates"] == 0
    assert again["expert_loss"] < report["expert_loss"]


@both_seams
@pytest.mark.parametrize("minibatches, threshold", [(1, 0.98), (2, 0.8)])  # with two, the rounding of ratios counts
def test_autocast_as_the_policy_sets_it_up_keeps_the_gradient(over_batches, minibatches, threshold, unclipped):
    loaded = loading.load("tiny", device="cpu", dtype="bfloat16")
    samples = [dataclasses.replace(sample, prompt_ids=[2, *sample.prompt_ids]) for sample in ragged_samples()]
    options = UpdateOptions(minibatches=minibatches, meta_weight=1.0)
    measure = partial(gradients, loaded.model, samples, lr=1e-3, options=options, over_batches=over_batches)
    exact = measure()
    with loaded.autocast():
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()
        rough = measure()
    for name in exact:
        assert torch.cosine_similarity(rough[name].flatten(), exact[name].flatten(), dim=0) > threshold, name
