import copy
import json
from pathlib import Path

import pytest
import torch

from supernet.apriel2 import is_vision, read_config, their_name, write_config
from supernet.config import SupernetConfig
from supernet.decoder import Supernet

ORACLES = Path(__file__).parents[2].parent / "shared" / "oracles" / "apriel2"
CONFIG = SupernetConfig(layers=3, hidden=24, ffn=40, heads=4, kv_heads=2, head_dim=8, vocab=30, window=6)
CONFIGS = [
    CONFIG,
    CONFIG.replace(tied=True, qkv_bias=True, rope_theta=1e6, norm_eps=1e-6, window=7),
    CONFIG.replace(kda_gate="sigmoid", delta_norm_eps=1e-4, conv_width=3),
    CONFIG.replace(gdn_key_heads=1, gdn_value_heads=3, gdn_key_dim=6, gdn_value_dim=10, kda_heads=2, kda_dim=12),
    CONFIG.replace(mixers="FG", window=4096),
    CONFIG.replace(mixers="F", window=4096),  # a window says nothing without S
]


def tensor_names(config):
    with torch.device("meta"):
        return [name for name in Supernet(config).state_dict() if name != "head.weight" or not config.tied]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_survives_the_way_there_and_back(config):
    raw = json.loads(json.dumps(write_config(config, "float32", {}), sort_keys=True))  # as the reference's writer sorts
    assert read_config(raw).config == config


@pytest.mark.parametrize("model, head", [("model.", ""), ("model.language_model.", ""), ("language_model.model.", "language_model.")])
def test_every_tensor_has_a_name_there_and_back_whatever_wraps_the_model(model, head):
    layout = read_config(write_config(CONFIG, "float32", {}))
    theirs = {name: their_name(name) for name in tensor_names(CONFIG)}
    assert len(set(theirs.values())) == len(theirs)
    for name, its in theirs.items():
        wrapped = head + its if its.startswith("lm_head") else model + its.removeprefix("model.")
        assert layout.ours(wrapped) == name and not is_vision(wrapped)
    for foreign in ("model.decoder.blocks.3.mlp.up_proj.weight", "model.decoder.blocks.0.mixer.mixers.mamba.D", "model.rope.freqs"):
        assert layout.ours(foreign) == foreign


def test_vision_tensors_are_told_apart():
    for name in ("model.vision_encoder.encoder.blocks.0.mlp.up_proj.weight", "vision_tower.ln_pre.weight", "multi_modal_projector.l.bias"):
        assert is_vision(name)
    assert not is_vision("model.visionary.weight") and not is_vision("lm_head.weight")


def test_the_reference_names_are_met():
    assert their_name("blocks.2.mixers.K.q_conv.weight") == "model.decoder.blocks.2.mixer.mixers.kda.q_conv.weight"
    assert their_name("blocks.0.mixer_norm.weight") == "model.decoder.blocks.0.input_layernorm.weight"
    assert their_name("blocks.0.mlp_norm.weight") == "model.decoder.blocks.0.post_attention_layernorm.weight"
    assert their_name("embed.weight") == "model.embed_tokens.weight" and their_name("head.weight") == "lm_head.weight"
    if not ORACLES.is_dir():
        pytest.skip(f"the reference's tensor names are not here: {ORACLES}")
    folder = ORACLES / "tiny_bias_tied"
    layout = read_config(json.loads((folder / "config.json").read_text()))
    assert layout.config.tied and layout.config.qkv_bias and layout.config.window == 8 and layout.config.norm_eps == 1e-6
    assert sorted(map(their_name, tensor_names(layout.config))) == sorted(json.loads((folder / "tensors.json").read_text()))


def test_every_norm_takes_its_epsilon_from_the_head():
    raw = write_config(CONFIG, "float32", {})
    raw["head"] = {"normalization": {"epsilon": 1e-3}}
    assert raw["decoder"]["block"]["normalization"]["epsilon"] == CONFIG.norm_eps
    assert read_config(raw).config.norm_eps == 1e-3 and read_config(raw).config.delta_norm_eps == 1e-5


def test_mixers_are_known_by_what_they_are_not_by_their_names():
    raw = write_config(CONFIG, "float32", {})
    mixer = raw["decoder"]["block"]["mixer"]
    mixer["mixers"] = dict(zip("wxyz", mixer["mixers"].values(), strict=True))
    layout = read_config(raw)
    assert layout.config == CONFIG
    assert layout.ours("model.decoder.blocks.1.mixer.mixers.x.q_proj.weight") == "blocks.1.mixers.S.q_proj.weight"


def pattern(raw):
    """The same decoder as a pattern of two blocks whose mixers have other names."""
    raw = copy.deepcopy(raw)
    a, b = copy.deepcopy(raw["decoder"]["block"]), copy.deepcopy(raw["decoder"]["block"])
    b["mixer"]["mixers"] = {f"other_{name}": its for name, its in b["mixer"]["mixers"].items()}
    raw["decoder"] = {"type": "pattern", "num_blocks": raw["decoder"]["num_blocks"], "pattern": ["a", "b"], "blocks": {"a": a, "b": b}}
    return raw


