"""Agreement of two checkpoints on the pairs of placements that differ by more than a margin: arrays in, numbers out.

Letters: H random halves of the items, V = 2 H views (each half selects once and orders once), S steps (the last is T), P placements,
D margins δ. Nothing here resamples: see ``analysis.statistics.twoway`` for intervals.
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


def row_sums(selects: np.ndarray, ordered: np.ndarray, deltas: np.ndarray = DELTAS) -> np.ndarray:
    """Sum over views v and placements j of sign(x_vi - x_vj) sign(y_vsi - y_vsj) over the pairs with |x_vi - x_vj| > δ -> [P, D, S].

    x: ``selects`` [V, P], y: ``ordered`` [V, S, P]; a pair tied in y adds 0. Half the sum over i is the sum over pairs; the sums without
    placement i are that half less row i.
    """
    P = selects.shape[1]
    binned = np.zeros((P, len(deltas), ordered.shape[1]), dtype=np.float32)
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
                if size <= edges[0]:
                    continue
                d = start[min(int(size / fine), len(start) - 1)]
                while size > edges[d + 1]:
                    d += 1
                one = np.float32(1.0) if gap > 0 else np.float32(-1.0)
                for s in range(S):
                    difference = y[v, i, s] - y[v, j, s]
                    sign[s] = one * (np.float32(difference > TIE) - np.float32(difference < -TIE))
                for s in range(S):
                    out[i, d, s] += sign[s]
                    out[j, d, s] += sign[s]
