"""An all-FA model as transformers knows it: its config.json and tensor names, translated both ways. Nothing here imports transformers; no
files, no tensors.

What transformers reads decides here too: of a config, its own defaults stand for what is missing, and whatever it would compute with and
we would not is refused by name.
"""

import re
from dataclasses import dataclass
from typing import Any

from supernet.config import SupernetConfig

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
WRAPPERS = ("llava", "mistral3")  # a vision encoder before a text model of FAMILIES, of which we take the text model
DEFAULTS = {  # of transformers, where a config does not say: heads of kv are those of q where None
    "llama": {"vocab_size": 32000, "intermediate_size": 11008},
    "mistral": {"vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32},
    "qwen3": {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "head_dim": 128},
}
EVERYWHERE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None,
              "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "sliding_window": None, "max_window_layers": 28}  # fmt: skip
NEUTRAL = {  # what other models compute with, and where it changes nothing
    "hidden_act": ("silu",),
    **dict.fromkeys(("attention_bias", "mlp_bias", "rope_interleaved", "is_encoder_decoder"), (False, None)),
    **dict.fromkeys(("quantization_config", "attn_logit_softcapping", "final_logit_softcapping", "logits_soft_cap", "clip_qkv",
                     "query_pre_attn_scalar", "attention_chunk_size", "no_rope_layers", "num_local_experts", "num_experts",
                     "attn_temperature_tuning"), (None,)),
    **dict.fromkeys(("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb",
                     "partial_rotary_factor"), (None, 1)),
}  # fmt: skip
LLAMA3 = {"factor": "rope_factor", "low_freq_factor": "rope_low", "high_freq_factor": "rope_high",
          "original_max_position_embeddings": "rope_original"}  # fmt: skip
ROPE = {"default": (), "linear": ("factor",), "llama3": tuple(LLAMA3)}  # what each type of rope_parameters is made of
BUFFERS = re.compile(r"(?:.*\.)?(?:rotary_emb\.(?:inv_freq|cos_cached|sin_cached)|position_ids|masked_bias)")  # computed anew by everyone
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


OURS = {
    r"model\.embed_tokens\.weight": "embed.weight",
    r"model\.norm\.weight": "norm.weight",
    r"lm_head\.weight": "head.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"blocks.\1.mixer_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"blocks.\1.mlp_norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkvo]_proj\.(?:weight|bias))": r"blocks.\1.mixers.F.\2",
    r"model\.layers\.(\d+)\.self_attn\.([qk]_norm\.weight)": r"blocks.\1.mixers.F.\2",
    r"model\.layers\.(\d+)\.mlp\.((?:gate|up|down)_proj\.weight)": r"blocks.\1.mlp.\2",
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


class Unsupported(ValueError):
    """A part of a model that a Supernet would compute differently, by its name and value."""


@dataclass(frozen=True)
class Shapes:
    """What a teacher's folder says of its text model: fields of SupernetConfig, without window and mixers."""

    fields: dict[str, Any]
    sliding_window: int | None = None  # tokens that its attention sees, itself included; None: all


def read_config(raw: dict[str, Any]) -> Shapes:
    """A config.json in our words. Raises Unsupported naming the first thing that a Supernet would compute differently."""
    wrapped = raw.get("model_type") in WRAPPERS
    text = (raw.get("text_config") or {}) if wrapped else raw
    if not wrapped:
        _one_of("model_type", raw.get("model_type"), FAMILIES)
    family = text.get("model_type")
    _one_of("text_config.model_type" if wrapped else "model_type", family, FAMILIES)
    for key, fine in NEUTRAL.items():
        _one_of(key, text.get(key, fine[0]), fine)
    _one_of("quantization_config", raw.get("quantization_config"), (None,))
    said = EVERYWHERE | DEFAULTS[family] | text
    said["hidden_act"] = "silu"
    heads = _number(said, "num_attention_heads")
    if not isinstance(said["rms_norm_eps"], int | float):
        raise Unsupported(f"rms_norm_eps = {said['rms_norm_eps']!r} (not a number)")
    if said["head_dim"] is None and _number(said, "hidden_size") % heads:
        raise Unsupported(f"hidden_size = {said['hidden_size']}, no multiple of num_attention_heads = {heads}")
    fields = {
        "layers": _number(said, "num_hidden_layers"),
        "hidden": _number(said, "hidden_size"),
        "ffn": _number(said, "intermediate_size"),
        "heads": heads,
        "kv_heads": heads if said["num_key_value_heads"] is None else _number(said, "num_key_value_heads"),
        "head_dim": said["hidden_size"] // heads if said["head_dim"] is None else _number(said, "head_dim"),
        "vocab": _number(said, "vocab_size"),
        "tied": bool(raw.get("tie_word_embeddings", said["tie_word_embeddings"])),
        "qkv_bias": family == "qwen2",
        "qk_norm": family == "qwen3",
        "norm_eps": epsilon(said["rms_norm_eps"]),
        **_read_rope(text),
    }
    return Shapes(fields, _sliding_window(family, said, fields["layers"]))


def _read_rope(text: dict[str, Any]) -> dict[str, Any]:
    """The fields of rotary embedding, from ``rope_parameters`` (transformers 5) or ``rope_scaling`` and ``rope_theta`` beside it."""
    rope = dict(text.get("rope_scaling") or text.get("rope_parameters") or {})
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    _one_of("rope_type", kind, tuple(ROPE))
    theta = rope.pop("rope_theta", text.get("rope_theta") or 10_000.0)
    _one_of("partial_rotary_factor", rope.pop("partial_rotary_factor", None), (None, 1))
    if kind == "llama3":
        rope["original_max_position_embeddings"] = text.get(
            "original_max_position_embeddings", rope.get("original_max_position_embeddings", text.get("max_position_embeddings"))
        )
    for key, value in rope.items():
        if key not in ROPE[kind]:
            _one_of(f"rope_parameters.{key}", value, (None,))
    if absent := [key for key in ROPE[kind] if not isinstance(rope.get(key), int | float)]:
        raise Unsupported(f"rope_type = {kind!r} without a number for {absent[0]}")
    return (
        {"rope_theta": float(theta)}
        | ({"rope_type": kind} if kind != "default" else {})
        | {LLAMA3[key]: int(rope[key]) if key == "original_max_position_embeddings" else float(rope[key]) for key in ROPE[kind]}
    )


def _sliding_window(family: str, said: dict[str, Any], layers: int) -> int | None:
    """The window that any layer has."""
    kinds, window = said.get("layer_types") or [], said["sliding_window"]
    for kind in kinds:
        _one_of("layer_types", kind, ("full_attention", "sliding_attention"))
    if family.startswith("qwen"):
        window = said.get("sliding_window", 4096) or 4096 if said.get("use_sliding_window") else None
        if kinds and "sliding_attention" not in kinds or not kinds and said["max_window_layers"] >= layers:
            window = None
    if "sliding_attention" in kinds and window is None:
        raise Unsupported("layer_types has sliding_attention, sliding_window is None")
    return window


def epsilon(value: float) -> float:
    """An epsilon as it was meant: GGUF keeps it in float32, 9.999999747e-06."""
    return float(f"{value:.6g}")


def _number(said: dict[str, Any], key: str) -> int:
    if not isinstance(said[key], int) or said[key] < 1:
        raise Unsupported(f"{key} = {said[key]!r} (not a positive whole number)")
    return said[key]


def _one_of(what: str, value: object, fine: tuple) -> None:
    if value not in fine:
        raise Unsupported(f"{what} = {value!r} (not {' or '.join(map(repr, fine))})")


def our_name(name: str) -> str:
    """Our name of a tensor of the text model, alone or wrapped; another name stays, and is refused."""
    name = re.sub(r"^(?:model\.language_model\.|language_model\.model\.)", "model.", name)
    name = "lm_head.weight" if name == "language_model.lm_head.weight" else name
    for pattern, ours in OURS.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    return name


def _rope(config: SupernetConfig) -> dict[str, Any]:
    """``rope_parameters`` of transformers."""
    own = {key: getattr(config, LLAMA3[key]) for key in ROPE[config.rope_type]}
    return {"rope_type": config.rope_type, "rope_theta": config.rope_theta} | own


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
        "rope_theta": config.rope_theta, "rope_parameters": _rope(config),
        "tie_word_embeddings": config.tied, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "max_position_embeddings": POSITIONS, "use_cache": True, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        **{name: value for name, value in kept.items() if name.endswith("_token_id")},
    }  # fmt: skip