def test_a_pattern_of_blocks_is_a_supernet_where_all_blocks_hold_the_same_mixers():
    raw = pattern(write_config(CONFIG, "float32", {}))
    layout = read_config(raw)
    assert layout.config == CONFIG
    for layer, name in enumerate(("kda", "other_kda", "kda")):
        assert layout.ours(f"model.decoder.blocks.{layer}.mixer.mixers.{name}.A_log") == f"blocks.{layer}.mixers.K.A_log"
    assert layout.ours("model.decoder.blocks.1.mixer.mixers.kda.A_log").startswith("model.")
    del raw["decoder"]["blocks"]["b"]["mixer"]["mixers"]["other_kda"]
    refused(raw, "decoder.blocks.b", "mixers='FSG'", "'FSKG'")


def test_a_decoder_with_one_mixer_is_read_and_others_are_not():
    raw = write_config(CONFIG.replace(mixers="F", window=4096), "float32", {})
    block = raw["decoder"]["block"]
    block["mixer"] = block["mixer"]["mixers"]["attention"]
    layout = read_config(raw)
    assert layout.config.mixers == "F"
    assert layout.ours("model.decoder.blocks.0.mixer.q_proj.weight") == "blocks.0.mixers.F.q_proj.weight"
    block["mixer"] = {"type": "kda", "heads": 4, "head_dim": 8, "convolution_layer": {"kernel_size": 4}}
    refused(raw, "no attention")


def refused(raw, *words):
    with pytest.raises(ValueError) as caught:
        read_config(raw)
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message, message


CHANGES = [  # (path in config.json, value, what the error names)
    ("model_type", "llama", "model_type is 'llama'"),
    ("decoder.type", "tree", "decoder.type is 'tree'"),
    ("head.normalization.type", "layer_norm", "head.normalization.type"),
    ("decoder.block.mlp.type", "moe", "decoder.block.mlp.type is 'moe'"),
    ("decoder.block.mlp.gated", False, "decoder.block.mlp.gated is False"),
    ("decoder.block.mlp.activation", "gelu", "mlp.activation is 'gelu'"),
    ("decoder.block.normalization.type", "layer_norm", "normalization.type is 'layer_norm'"),
    ("decoder.block.mixer.mixers.gdn.type", "mamba", "mixers.gdn.type is 'mamba'"),
    ("decoder.block.mixer.mixers.gdn.norm_eps", 1e-3, "delta_norm_eps"),
    ("decoder.block.mixer.mixers.gdn.convolution_layer.kernel_size", 3, "conv_width"),
    ("decoder.block.mixer.mixers.gdn.convolution_layer.activation", "gelu", "convolution_layer.activation is 'gelu'"),
    ("decoder.block.mixer.mixers.kda.normalization.activation", "relu", "normalization.activation is 'relu'"),
    ("decoder.block.mixer.mixers.attention.rotary.type", "yarn", "attention.rotary.type is 'yarn'"),
    ("decoder.block.mixer.mixers.attention.rotary.theta", 5.0, "rope_theta"),
    ("decoder.block.mixer.mixers.attention.causal", False, "attention.causal is False"),
    ("decoder.block.mixer.mixers.attention.window_size", 9, "second mixer of kind S"),
    ("decoder.block.mixer.mixers.attention.heads", 2, "heads="),
    ("decoder.block.mixer.mixers.attention.dense_layer.bias.enabled", True, "dense_layer has a bias"),
    ("decoder.block.mixer.mixers.attention.key_layer.bias.enabled", True, "key_layer"),
    ("decoder.block.mixer.mixers.attention.add_linear_biases", None, "attention has biases"),
]


@pytest.mark.parametrize("path, value, named", CHANGES, ids=[path for path, _, _ in CHANGES])
def test_what_a_supernet_cannot_be_is_refused_by_name(path, value, named):
    raw = json.loads(json.dumps(write_config(CONFIG, "float32", {})))
    *sections, key = path.split(".")
    section = raw
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    if value is None:  # the default for all four biases, one of them overridden
        section.update(add_linear_biases=True, query_layer={}, value_layer={})
    refused(raw, named)


@pytest.mark.parametrize("path", ["decoder", "hidden_size", "head.normalization.epsilon", "decoder.num_blocks", "decoder.block.mixer",
                                  "decoder.block.mixer.mixers.attention.rotary", "decoder.block.mixer.mixers.attention.heads"])  # fmt: skip
def test_a_missing_field_is_named(path):
    raw = json.loads(json.dumps(write_config(CONFIG, "float32", {})))
    *sections, key = path.split(".")
    section = raw
    for name in sections:
        section = section[name]
    del section[key]
    refused(raw, path, "missing")


@pytest.mark.parametrize("change, named", [({"qk_norm": True}, "qk_norm"), ({"mixers": "KG"}, "mixers='KG'")])
def test_what_apriel2_has_no_place_for_is_named(change, named):
    with pytest.raises(ValueError, match=named):
        write_config(CONFIG.replace(**change), "float32", {})
