"""Leave-one-out advantages, once the diff in README.md is applied."""

import json

import pytest
import torch
from conftest import run_script

from grpo import leave_one_out_advantages


@pytest.mark.parametrize(
    "rewards, advantages",
    [
        ([1.0, 0.0, 0.0, 1.0], [2 / 3, -2 / 3, -2 / 3, 2 / 3]),  # 1 - (0 + 0 + 1) / 3, 0 - (1 + 0 + 1) / 3
        ([3.0, 0.0, 0.0, 1.0], [8 / 3, -4 / 3, -4 / 3, 0.0]),
        ([1.0, 0.0], [1.0, -1.0]),
        ([0.1, 0.1, 0.1], [0.0, 0.0, 0.0]),  # exactly: it teaches nothing
        ([1.0], [0.0]),  # there is no other
    ],
)
def test_each_is_compared_with_the_mean_of_the_others(rewards, advantages):
    found = leave_one_out_advantages(torch.tensor([rewards, rewards]))
    assert found.tolist() == [pytest.approx(advantages)] * 2
    assert any(advantages) or not found.any()


def test_it_is_trained_with_by_a_flag(tmp_path):
    small = "--algo grpo --steps 1 --problems 4 --samples 4 --eval-problems 2 --eval-samples 2".split()
    rows = []
    for choice in ("group", "leave-one-out"):
        finished = run_script("train.py", *small, "--advantages", choice, "--out", str(tmp_path / choice))
        assert finished.status == 0, finished.stderr
        rows.append(json.loads((tmp_path / choice / "metrics.jsonl").read_text().splitlines()[1]))
    group, others = rows
    assert group["train_pass_rate"] == others["train_pass_rate"] and group["loss"] != others["loss"]
