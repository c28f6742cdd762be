"""The Apriel2 format (Fast-LLM's modeling_apriel2.py): its config and tensor names, translated both ways. No files, no tensors.

What the reference reads decides here too: keys of a config that it ignores are ignored, keys that it computes with are translated or
refused by name.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from supernet.config import SupernetConfig
from supernet.placement import LETTERS

FAMILIES = ("apriel2_text", "apriel2")  # the text model; the one with a vision encoder, whose text part is not nested
NAMES = {"F": "attention", "S": "sliding_window", "K": "kda", "G": "gdn"}  # as we write them; a checkpoint may choose others
TYPES = ("attention", "gdn", "kda")
WINDOW = 4096  # of a model without sliding-window mixers, where it means nothing
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "embeddings")  # what we do not compute with, and write back
PREFIX = re.compile(r"(?:model\.language_model|language_model\.model|language_model|model)\.(?!vision)")
VISION = re.compile(r"(?:model\.)?(?:vision_\w+|multi_modal_projector|image_newline)\b")
BLOCK = {"mixer_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "mlp": "mlp"}
FAST_LLM = {"scale_factor": 8.0, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_context_length": 8192}  # defaults
LLAMA3 = dict(zip(FAST_LLM, ("rope_factor", "rope_low", "rope_high", "rope_original"), strict=True))
SHARED = {"embed.weight": "embed_tokens.weight", "norm.weight": "norm.weight", "head.weight": "lm_head.weight"}


@dataclass(frozen=True)
class Layout:
    """An Apriel2 config in our words: the shapes, and per layer where the tensors of each mixer are."""

    config: SupernetConfig
    mixers: tuple[dict[str, str], ...]  # per layer: letter -> prefix inside the block, e.g. "mixer.mixers.gdn"

    def ours(self, name: str) -> str:
        """The name of an Apriel2 tensor in a Supernet's state dict; a name that fits nothing stays as it is."""
        core = canonical(name)
        shared = {theirs: own for own, theirs in SHARED.items()}
        if core in shared:
            return shared[core]
        found = re.fullmatch(r"decoder\.blocks\.(\d+)\.(.+)", core)
        if not found or int(found[1]) >= self.config.layers:
            return name
        layer, rest = int(found[1]), found[2]
        for own, theirs in BLOCK.items():
            if rest.startswith(f"{theirs}."):
                return f"blocks.{layer}.{own}{rest.removeprefix(theirs)}"
        for letter, prefix in self.mixers[layer].items():
            if rest.startswith(f"{prefix}."):
                return f"blocks.{layer}.mixers.{letter}{rest.removeprefix(prefix)}"
        return name


def canonical(name: str) -> str:
    """A tensor's name without the prefix that depends on what the text model is wrapped in."""
    if name.endswith("lm_head.weight"):
        return "lm_head.weight"
    return PREFIX.sub("", name, count=1) if PREFIX.match(name) else name


def is_vision(name: str) -> bool:
    return VISION.match(name) is not None


def their_name(name: str) -> str:
    """The Apriel2 name of a tensor in a Supernet's state dict."""
    if name in SHARED:
        return ("" if name == "head.weight" else "model.") + SHARED[name]
    _, layer, part, rest = name.split(".", 3)
    if part == "mixers":
        letter, rest = rest.split(".", 1)
        part, rest = "mixers", f"{NAMES[letter]}.{rest}"
    return f"model.decoder.blocks.{layer}.{'mixer.mixers' if part == 'mixers' else BLOCK[part]}.{rest}"


