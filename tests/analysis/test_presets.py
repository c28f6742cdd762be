import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import presets
from analysis.input.runs import load
from analysis.optimise import Constraints, best_at, frontier, meets, over_training
from analysis.optimise.choice import choose, default_budgets, surrogate, winners
from analysis.optimise.choice import presets as named_presets
from analysis.optimise.fresh_items import load_fresh
from analysis.optimise.next_round import next_placements
from analysis.optimise.over_training import drift, expansions, lost
from analysis.optimise.proposals import with_proposed
from analysis.output import presets_report
from analysis.output.presets_report import write_presets
from analysis.surrogate import fit
from analysis.table import SCHEMA, Scores, load_scores, write_part
from supernet.placement import COST, Placement, exhaustive


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


def test_choice_weighs_prediction_and_measurement():
    everything = [str(p) for p in exhaustive(4)]
    value = np.array([Placement(p).cost() for p in everything])
    lucky = everything.index("FGFG")
    value[lucky] += 9  # nothing that an expansion could know, but measured without noise
    sure = choose(fit(everything, value, 1e-6), [3.0])
    assert sure["placement"][0] == "FGFG" and sure["predicted"][0] == pytest.approx(value[lucky], abs=0.01)
    doubtful = choose(fit(everything, value, np.where(np.arange(256) == lucky, 1e6, 1e-6)), [3.0])
    assert doubtful["placement"][0] != "FGFG"
    assert choose(fit(everything, value, 1e-6), [3.0], constraints=Constraints(fixed={0: "S"}))["placement"][0][0] == "S"


def test_nothing_wins_by_optimism_alone():
    """All-FA is the best by a little; a surrogate of few noisy placements believes in better ones, and the choice does not follow it."""
    everything = [str(p) for p in exhaustive(5)]
    truth = np.array([-0.05 * sum(c != "F" for c in p) for p in everything])
    followed = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        chosen = np.unique([0, *rng.choice(1024, 60, replace=False)])  # 0 is FFFFF
        quality = truth[chosen, None] + 0.25 * rng.normal(size=(len(chosen), 16))
        names = [everything[i] for i in chosen]
        expansion = fit(names, quality.mean(axis=1), 0.0, items=quality)
        table = choose(expansion, [5.0])
        optimist = names[int(np.argmax(quality.mean(axis=1)))]
        followed.append((table["placement"][0] == "FFFFF", optimist == "FFFFF"))
        assert table["placement"][0] == "FFFFF" or table["difference"][0] > 2 * table["error"][0]
        assert (table["placement"][0] == "FFFFF") == (table["difference"][0] == table["error"][0] == 0)
    careful, bold = np.mean(followed, axis=0)
    assert careful >= 0.9 and bold <= 0.6


def test_choice_under_constraints_takes_measured_ones_that_meet_them():
    everything = [str(p) for p in exhaustive(4)]
    value = np.array([Placement(p).cost() for p in everything])
    value[everything.index("FGFG")] += 9
    value[everything.index("SGSG")] += 5
    expansion = fit(everything, value, 1e-6)
    assert choose(expansion, [3.0], constraints=Constraints(forbidden="F"))["placement"][0] == "SGSG"
    assert choose(expansion, [3.0], constraints=Constraints(at_least={"F": 2}, no_singletons=True))["placement"][0] == "FGFG"


def test_final_presets_are_nearly_the_true_best(some):
    scores, effect = some
    everything = [str(p) for p in exhaustive(5)]
    _, full = world(everything, 4, np.random.default_rng(0))
    # effects of all placements from those of the scored ones: they are additive
    truth = fit(scores.placements, effect[-1], 0.0, clusters=((0,),)).landscape
    cost = np.array([Placement(p).cost() for p in everything])
    table = choose(surrogate(scores), [1.0, 2.0, 3.0, 4.0])
    assert (table["cost"] <= table["budget"] + 1e-9).all()
    for row in table.itertuples():
        best = truth.value(everything)[cost <= row.budget].max()
        assert best - truth.value([row.placement])[0] < 0.1


def test_drift_shrinks_towards_the_end(some):
    scores, _ = some
    table = drift(scores, scores, expansions(scores, scores), [1.0, 2.0, 3.0, 4.0, 5.0])
    by_step = table.groupby("step")[["hamming", "lost"]].mean()
    assert by_step.loc[30, "hamming"] == 0 and by_step.loc[30, "lost"] == 0
    assert by_step.loc[0, "hamming"] > by_step.loc[20, "hamming"]
    assert by_step.loc[0, "lost"] > max(by_step.loc[20, "lost"], 0.2)
    assert ((table["lost_lo"] <= table["lost"]) & (table["lost"] <= table["lost_hi"])).all()


