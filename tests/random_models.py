"""Small random models of the shapes that matter, for tests of the sampler and the update."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

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
