"""``python -m experiments.generate`` on folders: presets, letters, several placements, chat, and what it says when something is missing."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from experiments.generate import main
from supernet.checkpoint import convert, load, save, save_trained
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.generate import generate
from supernet.teacher import save_teacher

SMALL = SupernetConfig(layers=4, hidden=32, ffn=48, heads=2, kv_heads=1, head_dim=16, vocab=60, window=8)
PRESETS = {"presets": {"loglik-2": {"placement": "FSKG"}, "loglik-1": {"placement": "GGGK"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("native") / "supernet"
    torch.manual_seed(0)
    model = Supernet(SMALL).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if "conv" in name:
            torch.nn.init.normal_(p, std=0.5)
    save(model, path)
    (path / "presets.yaml").write_text(yaml.safe_dump(PRESETS))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with two checkpoints and the teacher that they were trained from."""
    root = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    save_teacher(Supernet(SMALL.replace(mixers="F")), root / ".cache" / "teachers" / "small", "made here")
    sha256 = json.loads((root / ".cache" / "teachers" / "small" / "source.json").read_text())["sha256"]
    run = root / "results" / "small" / "local-s1-00000000"
    model = Supernet(SMALL)
    for name, p in model.named_parameters():
        p.requires_grad_(any(f".mixers.{letter}." in name for letter in "FSKG"))
    for step in (5, 20):
        for p in model.parameters():
            p.data += 0.01 * torch.randn_like(p)
        save_trained(model, run / "checkpoints" / f"step-{step:06d}", {"tokens": step, "teacher": {"sha256": sha256}})
    (run / "config.yaml").write_text("scale: small\nteacher: {source: trained}\n")
    (run / "presets.yaml").write_text(yaml.safe_dump(PRESETS))
    return run


def say(arguments: list[object], capsys, typed: str | None = None, monkeypatch=None) -> tuple[int, str, str]:
    if typed is not None:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_presets_letters_and_all_fa_from_one_folder(folder, capsys):
    model, prompt = load(folder), torch.tensor([1, 2, 3])
    for name, placement in (("loglik-2", "FSKG"), ("GGGK", "GGGK"), ("all-FA", "FFFF")):
        code, out, err = say([folder, "--placement", name, "--tokens", "1,2,3", "--new-tokens", "9"], capsys)
        expected = generate(model, [prompt], [placement], 9)[0].tolist()
        assert (code, out.strip()) == (0, ",".join(map(str, expected)))
        assert "tokens/s" in err


@pytest.mark.parametrize("placement", ["FSKG", "GGGG"])
def test_an_exported_model_answers_with_its_own_placement(folder, tmp_path, capsys, placement):
    convert(folder, tmp_path / "one", "native", placement=placement)
    whole = say([folder, "--placement", placement, "--tokens", "1,2,3", "--new-tokens", "5"], capsys)
    alone = say([tmp_path / "one", "--tokens", "1,2,3", "--new-tokens", "5"], capsys)
    assert alone[:2] == whole[:2] and alone[0] == 0


def test_several_placements_in_one_batch_and_sampling_by_seed(folder, capsys):
    command = [folder, "--placement", "loglik-2,FFFF", "--placement", "GGGG", "--tokens", "1,2", "--new-tokens", "5"]
    code, out, err = say(command, capsys)
    lines = out.split()
    assert code == 0
    assert lines[:2] == ["[loglik-2", "FSKG]"]
    assert "[GGGG GGGG]" in out
    assert "3 placements in one batch" in err
    sampled = [say([*command, "--temperature", "1", "--seed", seed], capsys)[1] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_run_answers_with_its_last_checkpoint_or_any_other(run, capsys):
    teacher = run.parents[2] / ".cache" / "teachers" / "small"
    command = ["--placement", "loglik-1", "--tokens", "4,5,6", "--new-tokens", "6"]
    for arguments, step in (([run], 20), ([run.parent], 20), ([run, "--step", "5"], 5), ([run / "checkpoints" / "step-000005"], 5)):
        code, out, _ = say([*arguments, *command], capsys)
        model = load(run / "checkpoints" / f"step-{step:06d}", teacher)
        assert (code, out.strip()) == (0, ",".join(map(str, generate(model, [torch.tensor([4, 5, 6])], ["GGGK"], 6)[0].tolist())))


def test_a_dtype_is_taken(folder, capsys):
    assert say([folder, "--tokens", "1", "--new-tokens", "2", "--dtype", "bfloat16"], capsys)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--placement", "loglik-9"], "no preset 'loglik-9': choose from all-FA, loglik-1, loglik-2, or give 4 letters of FSKG"),
        (["--placement", "FSK"], "has 3 layers, the model has 4"),
        (["--tokens", "1,x"], "give numbers with commas"),
        (["--tokens", "1,99"], "vocabulary of 60"),
        (["--tokens", "1", "--prompt", "a"], "choose one"),
        (["--tokens", "1", "--temperature", "-1"], "temperature is -1.0"),
        (["--tokens", "1", "--new-tokens", "-1"], "new_tokens is -1"),
        (["--prompt", "a"], "no tokenizer in"),
        (["--step", "3"], "is one checkpoint"),
        (["--tokens", "1", "--seed", "-1"], "--seed is -1: give 0 or more"),
        pytest.param(
            ["--tokens", "1", "--device", "cuda"], "torch sees no GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")
        ),
    ],
)
def test_errors_are_one_line(folder, capsys, arguments, says):
    code, out, err = say([folder, *arguments], capsys)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("name", "text", "said"), [
    ("config.yaml", "- a", "holds no options of a run: correct it"),
    ("config.yaml", "a: [1", "holds no options of a run: correct it"),
    ("presets.yaml", "- a", "does not hold presets: delete it and run make presets"),
    ("presets.yaml", "presets: {a: 5}", "does not hold presets"),
    ("presets.yaml", "a: [", "does not hold presets"),
    ("checkpoints/step-000001/meta.json", '{"model": 5}', "not the shapes of a supernet"),
    ("checkpoints/step-000001/meta.json", "[]", "holds no JSON object"),
])  # fmt: skip
def test_broken_records_of_a_run_are_named(tmp_path, capsys, name, text, said):
    run = tmp_path / "results" / "tiny" / "local-s3-00000000"
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    (run / "config.yaml").write_text("scale: tiny\n")
    if name != "config.yaml":
        (run / "checkpoints" / "step-000001" / "meta.json").write_text("{}")
    (run / name).write_text(text)
    code, _, err = say([run, "--tokens", "1"], capsys)
    assert (code, err.count("\n")) == (1, 1) and err.startswith("error: ") and said in err and name.split("/")[-1] in err + name