def test_loss_of_measured_placements_is_paired_by_item(some):
    scores, effect = some
    expansion = surrogate(scores)
    a, b = scores.placements[:2]
    value, error, measured = lost(scores, expansion, a, b)
    assert measured and abs(value - (effect[-1][0] - effect[-1][1])) < 4 * error
    assert error == pytest.approx(0.3 * np.sqrt(2 / 40), rel=0.4)  # items differ by sd 1, which pairing removes
    unscored = next(str(p) for p in exhaustive(5) if str(p) not in scores.placements)
    assert not lost(scores, expansion, a, unscored)[2]


def test_next_placements_leave_the_test_set_alone(some):
    scores, _ = some
    unscored = [str(p) for p in exhaustive(5) if str(p) not in scores.placements][::3]
    test = [*scores.placements[2::5], *unscored]
    rows, gain, judged = next_placements(scores, 30, np.random.default_rng(0), test)
    assert len(rows) == 30 and not set(rows["placement"]) & {*test, *scores.placements}
    learned = surrogate(scores.part(placements=~np.isin(scores.placements, test)))
    optima = dict.fromkeys(best_at(frontier(learned), default_budgets(5)))
    new = [p for p in optima if p not in {*test, *scores.placements}]
    assert new and list(rows["placement"][: len(new)]) == new  # the most overrated come first: their scores tell most
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
    expansion, chosen = surrogate(scores), winners(tmp_path, scores, scores)
    named = choose(expansion, default_budgets(5))["placement"]
    assert "FFFFF" in chosen and set(named) <= set(chosen)
    best = scores.quality[-1].mean(axis=1)
    assert set(chosen) - set(named) - {"FFFFF"} <= {  # and beside them the measured best of each budget
        scores.placements[int(np.argmax(np.where(scores.cost <= budget + 1e-9, best, -np.inf)))] for budget in default_budgets(5)
    }
    chosen = list(dict.fromkeys([*named, "FFFFF"]))
    *judged, left_out = chosen if chosen[-1] != "FFFFF" else [*chosen[1:], chosen[0]]
    own = {p: 0.1 * i for i, p in enumerate(judged)}
    save_fresh(scores, tmp_path, own, ["i0", "i1", *(f"new{i}" for i in range(12))])
    named = named_presets(scores, expansion, default_budgets(5), fresh=load_fresh(tmp_path, scores))
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
    assert presets_report.held_out(tmp_path) == []
    (tmp_path / "active.json").write_text(json.dumps({"test": scores.placements[::4], "rounds": []}))
    last = replace(scores, steps=scores.steps[-1:], tokens=scores.tokens[-1:], quality=scores.quality[-1:])
    table = over_training.surrogate_quality(last, np.random.default_rng(0), presets_report.held_out(tmp_path))
    n = len(scores.placements[::4])
    assert set(table["judged_on"]) == {f"{n} held out, {len(scores.placements) - n} scored"}
    assert table.groupby("model")["n"].max().eq(n).all()
    (tmp_path / "active.json").write_text("{")
    with pytest.raises(ValueError, match="active.json is not a record"):
        presets_report.held_out(tmp_path)


def save(scores, folder):
    names = ["step", "placement", "item"]
    frame = pd.MultiIndex.from_product([scores.steps, scores.placements, scores.items], names=names).to_frame(index=False)
    frame = frame.assign(scale="tiny", run="r", seed=0, tokens=frame["step"] * 100, task="t", num_tokens=3)
    frame["logp"] = 3 * scores.quality.ravel() - 30
    write_part(frame[list(SCHEMA)], folder / "scores" / "step-all" / "part.parquet")


def test_everything_is_written(some, tmp_path):
    save(some[0], tmp_path)
    write_presets(*load(tmp_path))
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
    assert named_presets(scores, surrogate(scores), [2.0]) == named_presets(scores, surrogate(scores), [2.0])
    tables = [over_training.layer_stability(scores, expansions(scores, scores), [2.0], np.random.default_rng(3), draws=3) for _ in range(2)]
    assert tables[0].equals(tables[1])


