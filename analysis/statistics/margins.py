"""Agreement of two checkpoints on the pairs of placements that differ by more than a margin: arrays in, numbers out.

Letters: H random halves of the items, V views, two a half (each half selects once and orders once), S steps (the last is T), P placements,
I items, D margins δ.

Two estimators of the same curve. ``margin_agreement`` and ``order_of_halves`` are the plain ones: pairs chosen on one half of the items,
ordered on the other, over the same at T. They tell 1 from less, but noise hides flips of near pairs: with 48 items they say 0.88 where
0.78 is true. ``noise_free`` gives qualities whose covariance is the one without item noise, and ``order_curve`` of them is nearly
unbiased in the same worlds (results/validation/margins.csv).
"""

import numpy as np
from numba import njit
from scipy.optimize import isotonic_regression

TIE = 1e-9
"""Qualities (nats/token) closer than this are tied: they differ by rounding only."""

DELTAS = np.concatenate([np.arange(41) * 0.005, 0.2 * 1.2 ** np.arange(1, 19)]).round(6)
"""The margins δ at which curves are computed, in nats/token: 0 to 0.2 in steps of 0.005, then a fifth more each time, up to 5.3."""


def views(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean qualities on both halves [H, S, P] -> the half that selects pairs at T [V, P], and the other one at every step [V, S, P]."""
    return np.concatenate([first[:, -1], second[:, -1]]), np.concatenate([second, first])


def margin_agreement(selects: np.ndarray, ordered: np.ndarray, deltas: np.ndarray = DELTAS) -> np.ndarray:
    """a(t, δ): of the pairs with |x_vi - x_vj| > δ, the share that y orders the same way, ties in y counting one half -> [S, D].

    x: ``selects`` [V, P], T on one half; y: ``ordered`` [V, S, P], every step on the other. NaN where no pair is that far apart.
    """
    sums = row_sums(selects, ordered, deltas).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((1 + sums[:, :-1] / sums[:, -1:]) / 2).T


def order_of_halves(agreement: np.ndarray) -> np.ndarray:
    """order(t, δ) = (2 a(t, δ) - 1) / (2 a(T, δ) - 1) from a [S, D], T last -> [S, D]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (2 * agreement - 1) / (2 * agreement[-1] - 1)


def noise_free(means: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """Mean qualities [2, P] at t and T, moved as little as possible so that their covariance becomes ``signal`` [2, 2] -> [2, P].

    The map is that of optimal transport between normal laws, C^-1/2 (C^1/2 G C^1/2)^1/2 C^-1/2 (Peyré & Cuturi 2019, eq. 2.40). It
    keeps clusters and tails, which a normal model would not.
    """
    centred = means - means.mean(axis=1, keepdims=True)
    root = _root(centred @ centred.T / (means.shape[1] - 1))
    inverse = np.linalg.pinv(root, rcond=1e-9, hermitian=True)
    return inverse @ _root(root @ signal @ root) @ inverse @ centred


def _root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def order_curve(quality: np.ndarray, deltas: np.ndarray = DELTAS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """2a - 1 over the pairs that differ by more than δ at T, of qualities [2, P] at t and T without noise -> the curve [D], the number of
    those pairs [D], and the variance of the curve over placements [D] (delete-one jackknife of a ratio of U-statistics, Arvesen 1969)."""
    rows = row_sums(quality[-1:], quality[None, :1], deltas)
    P = len(rows)
    total = rows.sum(axis=0) / 2
    left = total - rows
    with np.errstate(invalid="ignore", divide="ignore"):
        curve, without = total[:, 0] / total[:, 1], left[..., 0] / left[..., 1]
        spread = np.where(np.isfinite(without), without - curve, 0.0)
    return curve, total[:, 1], (P - 1) / P * ((spread - spread.mean(axis=0)) ** 2).sum(axis=0)


def resolution(curve: np.ndarray, pairs: np.ndarray, threshold: float, deltas: np.ndarray = DELTAS) -> float:
    """The smallest δ (nats/token) from which on the curve [D] stays at or above the threshold; inf where it never does.

    The curve is first made monotone: isotonic regression weighted by the number of pairs [D]. Margins without pairs are left out.
    """
    known = (pairs > 0) & np.isfinite(curve)
    if not known.any():
        return np.inf
    fitted = isotonic_regression(curve[known], weights=pairs[known]).x
    reached = np.flatnonzero(fitted >= threshold - 1e-12)
    return float(deltas[known][reached[0]]) if len(reached) else np.inf


def row_sums(selects: np.ndarray, ordered: np.ndarray, deltas: np.ndarray = DELTAS) -> np.ndarray:
    """Sum over views v and placements j of sign(x_vi - x_vj) sign(y_vsi - y_vsj) over the pairs with |x_vi - x_vj| > δ, and
    their number in a last column -> [P, D, S + 1].

    x: ``selects`` [V, P], y: ``ordered`` [V, S, P]; a pair tied in y adds 0. Half the sum over i is the sum over pairs; the sums without
    placement i are that half less row i.
    """
    P = selects.shape[1]
    deltas = np.asarray(deltas, dtype=float)
    binned = np.zeros((P, len(deltas), ordered.shape[1] + 1), dtype=np.float32)
    fine = 1e-3
    # a table of bins instead of a search: the first margin of each cell of 0.001 nats, from which few steps remain
    start = np.searchsorted(deltas + TIE, np.arange(int(deltas[-1] / fine) + 2) * fine, side="left").astype(np.int64) - 1
    x = np.ascontiguousarray(selects, dtype=np.float64)
    y = np.ascontiguousarray(ordered.transpose(0, 2, 1), dtype=np.float64)
    _add_pairs(x, y, np.append(deltas + TIE, np.inf), np.maximum(start, 0), fine, binned)
    return binned[:, ::-1].cumsum(axis=1, dtype=np.float64)[:, ::-1]


@njit(cache=True)
def _add_pairs(x: np.ndarray, y: np.ndarray, edges: np.ndarray, start: np.ndarray, fine: float, out: np.ndarray) -> None:
    V, P, S = y.shape
    sign = np.empty(S, dtype=np.float32)
    for v in range(V):
        for i in range(P):
            for j in range(i + 1, P):
                gap = x[v, i] - x[v, j]
                size = abs(gap)
                if not size > edges[0]:  # nor where it is not a number
                    continue
                # beyond the largest margin no cell is looked up: the quotient may be more than an integer holds
                d = start[min(int(size / fine), len(start) - 1)] if size <= edges[-2] else len(edges) - 2
                while size > edges[d + 1]:
                    d += 1
                one = np.float32(1.0) if gap > 0 else np.float32(-1.0)
                for s in range(S):
                    difference = y[v, i, s] - y[v, j, s]
                    sign[s] = one * (np.float32(difference > TIE) - np.float32(difference < -TIE))
                out[i, d, S] += 1
                out[j, d, S] += 1
                for s in range(S):
                    out[i, d, s] += sign[s]
                    out[j, d, s] += sign[s]
