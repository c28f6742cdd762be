import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from analysis.statistics import ranks

TIED = arrays(float, st.tuples(st.integers(2, 5), st.integers(2, 30)), elements=st.integers(-3, 3).map(float))


@settings(max_examples=60, deadline=None)
@given(TIED)
def test_tau_matrix_equals_scipy_with_ties_and_constants(scores):
    matrix = ranks.tau_matrix(scores)
    for i, j in itertools.product(range(len(scores)), repeat=2):
        np.testing.assert_allclose(matrix[i, j], stats.kendalltau(scores[i], scores[j]).statistic, atol=1e-12)
        np.testing.assert_allclose(ranks.kendall_tau_b(scores[i], scores[j]), matrix[i, j], atol=1e-12)


def test_tau_matrix_is_the_same_in_chunks(monkeypatch):
    scores = np.round(np.random.default_rng(0).normal(size=(4, 101)), 1)
    whole = ranks.tau_matrix(scores)
    monkeypatch.setattr(ranks, "CHUNK", 700)  # blocks of 6 rows, the last one short
    np.testing.assert_allclose(ranks.tau_matrix(scores), whole, atol=1e-14)


def test_nan_poisons_its_own_row_only():
    scores = np.random.default_rng(0).normal(size=(3, 20))
    scores[1, 4] = np.nan
    matrix = ranks.tau_matrix(scores)
    assert np.isnan(matrix[1]).all() and np.isnan(matrix[:, 1]).all() and matrix[0, 2] == matrix[2, 0] and matrix[0, 0] == 1


@pytest.mark.parametrize(
    "statistic",
    [ranks.kendall_tau_b, ranks.spearman, ranks.weighted_tau, ranks.decision_accuracy, ranks.rank_biased_overlap,
     lambda x, y: ranks.topk_overlap(x, y, 2), lambda x, y: ranks.decisive_accuracy(x, y, 0.1)[0],
     lambda x, y: ranks.kendall_w(np.stack([x, y]))],
)  # fmt: skip
def test_nan_gives_nan(statistic):
    assert np.isnan(statistic(np.array([1.0, np.nan, 3, 4]), np.arange(4.0)))
    assert np.isnan(statistic(np.arange(4.0), np.array([1.0, np.nan, 3, 4])))


@pytest.mark.parametrize("statistic", [ranks.kendall_tau_b, ranks.spearman, ranks.weighted_tau, ranks.decision_accuracy])
def test_constant_truth_gives_nan(statistic):
    assert np.isnan(statistic(np.arange(4.0), np.ones(4)))


def test_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        ranks.kendall_tau_b(np.arange(3), np.arange(4))


@settings(max_examples=40, deadline=None)
@given(arrays(float, (2, 12), elements=st.integers(0, 6).map(float)))
def test_spearman_equals_scipy(pair):
    if np.ptp(pair[0]) and np.ptp(pair[1]):
        np.testing.assert_allclose(ranks.spearman(*pair), stats.spearmanr(*pair).statistic, atol=1e-12)
        np.testing.assert_allclose(ranks.weighted_tau(*pair), stats.weightedtau(*pair).statistic, atol=1e-12)


def test_weighted_tau_looks_at_the_top():
    final = np.arange(20.0)
    top, bottom = final.copy(), final.copy()
    top[[18, 19]] = top[[19, 18]]
    bottom[[0, 1]] = bottom[[1, 0]]
    assert ranks.kendall_tau_b(top, final) == ranks.kendall_tau_b(bottom, final)
    assert ranks.weighted_tau(top, final) < ranks.weighted_tau(bottom, final)


@settings(max_examples=40, deadline=None)
@given(arrays(float, st.tuples(st.integers(2, 5), st.integers(3, 9)), elements=st.integers(0, 5).map(float)))
def test_kendall_w_is_the_friedman_statistic(scores):
    m, n = scores.shape
    if all(np.ptp(row) == 0 for row in scores):
        assert np.isnan(ranks.kendall_w(scores))
    elif m >= 3:
        np.testing.assert_allclose(ranks.kendall_w(scores), stats.friedmanchisquare(*scores.T).statistic / (m * (n - 1)), atol=1e-9)


def test_kendall_w_extremes():
    assert ranks.kendall_w(np.array([[1, 2, 2, 4.0]] * 3)) == pytest.approx(1)
    assert ranks.kendall_w(np.array([[1, 2, 3.0], [3, 2, 1]])) == pytest.approx(0)


def _rbo_by_hand(x, y, p):
    a, b = list(np.argsort(-x)), list(np.argsort(-y))
    n = len(a)
    share = [len(set(a[:d]) & set(b[:d])) / d for d in range(1, n + 1)]
    return share[-1] * p**n + (1 - p) / p * sum(s * p**d for d, s in enumerate(share, 1))


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
def test_rbo_by_hand(p):
    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 30):
        x, y = rng.normal(size=(2, n))
        assert ranks.rank_biased_overlap(x, y, p) == pytest.approx(_rbo_by_hand(x, y, p))
        assert ranks.rank_biased_overlap(x, x, p) == pytest.approx(1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        ranks.rank_biased_overlap(x, y, 1.0)


def test_ties_are_broken_at_random_in_expectation():
    rng = np.random.default_rng(2)
    x, y = np.array([3, 2, 2, 2, 1, 0.0]), np.array([1, 4, 4, 2, 5, 0.0])
    shaken = [(x + 1e-6 * rng.random(6), y + 1e-6 * rng.random(6)) for _ in range(4000)]
    assert ranks.rank_biased_overlap(x, y) == pytest.approx(np.mean([_rbo_by_hand(a, b, 0.9) for a, b in shaken]), abs=0.01)
    overlaps = [len(set(np.argsort(-a)[:2]) & set(np.argsort(-b)[:2])) / 2 for a, b in shaken]
    assert ranks.topk_overlap(x, y, 2) == pytest.approx(np.mean(overlaps), abs=0.02)


def test_topk_chance_is_what_unrelated_rankings_get():
    rng = np.random.default_rng(3)
    found = [ranks.topk_overlap(*rng.normal(size=(2, 20)), 5) for _ in range(2000)]
    assert np.mean(found) == pytest.approx(ranks.topk_chance(20, 5), abs=0.01)
    with pytest.raises(ValueError, match="top-k of 20"):
        ranks.topk_overlap(np.arange(20), np.arange(20), 21)


@settings(max_examples=40, deadline=None)
@given(arrays(float, (2, 9), elements=st.integers(0, 5).map(float)), st.floats(0, 2))
def test_decision_accuracy_by_hand(pair, error):
    x, y = pair
    all_pairs = [(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]), abs(y[i] - y[j])) for i, j in itertools.combinations(range(9), 2)]
    decided = [(1 + agree) / 2 for agree, gap in all_pairs if gap > 0]
    np.testing.assert_allclose(ranks.decision_accuracy(x, y), np.mean(decided) if decided else np.nan)
    decisive = [(1 + agree) / 2 for agree, gap in all_pairs if gap > 2 * error]
    accuracy, coverage = ranks.decisive_accuracy(x, y, error)
    np.testing.assert_allclose(accuracy, np.mean(decisive) if decisive else np.nan)
    assert coverage == pytest.approx(len(decisive) / 36)


@pytest.mark.slow
def test_five_thousand_placements_fit_in_one_gib():
    import tracemalloc

    scores = np.random.default_rng(0).normal(size=(20, 5000))
    tracemalloc.start()
    ranks.tau_matrix(scores)
    assert tracemalloc.get_traced_memory()[1] < 2**30
