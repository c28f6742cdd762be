"""Order over the margins where placements cluster: there one map for all of them leaves noise between close ones.

Letters: S steps (the last is T), P placements, I items, D margins δ.
"""

from dataclasses import replace

import numpy as np

from analysis.stability.endpoints import Endpoints
from analysis.stability.margin_curves import MarginCurves, bound, ends, half_widths, usable
from analysis.statistics import intervals
from analysis.statistics.clusters import at_equal_cost_within, partitions, without_clusters
from analysis.statistics.linear import Linear, linear
from analysis.statistics.margins import noise_free, order_curve
from analysis.statistics.uncertainty import fisher_interval

ENDS = ("lo", "hi", "band_lo", "band_hi")


def heed_clusters(
    curves: MarginCurves,
    found: Linear,
    quality: np.ndarray,
    tasks: list[str],
    endpoints: Endpoints,
    fraction: float = 0.0,
    cost: np.ndarray | None = None,
) -> MarginCurves:
    """``curves`` with the steps at which placements may cluster done anew: the curve is that of qualities freed of noise within the
    likeliest clusters, and the intervals are the hull of the old ones and of those within each partition that the qualities allow.

    Clusters lie apart along t = T, so that one map takes hardly any noise out in that direction. Where noise blurs them they cannot be
    told from one cloud, and only the hull says so. ``quality`` [S, P, I] is that of which ``found`` tells; ``cost`` [P]: compare at
    equal cost.
    """
    order, pairs, bounds = curves.order.copy(), curves.pairs.copy(), {name: getattr(curves, name).copy() for name in ENDS}
    for s in np.flatnonzero(np.isfinite(curves.order[:-1, 0])):
        for rank, label in enumerate(partitions(found.means[[s, -1]])):
            if label.max() == 0:
                continue
            inner, counted, below, above = _within(quality[[s, -1]], cost, label, tasks, endpoints, fraction)
            if rank == 0:
                order[s], pairs[s] = inner, counted
            for low, high, wide in (("lo", "hi", 1.0), ("band_lo", "band_hi", curves.together)):
                lo, hi = ends(inner, wide * below, wide * above)
                bounds[low][s], bounds[high][s] = np.minimum(bounds[low][s], lo), np.maximum(bounds[high][s], hi)
    return replace(curves, order=order, pairs=pairs, **bounds)


def _within(
    quality: np.ndarray, cost: np.ndarray | None, label: np.ndarray, tasks: list[str], endpoints: Endpoints, fraction: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(order, pairs, half-width below, above), each [D], of t and T: quality [2, P, I].

    Items leave two things open, the covariance's size within clusters and its correlation, which may be anything where noise hides it.
    The error of the size is that of a variance of normal noise (2 v² / n) less what the placements themselves would have without noise.
    """
    fair = quality - quality.mean(axis=1, keepdims=True)
    fair = fair if cost is None else at_equal_cost_within(fair, cost, label)
    inner = linear(without_clusters(fair, label), tasks, endpoints.groups, np.random.default_rng(endpoints.seed), fraction)
    P, between = len(label), fair.mean(axis=2) - inner.means
    free = P - 1 - label.max() - (cost is not None)
    q = intervals.quantile(endpoints.level, inner.degrees)
    size, seen = (P - 1) / free * np.diagonal(inner.signal[0]), (inner.means**2).sum(axis=1) / free
    error = q * np.sqrt(2 * np.maximum(seen**2 - np.maximum(size, 0) ** 2, 0) / free)

    def curve(variance: np.ndarray, rho: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        spread = np.sqrt(np.maximum(variance, 0))
        cross = np.clip(rho, -1, 1) * spread.prod()
        return order_curve(between + noise_free(inner.means, np.array([[spread[0] ** 2, cross], [cross, spread[1] ** 2]])))

    if np.isfinite(inner.rho[0]) and usable(inner)[0]:
        rho = inner.rho[0]
        low, high = (end[0] for end in fisher_interval(inner.rho, inner.of_items, q, bound(inner)))
        worse, better = ((curve(size, end)[0], curve(size + sign * error, rho)[0]) for end, sign in ((low, 1), (high, -1)))
    else:
        rho = 0.0
        worse, better = ((curve(size + sign * error, -sign)[0],) for sign in (1, -1))
    order, pairs, variance = curve(size, rho)
    return order, pairs, *half_widths(order, pairs, P, (1 - fraction) * q**2 * variance, worse, better)
