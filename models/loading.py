"""Loading: any Hugging Face causal LM as a policy, on a device and in the precision that suit it.

`load("tiny")` returns the embedded policy, `load(DIRECTORY or HUB_ID)` any other model. What cannot be trained exactly
is refused in words. Run `python -m models.loading` for an example.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from models import checks, tiny
from models.policy import PROBE, Policy, PolicyError

# A template that tells the model the date would change the prompts from one day to the next.
ONE_DATE = "{%- macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
say = cache(print)  # each message once, however often a model is loaded
BF16_SAMPLING_SIZE = 512  # a CPU draws from models of a smaller hidden size no faster in bf16 (`lab/bench.py`)


@dataclass
class ModelOptions:
    """Which model is trained, and where."""

    model: Annotated[str, "tiny (the embedded policy), a model directory, a run's folder or a hub id"] = "tiny"
    device: Annotated[Literal["auto", "cpu", "cuda"], "auto uses CUDA if there is a GPU"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], "precision of forward passes; auto uses bf16 where it is faster"
    ] = "auto"
    gradient_checkpointing: Annotated[bool, "recompute activations in the update to save memory"] = False
    shard: Annotated[bool, "with torchrun: split weights and optimizer over the devices (FSDP2)"] = False
    trust_remote_code: Annotated[bool, "run Python files that come with the model; they can do all you can do"] = False


def load(
    name: str,
    device: str = "auto",
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    dtype: str = "auto",
) -> Policy:
    """Load "tiny", a model directory (also one with a .gguf file), a run's folder or a hub id; see `ModelOptions`.

    Weights are read from safetensors or GGUF, never from a pickle, which could run any code.
    Raises PolicyError, which says what to do about it.
    """
    device, embedded = pick_device(device), tiny.is_embedded(name)
    if (checkpoint := str(tiny.newest_checkpoint(name))) != name:
        say(f"{name} is the folder of a run: its newest checkpoint is taken, {checkpoint}")
        name = checkpoint
    arguments = _model_arguments(str(tiny.directory()) if name == "tiny" else name)
    arguments["trust_remote_code"] = trust_remote_code  # False, not absent: transformers would ask otherwise
    is_gguf = "gguf_file" in arguments
    unpack: dict[str, Any] = (
        {"quantization_config": GgufConfig(dequantize=True)} if is_gguf else {"use_safetensors": True}
    )
    unpack |= {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}  # see checks.py
    try:
        # The embedded policy's tokenizer has masa.py's instructions as tokens, however they are worded now.
        tokenizer = tiny.build_tokenizer() if embedded else AutoTokenizer.from_pretrained(**arguments)
        loaded: Any = AutoModelForCausalLM.from_pretrained(**arguments, **unpack)
        probe = load_file(file)["probe"] if (file := Path(name, PROBE)).is_file() else None
    except Exception as error:  # files from anywhere, read by other people's code
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "trust_remote_code" in str(error):
            reason = "it comes with Python files; --trust-remote-code would run them, and they can do all you can do"
        elif "backend tokenizer" in reason:
            reason = "it has no tokenizer, or one that cannot be read here; expected a tokenizer.json"
        expected = "'tiny', a directory with a causal LM, or a hub id (which needs a network or a filled cache)"
        raise PolicyError(f"cannot load model {name!r}: {reason}\nExpected {expected}.") from error
    model, loading_info = loaded
    if is_gguf:  # it is float32 now, but still marked as quantized, which saving would refuse
        model.hf_quantizer = None
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template and ONE_DATE not in template:
        tokenizer.chat_template = ONE_DATE + template
    if tokenizer.eos_token_id is None:
        raise PolicyError(f"model {name!r}: its tokenizer names no end token")
    if embedded and len(tokenizer) != model.config.vocab_size:
        found = f"found {model.config.vocab_size} tokens in its weights, but models/tiny.py makes {len(tokenizer)}"
        raise PolicyError(f"model {name!r}: {found}; undo the change, or {tiny.REBUILD}")
    if gradient_checkpointing:
        try:
            model.activation_checkpointing_enable()
        except ValueError as error:
            raise PolicyError(f"--gradient-checkpointing: {error}") from error
    configured = model.generation_config.eos_token_id  # chat models often have two end tokens, and write either
    listed = configured if isinstance(configured, list) else [configured]
    end_tokens = frozenset({tokenizer.eos_token_id, *listed} - {None})
    policy = Policy(model.to(device).eval(), tokenizer, end_tokens, probe=probe)
    policy.sampling_dtype, policy.update_dtype = _dtypes(dtype, device, model)
    try:
        checks.check_files(policy, loading_info)
    except PolicyError as error:
        raise PolicyError(f"model {name!r}: {error}") from error
    if policy.turn_end not in policy.eos_ids:
        say(f"{name}: its chat template ends a turn with {tokenizer.decode(policy.turn_end)}: added to the end tokens")
        policy.eos_ids |= {policy.turn_end}
    return policy


def pick_device(name: str) -> str:
    """Return "cpu" or "cuda", what "auto" finds.  Raises PolicyError if there is no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise PolicyError("--device cuda: PyTorch sees no CUDA device here; use --device auto or cpu")
    return name


def _dtypes(name: str, device: str, model: Any) -> tuple[torch.dtype, torch.dtype]:
    """Return the precision of sampling and of the update."""
    if name != "auto":
        return getattr(torch, name), getattr(torch, name)
    if device == "cuda":
        return torch.bfloat16, torch.bfloat16
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.float32, torch.float32
    large = model.config.get_text_config().hidden_size >= BF16_SAMPLING_SIZE
    return torch.bfloat16 if large else torch.float32, torch.bfloat16


def _model_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of from_pretrained; for a directory whose weights are one GGUF file, with its name."""
    files = [path.name for path in sorted(Path(name).glob("*.*"))]
    gguf_files = [file for file in files if file.endswith(".gguf")]
    pickles = [file for file in files if file.endswith((".bin", ".pt", ".pth"))]
    if pickles and not gguf_files and not any(file.endswith(".safetensors") for file in files):
        raise PolicyError(
            f"model {name!r}: {', '.join(pickles)} is a pickle, which can run any code when it is loaded: refused.\n"
            "Expected .safetensors or .gguf; if you trust the file, convert it with save_pretrained."
        )
    if not gguf_files or "config.json" in files:
        return {"pretrained_model_name_or_path": name}
    if len(gguf_files) > 1:
        raise PolicyError(f"model {name!r}: expected one .gguf file, found {gguf_files}")
    missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
    if missing:
        raise PolicyError(f"model {name!r} is a GGUF file, which needs: pip install {' '.join(missing)}")
    return {"pretrained_model_name_or_path": name, "gguf_file": gguf_files[0]}


def main() -> None:
    policy = load("tiny", device="cpu")
    prompt_ids, response_ids = policy.encode("9+8-4"), policy.encode_response(r"9+8= carry 17;17-4=13;\boxed{13}")
    for what, ids in (("message", prompt_ids), ("response", response_ids)):
        print(f"the {what} as {len(ids)} tokens:", policy.tokenizer.convert_ids_to_tokens(ids))
    print("decoded again:", policy.decode(response_ids))
    print("a response ends with one of:", policy.tokenizer.convert_ids_to_tokens(sorted(policy.eos_ids)))
    print(f"precision here: {policy.sampling_dtype} for sampling, {policy.update_dtype} for the update")


if __name__ == "__main__":
    main()
