"""Rank statistics: arrays in, numbers out. Higher values are better everywhere; a NaN in the input makes the result NaN, and so does a
constant input wherever the statistic is undefined for it. Shapes: S steps (or other rankings), P placements, D depths.
"""

import numpy as np
from scipy import stats

CHUNK = 1 << 17
"""Pairs of placements whose signs are held at once, per checkpoint: few enough for the cache, and little memory for any number."""


def _aligned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"rankings need vectors of one length, got shapes {x.shape} and {y.shape}: give one value per placement to each")
    return x, y


ROUNDING = 1e-10
"""Mean qualities that differ by less than this, relative to the largest quality, are tied: sums in another order differ by as much."""


def with_ties(values: np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    """Dense ranks over the last axis, low to high, [..., P] -> integers [..., P]; what differs by rounding only is tied.

    ``scale``: magnitude of the numbers that the values were computed from (an array broadcasts against [..., 1]). Ranks of 16 bits, where
    they suffice, compare several times faster than floats.
    """
    order = np.argsort(values, axis=-1)
    ordered = np.take_along_axis(values, order, axis=-1)
    kind = np.int16 if values.shape[-1] < 1 << 15 else np.int32
    steps = np.diff(ordered, axis=-1, prepend=ordered[..., :1]) > ROUNDING * np.asarray(scale)
    rank = np.empty(values.shape, dtype=kind)
    np.put_along_axis(rank, order, steps.cumsum(axis=-1, dtype=kind), axis=-1)
    return rank


def kendall_tau_b(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's τ-b of two vectors [n]: (C - D) / √((C + D + ties only in x)(C + D + ties only in y)).

    NaN if either holds a NaN or is constant, or n < 2. Kendall (1945), Biometrika 33; computed by scipy.stats.kendalltau.
    """
    x, y = _aligned(x, y)
    return float(stats.kendalltau(x, y).statistic) if len(x) > 1 else np.nan


def pair_sums(scores: np.ndarray) -> np.ndarray:
    """Sum over unordered pairs of placements of sign(a_i - a_j)·sign(b_i - b_j), for every two rows a, b of scores [S, P] -> [S, S].

    The diagonal holds the number of untied pairs of each row. A row that holds a NaN counts as constant. Exact integers in
    float64; chunked to ``CHUNK`` pairs.
    """
    rows, n = scores.shape
    block = max(1, CHUNK // max(n, 1))
    unknown = np.isnan(scores).any(axis=1, keepdims=True)
    # ranks of 16 bits compare several times faster than floats
    rank = stats.rankdata(np.where(unknown, 0, scores), method="dense", axis=1).astype(np.int16 if n < 1 << 15 else np.int32)
    tied = np.flatnonzero(rank.max(axis=1, initial=0) < n)
    above, agree, opposed = np.zeros(rows), np.zeros((rows, rows)), np.zeros((len(tied), len(tied)))
    for start in range(0, n, block):
        here, there = rank[:, start : start + block, None], rank[:, None, :]
        up = _bits(here > there)
        above += np.bitwise_count(up).sum(axis=1)
        for row in range(rows):
            agree[row, row:] += np.bitwise_count(up[row] & up[row:]).sum(axis=1)
        if len(tied):
            down = _bits(here[tied] < there[tied])
            for i, row in enumerate(tied):
                opposed[i] += np.bitwise_count(up[row] & down).sum(axis=1)
    # over ordered pairs, each unordered one is up in a once; where b is untied, up in a is up or down in b, and the other way round
    agree = np.triu(agree) + np.triu(agree, 1).T
    with_ties = np.isin(np.arange(rows), tied)
    total = 2 * agree - np.where(with_ties[None, :], above[None, :], above[:, None])
    total[np.ix_(tied, tied)] = agree[np.ix_(tied, tied)] - opposed
    return total


def _bits(flags: np.ndarray) -> np.ndarray:
    """[S, ...] bool -> [S, words] uint64, padded with zeros: 64 pairs to a machine word, which one instruction counts."""
    packed = np.packbits(flags.reshape(len(flags), -1), axis=1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)


def tau_matrix(scores: np.ndarray) -> np.ndarray:
    """Kendall's τ-b between all pairs of checkpoints: scores [S, P] -> [S, S].

    Sign vectors G over pairs of placements, C = G Gᵀ (in bits), τ_b = C / √(d dᵀ) with d = diag C. Equal to scipy in a loop, ties included.
    A checkpoint that is constant or holds a NaN has NaN in its row and column.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2:
        raise ValueError(f"scores must be [n_checkpoints, n_placements], got shape {scores.shape}")
    sums = pair_sums(scores)
    untied = np.diag(sums).copy()
    untied[untied == 0] = np.nan
    return np.clip(sums / np.sqrt(np.outer(untied, untied)), -1, 1)


def weighted_tau(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's τ with hyperbolic weights 1/(rank + 1), so that the top counts most; the mean over ranking by x and by y.

    Vigna (2015), WWW; scipy.stats.weightedtau, which would count NaN as the smallest: here a NaN gives NaN, as does a constant.
    """
    x, y = _aligned(x, y)
    if len(x) < 2 or np.isnan(x).any() or np.isnan(y).any() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(stats.weightedtau(x, y).statistic)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's ρ: Pearson's correlation of average ranks. NaN for a constant or NaN input."""
    x, y = _aligned(x, y)
    if len(x) < 2 or np.isnan(x).any() or np.isnan(y).any() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def kendall_w(scores: np.ndarray) -> float:
    """Kendall's coefficient of concordance W of m raters (rows) over n objects (columns), corrected for ties; scores [m, n].

    W = 12 S / (m²(n³ - n) - m Σ_j Σ_g (t_g³ - t_g)), S the sum of squared deviations of the objects' rank sums, t_g the sizes of rater
    j's groups of ties (Kendall & Gibbons 1990, ch. 6). 1: all agree; raters at random average 1/m. NaN if all raters are constant.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or np.isnan(scores).any():
        return np.nan
    m, n = scores.shape
    sums = stats.rankdata(scores, axis=1).sum(axis=0)
    ties = sum(float(((t := np.unique(row, return_counts=True)[1].astype(float)) ** 3 - t).sum()) for row in scores)
    scale = m**2 * (n**3 - n) - m * ties
    return float(12 * ((sums - sums.mean()) ** 2).sum() / scale) if scale > 0 else np.nan


def _membership(x: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Probability that each placement is among the ``depth`` best when ties are broken at random: x [n], depth [D] -> [n, D]."""
    better = (len(x) - stats.rankdata(x, method="max"))[:, None]
    tied = (stats.rankdata(x, method="max") - stats.rankdata(x, method="min") + 1)[:, None]
    return np.clip((depth - better) / tied, 0, 1)


def rank_biased_overlap(x: np.ndarray, y: np.ndarray, p: float = 0.9) -> float:
    """Extrapolated rank-biased overlap of two complete rankings, best first; the user stops at each rank with probability 1 - p.

    RBO_ext = (X_n / n) p^n + (1 - p)/p Σ_{d=1..n} (X_d / d) p^d, X_d the overlap of the d best (Webber, Moffat & Zobel 2010, eq. 30).
    Ties: the expectation when ties are broken at random, independently in x and y. Ranks whose weight p^d falls under 1e-12 are left out.
    """
    x, y = _aligned(x, y)
    if not 0 < p < 1:
        raise ValueError(f"persistence p must lie between 0 and 1, got {p}: 0.9 puts 86% of the weight on the first ten ranks")
    n = len(x)
    if n == 0 or np.isnan(x).any() or np.isnan(y).any():
        return np.nan
    depth = np.arange(1, min(n, int(np.ceil(np.log(1e-12) / np.log(p)))) + 1)
    agreement = (_membership(x, depth) * _membership(y, depth)).sum(axis=0) / depth
    return float(agreement[-1] * p ** depth[-1] + (1 - p) / p * (agreement * p**depth).sum())


def topk_overlap(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Share of the k best by y that are among the k best by x. Ties: the expectation when broken at random, independently in x and y."""
    x, y = _aligned(x, y)
    if not 1 <= k <= len(x):
        raise ValueError(f"top-k of {len(x)} placements needs 1 <= k <= {len(x)}, got {k}")
    if np.isnan(x).any() or np.isnan(y).any():
        return np.nan
    depth = np.array([k])
    return float((_membership(x, depth) * _membership(y, depth)).sum() / k)


def topk_chance(n: int, k: int) -> float:
    """Expected top-k overlap of two unrelated rankings of n placements: k / n."""
    return k / n


def decision_accuracy(x: np.ndarray, y: np.ndarray) -> float:
    """Share of pairs that x orders as y does. A pair tied in y asks for no decision and is left out; one tied only in x counts one half.

    = ½ (1 + (C - D) / pairs untied in y); a coin gets ½. Without ties it is (1 + τ) / 2. NaN if y is constant.
    """
    x, y = _aligned(x, y)
    if np.isnan(x).any() or np.isnan(y).any():
        return np.nan
    sums = pair_sums(np.stack([x, y]))
    return float((1 + sums[0, 1] / sums[1, 1]) / 2) if sums[1, 1] else np.nan


def decisive_accuracy(x: np.ndarray, y: np.ndarray, error: np.ndarray | float, z: float = 2.0) -> tuple[float, float]:
    """Decision accuracy over the pairs that y decides, |y_i - y_j| > z·error_ij, and their share of all pairs ("coverage").

    ``error``: standard error of each difference y_i - y_j, [n, n] or one number. Ties in x count one half. Accuracy is NaN if no pair is
    decisive.
    """
    x, y = _aligned(x, y)
    if len(x) < 2 or np.isnan(x).any() or np.isnan(y).any():
        return np.nan, np.nan
    gap = y[:, None] - y[None, :]
    decisive = np.abs(gap) > z * np.asarray(error)
    np.fill_diagonal(decisive, False)
    count = int(decisive.sum())
    agree = np.sign(x[:, None] - x[None, :]) * np.sign(gap)
    return (float((1 + agree[decisive].mean()) / 2) if count else np.nan), count / (len(x) * (len(x) - 1))
