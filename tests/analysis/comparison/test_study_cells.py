"""The scales study: slopes of planted studies, transfer by relative depth, and the command on run directories."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import scales
from analysis.comparison.cells import Cell, design, fit, slopes, table_of
from analysis.comparison.relative_depth import predicted, transfer
from analysis.stability.endpoints import Endpoints
from analysis.table import Scores, write_part
from analysis.validation import planted_study
from analysis.validation.planted_study import planted_scores, planted_tables


@pytest.mark.parametrize(("teacher_sd", "residual_sd"), [(0.0, 0.05), (0.05, 0.05), (0.1, 0.03)])
def test_intervals_of_the_slopes_cover_as_declared(teacher_sd, residual_sd):
    found = planted_tables(teacher_sd, residual_sd, 1000, seed=1).set_index("coefficient")
    for name in ("depth", "width"):
        assert 0.93 <= found.loc[name, "coverage"] <= 0.97
        assert found.loc[name, "mean"] == pytest.approx(found.loc[name, "truth"], abs=0.005)


def test_a_slope_that_rests_on_one_run_keeps_its_width(monkeypatch):
    """One run alone has the larger width: its residual is 0, and without the model's own error the interval covers 74%."""
    monkeypatch.setattr(planted_study, "PLANNED", ((5, 64, 4), (10, 64, 3), (5, 128, 1)))
    found = planted_tables(0.05, 0.05, 400, seed=1).set_index("coefficient")
    assert found.loc["width", "coverage"] >= 0.9 and found.loc["depth", "coverage"] >= 0.92


def test_slopes_are_recovered_from_score_tables():
    found = planted_scores(12, seed=2).set_index("coefficient")
    assert found["mean"].to_numpy() == pytest.approx(found["truth"].to_numpy(), abs=0.03)
    assert found["coverage"].mean() > 0.8


def test_the_fit_without_teachers_is_least_squares_and_too_few_runs_are_said():
    rng = np.random.default_rng(0)
    names, X = design(np.array([5.0, 10, 20, 5, 10, 20]), np.full(6, 64.0), np.full(6, 2.0))
    assert names == ("intercept", "depth")
    y = rng.standard_normal(6)
    assert fit(y, X, names, np.zeros(6)).values == pytest.approx(np.linalg.lstsq(X, y, rcond=None)[0])
    with pytest.raises(ValueError, match="do not determine"):
        fit(y[:2], X[:2], names, np.zeros(2))


def scores_of(names, value, items, noise, rng, cost=None):
    quality = value[None, :, None] + noise * rng.standard_normal((2, len(names), items))
    steps, cost = np.array([0, 9]), value if cost is None else cost
    return Scores("s", "r", 0, steps, steps, names, cost, [f"i{n}" for n in range(items)], ["t"] * items, quality)


def test_a_large_placement_is_the_mean_of_the_small_ones_at_its_relative_depth():
    small = {"FF": 4.0, "FG": 2.0, "GF": 1.0, "GG": 0.0}
    assert predicted(["FFGG", "FGGG", "FGFG"], small) == pytest.approx([2.0, 1.0, (4 + 2 + 1 + 0) / 4])


def test_transfer_between_additive_landscapes_loses_nothing_and_beats_chance():
    rng = np.random.default_rng(1)
    names = ["".join(p) for p in itertools.product("FG", repeat=2)]
    small = scores_of(names, np.array([p.count("F") for p in names]) * 1.0, 24, 0.1, rng)
    names = ["FFGG", "FGFG", "GFGG", "FFFF", "GGGG", "FFFG"]
    large = scores_of(names, np.array([p.count("F") for p in names]) * 0.5, 24, 0.05, rng, cost=np.full(len(names), 2.0))
    row = transfer(small, large, [(0.1, np.arange(len(names)))]).iloc[0]
    assert row["regret"] == pytest.approx(0, abs=0.02) and row["regret_random"] > 0.5 and row["spearman"] > 0.9


