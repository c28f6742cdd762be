import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.stability import pareto


def brute_force(cost, quality):
    """The definition, pair by pair."""

    def dominated(p):
        return any(
            cost[o] <= cost[p] and quality[o] >= quality[p] and (cost[o] < cost[p] or quality[o] > quality[p]) for o in range(len(cost))
        )

    return np.array([not dominated(p) for p in range(len(cost))])


points = st.integers(1, 25).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 6), min_size=n, max_size=n)] * 2))


@given(points)
def test_nondominated_is_the_definition_with_ties(pair):
    cost, quality = (np.array(x, dtype=float) for x in pair)
    np.testing.assert_array_equal(pareto.nondominated(cost, quality), brute_force(cost, quality))


def test_nondominated_takes_many_qualities_at_once():
    rng = np.random.default_rng(0)
    cost, quality = rng.integers(1, 9, size=30) / 4, rng.normal(size=(3, 4, 30)).round(1)
    many = pareto.nondominated(cost, quality)
    for i, j in np.ndindex(3, 4):
        np.testing.assert_array_equal(many[i, j], brute_force(cost, quality[i, j]))


@given(points)
def test_hypervolume_counts_the_dominated_cells(pair):
    """On an integer grid the area is the number of unit cells whose lower right corner some point dominates."""
    cost, quality = (np.array(x, dtype=float) for x in pair)
    cells = itertools.product(range(8), range(-2, 8))
    area = sum(any(cost[p] <= c and quality[p] >= q + 1 for p in range(len(cost))) for c, q in cells)
    assert pareto.hypervolume(cost, quality, (8.0, -2.0)) == pytest.approx(area)


def test_hypervolume_ignores_what_lies_beyond_the_reference():
    cost, quality = np.array([1.0, 2.0, 9.0]), np.array([-3.0, -1.0, 5.0])
    assert pareto.hypervolume(cost, quality, (4.0, -2.0)) == pytest.approx(2.0)  # from cost 2 to 4, one nat


def test_drift_ends_at_the_final_frontier(scores):
    table = pareto.drift(scores, np.random.default_rng(0))
    last = table.iloc[-1]
    assert (
        last["shared"] == 1
        and last["loss"] == 0
        and last["shared_cross"] == pytest.approx(last["shared_ceiling"])
        and last["shared_cross"] < 1
    )
    assert table["shared"].iloc[0] < 1 and table["loss"].iloc[0] > 0.01  # the run drifts
    assert (table["hypervolume"].diff().dropna() > 0).all()  # and improves
    assert (table["shared_cross_lo"] <= table["shared_cross"]).all() and (table["shared_cross"] <= table["shared_cross_hi"]).all()
    assert last["size"] == pareto.frontier(scores).query("step == 1000")["final"].sum()


def test_drift_loss_is_the_area_between_the_frontiers(simulate):
    """Without noise in the items the halves change nothing, and the loss is the difference of the areas at T over the cost range."""
    scores = simulate(np.random.default_rng(3))
    quality = np.repeat(scores.quality.mean(axis=2, keepdims=True), len(scores.items), axis=2)
    flat = type(scores)(**{**vars(scores), "quality": quality})
    table = pareto.drift(flat, np.random.default_rng(0), n_splits=5)
    at_T, early = quality[-1, :, 0], pareto.nondominated(scores.cost, quality[0, :, 0])
    reference = (scores.cost.max(), at_T.min())
    frozen = pareto.hypervolume(scores.cost[early], at_T[early], reference)
    lost = (pareto.hypervolume(scores.cost, at_T, reference) - frozen) / np.ptp(scores.cost)
    assert lost > 0 and table["loss"].iloc[0] == pytest.approx(lost)
    assert table["loss_lo"].iloc[0] == pytest.approx(lost)
    np.testing.assert_allclose(table["shared_cross"], table["shared"])


def test_a_ranking_without_information_is_as_good_as_random_choice(simulate):
    """Shuffled within cost levels at t: the frontier of t is then a random choice, and its loss is that of the baseline."""
    losses, shares, baseline = [], [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores = simulate(rng, n_placements=256)
        quality = scores.quality.copy()
        order = np.argsort(scores.cost, kind="stable")
        for members in np.array_split(order, 10):
            quality[0, members] = quality[-1, rng.permutation(members)]
        table = pareto.drift(type(scores)(**{**vars(scores), "quality": quality}), rng, n_splits=20)
        losses.append(table["loss"].iloc[0] / table["loss_random"].iloc[0])
        shares.append(table["shared"].iloc[0])
        baseline.append(table["shared_random"].iloc[0])
    assert np.mean(losses) == pytest.approx(1, abs=0.15)
    assert np.mean(shares) == pytest.approx(np.mean(baseline), abs=0.05)


def test_drift_is_reproducible(scores):
    a, b = (pareto.drift(scores, np.random.default_rng(7), n_splits=20) for _ in range(2))
    assert a.equals(b)


def test_equal_costs_have_one_best(simulate):
    scores = simulate(np.random.default_rng(0))
    flat = type(scores)(**{**vars(scores), "cost": np.ones(len(scores.placements))})
    table = pareto.drift(flat, np.random.default_rng(0), n_splits=10)
    assert (table["size"] == 1).all() and np.isfinite(table["loss"]).all()
