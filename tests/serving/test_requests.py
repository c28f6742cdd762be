"""What a request may ask for, and what the command makes of a folder. No vLLM is needed."""

import argparse
import json

import pytest
import torch

from supernet.checkpoint import load, save, save_trained
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.reader import native_config
from supernet.serving.__main__ import last_checkpoint, main, refusal, write_front
from supernet.serving.names import with_preset
from supernet.serving.placements import VARIABLE, Served, declare, served

SHAPES = SupernetConfig(layers=2, hidden=16, ffn=8, heads=2, kv_heads=1, head_dim=8, vocab=7, window=4)
SERVED = Served(4, "FSKG", presets={"all-FA": "FFFF", "cheap": "GKSG"}, default="cheap")


@pytest.fixture
def declared(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    declare(SERVED)


def test_letters_a_preset_or_the_default():
    assert SERVED.placement({"placement": "FSKG"}) == "FSKG"
    assert SERVED.placement({"preset": "all-FA"}) == "FFFF"
    assert SERVED.placement(None) == SERVED.placement({"other": 1}) == "GKSG"
    assert Served(3, "SK").placement({}) == "SSS"
    assert Served(2, "FG", fixed="GF").placement({}) == "GF"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"placement": "FXFF"}, "unknown mixer X: choose from F, S, K, G"),
        ({"placement": "FF"}, "has 2 layers, the model has 4"),
        ({"placement": 3}, "got 3"),
        ({"placement": ""}, "got ''"),
        ({"preset": "cheep"}, "no preset 'cheep': choose from all-FA, cheap"),
        ({"preset": ["cheap"]}, "no preset"),
        ({"preset": "cheap", "placement": "FFFF"}, "give one of them"),
    ],
)
def test_what_does_not_fit_is_one_sentence(asked, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        SERVED.placement(asked)
    assert "\n" not in str(error.value)


def test_presets_and_the_default_are_checked_at_the_start():
    with pytest.raises(ValueError, match="preset cheap does not fit this checkpoint: .* has 3 layers, the model has 4"):
        Served(4, "FSKG", presets={"cheap": "GGG"})
    with pytest.raises(ValueError, match="default placement"):
        Served(4, "FSKG", default="none")
    with pytest.raises(ValueError, match="exported with GF alone"):
        Served(2, "FG", fixed="GF").placement({"placement": "FF"})


def test_every_process_reads_what_is_served(declared):
    assert served() == SERVED


def test_a_preset_in_the_name_of_the_model(declared):
    request = {"model": "mine:cheap", "prompt": [1], "vllm_xargs": {"a": 1}}
    assert json.loads(with_preset(json.dumps(request).encode()))["vllm_xargs"] == {"a": 1, "preset": "cheap"}
    for other in (b"no json", b'{"model": "mine"}', b"[1]", b'{"model": 5}'):
        assert with_preset(other) == other
    for wrong, sentence in (
        ({"model": "mine:cheep"}, "no preset 'cheep'"),
        ({"model": "mine:cheap", "vllm_xargs": {"preset": "all-FA"}}, "two presets"),
        ({"model": "mine:cheap", "vllm_xargs": {"placement": "FFFF"}}, "give one of them"),
        ({"model": "mine:cheap", "vllm_xargs": ["placement"]}, "vllm_xargs"),
    ):
        with pytest.raises(ValueError, match=sentence):
            with_preset(json.dumps(wrong).encode())


@pytest.mark.parametrize("kept", [{}, {"eos_token_id": 2}])
def test_a_native_folder_names_itself_to_other_programs_and_old_ones_are_read(tmp_path, kept):
    model = Supernet(SHAPES)
    save(model, tmp_path / "new")
    raw = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (raw["model_type"], raw["architectures"], raw["dtype"]) == ("placement-suite", ["SupernetForCausalLM"], "float32")
    old = {name: value for name, value in raw.items() if name not in ("model_type", "architectures", "dtype")}
    for config in (old, raw | kept):
        (tmp_path / "new" / "config.json").write_text(json.dumps(config))
        torch.testing.assert_close(load(tmp_path / "new").state_dict(), model.state_dict())
        assert native_config(config) == SHAPES


def arguments(where, **other):
    return argparse.Namespace(**{"where": where, "placement": "", "name": None, "teacher": None, "tokenizer": None} | other)


def test_a_run_is_served_from_its_last_checkpoint_with_its_presets_and_tokenizer(tmp_path):
    run, teacher = tmp_path / "run", tmp_path / "teacher"
    save(Supernet(SHAPES.replace(mixers="F")), teacher)
    model = Supernet(SHAPES)
    for name, p in model.named_parameters():
        p.requires_grad_(".mixers.K." in name or ".mixers.G." in name)
    for step in (5, 40):
        save_trained(model, run / "checkpoints" / f"step-{step:06}", {})
    (run / "presets.yaml").write_text("presets: {cheap: {placement: GK}}")
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "tokenizer.json").write_text("{}")
    assert last_checkpoint(run).name == "step-000040"
    (tmp_path / "front").mkdir()
    words = write_front(tmp_path / "front", arguments(run, teacher=teacher, placement="cheap"))
    raw = json.loads((tmp_path / "front" / "config.json").read_text())
    assert raw["checkpoint"] == str(run / "checkpoints" / "step-000040")
    assert raw["default_placement"] == "GK"
    assert raw["presets"] == {"cheap": "GK"}
    assert words[words.index("--served-model-name") + 1 :][:3] == ["run", "run:all-FA", "run:cheap"]
    assert words[words.index("--tokenizer") + 1] == str(run / "tokenizer")
    for folder, sentence in ((tmp_path / "none", "no folder"), (tmp_path / "front" / "..", "holds no checkpoint")):
        with pytest.raises(ValueError, match=sentence):
            write_front(tmp_path / "front", arguments(folder))
    with pytest.raises(ValueError, match="a colon"):
        write_front(tmp_path / "front", arguments(run, teacher=teacher, name="a:b"))


def test_without_vllm_the_command_says_where_it_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("supernet.serving.__main__.find_spec", lambda name: None)
    assert main([str(tmp_path)]) == 1
    assert "make .venv-vllm/.done" in capsys.readouterr().err


def test_a_refusal_is_said_without_what_vllm_puts_around_it():
    said = "--tensor-parallel-size is 2: a supernet is served with 1"
    around = (
        f"1 validation error for VllmConfig\n  Value error, {said} [type=value_error, input_value=ArgsKwargs(()), input_type=ArgsKwargs]"
    )
    assert refusal(ValueError(f"{around}\n    For further information visit https://errors.pydantic.dev")) == said
    assert refusal(ValueError("no\n  folder")) == "no folder"
