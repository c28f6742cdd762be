"""The worlds that whole tables are judged by, and which of their tables are kept."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import validate
from analysis.stability.endpoints import Endpoints
from analysis.validation.landscapes import LANDSCAPES
from analysis.validation.whole_tables import EDGES, seed_paths, true_regret_share, two_band_coverage, two_bands

QUICK = Endpoints(resamples=20, halves=1, groups=4)


def test_two_bands_are_two_worlds_in_one_run():
    worlds = (LANDSCAPES["settled"], LANDSCAPES["reversal"])
    scores, true = two_bands(worlds, 12, 2000, np.random.default_rng(0))
    share = scores.cost / 48
    assert ((share[:12] >= EDGES[0]) & (share[:12] < EDGES[1])).all() and ((share[12:] >= EDGES[1]) & (share[12:] < EDGES[2])).all()
    mean = scores.quality.mean(axis=2)
    for band, rows in ((0, slice(0, 12)), (1, slice(12, 24))):
        np.testing.assert_allclose(mean[:, rows] - mean[:, rows].mean(), true[band] - true[band].mean(), atol=0.02)
    assert np.corrcoef(true[0])[0, 1] > 0.999 and np.corrcoef(true[1])[0, 1] < -0.999


def test_true_regret_share_at_its_ends():
    world = replace(LANDSCAPES["settled"], noise=1e-6)
    same = np.array([[0.0, 0.1, 0.3]] * 2)
    assert true_regret_share(same, world, 20, np.random.default_rng(0)) == pytest.approx([0, 0])
    worst = np.array([[0.3, 0.1, 0.0], [0.0, 0.1, 0.3]])  # loses 0.3 where chance loses 0.3 - 0.4 / 3
    assert true_regret_share(worst, world, 20, np.random.default_rng(0)) == pytest.approx([0.3 / (0.3 - 0.4 / 3), 0])


def test_coverage_of_two_bands_has_a_row_per_band_and_statistic():
    table = two_band_coverage(("settled", "reversal"), 16, 12, 2, QUICK, 0)
    assert list(zip(table["band"], table["statistic"], strict=True)) == [
        (band, name) for band in (0, 1) for name in ("order", "resolution", "linear", "regret_share")
    ]
    assert table["truth"].iloc[4] == -1 and list(table["of"].unique()) == ["settled", "reversal"]
    assert table["coverage"].between(0, 1).all()
    assert (table["settled_wrongly"] <= table["declared_settled"]).all()
    reversed_band = table[table["of"] == "reversal"].iloc[0]
    assert reversed_band["settled_wrongly"] == reversed_band["declared_settled"]


def test_seeds_have_the_correlation_that_they_were_given():
    paths = seed_paths(np.random.default_rng(0).standard_normal(20_000), 4, np.random.default_rng(1))
    rho = [np.corrcoef(path)[0, 1] for path in paths]
    assert np.mean(rho) == pytest.approx(0.95, abs=0.04) and np.ptp(rho) > 0.005
    assert np.corrcoef(paths[0, 1], paths[1, 1])[0, 1] == pytest.approx(0.9, abs=0.02)


def test_rows_with_more_repetitions_are_kept(tmp_path):
    path = tmp_path / "t.csv"
    pd.DataFrame({"world": ["a", "b"], "n": [500, 50], "seed": 1, "level": 0.95}).to_csv(path, index=False)
    mark = {"n": 100, "seed": 1, "level": 0.95}
    assert validate._has(path, "a", mark) and not validate._has(path, "b", mark) and not validate._has(path, "a", {**mark, "seed": 2})


def test_cells_are_made_one_by_one_with_the_same_numbers(tmp_path, monkeypatch):
    worlds = {name: LANDSCAPES[name] for name in ("settled", "reversal")}
    monkeypatch.setattr(validate, "LANDSCAPES", worlds)
    monkeypatch.setattr(validate, "SIZES", ((12, 8),))
    validate.margins(tmp_path / "a", 2)
    for name in ("reversal", "settled"):
        validate.margins(tmp_path / "b", 2, only=name)
        if name == "reversal":
            assert set(pd.read_csv(tmp_path / "b" / "margins.csv")["world"]) == {"reversal 12x8"}
    both = [pd.read_csv(tmp_path / n / "margins.csv").sort_values(["world", "statistic"], ignore_index=True) for n in "ab"]
    pd.testing.assert_frame_equal(*both)
