from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import uncertainty
from analysis.statistics.ranks import kendall_tau_b
from analysis.validation.worlds import World, simulate

TASKS = ["a"] * 7 + ["b"] * 4 + ["c"]


def test_halves_are_stratified_and_random():
    masks = uncertainty.split_halves(TASKS, 400, np.random.default_rng(0))
    assert set(masks[:, :7].sum(axis=1)) == {3, 4} and set(masks[:, 7:11].sum(axis=1)) == {2} and set(masks.sum(axis=1)) == {6}
    assert masks.mean(axis=0) == pytest.approx(np.full(12, 0.5), abs=0.1)
    assert (uncertainty.split_halves(TASKS, 400, np.random.default_rng(0)) == masks).all()


def test_groups_spread_every_task():
    groups = uncertainty.item_groups(["a"] * 16 + ["b"] * 8, 4, np.random.default_rng(0))
    assert (np.bincount(groups[:16]) == 4).all() and (np.bincount(groups[16:]) == 2).all()
    assert sorted(uncertainty.item_groups(TASKS, 99, np.random.default_rng(0))) == list(range(12))


def test_weights_keep_the_shares_of_tasks():
    masks = np.array([[1] * 12, [1] + [0] * 6 + [1, 1] + [0] * 3, [0] * 12])
    weights = uncertainty.item_weights(masks, TASKS)
    assert weights[0] == pytest.approx(np.full(12, 1 / 12))
    assert weights[1][[0, 7, 8]] == pytest.approx(np.array([7, 2, 2]) / 11)  # task c is absent: its share is passed on
    assert np.isnan(weights[2]).all()


def test_difference_error_is_that_of_paired_items():
    quality = np.random.default_rng(0).normal(size=(4, 30)) + np.random.default_rng(1).normal(size=30)
    error = uncertainty.difference_error(quality)
    assert error[1, 3] == pytest.approx(stats.sem(quality[1] - quality[3])) and np.diag(error) == pytest.approx(np.zeros(4), abs=1e-7)


def test_spearman_brown_gives_the_reliability_of_all_items():
    rng = np.random.default_rng(0)
    quality = rng.normal(size=(20_000, 1)) + 3 * rng.normal(size=(20_000, 16))  # reliability 1 / (1 + 9/16) = 0.64
    first, second = quality[:, :8].mean(axis=1), quality[:, 8:].mean(axis=1)
    r = uncertainty.half_correlation(first[None, None], second[None, None])
    assert uncertainty.spearman_brown(r) == pytest.approx([0.64], abs=0.02) and uncertainty.spearman_brown(np.array([-0.3])) == 0


def test_ceiling_is_the_tau_of_two_noisy_copies():
    rng = np.random.default_rng(0)
    true = rng.normal(size=4000)
    a, b = true + rng.normal(size=4000), true + 0.5 * rng.normal(size=4000)
    assert uncertainty.ceiling_tau(np.array(0.5), np.array(0.8)) == pytest.approx(kendall_tau_b(a, b), abs=0.02)
    assert uncertainty.ceiling_tau(np.array(1.0), np.array(1.0)) == 1


def test_greiner_is_continued_above_one():
    values = uncertainty.tau_of(np.array([-1, 0, np.sin(0.5), 1, 1.1, 0.9]))
    assert values[:4] == pytest.approx([-1, 0, 1 / np.pi, 1]) and values[4] - 1 == pytest.approx(1 - values[5])


def _world(**changes):
    world = World("w", placements=40, items=24, correlation=(0.3, 0.9, 1.0))
    return simulate(replace(world, **changes), np.random.default_rng(0))[0]


def test_agreement_estimates_by_hand():
    scores = _world()
    a = uncertainty.agreement(scores.quality, scores.tasks, np.random.default_rng(5), halves=3, groups=4)
    masks = uncertainty.split_halves(scores.tasks, 3, np.random.default_rng(5))
    both = [[scores.quality[:, :, m].mean(axis=2) for m in (mask, ~mask)] for mask in masks]
    cross = [np.mean([kendall_tau_b(x[t], y[2]) for h in both for x, y in (h, h[::-1])]) for t in range(3)]
    within = [np.mean([kendall_tau_b(h[0][t], h[1][t]) for h in both]) for t in range(3)]
    r = np.sin(np.pi / 2 * np.array(within))
    assert a.tau_cross == pytest.approx(cross) and a.attenuation == pytest.approx(np.sqrt(r * r[-1]))
    assert a.rho[:2] == pytest.approx(np.sin(np.pi / 2 * np.array(cross[:2])) / np.sqrt(r[:2] * r[2])) and a.rho[2] == 1
    assert a.tau == pytest.approx([kendall_tau_b(m, scores.quality[-1].mean(axis=1)) for m in scores.quality.mean(axis=2)])


