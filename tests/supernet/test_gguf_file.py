"""GGUF files as llama.cpp writes them: what is computed equals transformers on the same weights, all else is refused by name."""

import numpy as np
import pytest
import torch

from supernet.teacher import from_hugging_face, hugging_face_model

gguf = pytest.importorskip("gguf", reason="needs pip install .[llm]")
transformers = pytest.importorskip("transformers", reason="needs pip install .[llm]")
SHAPE = {"vocab_size": 61, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip


def model_of(family="llama", **changes):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **(SHAPE | changes))).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.3)
    return model


def write(path, model, family="llama", keys=None, tensors=None, drop=(), quantised=False):
    """The model as a GGUF file, by the package's own writer; ``keys`` and ``tensors`` are added to it or take the place of its own."""
    c = model.config
    writer = gguf.GGUFWriter(path, family)
    said = {f"{family}.context_length": 128, f"{family}.embedding_length": c.hidden_size, f"{family}.block_count": c.num_hidden_layers,
            f"{family}.feed_forward_length": c.intermediate_size, f"{family}.attention.head_count": c.num_attention_heads,
            f"{family}.attention.head_count_kv": c.num_key_value_heads, f"{family}.attention.layer_norm_rms_epsilon": c.rms_norm_eps,
            f"{family}.rope.freq_base": float(c.rope_parameters["rope_theta"]), f"{family}.attention.key_length": c.head_dim,
            f"{family}.attention.value_length": c.head_dim, f"{family}.rope.dimension_count": c.head_dim,
            f"{family}.vocab_size": c.vocab_size, "general.name": "a test", "quantize.imatrix.entries_count": 3}  # fmt: skip
    for name, value in (said | (keys or {})).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](name, value)
    for name, value in model.state_dict().items():
        module, kind = name.rsplit(".", 1)
        theirs = TOP[module] if module in TOP else f"blk.{module.split('.')[2]}.{LAYER[module.split('.', 3)[3]]}"
        if f"{theirs}.{kind}" in drop or c.tie_word_embeddings and module == "lm_head":
            continue
        value = value.numpy()
        if family == "llama" and theirs.endswith(("attn_q", "attn_k")):  # llama.cpp turns neighbours, transformers halves
            heads = c.num_attention_heads if theirs.endswith("q") else c.num_key_value_heads
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        if quantised and value.ndim == 2 and value.shape[1] % 32 == 0:
            coded = gguf.quants.quantize(value, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{theirs}.{kind}", coded, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            continue
        writer.add_tensor(f"{theirs}.{kind}", np.ascontiguousarray(value))
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ours(folder, **options):
    return from_hugging_face(str(folder), "m.gguf", 16, **options)


def compared(folder, model, tolerance=1e-5):
    """The largest difference of logits over the largest logit, of our model and of the one that samples."""
    tokens = torch.randint(61, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens).logits
        for found in (ours(folder)(tokens, "FF"), hugging_face_model(str(folder), "m.gguf", torch.float32)(tokens).logits):
            assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_every_architecture_equals_transformers(tmp_path, family, tied):
    model = model_of(family, tie_word_embeddings=tied, rms_norm_eps=1e-6)
    write(tmp_path / "m.gguf", model, family)
    assert ours(tmp_path).config.tied == tied and ours(tmp_path).config.norm_eps == 1e-6
    compared(tmp_path, model)


def test_quantised_tensors_are_dequantised(tmp_path):
    write(tmp_path / "m.gguf", model_of(), quantised=True)
    whole = {"gguf_file": "m.gguf", "quantization_config": transformers.GgufConfig(dequantize=True), "dtype": torch.float32}
    compared(tmp_path, transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **whole).eval())


@pytest.mark.parametrize(
    "keys",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.factor": 4.0},
        {"rope.scale_linear": 4.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
    ],
)
def test_linear_scaling_equals_transformers(tmp_path, keys):
    model = model_of(rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0})
    write(tmp_path / "m.gguf", model, keys={f"llama.{name}": value for name, value in keys.items()})
    assert ours(tmp_path).config.rope_type == "linear"
    compared(tmp_path, model)


def factors_of(model):
    """``rope_freqs``, as llama.cpp's converter writes them."""
    plain = 100.0 ** (-torch.arange(0, SHAPE["head_dim"], 2).float() / SHAPE["head_dim"])
    return (plain / model.model.rotary_emb.inv_freq).numpy()


