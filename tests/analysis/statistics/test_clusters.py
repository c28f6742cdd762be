"""Clusters of placements: found where they are, one where one normal cloud suffices."""

import numpy as np
import pytest

from analysis.statistics.clusters import at_equal_cost_within, partitions, without_clusters
from analysis.validation.landscapes import LANDSCAPES


def seen(name, placements, items, seed):
    """Noisy mean qualities of the step before T and of T."""
    rng = np.random.default_rng(seed)
    world = LANDSCAPES[name]
    true = world.true(placements, rng)[-2:]
    error = world.noise * np.sqrt(0.5 / items)
    return true + error * (rng.standard_normal(placements) + rng.standard_normal(true.shape))


@pytest.mark.parametrize("name", ["settled", "at the threshold", "layers", "much noise"])
def test_one_normal_cloud_stays_one(name):
    assert all(partitions(seen(name, 100, 48, seed))[0].max() == 0 for seed in range(8))


def test_two_binary_factors_are_found():
    for seed in range(8):
        means = seen("clustered", 100, 48, seed)
        label = partitions(means)[0]
        assert 3 <= label.max() + 1 <= 4  # the middle two lie closer to each other than noise
        within = without_clusters(means[:, :, None], label)
        assert within.std() < 0.03 < 0.1 < means.std()


def test_what_noise_may_have_blurred_stays_possible():
    """At 0.3 nats of noise the three visible clusters are as likely as one cloud; a cut through a normal cloud is not."""
    blurred = [partitions(seen("clustered, much noise", 100, 48, seed)) for seed in range(8)]
    assert sum(any(label.max() >= 2 for label in found) for found in blurred) >= 7
    normal = [partitions(seen("at the threshold", 300, 96, seed)) for seed in range(8)]
    assert all(len(found) == 1 for found in normal)


def test_what_has_no_spread_is_one_cluster():
    assert partitions(np.zeros((2, 40)))[0].max() == 0 and partitions(np.arange(4.0).reshape(2, 2))[0].max() == 0


def test_cluster_means_are_taken_out_item_by_item():
    quality = np.random.default_rng(0).standard_normal((2, 6, 3))
    label = np.array([0, 1, 1, 0, 2, 1])
    rest = without_clusters(quality, label)
    for k in range(3):
        assert rest[:, label == k].mean(axis=1) == pytest.approx(np.zeros((2, 3)))
    assert rest[:, 1] - rest[:, 2] == pytest.approx(quality[:, 1] - quality[:, 2])


def test_a_trend_in_cost_is_the_one_within_clusters():
    """Clusters that lie along cost would tilt a trend over all placements."""
    cost = np.array([1.0, 2, 3, 4, 5, 6])
    label = np.array([0, 0, 0, 1, 1, 1])
    quality = (10.0 * label + 0.5 * cost)[None, :, None] * np.ones((2, 6, 3))
    flat = at_equal_cost_within(quality, cost, label)
    assert np.ptp(flat[:, :3], axis=1) == pytest.approx(np.zeros((2, 3))) and flat[0, 3, 0] - flat[0, 2, 0] == pytest.approx(10)
    assert (at_equal_cost_within(quality, np.ones(6), label) == quality).all()
