"""Order at a margin: the fast sums against slow loops, known curves, the estimate without noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.statistics import margins
from analysis.statistics.linear import linear

DELTAS = np.array([0.0, 0.05, 0.1, 0.5])


def slow(selects, ordered, deltas):
    V, S, P = ordered.shape
    sums = np.zeros((P, len(deltas), S + 1))
    for v in range(V):
        for i in range(P):
            for j in range(P):
                gap = selects[v, i] - selects[v, j]
                for d, delta in enumerate(deltas):
                    if abs(gap) > delta + margins.TIE:
                        for s in range(S):
                            difference = ordered[v, s, i] - ordered[v, s, j]
                            sums[i, d, s] += np.sign(gap) * (np.sign(difference) if abs(difference) > margins.TIE else 0)
                        sums[i, d, S] += 1
    return sums


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.booleans())
def test_sums_equal_slow_loops(seed, placements, ties):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0, 0.1, (2, placements)), rng.normal(0, 0.1, (2, 3, placements))
    if ties:
        x, y = x.round(1), y.round(1)
    for deltas in (DELTAS, margins.DELTAS):
        assert (margins.row_sums(x, y, deltas) == slow(x, y, deltas)).all()


@pytest.mark.parametrize("unit", [1e2, 1e20, 1e99, 1e300])
def test_scores_in_any_unit_are_counted(unit):
    """Beyond 1e17 nats an index of 0.001-nat cells was more than an integer holds: memory of others was read."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 1, (2, 8)) * unit, rng.normal(0, 1, (2, 3, 8)) * unit
    assert (margins.row_sums(x, y) == slow(x, y, margins.DELTAS)).all()
    x[0, 3] = np.nan
    assert np.isfinite(margins.row_sums(x, y)).all()


def test_order_by_hand():
    last = np.array([0.0, 0.1, 0.3])
    early = np.array([0.1, 0.0, 0.3])  # the near pair the other way round
    curve, pairs, _ = margins.order_curve(np.stack([early, last]), np.array([0.0, 0.15, 0.25]))
    assert curve == pytest.approx([1 / 3, 1, 1]) and list(pairs) == [3, 2, 1]
    a = margins.margin_agreement(last[None], np.stack([early, last])[None], np.array([0.0, 0.15]))
    assert a == pytest.approx(np.array([[2 / 3, 1], [1, 1]])) and margins.order_of_halves(a)[0] == pytest.approx([1 / 3, 1])


def test_resolution_is_read_off_a_monotone_curve():
    deltas, pairs = np.array([0.0, 0.1, 0.2, 0.3]), np.array([6, 4, 2, 1])
    assert margins.resolution(np.array([0.5, 0.9, 0.96, 1.0]), pairs, 0.95, deltas) == 0.2
    assert margins.resolution(np.array([1.0, 1.0, 1.0, 1.0]), pairs, 0.95, deltas) == 0
    assert margins.resolution(np.array([0.5, 0.97, 0.9, 1.0]), pairs, 0.95, deltas) == 0.3  # 0.97 and 0.9 are pooled
    assert margins.resolution(np.array([-1.0, -1.0, -1.0, -1.0]), pairs, 0.95, deltas) == np.inf
    assert margins.resolution(np.full(4, np.nan), np.zeros(4), 0.95, deltas) == np.inf


def test_noise_free_has_the_covariance_asked_for_and_keeps_the_order_where_it_is_that_already():
    means = np.random.default_rng(0).normal(size=(2, 50))
    signal = np.array([[0.5, 0.4], [0.4, 0.6]])
    moved = margins.noise_free(means, signal)
    assert np.cov(moved) == pytest.approx(signal)
    same = margins.noise_free(means, np.cov(means))
    assert same == pytest.approx(means - means.mean(axis=1, keepdims=True))


def noisy(rho, placements, items, noise, seed):
    rng = np.random.default_rng(seed)
    last, other = 0.1 * rng.normal(size=(2, placements))
    true = np.stack([rho * last + np.sqrt(1 - rho**2) * other, last])
    shared, fresh = noise * rng.normal(size=(placements, items)), noise * rng.normal(size=(2, placements, items))
    return true, true[:, :, None] + shared + fresh + rng.normal(size=items)


def test_order_without_noise_is_nearly_unbiased_where_halves_are_not():
    found, halves = [], []
    for seed in range(30):
        true, quality = noisy(0.98, 150, 48, 0.15, seed)
        result = linear(quality, ["t"] * 48, 8, np.random.default_rng(0))
        truth = margins.order_curve(true)[0][0]
        curve = margins.order_curve(margins.noise_free(result.means, result.signal[0]))[0][0]
        first, second = quality[:, :, ::2].mean(axis=2)[None], quality[:, :, 1::2].mean(axis=2)[None]
        plain = margins.order_of_halves(margins.margin_agreement(*margins.views(first, second)))[0, 0]
        found.append(curve - truth)
        halves.append(plain - truth)
    assert abs(np.mean(found)) < 0.02 < 0.06 < np.mean(halves)


def test_linear_equals_the_mean_over_all_halves():
    # two tasks of two items: the disjoint pairs can be counted by hand
    quality = np.random.default_rng(1).normal(size=(2, 12, 4))
    tasks = ["a", "a", "a", "a"]
    centred = quality - quality.mean(axis=1, keepdims=True)

    def disjoint(s, t):
        return sum((centred[s, :, i] * centred[t, :, j]).sum() for i in range(4) for j in range(4) if i != j) / 12 / 11

    result = linear(quality, tasks, 4, np.random.default_rng(0))
    assert result.signal[0] == pytest.approx(np.array([[disjoint(0, 0), disjoint(0, 1)], [disjoint(0, 1), disjoint(1, 1)]]))


def test_linear_covers():
    inside = []
    for seed in range(120):
        _, quality = noisy(0.9, 60, 32, 0.15, seed)
        result = linear(quality, ["a", "b"] * 16, 16, np.random.default_rng(seed))
        half = 2.1 * np.sqrt(result.covariance[0, 0])
        inside.append(abs(result.rho[0] - 0.9) < half)
    assert np.mean(inside) > 0.88 and result.rho[-1] == 1
