import numpy as np
import pytest

from analysis.stability import Endpoints
from analysis.table import Scores
from analysis.validation.subsamples import coverage
from supernet.placement import exhaustive


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    placements = [str(p) for p in exhaustive(4)]
    cost = np.array([p.cost() for p in exhaustive(4)])
    final = rng.normal(size=len(placements))
    mean = np.stack([0.5 * final + rng.normal(size=len(placements)), final])
    quality = mean[:, :, None] + rng.normal(scale=0.5, size=(2, len(placements), 24)) - 5
    items = [f"i{i}" for i in range(24)]
    return Scores("tiny", "r", 0, np.array([0, 10]), np.array([0, 100]), placements, cost, items, ["t"] * 24, quality)


def test_take_keeps_placements_costs_and_qualities_together(scores):
    some = scores.part(placements=np.array([3, 200]))
    assert some.placements == [scores.placements[3], scores.placements[200]]
    assert some.cost.tolist() == [scores.cost[3], scores.cost[200]]
    assert np.array_equal(some.quality, scores.quality[:, [3, 200]])


def test_the_truth_is_the_whole_run_and_wider_samples_have_narrower_intervals(scores):
    endpoints = Endpoints(bands=(0.14, 0.5, 1.0), resamples=20, halves=4, groups=8)
    table = coverage(scores, endpoints, (32, 128), 12, np.random.default_rng(1))
    whole = table[(table["band_lo"] < 0.6) & (table["band_hi"] > 3.9)].set_index("size")
    assert (table["n"] == 12).all() and len(table) == 2 * 3
    assert whole.loc[128, "width"] < whole.loc[32, "width"]
    assert (table["coverage"] >= 0.75).all()
    assert np.allclose(table["estimate"], table["truth"], atol=0.2)
