import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import presets
from analysis.fresh import load_fresh
from analysis.optimise import Constraints
from analysis.presets import Estimates, choose, default_budgets, drift, expansions, lost, next_placements, quality_and_noise, write_presets
from analysis.surrogate import fit
from analysis.table import SCHEMA, Scores, load_scores, write_part
from supernet.placement import Placement, exhaustive


def world(placements, steps, rng, items=40, noise=0.3):
    """Scores whose layer effects drift from one set at step 0 to another at T; items differ and add noise."""
    layers = len(placements[0])
    early, late = rng.normal(size=(2, layers, 4)) * 0.4
    codes = np.array([["FSKG".index(c) for c in p] for p in placements])
    share = np.linspace(0, 1, steps)
    effect = np.array([((1 - s) * early + s * late)[np.arange(layers), codes].sum(1) for s in share])  # [S, P]
    quality = -4 + effect[..., None] + rng.normal(size=items) + noise * rng.normal(size=(steps, len(placements), items))
    return Scores(
        "tiny", "r", 0, np.arange(steps) * 10, np.arange(steps) * 1000, placements,
        np.array([Placement(p).cost() for p in placements]), [f"i{i}" for i in range(items)], ["t"] * items, quality,
    ), effect  # fmt: skip


@pytest.fixture(scope="module")
def some():
    rng = np.random.default_rng(0)
    everything = [str(p) for p in exhaustive(5)]
    chosen = sorted({"FFFFF", "GGGGG", *[everything[i] for i in rng.choice(1024, 150, replace=False)]})
    return world(chosen, 4, rng)


def test_default_budgets_are_the_published_ones():
    assert default_budgets(48) == [10, 13, 18, 26, 36, 48]
    assert default_budgets(5) == [1.0, 1.4, 1.9, 2.7, 3.8, 5.0]
    assert default_budgets(5, cheapest=5 * 0.48) == [2.7, 3.8, 5.0]


def test_noise_ignores_what_items_add_to_all(some):
    scores, _ = some
    _, noise = quality_and_noise(scores, 0)
    assert np.allclose(noise.mean(), 0.3**2 / 40, rtol=0.1)


def test_choice_weighs_prediction_and_measurement():
    everything = [str(p) for p in exhaustive(4)]
    value = np.array([Placement(p).cost() for p in everything])
    lucky = everything.index("FGFG")
    value[lucky] += 9  # nothing that an expansion could know, but measured without noise
    sure = choose(Estimates.of(fit(everything, value, 1e-6)), [3.0])
    assert sure["placement"][0] == "FGFG" and sure["predicted"][0] == pytest.approx(value[lucky], abs=0.01)
    doubtful = choose(Estimates.of(fit(everything, value, np.where(np.arange(256) == lucky, 1e6, 1e-6))), [3.0])
    assert doubtful["placement"][0] != "FGFG"
    assert choose(Estimates.of(fit(everything, value, 1e-6)), [3.0], constraints=Constraints(fixed={0: "S"}))["placement"][0][0] == "S"


def test_final_presets_are_nearly_the_true_best(some):
    scores, effect = some
    everything = [str(p) for p in exhaustive(5)]
    _, full = world(everything, 4, np.random.default_rng(0))
    # effects of all placements from those of the scored ones: they are additive
    truth = fit(scores.placements, effect[-1], 0.0, clusters=((0,),)).landscape
    cost = np.array([Placement(p).cost() for p in everything])
    table = choose(Estimates.of(expansions(scores)[-1]), [1.0, 2.0, 3.0, 4.0])
    assert (table["cost"] <= table["budget"] + 1e-9).all()
    for row in table.itertuples():
        best = truth.value(everything)[cost <= row.budget].max()
        assert best - truth.value([row.placement])[0] < 0.1


def test_drift_shrinks_towards_the_end(some):
    scores, _ = some
    table = drift(scores, expansions(scores), [1.0, 2.0, 3.0, 4.0, 5.0])
    by_step = table.groupby("step")[["hamming", "lost"]].mean()
    assert by_step.loc[30, "hamming"] == 0 and by_step.loc[30, "lost"] == 0
    assert by_step.loc[0, "hamming"] > by_step.loc[20, "hamming"]
    assert by_step.loc[0, "lost"] > max(by_step.loc[20, "lost"], 0.2)
    assert ((table["lost_lo"] <= table["lost"]) & (table["lost"] <= table["lost_hi"])).all()


def test_loss_of_measured_placements_is_paired_by_item(some):
    scores, effect = some
    estimates = Estimates.of(expansions(scores)[-1])
    a, b = scores.placements[:2]
    value, error, measured = lost(scores, estimates, a, b)
    assert measured and abs(value - (effect[-1][0] - effect[-1][1])) < 4 * error
    assert error == pytest.approx(0.3 * np.sqrt(2 / 40), rel=0.4)  # items differ by sd 1, which pairing removes
    unscored = next(str(p) for p in exhaustive(5) if str(p) not in scores.placements)
    assert not lost(scores, estimates, a, unscored)[2]


