"""A policy: a causal language model, its tokenizer, and how a message becomes token ids.

`load("tiny")` gives the embedded policy, `load(PATH or HUB_ID)` any Hugging Face causal LM. All that depends on the
device stands in this file: where the parameters live, and the precision of the forward pass.

Parameters are always float32. AdamW at a learning rate of 1e-6 changes a weight of 0.02 by 1e-6 a step, and bf16
has no number between 0.02 and 0.0201: in pure bf16 such an update is rounded away, and nothing is learned. Where bf16
is faster, solutions are drawn from a copy of the weights in bf16, and the update runs under bf16 autocast.
Run `python policy.py` for an example.
"""

import contextlib
import copy
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from engine import parallel
from models import tiny


class PolicyError(ValueError):
    """A model cannot be used; the message says which, and what would help."""


BF16_SAMPLING_SIZE = 512  # a CPU decodes models of a smaller hidden size no faster in bf16: see bench.py

# The attention that an update in bf16 may use. On the CPU the fused one goes backward eight times slower. On Hopper
# GPUs that of cuDNN, which PyTorch prefers, gives NaN gradients for masked lengths of 64, 192, 320, ...
# (github.com/pytorch/pytorch/issues/196678): one update in eight was lost when SmolLM2 learned MASA on an H200.
ATTENTION = {
    "cpu": [SDPBackend.MATH],
    "cuda": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}