def read_config(raw: dict[str, Any]) -> Layout:
    """A config.json in our words. Raises ValueError naming the field, its value and what can be read."""
    if raw.get("model_type") not in FAMILIES:
        kinds = " or ".join(FAMILIES)
        raise ValueError(f"model_type is {raw.get('model_type')!r}: a supernet has {kinds}; a model with attention alone is a teacher.path")
    raw = raw.get("text_config") or raw
    decoder = _get(raw, "decoder", "")
    blocks = _blocks(decoder)
    read = {name: _block(block, f"decoder.{name}") for name, block in blocks.items()}
    first, *others = read
    for name in others:
        for field, value in read[first][0].items():
            if read[name][0].get(field) != value:
                raise ValueError(f"decoder.{name} has {field}={read[name][0].get(field)!r}, decoder.{first} has {value!r}: a supernet's "
                                 "layers hold the same mixers in the same shapes")  # fmt: skip
    head = _get(raw, "head", "").get("normalization", {})
    _one_of("head.normalization.type", head.get("type", "rms_norm"), "rms_norm")
    config = SupernetConfig(
        layers=_get(decoder, "num_blocks", "decoder."), hidden=_get(raw, "hidden_size", ""), vocab=_get(raw, "vocab_size", ""),
        tied=bool(raw.get("tie_word_embeddings", False)), norm_eps=_get(head, "epsilon", "head.normalization."), **read[first][0],
    )  # fmt: skip
    pattern = decoder["pattern"] if decoder.get("type", "fixed") == "pattern" else ["block"]
    return Layout(config, tuple(read[_key(decoder, pattern[i % len(pattern)])][1] for i in range(config.layers)))