def test_next_placements_leave_the_test_set_alone(some):
    scores, _ = some
    unscored = [str(p) for p in exhaustive(5) if str(p) not in scores.placements][::3]
    test = [*scores.placements[2::5], *unscored]
    rows, gain, judged = next_placements(scores, 30, np.random.default_rng(0), test)
    assert len(rows) == 30 and not set(rows["placement"]) & {*test, *scores.placements}
    assert gain.uncertainty > 0 and gain.stop == (gain.gain <= gain.uncertainty)
    assert judged["r2"] > 0.9 and judged["tau"] > 0.7
    spoilt = scores.quality.copy()
    spoilt[:, np.isin(scores.placements, test)] = np.random.default_rng(1).normal(-3, 2, size=spoilt[:, 2::5].shape)
    again, same_gain, worse = next_placements(replace(scores, quality=spoilt), 30, np.random.default_rng(0), test)
    assert again.equals(rows) and same_gain == gain and worse["r2"] < 0.3
    assert next_placements(scores, 3, np.random.default_rng(0), [])[2] == {"r2": None, "tau": None}


def save_fresh(scores, folder, own, items):
    """Fresh scores of the last step: a quality per placement, what an item adds to all of them, and a little noise."""
    rng, placements = np.random.default_rng(5), list(own)
    quality = np.array(list(own.values()))[:, None] + rng.normal(size=len(items)) + 0.01 * rng.normal(size=(len(own), len(items)))
    frame = pd.MultiIndex.from_product([placements, items], names=["placement", "item"]).to_frame(index=False)
    frame = frame.assign(scale="tiny", run="r", seed=0, step=scores.steps[-1], tokens=9, task="t", num_tokens=3)
    frame["logp"] = 3 * quality.ravel() - 60
    write_part(frame[list(SCHEMA)], folder / "fresh" / f"step-{scores.steps[-1]:06d}" / "part-a.parquet")


def test_winners_are_reported_from_fresh_items(some, tmp_path):
    scores, _ = some
    expansion, chosen = expansions(scores)[-1], presets.winners(scores)
    assert "FFFFF" in chosen and set(choose(Estimates.of(expansion), default_budgets(5))["placement"]) <= set(chosen)
    *judged, left_out = chosen if chosen[-1] != "FFFFF" else [*chosen[1:], chosen[0]]
    own = {p: 0.1 * i for i, p in enumerate(judged)}
    save_fresh(scores, tmp_path, own, ["i0", "i1", *(f"new{i}" for i in range(12))])
    named = presets.presets(scores, expansion, default_budgets(5), fresh=load_fresh(tmp_path, scores))
    told = {entry["placement"]: entry for entry in named.values()}
    assert len(told) >= 3
    for placement in set(told) - {left_out}:
        measured, kept = told[placement]["measured"], told[placement]["retention"]
        assert measured["fresh_items"] and measured["items"] == 12  # i0 and i1 helped to choose
        assert measured["difference"]["value"] == pytest.approx(own[placement] - own["FFFFF"], abs=0.02)
        assert measured["difference"]["hi"] - measured["difference"]["lo"] < 0.05  # items differ by sd 1, which pairing removes
        assert measured["hi"] - measured["lo"] > 0.3
        assert kept["value"] == pytest.approx(np.exp(own[placement] - own["FFFFF"]), rel=0.02)
    assert not (told[left_out]["measured"] or {"fresh_items": False})["fresh_items"]


def test_fresh_scores_that_cannot_be_used(some, tmp_path):
    scores, _ = some
    save(scores, tmp_path)
    assert load_fresh(tmp_path, scores).empty
    save_fresh(scores, tmp_path, {"FFFFF": 1, "GGGGG": 0}, ["new0", "new1"])
    part = tmp_path / "fresh" / "step-000030" / "part-a.parquet"
    assert load_fresh(tmp_path, scores).shape == (2, 2)
    whole = pd.read_parquet(part)
    part.with_name("part-b.parquet").write_bytes(part.read_bytes())
    with pytest.raises(ValueError, match="scores placement FFFFF twice on item new0"):
        load_fresh(tmp_path, scores)
    part.with_name("part-b.parquet").unlink()
    whole.iloc[:3].to_parquet(part)
    with pytest.raises(ValueError, match="lacks finite scores of GGGGG"):
        load_fresh(tmp_path, scores)
    whole.assign(run="other").to_parquet(part)
    with pytest.raises(ValueError, match="holds scores of run other"):
        load_fresh(tmp_path, scores)
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ValueError, match="part-a.parquet cannot be read"):
        load_fresh(tmp_path, scores)


