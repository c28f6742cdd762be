"""The primary endpoint and its company for one set of placements: resolution, order at the declared margin, linear correlation.

Letters: S steps, P placements, I items, D margins δ.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.stability.endpoints import Endpoints
from analysis.statistics import intervals
from analysis.statistics.linear import Linear, linear
from analysis.statistics.margins import DELTAS, noise_free, order_curve, resolution
from analysis.statistics.uncertainty import fisher_interval, max_t_quantile

FLOOR = 0.5
"""Placements displaced: half of one, by chance, is what no sample can exclude; the least half-width of ``order`` is this over P."""

LEAST_RELIABLE = 0.05
"""Below this reliability (product of both steps) nothing is estimated: NaN, with the interval [-1, 1]."""


@dataclass(frozen=True)
class MarginCurves:
    """order(t, δ) of every step t with its intervals: [S, D]; ``pairs`` [S, D] beyond δ."""

    order: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    band_lo: np.ndarray
    band_hi: np.ndarray
    pairs: np.ndarray


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
    at = int(np.flatnonzero(endpoints.delta_settled + 1e-9 >= DELTAS)[-1])
    q = intervals.quantile(endpoints.level, found.degrees)
    low, high = fisher_interval(found.rho, np.diag(found.covariance), q, _bound(found))
    unknown = np.isnan(found.rho) | ~_usable(found)
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


def margin_curves(found: Linear, endpoints: Endpoints, rng: np.random.Generator, fraction: float = 0.0) -> MarginCurves:
    """order over the margins, from qualities whose covariance is that without item noise.

    Two sources of error, added as squares. Items: the curve at the ends of the interval of ρ over items (so it stays within 1, and is
    wide where a small change of ρ matters). Placements: the jackknife of the curve. ``FLOOR`` keeps it from width zero.
    """
    S, P = found.means.shape
    q = intervals.quantile(endpoints.level, found.degrees)
    widen = q / stats.norm.ppf((1 + endpoints.level) / 2)
    together = max(1.0, widen * max_t_quantile(found.covariance, endpoints.level, endpoints.resamples, rng) / q)
    low, high = fisher_interval(found.rho, found.of_items, q, _bound(found))
    order, lo, hi, band_lo, band_hi, pairs = (np.full((S, len(DELTAS)), v) for v in (np.nan, -1.0, 1.0, -1.0, 1.0, 0.0))
    for s in np.flatnonzero(np.isfinite(found.rho) & _usable(found)):
        curve, n, variance = order_curve(_at(found, s, found.rho[s]))
        order[s], pairs[s] = np.where(np.isfinite(curve), curve, 1.0), n
        if s == S - 1:
            order[s] = lo[s] = hi[s] = band_lo[s] = band_hi[s] = 1.0
            continue
        down, up = (np.nan_to_num(order_curve(_at(found, s, r))[0], nan=1.0) for r in (low[s], high[s]))
        own = (1 - fraction) * q**2 * np.nan_to_num(variance)
        below = np.maximum(np.sqrt(np.maximum(order[s] - down, 0) ** 2 + own), FLOOR / P)
        # disagreement is a count: on the scale of its square root the bound lies further out (h² / 4d), at most a quarter
        below += below**2 / (4 * np.maximum(1 - order[s], below))
        above = np.maximum(np.sqrt(np.maximum(up - order[s], 0) ** 2 + own), FLOOR / P)
        lo[s], hi[s] = np.maximum(order[s] - below, -1), np.minimum(order[s] + above, 1)
        band_lo[s], band_hi[s] = np.maximum(order[s] - together * below, -1), np.minimum(order[s] + together * above, 1)
    return MarginCurves(order, lo, hi, band_lo, band_hi, pairs)


def _usable(found: Linear) -> np.ndarray:
    return found.reliability * found.reliability[-1] > LEAST_RELIABLE


def _bound(found: Linear) -> np.ndarray:
    """What noise leaves of a perfect correlation of the means: the scale of Fisher's z."""
    return np.sqrt(np.clip(found.reliability * found.reliability[-1], LEAST_RELIABLE, 1))


def _at(found: Linear, s: int, rho: float) -> np.ndarray:
    """Qualities [2, P] of step s and T with the variances without noise and this correlation."""
    t, last = found.signal[s, 0, 0], found.signal[s, 1, 1]
    cross = np.clip(rho, -1, 1) * np.sqrt(t * last)
    return noise_free(found.means[[s, -1]], np.array([[t, cross], [cross, last]]))
