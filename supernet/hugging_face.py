"""An all-FA model as transformers knows it: its config.json and tensor names. Nothing here imports transformers; no files, no tensors."""

import re
from typing import Any

from supernet.config import SupernetConfig

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
POSITIONS = 131072  # what a context may have; the model itself sets no end to it
NAMES = {
    r"embed\.weight": "model.embed_tokens.weight",
    r"norm\.weight": "model.norm.weight",
    r"head\.weight": "lm_head.weight",
    r"blocks\.(\d+)\.mixer_norm\.weight": r"model.layers.\1.input_layernorm.weight",
    r"blocks\.(\d+)\.mlp_norm\.weight": r"model.layers.\1.post_attention_layernorm.weight",
    r"blocks\.(\d+)\.mixers\.F\.(.+)": r"model.layers.\1.self_attn.\2",
    r"blocks\.(\d+)\.mlp\.(.+)": r"model.layers.\1.mlp.\2",
}


def family(config: SupernetConfig) -> str:
    """The family that computes the same as these shapes in all-FA, or "". Mistral without a window is Llama by another name."""
    if config.qk_norm:
        return "" if config.qkv_bias else "qwen3"
    return "qwen2" if config.qkv_bias else "llama"


def their_name(name: str) -> str:
    """The Hugging Face name of a tensor of an all-FA Supernet."""
    for pattern, theirs in NAMES.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, theirs, name)
    raise AssertionError(name)


def write_config(config: SupernetConfig, dtype: str, kept: dict[str, Any]) -> dict[str, Any]:
    """The config.json. ``kept``: token ids that go along. ValueError where no family has these shapes."""
    kind = family(config)
    if config.mixers != "F" or not kind:
        raise ValueError(f"no Hugging Face family holds mixers={config.mixers!r}, qkv_bias={config.qkv_bias}, qk_norm={config.qk_norm}: "
                         "write it as native")  # fmt: skip
    return {
        "architectures": [ARCHITECTURES[kind]], "model_type": kind, "dtype": dtype, "num_hidden_layers": config.layers,
        "hidden_size": config.hidden, "intermediate_size": config.ffn, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "vocab_size": config.vocab, "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta, "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "max_position_embeddings": POSITIONS, "use_cache": True, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        **{name: value for name, value in kept.items() if name.endswith("_token_id")},
    }  # fmt: skip
