"""Both samplers, the plain and the fast one, against transformers' own `generate` and plain forward passes.

That both draw the same tokens, and how the fast one arranges its work, is tested in test_engine.py.
"""

from collections import Counter
from itertools import chain

import pytest
import torch
from random_models import ALL, BOTH, llama, plain_logprobs

import engine
import rollout
from rollout import Rollout

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [30, 3, 3, 20], [2, 2]]


@pytest.fixture(params=[rollout.sample, engine.sample], ids=["plain", "engine"])
def sample(request):
    return request.param


def draw(sample, model, prompts=PROMPTS, seed=0, **changes) -> list[list[Rollout]]:
    arguments = {"n": 4, "max_new_tokens": 20, "eos_ids": {1, 2}, "generator": torch.Generator().manual_seed(seed)}
    return sample(model, prompts, **arguments | changes)


def assert_same_draws(left: list[list[Rollout]], right: list[list[Rollout]]) -> None:
    assert len(left) == len(right)
    for one, other in zip(chain(*left), chain(*right), strict=True):
        assert (one.prompt_ids, one.response_ids) == (other.prompt_ids, other.response_ids)
        assert one.finish_reason == other.finish_reason
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def logprobs_of(model, drawn: Rollout, temperature: float = 1.0) -> list[float]:
    with torch.no_grad():
        return plain_logprobs(model, drawn.prompt_ids, drawn.response_ids, temperature).tolist()


@pytest.mark.parametrize("shape", BOTH)
def test_greedy_draws_equal_generate_on_ragged_prompts(sample, shape):
    model, eos_ids = BOTH[shape](), [1, 4, 9, 16, 23, 30]
    longest = max(map(len, PROMPTS))
    input_ids = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    settings = {"do_sample": False, "max_new_tokens": 25, "eos_token_id": eos_ids, "pad_token_id": 0}
    generated = model.generate(input_ids=input_ids, attention_mask=mask, **settings)[:, longest:].tolist()
    reasons = set()
    groups = draw(sample, model, n=1, max_new_tokens=25, eos_ids=eos_ids, temperature=0)
    for (one,), expected in zip(groups, generated, strict=True):
        length = len(one.response_ids)
        assert one.response_ids == expected[:length]
        assert all(token == 0 for token in expected[length:])  # `generate` pads what ended early
        reasons.add(one.finish_reason)
    assert reasons == {"stop", "length"}, "the test must see both ends"


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.9)])
def test_logprobs_equal_a_plain_forward_pass(sample, make, temperature, top_p):
    model = make()
    drawn = {"n": 5, "max_new_tokens": 30, "eos_ids": {1}, "temperature": temperature, "top_p": top_p}
    rollouts = list(chain(*draw(sample, model, **drawn)))
    for one in rollouts:
        assert one.logprobs == pytest.approx(logprobs_of(model, one, temperature), abs=1e-4)
    assert max(len(one.response_ids) for one in rollouts) > 12, "some must be longer than two windows"


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_is_sampled_in_its_own_precision_or_that_of_autocast(sample, autocast):
    model = llama() if autocast else llama().to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        groups = draw(sample, model, max_new_tokens=10, eos_ids={1})
    for one in chain(*groups):
        assert one.logprobs == pytest.approx(logprobs_of(model, one), abs=0.5)


def test_the_same_seed_draws_the_same_and_another_seed_does_not(sample):
    model = llama()
    assert draw(sample, model, seed=3) == draw(sample, model, seed=3)
    assert draw(sample, model, seed=3) != draw(sample, model, seed=4)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_draws_do_not_depend_on_the_prompts_behind_them(sample, count):
    model = llama()
    assert_same_draws(draw(sample, model, PROMPTS[:count]), draw(sample, model)[:count])


