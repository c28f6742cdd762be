import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import validate
from analysis.stability import COLUMNS, Endpoints, load_endpoints, seeds_table, stability_table, time_to_stability
from analysis.statistics import ranks
from analysis.validation import coverage
from analysis.validation.worlds import WORLDS, World, simulate

CONF = Path(__file__).parents[3] / "conf" / "stability.yaml"
QUICK = Endpoints(bands=(0.14, 0.31, 0.48, 0.65, 1.0), resamples=60, groups=16)
CONTRACT = [
    "run", "step", "tokens", "band_lo", "band_hi", "n_placements", "n_items", "tau", "tau_lo", "tau_hi", "tau_cross", "ceiling", "ratio",
    "ratio_lo", "ratio_hi", "regret", "regret_lo", "regret_hi", "decision_accuracy", "topk_overlap",
]  # fmt: skip


@pytest.fixture(scope="module")
def run():
    return simulate(World("w", placements=160, items=40, cost_slope=1.0), np.random.default_rng(0))[0]


@pytest.fixture(scope="module")
def table(run):
    return stability_table(run, QUICK)


def test_the_declared_endpoints_are_the_defaults():
    assert load_endpoints(CONF) == Endpoints()


@pytest.mark.parametrize(
    ("text", "message"),
    [("treshold: 0.9", "treshold"), ("threshold: high", "threshold"), ("level: 1.5", "between 0 and 1"),
     ("bands: [0.5, 0.2]", "increasing"),
     ("bands: [0, .nan, 1]", "bands must be finite"), ("delta_settled: .nan", "delta_settled must be finite, got nan"),
     ("decisive_z: .inf", "decisive_z must be finite"),
     ("top_k: 0", "at least 1"), ("bands: 3", "bands"), ("a: [", "not a YAML"), ("- 1", "the keys are")],
)  # fmt: skip
def test_bad_endpoints_end_in_one_line(tmp_path, text, message):
    path = tmp_path / "endpoints.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_endpoints(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no endpoints at"):
        load_endpoints(tmp_path / "absent.yaml")


def test_the_table_is_the_contract(run, table):
    assert list(table.columns[: len(CONTRACT)]) == CONTRACT and tuple(table.columns) == COLUMNS
    S = len(run.steps)
    assert len(table) == S * len(QUICK.bands) and not table.duplicated(["step", "band_lo", "band_hi"]).any()
    bands = table.iloc[:-S]
    assert bands[bands["step"] == 0]["n_placements"].sum() == len(run.placements) == table["n_placements"].iloc[-1]
    assert table["band_lo"].min() == pytest.approx(0.14 * 48) and table["band_hi"].max() == 48
    pd.testing.assert_frame_equal(stability_table(run, QUICK), table)


def test_point_statistics_are_those_of_the_band(run, table):
    row = table.iloc[7]  # second band, step 2
    member = (run.cost >= row.band_lo) & (run.cost < row.band_hi)
    means = run.quality.mean(axis=2)[:, member]
    assert row.n_placements == member.sum() and row.tau == pytest.approx(ranks.kendall_tau_b(means[2], means[-1]))
    assert row.decision_accuracy == pytest.approx((1 + row.tau) / 2)
    assert row.topk_overlap == ranks.topk_overlap(means[2], means[-1], 10) and row.topk_chance == 10 / member.sum()


def test_intervals_are_ordered_and_the_last_step_is_certain(run, table):
    for name in ("tau", "ratio", "regret", "resolution", "order", "linear", "regret_share"):
        table = table.dropna(subset=[name])
        assert (table[f"{name}_lo"] <= table[name] + 1e-12).all() and (table[name] <= table[f"{name}_hi"] + 1e-12).all()
    assert (table["ratio_band_lo"] <= table["ratio_lo"]).all() and (table["ratio_hi"] <= table["ratio_band_hi"]).all()
    last = table[table["step"] == run.steps[-1]]
    for name in ("tau", "tau_lo", "ratio", "ratio_lo", "decision_accuracy", "topk_overlap", "rbo"):
        assert last[name].to_numpy() == pytest.approx(np.ones(len(last)))
    assert (last[["regret", "regret_lo", "regret_hi"]] == 0).all(axis=None)
    assert (table["regret_random"] > 0).all()


