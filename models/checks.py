"""Checks of a loaded model: what cannot be sampled and trained exactly is refused in words, before anything is drawn.

There is no list of architectures here. The files are compared with each other (`check_files`), and the model is run on
a few random tokens (`check_passes`). docs/models.md lists what this finds. Left out: faults that only bf16 shows.
"""

import random
from functools import partial
from typing import Any

import torch

import grpo
from grpo import Sample
from models.policy import Policy, PolicyError

TOLERANCE = 0.01  # of log-probs in float32: rounding makes 1e-5 of it in SmolLM2, a fault 0.05 and more
SHORT, LONG, RESPONSE = 3, 16, 10  # tokens of two prompts, the second at least, and of the responses to them
LONGEST = 1024  # attention windows beyond this are not crossed, since that would take too long


def check_files(policy: Policy, loading_info: dict[str, Any]) -> None:
    """Raise PolicyError if weights, tokenizer and chat template do not fit each other.

    loading_info: what transformers says about the weights; it knows which may be missing (tied ones) or unexpected.
    """
    tokenizer, kinds = policy.tokenizer, ("missing", "unexpected", "mismatched")
    faults = {kind: sorted(map(str, loading_info[f"{kind}_keys"])) for kind in kinds}
    faults["not finite"] = [name for name, weights in policy.model.named_parameters() if not weights.sum().isfinite()]
    if lists := [f"{len(names)} {kind} ({', '.join(names[:3])} ...)" for kind, names in faults.items() if names]:
        raise PolicyError(f"its weights do not fit its architecture: {'; '.join(lists)}")
    try:
        prompt, end_tokens = policy.encode("9+8-4"), {*policy.eos_ids, policy.turn_end}
    except Exception as error:  # a template is a program, and raises what it likes
        raise PolicyError(f"its chat template cannot be used: {error}") from error
    if "9+8-4" not in (text := tokenizer.decode(prompt)).replace(" ", ""):
        raise PolicyError(f"its chat template or tokenizer loses the text of a problem, 9+8-4: the prompt is {text!r}")
    # A special token that no prompt holds needs no embedding: Gemma 3 has one for images in models without images.
    tokens = {*prompt, *end_tokens, tokenizer.vocab_size - 1}
    tokens |= {i for i, token in tokenizer.added_tokens_decoder.items() if not token.special}
    rows = policy.model.get_input_embeddings().weight.shape[0]
    if beyond := [token for token in tokens if not isinstance(token, int) or token >= rows]:
        raise PolicyError(f"found tokens that have no embedding, {beyond[:3]}, expected numbers below {rows}")


@torch.no_grad()
def check_passes(policy: Policy) -> None:
    """Raise PolicyError unless the sampler and the update give the log-probs of a plain forward pass.

    Two ragged prompts of random tokens go through the policy's own functions, in float32. The longer one is longer
    than the attention windows that the model's config speaks of.
    """
    model, name, rng = policy.model, type(policy.model).__name__, random.Random(0)
    windows = [
        value
        for key, value in model.config.get_text_config().to_dict().items()
        if isinstance(value, int) and any(word in key for word in ("window", "local", "chunk")) and value <= LONGEST
    ]
    longest = int(min(max([LONG, *(window + SHORT for window in windows)]), policy.positions - RESPONSE))
    special = policy.tokenizer.added_tokens_decoder  # some stand for images
    tokens = [i for i in range(len(policy.tokenizer)) if i not in special]
    prompts = [rng.choices(tokens, k=length) for length in (SHORT, longest)]
    try:
        stream = torch.Generator().manual_seed(0)
        groups = policy.sampler(model, prompts, n=1, max_new_tokens=RESPONSE, eos_ids=(), generator=stream)
        samples = [Sample(r.prompt_ids, r.response_ids, sampled_logprobs=r.logprobs) for [r] in groups]
        grpo.without_randomness(model)
        policy.over_batches(model, samples, partial(grpo.keep, "update"), token_budget=2 * LONGEST)
        model.eval()
        for sample in samples:
            ids = torch.tensor([sample.prompt_ids + sample.response_ids], device=model.device)
            logprobs = model(input_ids=ids, use_cache=False).logits[0, -RESPONSE - 1 : -1].log_softmax(-1)
            sample.kept["plain"] = logprobs.gather(-1, ids[0, -RESPONSE:, None]).squeeze(-1)
    except Exception as error:  # any model's code may be running here
        reason = (str(error) or repr(error)).splitlines()[0]
        raise PolicyError(f"{name} cannot be used: a trial ended with {type(error).__name__}: {reason}") from error
    for sample in samples:
        drawn = torch.tensor(sample.sampled_logprobs, device=model.device)
        for which, logprobs in {"sampler": drawn, "update": sample.kept["update"]}.items():
            gap = float((logprobs - sample.kept["plain"]).abs().max())
            if not gap <= TOLERANCE:
                where = f"log-probs of the {which} and of a plain forward pass"
                again = which == "update" and model.is_activation_checkpointing
                advice = "; try without --gradient-checkpointing" if again else ""
                raise PolicyError(f"{name} cannot be used: {where} differ by {gap:.2g}, more than {TOLERANCE}{advice}")
