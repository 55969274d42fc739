"""The fourth prediction, once confidence.diff is applied."""

import json

import pytest
from conftest import run_script

from masa import MetaPrediction, expert_target, parse_meta, render_meta
from options import Options
from rewards import alignment_rewards, confidence_reward


def test_a_confidence_is_read_and_written_and_may_be_left_out():
    with_it = MetaPrediction(0.5, 30, ("carry",), confidence=0.75)
    assert parse_meta(render_meta(with_it)) == with_it
    without = '{"pass_rate": 4, "solution_length": 30, "notions": ["carry"]}'
    assert parse_meta(without) == MetaPrediction(0.5, 30, ("carry",)) and render_meta(parse_meta(without)) == without
    for bad in (9, -1, True, 0.5, "6"):
        assert parse_meta(json.dumps(json.loads(without) | {"confidence": bad})) is None
    assert expert_target([with_it], [1.0], [20], 1.0).confidence == 0.75


@pytest.mark.parametrize(
    "confidence, predicted, reward",
    [(1.0, 0.5, 1.0), (0.5, 0.5, 0.875), (0.0, 0.5, 0.5), (0.0, 0.0, 0.5), (0.5, 0.0, 0.375), (1.0, 0.0, 0.0)],
)
def test_rewards_by_hand_where_five_of_eight_are_right(confidence, predicted, reward):
    assert confidence_reward(confidence, predicted, pass_rate=5 / 8) == reward
    prediction = MetaPrediction(predicted, 30, (), confidence)
    assert alignment_rewards(prediction, [], 5 / 8, [], [], "").mean(("confidence",)) == reward
    assert confidence_reward(None, predicted, 5 / 8) == 0.0


def test_a_true_confidence_pays_best():
    for chance in (0.25, 0.5, 0.75):
        expected = {
            c / 8: chance * confidence_reward(c / 8, 0.5, 0.5) + (1 - chance) * confidence_reward(c / 8, 0.0, 0.5)
            for c in range(9)
        }
        assert max(expected, key=expected.get) == chance and expected[chance] == (1 + chance**2) / 2


def test_it_is_rewarded_on_request_and_the_embedded_policy_trains_on_without_one(tmp_path):
    assert Options(reward_confidence=True).reward_components == (*Options().reward_components, "confidence")
    small = "--steps 1 --problems 2 --samples 2 --eval-problems 2 --eval-samples 2 --reward-confidence".split()
    finished = run_script("train.py", *small, "--out", str(tmp_path / "run"))
    assert finished.status == 0, finished.stderr
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["reward_confidence"] == row["eval_reward_confidence"] == 0.0 and row["parsed_frac"] > 0
