"""LoRA, once lora.diff is applied: it starts as the model it is given, trains little, and leaves an ordinary model."""

import json

import pytest
import torch
from conftest import SMALL, run_script
from transformers import AutoModelForCausalLM

from models import loading, lora

IDS = torch.arange(5, 25)[None]


def test_a_fresh_one_changes_nothing_and_trains_a_tenth_of_the_weights():
    plain, policy = loading.load("tiny", "cpu"), loading.load("tiny", "cpu", lora_rank=4)
    torch.testing.assert_close(policy.model(IDS).logits, plain.model(IDS).logits, atol=0, rtol=0)
    policy.model(IDS).logits.square().mean().backward()
    trained = {name: p.numel() for name, p in policy.model.named_parameters() if p.grad is not None}
    assert all(".lora_" in name for name in trained) and len(trained) == 2 * 7 * 3  # A and B, 7 matrices, 3 layers
    assert sum(trained.values()) < 0.1 * plain.model.num_parameters()


def test_a_checkpoint_is_a_model_like_any_other_and_resumes(tmp_path):
    out = ["--lora-rank", "4", "--lr", "1e-2", "--lr-end", "1", "--no-experts", "--save-every", "1", "--out"]
    rows = []
    for name, calls in (("whole", [["3"]]), ("resumed", [["2"], ["3", "--resume"]])):
        for steps, *resume in calls:
            finished = run_script("train.py", *SMALL, *out, str(tmp_path / name), "--steps", steps, *resume)
            assert finished.status == 0, finished.stderr
        rows.append(json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[3]))
    for figure in ("loss", "grad_norm", "eval_pass1", "eval_mean_length"):
        assert rows[0][figure] == pytest.approx(rows[1][figure], rel=1e-3), figure

    checkpoint = tmp_path / "whole" / "checkpoints" / "step-3"
    continued = loading.load(str(checkpoint), "cpu", lora_rank=4)
    anywhere = AutoModelForCausalLM.from_pretrained(checkpoint)
    torch.testing.assert_close(continued.model(IDS).logits, anywhere(IDS).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(anywhere(IDS).logits, loading.load("tiny", "cpu").model(IDS).logits, atol=1e-3)
    assert any(layer.lora_b.any() for layer in lora.layers(continued.model).values())
