"""Small random models of the shapes that matter, for tests of the sampler and the update."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from models import tiny

SHAPE = {
    "vocab_size": 37,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped queries, as in real models
    "max_position_embeddings": 256,
    "initializer_range": 0.5,  # far from uniform, so that greedy decoding has something to choose
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 0,
}


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def qwen3(seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True)).eval()


def windowed(seed: int = 0) -> MistralForCausalLM:
    """Return a model whose tokens see only the last 5 before them, so that a long response leaves its prompt behind."""
    torch.manual_seed(seed)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)).eval()


BOTH = {"llama": llama, "qwen3": qwen3}


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
TRAINED: dict[str, dict] = dict.fromkeys(
    "bloom gpt2 gpt_bigcode gpt_neox llama mpt nemotron olmo olmo2 persimmon phi phi3 qwen2 smollm3 stablelm "
    "starcoder2 biogpt".split(),
    NOTHING,
)
TRAINED |= dict.fromkeys("ernie4_5 gemma glm glm4 helium qwen3 seed_oss".split(), HEADS)
TRAINED |= dict.fromkeys("glm4_moe mixtral olmoe phimoe qwen3_moe".split(), EXPERTS | HEADS)
TRAINED |= dict.fromkeys(("deepseek_v2", "deepseek_v3"), EXPERTS | LATENT)
TRAINED |= {"mistral": {"sliding_window": 6}, "gemma3_text": HEADS | WINDOW, "olmo3": WINDOW, "exaone4": WINDOW}
TRAINED |= {"gpt_oss": EXPERTS | HEADS | WINDOW, "gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4}}
TRAINED |= {"falcon": {"alibi": False}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32}, "xglm": {"ffn_dim": 48}}
REFUSED: dict[str, tuple[str, dict]] = {
    "cohere": ("sampler", {}),
    "granite": ("sampler", {"logits_scaling": 8.0}),
    "gemma2": ("sampler", HEADS | WINDOW),
    "nanochat": ("sampler", {}),
    "gpt_neo": ("sampler", {"window_size": 40, "attention_types": [[["global", "local"], 1]]}),
    "rwkv": ("sampler", {"attention_hidden_size": 32}),
    "bert": ("sampler", {"is_decoder": True}),
    "openai-gpt": ("RuntimeError", {}),
    "mamba": ("more than keys and values", {}),
    "lfm2": ("more than keys and values", {"layer_types": ["conv", "full_attention"]}),
    "jamba": ("more than keys and values", EXPERTS),
    "qwen3_next": ("more than keys and values", EXPERTS | HEADS),
    "recurrent_gemma": ("more than keys and values", {}),
    "llama4_text": ("no attribute 'last_hidden_state'", EXPERTS | HEADS | {"attention_chunk_size": 6}),
}


def save_random(directory: Path, architecture: str, **changes) -> str:
    """Write a random model of an architecture, with half of everything dropped out in training mode."""
    torch.manual_seed(0)
    extra = TRAINED[architecture] if architecture in TRAINED else REFUSED[architecture][1]
    sizes = SMALL | dict.fromkeys(NOISE.split(), 0.5) | extra | changes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes), dtype=torch.float32)
    model.save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return str(directory)
