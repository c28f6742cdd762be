"""Costs as they are typed: published, measured, from the roofline, or a file; through the real commands."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import presets, report, search
from analysis.cost import placement_costs
from analysis.input.cost_source import by_mixer, check
from analysis.roofline import Shapes, coefficients, device
from analysis.table import load_scores
from supernet.placement import COST, sample_counts
from tests.analysis.conftest import frame_of, simulate

MODEL = {"layers": 3, "hidden": 64, "ffn": 128, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": 100, "window": 512}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory with a model's shapes."""
    from analysis.table import write_part

    folder = tmp_path / "results" / "simulated" / "sim-0"
    scores = simulate(np.random.default_rng(0), layers=3, n_placements=64, steps=(0, 100))
    for step, rows in frame_of(scores).groupby("step"):
        write_part(rows, folder / "scores" / f"step-{step:06d}" / "part-000.parquet")
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"scale": "simulated", "model": MODEL | {"tied": None}, "distill": {"sampler": "local"}})
    )
    return folder


@pytest.fixture
def measured(tmp_path) -> Path:
    path = tmp_path / "135m-costs.csv"
    rows = [
        (n, m, c * (0.5 if n > 1000 and m != "F" else 1.0)) for n in (256, 4096) for m, c in {"F": 1, "S": 0.8, "K": 0.4, "G": 0.2}.items()
    ]
    pd.DataFrame(rows, columns=["context", "mixer", "cost"]).to_csv(path, index=False)
    return path


def test_what_the_three_kinds_give(run, measured):
    scores = load_scores(run)
    assert load_scores(run, "published").cost == pytest.approx(placement_costs(scores.placements, COST))
    own = load_scores(run, f"measured:{measured}@4096").cost
    assert own == pytest.approx(placement_costs(scores.placements, {"F": 1, "S": 0.4, "K": 0.2, "G": 0.1}))
    price = coefficients(Shapes.of(MODEL), device("h100"), 4096)
    assert load_scores(run, "roofline:h100@4096").cost == pytest.approx(placement_costs(scores.placements, price))
    assert by_mixer("roofline:cpu,20,0.2,8@64", run) != by_mixer("roofline:cpu,20,0.2,8@2048", run)
    assert by_mixer("some.csv", run) is None


def test_a_table_of_speeds_is_regressed(tmp_path):
    rng, planted = np.random.default_rng(1), {"F": 1.0, "S": 0.5, "K": 0.3, "G": 1.4}
    placements = ["FFFFFF", *dict.fromkeys(str(sample_counts(6, rng)) for _ in range(30))]
    ratio = 6 / placement_costs(placements, planted)
    table = pd.DataFrame({"placement": placements, "context": 64, "tokens_per_s": 5.0, "ratio": ratio}).drop_duplicates("placement")
    table.to_csv(tmp_path / "speeds.csv", index=False)
    assert by_mixer(f"measured:{tmp_path / 'speeds.csv'}", None) == pytest.approx(planted)


@pytest.mark.parametrize(("typed", "said"), [
    ("roofline:h1000@4096", "no device 'h1000': choose from h100"),
    ("roofline:h100", "at which context"),
    ("roofline:h100@four", "'four' is no context"),
    ("roofline:h100@99999999999", "not one sequence of 99999999999 tokens fits"),
    ("measured:MEASURED", "has several contexts: choose from"),
    ("measured:MEASURED@1024", "has no context 1024: choose from 256, 4096"),
    ("measured:nowhere.csv", "no measured costs at nowhere.csv"),
    ("nowhere.csv", "no table of costs at nowhere.csv"),
])  # fmt: skip
def test_errors_are_one_line(run, measured, capsys, typed, said):
    assert presets.main([str(run), "--costs", typed.replace("MEASURED", str(measured))]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_shapes_are_asked_for(tmp_path, run):
    (run / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"has no config.yaml: name a run directory"):
        load_scores(run, "roofline:h100@4096")
    check("roofline:h100@4096")
    with pytest.raises(ValueError, match="give published, measured"):
        check("sometimes")


def test_presets_differ_by_context(run, tmp_path):
    found = {}
    for typed in ("published", "roofline:h100@256", "roofline:h100@32768"):
        assert presets.main([str(run), "--cost", typed, "--budgets", "1.2", "--out", str(tmp_path / typed[-5:])]) == 0
        document = yaml.safe_load((tmp_path / typed[-5:] / "presets.yaml").read_text())
        found[typed] = document["presets"]["loglik-1.2"]["placement"]
        assert placement_costs([found[typed]], by_mixer(typed, run))[0] <= 1.2
    assert found["published"] != found["roofline:h100@256"] or found["published"] != found["roofline:h100@32768"]


def test_report_and_search_take_them(run, measured, tmp_path):
    assert report.main([str(run), "--costs", f"measured:{measured}@256", "--out", str(tmp_path / "report")]) == 0
    short = ["--evaluations", "32", "--repetitions", "2", "--out", str(tmp_path / "search")]
    assert search.main([str(run), "--cost", "roofline:h100@32768", *short]) == 0
