"""The sampler against transformers' own `generate` and against plain forward passes."""

from collections import Counter
from itertools import chain

import pytest
import torch
from random_models import BOTH, SHAPE, llama
from transformers import MistralConfig, MistralForCausalLM

import rollout as rollout_module
from engine.cache import join, prefill
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


def assert_same_draws(left: list[list[Rollout]], right: list[list[Rollout]]) -> None:
    for one, other in zip(chain(*left), chain(*right), strict=True):
        assert (one.response_ids, one.finish_reason) == (other.response_ids, other.finish_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("cap", [500, 100, 1])  # several prompts, a few draws, one row at a time
@pytest.mark.parametrize("shape", BOTH)
def test_what_is_drawn_does_not_depend_on_which_rows_wait_for_a_place(shape, cap, monkeypatch):
    model = BOTH[shape]()
    whole = sample(model, PROMPTS, n=6, max_new_tokens=30, eos_ids={1, 2}, generator=seeded())
    joined = []
    monkeypatch.setattr(
        rollout_module, "join", lambda sources, free: joined.append(len(sources)) or join(sources, free)
    )
    refilled = sample(model, PROMPTS, n=6, max_new_tokens=30, eos_ids={1, 2}, generator=seeded(), max_cache_tokens=cap)
    assert_same_draws(refilled, whole)
    assert (2 in joined) == (cap > 1), "fresh rows must have come in beside others"


@pytest.mark.parametrize("pack_share, headroom", [(0.01, 1), (0.5, 3), (2.0, 1000)])
def test_what_is_drawn_does_not_depend_on_when_the_batch_is_packed(pack_share, headroom, monkeypatch):
    model = llama()
    whole = sample(model, PROMPTS, n=6, max_new_tokens=30, eos_ids={1, 2}, generator=seeded())
    monkeypatch.setattr(rollout_module, "PACK_SHARE", pack_share)
    monkeypatch.setattr(rollout_module, "HEADROOM", {"cpu": headroom})
    monkeypatch.setattr(rollout_module, "CHECK_EVERY", {"cpu": 1 if headroom == 1 else 7})
    packed = sample(model, PROMPTS, n=6, max_new_tokens=30, eos_ids={1, 2}, generator=seeded())
    assert_same_draws(packed, whole)


def test_the_cache_never_holds_more_rows_than_allowed(monkeypatch):
    held = []

    def watched(sources, free):
        rows = join(sources, free)
        held.append(rows.real.shape[0] * (rows.real.shape[2] - free))
        return rows

    monkeypatch.setattr(rollout_module, "join", watched)
    sample(llama(), PROMPTS, n=16, max_new_tokens=30, eos_ids={1, 2}, generator=seeded(), max_cache_tokens=300)
    assert max(held) <= 300 and len(held) > 16


def test_a_prompt_is_computed_once_and_a_step_takes_one_token_a_row(monkeypatch):
    model = llama()
    shapes, forward = [], model.forward

    def watched(**inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", watched)
    sample(model, PROMPTS, n=8, max_new_tokens=12, eos_ids={1, 2}, generator=seeded())
    assert shapes[0] == (len(PROMPTS), 7)
    assert all(columns == 1 for _, columns in shapes[1:]) and len(shapes) <= 12
    assert shapes[1][0] <= 32 and shapes[-1][0] <= 24, "rows that ended have left"


def windowed(seed: int = 0) -> MistralForCausalLM:
    torch.manual_seed(seed)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)).eval()


def test_windows_of_attention_are_kept():
    model = windowed()
    groups = sample(model, PROMPTS, n=5, max_new_tokens=30, eos_ids={1}, generator=seeded())
    for rollout in chain(*groups):
        assert rollout.logprobs == pytest.approx(plain_logprobs(model, rollout), abs=1e-4)
    assert max(len(rollout.response_ids) for rollout in chain(*groups)) > 12


def test_a_model_with_other_attention_is_given_the_masks_it_wants():
    model = llama()
    expected = sample(model, PROMPTS, n=5, max_new_tokens=20, eos_ids={1}, generator=seeded())
    model.set_attn_implementation("eager")
    assert_same_draws(sample(model, PROMPTS, n=5, max_new_tokens=20, eos_ids={1}, generator=seeded()), expected)


def test_a_model_that_keeps_a_state_is_refused():
    model = llama()
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="layers that keep more than keys and values"):
        sample(model, PROMPTS, n=1, max_new_tokens=2, eos_ids={1})


def test_a_captured_step_draws_the_same(monkeypatch):
    """The path that CUDA takes, with a stand-in for the graph: fixed shapes, the same tensors in each step."""
    model = llama()
    expected = sample(model, PROMPTS, n=6, max_new_tokens=40, eos_ids={1, 2}, generator=seeded())

    def stand_in(step, device):
        batch = step.__self__
        state = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        state |= {"real": batch.rows.real, "column": batch.rows.column, "keys": batch.rows.cache.layers[0].keys}

        def replay():
            now = vars(batch) | {"real": batch.rows.real, "column": batch.rows.column}
            now["keys"] = batch.rows.cache.layers[0].keys
            for name, value in state.items():
                assert now[name] is value, f"a graph would go on with the old {name}"
            step()

        return replay

    monkeypatch.setattr(rollout_module, "_captured", stand_in)
    monkeypatch.setattr(rollout_module, "CAPTURES", {"cpu"})
    monkeypatch.setattr(rollout_module, "CHECK_EVERY", {"cpu": 16})
    assert_same_draws(sample(model, PROMPTS, n=6, max_new_tokens=40, eos_ids={1, 2}, generator=seeded()), expected)


def test_under_autocast_the_cache_has_its_precision_and_the_draws_its_rounding():
    model = llama()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        _, rows = prefill(model, PROMPTS)
        groups = sample(model, PROMPTS, n=4, max_new_tokens=10, eos_ids={1}, generator=seeded())
    assert {t.dtype for layer in rows.cache.layers for t in (layer.keys, layer.values)} == {torch.bfloat16}
    for rollout in chain(*groups):
        assert rollout.logprobs == pytest.approx(plain_logprobs(model, rollout), abs=0.5)


def test_a_model_in_bf16_is_sampled_in_bf16():
    model = llama().to(torch.bfloat16)
    for rollout in chain(*sample(model, PROMPTS, n=4, max_new_tokens=10, eos_ids={1}, generator=seeded())):
        assert rollout.logprobs == pytest.approx(plain_logprobs(model, rollout), abs=0.5)


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