def run_directory(run, layers, seed, names, rng):
    effect = rng.standard_normal((layers, 4)) / 3
    true = np.array([sum(effect[n]["FSKG".index(c)] for n, c in enumerate(p)) for p in names])
    for step in (0, 25, 50, 75, 98, 100):
        quality = true + (1 - step / 100) * rng.standard_normal(len(names)) / 2
        noise = rng.standard_normal((len(names), 24)) / 4
        frame = pd.DataFrame({
            "scale": run.parent.name, "run": run.name, "seed": seed, "step": step, "tokens": 10 * step,
            "placement": np.repeat(names, 24), "item": np.tile([f"i{n}" for n in range(24)], len(names)), "task": "t",
            "logp": ((quality[:, None] + noise - 9) * 8).ravel(), "num_tokens": 8,
        })  # fmt: skip
        write_part(frame, run / "scores" / f"step-{step:06d}" / "part-0.parquet")
    distill = {"sampler": "local", "tokens_per_parameter": 2.0, "schedule": "constant"}
    config = {"model": {"layers": layers, "hidden": 32}, "teacher": {"seed": seed}, "distill": distill, "stage": "distill"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_what_is_not_known_of_some_runs_leaves_the_other_slopes():
    """Before training noise may hide the ranking of a whole cell; an endpoint of which hardly a run knows is left out."""
    rng = np.random.default_rng(0)
    names = ["".join(p) for p in itertools.product("FSKG", repeat=3)]
    runs = [(layers, k, scores_of(names, rng.standard_normal(64), 24, 0.1, rng, cost=np.full(64, 1.5)))
            for layers, teachers in ((5, 4), (10, 3)) for k in range(teachers)]  # fmt: skip
    cells = [Cell(Path(), layers, 64, 2.0, k, replace(scores, run=f"{layers}-{k}")) for layers, k, scores in runs]
    endpoints = Endpoints(bands=(0.1, 1.0), groups=2)
    drift = table_of(cells, endpoints)
    drift.loc[(drift["layers"] == 10) & (drift["share"] == 0), "order"] = np.nan
    drift.loc[drift["layers"] == 10, "choice"] = np.nan
    found = slopes(cells, drift, endpoints).set_index(["endpoint", "coefficient"])
    assert np.isnan(found.loc[("order", "depth"), "start"]).all() and np.isfinite(found.loc[("order", "depth"), "value"]).all()
    assert np.isfinite(found.loc[("tau", "depth"), "start"]).all()
    with pytest.raises(ValueError, match="do not determine"):
        slopes(cells[:2], drift[drift["run"].isin(["s/5-0", "s/5-1"])], endpoints)


def test_the_command_reads_run_directories_and_says_what_is_missing(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for layers, seed in ((3, 0), (3, 1), (4, 0), (4, 1)):
        names = ["".join(p) for p in itertools.product("FSKG", repeat=layers)]
        names = names if layers == 3 else [names[i] for i in sorted(rng.permutation(len(names))[:120])]
        run_directory(tmp_path / f"l{layers}-h32" / f"local-s{seed}-{layers}", layers, seed, names, rng)
    runs = [str(p) for p in sorted(tmp_path.glob("l*/*"))]
    declared = tmp_path / "study.yaml"
    declared.write_text("bands: [0.14, 0.57, 1.0]\nmin_placements: 8\ngroups: 4\n")
    assert scales.main([*runs, "--endpoints", str(declared), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "scales.md").read_text()
    assert "## Slopes per doubling" in text and "with depth" in text
    slopes = pd.read_csv(tmp_path / "out/tables/slopes.csv")
    assert set(slopes["coefficient"]) == {"intercept", "depth"} and (slopes["lo"] <= slopes["hi"]).all() and (slopes["items"] >= 0).all()
    drift = pd.read_csv(tmp_path / "out/tables/drift.csv")
    assert (drift.loc[drift["share"] == 1, "order"].abs() < 1e-9).all() and (drift.loc[drift["share"] == 0, "order"] > 0.1).all()
    assert (tmp_path / "out/figures/scales.png").stat().st_size > 10_000
    assert set(pd.read_csv(tmp_path / "out/tables/transfer.csv")["large"]) == {"l4-h32"}
    assert scales.main([*runs[:2], "--endpoints", str(declared), "--out", str(tmp_path / "few")]) == 0
    assert "None: " in (tmp_path / "few" / "scales.md").read_text()
    config = tmp_path / "l4-h32/local-s0-4/config.yaml"
    half = yaml.safe_load(config.read_text())
    half["distill"]["steps"] = 200
    config.write_text(yaml.safe_dump(half))
    (tmp_path / "l4-h32/local-s1-4/wanted.json").write_text(json.dumps({"steps": [0, 25, 50, 75, 98, 100, 200], "items": ["i0"]}))
    (tmp_path / "results").mkdir()
    for cell in ("l3-h32", "l4-h32"):
        (tmp_path / "results" / cell).symlink_to(tmp_path / cell)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert scales.main(["--endpoints", str(declared)]) == 0
    for said in (capsys.readouterr().out, (tmp_path / "results/scales/scales.md").read_text()):
        assert "local-s1-4 lacks 1 of 7 steps altogether, step 200 first" in said and "local-s0-4 end at step 100 of 200" in said
    assert "l4-h32: " not in (tmp_path / "results/scales/scales.md").read_text()
    config.write_text(yaml.safe_dump(half | {"distill": half["distill"] | {"steps": 100}}))
    (config.parent / "manifest.json").write_text(json.dumps({"teacher": {"loss": {"recall": 1.98}}}))
    assert scales.main(["--endpoints", str(declared)]) == 0
    assert "local-s0-4, excluded: its teacher's loss on the values of recall is 1.98 nats, above 1\n" in capsys.readouterr().out
    missing = (["results/l4-h32/local-s1-4"], "lacks 1 of 7 steps"), ([str(tmp_path / "nothing")], "no run at")
    for typed, said in (*missing, ([*runs[:2], "--costs", "none.csv"], "none.csv")):
        assert scales.main([*typed, "--out", str(tmp_path)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error


def test_controls_stand_beside_their_cells_and_change_no_slope(tmp_path):
    rng = np.random.default_rng(0)
    names = ["".join(p) for p in itertools.product("FSKG", repeat=3)]
    for layers, seed in itertools.product((3, 4), (0, 1)):
        run_directory(tmp_path / f"l{layers}-h32/{seed}", layers, seed, names if layers == 3 else [f"F{n}" for n in names], rng)
    shutil.copytree(tmp_path / "l3-h32/0", tmp_path / "l3-h32-control/0")
    run_directory(tmp_path / "l3-h32-control/1", 3, 1, names, rng)
    parts = list((tmp_path / "l3-h32-control/0/scores").rglob("*.parquet"))
    for part in parts:  # a copy, but for the name that a table gives its scale
        pd.read_parquet(part).assign(scale="l3-h32-control").to_parquet(part)
    declared = tmp_path / "study.yaml"
    declared.write_text("bands: [0.14, 0.57, 1.0]\nmin_placements: 8\ngroups: 4\n")
    found = {}
    for name in ("", "-control"):
        runs = sorted(str(p) for p in tmp_path.glob("l*/*") if not p.parent.name.endswith("-control") or name)
        assert scales.main([*runs, "--endpoints", str(declared), "--out", str(tmp_path / f"out{name}")]) == 0
        found[name] = (tmp_path / f"out{name}/tables/slopes.csv").read_text()
    assert found[""] == found["-control"]
    assert (
        "## Controls" in (tmp_path / "out-control/scales.md").read_text() and "## Controls" not in (tmp_path / "out/scales.md").read_text()
    )
    both = pd.read_csv(tmp_path / "out-control/tables/controls.csv")
    assert sorted(set(both["share"])) == [0.5, 63 / 64]
    table = both[both["share"] == 0.5].set_index("endpoint")
    assert set(table["scale"]) == {"l3-h32-control"} and set(table["pairs"]) == {2}
    assert (table[["least", "most"]].abs().min(axis=1) < 1e-9).all()  # the copy
    drift = pd.read_csv(tmp_path / "out/tables/drift.csv")
    plain = drift[(drift["cell"] == "l3-h32") & (drift["step"] == 50)]
    assert table.loc["order", "plain"] == pytest.approx(plain["order"].mean())
    assert table["difference"].to_numpy() == pytest.approx((table["control"] - table["plain"]).to_numpy())


def test_the_cooled_copy_is_the_end_of_a_second_table(tmp_path, capsys):
    """Here the end at the constant rate is noise and the cooled copy is what halfway was: drift to the one is large, to the other none."""
    rng = np.random.default_rng(0)
    names = ["".join(p) for p in itertools.product("FSKG", repeat=3)]
    for layers, seed in itertools.product((3, 4), (0, 1, 2)):
        run = tmp_path / f"l{layers}-h32/{seed}"
        run_directory(run, layers, seed, names if layers == 3 else [f"F{n}" for n in names], rng)
        shutil.copytree(run, run.with_name(f"{seed}-cooled"))
        for step in (0, 25, 75, 98, 100):
            shutil.rmtree(run.with_name(f"{seed}-cooled") / f"scores/step-{step:06d}")
        for part in list(run.with_name(f"{seed}-cooled").rglob("*.parquet")):
            frame = pd.read_parquet(part).assign(step=112, tokens=1120, run=f"{seed}-cooled")
            shutil.rmtree(part.parent)
            write_part(frame, part.parents[1] / "step-000112/part-0.parquet")
    declared = tmp_path / "study.yaml"
    declared.write_text("bands: [0.14, 0.57, 1.0]\nmin_placements: 8\ngroups: 4\n")
    runs = [str(p) for p in sorted(tmp_path.glob("l*/[0-9]"))]
    assert scales.main([*runs, "--endpoints", str(declared), "--out", str(tmp_path / "out")]) == 0
    plain, cooled = (pd.read_csv(tmp_path / f"out/tables/drift{name}.csv") for name in ("", "_to_cooled"))
    assert set(cooled["step"]) == set(plain["step"]) | {112}
    assert (cooled.loc[cooled["step"] == 50, "order"].abs() < 1e-9).all() and (plain.loc[plain["step"] == 50, "order"] > 0.02).any()
    assert set(pd.read_csv(tmp_path / "out/tables/slopes_to_cooled.csv")["share"]) == {0.25, 0.5, 0.75}
    assert "## With the cooled copy as the end (not registered)" in (tmp_path / "out/scales.md").read_text()
    assert (tmp_path / "out/figures/cooled.png").stat().st_size > 10_000
    shutil.rmtree(tmp_path / "l3-h32/0-cooled/scores")
    assert scales.main([*runs, "--endpoints", str(declared), "--out", str(tmp_path / "out")]) == 0
    assert "left out: " in (said := capsys.readouterr().out) and "l3-h32/0-cooled" in said
    assert len(pd.read_csv(tmp_path / "out/tables/drift_to_cooled.csv")) == len(cooled) * 5 // 6
