"""Train with several processes as if they were one.

    torchrun --nproc-per-node N train.py ...

Every process (rank) runs the same loop on the same problems with the same weights. Only the expensive work is split:
each problem is solved and verified by one rank, whose results all ranks receive (`spread`), and each rank computes the
gradients of its own groups of rollouts, which are then summed (`sum_gradients`). Everything else, from the gate to the
metrics, is computed on every rank from all rollouts, so an update is the one that a single process would make. With a
single process, every function here returns what it was given.

`shard` is for models that do not fit on one device. It also splits weights, gradients and optimizer states over the
ranks (FSDP2); a layer is gathered whenever it is used.

Left out: splitting one layer or one sequence over devices, and sampling on other devices than those that train.
Run `python -m engine.parallel`, then `torchrun --nproc-per-node 2 -m engine.parallel`: the results stay the same.
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
from torch import Tensor

# All ranks wait for the one with the longest rollouts; by default torch would give up after 10 minutes.
TIMEOUT = datetime.timedelta(hours=2)


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


def wait() -> None:
    """Wait until all ranks have called this."""
    if dist.is_initialized():
        dist.barrier()


def spread(function: Callable[..., list], items: Sequence) -> list:
    """Return function(items), a list with one result per item, computed by all ranks together.

    Each rank calls the function once, on every world-th item (an empty list if there are too few), and all ranks
    receive all results in the order of the items.
    """
    parts = _gather(function(items[rank() :: world()]))
    return [parts[k % world()][k // world()] for k in range(len(items))]


def _gather(value: Any) -> list[Any]:
    """Return the value of every rank, on all ranks."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def from_first(function: Callable[[], Any]) -> Any:
    """Call the function on rank 0 only and return its result on all ranks."""
    return _gather(function() if rank() == 0 else None)[0]


def total(figures: Mapping[str, float]) -> Counter[str]:
    """Sum each figure over the ranks. A figure that a rank does not have counts as 0 there."""
    summed: Counter[str] = Counter()
    for part in _gather(dict(figures)):
        summed.update(part)
    return summed


def largest(count: int) -> int:
    """Return the largest count of any rank."""
    return max(_gather(count))


def sum_gradients(model) -> None:
    """Sum the gradients over the ranks. Not a mean: the loss on each rank is divided by the denominator of all."""
    if world() == 1 or is_sharded(model):  # FSDP has already summed those of a sharded model
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # this rank had no rollouts, but others may have had some
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


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
        if isinstance(module, FSDPModule):  # sum gradients instead of averaging them, see `sum_gradients`
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.run = MethodType(lambda self, function, *arguments: function(*arguments), model)
    register_fsdp_forward_method(model, "run")


def is_sharded(model) -> bool:
    """Return whether `shard` has split this model."""
    return hasattr(model, "run")


def run(model, function: Callable, *arguments: Any) -> Any:
    """Return function(*arguments). While it runs, it may use parts of a sharded model, such as its output head."""
    return model.run(function, *arguments) if is_sharded(model) else function(*arguments)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor that is split over the ranks. All ranks must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_state(state: Any) -> Any:
    """Gather the tensors of a nested state, one after the other, on the CPU of rank 0; other ranks get None."""
    if isinstance(state, dict):
        return {name: whole_state(value) for name, value in state.items()}
    if isinstance(state, Tensor) and hasattr(state, "full_tensor"):
        gathered = whole(state)
        return gathered.cpu() if rank() == 0 else None
    return state


def split_state(state: dict[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
    """Split the tensors in an optimizer's state_dict as its parameters are split."""
    from torch.distributed.tensor import distribute_tensor

    def split(value: Any, parameter: Any) -> Any:
        if not hasattr(parameter, "placements") or not isinstance(value, Tensor) or value.shape != parameter.shape:
            return value
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

    moments = {
        index: {name: split(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return state | {"state": moments}


def main() -> None:
    with processes("cpu"):
        squares = spread(lambda numbers: [number**2 for number in numbers], [1, 2, 3, 4, 5])
        print("The squares of 1 to 5, each computed by one process and known to all:", squares)
        own = {"sum": sum(squares[rank() :: world()])}
        print(f"The first of {world()} computed those that sum to {own['sum']}; all sum to {total(own)['sum']}.")


if __name__ == "__main__":
    main()
