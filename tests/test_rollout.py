"""The sampler against transformers' own `generate` and against plain forward passes."""

from collections import Counter
from itertools import chain

import pytest
import torch
from models import BOTH, llama

from rollout import Rollout, sample

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [30, 3, 3, 20], [2, 2]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_logprobs(model, rollout: Rollout, temperature: float = 1.0) -> list[float]:
    """Log-probs of the response from one forward pass without cache, batch or padding."""
    ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
    with torch.no_grad():
        logprobs = (model(ids).logits[0] / temperature).log_softmax(-1)
    start = len(rollout.prompt_ids) - 1
    return [logprobs[start + t, token].item() for t, token in enumerate(rollout.response_ids)]


@pytest.mark.parametrize("shape", BOTH)
def test_greedy_equals_generate_on_ragged_prompts(shape):
    model = BOTH[shape]()
    eos_ids = [1, 4, 9, 16, 23, 30]
    longest = max(map(len, PROMPTS))
    generated = model.generate(
        input_ids=torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS]),
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS]),
        do_sample=False,
        max_new_tokens=25,
        eos_token_id=eos_ids,
        pad_token_id=0,
    )[:, longest:].tolist()
    groups = sample(model, PROMPTS, n=1, max_new_tokens=25, eos_ids=eos_ids, temperature=0)
    reasons = set()
    for (rollout,), expected in zip(groups, generated, strict=True):
        length = len(rollout.response_ids)
        assert rollout.response_ids == expected[:length]
        assert all(token == 0 for token in expected[length:])  # `generate` pads what ended early
        reasons.add(rollout.finish_reason)
    assert reasons == {"stop", "length"}, "the test must see both ends"


@pytest.mark.parametrize("shape", BOTH)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_plain_forward_pass(shape, temperature):
    model = BOTH[shape]()
    groups = sample(
        model, PROMPTS, n=5, max_new_tokens=30, eos_ids={1}, temperature=temperature, top_p=0.9, generator=seeded()
    )
    for rollout in (rollout for group in groups for rollout in group):
        assert rollout.logprobs == pytest.approx(plain_logprobs(model, rollout, temperature), abs=1e-4)


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    model = llama()

    def draw(seed):
        return sample(model, PROMPTS, n=4, max_new_tokens=20, eos_ids={1}, generator=seeded(seed))

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_what_is_drawn_does_not_depend_on_how_the_batch_is_split():
    model = llama()
    whole = sample(model, PROMPTS, n=6, max_new_tokens=20, eos_ids={1, 2}, generator=seeded())
    for cap in (500, 100, 1):  # several prompts, a few draws, one row at a time
        split = sample(model, PROMPTS, n=6, max_new_tokens=20, eos_ids={1, 2}, generator=seeded(), max_cache_tokens=cap)
        assert [[r.response_ids for r in group] for group in split] == [
            [r.response_ids for r in group] for group in whole
        ]


def test_what_is_drawn_does_not_depend_on_what_stands_behind_it_in_the_batch():
    model = llama()
    alone = sample(model, PROMPTS[:1], n=3, max_new_tokens=20, eos_ids={1}, generator=seeded())
    together = sample(model, PROMPTS, n=3, max_new_tokens=20, eos_ids={1}, generator=seeded())
    assert [r.response_ids for r in alone[0]] == [r.response_ids for r in together[0]]


def test_why_a_rollout_ended():
    model = llama()
    limits = [3, 40, 40, 7]
    groups = sample(model, PROMPTS, n=16, max_new_tokens=40, eos_ids={1, 2}, limits=limits, generator=seeded())
    reasons = Counter()
    for group, limit in zip(groups, limits, strict=True):
        for rollout in group:
            reasons[rollout.finish_reason] += 1
            ended = rollout.response_ids[-1] in {1, 2}
            assert ended == (rollout.finish_reason == "stop")
            assert not {1, 2} & set(rollout.response_ids[:-1])
            assert len(rollout.logprobs) == len(rollout.response_ids) <= limit
            if not ended:
                assert len(rollout.response_ids) == limit
                assert rollout.finish_reason == ("length" if limit == 40 else "cutoff")
    assert set(reasons) == {"stop", "cutoff", "length"}, "the test must see all three"


def test_an_end_token_at_the_limit_is_a_stop():
    model = llama()
    (group,) = sample(model, [[5]], n=1, max_new_tokens=9, eos_ids=range(37), limits=[1], generator=seeded())
    assert (len(group[0].response_ids), group[0].finish_reason) == (1, "stop")


def test_a_limit_does_not_change_what_is_drawn_before_it():
    model = llama()
    free = sample(model, PROMPTS, n=4, max_new_tokens=20, eos_ids={1}, generator=seeded())
    cut = sample(model, PROMPTS, n=4, max_new_tokens=20, eos_ids={1}, limits=[5] * 4, generator=seeded())
    for long, short in zip(chain(*free), chain(*cut), strict=True):
        assert short.response_ids == long.response_ids[:5]


def test_draws_follow_the_distribution():
    model = llama()
    n = 20_000
    (group,) = sample(model, [[5, 6]], n=n, max_new_tokens=1, eos_ids=set(), temperature=2.0, generator=seeded())
    with torch.no_grad():
        probs = (model(torch.tensor([[5, 6]])).logits[0, -1] / 2.0).softmax(-1)
    counts = torch.bincount(torch.tensor([r.response_ids[0] for r in group]), minlength=37)
    expected = probs * n
    likely = expected > 5
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum().item()
    degrees = int(likely.sum()) - 1
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


def test_top_p_draws_only_from_the_smallest_sufficient_set():
    model = llama()
    with torch.no_grad():
        probs = model(torch.tensor([[5, 6]])).logits[0, -1].softmax(-1)
    ranked, order = probs.sort(descending=True)
    size = int((ranked.cumsum(0) < 0.6).sum()) + 1  # the first tokens that together reach 0.6
    (group,) = sample(model, [[5, 6]], n=3000, max_new_tokens=1, eos_ids=set(), top_p=0.6, generator=seeded())
    assert {r.response_ids[0] for r in group} == set(order[:size].tolist())


def test_nothing_to_draw_from_is_no_error():
    assert sample(llama(), [], n=3, max_new_tokens=5, eos_ids={1}) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompts": [[]]}, "prompt is empty"),
        ({"n": 0}, "at least 1"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"limits": [0]}, "at least 1"),
        ({"limits": [3, 3]}, "expected one per prompt"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(llama(), **({"prompts": [[5]], "n": 1, "max_new_tokens": 4, "eos_ids": {1}} | arguments))
