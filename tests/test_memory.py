"""Memory that runs out during an update, and the estimate made beforehand."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_script
from random_models import BOTH, llama, ragged_samples
from test_engine import assert_close, gradients
from test_train import small_trainer
from transformers import Qwen3Config, Qwen3ForCausalLM

import grpo
from engine import memory, update
from grpo import UpdateOptions

REAL = memory.real_options()


def run_out_above(model, tokens: int, where: str, monkeypatch) -> list[int]:
    """Make the forward or backward pass of more than this many padded tokens run out of memory; return all sizes.

    In the backward pass, the last layer already has gradients when it happens.
    """
    sizes, plain = [], model.base_model.forward

    def forward(input_ids, **rest):
        sizes.append(input_ids.numel())
        if input_ids.numel() > tokens and where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        output = plain(input_ids=input_ids, **rest)
        if input_ids.numel() > tokens:
            output.last_hidden_state.register_hook(fail)
        return output

    def fail(gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(model.base_model, "forward", forward)
    return sizes


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_micro_batch_that_does_not_fit_is_halved_and_gives_the_same_gradient(where, monkeypatch):
    expected, plain = gradients(grpo.over_batches, llama(), ragged_samples())
    model = llama()
    sizes = run_out_above(model, 40, where, monkeypatch)
    found, figures = gradients(update.over_batches, model, ragged_samples())
    assert max(sizes) > 40 and all(size <= 40 for size in sizes[-3:])
    assert figures.pop("oom_retries") > 0
    assert figures == pytest.approx(plain, rel=1e-5)  # nothing was counted twice
    assert_close(found, expected)


def test_a_single_sample_that_does_not_fit_is_a_clear_error(monkeypatch):
    model = llama()
    run_out_above(model, 3, "forward", monkeypatch)
    with pytest.raises(update.OutOfMemory, match=r"(?s)the longest sample has 21: .*--token-budget"):
        gradients(update.over_batches, model, ragged_samples())


def test_other_errors_are_passed_on(monkeypatch):
    def broken(batch, logprobs):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        update.over_batches(llama(), ragged_samples(), broken, 100)


@pytest.mark.parametrize("act, loss, where", [("update", "loss", "forward"), ("imitate", "expert_loss", "backward")])
def test_updates_and_imitation_are_halved(act, loss, where, monkeypatch):
    reports, options = [], UpdateOptions(minibatches=2)  # so that log-probs are kept before the update
    for over_batches in (grpo.over_batches, update.over_batches):
        model = llama()
        if over_batches is update.over_batches:
            run_out_above(model, 40, where, monkeypatch)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        reports.append(getattr(grpo, act)(model, optimizer, ragged_samples(), options, over_batches=over_batches))
    assert reports[1]["oom_retries"] >= (2 if act == "update" else 1) and reports[1]["skipped_updates"] == 0
    assert reports[1][loss] == pytest.approx(reports[0][loss], rel=1e-4)


def test_the_trainer_counts_and_takes_smaller_micro_batches_from_then_on(monkeypatch):
    trainer = small_trainer(gate="off")
    trainer.policy.over_batches = update.over_batches
    before = trainer.options.update.token_budget
    sizes = run_out_above(trainer.policy.model, 600, "backward", monkeypatch)
    trainer.step(1)
    assert trainer.counters["oom_retries"] > 0 and max(sizes) > 600
    assert trainer.options.update.token_budget < before


REALLY = """
import resource, torch, grpo
from random_models import llama
from test_engine import assert_close, gradients
from engine import update
from grpo import Sample
torch.set_num_threads(1)
batch = [Sample([5, 6], [7 + i % 9] * 200, [1.0, -1.0][i % 2] / 100) for i in range(64)]
expected, _ = gradients(grpo.over_batches, llama(), batch, 2000)
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 60_000_000, resource.RLIM_INFINITY))
found, figures = gradients(update.over_batches, llama(), batch, 16384)
for name, gradient in expected.items():
    torch.testing.assert_close(found[name], gradient, atol=2e-4, rtol=1e-3)
print("retries", figures["oom_retries"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_memory_that_really_runs_out_on_the_cpu():
    """The process may take at most 60 MB more than it has, so the allocator itself refuses."""
    settings = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    printed = subprocess.check_output([sys.executable, "-c", REALLY], env=settings, text=True, timeout=120)
    assert int(printed.split()[-1]) >= 1


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
    """Counted under bf16 autocast for two depths of a model, so that embeddings and head cancel out."""
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
        del output  # not earlier: freed storages would be handed out again
        kept.append(sum(size for pointer, size in storages.items() if pointer not in parameters))
    weights = 2 * sum(p.numel() for p in model.base_model.layers[0].parameters())  # in bf16, counted by `needs`
    found = ((kept[1] - kept[0]) / 2 - weights) / (4 * 64)
    assert memory.activation_bytes(memory.shape_of(model)) == pytest.approx(found, rel=0.15)


def test_what_is_needed_worked_out_by_hand():
    shape = memory.Shape(1_000_000, layers=2, hidden=10, intermediate=30, queries=10, keys=5, vocabulary=100)
    options = REAL | {"max_cache_tokens": 1000, "token_budget": 100, "experts": False}
    found = memory.needs(shape, options)
    assert found["weights"] == found["gradients"] == 4e6 and found["optimizer"] == 8e6
    assert found["cache"] == 1000 * 2 * 2 * 5 * 2  # tokens x layers x (keys and values) x size x bytes
    assert found["activations"] == 2 * 100 * 2 * (26 * 10 + 10 * 15 + 8 * 30) + 2e6
    assert memory.needs(shape, options | {"kl_coef": 0.1})["reference"] == 4e6
    sharded = memory.needs(shape, options | {"shard": True}, world=4)
    assert sharded["weights"] == 1e6 and sharded["copy to sample from"] == 2e6


def test_flags_that_make_it_fit_are_named():
    small = memory.KNOWN["Qwen3-0.6B"]
    assert "too much" not in memory.report(small, REAL, 80 * memory.GB)
    assert "this would fit: --gradient-checkpointing" in memory.report(small, REAL, 24 * memory.GB)
    on_many = memory.report(memory.KNOWN["Qwen3-8B"], REAL, 80 * memory.GB)
    assert "--shard" in on_many and "torchrun --nproc-per-node" in on_many
    assert "no option" in memory.report(memory.KNOWN["Qwen3-32B"], REAL, 16 * memory.GB)
    for size in memory.SIZES:
        for shape in memory.KNOWN.values():
            way = memory.remedy(shape, REAL, size * memory.GB)
            if way:
                assert memory.needs(shape, REAL | way[1], way[2])["peak"] <= size * memory.GB


def test_the_report_is_printed_on_cuda_only(monkeypatch, capsys):
    """A made-up device stands in for the GPU."""
    size = SimpleNamespace(total_memory=1.5 * memory.GB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: size)
    for device in ("cpu", "cuda"):
        memory.announce(SimpleNamespace(device=torch.device(device), model=llama()), REAL)
    printed = capsys.readouterr().out
    assert printed.count("estimated memory") == 1 and "of 1.5" in printed and "too much" in printed


def test_the_table_in_the_docs_is_what_the_command_prints():
    assert run_script("engine.memory").stdout.strip() in (ROOT / "docs" / "running.md").read_text()
