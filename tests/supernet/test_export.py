"""One placement exported: only its mixers, equal logits; all-FA opens in transformers."""

import pytest
import torch
import yaml

from supernet.checkpoint import load, main, save
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.generate import generate
from supernet.reader import open_layers
from supernet.scoring import Item, score
from supernet.streaming import Traffic, streamed

SMALL = SupernetConfig(layers=4, hidden=32, ffn=48, heads=4, kv_heads=2, head_dim=16, vocab=41, window=8, rope_theta=5e3, norm_eps=1e-4)
TOKENS = torch.randint(41, (2, 30), generator=torch.Generator().manual_seed(0))


def make(folder, **changes) -> Supernet:
    torch.manual_seed(0)
    model = Supernet(SMALL.replace(**changes)).eval().requires_grad_(False)
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.2)
    save(model, folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "presets.yaml").write_text(yaml.safe_dump({"presets": {"loglik-2": {"placement": "GSKG"}}}))
    return load(folder)


@pytest.mark.parametrize("placement, fixed", [("FSKG", "FSKG"), ("loglik-2", "GSKG"), ("GGGG", ""), ("SFFS", "SFFS")])
def test_a_placement_alone_is_smaller_and_computes_the_same(tmp_path, capsys, placement, fixed):
    model = make(tmp_path / "all")
    letters = {"loglik-2": "GSKG"}.get(placement, placement)
    assert main(["convert", str(tmp_path / "all"), str(tmp_path / "one"), "--placement", placement]) == 0
    assert "as native" in capsys.readouterr().out
    one = load(tmp_path / "one")
    assert one.config.fixed == fixed
    assert torch.equal(one(TOKENS, letters), model(TOKENS, letters))
    assert sum(p.numel() for p in one.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    assert (tmp_path / "one" / "tokenizer.json").is_file()
    assert generate(one, [TOKENS[0]], [letters], 6)[0].tolist() == generate(model, [TOKENS[0]], [letters], 6)[0].tolist()
    item = Item("a", "a", TOKENS[0], 10)
    whole = score(model, [letters], [item], 10**9)[0]
    assert score(one, [letters], [item], 10**9)[0] == whole
    empty, block_at = streamed(open_layers(tmp_path / "one"), torch.float32, "cpu", True, Traffic())
    assert score(empty, [letters], [item], 10**9, block_at)[0] == whole
    with pytest.raises(ValueError, match="exported with" if fixed else "unknown mixer"):
        one(TOKENS, "FFFF")


def test_a_run_in_place_of_a_checkpoint_is_told_which_to_give(tmp_path, capsys):
    for step in ("step-000000", "step-000010"):
        (tmp_path / "run" / "checkpoints" / step).mkdir(parents=True)
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "one"), "--placement", "FSKG"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"is a run: give one of its checkpoints, such as {tmp_path / 'run/checkpoints/step-000010'}" in error


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"qkv_bias": True, "tied": True}, {"qk_norm": True}, {"kv_heads": 4}])
def test_all_fa_opens_in_transformers_with_equal_logits(tmp_path, capsys, changes):
    transformers = pytest.importorskip("transformers", reason="needs pip install .[llm]")
    model = make(tmp_path / "all", **changes)
    assert main(["convert", str(tmp_path / "all"), str(tmp_path / "hf"), "--placement", "all-FA"]) == 0
    assert "as huggingface" in capsys.readouterr().out
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS, "FFFF"), atol=2e-5, rtol=1e-5)


def test_what_cannot_be_exported_is_named(tmp_path, capsys):
    make(tmp_path / "all", qk_norm=True, qkv_bias=True)
    folders = ["convert", str(tmp_path / "all"), str(tmp_path / "new")]
    for options, says in (
        (["--placement", "FSK"], "has 3 layers, the model has 4"),
        (["--placement", "best"], "no preset 'best': choose from all-FA, loglik-2, or give 4 letters of FSKG"),
        (["--placement", "FSKG", "--to", "huggingface"], "no Hugging Face family"),
        (["--placement", "FSKG", "--to", "apriel2"], "a fixed layout (FSKG) is not written as Apriel2"),
        (["--placement", "FFFF", "--to", "huggingface"], "no Hugging Face family"),
        (["--to", "huggingface"], "give --placement"),
        ([], "--to is missing"),
    ):
        assert main([*folders, *options]) == 1
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
        assert not (tmp_path / "new").exists()
    assert main([*folders, "--placement", "FFFF"]) == 0  # no family has these shapes: ours does
    assert load(tmp_path / "new").config.mixers == "F"
