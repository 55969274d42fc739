"""Memory that runs out, and what the estimate says beforehand."""

import copy
import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_script
from random_models import BOTH, llama
from test_grpo import SETTINGS, assert_same, sequences
from test_train import small_trainer
from transformers import Qwen3Config, Qwen3ForCausalLM

import grpo
from engine import memory
from options import REAL_MODEL, Options


def run_out_above(model, tokens: int, where: str, monkeypatch) -> list[int]:
    """Have the forward or the backward pass of more than so many padded tokens run out of memory; returns their sizes.

    In the backward pass gradients of the last layer are there already when it happens.
    """
    seen, plain = [], model.base_model.forward

    def forward(input_ids, **rest):
        seen.append(input_ids.numel())
        if input_ids.numel() > tokens and where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        output = plain(input_ids=input_ids, **rest)
        if input_ids.numel() > tokens:
            output.last_hidden_state.register_hook(fail)
        return output

    def fail(gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(model.base_model, "forward", forward)
    return seen


def update(model, **changes) -> dict:
    settings = dataclasses.replace(SETTINGS, max_grad_norm=1e9, **changes)
    return grpo.update(model, torch.optim.SGD(model.parameters(), lr=1.0), sequences(), settings, reference=llama(1))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_micro_batch_that_does_not_fit_is_halved_and_gives_the_same_gradient(where, monkeypatch):
    plain, model = llama(), llama()
    before, report = copy.deepcopy(dict(model.named_parameters())), update(plain)
    seen = run_out_above(model, 40, where, monkeypatch)
    retried = update(model)
    assert retried["oom_retries"] > 0 == report["oom_retries"]
    assert max(seen) > 40 and all(size <= 40 for size in seen[-3:])
    assert retried["loss"] == pytest.approx(report["loss"], rel=1e-5)  # no figure was counted twice
    assert retried["logprob_gap"] == report["logprob_gap"] and retried["clip_frac"] == report["clip_frac"]
    moved = [{name: before[name] - p for name, p in m.named_parameters()} for m in (plain, model)]
    assert_same(*moved)


def test_log_probs_that_are_only_stored_are_halved_too(monkeypatch):
    model = llama()
    run_out_above(model, 40, "forward", monkeypatch)
    assert update(model, minibatches=2)["oom_retries"] >= 1


def test_a_single_sequence_that_does_not_fit_is_a_clear_error(monkeypatch):
    model = llama()
    run_out_above(model, 3, "forward", monkeypatch)
    with pytest.raises(memory.OutOfMemory, match=r"(?s)longest sequence of .*--token-budget"):
        update(model)


def test_cloning_is_halved_too(monkeypatch):
    model = llama()
    run_out_above(model, 40, "backward", monkeypatch)
    loss, stepped, retries = grpo.clone(model, torch.optim.SGD(model.parameters(), lr=0.1), sequences(), SETTINGS)
    expected, *_ = grpo.clone(llama(), torch.optim.SGD(llama().parameters(), lr=0.1), sequences(), SETTINGS)
    assert stepped and retries > 0 and loss == pytest.approx(expected, rel=1e-5)


def test_the_trainer_counts_and_takes_smaller_micro_batches_from_then_on(monkeypatch):
    trainer = small_trainer(gate=False)
    seen = run_out_above(trainer.policy.model, 600, "backward", monkeypatch)
    trainer.step(1)
    first = trainer.counters["oom_retries"]
    assert first > 0 and max(seen) > 600
    assert trainer.update_settings.token_budget < trainer.options.token_budget


REALLY = """
import resource, torch, grpo
from random_models import llama
from test_grpo import SETTINGS, gradients
from grpo import Sequence
import dataclasses
torch.set_num_threads(1)
batch = [Sequence([5, 6], [7 + i % 9] * 200, [1.0, -1.0][i % 2]) for i in range(64)]
expected = gradients(batch[:64], token_budget=2000)
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 60_000_000, resource.RLIM_INFINITY))
model = llama()
settings = dataclasses.replace(SETTINGS, max_grad_norm=1e9)
figures = grpo.update(model, torch.optim.SGD(model.parameters(), lr=1.0), batch, settings)
before = dict(llama().named_parameters())
for name, parameter in model.named_parameters():
    torch.testing.assert_close(before[name] - parameter, expected[name], atol=2e-6, rtol=1e-3)
print("retries", figures["oom_retries"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_memory_that_really_runs_out_on_the_cpu():
    """A process that may not have 60 MB more than it has: the allocator itself refuses."""
    finished = subprocess.run(
        [sys.executable, "-c", REALLY],
        cwd=ROOT / "tests",
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout.split()[-1]) >= 1


# ---- the estimate


@pytest.mark.parametrize("shape", BOTH)
def test_shapes_are_read_from_the_config(shape):
    model = BOTH[shape]()
    found = memory.shape_of(model)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert (found.layers, found.hidden, found.queries, found.keys) == (2, 32, 32, 16)


def test_known_shapes_have_the_parameters_that_their_config_gives():
    for name, shape in memory.KNOWN.items():
        if name.startswith("Qwen3"):
            layer = shape.hidden * (2 * shape.queries + 2 * shape.keys + 3 * shape.intermediate)
            layer += 2 * shape.hidden + 2 * 128  # norms
            tied = 1 if shape.hidden < 4096 else 2
            expected = shape.layers * layer + shape.hidden + tied * shape.vocabulary * shape.hidden
            assert shape.parameters == expected, name


def test_activations_are_what_autograd_keeps():
    """Counted in bf16 autocast, on two depths of a model, so that embeddings and head fall out."""
    sizes = {"vocab_size": 100, "hidden_size": 128, "intermediate_size": 384, "head_dim": 32}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    kept = []
    for layers in (2, 4):
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, num_hidden_layers=layers))
        storages: dict[int, int] = {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
        ):
            output = model.base_model(input_ids=torch.zeros(4, 64, dtype=torch.long), use_cache=False)
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        del output  # only now: storages that were freed would be handed out again
        kept.append(sum(size for pointer, size in storages.items() if pointer not in parameters))
    weights = 2 * sum(p.numel() for p in model.base_model.layers[0].parameters())  # in bf16, counted by `needs`
    found = ((kept[1] - kept[0]) / 2 - weights) / (4 * 64)
    assert memory.activation_bytes(memory.shape_of(model)) == pytest.approx(found, rel=0.15)


def test_what_is_needed_worked_out_by_hand():
    shape = memory.Shape(1_000_000, layers=2, hidden=10, intermediate=30, queries=10, keys=5, vocabulary=100)
    options = Options(max_cache_tokens=1000, token_budget=100, experts=False, kl_coef=0.0)
    found = memory.needs(shape, options)
    assert found["weights"] == found["gradients"] == 4e6 and found["optimizer"] == 8e6
    assert found["cache"] == 1000 * 2 * 2 * 5 * 2  # tokens x layers x (keys and values) x size x bytes
    assert found["activations"] == 2 * 100 * 2 * (26 * 10 + 10 * 15 + 8 * 30) + 2e6
    sharded = memory.needs(shape, dataclasses.replace(options, shard=True), world=4)
    assert sharded["weights"] == 1e6 and sharded["copy to sample from"] == 2e6


def test_flags_that_make_it_fit_are_named():
    options, shape = Options(**REAL_MODEL), memory.KNOWN["Qwen3-0.6B"]
    assert "too much" not in memory.report(shape, options, 80 * memory.GB)
    assert "this would fit: --gradient-checkpointing" in memory.report(shape, options, 24 * memory.GB)
    on_many = memory.report(memory.KNOWN["Qwen3-8B"], options, 80 * memory.GB)
    assert "--shard" in on_many and "torchrun --nproc-per-node" in on_many
    assert "no flag" in memory.report(memory.KNOWN["Qwen3-32B"], options, 16 * memory.GB)
    for size in memory.SIZES:
        for shape in memory.KNOWN.values():
            way = memory.remedy(shape, options, size * memory.GB)
            if way:
                changed = dataclasses.replace(options, **way[1])
                assert memory.needs(shape, changed, way[2])["peak"] <= size * memory.GB


def test_the_report_is_printed_on_cuda_only(monkeypatch, capsys):
    """There is no GPU here: the device says that there is one, and its size is made up."""
    size = SimpleNamespace(total_memory=1.5 * memory.GB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: size)
    for device in ("cpu", "cuda"):
        memory.announce(SimpleNamespace(device=torch.device(device), model=llama()), Options(**REAL_MODEL))
    printed = capsys.readouterr().out
    assert printed.count("memory worked out") == 1 and "of 1.5" in printed and "too much" in printed


def test_the_table_of_running_md_is_what_the_command_prints():
    assert run_script("engine.memory").stdout.strip() in (ROOT / "RUNNING.md").read_text()
