"""The embedded policy: its weights belong to its recipe, and a reworded instruction does not break its checkpoints."""

import hashlib
import json
import random
import subprocess
import sys

import pytest
from conftest import ROOT, printed, run_script

import masa
from models import loading, tiny
from models.policy import Policy
from problems.source import load_problems

SMALL = "--problems 2 --samples 2 --eval-problems 2 --eval-samples 2 --save-every 1 --device cpu".split()


@pytest.fixture(scope="module")
def embedded() -> Policy:
    return loading.load("tiny", device="cpu")


def test_the_shipped_weights_belong_to_the_recipe():
    """If this fails, demonstrations or training have changed: train again and write the new fingerprint.

    It is made of token ids rather than texts, because a reworded instruction remains the same token.
    """
    rng, policy = random.Random(0), Policy(None, tiny.build_tokenizer(), frozenset())
    pairs = [tiny.demonstration(problem, rng) for problem in load_problems("arithmetic").train(0, 0, 200)]
    demonstrations = [(policy.encode(message), policy.encode_response(answer)) for message, answer in pairs]
    training = (tiny.WARM_START_STEPS, tiny.WARM_START_BATCH, tiny.WARM_START_LR, tiny.WARM_START_SEED)
    fingerprint = hashlib.sha256(repr((demonstrations, training)).encode()).hexdigest()[:16]
    assert (tiny.DIRECTORY / "recipe.txt").read_text() == fingerprint
    assert sum(path.stat().st_size for path in tiny.DIRECTORY.iterdir()) < 2_000_000


def test_without_its_weights_every_command_says_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "DIRECTORY", tmp_path)
    with pytest.raises(tiny.PolicyError, match=r"config\.json is missing.*models\.tiny --rebuild"):
        tiny.directory()
    for command in ("train.py", "eval.py"):
        finished = run_script(command, *SMALL[:4], "--out", str(tmp_path / "run"))
        assert finished.status != 0 and "models.tiny --rebuild" in finished.stderr
        assert "Traceback" not in finished.stderr


def test_a_reworded_instruction_is_the_same_token_to_every_checkpoint(embedded, tmp_path, monkeypatch):
    """A run is resumed and evaluated with other words than it was started with."""
    run = tmp_path / "run"
    printed("train.py", *SMALL, "--steps", "1", "--out", str(run))
    checkpoint = str(run / "checkpoints" / "step-1")
    before = embedded.encode(masa.meta_prompt("9+8-4", 96))
    reworded = ") and in which mood. Answer in JSON."
    position = tiny.PIECES.index(masa.META_INSTRUCTION_END)
    monkeypatch.setattr(masa, "META_INSTRUCTION_END", reworded)
    monkeypatch.setattr(tiny, "PIECES", (*tiny.PIECES[:position], reworded, *tiny.PIECES[position + 1 :]))
    for name in ("tiny", checkpoint):
        assert tiny.is_embedded(name)
        assert loading.load(name, device="cpu").encode(masa.meta_prompt("9+8-4", 96)) == before
    assert not any(map(tiny.is_embedded, ("owner/name", tmp_path, tmp_path / "missing")))
    printed("train.py", "--resume", "--steps", "2", "--out", str(run))
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["parsed_frac"] > 0.5
    printed("eval.py", "--model", checkpoint, "--problems", "2", "--samples", "2")


def test_another_number_of_tokens_is_an_error(embedded, tmp_path, monkeypatch):
    embedded.save(tmp_path)
    monkeypatch.setattr(tiny, "PIECES", (*tiny.PIECES, "one more"))
    for name in ("tiny", str(tmp_path)):
        with pytest.raises(loading.PolicyError, match=r"found 126 tokens .* makes 127;.*--rebuild"):
            loading.load(name, device="cpu")


def test_it_can_be_trained_in_the_shape_of_qwen3(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "WARM_START_STEPS", 1)
    monkeypatch.setattr(sys, "argv", ["tiny", "--rebuild", "--family", "qwen3", "--out", str(tmp_path / "qwen3")])
    tiny.main()
    made = loading.load(str(tmp_path / "qwen3"), device="cpu")
    assert type(made.model).__name__ == "Qwen3ForCausalLM" and tiny.is_embedded(tmp_path / "qwen3")


@pytest.mark.rebuild
def test_a_policy_that_is_trained_again_does_what_the_shipped_one_does(tmp_path):
    again = str(tmp_path / "again")
    subprocess.run([sys.executable, "-m", "models.tiny", "--rebuild", "--out", again], cwd=ROOT, check=True)
    small = ["--problems", "200", "--samples", "8", "--predictions", "0", "--no-greedy", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "eval.py", "--model", again, "tiny", *small], cwd=ROOT, check=True)
    made, shipped = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert made["pass1"] == pytest.approx(shipped["pass1"], abs=0.03)
    assert made["pass1_by_level"] == pytest.approx(shipped["pass1_by_level"], abs=0.1)


def test_a_prediction_is_short_beside_a_solution(embedded):
    answer = '{"pass_rate": 5, "solution_length": 33, "notions": ["carry", "borrow"]}'
    assert len(embedded.encode_response(answer)) <= 12
    assert embedded.decode(embedded.encode_response(answer)) == answer
    assert len(embedded.encode(masa.meta_prompt("9+8-4", 96))) <= 12
