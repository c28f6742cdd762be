from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import report, strategies
from analysis.comparison import samplers
from analysis.input.runs import family
from analysis.output import samplers_report
from analysis.stability import Endpoints
from analysis.table import load_scores

ENDPOINTS = Endpoints(resamples=20, halves=2, groups=6)
EFFECT = {"local": 0.0, "counts": 0.0, "targeted": -0.2}


def quick(path):
    path.write_text("resamples: 20\nhalves: 2\ngroups: 6\n")
    return str(path)


@pytest.fixture
def grid_folders(tmp_path, simulate, write_run):
    """3 samplers x 3 seeds on one landscape: training noise, and targeted worse by 0.2 everywhere but on its presets."""

    def write(seeds=(1, 2, 3), effect=EFFECT, **also):
        base, folders = simulate(np.random.default_rng(0), n_placements=64), []
        presets = [base.placements[i] for i in (5, 30, 50)]
        for strategy, change in effect.items():
            for seed in seeds:
                noise = np.random.default_rng([seed, len(strategy)]).normal(0, 0.01, size=(1, len(base.placements), 1))
                shift = np.where([p in presets for p in base.placements], 0.1 * np.sign(-change), change)[None, :, None]
                run = f"{strategy}-s{seed}"
                scores = replace(base, run=run, seed=seed, quality=base.quality + noise + shift)
                folder = write_run(scores, tmp_path / "results")
                placements = pd.DataFrame({"placement": scores.placements, "source": "exhaustive", "cost": scores.cost})
                placements.to_parquet(folder / "placements.parquet")
                distill = {"sampler": strategy, "presets": presets if strategy == "targeted" else [], "lr": 1e-3} | also
                options = {"scale": scores.scale, "seed": seed, "model": {"layers": 4}, "teacher": {}, "data": {}, "distill": distill}
                (folder / "config.yaml").write_text(yaml.safe_dump(options))
                folders.append(folder)
        return folders

    return write


def test_differences_are_the_planted_ones(grid_folders):
    (grid,) = samplers.grids(grid_folders(), ENDPOINTS)
    assert grid.strategies == ["local", "counts", "targeted"] and grid.seeds == [1, 2, 3]
    table = samplers.final_quality(grid, 0.95).set_index(["group", "strategy"])
    planted = table.loc[(samplers.EVERY, "targeted")]
    assert planted["seeds_lo"] < -0.2 * 61 / 64 + 0.1 * 3 / 64 < planted["seeds_hi"] and planted["verdict"] == "worse"
    assert table.loc[(samplers.PRESETS, "targeted"), "difference"] == pytest.approx(0.1, abs=0.03)
    assert table.loc[(samplers.EVERY, "counts"), "difference"] == pytest.approx(0, abs=0.005)
    everything, bands = table.loc[samplers.EVERY].iloc[0], [g for g in grid.groups if g.startswith("cost")]
    assert everything["n_placements"] == 64 == sum(len(grid.groups[band]) for band in bands)
    assert table.loc[(samplers.PRESETS, "local"), "n_placements"] == 3


def test_the_paragraph_follows_the_numbers(grid_folders):
    def said(effect):
        (grid,) = samplers.grids(grid_folders(effect=effect), ENDPOINTS)
        return samplers_report.paragraph(samplers.final_quality(grid, 0.95))

    assert "**is seen here**" in said(EFFECT)[-1] and "targeted better" in said(EFFECT)[-1]
    assert "**is not seen here**: targeted" in said({"local": 0.0, "targeted": 0.2})[-1]
    assert "**stays open here**: targeted" in said({"local": 0.0, "targeted": 0.0})[-1]
    assert len(said({"local": 0.0, "counts": 0.1})) == 1  # the claim is about targeted and hybrid


def test_one_seed_decides_nothing(grid_folders):
    (grid,) = samplers.grids(grid_folders(seeds=(1,)), ENDPOINTS)
    table = samplers.final_quality(grid, 0.95)
    assert set(table["verdict"]) == {"", "undecided"} and table["seeds_lo"].isna().all()