@dataclass
class Policy:
    """model: a transformers causal LM on its device, float32.  eos_ids: every token that ends a response.

    sampling_dtype, update_dtype: the precision of forward passes, float32 or bfloat16.
    """

    model: Any
    tokenizer: Any
    eos_ids: frozenset[int]
    sampling_dtype: torch.dtype = torch.float32
    update_dtype: torch.dtype = torch.float32
    _copy: Any = field(default=None, repr=False)  # to sample from: in bf16, and of a sharded model whole

    @property
    def device(self) -> torch.device:
        return self.model.device

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision of the update's forward passes; backward passes belong inside, too.

        Without the cache of autocast: bf16 copies of the weights made without gradients, or before an optimizer
        step, would be used after it, and nothing would be learned.
        """
        with contextlib.ExitStack() as stack:
            if self.update_dtype != torch.float32:
                stack.enter_context(torch.autocast(self.device.type, dtype=self.update_dtype, cache_enabled=False))
                stack.enter_context(sdpa_kernel(ATTENTION[self.device.type]))
            yield

    def encode(self, message: str, before: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Prompt ids of a user message: the chat template (thinking mode off) or, for base models, plain text.

        `before`: (message, answer) pairs shown before it, as turns of the chat.
        """
        turns = [*chain(*before), message]
        if self.tokenizer.chat_template is None:
            return self.tokenizer.encode("".join(f"{text}\n\n" for text in turns))
        roles = cycle(("user", "assistant"))
        return self.tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)],
            add_generation_prompt=True,
            enable_thinking=False,  # read by templates that know it (Qwen3), ignored by the others
            return_dict=False,
        )

    def encode_response(self, text: str) -> list[int]:
        """Token ids of a response as the policy would have written it, the end token included."""
        return self.tokenizer.encode(text, add_special_tokens=False) + [self.tokenizer.eos_token_id]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @torch.no_grad()
    def sampling_model(self) -> Any:
        """The model to draw from, its weights those of now: the model itself, or its copy in `sampling_dtype`.

        A sharded model is gathered into its copy, which all ranks must do.
        """
        if self._copy is None and self.sampling_dtype == torch.float32:
            return self.model
        self._copy = self._copy or self._make_copy()
        for parameter, now in zip(self._copy.parameters(), self.model.parameters(), strict=True):
            parameter.copy_(parallel.whole(now))
        return self._copy

    def _make_copy(self) -> Any:
        made = copy.deepcopy(self.model).requires_grad_(False)
        for parameter in made.parameters():  # not the buffers: rotary frequencies must stay float32
            parameter.data = parameter.data.to(self.sampling_dtype)
        return made

    def shard(self, device: str, samples: bool) -> None:
        """Split the model over the ranks and move it to the device; one that samples also as a whole copy."""
        if samples:
            self._copy = self._make_copy().to(device)
        parallel.shard(self.model, torch.device(device))

    @torch.no_grad()
    def weights(self) -> dict[str, torch.Tensor] | None:
        """The weights of a sharded model, gathered on rank 0, which all ranks must do; None if it is whole anyway."""
        if not parallel.is_sharded(self.model):
            return None
        return parallel.whole_state(dict(self.model.named_parameters()))

    def save(self, directory: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write a model directory that `load` takes; of a sharded model with the `weights()` gathered before."""
        shown = is_progress_bar_enabled()
        disable_progress_bar()  # it would break the bar of the training that saves
        try:
            whole = self._copy if parallel.is_sharded(self.model) else self.model  # its class has the name that counts
            whole.save_pretrained(directory, state_dict=weights)
            self.tokenizer.save_pretrained(directory)
        finally:
            if shown:
                enable_progress_bar()


def load(
    name: str,
    device: str = "auto",
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    dtype: str = "auto",
) -> Policy:
    """Load "tiny", a model directory (also one that holds a .gguf file) or a hub id.

    device: "auto" (CUDA where there is one), "cpu" or "cuda".  trust_remote_code: run Python files that come with the
    model.  Weights are read from safetensors or GGUF, never from a pickle, which could run any code.  dtype: of
    forward passes, "auto" (bf16 where it is faster), "float32" or "bfloat16".
    Raises PolicyError with what to do about it.
    """
    device = pick_device(device)
    arguments = _model_arguments(str(tiny.ensure()) if name == "tiny" else name)
    arguments["trust_remote_code"] = trust_remote_code  # False, not absent: then transformers would ask
    try:
        # The embedded policy's is made anew: it takes instructions reworded in masa.py for the tokens that it knows.
        tokenizer = tiny.build_tokenizer() if name == "tiny" else AutoTokenizer.from_pretrained(**arguments)
        unpack: dict[str, Any] = (
            {"quantization_config": GgufConfig(dequantize=True)}
            if "gguf_file" in arguments
            else {"use_safetensors": True}
        )
        model: Any = AutoModelForCausalLM.from_pretrained(**arguments, **unpack, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "trust_remote_code" in str(error):
            reason = "it comes with Python files; --trust-remote-code would run them: they can do all that you can do"
        raise PolicyError(
            f"cannot load model {name!r}: {reason}\n"
            "Expected 'tiny', a directory with a causal LM, or a hub id (which needs a network or a filled cache)."
        ) from error
    if "gguf_file" in arguments:  # unpacked to float32 now, but still marked as quantized, hence refused by save
        model.hf_quantizer = None
    if tokenizer.eos_token_id is None:
        raise PolicyError(f"model {name!r}: its tokenizer names no end token")
    _switch_off_dropout(model)
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    return Policy(model.to(device).eval(), tokenizer, _eos_ids(model, tokenizer), *_dtypes(dtype, device, model))


def _switch_off_dropout(model) -> None:
    """Two forward passes must give the same log-probs; eval mode would do, but for gradient checkpointing."""
    for module in model.modules():
        for attribute in ("p",) if isinstance(module, torch.nn.Dropout) else ("attention_dropout", "dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)


def pick_device(name: str) -> str:
    """ "cpu" or "cuda", as "auto" finds it.  Raises PolicyError if there is no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise PolicyError("--device cuda: PyTorch sees no CUDA device here; use --device auto or cpu")
    return name


def _dtypes(name: str, device: str, model) -> tuple[torch.dtype, torch.dtype]:
    """The precision of sampling and of the update."""
    if name != "auto":
        return getattr(torch, name), getattr(torch, name)
    if device == "cuda":
        return torch.bfloat16, torch.bfloat16
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.float32, torch.float32
    wide = model.config.get_text_config().hidden_size >= BF16_SAMPLING_SIZE
    return torch.bfloat16 if wide else torch.float32, torch.bfloat16


def _model_arguments(name: str) -> dict[str, Any]:
    """The arguments of from_pretrained; of a directory whose weights are one GGUF file, its name."""
    directory = Path(name)
    gguf_files = sorted(directory.glob("*.gguf")) if directory.is_dir() else []
    pickles = [path.name for suffix in ("bin", "pt", "pth") for path in directory.glob(f"*.{suffix}")]
    if pickles and not gguf_files and not list(directory.glob("*.safetensors")):
        raise PolicyError(
            f"model {name!r}: {', '.join(pickles)} is a pickle, which can run any code when it is loaded: refused.\n"
            "Expected .safetensors or .gguf; whoever trusts the file can convert it with save_pretrained."
        )
    if not gguf_files or (directory / "config.json").exists():
        return {"pretrained_model_name_or_path": name}
    if len(gguf_files) > 1:
        raise PolicyError(f"model {name!r}: expected one .gguf file, found {[path.name for path in gguf_files]}")
    missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
    if missing:
        raise PolicyError(f"model {name!r} is a GGUF file, which needs: pip install {' '.join(missing)}")
    return {"pretrained_model_name_or_path": name, "gguf_file": gguf_files[0].name}


def _eos_ids(model, tokenizer) -> frozenset[int]:
    """End tokens of the tokenizer and of the generation config: chat models often have two, and write either."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [tokenizer.eos_token_id, *listed] if token is not None)


def main() -> None:
    policy = load("tiny", device="cpu")
    prompt_ids, response_ids = policy.encode("9+8-4"), policy.encode_response(r"9+8= carry 17;17-4=13;\boxed{13}")
    for what, ids in (("message", prompt_ids), ("response", response_ids)):
        print(f"the {what} as {len(ids)} tokens:", policy.tokenizer.convert_ids_to_tokens(ids))
    print("decoded again:", policy.decode(response_ids))
    print("a response ends with one of:", policy.tokenizer.convert_ids_to_tokens(sorted(policy.eos_ids)))
    print(f"precision here: {policy.sampling_dtype} for drawing, {policy.update_dtype} for the update")


if __name__ == "__main__":
    main()
