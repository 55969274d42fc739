"""Several processes as one: which part of the work is mine, and the few things that all of them must agree on.

    torchrun --nproc-per-node N train.py ...

Every process (rank) runs the same loop, on the same problems, with the same weights. Only what costs time is split:
a problem is solved and verified by one rank, and its rollouts are handed to all; a rank computes the gradients of the
rollouts of its own prompts, and the gradients are summed. Gate, advantages, denominators, experts and metrics are
computed everywhere alike, from all rollouts, so an update is that of one process. With one process every function
here hands back what it was given.

`shard` is for models that do not fit: weights, gradients and optimizer states are then split over the ranks too
(FSDP2), and each layer is gathered when it is needed.

Left out: splitting a layer or a sequence over devices, and sampling on other devices than those that train.
Run `python parallel.py`, then `torchrun --nproc-per-node 2 parallel.py`: the results stay the same.
"""

import datetime
import os
import sys
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
PATIENCE = datetime.timedelta(hours=2)  # ranks wait for the one with the longest rollouts; by default 10 minutes


class LaunchError(ValueError):
    """The processes do not fit this machine; the message says why."""


def start(device: str) -> None:
    """Join the other processes, if torchrun started this one. device: "cpu", or "cuda" for the GPU of its rank.

    Raises LaunchError if there are more processes than GPUs.
    """
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        return
    if device == "cuda":
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise LaunchError(f"torchrun --nproc-per-node: found more processes than the {gpus} GPUs here")
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # one process speaks for all, as long as they live


def end() -> None:
    """Leave the other processes, once all have come this far."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Until all ranks have come this far."""
    if dist.is_initialized():
        dist.barrier()


def from_first(function: Callable[[], Item]) -> Item:
    """What the function returns on rank 0, the only one to call it, on all ranks."""
    if world() == 1:
        return function()
    found: list[Any] = [function() if rank() == 0 else None]
    dist.broadcast_object_list(found)
    return found[0]


def share(items: Sequence[Item]) -> list[Item]:
    """Those of the items that are this rank's: every world-th."""
    return list(items[rank() :: world()])


def gather(mine: list[Item]) -> list[Item]:
    """The inverse of `share`: from the results for every rank's share, those of all items, on all ranks."""
    if world() == 1:
        return mine
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, mine)
    return [parts[index % world()][index // world()] for index in range(sum(map(len, parts)))]


def total(figures: dict[str, float]) -> dict[str, float]:
    """Each figure summed over the ranks; all ranks give the same names."""
    if world() == 1:
        return figures
    summed = torch.tensor(list(figures.values()), dtype=torch.float64, device=_device())
    dist.all_reduce(summed)
    return dict(zip(figures, summed.tolist(), strict=True))


def largest(count: int) -> int:
    """The largest count of any rank."""
    if world() == 1:
        return count
    found = torch.tensor(count, device=_device())
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def sum_gradients(model) -> None:
    """Sum the gradients over the ranks: not a mean, since each rank's are divided by the denominator of all."""
    if world() == 1 or is_sharded(model):  # sharded ones were summed in the backward pass
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # this rank had no rollouts, others may have had
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


# ---- models that do not fit


def shard(model, device: torch.device) -> None:
    """Split weights, gradients and (later) optimizer states over the ranks, in place; the model moves to `device`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (world(),))
    for module in list(model.modules()):
        if type(module).__name__ in (model._no_split_modules or ()):  # its layers
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # gradients are summed, as in `sum_gradients`
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.run = MethodType(lambda self, function, *arguments: function(*arguments), model)
    register_fsdp_forward_method(model, "run")


def is_sharded(model) -> bool:
    return hasattr(model, "run")


def run(model, function: Callable, *arguments: Any) -> Any:
    """function(*arguments), which uses parts of the model: of a sharded one, only within this call are they whole."""
    return model.run(function, *arguments) if is_sharded(model) else function(*arguments)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is split over the ranks, gathered; all ranks must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole_state(state: Any) -> Any:
    """A nested state, its tensors gathered one after the other; on the CPU of rank 0, left out on all other ranks."""
    if isinstance(state, dict):
        return {name: whole_state(value) for name, value in state.items()}
    if isinstance(state, Tensor) and hasattr(state, "full_tensor"):
        gathered = whole(state)
        return gathered.cpu() if rank() == 0 else None
    return state


def split_state(state: dict[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
    """The state_dict of an optimizer, its whole tensors split as the parameters are."""
    from torch.distributed.tensor import distribute_tensor

    def like(value: Any, parameter: Any) -> Any:
        if not hasattr(parameter, "placements") or not isinstance(value, Tensor) or value.shape != parameter.shape:
            return value
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

    split = {
        index: {name: like(value, parameters[index]) for name, value in moments.items()}
        for index, moments in state["state"].items()
    }
    return state | {"state": split}


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def main() -> None:
    start("cpu")
    mine = share([1, 2, 3, 4, 5])
    print(f"processes: {world()}; 1 to 5 are to be squared, and the first process squares {mine}")
    squares = [number**2 for number in mine]
    print("gathered on all:", gather(squares))
    print("their sum over all:", int(total({"squares": sum(squares)})["squares"]))
    end()


if __name__ == "__main__":
    main()