def test_presets_are_compared_on_fresh_items_where_these_were_scored(grid_folders):
    """Planted: targeted is 0.1 better on its presets in the tables, and 0.05 worse on items that none of the tables holds."""
    folders = grid_folders(seeds=(1, 2))
    for folder in folders:
        name, seed = folder.name.split("-s")
        scores, options = load_scores(folder), yaml.safe_load((folders[-1] / "config.yaml").read_text())
        rng = np.random.default_rng(int(seed))
        fresh = [
            {"scale": scores.scale, "run": folder.name, "seed": int(seed), "step": scores.steps[-1], "tokens": scores.tokens[-1],
             "placement": placement, "item": f"fresh-{i}", "task": "sum", "num_tokens": 10,
             "logp": 10 * (-1 - 0.05 * (name == "targeted") + 0.001 * rng.normal())}
            for placement in options["distill"]["presets"] for i in range(6)
        ]  # fmt: skip
        part = folder / "fresh" / f"step-{scores.steps[-1]:06d}" / "part-0.parquet"
        if name != "counts":  # was not judged there, which hides nothing of the others
            part.parent.mkdir(parents=True)
            pd.DataFrame(fresh).to_parquet(part)
    (grid,) = samplers.grids(folders, ENDPOINTS)
    table = samplers.final_quality(grid, 0.95)
    rows = table[table["group"] == samplers.FRESH].set_index("strategy")
    assert list(rows.index) == ["local", "targeted"] and set(rows["n_items"]) == {6} and set(rows["n_placements"]) == {3}
    assert rows.loc["targeted", "difference"] == pytest.approx(-0.05, abs=2e-3) and rows.loc["targeted", "verdict"] == "worse"
    assert (
        "items that chose none of them" in " ".join(samplers_report.paragraph(table))
        and "targeted worse" in samplers_report.paragraph(table)[-1]
    )
    (folders[0] / "fresh" / part.parent.name / "part-0.parquet").unlink()  # one seed of the reference is missing
    (grid,) = samplers.grids(folders, ENDPOINTS)
    assert samplers.FRESH not in set(samplers.final_quality(grid, 0.95)["group"])


def test_only_runs_that_differ_in_the_sampler_are_compared(grid_folders):
    folders = grid_folders()
    other = grid_folders(effect={"hybrid": 0.0}, lr=1.0)
    (grid,) = samplers.grids([*folders, *other], ENDPOINTS)
    assert "hybrid" not in grid.strategies
    (grid,) = samplers.grids(folders[1:], ENDPOINTS)  # local lacks seed 1
    assert grid.seeds == [2, 3]
    assert samplers.grids(folders[:3], ENDPOINTS) == []
    with pytest.raises(ValueError, match="share no seed"):
        samplers.grids([folders[0], folders[4]], ENDPOINTS)


def test_an_option_that_is_younger_than_a_run_forbids_nothing(grid_folders):
    folders = grid_folders(seeds=(1,))
    path = folders[1] / "config.yaml"
    options = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(options | {"data": {"column": "prompt"}, "kernels": "auto"}))
    (grid,) = samplers.grids(folders, ENDPOINTS)
    assert grid.strategies == ["local", "counts", "targeted"]
    options["model"]["window"] = 8
    path.write_text(yaml.safe_dump(options))
    (grid,) = samplers.grids(folders, ENDPOINTS)
    assert grid.strategies == ["local", "targeted"]


def test_command(grid_folders, tmp_path, monkeypatch, capsys):
    folders = grid_folders(seeds=(1, 2), effect={"local": 0.0, "hybrid": 0.0})
    monkeypatch.chdir(tmp_path)
    endpoints = quick(tmp_path / "endpoints.yaml")
    assert strategies.main(["--endpoints", endpoints]) == 0
    out = tmp_path / "results" / "comparison" / "strategies" / "simulated"
    text = (out / "strategies.md").read_text()
    assert "Over uniformly drawn placements (64)" in text and "figures/strategies.png" in text and "stays open here" in text
    for name in ("strategies", "strategies_stability"):
        assert (out / "figures" / f"{name}.pdf").exists() and (out / "figures" / f"{name}.png").exists()
    stability = pd.read_csv(out / "tables" / "stability.csv")
    assert set(stability["strategy"]) == {"local", "hybrid"} and stability["n_seeds"].eq(2).all()
    capsys.readouterr()
    (folders[0] / "config.yaml").write_text("distill: {")
    assert strategies.main([str(folders[0]), "--endpoints", endpoints]) == 1
    error = capsys.readouterr().err
    assert "config.yaml is not a run's configuration" in error and error.count("\n") == 1


def test_the_report_never_mixes_samplers(grid_folders, tmp_path, monkeypatch):
    compared = {}
    monkeypatch.setattr(report, "report", lambda *_: {})
    monkeypatch.setattr(report, "verdict", lambda *_: [])
    monkeypatch.setattr(report, "report_comparison", lambda runs, *rest: compared.update({rest[-1]: [run.name for run in runs]}))
    folders = grid_folders(seeds=(1, 2))
    assert report.main([*map(str, folders[:5]), "--out", str(tmp_path / "out")]) == 0
    assert compared == {tmp_path / "out/local": ["local-s1", "local-s2"], tmp_path / "out/counts": ["counts-s1", "counts-s2"]}


def test_families(tmp_path):
    def of(**options):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"distill": {"sampler": "local"}} | options))
        return family(tmp_path)

    assert family(tmp_path) == ""
    assert (of(), of(stage="sft"), of(supernet="x")) == ("local", "local-sft", "supernet")
