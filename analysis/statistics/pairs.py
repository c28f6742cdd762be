"""Sign products over pairs of placements: how two rankings order each pair, summed over halves of the items.

A pair (i, j) of placements is seen at step t through sign(rank_i - rank_j), in each of two halves. Its products are:

- cross: t in one half with the last step in the other, and the other way round;
- within: t in one half with t in the other, twice;
- tied: in how many of these rankings it is tied.

All are small integers and symmetric in i and j. Only i < j is looked at, a few rows at a time, so that everything stays in the cache and
memory does not grow with the square of the placements. The halves are bits of one word, so that a sum over them is a count of bits.

Shapes: N sets of items (all, and all but each group), H halves, S steps, P placements, R rows of a block, C columns from its first row on.
"""

from collections.abc import Iterator

import numpy as np

BLOCK = 1 << 18
"""Words [S, R, C] of signs that are held at once."""


def sums(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sums of cross, within and tied over ordered pairs: ranks in both halves [H, S, P] twice -> [3, S], exact integers in float64."""
    ties = _any_ties(first, second)
    total = np.zeros((3, first.shape[1]))
    for rows in _blocks(*first.shape[1:]):
        products = _products(first, second, rows, ties)
        total[: len(products)] += [product.sum(axis=(1, 2), dtype=np.int64) for product in products]
    return 2 * total


def changes(first: np.ndarray, second: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row sums [N, S, P] and Gram matrices [N, S, S] over ordered pairs of a linear function of the products.

    ``first``, ``second``: ranks [N, H, S, P] with all items (first of the N) and with each group of items left out. ``slopes`` [5, S]:
    derivatives by cross, within, tied at t, within at T, tied at T. The function is that of the products with all items, and, for each
    group left out, of what these change.
    """
    N, _, S, P = first.shape
    ties = _any_ties(first, second)
    rows_of, gram = np.zeros((N, S, P)), np.zeros((N, S, S))
    for rows in _blocks(S, P):
        base: list[np.ndarray] = []
        for n in range(N):
            a = first[n]
            products = _products(a, a if first is second else second[n], rows, ties)
            base = base or products
            products = products if n == 0 else [now - before for now, before in zip(products, base, strict=True)]
            kernel = _linear(products, slopes)
            rows_of[n, :, rows] += kernel.sum(axis=2)
            rows_of[n, :, rows.start :] += kernel.sum(axis=1)
            flat = kernel.reshape(S, -1)
            gram[n] += flat @ flat.T
    return rows_of, 2 * gram


def _linear(products: list[np.ndarray], slopes: np.ndarray) -> np.ndarray:
    """[S, R, C] float64."""
    column = slopes[:, :, None, None]
    kernel = products[0] * column[0]
    if slopes[1].any():
        kernel += products[1] * column[1]
        kernel += products[1][-1] * column[3]
    if len(products) > 2:
        kernel += products[2] * column[2]
        kernel += products[2][-1] * column[4]
    return kernel


def _blocks(S: int, P: int) -> Iterator[slice]:
    size = max(1, BLOCK // (S * P))
    return (slice(start, min(start + size, P)) for start in range(0, P, size))


def _any_ties(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(min(first.max(axis=-1).min(), second.max(axis=-1).min()) < first.shape[-1] - 1)


def _bits(rank: np.ndarray, rows: slice) -> np.ndarray:
    """[H, S, P] -> words [S, R, C] whose H bits say in which halves the row ranks higher than the placement of the column."""
    kind = next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if len(rank) <= np.iinfo(kind).bits)
    words = None
    for half in rank:
        above = (half[:, rows, None] > half[:, None, rows.start :]).view(np.uint8)
        if words is None:
            words = above.astype(kind)
        else:
            words += words
            words += above
    return words


def _products(first: np.ndarray, second: np.ndarray, rows: slice, ties: bool) -> list[np.ndarray]:
    """cross, within and, where anything is tied, tied: [S, R, C] integers, zero where j is not beyond i."""
    H = len(first)
    kind = np.int8 if H <= 31 else np.int16  # differences of two such sums must fit
    up = [_bits(rank, rows) for rank in ((first,) if first is second else (first, second))]
    down = [_bits(-rank, rows) for rank in ((first,) if first is second else (first, second))] if ties else []
    x, y = up[0], up[-1]

    def agree(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> np.ndarray:
        """Halves in which a pair is ordered alike less those in which it is ordered the other way."""
        if not ties:
            return (H - 2 * np.bitwise_count(one[0] ^ other[0]).view(np.int8)).astype(kind, copy=False)
        alike = np.bitwise_count(one[0] & other[0]) + np.bitwise_count(one[1] & other[1])
        return alike.astype(kind) - (np.bitwise_count(one[0] & other[1]) + np.bitwise_count(one[1] & other[0])).astype(kind)

    one, other = ((x, down[0]), (y, down[-1])) if ties else ((x,), (y,))
    last, other_last = tuple(w[-1:] for w in one), tuple(w[-1:] for w in other)
    cross = 2 * agree(one, last) if first is second else agree(one, other_last) + agree(other, last)
    found = [cross, 2 * agree(one, other)]
    if ties:
        found.append(2 * kind(H) - sum(np.bitwise_count(u | d).astype(kind) for u, d in (one, other)))
    beyond = ~np.tri(x.shape[1], dtype=bool)
    for product in found:
        product[:, :, : x.shape[1]] *= beyond
    return found
