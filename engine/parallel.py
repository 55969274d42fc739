"""Train with several processes as if they were one.

    torchrun --nproc-per-node N train.py ...

Every process (rank) runs the same loop on the same problems with the same weights. Only the expensive work is split:
each problem is solved and verified by one rank, whose results all ranks receive (`spread`), and each rank computes the
gradients of its own groups of rollouts, which are then summed (`over_batches`). Everything else, from the gate to the
metrics, is computed on every rank from all rollouts, so an update is the one that a single process would make. A single
process takes no step through this file: `engine/load.py` gives these functions to a policy only if there are several.

`shard` is for models that do not fit on one device. It also splits weights, gradients and optimizer states over the
ranks (FSDP2); a layer is gathered whenever it is used.

Left out: splitting one layer or one sequence over devices, and sampling on other devices than those that train.
"""

import contextlib
import datetime
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist

from engine import update
from grpo import Sample, Work, micro_batches, token_logprobs

# All ranks wait for the one with the longest rollouts; by default torch would give up after 10 minutes.
TIMEOUT = datetime.timedelta(hours=2)
FILLER = [Sample([0], [0])]  # what a rank computes while others of a sharded model have more micro-batches than it has


class LaunchError(ValueError):
    """The processes that torchrun started do not fit this machine."""


@contextlib.contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the other processes that torchrun started, if any, and leave them at the end.

    device: "cpu", or "cuda" for the GPU whose number is the local rank. Only rank 0 keeps its standard output.
    Raises LaunchError if there are more processes than GPUs.
    """
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        yield
        return
    if device == "cuda":
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise LaunchError(f"torchrun --nproc-per-node: expected at most {gpus} processes, one per GPU, found more")
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # silent until the process ends, also after this context
    yield
    wait()  # not in a `finally`: after an error on one rank, the others may never arrive here
    dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _gather(value: Any) -> list[Any]:
    """Return the value of every rank, on all ranks."""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Wait until all ranks have called this."""
    _gather(None)


def largest(count: int) -> int:
    """Return the largest count of any rank."""
    return max(_gather(count))


def total(figures: Mapping[str, float]) -> Counter[str]:
    """Sum each figure over the ranks. A figure that a rank does not have counts as 0 there."""
    summed: Counter[str] = Counter()
    for part in _gather(dict(figures)):
        summed.update(part)
    return summed


def spread(function: Callable[..., list], items: Sequence) -> list:
    """Return function(items), a list with one result per item, computed by all ranks together.

    Each rank calls the function once, on every world-th item (an empty list if there are too few), and all ranks
    receive all results in the order of the items.
    """
    parts = _gather(function(items[rank() :: world()]))
    return [parts[k % world()][k // world()] for k in range(len(items))]


def over_batches(
    model: Any, samples: Sequence[Sample], work: Work, token_budget: int, temperature: float = 1.0
) -> Counter:
    """Do what `engine.update.over_batches` does, each rank with its own groups; all ranks get the sums of all samples.

    A group belongs to the rank whose number is that of the group modulo the number of ranks. Gradients are summed, not
    averaged, because the loss on each rank is divided by the denominator of all.
    """
    own = [sample for sample in samples if sample.group % world() == rank()]
    if hasattr(model, "token_logprobs"):  # a sharded model
        return total(_sharded_pass(model, own, work, token_budget, temperature))
    figures = update.over_batches(model, own, work, token_budget, temperature)
    if torch.is_grad_enabled():
        for parameter in model.parameters():
            if parameter.grad is None:  # this rank had no rollouts, but others may have had some
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
    return total(figures)


# ---- models that do not fit on one device


def shard(model, device: str) -> None:
    """Split the weights over the ranks, in place, and move each rank's part to its device of this type."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device, (world(),))
    for module in list(model.modules()):
        if type(module).__name__ in (model._no_split_modules or ()):  # the layers of a transformer
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # sum gradients instead of averaging them, see `over_batches`
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    # Log-probs use the output head by itself, so it must be gathered as if this were the model's forward pass.
    model.token_logprobs = MethodType(token_logprobs, model)
    register_fsdp_forward_method(model, "token_logprobs")


def _sharded_pass(model: Any, samples: Sequence[Sample], work: Work, token_budget: int, temperature: float) -> Counter:
    """Call `work` on the micro-batches of this rank. FSDP sums the gradients as they are computed.

    Every pass gathers the model from all ranks: if one made fewer passes, the others would wait forever. For the same
    reason no rank may try again after it has run out of memory.
    """
    figures: Counter = Counter()
    batches = list(micro_batches(samples, token_budget))
    for batch in batches + [FILLER] * (largest(len(batches)) - len(batches)):
        logprobs = model.token_logprobs(batch, temperature)
        if batch is not FILLER:
            figures.update(work(batch, logprobs))
        elif logprobs.requires_grad:
            (0 * logprobs.sum()).backward()
    return figures


def whole_state(state: Any) -> Any:
    """Gather the tensors of a nested state, one after the other, on the CPU of rank 0; other ranks get None."""
    if isinstance(state, dict):
        return {name: whole_state(value) for name, value in state.items()}
    if not hasattr(state, "full_tensor"):
        return state
    gathered = state.full_tensor()
    return gathered.cpu() if rank() == 0 else None


def split_state(state: dict[str, Any], parameters: Sequence[Any]) -> None:
    """Split the tensors in an optimizer's state_dict as its parameters are split, in place."""
    from torch.distributed.tensor import distribute_tensor

    for index, moments in state["state"].items():
        parameter = parameters[index]
        for name, value in moments.items():
            if value.shape == parameter.shape:  # not the number of steps
                value = value.to(parameter.device)
                moments[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)
