"""Verdicts by hand, band edges, bands for all steps at once, reruns, the published statistics."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.bands import Band, inside
from analysis.output.words import _band_sentence
from analysis.stability import Endpoints, stability_table, time_to_stability
from analysis.stability.published import published
from analysis.stability.reruns import rerun_agreement
from analysis.stability.settling import overall
from analysis.validation.worlds import World, simulate

ONE = Endpoints(bands=(0.0, 1.0), resamples=50, groups=16)


def table(order, half=0.01, share=None, share_half=0.02, placements=50, items=40, steps=None):
    order = np.array(order, dtype=float)
    share = np.zeros(len(order)) if share is None else np.array(share, dtype=float)
    step = np.arange(len(order)) * 100 if steps is None else steps
    return pd.DataFrame({
        "run": "r", "band_lo": 0.0, "band_hi": 1.0, "step": step, "tokens": np.array(step) * 10,
        "n_placements": placements, "n_items": items,
        "order": order, "order_lo": order - half, "order_hi": order + half,
        "order_band_lo": order - 2 * half, "order_band_hi": order + 2 * half,
        "regret_share": share, "regret_share_lo": share - share_half, "regret_share_hi": share + share_half,
        "regret_share_band_lo": share - 2 * share_half, "regret_share_band_hi": share + 2 * share_half,
    })  # fmt: skip


def words(*args, endpoints=None, reruns=None, **kwargs):
    times = time_to_stability(table(*args, **kwargs), endpoints or Endpoints(), reruns)
    assert list(times["endpoint"]) == ["resolution", "regret"]
    return times.iloc[0], times.iloc[1]


def test_settled_from_the_first_that_lasts():
    order, regret = words([0.5, 0.97, 0.9, 0.98, 0.99, 1], share=[0.5, 0.5, 0.09, 0.03, 0, 0])
    assert (order["verdict"], order["tokens"], order["tokens_hi"], order["reached"]) == ("settled", 3000, 4000 - 1000, True)
    assert (regret["verdict"], regret["tokens"]) == ("settled", 3000)


def test_the_other_verdicts():
    assert words([0.99, 0.99, 1])[0]["verdict"] == "settled before training"
    assert words([0.99, 0.99, 1], steps=[5, 10, 15])[0]["verdict"] == "settled"
    assert words([0.5, 0.8, 1])[0]["verdict"] == "not settled"
    assert words([0.5, 0.95, 1])[0]["verdict"] == "undecided"
    assert words([0.5, 0.99, 1], share=[1, 0.3, 0])[1]["verdict"] == "not settled"
    assert words([0.5, 0.99, 1], placements=29)[0]["verdict"] == "not enough data"
    assert words([0.5, 0.99, 1], items=23)[1]["verdict"] == "not enough data"
    assert words([np.nan, np.nan, np.nan])[0]["verdict"] == "no data"
    assert overall(pd.Series(["settled", "not settled"])) == "not settled"
    assert overall(pd.Series(["settled before training", "settled"])) == "settled"


def test_neighbours_are_a_reference_and_not_judged():
    near = [0, 100, 200, 390, 395, 400]
    order, _ = words([0.5, 0.99, 0.99, 0.9, 0.9, 1], steps=near)
    assert order["verdict"] == "settled" and order["tokens"] == 1000
    order, _ = words([0.5, 0.9, 0.9, 0.9, 0.9, 1], steps=near)
    assert (order["verdict"], order["reference"]) == ("as settled as a rerun", "neighbours")
    order, _ = words([0.5, 0.8, 0.8, 0.9, 0.9, 1], steps=near)
    assert order["verdict"] == "not settled"


def test_as_settled_as_a_rerun():
    reruns = table([0.85]).assign(other="s")
    assert words([0.5, 0.86, 1], reruns=reruns)[0][["verdict", "reference"]].tolist() == ["as settled as a rerun", "seeds"]
    assert words([0.5, 0.7, 1], reruns=reruns)[0]["verdict"] == "not settled"
    assert words([0.5, 0.92, 1], reruns=table([0.97]))[0]["verdict"] == "not settled"  # a rerun does better than this


def test_an_upper_edge_belongs_to_the_next_band():
    cost = np.array([1.0, 2.0, 3.0])
    assert inside(cost, 1, 2, 3).tolist() == [True, False, False] and inside(cost, 2, 3, 3).tolist() == [False, True, True]
    scores, _ = simulate(World("w", placements=64, layers=3, items=8), np.random.default_rng(0))
    edge = float(np.median(scores.cost))
    assert (scores.cost == edge).any()
    sizes = stability_table(scores, replace(ONE, bands=(0.0, edge / 3, 1.0), min_placements=8)).drop_duplicates("band_lo", keep="first")
    counts = sizes.set_index("band_hi")["n_placements"]
    assert counts[round(edge, 9)] == (scores.cost < edge - 1e-9).sum() and counts[3.0] >= (scores.cost >= edge - 1e-9).sum()


def test_the_band_for_all_steps_is_wider_than_one_interval():
    scores, _ = simulate(World("w", placements=60, items=32, noise=1.0, shared=1.0), np.random.default_rng(2))
    rows = stability_table(scores, replace(ONE, resamples=2000)).iloc[: len(scores.steps) - 1]
    for name in ("ratio", "order", "regret_share"):
        known = rows.dropna(subset=[name])
        assert len(known) >= 2
        wide = known[f"{name}_band_hi"] - known[f"{name}_band_lo"], known[f"{name}_hi"] - known[f"{name}_lo"]
        assert (wide[0] > 1.05 * wide[1]).all(), name


def test_intervals_never_have_width_zero_short_of_the_end():
    scores, _ = simulate(World("w", placements=40, items=24, noise=0.02, shared=0.02), np.random.default_rng(0))
    still = replace(scores, quality=np.repeat(scores.quality[-1:], len(scores.steps), axis=0))
    rows = stability_table(still, ONE).iloc[: len(scores.steps) - 1]
    assert (rows["order_hi"] - rows["order_lo"] > 0).all() and (rows["regret_share_hi"] - rows["regret_share_lo"] > 0).all()
    assert set(time_to_stability(stability_table(still, ONE), ONE)["verdict"]) == {"settled before training"}


def test_a_band_that_is_the_whole_range_is_not_judged_by_its_end():
    """Its rows are there twice, and T, which agrees with itself, was taken for a step before T: always settled."""
    half = table([0.5, 0.8, 1])
    times = time_to_stability(pd.concat([half, half]), Endpoints())
    assert list(times["verdict"]) == ["not settled", "settled before training"]


def test_placements_closer_than_the_margin_are_undecided():
    """Nothing is known of the order beyond a margin that no two placements exceed: neither settled nor unsettled, though there are data."""
    scores, _ = simulate(World("w", placements=40, items=24, noise=0.1, shared=0.1), np.random.default_rng(0))
    still = replace(scores, quality=0.001 * np.repeat(scores.quality[-1:], len(scores.steps), axis=0))
    rows = stability_table(still, ONE)
    times = time_to_stability(rows, ONE).set_index("endpoint")["verdict"]
    assert times["resolution"] == "undecided" and overall(times) == "undecided"
    said = _band_sentence(Band(0.0, 1.0, False), time_to_stability(rows, ONE), rows.drop_duplicates("step"), ONE)
    assert "no two placements differ by more than 0.02" in said and "would decide" not in said


def test_reruns_and_published():
    world = World("w", layers=3, placements=64, items=24, noise=0.2, shared=0.2)
    a, b = (replace(simulate(world, np.random.default_rng(s))[0], run=f"r{s}") for s in range(2))
    same = rerun_agreement([a, replace(a, run="again")], ONE)
    assert set(same["run"]) == {"r0", "again"} and same["order"].to_numpy() == pytest.approx(np.ones(len(same)))
    assert rerun_agreement([a, b], ONE)["order"].abs().max() < 0.6
    quoted = published(a)
    assert (
        quoted["spearman"].iloc[-1] == pytest.approx(1)
        and quoted["spearman_start"].nunique() == 1
        and quoted["w_with_last"].iloc[-1] == pytest.approx(1)
    )