def test_frequencies_of_llama3_equal_transformers(tmp_path):
    model = model_of(rope_parameters=LLAMA3)
    write(tmp_path / "m.gguf", model, tensors={"rope_freqs.weight": factors_of(model)})
    c = ours(tmp_path).config
    assert (c.rope_type, c.rope_factor, c.rope_original) == ("llama3", 8.0, 32)
    compared(tmp_path, model)


def test_scaling_of_nothing_is_nothing(tmp_path):
    model = model_of(rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    nothing = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0, "llama.expert_count": 0}
    write(tmp_path / "m.gguf", model, keys=nothing, tensors={"rope_freqs.weight": np.ones(8)})
    assert ours(tmp_path).config.rope_type == "default"
    compared(tmp_path, model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.scaling.type", "yarn"),
        ("llama.rope.scaling.yarn_log_multiplier", 0.1),
        ("llama.rope.scaling.attn_factor", 2.0),
        ("llama.attention.scale", 0.5),
        ("llama.final_logit_softcapping", 30.0),
        ("llama.attn_logit_softcapping", 50.0),
        ("llama.logit_scale", 0.5),
        ("llama.expert_count", 8),
        ("llama.attention.causal", False),
        ("llama.rope.dimension_count", 8),
        ("llama.rope.dimension_sections", [4, 4, 0, 0]),
        ("llama.attention.sliding_window", 8),
        ("llama.attention.value_length", 8),
        ("llama.use_parallel_residual", True),
        ("llama.attention.clamp_kqv", 8.0),
        ("general.architecture", "gemma2"),
        ("split.count", 3),
        ("adapter.type", "lora"),
        ("llama.something_new", 1),
    ],
)
def test_a_key_that_changes_the_computation_is_refused_by_name(tmp_path, key, value):
    if key == "general.architecture":
        write(tmp_path / "m.gguf", model_of(), value)
    else:
        write(tmp_path / "m.gguf", model_of(), keys={key: value})
    refused(tmp_path, "sliding_window" if key.endswith("sliding_window") else key)


def refused(folder, words):
    with pytest.raises(ValueError) as caught:
        ours(folder)
    message = str(caught.value)
    assert words in message and ":" in message and "\n" not in message, message


def test_a_sliding_window_that_no_sequence_reaches_is_accepted(tmp_path):
    model = model_of()
    write(tmp_path / "m.gguf", model, keys={"llama.attention.sliding_window": 60})
    assert ours(tmp_path, longest=60).config.layers == 2
    with pytest.raises(ValueError, match="sequences have up to 61 tokens: set data.length to 60 or less"):
        ours(tmp_path, longest=61)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensors": {"blk.0.attn_q.bias": np.ones(64)}}, "unknown tensors blk.0.attn_q.bias"),
        ({"tensors": {"blk.0.attn_output.bias": np.ones(64)}}, "blk.0.attn_output.bias"),
        ({"tensors": {"blk.2.ffn_up.weight": np.ones((48, 64))}}, "blk.2.ffn_up.weight"),
        ({"tensors": {"blk.0.attn_q.scale": np.ones(1)}}, "blk.0.attn_q.scale"),
        ({"tensors": {"rope_freqs.weight": np.linspace(1, 3, 8)}}, "rope_freqs.weight"),
        ({"drop": ("blk.1.ffn_up.weight",)}, "lacks the tensors blk.1.ffn_up.weight"),
        ({"keys": {"llama.feed_forward_length": 50}}, "blk.0.ffn_down.weight (64, 48) instead of (64, 50)"),
        ({"keys": {"llama.attention.head_count_kv": [2, 1]}}, "one for each layer"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, changes, words):
    write(tmp_path / "m.gguf", model_of(), **changes)
    refused(tmp_path, words)


def test_damaged_files_are_one_line(tmp_path):
    model = model_of()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    write(tmp_path / "m.gguf", model)
    refused(tmp_path, "tensor blk.1.ffn_up.weight holds 1 of 3072 numbers that are not finite")
    write(tmp_path / "m.gguf", model_of())
    whole = (tmp_path / "m.gguf").read_bytes()
    for size in (len(whole) - 100, len(whole) // 2, 30, 0):
        (tmp_path / "m.gguf").write_bytes(whole[:size])
        refused(tmp_path, "can't be loaded")
