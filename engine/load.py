"""Load a policy and choose how it runs: the one place where plain functions are replaced by those of the engine."""

from operator import methodcaller

from engine import parallel, sampler, update
from engine.command_line import OptionError
from models.checks import check_passes
from models.loading import ModelOptions, load, pick_device
from models.policy import Policy

SHARED_PROMPTS_SIZE = 512  # hidden size from which sharing prompts in the update pays on a CPU; on GPUs all are shared


def load_policy(options: ModelOptions, name: str = "", samples: bool = True) -> Policy:
    """Load a policy onto its device, or shard it over all processes.

    name: a model other than that of the options, such as a checkpoint.  samples: whether it will also generate.
    Raises OptionError and PolicyError.
    """
    if options.shard and parallel.world() == 1:
        raise OptionError("--shard splits a model over several processes: torchrun --nproc-per-node N train.py --shard")
    device = pick_device(options.device)
    policy = load(
        name or options.model,
        "cpu" if options.shard else device,
        options.gradient_checkpointing,
        options.trust_remote_code,
        options.dtype,
    )
    policy.sampler = sampler.sample
    if device == "cuda" or policy.model.config.get_text_config().hidden_size >= SHARED_PROMPTS_SIZE:
        policy.over_batches = update.over_batches
    if samples:
        check_passes(policy)
    if parallel.world() > 1:
        policy.over_batches, policy.rank = parallel.over_batches, parallel.rank()
        policy.spread, policy.agree = parallel.spread, parallel.largest
    if options.shard:
        if samples:
            policy.sampling_copy = policy.make_copy().to(device)
        parallel.shard(policy.model, device)
        policy.whole = methodcaller("full_tensor")
    return policy
