"""Leave-one-out advantages, once estimator.diff is applied: right by hand, and used in training when a flag asks."""

import json

import pytest
import torch
from conftest import printed

from grpo import leave_one_out_advantages


@pytest.mark.parametrize(
    "rewards, expected",
    [
        ([1.0, 0.0, 0.0, 1.0], [2 / 3, -2 / 3, -2 / 3, 2 / 3]),  # 1 - (0 + 0 + 1) / 3, 0 - (1 + 0 + 1) / 3
        ([3.0, 0.0, 0.0, 1.0], [8 / 3, -4 / 3, -4 / 3, 0.0]),
        ([1.0, 0.0], [1.0, -1.0]),
        ([0.1, 0.1, 0.1], [0.0, 0.0, 0.0]),  # exactly 0: an equal group teaches nothing
        ([1.0], [0.0]),  # there are no others
    ],
)
def test_each_reward_is_compared_with_the_mean_of_the_others(rewards, expected):
    advantages = leave_one_out_advantages(torch.tensor([rewards, rewards]))
    assert advantages.tolist() == [pytest.approx(expected)] * 2
    assert any(expected) or not advantages.any()


def test_a_flag_trains_with_it(tmp_path):
    small = "--algo grpo --steps 1 --problems 4 --samples 4 --eval-problems 2 --eval-samples 2".split()
    rows = []
    for choice in ("group", "leave-one-out"):
        printed("train.py", *small, "--advantages", choice, "--out", str(tmp_path / choice))
        rows.append(json.loads((tmp_path / choice / "metrics.jsonl").read_text().splitlines()[1]))
    group, others = rows
    assert group["train_pass_rate"] == others["train_pass_rate"] and group["loss"] != others["loss"]