def write_config(config: SupernetConfig, dtype: str, kept: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a text model. ``dtype`` as in "bfloat16"; ``kept`` may hold values for KEPT.

    Raises ValueError naming what Apriel2 has no place for.
    """
    if config.fixed:
        raise ValueError(f"a fixed layout ({config.fixed}) is not written as Apriel2: write it as native")
    if config.qk_norm:
        raise ValueError("Apriel2 has no place for qk_norm=True (q_norm.weight, k_norm.weight of attention): keep the native format")
    if config.rope_type == "linear":
        raise ValueError(f"Apriel2 has no place for rope_type=linear (rope_factor={config.rope_factor}): keep the native format")
    if unknown := sorted(set(config.mixers) - set(NAMES)):
        raise ValueError(f"Apriel2 has no mixer {', '.join(unknown)}: it knows {', '.join(NAMES)}")
    if not {"F", "S"} & set(config.mixers):
        raise ValueError(f"Apriel2 has no place for the head shapes of mixers={config.mixers!r}, which lack attention: add F or S")
    bias = {"bias": {"enabled": config.qkv_bias}}
    attention = {
        "type": "attention", "heads": config.heads, "head_groups": config.kv_heads, "head_size": config.head_dim,
        "add_linear_biases": False, "query_layer": bias, "key_layer": bias, "value_layer": bias,
        "dense_layer": {"bias": {"enabled": False}}, "rotary": _rotary(config),
    }  # fmt: skip
    convolution = {"kernel_size": config.conv_width}
    mixers = {
        "F": attention,
        "S": attention | {"window_size": config.window},
        "K": {"type": "kda", "heads": config.kda_heads, "head_dim": config.kda_dim, "convolution_layer": convolution,
              "normalization": {"epsilon": config.delta_norm_eps, "activation": config.kda_gate}},
        "G": {"type": "gdn", "key_heads": config.gdn_key_heads, "value_heads": config.gdn_value_heads,
              "key_head_dim": config.gdn_key_dim, "value_head_dim": config.gdn_value_dim, "convolution_layer": convolution,
              "norm_eps": config.delta_norm_eps},
    }  # fmt: skip
    norm = {"type": "rms_norm", "epsilon": config.norm_eps}
    main = NAMES["F" if "F" in config.mixers else config.mixers[0]]
    return {
        "architectures": ["Apriel2ForCausalLM"],
        "model_type": "apriel2_text",
        "hidden_size": config.hidden,
        "vocab_size": config.vocab,
        "tie_word_embeddings": config.tied,
        "dtype": dtype,
        "decoder": {
            "type": "fixed",
            "num_blocks": config.layers,
            "block": {
                "mixer": {"type": "stochastic", "main_mixer_name": main, "sampling_strategy": "uniform",
                          "mixers": {NAMES[letter]: mixers[letter] for letter in config.mixers}},
                "mlp": {"type": "mlp", "intermediate_size": config.ffn, "activation": "silu", "gated": True, "add_linear_biases": False},
                "normalization": norm,
            },
        },
        "head": {"normalization": norm},
        "embeddings": {"max_position_embeddings": 32768},
    } | {key: kept[key] for key in KEPT if key in kept}  # fmt: skip


def _blocks(decoder: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The blocks that a decoder uses, by their path under ``decoder``."""
    kind = decoder.get("type", "fixed")
    _one_of("decoder.type", kind, "fixed", "pattern")
    if kind == "fixed":
        return {"block": _get(decoder, "block", "decoder.")}
    pattern, blocks = (_get(decoder, key, "decoder.") for key in ("pattern", "blocks"))
    if not pattern:
        raise ValueError("decoder.pattern is empty: name the block of every layer")
    return {_key(decoder, name): _get(blocks, name, "decoder.blocks.") for name in dict.fromkeys(pattern)}


def _key(decoder: dict[str, Any], name: str) -> str:
    return name if decoder.get("type", "fixed") == "fixed" else f"blocks.{name}"


def _block(block: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(fields of SupernetConfig, letter -> prefix of its tensors) of one block."""
    mlp, norm = block.get("mlp", {}), block.get("normalization", {})
    for path, value, fine in (
        ("mlp.type", mlp.get("type", "mlp"), "mlp"),
        ("mlp.gated", mlp.get("gated", False), True),
        ("mlp.activation", mlp.get("activation", "silu"), "silu"),
        ("normalization.type", norm.get("type", "rms_norm"), "rms_norm"),
    ):
        _one_of(f"{where}.{path}", value, fine)
    mixer = _get(block, "mixer", f"{where}.")
    if mixer.get("type", "attention") == "stochastic":
        given = {f"mixers.{name}": its for name, its in _get(mixer, "mixers", f"{where}.mixer.").items()}
    else:  # a decoder with one mixer, such as a teacher
        given = {"": mixer}
    fields: dict[str, Any] = {"mixers": "", "ffn": _get(mlp, "intermediate_size", f"{where}.mlp.")}
    source: dict[str, str] = {}
    prefixes: dict[str, str] = {}
    for name, its in given.items():
        path = f"{where}.mixer.{name}".rstrip(".")
        letter, own = _mixer(its, path)
        if letter in prefixes:
            raise ValueError(f"{path} is a second mixer of kind {letter} beside {prefixes[letter]}: a supernet has one of each per layer")
        for field, value in own.items():
            if fields.setdefault(field, value) != value:
                raise ValueError(f"{path} has {field}={value!r}, {source[field]} has {fields[field]!r}: a supernet has one value for both")
            source.setdefault(field, path)
        prefixes[letter] = f"mixer.{name}".rstrip(".")
    # The reference's writer sorts the keys, so that their order says nothing.
    fields["mixers"] = "".join(letter for letter in LETTERS if letter in prefixes)
    missing = {"heads", "kv_heads", "head_dim", "qkv_bias", "rope_theta"} - fields.keys()
    if missing:
        raise ValueError(f"{where}.mixer has no attention, only {fields['mixers']}: a supernet takes its head shapes from attention")
    fields.setdefault("window", WINDOW)
    return fields, prefixes


def _mixer(mixer: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """(letter, fields of SupernetConfig) of one mixer."""
    kind = mixer.get("type", "attention")
    _one_of(f"{where}.type", kind, *TYPES)
    if kind == "attention":
        return _attention(mixer, where)
    convolution, norm = mixer.get("convolution_layer", {}), mixer.get("normalization", {})
    _one_of(f"{where}.convolution_layer.activation", convolution.get("activation", "silu"), "silu")
    fields = {"conv_width": convolution.get("kernel_size", 4)}
    if kind == "kda":
        gate = norm.get("activation", "silu")
        _one_of(f"{where}.normalization.activation", gate, "silu", "sigmoid")
        return "K", fields | {"kda_heads": mixer.get("heads", 32), "kda_dim": mixer.get("head_dim", 64), "kda_gate": gate,
                              "delta_norm_eps": norm.get("epsilon", 1e-5)}  # fmt: skip
    return "G", fields | {"gdn_value_heads": mixer.get("value_heads", 32), "gdn_key_heads": mixer.get("key_heads", 8),
                          "gdn_key_dim": mixer.get("key_head_dim", 64), "gdn_value_dim": mixer.get("value_head_dim", 64),
                          "delta_norm_eps": mixer.get("norm_eps", 1e-5)}  # fmt: skip


def _rotary(config: SupernetConfig) -> dict[str, Any]:
    """The rotary section, in Fast-LLM's words."""
    if config.rope_type == "default":
        return {"type": "mistral_1d", "theta": config.rope_theta}
    return {"type": "llama3", "theta": config.rope_theta} | {theirs: getattr(config, own) for theirs, own in LLAMA3.items()}


def _read_rotary(rotary: dict[str, Any], where: str) -> dict[str, Any]:
    """Fields of SupernetConfig."""
    kind = rotary.get("type")
    _one_of(f"{where}.type", kind, "mistral_1d", "default", "llama3")
    known = {"type", "theta", *(LLAMA3 if kind == "llama3" else ())}
    if unknown := sorted(rotary.keys() - known):
        raise ValueError(f"{where}.{unknown[0]} is {rotary[unknown[0]]!r}: of type {kind} only {', '.join(sorted(known))} can be read")
    scaled = kind == "llama3"
    plain = {f.name: f.default for f in dataclasses.fields(SupernetConfig) if f.name in LLAMA3.values()}
    return {"rope_theta": float(_get(rotary, "theta", f"{where}.")), "rope_type": kind if scaled else "default"} | {
        own: rotary.get(theirs, FAST_LLM[theirs]) if scaled else plain[own] for theirs, own in LLAMA3.items()
    }


def _attention(mixer: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    rotary = _read_rotary(_get(mixer, "rotary", f"{where}."), f"{where}.rotary")
    _one_of(f"{where}.causal", mixer.get("causal", True), True)
    _one_of(f"{where}.cross_document_attention", mixer.get("cross_document_attention", True), True)
    biases = {}
    for layer in ("query_layer", "key_layer", "value_layer", "dense_layer"):
        enabled = mixer.get(layer, {}).get("bias", {}).get("enabled")
        biases[layer] = bool(mixer.get("add_linear_biases", False) if enabled is None else enabled)
    if biases.pop("dense_layer"):
        raise ValueError(f"{where}.dense_layer has a bias: a supernet's output projections have none")
    if len(set(biases.values())) > 1:
        raise ValueError(f"{where} has biases {biases}: a supernet's query, key and value all have one or none has")
    heads = _get(mixer, "heads", f"{where}.")
    fields = {"heads": heads, "kv_heads": mixer.get("head_groups", heads), "head_dim": _get(mixer, "head_size", f"{where}."),
              "qkv_bias": biases["query_layer"], **rotary}  # fmt: skip
    window = mixer.get("window_size")
    return ("F", fields) if window is None else ("S", fields | {"window": window})


def _get(section: dict[str, Any], key: str, where: str) -> Any:
    if not isinstance(section, dict) or key not in section:
        raise ValueError(f"{where}{key} is missing")
    return section[key]


def _one_of(what: str, value: object, *fine: object) -> None:
    if value not in fine:
        raise ValueError(f"{what} is {value!r}: only {' or '.join(map(repr, fine))} can be read")