def test_surrogate_is_judged_on_the_test_set_of_active_learning(some, tmp_path):
    scores, _ = some
    assert presets.held_out(tmp_path) == []
    (tmp_path / "active.json").write_text(json.dumps({"test": scores.placements[::4], "rounds": []}))
    last = replace(scores, steps=scores.steps[-1:], tokens=scores.tokens[-1:], quality=scores.quality[-1:])
    table = presets.surrogate_quality(last, np.random.default_rng(0), presets.held_out(tmp_path))
    n = len(scores.placements[::4])
    assert set(table["judged_on"]) == {f"{n} held out, {len(scores.placements) - n} scored"}
    assert table.groupby("model")["n"].max().eq(n).all()
    (tmp_path / "active.json").write_text("{")
    with pytest.raises(ValueError, match="active.json is not a record"):
        presets.held_out(tmp_path)


def save(scores, folder):
    names = ["step", "placement", "item"]
    frame = pd.MultiIndex.from_product([scores.steps, scores.placements, scores.items], names=names).to_frame(index=False)
    frame = frame.assign(scale="tiny", run="r", seed=0, tokens=frame["step"] * 100, task="t", num_tokens=3)
    frame["logp"] = 3 * scores.quality.ravel() - 30
    write_part(frame[list(SCHEMA)], folder / "scores" / "step-all" / "part.parquet")


def test_everything_is_written(some, tmp_path):
    save(some[0], tmp_path)
    write_presets(tmp_path)
    document = yaml.safe_load((tmp_path / "presets.yaml").read_text())
    named = document["presets"]
    assert list(named) == ["loglik-1", "loglik-1.4", "loglik-1.9", "loglik-2.7", "loglik-3.8", "loglik-5"]
    for entry in named.values():
        assert Placement(entry["placement"], layers=5).cost() == entry["cost"] <= entry["budget"]
        assert sum(entry["layers"].values()) == 5
        assert entry["predicted"]["lo"] < entry["predicted"]["quality"] < entry["predicted"]["hi"]
        assert entry["retention"]["lo"] <= entry["retention"]["value"] <= entry["retention"]["hi"]
        measured = entry["measured"]
        assert measured is None or (measured["items"] == 40 and measured["fresh_items"] is False)
        assert (measured is not None) == (entry["placement"] in some[0].placements)
    file = tmp_path / "scores" / "step-all" / "part.parquet"
    assert document["provenance"]["scores_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert document["provenance"]["step"] == 30
    tables = {name: pd.read_csv(tmp_path / "tables" / f"{name}.csv") for name in ("preset_drift", "preset_layers", "surrogate")}
    assert set(tables["surrogate"]["judged_on"]) == {"nested 5-fold"}
    assert np.allclose(tables["preset_layers"][list("FSKG")].sum(axis=1), 1, atol=1e-4)
    coefficients = pd.read_csv(tmp_path / "tables" / "surrogate_coefficients.csv")
    points = coefficients[coefficients["cluster"] == "points"].set_index("step")["cosine"]
    assert points[30] == pytest.approx(1) and points[0] < points[20] < 1
    for name in ("presets", "preset_drift", "surrogate_coefficients"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 10_000


def test_presets_are_reproducible(some):
    scores, _ = some
    assert presets.presets(scores, expansions(scores)[-1], [2.0]) == presets.presets(scores, expansions(scores)[-1], [2.0])
    tables = [presets.layer_stability(scores, expansions(scores), [2.0], np.random.default_rng(3), draws=3) for _ in range(2)]
    assert tables[0].equals(tables[1])


def test_test_set_where_placements_abound():
    everything = [str(p) for p in exhaustive(5)]
    scores, _ = world(everything, 1, np.random.default_rng(0), items=10)
    table = presets.surrogate_quality(scores, np.random.default_rng(0))
    assert set(table["judged_on"]) == {"768 held out, 256 scored"}
    whole = table.groupby("model")["r2"].first()
    assert whole["additive"] > 0.9 and whole["cluster expansion"] > 0.9


def test_command_ends_in_one_line(some, tmp_path, capsys):
    assert presets.main([str(tmp_path / "nothing")]) == 1
    assert "no run at" in capsys.readouterr().err
    save(some[0], tmp_path)
    assert presets.main([str(tmp_path), "--budgets", "0.1"]) == 1
    said = capsys.readouterr().err
    assert "budget 0.1 is infeasible: the cheapest placement costs 0.7" in said and said.count("\n") == 1
    assert load_scores(tmp_path).run == "r"


def test_command_takes_every_run_and_goes_on_after_one_that_fails(some, tmp_path, capsys, monkeypatch):
    save(some[0], tmp_path / "results" / "tiny" / "good")
    save(some[0], tmp_path / "results" / "tiny" / "bad")
    (tmp_path / "results" / "tiny" / "bad" / "scores" / "step-all" / "part.parquet").write_bytes(b"no")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "draw_figures", lambda *_: None)
    assert presets.main([]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("error:") == 1 and "bad" in captured.err
    assert (tmp_path / "results" / "tiny" / "good" / "presets.yaml").exists()
    assert "loglik-2.7" in captured.out and "placements=winners" in captured.out
