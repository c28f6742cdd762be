"""The primary endpoint and its company for one set of placements: resolution, order at the declared margin, linear correlation.

Letters: S steps, P placements, I items, D margins δ.
"""

import numpy as np

from analysis.stability.clustered_curves import heed_clusters
from analysis.stability.endpoints import Endpoints
from analysis.stability.margin_curves import bound, margin_curves, usable
from analysis.statistics import intervals
from analysis.statistics.linear import linear
from analysis.statistics.margins import DELTAS, resolution
from analysis.statistics.uncertainty import fisher_interval


def margin_columns(
    quality: np.ndarray,
    tasks: list[str],
    endpoints: Endpoints,
    rng: np.random.Generator,
    fraction: float = 0.0,
    cost: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Columns [S] of one band: quality [S, P, I] -> resolution, order, linear, each with _lo and _hi, and order_band_lo, order_band_hi."""
    found = linear(quality, tasks, endpoints.groups, rng, fraction, cost)
    curves = margin_curves(found, endpoints, rng, fraction)
    curves = heed_clusters(curves, found, quality, tasks, endpoints, fraction, cost)
    at = int(np.flatnonzero(endpoints.delta_settled + 1e-9 >= DELTAS)[-1])
    q = intervals.quantile(endpoints.level, found.degrees)
    low, high = fisher_interval(found.rho, np.diag(found.covariance), q, bound(found))
    unknown = np.isnan(found.rho) | ~usable(found)
    read = {
        name: np.array([resolution(c, n, endpoints.order_threshold) for c, n in zip(curve, curves.pairs, strict=True)])
        for name, curve in (("resolution", curves.order), ("resolution_lo", curves.hi), ("resolution_hi", curves.lo))
    }
    return {
        "resolution": np.where(unknown, np.nan, read["resolution"]),
        "resolution_lo": np.where(unknown, 0.0, read["resolution_lo"]), "resolution_hi": np.where(unknown, np.inf, read["resolution_hi"]),
        "order": curves.order[:, at], "order_lo": curves.lo[:, at], "order_hi": curves.hi[:, at],
        "order_band_lo": curves.band_lo[:, at], "order_band_hi": curves.band_hi[:, at],
        "linear": np.where(unknown, np.nan, found.rho),
        "linear_lo": np.where(unknown, -1.0, low), "linear_hi": np.where(unknown, 1.0, high),
    }  # fmt: skip