def test_test_set_where_placements_abound():
    everything = [str(p) for p in exhaustive(5)]
    scores, _ = world(everything, 1, np.random.default_rng(0), items=10)
    table = over_training.surrogate_quality(scores, np.random.default_rng(0))
    assert set(table["judged_on"]) == {"768 held out, 256 scored"}
    whole = table.groupby("model")["r2"].first()
    assert whole["additive"] > 0.9 and whole["cluster expansion"] > 0.9


presets_of_draws = over_training.layer_stability


def save_proposed(scores, folder, quality, step=30, items=None):
    """Proposals at one step: a quality [P, I] per placement (rows of a DataFrame)."""
    items = items or scores.items
    frame = pd.MultiIndex.from_product([quality.index, items], names=["placement", "item"]).to_frame(index=False)
    frame = frame.assign(scale="tiny", run="r", seed=0, step=step, tokens=step * 100, task="t", num_tokens=3)
    frame["logp"] = 3 * quality.to_numpy()[:, : len(items)].ravel()
    write_part(frame[list(SCHEMA)], folder / "proposed" / f"step-{step:06d}" / "part-a.parquet")
    table = pd.DataFrame({"placement": quality.index, "source": "frontier", "cost": [Placement(p).cost() for p in quality.index]})
    table.to_parquet(folder / "proposed" / "placements.parquet")


def test_proposals_teach_the_last_surrogate_and_nothing_else(some, tmp_path):
    scores, _ = some
    save(scores, tmp_path)
    scores = load_scores(tmp_path)
    assert with_proposed(tmp_path, scores).placements == scores.placements
    new = sorted(p for p in map(str, exhaustive(5)) if p not in scores.placements)[:3]
    quality = pd.DataFrame(np.random.default_rng(1).normal(-20, 1, size=(4, len(scores.items))), [*new, scores.placements[5]])
    save_proposed(scores, tmp_path, quality)
    assert load_scores(tmp_path).placements == scores.placements  # what every other statistic reads
    last = with_proposed(tmp_path, scores)
    assert last.steps.tolist() == [30] and last.placements == [*scores.placements, *new]
    assert np.allclose(last.quality[0, -3:], quality.loc[new].to_numpy()) and np.array_equal(last.quality[0, :-3], scores.quality[-1])
    fitted = expansions(scores, last)
    assert [s for s, _ in fitted] == [0, 1, 2, 3, 3]
    assert [len(e.placements) for _, e in fitted] == [len(scores.placements)] * 4 + [len(last.placements)]
    table = drift(scores, last, fitted, [3.0])
    assert table["learned"].nunique() == 2 and list(table["step"]) == [0, 10, 20, 30, 30]
    assert table["hamming"][3] == table["lost"][3] == 0 and list(table["placement"][4:]) == list(choose(fitted[-1][1], [3.0])["placement"])
    assert set(over_training.coefficients_over_training(scores, fitted)["step"]) == {0, 10, 20, 30}
    source = presets_report.provenance(*load(tmp_path), last, COST)
    assert source["proposed"] == 3 and source["placements"] == len(scores.placements) and source["proposed_sha256"]

    save_proposed(scores, tmp_path, quality, items=scores.items[:-2])
    with pytest.raises(ValueError, match="proposed lacks 2 items of the tables, the first is .*placements=proposed again"):
        with_proposed(tmp_path, scores)
    save_proposed(scores, tmp_path, quality)
    pd.read_parquet(tmp_path / "proposed" / "placements.parquet").iloc[1:].to_parquet(tmp_path / "proposed" / "placements.parquet")
    with pytest.raises(ValueError, match=f"lacks the scored placement {new[0]}"):
        with_proposed(tmp_path, scores)
    save_proposed(scores, tmp_path, quality, step=20)  # of a checkpoint that is no longer the last
    (tmp_path / "proposed" / "step-000030" / "part-a.parquet").unlink()
    assert with_proposed(tmp_path, scores).placements == scores.placements


