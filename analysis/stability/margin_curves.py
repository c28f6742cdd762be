"""Order over the margins with its intervals, for every step of one set of placements.

Letters: S steps (the last is T), P placements, D margins δ.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.stability.endpoints import Endpoints
from analysis.statistics import intervals
from analysis.statistics.linear import Linear
from analysis.statistics.margins import DELTAS, noise_free, order_curve
from analysis.statistics.uncertainty import fisher_interval, max_t_quantile

FLOOR = 0.5
"""Placements displaced: half of one, by chance, is what no sample can exclude. The least half-width of ``order`` is this over P where
all pairs count, and more where few do: the same pairs turned are a larger share of those."""

LEAST_RELIABLE = 0.05
"""Below this reliability (product of both steps) nothing is estimated: NaN, with the interval [-1, 1]."""


@dataclass(frozen=True)
class MarginCurves:
    """order(t, δ) of every step t with its intervals: [S, D]; ``pairs`` [S, D] beyond δ. Beyond which no pair is: NaN, [-1, 1]."""

    order: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    band_lo: np.ndarray
    band_hi: np.ndarray
    pairs: np.ndarray
    together: float  # half-widths for all steps at once, as a multiple of those of one


def margin_curves(found: Linear, endpoints: Endpoints, rng: np.random.Generator, fraction: float = 0.0) -> MarginCurves:
    """order over the margins, from qualities whose covariance is that without item noise.

    Two sources of error, added as squares. Items: the curve at the ends of the interval of ρ over items (so it stays within 1, and is
    wide where a small change of ρ matters). Placements: the jackknife of the curve. ``FLOOR`` keeps it from width zero.
    """
    S, P = found.means.shape
    q = intervals.quantile(endpoints.level, found.degrees)
    widen = q / stats.norm.ppf((1 + endpoints.level) / 2)
    together = max(1.0, widen * max_t_quantile(found.covariance, endpoints.level, endpoints.resamples, rng) / q)
    low, high = fisher_interval(found.rho, found.of_items, q, bound(found))
    order, lo, hi, band_lo, band_hi, pairs = (np.full((S, len(DELTAS)), v) for v in (np.nan, -1.0, 1.0, -1.0, 1.0, 0.0))
    for s in np.flatnonzero(np.isfinite(found.rho) & usable(found)):
        order[s], pairs[s], variance = order_curve(_at(found, s, found.rho[s]))
        if s == S - 1:
            order[s] = lo[s] = hi[s] = band_lo[s] = band_hi[s] = 1.0
            continue
        worse, better = ((order_curve(_at(found, s, r))[0],) for r in (low[s], high[s]))
        below, above = half_widths(order[s], pairs[s], P, (1 - fraction) * q**2 * variance, worse, better)
        lo[s], hi[s] = ends(order[s], below, above)
        band_lo[s], band_hi[s] = ends(order[s], together * below, together * above)
    return MarginCurves(order, lo, hi, band_lo, band_hi, pairs, together)


def half_widths(
    order: np.ndarray, pairs: np.ndarray, P: int, placements: np.ndarray, worse: tuple[np.ndarray, ...], better: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """How far the interval of a curve [D] reaches down and up [D]: the squared half-width over ``placements`` and the squared steps to
    the curves at the worse and better ends of what items leave open, summed. Infinite where no pair is so far apart."""
    with np.errstate(divide="ignore"):
        least = FLOOR / P * np.where(pairs > 0, pairs[0] / pairs, np.inf)

    def reach(sign: int, curves: tuple[np.ndarray, ...]) -> np.ndarray:
        steps = [np.maximum(sign * np.nan_to_num(curve - order), 0) ** 2 for curve in curves]
        return np.maximum(np.sqrt(np.nan_to_num(placements) + sum(steps)), least)

    down, up = reach(-1, worse), reach(1, better)
    # disagreement is a count: on the scale of its square root the bound lies further out (h² / 4d), at most a quarter
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(down + down**2 / (4 * np.maximum(1 - order, down)), nan=np.inf), up


def ends(order: np.ndarray, below: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval [D] from order - below to order + above within ±1; all of that where order is not known."""
    known, middle = np.isfinite(order), np.nan_to_num(order)
    return np.where(known, np.maximum(middle - below, -1), -1), np.where(known, np.minimum(middle + above, 1), 1)


def usable(found: Linear) -> np.ndarray:
    """Whether noise leaves enough to estimate from [S]."""
    return found.reliability * found.reliability[-1] > LEAST_RELIABLE


def bound(found: Linear) -> np.ndarray:
    """What noise leaves of a perfect correlation of the means [S]: the scale of Fisher's z."""
    return np.sqrt(np.clip(found.reliability * found.reliability[-1], LEAST_RELIABLE, 1))


def _at(found: Linear, s: int, rho: float) -> np.ndarray:
    """Qualities [2, P] of step s and T with the variances without noise and this correlation."""
    t, last = found.signal[s, 0, 0], found.signal[s, 1, 1]
    cross = np.clip(rho, -1, 1) * np.sqrt(t * last)
    return noise_free(found.means[[s, -1]], np.array([[t, cross], [cross, last]]))
