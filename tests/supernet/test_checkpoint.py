import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from supernet import checkpoint
from supernet.checkpoint import convert, describe, load, load_trained, main, open_layers, save, save_trained
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.initialise import initialise
from supernet.shards import INDEX, ONE
from supernet.teacher import save_teacher

ROOT = Path(__file__).parents[2]
CONFIG = SupernetConfig(layers=2, hidden=24, ffn=40, heads=4, kv_heads=2, head_dim=8, vocab=30, window=6)
TIED = CONFIG.replace(tied=True, qkv_bias=True, kda_gate="sigmoid", norm_eps=1e-6, rope_theta=1e6, delta_norm_eps=1e-4)
TOKENS = torch.arange(20)[None]


def make_model(config=CONFIG, dtype=torch.float32):
    torch.manual_seed(0)
    model = Supernet(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.cast(dtype)


def same(a, b):
    """The same model: shapes, and every tensor with its dtype."""
    ours, its = a.state_dict(), b.state_dict()
    assert a.config == b.config and ours.keys() == its.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == its[name].dtype and torch.equal(tensor, its[name]), name
    assert (b.head.weight is b.embed.weight) == b.config.tied
    with torch.no_grad():
        assert torch.equal(a(TOKENS, "KG"), b(TOKENS, "KG"))


# --- round trips


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("format", ["native", "apriel2"])
def test_a_saved_model_is_loaded_exactly(tmp_path, config, dtype, format):
    model = make_model(config, dtype)  # in bfloat16 the decays stay float32
    for name, shard_bytes in (("one", 10**9), ("shards", 5000)):
        save(model, tmp_path / name, format, shard_bytes)
        same(model, load(tmp_path / name))
        assert (tmp_path / name / INDEX).is_file() == (name == "shards")
    assert describe(tmp_path / "one")["sha256"] == describe(tmp_path / "shards")["sha256"]
    assert {p.name for p in tmp_path.iterdir()} == {"one", "shards"}  # nothing temporary stays


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_converting_there_and_back_keeps_every_tensor(tmp_path, config):
    save(make_model(config, torch.bfloat16), tmp_path / "a", "apriel2")
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    raw |= {"bos_token_id": 7, "embeddings": {"max_position_embeddings": 99}}
    (tmp_path / "a" / "config.json").write_text(json.dumps(raw))
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    convert(tmp_path / "a", tmp_path / "b", "native", shard_bytes=5000)
    convert(tmp_path / "b", tmp_path / "c", "apriel2", shard_bytes=10**9)
    same(load(tmp_path / "a"), load(tmp_path / "b"))
    a, c = load_file(tmp_path / "a" / ONE), load_file(tmp_path / "c" / ONE)
    assert a.keys() == c.keys() and all(torch.equal(a[name], c[name]) and a[name].dtype == c[name].dtype for name in a)
    assert json.loads((tmp_path / "c" / "config.json").read_text()) == raw
    assert (tmp_path / "c" / "tokenizer.json").read_text() == "{}"
    assert len({describe(tmp_path / name)["sha256"] for name in "abc"}) == 1


def test_a_hash_knows_values_and_dtypes(tmp_path):
    model = make_model()
    save(model, tmp_path / "a")
    with torch.no_grad():
        model.blocks[1].mixers["G"].A_log[0] += 1e-6
    save(model, tmp_path / "b")
    save(model.cast(torch.bfloat16), tmp_path / "c")
    assert len({describe(tmp_path / name)["sha256"] for name in "abc"}) == 3


def test_qk_norms_stay_in_the_native_format(tmp_path):
    model = make_model(CONFIG.replace(qk_norm=True))
    save(model, tmp_path / "a")
    same(model, load(tmp_path / "a"))
    refused(lambda: convert(tmp_path / "a", tmp_path / "b", "apriel2"), "qk_norm")
    refused(lambda: save(model, tmp_path / "b", "apriel2"), "qk_norm")
    assert {p.name for p in tmp_path.iterdir()} == {"a"}


def test_a_layer_is_read_alone(tmp_path):
    model = make_model(TIED, torch.bfloat16)
    save(model, tmp_path / "a", "apriel2", shard_bytes=5000)
    reader = open_layers(tmp_path / "a")
    assert reader.config == TIED and reader.shared().keys() == {"embed.weight", "norm.weight"}
    assert open_layers_of(tmp_path / "b", make_model()).shared().keys() == {"embed.weight", "norm.weight", "head.weight"}
    for i, block in enumerate(model.blocks):
        tensors, expected = reader.layer(i), block.state_dict()
        assert tensors.keys() == expected.keys() and all(torch.equal(tensors[n], expected[n]) for n in expected)
        assert reader.bytes_of_layer(i) == sum(t.nbytes for t in expected.values())


def open_layers_of(folder, model):
    save(model, folder)
    return open_layers(folder)


# --- the multimodal model


@pytest.mark.parametrize("body, head", [("model.", ""), ("model.language_model.", ""), ("language_model.model.", "language_model.")])
def test_of_a_multimodal_model_the_language_part_is_taken(tmp_path, body, head):
    model = make_model()
    save(model, tmp_path / "a", "apriel2")
    tensors = {
        head + name if name.startswith("lm_head") else body + name.removeprefix("model."): tensor
        for name, tensor in load_file(tmp_path / "a" / ONE).items()
    }
    vision = {"model.vision_encoder.embeddings.patch_embeddings.weight": torch.zeros(2, 3), "model.vision_encoder.adapter.linear_1.bias":
              torch.zeros(5)}  # fmt: skip
    save_file(tensors | vision, tmp_path / "a" / ONE)
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    raw |= {"model_type": "apriel2", "architectures": ["Apriel2ForConditionalGeneration"], "vision_encoder": {"hidden_size": 4},
            "image_token_index": 10}  # fmt: skip
    (tmp_path / "a" / "config.json").write_text(json.dumps(raw))
    same(model, load(tmp_path / "a"))
    assert describe(tmp_path / "a")["left out (vision)"] == "2 tensors"
    assert describe(tmp_path / "a")["parameters"] == sum(p.numel() for p in model.parameters())
    assert len(convert(tmp_path / "a", tmp_path / "b", "apriel2").left_out) == 2
    same(model, load(tmp_path / "b"))


def test_a_tied_head_may_be_there_as_long_as_it_is_the_embedding(tmp_path):
    model = make_model(TIED)
    save(model, tmp_path / "a", "apriel2")
    tensors = load_file(tmp_path / "a" / ONE)
    save_file(tensors | {"lm_head.weight": model.embed.weight.detach().clone()}, tmp_path / "a" / ONE)
    same(model, load(tmp_path / "a"))
    save_file(tensors | {"lm_head.weight": model.embed.weight.detach() + 1}, tmp_path / "a" / ONE)
    refused(lambda: load(tmp_path / "a"), "lm_head.weight", "differs")


# --- what is wrong is named


def refused(call, *words):
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message, message


def change_tensors(folder, change):
    tensors = load_file(folder / ONE)
    change(tensors)
    save_file(tensors, folder / ONE)


@pytest.mark.parametrize("format, mixer", [("native", "blocks.1.mixers.K."), ("apriel2", "model.decoder.blocks.1.mixer.mixers.kda.")])
def test_tensors_that_do_not_belong_are_named(tmp_path, format, mixer):
    def fresh():
        save(make_model(), tmp_path / "a", format)
        return tmp_path / "a"

    change_tensors(fresh(), lambda t: t.pop(f"{mixer}A_log"))
    refused(lambda: load(tmp_path / "a"), "lacks", "blocks.1.mixers.K.A_log")
    change_tensors(fresh(), lambda t: [t.pop(name) for name in list(t) if name.startswith(mixer)])
    refused(lambda: load(tmp_path / "a"), "lacks", "blocks.1.mixers.K.A_log", "and 12 more")
    change_tensors(fresh(), lambda t: t.update({f"{mixer}extra.weight": torch.zeros(1)}))
    refused(lambda: load(tmp_path / "a"), "unknown", "blocks.1.mixers.K.extra.weight")
    change_tensors(fresh(), lambda t: t.update({f"{mixer}A_log": torch.zeros(5)}))
    refused(lambda: load(tmp_path / "a"), "blocks.1.mixers.K.A_log (5,) instead of (4,)")
    change_tensors(fresh(), lambda t: t.update({f"{mixer}A_log": torch.zeros(4, dtype=torch.int64)}))
    refused(lambda: load(tmp_path / "a"), f"{mixer}A_log is I64")


def test_a_config_that_is_not_ours_is_one_line(tmp_path):
    folder = tmp_path / "a"
    save(make_model(), folder)
    config = folder / "config.json"
    raw = json.loads(config.read_text())
    for broken, *words in (
        ("{", "config.json", "truncated"),
        ("[]", "config.json", "no JSON object"),
        (json.dumps({"model_type": "llama"}), "config.json", "'llama'", "apriel2_text"),
        (json.dumps({"model_type": "apriel2_text"}), "config.json", "decoder is missing"),
        (json.dumps(raw | {"format": "other"}), "config.json", "'other'", "placement-suite"),
        (json.dumps(raw | {"colour": 1}), "config.json", "colour"),
        (json.dumps({k: v for k, v in raw.items() if k != "ffn"}), "config.json", "ffn"),
        (json.dumps(raw | {"heads": 3}), "config.json", "model.heads=3"),
        (json.dumps(raw | {"heads": "many"}), "config.json"),
        (json.dumps(raw | {"layers": 3}), "blocks.2."),
    ):
        config.write_text(broken)
        refused(lambda: load(folder), *words)
    config.unlink()
    refused(lambda: load(folder), "config.json is missing")
    refused(lambda: load(tmp_path / "nowhere"), "nowhere")


def test_a_truncated_shard_is_named(tmp_path):
    save(make_model(), tmp_path / "a", shard_bytes=5000)
    shard = sorted((tmp_path / "a").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    refused(lambda: load(tmp_path / "a"), shard.name, "truncated")


# --- whole or not at all


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    model = make_model()
    save(model, tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}

    def full(folder, tensors, shard_bytes, metadata):
        (folder / ONE).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    for call in (lambda: save(model, tmp_path / "a"), lambda: convert(tmp_path / "a", tmp_path / "b", "apriel2")):
        with pytest.raises(OSError, match="No space"):
            call()
    assert {p.name for p in tmp_path.iterdir()} == {"a"}
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before


def test_nothing_else_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    model = make_model()
    refused(lambda: save(model, tmp_path / "mine"), "mine", "no supernet's checkpoint")
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "llama"}')
    refused(lambda: save(model, tmp_path / "mine"), "mine", "no supernet's checkpoint")
    save(model, tmp_path / "a")
    save(model, tmp_path / "a", "apriel2")  # an older checkpoint is replaced
    assert describe(tmp_path / "a")["format"] == "apriel2"
    refused(lambda: convert(tmp_path / "a", tmp_path / "mine", "native"), "mine", "exists")
    refused(lambda: convert(tmp_path / "a", tmp_path / "a", "native"), "exists")
    refused(lambda: save(model, tmp_path / "b", "gguf"), "'gguf'", "native, apriel2")
    assert {p.name for p in tmp_path.iterdir()} == {"a", "mine"} and (tmp_path / "mine" / "thesis.tex").exists()


# --- a run's checkpoints


def trained_run(root, train="FSKG"):
    """(the trained model, its checkpoint, its teacher's folder), laid out as a run leaves them."""
    teacher = make_model(CONFIG.replace(mixers="F")).requires_grad_(False)
    folder = root / ".cache" / "teachers" / "tiny-1"
    save_teacher(teacher, folder, "a test")
    torch.manual_seed(1)
    model = Supernet(CONFIG).eval()
    initialise(model, teacher)
    for name, p in model.named_parameters():
        trained = ".mixers." in name and name.split(".mixers.")[1][0] in train
        p.requires_grad_(trained)
        if trained:
            p.data += 0.1
    step = root / "results" / "tiny" / "run" / "checkpoints" / "step-000010"
    save_trained(model, step, {"step": 10, "tokens": 99, "teacher": json.loads((folder / "source.json").read_text())})
    return model, step, folder


@pytest.mark.parametrize("train", ["FSKG", "KG"])
def test_a_runs_checkpoint_is_completed_by_its_teacher(tmp_path, monkeypatch, train):
    model, step, teacher = trained_run(tmp_path, train)
    same(model, load(step))  # the teacher is found above the checkpoint
    assert describe(step)["format"] == "run"
    convert(step, tmp_path / "b", "apriel2")
    same(model, load(tmp_path / "b"))
    moved = tmp_path / "elsewhere"
    teacher.rename(moved)
    refused(lambda: load(step), "--teacher")
    same(model, load(step, moved))
    save_teacher(make_model(CONFIG.replace(mixers="F", norm_eps=1e-3)).cast(torch.bfloat16), tmp_path / "other", "another")
    refused(lambda: load(step, tmp_path / "other"), "sha256", "other")
    (tmp_path / "here" / ".cache" / "teachers").mkdir(parents=True)
    moved.rename(tmp_path / "here" / ".cache" / "teachers" / "x")
    monkeypatch.chdir(tmp_path / "here")
    same(model, load(step))  # found below the present folder


def test_untrained_delta_mixers_cannot_be_told(tmp_path):
    _, step, _ = trained_run(tmp_path, "FS")
    refused(lambda: load(step), "lacks", "blocks.0.mixers.G.A_log")


def test_load_trained_still_reads_what_save_trained_wrote(tmp_path):
    model, step, _ = trained_run(tmp_path)
    other = make_model()
    meta = load_trained(other, step)
    assert meta["step"] == 10 and meta["tokens"] == 99
    for name, p in model.named_parameters():
        assert not p.requires_grad or torch.equal(p, other.get_parameter(name))


# --- the command line


def test_the_commands(tmp_path):
    save(make_model(TIED), tmp_path / "a", shard_bytes=5000)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(*arguments):
        return subprocess.run([sys.executable, "-m", "supernet.checkpoint", *map(str, arguments)], cwd=ROOT, env=environment,
                              capture_output=True, text=True, timeout=600)  # fmt: skip

    done = command("convert", tmp_path / "a", tmp_path / "b", "--to", "apriel2")
    assert done.returncode == 0 and "as apriel2" in done.stdout, done.stderr
    wrong = command("describe", tmp_path / "nowhere")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
    same(load(tmp_path / "a"), load(tmp_path / "b"))


def test_what_describe_says(tmp_path, capsys):
    model = make_model(TIED)
    save(model, tmp_path / "a", "apriel2", shard_bytes=5000)
    assert main(["describe", str(tmp_path / "a")]) == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    numbers = [p.numel() for p in model.parameters()]
    assert said["format"] == "apriel2" and said["layers"] == "2" and said["mixers"] == "FSKG" and said["tied"] == "True"
    assert said["window"] == "6" and said["dtype"] == "float32" and len(said["sha256"]) == 64
    assert said["parameters"] == f"{sum(numbers):,}" and said["bytes"] == f"{4 * sum(numbers):,}"
    all_fa = sum(p.numel() for p in make_model(TIED.replace(mixers="F")).parameters())
    assert said["parameters of all-FA"] == f"{all_fa:,}"
    assert int(said["files"]) == len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "a"), "--to", "native"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
