"""The fourth prediction, once confidence.diff is applied: parsed, rewarded, imitated, explained and reported."""

import json

import pytest
import torch
from conftest import printed

import grpo
from masa import MetaPrediction, expert_target, meta_prompt, parse_meta, render_meta
from models.loading import load
from problems.source import Problem
from rewards import alignment_rewards, confidence_reward
from rollout import Attempt, SamplingOptions, predict

WITHOUT = '{"pass_rate": 4, "solution_length": 30, "notions": ["carry"]}'
SMALL = "--steps 1 --problems 2 --samples 2 --eval-problems 2 --eval-samples 2".split()


def test_a_confidence_is_read_and_written_and_may_be_missing():
    given = MetaPrediction(0.5, 30, ("carry",), confidence=0.75)
    assert parse_meta(render_meta(given)) == given
    assert parse_meta(WITHOUT) == MetaPrediction(0.5, 30, ("carry",)) and render_meta(parse_meta(WITHOUT)) == WITHOUT
    for bad in (9, -1, True, 0.5, "6"):
        assert parse_meta(json.dumps(json.loads(WITHOUT) | {"confidence": bad})) is None


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


def test_an_expert_is_as_sure_as_the_predictions_were_right():
    group = [MetaPrediction(rate, 30, ("carry",), 1.0) for rate in (0.5, 0.625, 1.0)] + [None]  # two of three hit 0.5
    assert expert_target(group, [0.5, 0.0, 0.0, 0.0], [20], 0.5).confidence == pytest.approx(2 / 3)
    assert expert_target(group, [0.0] * 4, [], 0.0, failures=True).confidence == 0.0
    assert expert_target([parse_meta(WITHOUT)], [0.5], [20], 0.5).confidence is None


def test_the_embedded_policy_can_learn_to_write_one_with_the_tokens_that_it_has():
    policy, prompt = load("tiny", device="cpu", dtype="float32"), meta_prompt("9+8-4", 96)
    adam = torch.optim.AdamW(policy.model.parameters(), lr=1e-3)
    answer = policy.encode_response(render_meta(MetaPrediction(0.5, 30, ("carry", "ok"), confidence=0.75)))
    for _ in range(40):
        grpo.imitate(policy.model, adam, [grpo.Sample(policy.encode(prompt), answer)], grpo.UpdateOptions())
    attempt, greedy = Attempt(Problem("9+8-4", "13")), SamplingOptions(predictions=1, max_meta_tokens=40, temperature=0)
    predict(policy, [attempt], greedy, torch.Generator())
    assert attempt.predictions[0].confidence == 0.75


def test_a_run_explains_and_reports_it(tmp_path):
    told = printed("train.py", "--explain")
    assert "how sure you are" in told and "confidence 0" in told
    printed("train.py", *SMALL, "--out", str(tmp_path / "run"))
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["parsed_frac"] > 0 and row["reward_confidence"] == row["eval_reward_confidence"] == 0.0
    printed("lab.report", str(tmp_path / "run"))
    assert any("confidence" in page.read_text() for page in tmp_path.rglob("*.html"))
