"""Small random models of the shapes that matter, for tests of the sampler and the update."""

from pathlib import Path

import numpy as np
import torch
import transformers

from grpo import Sample
from models import tiny

SHAPE: dict = {"vocab_size": 37, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2}  # grouped queries, as in real models
SHAPE |= {"max_position_embeddings": 256, "eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
SHAPE |= {"initializer_range": 0.5}  # far from uniform, so that greedy decoding has something to choose


def llama(seed: int = 0) -> transformers.LlamaForCausalLM:
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()


def qwen3(seed: int = 0) -> transformers.Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True)).eval()


def windowed(seed: int = 0) -> transformers.MistralForCausalLM:
    """Return a model whose tokens see only the last 5 before them, so that a long response leaves its prompt behind."""
    torch.manual_seed(seed)
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SHAPE, sliding_window=6)).eval()


BOTH = {"llama": llama, "qwen3": qwen3}
ALL = BOTH | {"windowed": windowed}


def ragged_samples(seed: int = 0, count: int = 12, prompts: int = 4) -> list[Sample]:
    """Return ragged samples of both kinds, some of a single token and some without advantage.

    Three share a prompt, and a group has several prompts, as it has when each solution gets a hint of its own.
    """
    rng = np.random.default_rng(seed)
    shared = [rng.integers(2, 37, length).tolist() for length in [1, 9, 4, 6, 3][:prompts]]
    return [
        Sample(
            prompt_ids=shared[k % prompts],
            response_ids=rng.integers(1, 37, [1, 12, 5, 3, 7, 7, 2, 10, 4, 11, 6, 8][k % 12]).tolist(),
            advantage=[1.3, -0.7, 0.0, 0.4, -0.2][k % 5],
            kind="meta" if k % prompts == prompts - 1 else "solution",
            group=k % 3,
        )
        for k in range(count)
    ]


def plain_logprobs(model, prompt_ids: list[int], response_ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Return the log-probs of one response from a forward pass without cache, batch or padding."""
    logits = model(input_ids=torch.tensor([prompt_ids + response_ids]), use_cache=False).logits[0] / temperature
    predicted = logits.log_softmax(-1)[len(prompt_ids) - 1 : -1]
    return predicted.gather(-1, torch.tensor(response_ids)[:, None]).squeeze(-1)


# ---- an architecture each, with the tokenizer of the embedded policy: `save_random` makes a model directory

TOKENIZER = tiny.build_tokenizer()
SMALL = {name: size for name, size in SHAPE.items() if name != "bos_token_id"}
SMALL |= {"vocab_size": len(TOKENIZER), "eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id}
NOISE = "attention_dropout hidden_dropout residual_dropout embedding_dropout dropout activation_dropout layerdrop"
NOISE += " attn_pdrop resid_pdrop embd_pdrop hidden_dropout_prob router_jitter_noise input_jitter_noise"
HEADS, WINDOW = {"head_dim": 8}, {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
EXPERTS |= {"topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
LATENT |= {"num_key_value_heads": 4}
NOTHING: dict = {}
PLAIN = "bloom gpt2 gpt_bigcode gpt_neox llama mpt nemotron olmo olmo2 persimmon phi phi3 qwen2 smollm3 stablelm"
TRAINED: dict[str, dict] = dict.fromkeys(f"{PLAIN} starcoder2 biogpt".split(), NOTHING)
TRAINED |= dict.fromkeys("ernie4_5 gemma glm glm4 helium qwen3 seed_oss".split(), HEADS)
TRAINED |= dict.fromkeys("glm4_moe mixtral olmoe phimoe qwen3_moe".split(), EXPERTS | HEADS)
TRAINED |= dict.fromkeys(("deepseek_v2", "deepseek_v3"), EXPERTS | LATENT)
TRAINED |= {"mistral": {"sliding_window": 6}, "gemma3_text": HEADS | WINDOW, "olmo3": WINDOW, "exaone4": WINDOW}
TRAINED |= {"gpt_oss": EXPERTS | HEADS | WINDOW, "gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4}}
TRAINED |= {"falcon": {"alibi": False}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32}, "xglm": {"ffn_dim": 48}}
# What the sampler, and what the update gets wrong: local attention, a state; logits that are changed after the head.
SAMPLED = {"gpt_neo": {"window_size": 40, "attention_types": [[["global", "local"], 1]]}}
SAMPLED |= {"rwkv": {"attention_hidden_size": 32}}
UPDATED: dict[str, dict] = {"cohere": {}, "granite": {"logits_scaling": 8.0}, "gemma2": HEADS | WINDOW, "nanochat": {}}
UPDATED |= {"bert": {"is_decoder": True}}
STATEFUL: dict[str, dict] = {"mamba": {}, "lfm2": {"layer_types": ["conv", "full_attention"]}, "jamba": EXPERTS}
STATEFUL |= {"qwen3_next": EXPERTS | HEADS, "recurrent_gemma": {}}
REFUSED: dict[str, tuple[str, dict]] = {name: ("sampler", sizes) for name, sizes in SAMPLED.items()}
REFUSED |= {name: ("update", sizes) for name, sizes in UPDATED.items()}
REFUSED |= {name: ("more than keys and values", sizes) for name, sizes in STATEFUL.items()}
REFUSED["openai-gpt"] = ("RuntimeError", {})
REFUSED["llama4_text"] = ("no attribute 'last_hidden_state'", EXPERTS | HEADS | {"attention_chunk_size": 6})


def save_random(directory: Path, architecture: str, **changes) -> str:
    """Write a random model of an architecture, with half of everything dropped out in training mode."""
    torch.manual_seed(0)
    extra = TRAINED[architecture] if architecture in TRAINED else REFUSED[architecture][1]
    sizes = SMALL | dict.fromkeys(NOISE.split(), 0.5) | extra | changes
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(architecture, **sizes), dtype=torch.float32
    )
    model.save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return str(directory)
