import numpy as np
import pytest

from analysis.statistics import pairs


def products(first, second):
    """The slow reference: cross, within and tied of all pairs at once, [S, P, P], from ranks [H, S, P] twice."""

    def signs(rank):
        return np.sign(rank[..., :, None].astype(int) - rank[..., None, :])

    x, y = signs(first), signs(second)
    off = ~np.eye(first.shape[-1], dtype=bool)
    tied = ((x == 0).sum(axis=0) + (y == 0).sum(axis=0)) * off
    return (x * y[:, -1:] + y * x[:, -1:]).sum(axis=0), 2 * (x * y).sum(axis=0), tied


def ranks(rng, ties, *shape):
    if ties:
        return rng.integers(0, 4, size=shape).astype(np.int16)
    return rng.random(shape).argsort(axis=-1).argsort(axis=-1).astype(np.int16)


@pytest.mark.parametrize("P", [2, pairs.ROWS, 2 * pairs.ROWS + 3, 70])  # 70: whole vectors and what is left over
@pytest.mark.parametrize("halves", [1, 8, 33])
@pytest.mark.parametrize("ties", [False, True])
def test_compiled_loops_are_the_products_of_all_pairs(ties, halves, P):
    rng = np.random.default_rng(halves)
    N, S = 3, 4
    first, second = ranks(rng, ties, N, halves, S, P), ranks(rng, ties, N, halves, S, P)
    whole = [products(a, b) for a, b in zip(first, second, strict=True)]
    assert np.array_equal(pairs.sums(first[0], second[0]), [one.sum(axis=(1, 2)) for one in whole[0]])
    slopes = rng.normal(size=(5, S))
    rows, gram = pairs.changes(first, second, slopes)
    for n in range(N):
        cross, within, tied = (now - (before if n else 0) for now, before in zip(whole[n], whole[0], strict=True))
        a, b, c, d, e = slopes[:, :, None, None]
        kernel = a * cross + b * within + d * within[-1] + c * tied + e * tied[-1]
        assert rows[n] == pytest.approx(kernel.sum(axis=2)) and gram[n] == pytest.approx(np.einsum("spq,tpq->st", kernel, kernel))


def test_ranks_of_32_bits_count_as_those_of_16():
    first, second = (ranks(np.random.default_rng(seed), True, 2, 2, 3, 12) for seed in range(2))
    slopes = np.random.default_rng(2).normal(size=(5, 3))
    for short, wide in zip(
        pairs.changes(first, second, slopes), pairs.changes(*(r.astype(np.int32) for r in (first, second)), slopes), strict=True
    ):
        assert np.array_equal(short, wide)


@pytest.mark.parametrize("ties", [False, True])
def test_one_ranking_with_itself(ties):
    first = ranks(np.random.default_rng(1), ties, 2, 1, 3, 10)
    (cross, within, tied), slopes = products(first[0], first[0]), np.array([[1.0, 2, 3]] + [[0.0] * 3] * 4)
    assert np.array_equal(pairs.sums(first[0], first[0]), [one.sum(axis=(1, 2)) for one in (cross, within, tied)])
    rows, _ = pairs.changes(first, first, slopes)
    assert rows[0] == pytest.approx((cross * slopes[0][:, None, None]).sum(axis=2))
