"""Predictions: reading and writing them (properties, by hypothesis), and decisions worked out by hand."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import masa
from masa import MetaPrediction, expert_target, hint_notions, length_limit, parse_meta, render_meta, should_skip

GOOD = {"pass_rate": 5, "solution_length": 33, "notions": ["carry"]}
PARSED = MetaPrediction(5 / 8, 33, ("carry",))

predictions = st.builds(
    MetaPrediction,
    st.integers(0, 8).map(lambda count: count / 8),
    st.integers(1, masa.MAX_SOLUTION_LENGTH),
    st.lists(st.text(st.characters(), max_size=20), max_size=5).map(tuple),  # lone surrogates as well
)


@given(predictions | st.just(MetaPrediction(0.5, 9, ("<meta>", "a</meta>", "\\<meta>"))))
def test_a_rendered_prediction_parses_to_itself(prediction):
    assert parse_meta(render_meta(prediction)) == prediction
    assert parse_meta(f"I think {{so}}:\n```json\n{render_meta(prediction)}\n``` {{\n") == prediction
    render_meta(prediction).encode()  # tokenizers want UTF-8


@given(st.text(st.characters()) | st.text('{}[]":,0123456789.eE-+ntfapsolutin_rgh\\'))
def test_any_text_parses_to_a_valid_prediction_or_none(text):
    prediction = parse_meta(text)
    assert prediction is None or (0 <= prediction.pass_rate <= 1 and prediction.solution_length >= 1)


@given(st.permutations(list(GOOD)), st.sampled_from([None, 0, 4]), st.sampled_from([(",", ":"), (" , ", " : ")]))
def test_key_order_and_spacing_do_not_matter(order, indent, separators):
    assert parse_meta(json.dumps({key: GOOD[key] for key in order}, indent=indent, separators=separators)) == PARSED


@given(predictions, st.text(), st.text(), st.text())
def test_a_thought_is_kept_and_is_not_the_answer(prediction, before, thought, after):
    written = f"{before}<meta>{thought} {json.dumps(GOOD)}</meta>"
    answer = f"{written}{after}{render_meta(prediction)}"
    assert (read := parse_meta(answer)) == prediction and read.thought == written
    assert render_meta(read).startswith(f"{written}\n{{") and parse_meta(render_meta(read)).thought == written
    assert parse_meta(written) is parse_meta(f"{written} {answer[:-1]}") is None


def test_a_thought_that_does_not_end_is_no_prediction():
    good = json.dumps(GOOD)
    for text in (
        f"<meta>{good}",
        f"<meta> so {good} </meta> or <meta> {good}",
        f"<meta>{'x' * 30_000}{good}",
        "</meta>",
    ):
        assert parse_meta(text) is None
    assert parse_meta(f"{good} or {good}</meta>") is None
    assert parse_meta(good).thought == "" and parse_meta(f"no start </meta>{good}").thought == "no start </meta>"
    assert parse_meta(f"<meta>{'x' * 30_000}</meta>```json\n{good}\n```") == PARSED


def test_a_pass_rate_is_rounded_inward_to_an_eighth():
    assert parse_meta(render_meta(MetaPrediction(0.30, 5, ()))) == MetaPrediction(0.25, 5, ())
    assert parse_meta(render_meta(MetaPrediction(0.32, 5, ()))) == MetaPrediction(0.375, 5, ())
    assert parse_meta(render_meta(MetaPrediction(15 / 16, 5, ()))) == MetaPrediction(7 / 8, 5, ())
    assert parse_meta(render_meta(MetaPrediction(1 / 16, 5, ()))) == MetaPrediction(1 / 8, 5, ())
    assert [masa.pass_rate_count(k / 1000) for k in (0, 1, 999, 1000)] == [0, 1, 7, 8]


BAD = {
    "pass_rate": [9, -1, True, 0.5, float("nan"), float("inf"), "5", None],
    "solution_length": [0, -3, 1.5, False, 10**7, [33]],
    "notions": ["carry", [1], None, {"carry": 1}],
}


@pytest.mark.parametrize("change", [{key: value} for key, values in BAD.items() for value in values], ids=str)
def test_a_bad_value_makes_the_prediction_none(change):
    assert parse_meta(json.dumps(GOOD)) == PARSED
    assert parse_meta(json.dumps(GOOD | change)) is None


@pytest.mark.parametrize("key", GOOD)
def test_a_missing_key_makes_the_prediction_none(key):
    assert parse_meta(json.dumps({k: v for k, v in GOOD.items() if k != key})) is None


def test_the_last_whole_object_counts():
    other = json.dumps(GOOD | {"pass_rate": 1})
    assert parse_meta(f"{other} no, rather {json.dumps(GOOD)}") == PARSED
    assert parse_meta(f"{json.dumps(GOOD)} or {other[:-5]}") == PARSED  # the second is cut off
    assert parse_meta(f"{json.dumps(GOOD)} {json.dumps(GOOD | {'pass_rate': 99})}") is None
    assert parse_meta(f'{json.dumps(GOOD)} and in short {{"x": 1}} {{}}') == PARSED


@pytest.mark.parametrize(
    "text", ["", "{", "{" * 10_000, '{"a":' * 10_000, "[" * 10_000, '{"pass_rate": ' + "9" * 10_000]
)
def test_hostile_text_is_no_prediction(text):
    assert parse_meta(text) is None


def rates(*values):
    return [None if value is None else MetaPrediction(value, 30, ()) for value in values]


@pytest.mark.parametrize(
    "given_rates, options, skipped",
    [
        ((0.0, 0.0, 0.0, 0.0), {}, True),
        ((1.0, 1.0, 0.875, 1.0), {}, True),  # mean 0.969, standard deviation 0.054
        ((0.0, 0.0, 0.25, 0.0), {}, False),  # mean 0.0625, but standard deviation 0.108
        ((0.5, 0.5, 0.5, 0.5), {}, False),  # they agree, but on a problem that teaches
        ((0.125, 0.125, 0.125), {}, False),  # mean 0.125 > 0.1
        ((0.0, None), {}, True),  # half of them parsed
        ((0.0, None, None), {}, False),  # fewer than half
        ((None, None), {}, False),
        ((), {}, False),
        ((1.0,), {}, True),
        ((0.1, 0.1, 0.1), {}, True),  # the margin is included, whatever floating point makes of the mean
        ((0.95, 0.85), {}, True),
        ((0.0, 0.1875), {}, True),  # population standard deviation 0.09375 < 0.1; of the sample it is 0.1326
        ((0.25, 0.25), {"margin": 0.25}, True),
        ((0.0, 0.2), {"std_threshold": 0.1}, False),  # 0.1 is not below 0.1
        ((0.0, 0.0), {"easy": False}, True),
        ((1.0, 1.0), {"easy": False}, False),  # predicted all right, which only `easy` skips
        ((0.0,) * 8, {"margin": 0.0}, True),  # as published
        ((1.0,) * 8, {"margin": 0.0}, True),
        ((1.0,) * 7 + (0.875,), {"margin": 0.0}, False),
        ((0.0,) * 7 + (0.125,), {"margin": 0.0, "std_threshold": 9.0}, False),
    ],
)
def test_gate_decisions_worked_out_by_hand(given_rates, options, skipped):
    assert should_skip(rates(*given_rates), **options) is skipped


def test_the_predicted_pass_rate_is_a_mean_over_those_that_parsed():
    assert masa.predicted_pass_rate(rates(0.25, 0.75, None)) == 0.5
    assert masa.predicted_pass_rate(rates(0.25, None, None)) is None  # too few to act on
    assert masa.predicted_pass_rate([]) is None


@pytest.mark.parametrize(
    "lengths, options, limit",
    [
        ((10, 20, 90), {}, 40),  # twice the median
        ((10, 15), {}, 25),  # 2 x 12.5
        ((10, 15), {"multiplier": 1.5}, 19),  # 18.75, rounded up
        ((100,), {"multiplier": 1.1}, 110),  # 110.00000000000001 in floating point
        ((600, 700), {}, 1000),
        ((10, None), {}, 20),
        ((10, None, None), {}, 1000),
        ((), {}, 1000),
        ((1,), {"multiplier": 0.1}, 1),
    ],
)
def test_limits_worked_out_by_hand(lengths, options, limit):
    group = [None if length is None else MetaPrediction(0.5, length, ()) for length in lengths]
    assert length_limit(group, ceiling=1000, **options) == limit


def test_an_expert_has_the_best_notions_and_the_true_figures():
    group = [MetaPrediction(0.0, 9, ("a",)), None, MetaPrediction(1.0, 70, ("b", "c")), MetaPrediction(0.5, 5, ("d",))]
    expert = expert_target(group, [0.3, 0.0, 0.5, 0.5], [20, 31, 40], pass_rate=3 / 8)
    assert expert == MetaPrediction(3 / 8, 31, ("b", "c"))
    assert expert_target(group, [0.19, 0.0, 0.1, 0.0], [20], 0.5) is None  # below 0.2
    assert expert_target(group, [0.2, 0.0, 0.1, 0.0], [20], 0.5).notions == ("a",)  # 0.2 is enough
    assert expert_target(group, [0.3, 0.0, 0.5, 0.5], [], 0.0) is None  # no correct rollout, so no true length
    assert expert_target([], [], [20], 0.5) is None
    thinking = parse_meta(f"<meta>hm</meta> {json.dumps(GOOD)}")
    target = render_meta(expert_target([thinking], [1.0], [20], 15 / 16))
    assert target == '<meta>hm</meta>\n{"pass_rate": 7, "solution_length": 20, "notions": ["carry"]}'


def test_failures_have_an_expert_only_if_asked_for():
    group = [None, MetaPrediction(0.75, 9, ("a",)), MetaPrediction(0.5, 5, ("d",))]
    assert expert_target(group, [0.0] * 3, [], 0.0) is None
    assert expert_target(group, [0.0] * 3, [], 0.0, failures=True) == MetaPrediction(0.0, 9, ("a",))
    assert expert_target([None], [0.0], [], 0.0, failures=True) is None
    assert expert_target(group, [0.0, 0.5, 0.0], [7], 0.5, failures=True) == MetaPrediction(0.5, 7, ("a",))


def test_hints_are_the_notions_named_most_often():
    group = [MetaPrediction(0, 1, notions) for notions in (("a", "b", "b"), ("b", "c"), ("c", "b"))]
    assert hint_notions(group, count=2) == ("b", "c")
    assert hint_notions([None, None, group[0]]) == ()


def test_a_hint_for_each_solution_is_drawn_from_the_predictions():
    group = [MetaPrediction(0, 1, notions) for notions in (("a", "b"), ("c",))] + [None]
    hints = masa.draw_hints(group, 2000, random.Random(0))
    assert set(hints) == {("a", "b"), ("c",)} and 900 < hints.count(("c",)) < 1100
    assert hints == masa.draw_hints(group, 2000, random.Random(0)) and len(hints) == 2000
    assert masa.draw_hints([None, None, group[0]], 3, random.Random(0)) == [()] * 3


def test_prompts_name_everything_that_the_answer_needs():
    assert "1 + 1 = ?" in masa.solution_prompt("1 + 1 = ?") and "\\boxed{" in masa.solution_prompt("1 + 1 = ?")
    assert "carry, borrow" in masa.solution_prompt("x", ["carry", "borrow"])
    prompt = masa.meta_prompt("1 + 1 = ?", 777)
    reasoning = masa.meta_prompt("1 + 1 = ?", 777, reasoning=True)
    for part in ("1 + 1 = ?", "777", "pass_rate", "solution_length", "notions", "0 to 8"):
        assert part in prompt and part in reasoning
    assert "<meta>" not in prompt and "between <meta> and </meta>" in reasoning and "nothing but" not in reasoning
