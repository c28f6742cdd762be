"""A checkpoint folder and a run's own checkpoints: streamed and in memory, the same rows."""

import json
from pathlib import Path

import pandas as pd
import pytest
from chain import call, elsewhere, run_folder
from hydra import compose, initialize_config_dir

from analysis.table import load_scores
from experiments import random_supernet
from experiments.config import check
from experiments.faults.drill import SMALL
from experiments.faults.drill import score_rows as table
from experiments.overview.plan import print_plan
from experiments.report import report
from experiments.sweep import sweep

CONF = Path(__file__).resolve().parents[3] / "conf"


def configure(options):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("config", options))


def same_rows(a, b):
    pd.testing.assert_frame_equal(table(a).drop(columns="run"), table(b).drop(columns="run"), check_exact=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Options for a random supernet of two layers and four items, both there."""
    root = tmp_path_factory.mktemp("net")
    options = [*SMALL, f"supernet={root / 'net'}", f"items_file={root / 'items.parquet'}", "items=4", "workers=1", "memory_gib=0.3",
               f"results={root / 'results'}"]  # fmt: skip
    random_supernet.make(configure(options))
    return options


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_streamed_and_in_memory(folder, tmp_path, dtype, capsys):
    whole = [*elsewhere(folder, tmp_path / "whole"), f"dtype={dtype}"]
    streamed = [*elsewhere(folder, tmp_path / "streamed"), f"dtype={dtype}", "stream=true"]
    sweep(configure(whole))
    capsys.readouterr()
    sweep(configure(streamed))
    assert "GB read at" in capsys.readouterr().out
    same_rows(run_folder(whole), run_folder(streamed))
    assert run_folder(whole).name == run_folder(streamed).name and run_folder(whole).name.startswith("supernet-")
    work = json.loads((run_folder(streamed) / "manifest.json").read_text())["sweep"]
    assert 1e9 * work["gb_read"] == work["bytes_on_disk"]  # one chunk of items: each tensor once
    assert work["peak_rss_gib"] > 0 and work["gb_per_second"] > 0
    assert (work["placements"], work["items"], work["tokens"]) == (16, 4, 23)


def test_the_report_of_one_checkpoint(folder):
    config = configure([*folder, "stream=true"])
    sweep(config)
    report(config)
    text = (run_folder(folder) / "report.md").read_text()
    assert text.startswith("# The frontier at one checkpoint") and "nothing can be said about stability" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("items=9", "holds 4 items, 9 were asked"),
        ("steps=[3]", "is one checkpoint, step 0"),
        ("memory_gib=0.001", "give at least"),
        ("supernet=/no/such/folder", "/no/such/folder"),
        ("items_file=/no/such/file", "no items at /no/such/file"),
    ],
)
def test_bad_input_is_one_line(folder, change, message, tmp_path):
    options = [*(o for o in elsewhere(folder, tmp_path) if o.split("=")[0] != change.split("=")[0]), change, "stream=true"]
    with pytest.raises(ValueError, match=message) as error:
        sweep(configure(options))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_shape_of_135m(tmp_path):
    """30 layers of true widths in bfloat16; each layer is read once; some placements share prefixes, some do not."""
    placements = ["F" * 30, "G" * 30, "S" * 15 + "K" * 15, "SKGF" * 7 + "SK", "S" * 14 + "G" * 16]
    options = ["scale=135m", f"supernet={tmp_path / 'net'}", f"items_file={tmp_path / 'items.parquet'}", "items=2", "data.length=40",
               "data.prompt=16", f"placements={'+'.join(placements)}", "workers=1", "memory_gib=1"]  # fmt: skip
    random_supernet.make(configure([*options, f"results={tmp_path}"]))
    whole, streamed = [*options, f"results={tmp_path / 'whole'}"], [*options, f"results={tmp_path / 'streamed'}", "stream=true"]
    sweep(configure(whole))
    sweep(configure(streamed))
    (a,), (b,) = (list((tmp_path / name / "135m").iterdir()) for name in ("whole", "streamed"))
    same_rows(a, b)
    assert set(table(a)["placement"]) == set(placements) and table(a)["logp"].nunique() == 10
    work = json.loads((b / "manifest.json").read_text())["sweep"]
    assert work["peak_rss_gib"] > 0 and 1e9 * work["gb_read"] == work["bytes_on_disk"] > 4e8


@pytest.mark.slow
def test_a_runs_own_checkpoints_streamed(small, tmp_path):
    call("teach", small)
    call("distill", small)
    whole = run_folder(small)
    streamed = elsewhere(small, tmp_path / "streamed")
    there = tmp_path / "streamed" / "tiny" / whole.name
    there.mkdir(parents=True)
    (there / "checkpoints").symlink_to(whole / "checkpoints")
    options = ["placements=mixed", "num_placements=6", "steps=[0,8]", "workers=1", "memory_gib=0.3"]
    call("sweep", [*small, *options])
    call("sweep", [*streamed, *options, "stream=true"])
    same_rows(whole, there)
    assert load_scores(there).quality.shape == (2, 6, 6)


def test_a_window_that_no_item_leaves_is_told_in_plan_sweep_manifest_and_report(tmp_path, capsys):
    options = [*SMALL, f"supernet={tmp_path / 'net'}", f"items_file={tmp_path / 'items.parquet'}", "items=4", "workers=1",
               "model.window=24", f"results={tmp_path / 'results'}"]  # fmt: skip
    config = configure(options)
    random_supernet.make(config)
    print_plan("sweep", config)
    said = "No item has more than 24 tokens, and the window of S is 24: S sees all that F sees"
    assert f"warning       {said}" in capsys.readouterr().out
    sweep(config)
    assert f"warning: {said}" in capsys.readouterr().out
    run = run_folder(options)
    assert json.loads((run / "manifest.json").read_text())["warnings"][0].startswith(said)
    report(config)
    assert said in (run / "report.md").read_text()