def test_cost_inflates_the_whole_range_but_not_the_bands():
    world = World("w", placements=160, items=40, noise=1.0, shared=1.0)
    flat, steep = (stability_table(simulate(replace(world, cost_slope=s), np.random.default_rng(1))[0], QUICK) for s in (0.0, 4.0))
    S = len(world.correlation)
    assert steep["ratio"].iloc[:-S].to_numpy() == pytest.approx(flat["ratio"].iloc[:-S].to_numpy(), abs=1e-6)
    assert steep["ratio"].iloc[-S] > flat["ratio"].iloc[-S] + 0.5
    raw = stability_table(simulate(replace(world, cost_slope=4.0), np.random.default_rng(1))[0], replace(QUICK, equal_cost=False))
    assert raw["ratio"].iloc[0] > flat["ratio"].iloc[0] + 0.2


def test_regret_is_free_of_the_winners_curse():
    # all placements are equal: whatever is chosen, nothing is lost, although the best by its own items looks better
    found, naive = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scores, _ = simulate(World("w", placements=40, items=40), rng)
        scores = replace(scores, quality=rng.normal(size=scores.quality.shape))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # noise hides the ranking, as it should
            found.append(stability_table(scores, replace(QUICK, bands=(0.0, 1.0), groups=4, halves=1))["regret"].iloc[0])
        means = scores.quality.mean(axis=2)
        naive.append(means[-1].max() - means[-1, means[0].argmax()])
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(30) < np.mean(naive)


def test_thin_bands_warn_and_stay_empty(run):
    few = np.flatnonzero(run.cost > 0.65 * 48)[5:]
    keep = np.setdiff1d(np.arange(len(run.cost)), few)
    thin = replace(run, placements=[run.placements[i] for i in keep], cost=run.cost[keep], quality=run.quality[:, keep])
    with pytest.warns(UserWarning, match="holds 5 placements, 30 are needed"):
        table = stability_table(thin, QUICK)
    rows = table[(table["band_hi"] == 48) & (table["band_lo"] > 30)]
    assert (rows["n_placements"] == 5).all() and rows[["tau", "ratio", "ratio_lo", "regret"]].isna().all(axis=None)
    times = time_to_stability(table, QUICK)
    thin = times[times["band_lo"] == rows["band_lo"].iloc[0]]
    assert list(thin["verdict"]) == ["not enough data"] * 2 and not thin["reached"].any() and thin["tokens_hi"].isna().all()


def test_few_items_warn(run):
    one = replace(run, items=run.items[:1], tasks=run.tasks[:1], quality=run.quality[:, :, :1])
    with pytest.warns(UserWarning, match="1 items, 4 are needed"):
        table = stability_table(one, QUICK)
    assert table["tau"].notna().all() and table[["tau_lo", "ceiling", "ratio", "regret"]].isna().all(axis=None)
    assert set(time_to_stability(table, QUICK)["verdict"]) == {"not enough data"}


def test_hopeless_noise_warns_and_is_wide(run):
    noise = replace(run, quality=np.random.default_rng(0).normal(size=run.quality.shape))
    with pytest.warns(UserWarning, match="item noise hides the ranking"):
        table = stability_table(noise, replace(QUICK, bands=(0.14, 1.0)))
    hidden = table[table["ratio"].isna()]
    assert len(hidden) and (hidden["ratio_lo"] == -1).all() and (hidden["ratio_hi"] == 1).all()


def test_large_sets_are_thinned_for_the_intervals_only(run):
    table = stability_table(run, replace(QUICK, max_placements=50))
    assert table["n_placements"].iloc[-1] == 160 and table["ratio_lo"].notna().all()
    full = stability_table(run, QUICK)
    assert (table["tau"] == full["tau"]).all() and table["ratio"].iloc[-2] != full["ratio"].iloc[-2]


def test_exhaustive_scores_have_narrower_intervals():
    sampled, every = (simulate(replace(WORLDS["all"], layers=layers), np.random.default_rng(0))[0] for layers in (48, 3))
    one_band = replace(QUICK, bands=(0.0, 1.0))
    sampled, every = (stability_table(s, one_band).iloc[1] for s in (sampled, every))
    assert every.sampled == 1 and sampled.sampled < 1e-9
    assert every.ratio_hi - every.ratio_lo < 0.8 * (sampled.ratio_hi - sampled.ratio_lo)


