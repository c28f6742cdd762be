"""The second stage as real commands: from the first one's last checkpoint, over presets, scored like any run."""

import json
from pathlib import Path

import pytest
import torch
from chain import call, table
from safetensors.torch import load_file

TUNING = ["sft.steps=4", "sft.batch=4", "sft.checkpoints=3", "sft.first_checkpoint=2"]


def folders(options):
    """(the distilled run's folder, the fine-tuned one's or None)."""
    results = next(o for o in options if o.startswith("results=")).removeprefix("results=")

    found = sorted((Path(results) / "tiny").iterdir(), key=lambda p: len(p.name))
    return found[0], found[1] if len(found) > 1 else None


@pytest.mark.slow
def test_fine_tuning_starts_where_distillation_ended_and_is_swept_like_any_run(small):
    options = [*small, *TUNING]
    call("teach", options)
    assert "no checkpoint of step 8" in call("sft", options, expect=1).stderr
    call("distill", options)
    refused = call("sft", options, expect=1).stderr
    assert "make presets" in refused and refused.startswith("error: ") and refused.strip().count("\n") == 0
    distilled = folders(options)[0]
    (distilled / "presets.yaml").write_text("presets:\n  a: {placement: GK}\n  b: {placement: FF}\n  c: {placement: SS}\n")
    call("sft", options)
    tuned = folders(options)[1]
    assert tuned.name.startswith(f"{distilled.name}-sft-")
    rows = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert [row["placement"] for row in rows] == ["FF", "GK", "SS", "FF"]
    before, start, last = (
        load_file(folder / f"checkpoints/{step}/model.safetensors")
        for folder, step in ((distilled, "step-000008"), (tuned, "step-000000"), (tuned, "step-000004"))
    )
    for name in before:
        assert torch.equal(before[name], start[name])
        layer, letter = int(name.split(".")[1]), name.split(".mixers.")[1][0]
        trained = letter in ("FGS", "FKS")[layer]
        assert trained or torch.equal(start[name], last[name]), name
    assert any(not torch.equal(start[name], last[name]) for name in start)
    manifest = json.loads((tuned / "manifest.json").read_text())
    assert manifest["sft"] == {"run": distilled.name, "step": 8, "presets": ["FF", "GK", "SS"]}
    assert json.loads((tuned / "status.json").read_text())["sft"]["state"] == "done"
    stamps = {p: p.stat().st_mtime_ns for p in tuned.rglob("*") if p.is_file()}
    (distilled / "presets.yaml").write_text("presets: {}\n")
    call("sft", options)
    assert stamps == {p: p.stat().st_mtime_ns for p in tuned.rglob("*") if p.is_file()}, "a finished stage was touched"
    call("sweep", [*options, "stage=sft", "placements=FF+GK"])
    scores = table(tuned)
    assert set(scores["step"]) == {0, 2, 4} and len(scores) == 3 * 2 * 6
    assert set(scores["run"]) == {tuned.name}