def test_a_run_without_weights_says_how_they_are_made(tmp_path, run, capsys):
    bare = tmp_path / "results" / "tiny" / "local-s3-00000000"
    bare.mkdir(parents=True)
    (bare / "config.yaml").write_text("scale: tiny\n")
    (bare / "status.json").write_text(
        json.dumps({"distill": {"state": "done", "command": "python -m experiments.distill scale=tiny seed=3"}})
    )
    for where in (bare, bare.parent):
        code, _, err = say([where, "--tokens", "1"], capsys)
        assert (code, err.count("\n")) == (1, 1)
        assert 'make sweep SCALE=tiny ARGS="seed=3" makes them' in err
    assert "choose from 5, 20" in say([run, "--step", "7", "--tokens", "1"], capsys)[2]
    assert "no folder" in say([tmp_path / "nowhere", "--tokens", "1"], capsys)[2]
    assert "neither a run" in say([tmp_path, "--tokens", "1"], capsys)[2]


def test_text_and_a_chat_in_which_the_placement_changes(folder, tmp_path, capsys, monkeypatch):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(SMALL.vocab - 2)} | {"<end>": SMALL.vocab - 2, "<user>": SMALL.vocab - 1}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="w0")
    tokenizer.chat_template = "{% for m in messages %}{{ '<user> ' if m.role == 'user' else '' }}{{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [folder, "--tokenizer", tmp_path / "tokenizer", "--new-tokens", "6"]
    model = load(folder)

    def expected(ids: list[int], placement: str) -> str:
        found = generate(model, [torch.tensor(ids)], [placement], 6, stop=[SMALL.vocab - 2])[0].tolist()
        return tokenizer.decode(found, skip_special_tokens=True)

    first = expected([SMALL.vocab - 1, 3, 4], "FSKG")
    code, out, _ = say([*command, "--prompt", "w3 w4", "--placement", "loglik-2"], capsys)
    assert (code, out.strip()) == (0, first.strip())
    assert say([*command, "--prompt", "w3 w4", "--raw"], capsys)[1].strip() == expected([3, 4], "FFFF").strip()
    typed = "w3 w4\n/placement nonsense\n/placement GGGG\nw7\n\n"
    code, out, err = say([*command, "--placement", "loglik-2"], capsys, typed, monkeypatch)
    history = tokenizer(f"<user> w3 w4 {first} <user> w7")["input_ids"]
    assert code == 0
    assert [line.strip() for line in out.strip().split("\n")] == [first.strip(), expected(history, "GGGG").strip()]
    assert "no preset 'nonsense'" in err
    assert "placement GGGG" in err
    assert np.char.count(err, "tokens read") == 2


def test_a_draft_changes_the_speed_and_not_the_text(folder, capsys):
    common = [str(folder), "--placement", "all-FA", "--tokens", "5,9,13", "--new-tokens", "12"]
    assert main(common) == 0
    plain = capsys.readouterr().out
    for draft in ("loglik-1", "FFFF"):
        assert main([*common, "--draft", draft, "--k", "2"]) == 0
        told = capsys.readouterr()
        assert told.out == plain
        assert "by position" in told.err and "without drafts" in told.err
    assert "8 of 8 drafts of FFFF accepted" in told.err  # all-FA accepts its own: 12 tokens are one and then rounds of at most three
    assert main([*common[:2], "all-FA,loglik-1", *common[3:], "--draft", "loglik-1"]) == 1
    assert "one verifies what --draft drafts" in capsys.readouterr().err
    assert main([str(folder), "--draft", "loglik-1"]) == 1
    assert "give --prompt or --tokens" in capsys.readouterr().err