def test_seeds_side_by_side():
    world = replace(WORLDS["all"], noise=0.5, shared=0.5)
    runs = [simulate(world, np.random.default_rng(s))[0] for s in range(3)]
    one = replace(QUICK, bands=(0.0, 1.0))
    unrelated = seeds_table(runs, one)
    assert unrelated["kendall_w"].mean() == pytest.approx(1 / 3, abs=0.15) and (unrelated["w_chance"] == 1 / 3).all()
    same = seeds_table([runs[0], replace(runs[0], run="again")], one)
    assert same["kendall_w"].to_numpy() == pytest.approx(np.ones(len(same))) and (same["n_seeds"] == 2).all()
    before = same[same["step"] < runs[0].steps[-1]]
    assert (
        before["shared"].to_numpy() == pytest.approx(1) and (before["ratio_hi"] > before["ratio"] + 0.01).all()
    )  # their items are one sample
    assert (unrelated["shared"] < 0.7).all() and unrelated["varies"].eq("seeds, items jointly").all()
    with pytest.raises(ValueError, match="different steps"):
        seeds_table([runs[0], replace(runs[1], steps=runs[1].steps + 1)], one)
    with pytest.raises(ValueError, match="share 0 placements"):
        seeds_table([runs[0], replace(runs[1], placements=[p + "F" for p in runs[1].placements])], one)


def test_validation_writes_resumes_and_refuses(tmp_path, monkeypatch, capsys):
    worlds = {"planted": replace(WORLDS["planted"], placements=12, items=8), "all": WORLDS["all"]}
    monkeypatch.setattr(validate, "WORLDS", worlds)
    monkeypatch.setattr(validate, "slopes", lambda n: pd.DataFrame({"ratio": [1.0]}))
    monkeypatch.setattr(validate, "LANDSCAPES", {name: validate.LANDSCAPES[name] for name in ("drifting", "clustered")})
    monkeypatch.setattr(validate, "PLANTED", {"additive": validate.PLANTED["additive"]})
    monkeypatch.setattr(validate, "ENDPOINTS", Endpoints(resamples=4, groups=4, halves=2))
    monkeypatch.setattr(coverage, "ENDPOINTS", Endpoints(resamples=4, groups=4, halves=2))
    validate.main(2, tmp_path)
    table = pd.read_csv(tmp_path / "intervals.csv")
    assert set(table["world"]) == {"planted", "all"} and (table["n"] == 2).all() and {"seed", "level", "coverage"} <= set(table)
    assert len(pd.read_csv(tmp_path / "verdicts.csv")) == 2 and not list(tmp_path.glob(".*"))
    capsys.readouterr()
    validate.main(2, tmp_path)
    assert capsys.readouterr().out == "" and pd.read_csv(tmp_path / "intervals.csv").equals(table)
    assert validate.run(["repetitions=2", f"out={tmp_path}"]) == validate.run(["--repetitions", "2", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert validate.run(["--repetitions", "0", "--out", str(tmp_path)]) == 1
    assert "error: repetitions is 0: give 2 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        validate.run(["reps=3"])


def _runs(name, repetitions, **changes):
    world = replace(WORLDS[name], **changes)
    runs = coverage.repeat(world, repetitions, replace(coverage.ENDPOINTS, resamples=40))
    return world, runs, coverage.truths(world, runs)


def test_planted_truth_is_covered_without_bias():
    world, runs, truth = _runs("planted", 60, placements=48, items=48)
    frame = coverage.intervals(world, runs, truth)
    assert frame["coverage"].mean() > 0.88 and (frame["bias"].abs() < 0.05).all()


def test_settled_and_random_worlds_are_told_apart():
    _, settled, truth = _runs("settled", 20)
    assert coverage.verdicts(WORLDS["settled"], settled, truth, 0.9)["declared_settled"].item() >= 0.9
    _, random, truth = _runs("random", 20)
    assert coverage.verdicts(WORLDS["random"], random, truth, 0.9)["declared_settled"].item() == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planted", "structured", "all"])
def test_intervals_cover_as_declared(name):
    world, runs, truth = _runs(name, 200)
    frame = coverage.intervals(world, runs, truth)
    assert frame["coverage"].mean() == pytest.approx(0.95, abs=0.03) and (frame["bias"].abs() < 0.03).all()


def test_warnings_are_not_numpys(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        stability_table(run, QUICK)
