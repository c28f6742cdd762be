"""Intervals of order and resolution where they failed before: near-tied clusters, margins that few pairs exceed, and none."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.stability.endpoints import Endpoints
from analysis.stability.margin_columns import margin_columns
from analysis.stability.margin_curves import FLOOR, ends, half_widths, margin_curves
from analysis.statistics.linear import linear
from analysis.statistics.margins import DELTAS
from analysis.validation.landscape_coverage import truth_of
from analysis.validation.landscapes import LANDSCAPES, landscape_scores

DECLARED = Endpoints(resamples=50, groups=16)
AT = int(np.flatnonzero(DELTAS == 0.02)[0])


def test_a_margin_that_few_pairs_exceed_has_a_wide_interval():
    one = np.ones(3)
    below, above = half_widths(one, np.array([400.0, 40.0, 0.0]), 20, np.zeros(3), (one,), (one,))
    assert above[:2] == pytest.approx([FLOOR / 20, FLOOR / 2]) and np.isinf(above[2])
    assert (below[:2] >= above[:2]).all() and np.isinf(below[2])
    lo, hi = ends(np.array([1.0, 1.0, np.nan]), below, above)
    assert lo[2] == -1 and (hi == 1).all() and lo[0] > lo[1]


def test_errors_of_items_add_as_squares():
    middle = np.full(1, 0.5)
    below, above = half_widths(middle, np.ones(1), 1000, np.full(1, 0.04**2), (middle - 0.03, middle + 0.1), (middle + 0.12,))
    assert above == pytest.approx([np.hypot(0.04, 0.12)]) and below == pytest.approx([0.05 + 0.05**2 / 2])


def test_order_in_near_tied_clusters_is_covered():
    """One map for all placements says 0.86 where 0.78 is true, with a lower bound above it in half of the runs."""
    world = LANDSCAPES["clustered"]
    truth = truth_of(world, DECLARED, 0)["order"]
    one, both, estimate = [], [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scores, _ = landscape_scores(world, 100, 48, rng)
        found = linear(scores.quality, scores.tasks, DECLARED.groups, np.random.default_rng(0))
        one.append(margin_curves(found, DECLARED, np.random.default_rng(0)).lo[0, AT] > truth)
        cost = np.asarray(scores.cost) if seed % 2 else None  # that no quality depends on: the same holds at equal cost
        columns = margin_columns(scores.quality, scores.tasks, DECLARED, np.random.default_rng(0), cost=cost)
        both.append(columns["order_lo"][0] <= truth <= columns["order_hi"][0])
        estimate.append(columns["order"][0])
        assert columns["order_band_lo"][0] <= columns["order_lo"][0]
    assert sum(one) >= 3 and sum(both) >= 11
    assert np.mean(estimate) == pytest.approx(truth, abs=0.05)


def test_a_wide_resolution_is_covered():
    """Hardly a pair differs by 0.35 nats/token, and that none of a few came the other way round says little."""
    world = LANDSCAPES["plateau then jump"]
    truth = truth_of(world, DECLARED, 0)["resolution"]
    for seed in range(8):
        scores, _ = landscape_scores(world, 30, 24, np.random.default_rng(seed))
        columns = margin_columns(scores.quality, scores.tasks, replace(DECLARED, seed=seed), np.random.default_rng(0))
        assert columns["resolution_lo"][-2] <= truth <= columns["resolution_hi"][-2]


def test_nothing_is_said_of_a_margin_that_no_pair_exceeds():
    scores, _ = landscape_scores(replace(LANDSCAPES["settled"], noise=0.003), 40, 24, np.random.default_rng(0))
    columns = margin_columns(scores.quality / 40, scores.tasks, DECLARED, np.random.default_rng(0))
    assert np.isnan(columns["order"][0]) and (columns["order_lo"][0], columns["order_hi"][0]) == (-1, 1)
    assert columns["order"][-1] == 1 and columns["linear"][0] == pytest.approx(1, abs=0.05)
