import json

import numpy as np
import pandas as pd
import pytest

from analysis.comparison.transfer import TOLERANCE, accuracy_interval, distances, match, transfer
from analysis.input.runs import describe, side_by_side
from analysis.statistics import ranks
from supernet.placement import sample_counts


def test_describe_reads_the_manifest(run_dir, scores, tmp_path):
    row = describe(scores, run_dir).iloc[0]
    assert (row["layers"], row["n_placements"], row["n_items"], row["checkpoints"]) == (4, 40, 24, 6)
    assert row["trained_parameters"] == 100_000 and row["training_tokens"] == scores.tokens[-1]
    assert np.isnan(describe(scores, tmp_path)["trained_parameters"].iloc[0])
    (run_dir / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="manifest.json is not valid JSON"):
        describe(scores, run_dir)


def test_side_by_side_adds_common_axes(scores, run_dir, tmp_path, simulate):
    other = simulate(np.random.default_rng(1), layers=5, scale="big", run="sim-1", tokens_per_step=8192)
    (tmp_path / "manifest.json").write_text(json.dumps({"trained_parameters": 4096}))
    runs = pd.concat([describe(scores, run_dir), describe(other, tmp_path)])
    stability = pd.concat([
        pd.DataFrame({"run": s.run, "step": s.steps, "tokens": s.tokens, "band_lo": 1.0, "band_hi": 2.0, "ratio": 0.5})
        for s in (scores, other)
    ])  # fmt: skip
    table = side_by_side(stability, runs)
    assert len(table) == 12 and table.groupby("run")["share_of_training"].max().eq(1).all()
    big = table[table["run"] == "sim-1"]
    np.testing.assert_allclose(big["tokens_per_parameter"], other.tokens / 4096)
    assert big["relative_hi"].eq(0.4).all() and table["scale"].tolist() == ["simulated"] * 6 + ["big"] * 6


def test_distances_by_hand():
    d = np.hstack([distances(["FFF", "FSG"], b) for b in (["FFF", "GGG", "GSF"], ["FFFFFF", "FFFFFG"])])
    # composition: F/F/F against G/G/G are all apart; one layer of six differs in 1/6 of the whole and 1/6 of the thirds
    np.testing.assert_allclose(d[0], [0, 1, 2 / 3, 0, 1 / 6])
    # FSG and GSF: the same composition, two of three thirds apart
    assert d[1, 2] == pytest.approx((0 + 2 / 3) / 2)
    # a layer that straddles two thirds counts for both: of four layers the second covers 1/3 to 1/2
    assert distances(["FGFF"], ["FFFF"])[0, 0] == pytest.approx((1 / 4 + (1 / 4 + 1 / 2) / 3) / 2)


def test_match_prefers_equal_placements_and_keeps_the_tolerance():
    rng = np.random.default_rng(0)
    a = [str(sample_counts(6, rng)) for _ in range(40)]
    a = sorted(set(a))
    i, j, d = match(a, a[::-1])
    assert all(a[p] == a[::-1][q] for p, q in zip(i, j, strict=True)) and (d == 0).all() and len(i) == len(a)
    stretched = ["".join(2 * c for c in placement) for placement in a]  # the same placements with every layer twice
    i, j, d = match(a, stretched)
    assert len(i) == len(set(i)) == len(set(j)) and (d <= TOLERANCE).all()
    np.testing.assert_allclose(d, distances(a, stretched)[i, j], atol=1e-12)
    assert d.sum() == pytest.approx(0, abs=1e-9)
    i, j, d = match(["FFFF"], ["GGGGGG"])
    assert len(i) == 0


def test_accuracy_is_that_of_ranks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 6, size=(2, 12)).astype(float)  # with ties
        accuracy, lo, hi, n = accuracy_interval(x, y)
        assert accuracy == pytest.approx(ranks.decision_accuracy(x, y)) and lo <= accuracy <= hi
        assert n == sum(y[p] != y[q] for p in range(12) for q in range(p))
    assert accuracy_interval(x, x)[:3] == (1, 1, 1)


def test_accuracy_over_some_pairs():
    x, y = np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 3, 4])
    pairs = np.zeros((4, 4), dtype=bool)
    assert accuracy_interval(x, y, pairs)[3] == 0
    pairs[0, 1] = pairs[1, 0] = True
    assert accuracy_interval(x, y, pairs) == (0.0, 0.0, 1.0, 1)
    pairs[2, 3] = pairs[3, 2] = True
    accuracy, lo, hi, n = accuracy_interval(x, y, pairs)
    assert (accuracy, n) == (0.5, 2) and lo == 0 and hi == 1


def test_decision_accuracy_interval_covers():
    """Bivariate normal with correlation r: the true accuracy is 1/2 + asin(r)/π."""
    rng = np.random.default_rng(0)
    r, covered, repetitions = 0.7, 0, 400
    truth = 0.5 + np.arcsin(r) / np.pi
    for _ in range(repetitions):
        x = rng.normal(size=40)
        y = r * x + np.sqrt(1 - r**2) * rng.normal(size=40)
        _, lo, hi, _ = accuracy_interval(x, y)
        covered += lo <= truth <= hi
    assert 0.92 <= covered / repetitions <= 0.98


def test_transfer_between_runs_of_one_landscape(scores):
    table = transfer(scores, scores)
    assert table["n_matched"].eq(40).all() and table["n_pairs"].eq(780).all() and table["mean_distance"].eq(0).all()
    assert table["accuracy"].iloc[-1] == 1 and table["similar_accuracy"].iloc[-1] == 1
    assert table["accuracy"].iloc[0] < 1 and table["similar_accuracy"].iloc[0] < table["accuracy"].iloc[0]
    assert table["accuracy_cost"].nunique() == 1 and 0.5 < table["accuracy_cost"].iloc[0] < 1
    assert 0 < table["similar_pairs"].iloc[0] < 780
    mirrored = type(scores)(**{**vars(scores), "quality": -scores.quality})
    assert transfer(scores, mirrored)["accuracy"].iloc[-1] == 0


def test_transfer_between_depths(scores, simulate):
    deeper = simulate(np.random.default_rng(5), layers=6, n_placements=200, scale="deeper", run="sim-2")
    table = transfer(scores, deeper)
    assert 5 < table["n_matched"].iloc[0] < 40 and (table["mean_distance"] <= TOLERANCE).all()
    assert table["accuracy"].iloc[-1] > 0.6  # both lose by the same mixers


def test_transfer_without_matches(simulate):
    a, b = (simulate(np.random.default_rng(s), n_placements=40) for s in range(2))
    others = type(a)(**{**vars(a), "placements": [p.translate(str.maketrans("FSKG", "ABCD")) for p in a.placements]})
    table = transfer(others, b)
    assert len(table) == 1 and table["n_matched"].iloc[0] == 0 and table["n_pairs"].iloc[0] == 0
