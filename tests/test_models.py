"""Any model: exact, or refused in words. Tiny random models of many architectures, and faulty files."""

import json
import re
from itertools import cycle
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from random_models import REFUSED, TOKENIZER, TRAINED, plain_logprobs, save_random
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

import eval as evaluation
import grpo
import train
from engine.load import load_policy
from models import tiny
from models.loading import ONE_DATE, ModelOptions, PolicyError, load
from rollout import SamplingOptions
from train import Options

PROMPTS = [[9, 20, 31, 42, 53, 64, 75, 86, 97, 10, 11, 12], [40, 41], [13]]


def load_here(name: str | Path, **options):
    return load_policy(ModelOptions(model=str(name), device="cpu", dtype="float32", **options))


def test_the_table_of_architectures_lists_what_is_tried():
    rows = re.findall(r"(?m)^\| `([\w-]+)` \|.*\| (trained|refused)", (ROOT / "docs" / "models.md").read_text())
    assert dict(rows) == dict.fromkeys(TRAINED, "trained") | dict.fromkeys(REFUSED, "refused")
    assert len(rows) == len(TRAINED) + len(REFUSED)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TRAINED)
def test_an_architecture_is_sampled_and_trained_exactly(architecture, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.load.SHARED_PROMPTS_SIZE", 1)  # the functions that a model of real size is given
    directory = save_random(tmp_path / "model", architecture)
    policy = load_here(directory)
    groups = policy.sample(PROMPTS, 1, 24, SamplingOptions(temperature=0), torch.Generator())
    for prompt, [rollout] in zip(PROMPTS, groups, strict=True):
        settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": 4, "pad_token_id": 0}
        mask = torch.ones(1, len(prompt), dtype=torch.long)
        [generated] = policy.model.generate(torch.tensor([prompt]), attention_mask=mask, **settings).tolist()
        assert generated[len(prompt) :] == rollout.response_ids
        with torch.no_grad():
            expected = plain_logprobs(policy.model, prompt, rollout.response_ids).tolist()
            assert rollout.logprobs == pytest.approx(expected, abs=1e-4)
            plain = grpo.token_logprobs(policy.model, [grpo.Sample(prompt, rollout.response_ids)])
        assert plain.tolist() == pytest.approx(expected, abs=1e-4)

    rewards = cycle((0.0, 1.0))
    monkeypatch.setattr("rollout.solution_reward", lambda *_: next(rewards))
    few = {"problems": 2, "samples": 4, "predictions": 2, "max_prompt_tokens": 128, "max_new_tokens": 24}
    few |= {"max_meta_tokens": 12, "eval_problems": 1, "eval_samples": 1, "eval_predictions": 0, "warmup_steps": 0}
    given = {"model": directory, "data": "arithmetic", "device": "cpu", "dtype": "float32", "steps": 2, "lr": 1e-4}
    rows = train.train(Options.of(given | few), tmp_path / "run")
    for row in rows[1:]:
        assert row["logprob_gap"] < 1e-4 and row["clip_frac"] == 0 and row["skipped_updates"] == 0
    trained = load(str(tmp_path / "run"), device="cpu").model
    pairs = zip(policy.model.parameters(), trained.parameters(), strict=True)
    moved = [not torch.equal(before, after) for before, after in pairs]
    assert sum(moved) > 0.9 * len(moved), "all but the experts that no token went to"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", REFUSED)
def test_an_architecture_is_refused_by_name(architecture, tmp_path):
    directory = save_random(tmp_path, architecture)
    message = rf"\w+(ForCausalLM|LMHeadModel) cannot be used: .*{REFUSED[architecture][0]}"
    with pytest.raises(PolicyError, match=message):
        load_here(directory)


@pytest.mark.parametrize("architecture", ["gpt_neo", "gemma2", "rwkv", "mamba", "llama4_text"])
def test_what_would_be_wrong_is_refused_before_the_run_folder_is_made(architecture, tmp_path):
    directory = save_random(tmp_path / "model", architecture)
    with pytest.raises(PolicyError, match=f"cannot be used: .*{REFUSED[architecture][0]}"):
        train.train(Options.of({"model": directory, "max_new_tokens": 24, "device": "cpu"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


SAMPLES = [grpo.Sample([5, 6, 7], [8, 9, 10, 11], 1.0), grpo.Sample([5, 6, 7], [12, 13], -1.0, group=1)]


@pytest.mark.parametrize("architecture", ["starcoder2", "gpt_bigcode", "opt", "falcon", "phimoe"])
def test_at_learning_rate_0_no_ratio_moves(architecture, tmp_path):
    """Dropout of all kinds, whole layers left out, noise in the router: all of it belongs to training mode."""
    model = load_here(save_random(tmp_path, architecture)).model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for sample in SAMPLES:
        sample.sampled_logprobs = plain_logprobs(model, sample.prompt_ids, sample.response_ids).tolist()
    figures = grpo.update(model, optimizer, SAMPLES, grpo.UpdateOptions(minibatches=2, clip_high=1e-4))
    assert figures["clip_frac"] == 0 and figures["logprob_gap"] < 1e-5


def test_activations_are_recomputed_without_dropout(tmp_path):
    model, calls = load_here(save_random(tmp_path, "gpt2"), gradient_checkpointing=True).model, []
    model.base_model.h[0].attn.register_forward_hook(lambda *_: calls.append(None))
    logprobs = plain_logprobs(model, SAMPLES[0].prompt_ids, SAMPLES[0].response_ids).tolist()
    calls.clear()
    loss = grpo.imitate(model, torch.optim.SGD(model.parameters()), SAMPLES[:1], grpo.UpdateOptions())["expert_loss"]
    assert loss == pytest.approx(-sum(logprobs) / 4, abs=1e-5) and len(calls) == 2 and not model.training


@pytest.mark.parametrize(
    "architecture, message",
    [("starcoder2", "log-probs of the update .* without --gradient-checkpointing"), ("openai-gpt", "does not support")],
)
def test_gradient_checkpointing_is_refused_where_it_cannot_be_exact(architecture, message, tmp_path):
    with pytest.raises(PolicyError, match=message):
        load_here(save_random(tmp_path, architecture), gradient_checkpointing=True)


def test_prompts_and_responses_must_fit_into_the_positions(tmp_path, monkeypatch):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope["original_max_position_embeddings"] = 64  # from here on, one row changes the frequencies of all
    long = save_random(tmp_path / "long", "llama", rope_parameters=rope)
    assert load_here(long).positions == 64
    message = "room for 256 tokens, found prompts of up to 128 and responses of up to 129: lower --max-prompt-tokens"
    given = {"model": save_random(tmp_path / "model", "gpt2"), "data": "arithmetic", "device": "cpu"}
    given |= {"max_prompt_tokens": 128, "eval_problems": 2}
    with pytest.raises(PolicyError, match=message):
        train.make_trainer(Options.of(given | {"max_new_tokens": 129}))
    train.make_trainer(Options.of(given | {"max_new_tokens": 128}))
    for arguments in ("eval.py --max-new-tokens 255", "eval.py --max-new-tokens 9 --max-meta-tokens 255"):
        monkeypatch.setattr("sys.argv", [*arguments.split(), "--device", "cpu", "--problems", "2"])
        with pytest.raises(SystemExit, match="has room for 256 tokens"):
            evaluation.main()


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(directory: Path, change) -> None:
    weights = change(load_file(directory / "model.safetensors"))
    contiguous = {name: tensor.clone() for name, tensor in weights.items()}
    save_file(contiguous, directory / "model.safetensors", {"format": "pt"})


def template(directory: Path, text: str) -> None:
    (directory / "chat_template.jinja").write_text(text)


def only_named_templates(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    edit(directory / "tokenizer_config.json", chat_template=[{"name": "rag", "template": "{{ messages }}"}])


NORM, PARTS = (
    "model.norm.weight",
    "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}.",
)
SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
FAULTS = [
    (
        lambda d: change(d, lambda w: {f"module.{name}": w[name] for name in w}),
        r"21 missing \(.*21 unexpected \(module.",
    ),
    (
        lambda d: change(d, lambda w: {name: w[name] for name in w if name != "lm_head.weight"}),
        r"1 missing \(lm_head.w",
    ),
    (lambda d: change(d, lambda w: w | {NORM: w[NORM][:5]}), r"1 mismatched .*model.norm.weight"),
    (lambda d: change(d, lambda w: w | {NORM: w[NORM] * torch.nan}), r"1 not finite \(model.norm.weight"),
    (lambda d: save_random(d, "llama", vocab_size=100), r"tokens that have no embedding, .* below 100"),
    (lambda d: edit(d / "generation_config.json", eos_token_id=[4, 500]), r"no embedding, \[500\]"),
    (lambda d: edit(d / "generation_config.json", eos_token_id="</s>"), "no embedding, .*'</s>'"),
    (lambda d: edit(d / "config.json", eos_token_id="4"), "eos_token_id"),
    (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer"),
    (lambda d: template(d, PARTS), "loses the text"),
    (lambda d: template(d, SYSTEM), "system first"),
    (lambda d: template(d, "{% if messages %}{{"), "unexpected 'end of template'"),
    (only_named_templates, "no default"),
]


@pytest.mark.parametrize("break_it, message", FAULTS, ids=[message for _, message in FAULTS])
def test_files_that_do_not_fit_each_other_are_refused(break_it, message, tmp_path):
    save_random(tmp_path, "llama")
    break_it(tmp_path)
    with pytest.raises(PolicyError, match=message):
        load(str(tmp_path), device="cpu")


def test_what_is_harmless_is_not_refused(tmp_path):
    """A head may be tied, and a special token that is never used may be beyond the embeddings."""
    save_random(tmp_path, "llama", tie_word_embeddings=True)
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens(AddedToken("<image>", special=True))
    tokenizer.save_pretrained(tmp_path)
    load_here(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


CHATML = "{% for m in messages %}<user>{{ m.content }}<unk>\n{% endfor %}"
CHATML += "{% if add_generation_prompt %}<assistant>{% endif %}"


def test_a_response_ends_as_the_template_ends_a_turn(tmp_path, capsys):
    template(Path(save_random(tmp_path, "llama")), CHATML)
    policy, again = (load(str(tmp_path), device="cpu") for _ in range(2))
    unk, end = TOKENIZER.convert_tokens_to_ids(["<unk>", "<end>"])
    assert policy.eos_ids == again.eos_ids == {unk, end}
    assert policy.encode_response("17")[-1] == unk
    assert capsys.readouterr().out.count("ends a turn with <unk>: added to the end tokens") == 1
    assert load("tiny", device="cpu").encode_response("17")[-1] == end, "its template asks for an answer in any case"


def test_a_template_is_told_one_date_for_ever(tmp_path):
    directory = save_random(tmp_path / "a", "llama")
    template(Path(directory), "{{ strftime_now('%d %B') }}{% for m in messages %}{{ m.content }}{% endfor %}")
    policy = load(directory, device="cpu")
    assert policy.decode(policy.encode("9+8")) == "26 Jul 20249+8"
    policy.save(tmp_path / "b")
    assert load(str(tmp_path / "b"), device="cpu").tokenizer.chat_template.count(ONE_DATE) == 1


def test_the_folder_of_a_run_stands_for_its_newest_checkpoint(finished_run, capsys):
    assert Options.of({"model": str(finished_run)}).sampling.max_new_tokens == SamplingOptions.max_new_tokens
    policy = load(str(finished_run), device="cpu")
    assert policy.model.name_or_path.endswith("step-3") and "step-3" in capsys.readouterr().out
