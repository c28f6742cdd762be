"""Accuracy that a placement keeps of a reference's, paired by item: difference, and ratio with Fieller's interval.

Letters: K kinds of value (a placement's and its reference's), I items.
"""

import numpy as np

from analysis.statistics.intervals import quantile

NEAR_CHANCE = 2.0
"""Standard errors: where the reference is no further above guessing, there is nothing to keep."""


def retention(own: np.ndarray, reference: np.ndarray, tasks: list[str], chance: np.ndarray, level: float) -> dict[str, float]:
    """accuracy, reference, difference (own less reference), retention (own over reference), each with _lo and _hi of ``level``.

    ``own``, ``reference``, ``chance`` [I]: scores of the same items, 0 to 1. Means over all items; errors are those of items drawn within
    their tasks, which is what leaving out one item at a time gives. The ratio's interval is Fieller's (1954, J. R. Stat. Soc. B 16, eq. 9).
    Retention is NaN, "no data", where the reference is within two standard errors of chance, or the interval has no end.
    """
    means, covariance, degrees = _stratified(np.stack([own, reference]), tasks)
    q = quantile(level, max(degrees, 1))
    (a, b), (va, vb, cab) = means, (covariance[0, 0], covariance[1, 1], covariance[0, 1])
    errors = {"accuracy": va, "reference": vb, "difference": max(va + vb - 2 * cab, 0.0)}
    found = {}
    for name, value in (("accuracy", a), ("reference", b), ("difference", a - b)):
        half = q * np.sqrt(errors[name])
        found |= {name: value, f"{name}_lo": value - half, f"{name}_hi": value + half}
    ratio = (np.nan, np.nan, np.nan)
    if b - float(np.mean(chance)) > NEAR_CHANCE * np.sqrt(vb) and b > 0:
        ratio = (a / b, *fieller(a, b, va, vb, cab, q))
    return found | dict(zip(("retention", "retention_lo", "retention_hi"), ratio, strict=True))


def fieller(a: float, b: float, va: float, vb: float, cab: float, q: float) -> tuple[float, float]:
    """The R for which a - R b is within ``q`` standard errors of 0; NaN twice where they have no bounds."""
    square = b * b - q * q * vb
    middle, last = a * b - q * q * cab, a * a - q * q * va
    inside = middle * middle - square * last
    if square <= 0 or inside < -1e-12:
        return np.nan, np.nan
    root = np.sqrt(max(inside, 0.0))
    return (middle - root) / square, (middle + root) / square


def _stratified(values: np.ndarray, tasks: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Means [K] of values [K, I], their covariance [K, K] over items within tasks, and its degrees of freedom."""
    stratum = np.unique(tasks, return_inverse=True)[1]
    count = np.bincount(stratum)
    stratum = np.where(count[stratum] < 2, -1, stratum)  # tasks of a single item share a stratum
    I = values.shape[1]
    covariance, degrees = np.zeros((len(values), len(values))), 0
    for k in np.unique(stratum):
        part = values[:, stratum == k]
        n = part.shape[1]
        if n > 1:
            covariance += (n / I) ** 2 * np.cov(part) / n
            degrees += n - 1
    return values.mean(axis=1), covariance, degrees