def test_placement_variance_is_that_of_tau_over_samples():
    found, variance = [], []
    for r in range(300):
        s, _ = simulate(World("w", placements=24, items=4, correlation=(0.6, 1.0), noise=0.0, shared=0.0), np.random.default_rng(r))
        a = uncertainty.agreement(s.quality, s.tasks, np.random.default_rng(0), halves=1, groups=4)
        found.append(a.tau[0])
        variance.append(a.tau_cov[0, 0])
    assert np.mean(variance) == pytest.approx(np.var(found), rel=0.2)


@pytest.mark.parametrize("tied", [False, True])
def test_placement_variance_is_near_the_jackknife(tied):
    scores = _world(noise=0.0, shared=0.0, levels=0.5 if tied else 0.0)
    means = scores.quality[:, :, 0]
    a = uncertainty.agreement(scores.quality, scores.tasks, np.random.default_rng(0), groups=4)
    left_out = np.array([kendall_tau_b(np.delete(means[0], p), np.delete(means[2], p)) for p in range(40)])
    jackknife = 39 / 40 * ((left_out - left_out.mean()) ** 2).sum()
    assert 0.85 * jackknife < a.tau_cov[0, 0] < jackknife  # which is known to be too large
    assert (a.tau_cov[2] == 0).all()


def test_item_variance_is_the_jackknife_when_all_placements_are_scored():
    scores = _world(items=96)
    a = uncertainty.agreement(scores.quality, scores.tasks, np.random.default_rng(7), halves=3, groups=12, fraction=1.0)
    rng = np.random.default_rng(7)
    uncertainty.split_halves(scores.tasks, 3, rng)
    groups = uncertainty.item_groups(scores.tasks, 12, rng)
    means = [scores.quality[:, :, groups != g].mean(axis=2) for g in range(12)]
    left_out = np.array([kendall_tau_b(m[0], m[2]) for m in means])
    assert a.tau_cov[0, 0] == pytest.approx(11 / 12 * ((left_out - a.tau[0]) ** 2).sum(), rel=0.05)


def test_noise_that_placements_share_widens_the_interval():
    def error(**changes):
        return np.median([
            np.sqrt(uncertainty.agreement(s.quality, s.tasks, np.random.default_rng(0)).rho_cov[0, 0])
            for s in (simulate(World("w", placements=48, items=48, **changes), np.random.default_rng(r))[0] for r in range(12))
        ])  # fmt: skip

    assert error(noise=1.0, shared=1.0, structured=3.0) > 1.3 * error(noise=2.0, shared=2.5)  # the same noise in all


def test_equal_cost_removes_the_trend_of_each_item_only():
    scores = _world()
    trend = scores.quality + 5 * scores.cost[:, None] * np.arange(24)
    flat = uncertainty.at_equal_cost(scores.quality, scores.cost)
    assert uncertainty.at_equal_cost(trend, scores.cost) == pytest.approx(flat, abs=1e-9)
    assert np.corrcoef(flat[0, :, 3], scores.cost)[0, 1] == pytest.approx(0, abs=1e-9)
    assert uncertainty.at_equal_cost(scores.quality, np.ones(40)) == pytest.approx(
        scores.quality - scores.quality.mean(axis=1, keepdims=True)
    )


def test_hopeless_noise_gives_no_ratio():
    quality = np.random.default_rng(0).normal(size=(3, 30, 16))
    a = uncertainty.agreement(quality, ["t"] * 16, np.random.default_rng(0))
    assert np.isnan(a.rho).all() and np.isfinite(a.tau).all()


def test_fisher_interval():
    low, high = uncertainty.fisher_interval(np.array([0.5, 1.0]), np.array([0.01, 0.0]), 2.0)
    assert low[0] < 0.5 < high[0] < 1 and 0.5 - low[0] > high[0] - 0.5 and low[1] == high[1] == 1
    low, high = uncertainty.fisher_interval(np.array([1.02]), np.array([0.01]), 2.0, np.array([0.5]))
    assert low[0] < 1 < high[0] < 2


def test_simultaneous_bands_hold_at_all_steps():
    covariance = 0.3 * np.ones((6, 6)) + 0.7 * np.eye(6)
    q = uncertainty.max_t_quantile(np.diag(np.r_[covariance.diagonal(), 0]), 0.95, 20_000, np.random.default_rng(0))
    assert q == pytest.approx(stats.norm.ppf((1 + 0.95 ** (1 / 6)) / 2), abs=0.03)  # independent steps: Šidák
    draws = np.random.default_rng(1).multivariate_normal(np.zeros(6), covariance, size=20_000)
    q = uncertainty.max_t_quantile(covariance, 0.95, 20_000, np.random.default_rng(0))
    assert (np.abs(draws).max(axis=1) <= q).mean() == pytest.approx(0.95, abs=0.006)
