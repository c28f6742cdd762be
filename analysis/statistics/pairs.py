"""Sign products over pairs of placements: how two rankings order each pair, summed over halves of the items.

A pair (i, j) of placements is seen at step t through sign(rank_i - rank_j), in each of two halves. Its products are:

- cross: t in one half with the last step in the other, and the other way round;
- within: t in one half with t in the other, twice;
- tied: in how many of these rankings it is tied.

All are small integers and symmetric in i and j. Only i < j is looked at, the pairs of one i at a time in compiled loops (numba), so that
everything stays in the cache and memory does not grow with the square of the placements.

Shapes: N sets of items (all, and all but each group), H halves, S steps, P placements.
"""

import numpy as np
from numba import njit

ROWS = 8
"""Placements i that are compared with all others before the next set of items is looked at, while its ranks are in the cache."""

fast = njit(cache=True, fastmath={"reassoc", "contract"})
"""Sums may be reordered, which vectors need."""


def sums(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sums of cross, within and tied over ordered pairs: ranks in both halves [H, S, P] twice -> [3, S], exact integers in float64."""
    return 2.0 * _sums(np.ascontiguousarray(first), np.ascontiguousarray(second))


def changes(first: np.ndarray, second: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row sums [N, S, P] and Gram matrices [N, S, S] over ordered pairs of a linear function of the products.

    ``first``, ``second``: ranks [N, H, S, P] with all items (first of the N) and with each group of items left out. ``slopes`` [5, S]:
    derivatives by cross, within, tied at t, within at T, tied at T. The function is that of the products with all items, and, for each
    group left out, of what these change.
    """
    rows, gram = _changes(np.ascontiguousarray(first), np.ascontiguousarray(second), np.ascontiguousarray(slopes, dtype=np.float64))
    return rows, 2 * (np.tril(gram) + np.tril(gram, -1).swapaxes(1, 2))


@fast
def _signs(rank: np.ndarray, i: int, sign: np.ndarray) -> None:
    """Whether i ranks above each j > i (1), below (-1) or alike (0): ranks [P] -> ``sign`` [P]."""
    own, others, found = rank[i], rank[i + 1 :], sign[i + 1 :]
    for j in range(others.size):  # two loops, each of which becomes vectors
        found[j] = own > others[j]
    for j in range(others.size):
        found[j] -= own < others[j]


@fast
def _add(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    """``out += x y``: with three arrays the compiler makes vectors of it, with more it does not."""
    for j in range(x.size):
        out[j] += x[j] * y[j]


@fast
def _products(first: np.ndarray, second: np.ndarray, i: int, signs: np.ndarray, found: np.ndarray) -> None:
    """Cross, within and tied of i with each j > i: ranks [H, S, P] in both halves -> ``found`` [3, S, P]. ``signs`` [4, P] is scratch."""
    H, S, _ = first.shape
    found[:2, :, i + 1 :] = 0
    found[2, :, i + 1 :] = 2 * H
    for h in range(H):
        _signs(first[h, -1], i, signs[0])
        _signs(second[h, -1], i, signs[1])
        last_x, last_y = signs[0, i + 1 :], signs[1, i + 1 :]
        for s in range(S):
            _signs(first[h, s], i, signs[2])
            _signs(second[h, s], i, signs[3])
            x, y = signs[2, i + 1 :], signs[3, i + 1 :]
            _add(x, last_y, found[0, s, i + 1 :])
            _add(y, last_x, found[0, s, i + 1 :])
            _add(x, y, found[1, s, i + 1 :])
            _add(x, y, found[1, s, i + 1 :])
            _subtract_squares(x, found[2, s, i + 1 :])
            _subtract_squares(y, found[2, s, i + 1 :])


@fast
def _subtract_squares(x: np.ndarray, out: np.ndarray) -> None:
    for j in range(x.size):
        out[j] -= x[j] * x[j]


@fast
def _sums(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    _, S, P = first.shape
    signs, found, total = np.empty((4, P), np.int16), np.empty((3, S, P), np.int16), np.zeros((3, S))
    for i in range(P):
        _products(first, second, i, signs, found)
        for kind in range(3):
            for s in range(S):
                total[kind, s] += found[kind, s, i + 1 :].sum()
    return total


@fast
def _changes(first: np.ndarray, second: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row sums over ordered pairs; Gram matrices over the pairs i < j, of which only what is on and below the diagonal is filled in."""
    N, _, S, P = first.shape
    signs, found, base = np.empty((4, P), np.int16), np.empty((3, S, P), np.int16), np.empty((ROWS, 3, S, P), np.int16)
    kernel = np.empty((S, P))
    rows, gram = np.zeros((N, S, P)), np.zeros((N, S, S))
    for start in range(0, P, ROWS):
        for n in range(N):
            for i in range(start, min(start + ROWS, P)):
                its = base[i - start]
                _products(first[n], second[n], i, signs, its if n == 0 else found)
                if n > 0:
                    found[:, :, i + 1 :] -= its[:, :, i + 1 :]
                _linear(its if n == 0 else found, slopes, i, kernel, rows[n], gram[n])
    return rows, gram


@fast
def _linear(found: np.ndarray, slopes: np.ndarray, i: int, kernel: np.ndarray, rows: np.ndarray, gram: np.ndarray) -> None:
    """The linear function of the products [3, S, P] of i with each j > i into ``kernel`` [S, P]; its sums are added to the others."""
    S = len(kernel)
    last_within, last_tied = found[1, -1, i + 1 :], found[2, -1, i + 1 :]
    for s in range(S):
        by_cross, by_within, by_tied, by_last_within, by_last_tied = slopes[:, s]
        cross, within, tied = found[0, s, i + 1 :], found[1, s, i + 1 :], found[2, s, i + 1 :]
        value, later, total = kernel[s, i + 1 :], rows[s, i + 1 :], 0.0
        for j in range(value.size):
            one = by_cross * cross[j] + by_within * within[j] + by_last_within * last_within[j]
            one += by_tied * tied[j] + by_last_tied * last_tied[j]
            value[j] = one
            later[j] += one
            total += one
        rows[s, i] += total
        for t in range(s + 1):
            other, product = kernel[t, i + 1 :], 0.0
            for j in range(value.size):
                product += value[j] * other[j]
            gram[s, t] += product