def test_a_question_is_answered_and_nothing_written(some, tmp_path, capsys):
    save(some[0], tmp_path)
    before = sorted(tmp_path.rglob("*"))
    asked = [str(tmp_path), "--budget", "2.5", "3.5", "--at-least", "F=1", "K=2", "--fix", "0=S", "--no-singletons", "--forbid", "G"]
    assert presets.main(asked) == 1  # one F layer is a singleton, and two F, two K and S in the first leave it alone
    assert "no placement of 5 layers meets" in capsys.readouterr().err
    asked[asked.index("--no-singletons")] = "--no-isolated"
    assert presets.main(asked) == 1
    capsys.readouterr()
    asked.remove("--no-isolated")
    assert presets.main(asked) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["budget", "placement", "cost", "predicted", "lo", "hi", "scored"] and len(said) == 3
    constraints = Constraints(at_least={"F": 1, "K": 2}, fixed={0: "S"}, forbidden="G")
    for line, budget in zip(said[1:], (2.5, 3.5), strict=True):
        cells = line.split()
        assert float(cells[0]) == budget and float(cells[2]) <= budget and meets(cells[1], constraints)
        assert float(cells[4]) < float(cells[3]) < float(cells[5])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["--at-least", "F"], "--at-least is 'F': give MIXER=N, as in F=4"),
        (["--fix", "F=0"], "--fix is 'F=0': give LAYER=MIXER"),
        (["--fix", "0=F", "0=S"], "--fix says 0=F and 0=S"),
        (["--fix", "7=F"], "constraint on layer 7: layers run from 0 to 4"),
        (["--forbid", "X"], "constraint on unknown mixer X: choose from F, S, K, G"),
        (["--forbid", "FSKG"], "no mixer is left for layer 0"),
        (["--at-least", "F=6"], "at least 6 layers of F is infeasible: the model has 5 layers"),
        (["--budget", "1", "--at-least", "F=4"], "budget 1 is infeasible: the cheapest placement costs 4.14"),
    ],
)
def test_a_question_that_has_no_answer_ends_in_one_line(some, tmp_path, capsys, typed, line):
    save(some[0], tmp_path)
    assert presets.main([str(tmp_path), *typed]) == 1
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_found_compares_presets_with_the_random_best_on_fresh_items(some, tmp_path, monkeypatch):
    scores, _ = some
    monkeypatch.setattr(presets_report, "layer_stability", lambda *given, **costs: presets_of_draws(*given, draws=2, **costs))
    save(replace(scores, steps=scores.steps[-1:], tokens=scores.tokens[-1:], quality=scores.quality[-1:]), tmp_path)
    scores = load_scores(tmp_path)
    write_presets(*load(tmp_path))
    assert not (tmp_path / "tables" / "found.csv").exists()
    rng, chosen = np.random.default_rng(2), winners(tmp_path, scores, scores)
    own = dict(zip(chosen, rng.normal(size=len(chosen)), strict=True))
    save_fresh(scores, tmp_path, own, ["i0", *(f"new{i}" for i in range(12))])
    named = write_presets(*load(tmp_path))["presets"]
    table = pd.read_csv(tmp_path / "tables" / "found.csv")
    assert list(table["budget"]) == default_budgets(5) and (table["items"] == 12).all()
    assert list(table["preset"]) == [entry["placement"] for entry in named.values()]
    mean = scores.quality[-1].mean(axis=1)
    for row in table.itertuples():
        best = np.argmax(np.where(scores.cost <= row.budget + 1e-9, mean, -np.inf))
        assert row.random == scores.placements[best] and row.random_cost <= row.budget
        assert row.preset_ahead == pytest.approx(own[row.preset] - own["FFFFF"], abs=0.02)
        assert row.random_ahead == pytest.approx(own[row.random] - own["FFFFF"], abs=0.02)
        assert row.difference == pytest.approx(row.preset_ahead - row.random_ahead, abs=1e-4)
        assert row.difference_lo <= row.difference <= row.difference_hi and row.difference_hi - row.difference_lo < 0.05
    assert (tmp_path / "figures" / "found.png").stat().st_size > 10_000

    pd.DataFrame({"placement": scores.placements, "source": "preset", "cost": scores.cost}).to_parquet(tmp_path / "placements.parquet")
    write_presets(*load(tmp_path))  # nothing of it was drawn at random
    assert not (tmp_path / "tables" / "found.csv").exists() and not (tmp_path / "figures" / "found.png").exists()


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
    monkeypatch.setattr(presets_report, "draw_figures", lambda *_: None)
    assert presets.main([]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("error:") == 1 and "bad" in captured.err
    assert (tmp_path / "results" / "tiny" / "good" / "presets.yaml").exists()
    assert "loglik-2.7" in captured.out and "placements=winners" in captured.out