@pytest.mark.parametrize("cap", [1000, 500, 1])  # all prompts, a few, one
def test_prompts_wait_until_the_cache_has_room_for_them(cap, monkeypatch):
    model, held = llama(), []
    forward = model.forward

    def watched(**inputs):
        if inputs["input_ids"].shape[1] > 1:
            held.append(inputs["input_ids"].shape[0])
        return forward(**inputs)

    whole = draw(rollout.sample, model, PROMPTS[:1] * 5, n=6, max_new_tokens=30)
    monkeypatch.setattr(model, "forward", watched)
    assert_same_draws(draw(rollout.sample, model, PROMPTS[:1] * 5, n=6, max_new_tokens=30, max_cache_tokens=cap), whole)
    assert max(held) == max(1, cap // (6 * 37)) and sum(held) == 5  # 6 draws of up to 7 + 30 tokens to each prompt


def test_a_prompt_is_computed_once_and_finished_rows_are_dropped(sample, monkeypatch):
    model, shapes = llama(), []
    forward = model.base_model.forward

    def watched(**inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    monkeypatch.setattr(model.base_model, "forward", watched)
    draw(sample, model, n=8, max_new_tokens=12)
    assert shapes[0] == (len(PROMPTS), 7)
    assert all(columns == 1 for _, columns in shapes[1:]) and len(shapes) <= 12
    assert shapes[1][0] <= 32 and shapes[-1][0] <= 24


def test_finish_reasons(sample):
    limits, reasons = [3, 40, 40, 7], Counter()
    groups = draw(sample, llama(), n=16, max_new_tokens=40, limits=limits)
    for group, limit in zip(groups, limits, strict=True):
        for one in group:
            reasons[one.finish_reason] += 1
            ended = one.response_ids[-1] in {1, 2}
            assert ended == (one.finish_reason == "stop")
            assert not {1, 2} & set(one.response_ids[:-1])
            assert len(one.logprobs) == len(one.response_ids) <= limit
            if not ended:
                assert len(one.response_ids) == limit
                assert one.finish_reason == ("length" if limit == 40 else "cutoff")
    assert set(reasons) == {"stop", "cutoff", "length"}, "the test must see all three"


def test_an_end_token_at_the_limit_is_a_stop(sample):
    ((one,),) = draw(sample, llama(), [[5]], n=1, max_new_tokens=9, eos_ids=range(37), limits=[1])
    assert (len(one.response_ids), one.finish_reason) == (1, "stop")


def test_a_limit_does_not_change_what_is_drawn_before_it(sample):
    model = llama()
    free, cut = draw(sample, model), draw(sample, model, limits=[5] * 4)
    for long, short in zip(chain(*free), chain(*cut), strict=True):
        assert short.response_ids == long.response_ids[:5]


def next_token_probs(model, temperature: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        return (model(torch.tensor([[5, 6]])).logits[0, -1] / temperature).softmax(-1)


def test_draws_follow_the_distribution(sample):
    model, n = llama(), 20_000
    (group,) = draw(sample, model, [[5, 6]], n=n, max_new_tokens=1, eos_ids=set(), temperature=2.0)
    counts = torch.bincount(torch.tensor([one.response_ids[0] for one in group]), minlength=37)
    expected = next_token_probs(model, 2.0) * n
    likely = expected > 5
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum().item()
    degrees = int(likely.sum()) - 1
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


def test_top_p_draws_only_from_the_smallest_sufficient_set(sample):
    model = llama()
    ranked, order = next_token_probs(model).sort(descending=True)
    size = int((ranked.cumsum(0) < 0.6).sum()) + 1  # the first tokens that together reach 0.6
    (group,) = draw(sample, model, [[5, 6]], n=3000, max_new_tokens=1, eos_ids=set(), top_p=0.6)
    assert {one.response_ids[0] for one in group} == set(order[:size].tolist())


BAD = [({name: 0}, "at least 1") for name in ("n", "max_new_tokens")] + [({"limits": [0]}, "at least 1")]
BAD += [({"prompts": [[]]}, "prompt is empty"), ({"limits": [3, 3]}, "expected one per prompt")]
BAD += [({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p")]


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_arguments_are_named(sample, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(sample, llama(), **{"prompts": [[5]]} | arguments)
