import numpy as np
import pandas as pd
import pytest

from analysis import search
from analysis.cost import placement_costs
from analysis.optimise import searches
from analysis.optimise.searches import SEARCHES
from analysis.surrogate.design import CLUSTERS, design
from analysis.table import SCHEMA, write_part
from analysis.validation.known_truth import best_within, experiment, truth_experiment
from supernet.placement import exhaustive


def landscape(layers, rng, roughness=0.03):
    """All placements and a quality that falls with cheaper mixers, has interactions of range 3 and a part that no expansion explains."""
    placements = [str(p) for p in exhaustive(layers)]
    widths = [max(layers - c[-1], 0) * 3 ** len(c) for c in CLUSTERS]
    sd = np.concatenate([np.full(w, np.sqrt(v / max(w, 1))) for v, w in zip([0.15, 0.1, 0.03, 0.02], widths, strict=True)])
    slope = 0.3 * placement_costs(placements)
    return placements, slope + design(placements, "FSKG", layers)[:, 1:] @ (sd * rng.normal(size=len(sd))) + roughness * rng.normal(
        size=len(placements)
    )


@pytest.mark.parametrize("method", SEARCHES)
def test_every_search_uses_exactly_its_evaluations_and_finds_something(method):
    placements, quality = landscape(5, np.random.default_rng(0))
    index, asked = {p: i for i, p in enumerate(placements)}, []

    def score(placement):
        asked.append(placement)
        return quality[index[placement]]

    found = searches.search(score, method, 100, 5, "FSKG", np.random.default_rng(1))
    assert len(asked) == len(set(asked)) == 100
    assert {"FFFFF", "GGGGG"} <= set(found)
    beyond = set(found) - set(asked)
    assert not beyond or method == "random + surrogate"
    assert all(found[p] == quality[index[p]] for p in asked if p in found)


def test_best_within_equals_brute_force():
    rng = np.random.default_rng(0)
    cost, value = rng.integers(5, 30, size=50) / 10, rng.integers(0, 8, size=50).astype(float)
    budgets = np.arange(round(cost.min() * 100), 320) / 100
    for budget, chosen in zip(budgets, best_within(cost, value, budgets), strict=True):
        fits = cost <= budget + 1e-9
        assert fits[chosen] and value[chosen] == value[fits].max()
        assert cost[chosen] == cost[fits & (value == value[chosen])].min()


def test_regret_is_never_negative_and_the_optimiser_wins_where_there_is_structure():
    placements, quality = landscape(5, np.random.default_rng(2))
    budgets, regret = experiment(placements, quality, [128], 4)
    assert (regret >= 0).all() and budgets[[0, -1]] == pytest.approx([0.7, 5])
    mean = dict(zip(SEARCHES, regret[0].mean(axis=(1, 2)), strict=True))
    assert mean["optimiser"] < 0.02
    assert mean["optimiser"] < 0.2 * mean["random"]
    assert mean["greedy"] < mean["random"] and mean["genetic"] < mean["random"]


def test_nothing_beats_random_search_without_structure():
    rng = np.random.default_rng(0)
    placements = [str(p) for p in exhaustive(4)]
    _, regret = experiment(placements, rng.normal(size=256), [64], 6)
    mean = dict(zip(SEARCHES, regret[0].mean(axis=(1, 2)), strict=True))
    assert mean["optimiser"] > 0.3 * mean["random"] > 0.01


def test_intervals_and_columns():
    placements, quality = landscape(4, np.random.default_rng(0))
    summary, by_budget = truth_experiment(placements, np.array([quality, quality[::-1]]), [40], 3)
    assert len(summary) == 2 * len(SEARCHES) and len(by_budget) == 25 * len(summary)
    assert ((summary["regret_lo"] <= summary["regret"]) & (summary["regret"] <= summary["regret_hi"])).all()
    assert summary["found"].between(0, 1).all()
    assert (summary.groupby("checkpoint")["spread"].nunique() == 1).all()


@pytest.mark.parametrize(
    ("count", "evaluations", "repetitions", "line"),
    [(255, [40], 3, "255 of 256 placements"), (256, [200], 3, "200 evaluations of 256"), (256, [40], 1, "1 repetition")],
)
def test_bad_input_is_named(count, evaluations, repetitions, line):
    placements, quality = landscape(4, np.random.default_rng(0))
    with pytest.raises(ValueError, match=line):
        truth_experiment(placements[:count], quality[None, :count], evaluations, repetitions)


def test_command_writes_tables_and_a_figure(tmp_path, capsys):
    placements, quality = landscape(4, np.random.default_rng(0))
    frame = pd.MultiIndex.from_product([[0, 10], placements, ["a", "b"]], names=["step", "placement", "item"]).to_frame(index=False)
    level = frame["placement"].map(dict(zip(placements, quality - quality.max() - 1, strict=True)))
    frame = frame.assign(scale="tiny", run="r", seed=0, tokens=frame["step"] * 100, task="t", logp=level * 3, num_tokens=3)
    write_part(frame[list(SCHEMA)], tmp_path / "scores" / "step-000000" / "part.parquet")
    search.main([str(tmp_path), "--evaluations", "40", "--repetitions", "2"])
    table = pd.read_csv(tmp_path / "tables" / "search.csv")
    assert set(table["step"]) == {0, 10} and set(table["method"]) == set(SEARCHES)
    assert (tmp_path / "figures" / "search.png").stat().st_size > 10_000
    assert "optimiser" in capsys.readouterr().out
    assert search.main([str(tmp_path), "--evaluations", "200"]) == 1
    assert "error: 200 evaluations" in capsys.readouterr().err
