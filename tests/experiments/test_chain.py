"""The real commands in a temporary folder: the chain, its repetition, kills in the middle, extension, and bad input."""

import json

import pandas as pd
import pytest
from chain import call, elsewhere, kill_when, run_folder, table

from analysis.table import load_scores


@pytest.mark.slow
def test_chain_repeats_and_survives_kills(small, tmp_path):
    for name in ("teach", "distill", "sweep", "report"):
        call(name, small)
    folder = run_folder(small)
    undisturbed = table(folder)
    assert len(undisturbed) == 4 * 16 * 6  # checkpoints x placements x items
    assert set(undisturbed["step"]) == {0, 2, 4, 8}
    assert list(pd.read_parquet(folder / "placements.parquet").columns) == ["placement", "source", "cost"]
    assert json.loads((folder / "status.json").read_text())["sweep"]["state"] == "done"
    assert (folder / "report.md").exists()
    assert list((folder / "figures").glob("*.png"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(8))

    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    for name in ("teach", "distill", "sweep"):
        call(name, small)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}, "a finished run was touched"

    again = elsewhere(small, tmp_path / "again")
    checkpoints = tmp_path / "again/tiny" / folder.name / "checkpoints"
    kill_when("distill", again, lambda: (checkpoints / "resume.ckpt").exists())
    kill_when("distill", again, lambda: (checkpoints / "step-000004").exists())
    call("distill", again)
    scores = tmp_path / "again/tiny" / folder.name / "scores"
    kill_when("sweep", again, lambda: any(scores.rglob("*.parquet")))
    kill_when("sweep", again, lambda: len(list(scores.rglob("*.parquet"))) > 3)
    call("sweep", again)
    pd.testing.assert_frame_equal(table(run_folder(again)), undisturbed)
    assert (run_folder(again) / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_more_placements_and_items_extend_the_tables(small):
    call("teach", small)
    call("distill", small)
    few = [*small, "placements=mixed", "num_placements=6", "items=3"]
    call("sweep", few)
    folder = run_folder(small)
    first = table(folder)
    assert len(first) == 4 * 6 * 3
    call("sweep", [*small, "placements=exhaustive"])
    both = table(folder)
    assert len(both) == 4 * 16 * 6
    assert load_scores(folder).quality.shape == (4, 16, 6)
    old = both.merge(first[["step", "placement", "item"]])
    pd.testing.assert_frame_equal(old.sort_values(["step", "placement", "item"], ignore_index=True), first)
    assert "complete" in call("sweep", few).stdout


@pytest.mark.slow
def test_fewer_items_with_more_placements_keep_the_tables_rectangular(small):
    call("teach", small)
    call("distill", small)
    call("sweep", [*small, "placements=FF+GG", "items=5"])
    call("sweep", [*small, "placements=FG+GF+SK", "items=2"])
    assert load_scores(run_folder(small)).quality.shape == (4, 5, 5)


@pytest.mark.parametrize(
    ("name", "option", "says"),
    [
        ("distill", "seeed=1", "unknown option seeed: choose from scale, seed"),
        ("distill", "distill.stepps=1", "unknown option distill.stepps: choose from distill.steps"),
        ("distill", "model.layerz=3", "unknown option model.layerz: choose from model.layers"),
        ("distill", "+extra=1", "unknown option extra"),
        ("sweep", "scale=tinny", "Available options in 'scale': 0.5b"),
        ("sweep", "placements=FFSKG", "placements has 'FFSKG': give placements of 2 letters"),
        ("sweep", "placements=FX", "choose from exhaustive, mixed, local, counts, band"),
        ("sweep", "distill.lr=-1", "distill.lr is -1.0: give a positive number"),
        ("sweep", "distill.sampler=lokal", "choose from local, counts, targeted, hybrid"),
        ("sweep", "seed=0", "run python -m experiments.distill"),
        ("distill", "seed=0", "make it with python -m experiments.teach"),
        ("teach", "teacher={source: huggingface, path: /no/such/folder}", "/no/such/folder"),
    ],
)
def test_bad_input_is_one_line(small, name, option, says):
    done = call(name, [*small, option], expect=1)
    assert says in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr


@pytest.mark.slow
def test_truncated_files_are_named_and_nothing_is_lost(small):
    for name in ("teach", "distill", "sweep"):
        call(name, small)
    folder = run_folder(small)
    whole = table(folder)
    part = next(folder.glob("scores/step-000002/*.parquet"))
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    assert part.name in call("sweep", small, expect=1).stderr
    part.unlink()
    weights = folder / "checkpoints/step-000002/model.safetensors"
    saved = weights.read_bytes()
    weights.write_bytes(saved[: len(saved) // 2])
    assert "step-000002 is truncated" in call("sweep", small, expect=1).stderr
    weights.write_bytes(saved)
    call("sweep", small)
    pd.testing.assert_frame_equal(table(folder), whole)
    (folder / "status.json").write_text("{")
    part.unlink()
    assert "kept as status.json.broken" in call("sweep", small).stderr
    pd.testing.assert_frame_equal(table(folder), whole)
