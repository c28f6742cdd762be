"""Intervals of Student's t: of a mean, and of any estimate with its standard error."""

import numpy as np
from scipy import stats


def quantile(level: float, degrees: float) -> float:
    """Half the width of a ``level`` interval in standard errors, with so many degrees of freedom."""
    return float(stats.t.ppf((1 + level) / 2, degrees))


def of_mean(values: np.ndarray, level: float, axis: int = -1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high over an axis of ``values`` [..., n, ...] -> three times [...]. One value: an interval of NaN."""
    values = np.asarray(values, dtype=float)
    n = values.shape[axis]
    mean = values.mean(axis=axis)
    if n < 2:
        return mean, np.nan * mean, np.nan * mean
    half = quantile(level, n - 1) * values.std(axis=axis, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half
