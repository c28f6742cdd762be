"""Replicates: which runs are reruns of each other, what another seed and another teacher reach, and what of it varies."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import report
from analysis.input.runs import Recipe, recipe
from analysis.stability import Endpoints
from analysis.stability.reruns import rerun_agreement
from analysis.stability.seeds import seeds_table

RUNS = {"a1": (1, 0, 1e-3), "a2": (2, 0, 1e-3), "b1": (1, 1, 1e-3), "other": (3, 0, 5e-3)}  # seed, teacher, rate
"""The teacher makes the landscape: a1 and a2 differ by noise alone."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, simulate, write_run):
    results, written = tmp_path_factory.mktemp("replicates") / "results", {}
    for name, (seed, teacher, rate) in RUNS.items():
        base = simulate(np.random.default_rng(teacher), layers=3, n_placements=64, steps=(0, 50, 90, 100), scale="small")
        noise = np.random.default_rng([seed, teacher]).normal(0, 0.02, (4, 64, 1))
        written[name] = write_run(replace(base, run=name, seed=seed, quality=base.quality + noise), results)
        options = {"seed": seed, "model": {"layers": 3}, "teacher": {"seed": teacher}, "data": {"seed": teacher, "items": 24},
                   "distill": {"sampler": "local", "lr": rate}, "stage": "distill", "sft": {"lr": rate * seed}}  # fmt: skip
        (written[name] / "config.yaml").write_text(yaml.safe_dump(options))
    return written


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    path = tmp_path_factory.mktemp("conf") / "quick.yaml"
    path.write_text("bands: [0.14, 0.6, 1.0]\nresamples: 20\nhalves: 2\ngroups: 4\nmin_placements: 20\n")
    return str(path)


def test_a_recipe_is_what_seeds_and_teachers_share(folders, tmp_path):
    a1, a2, b1, other = (recipe(folders[name]) for name in RUNS)
    assert a1 == a2 and a1.same == b1.same != other.same and a1.teacher == other.teacher != b1.teacher
    assert recipe(tmp_path) == Recipe("", "")


def test_a_teacher_is_known_by_its_weights_where_a_manifest_tells_them(folders, tmp_path):
    """An option that a later version adds makes no other teacher of it; the same options on another CPU do."""
    found = []
    for name, sha256, options in (("old", "aa", {}), ("new", "aa", {"depth_scaled": False}), ("elsewhere", "bb", {})):
        run = tmp_path / name
        shutil.copytree(folders["a1"], run)
        its = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(its | {"teacher": its["teacher"] | options}))
        (run / "manifest.json").write_text(json.dumps({"teacher": {"sha256": sha256}}))
        found.append(recipe(run))
    old, new, elsewhere = found
    assert old == new and new.same == elsewhere.same and new.teacher != elsewhere.teacher


def test_only_a_rerun_excuses_what_is_not_settled(folders, quick, tmp_path):
    """Another recipe or another teacher ranks otherwise: that is no training noise, and no reason to call a run as settled as a rerun."""
    out = tmp_path / "out"
    assert report.main([*map(str, folders.values()), "--endpoints", quick, "--out", str(out)]) == 0
    pairs = pd.read_csv(out / "local/tables/reruns.csv").groupby(["run", "other", "varies"])
    assert set(pairs.groups) == {("a1", "a2", "seed"), ("a2", "a1", "seed"), ("a1", "b1", "teacher"), ("b1", "a1", "teacher"),
                                 ("a2", "b1", "teacher"), ("b1", "a2", "teacher")}  # fmt: skip
    linear = pairs["linear"].mean()
    assert linear["a1", "a2", "seed"] > 0.9 > 0.6 > linear["a1", "b1", "teacher"]
    times = pd.read_csv(out / "local/tables/time_to_stability.csv")
    assert not set(times.loc[times["run"].isin(["b1", "other"]), "reference"].dropna()) & {"seeds"}
    seeds = pd.read_csv(out / "local/tables/seeds.csv")
    assert list(seeds.groupby("runs", sort=False)["varies"].first().items()) == [
        ("a1, a2", "seeds, items jointly"), ("a1, a2, b1", "teachers and seeds, items of each teacher's own")]  # fmt: skip
    text = (out / "local/report.md").read_text()
    assert "## What another seed or teacher reaches" in text and "](figures/references_small.png)" in text
    assert (out / "local/figures/references_small.png").stat().st_size > 10_000


def test_runs_that_were_found_are_compared_with_replicates_alone(folders, quick, monkeypatch):
    compared = {}
    monkeypatch.setattr(report, "report", lambda *_: {})
    monkeypatch.setattr(report, "verdict", lambda *_: [])
    monkeypatch.setattr(report, "report_comparison", lambda runs, *rest: compared.update({rest[-1].name: [run.name for run in runs]}))
    monkeypatch.chdir(folders["a1"].parents[2])
    assert report.main(["--endpoints", quick]) == 0
    assert list(compared.values()) == [["a1", "a2", "b1"]] and next(iter(compared)).startswith("small-local-")


def test_a_mean_over_teachers_has_as_many_values_as_teachers(simulate):
    """Two runs of a teacher whose ranking drifts little, two of one whose ranking drifts much: two values, not four."""
    kept = {"layers": 3, "n_placements": 64, "steps": (0, 100)}
    runs = [simulate(np.random.default_rng(n // 2), run=f"r{n}", seed=n, drift=0.1 + 2 * (n // 2), **kept) for n in range(4)]
    endpoints = Endpoints(bands=(0.14, 1.0), resamples=20, halves=2, groups=4, min_placements=20)
    alone, grouped = (seeds_table(runs, endpoints, teachers).iloc[0] for teachers in (None, ["a", "a", "b", "b"]))
    assert alone["linear"] == pytest.approx(grouped["linear"]) and alone["n_seeds"] == grouped["n_seeds"] == 4
    assert grouped["linear_hi"] - grouped["linear_lo"] > 3 * (alone["linear_hi"] - alone["linear_lo"]) > 0
    assert rerun_agreement(runs[:1], endpoints).empty
