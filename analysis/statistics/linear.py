"""Correlation of two checkpoints without item noise, from covariances of disjoint items; its items and placements left out in turn."""

from dataclasses import dataclass

import numpy as np

from analysis.statistics.uncertainty import at_equal_cost, item_groups


@dataclass(frozen=True)
class Linear:
    """Correlation of every step with the last over one set of placements. S steps, P placements, G groups of items."""

    rho: np.ndarray  # [S], 1 at T; may exceed 1 by chance; NaN where the noise hides all spread
    covariance: np.ndarray  # [S, S], over items and placements
    of_items: np.ndarray  # [S] variance over items alone, the placements fixed
    without_items: np.ndarray  # [G, S] rho without each group of items
    means: np.ndarray  # [S, P] mean quality, centred (and at equal cost)
    signal: np.ndarray  # [S, 2, 2] covariance of (t, T) without item noise
    reliability: np.ndarray  # [S] share of the observed variance that is not item noise
    degrees: int


def linear(
    quality: np.ndarray, tasks: list[str], groups: int, rng: np.random.Generator, fraction: float = 0.0, cost: np.ndarray | None = None
) -> Linear:
    """ρ(t) = c(t, T) / √(c(t, t) c(T, T)), c the covariance over placements of means of *disjoint* items: quality [S, P, I].

    c(s, t) is the mean over all ways to take s from some items of each task and t from others, in closed form: the covariance of the
    means less the covariance over items within tasks of their error (Cochran 1977, eq. 5.12). No normal law is assumed.

    Variance: V_items + V_placements - V_both, from the values without item group g and placement i: jackknives of both main effects
    less the interaction, which both count (Efron & Stein 1981). ``fraction``: share of the population of placements that was scored; at
    1 only V_items is left. ``cost`` [P]: compare at equal cost.
    """
    S, P, I = quality.shape
    fair = at_equal_cost(quality, cost) if cost is not None else quality - quality.mean(axis=1, keepdims=True)
    task = np.unique(tasks, return_inverse=True)[1]
    group = item_groups(tasks, groups, rng)
    G = int(group.max()) + 1
    means, whole, noise = _products(fair, task, np.ones(I, dtype=bool))
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = _correlation(whole.sum(axis=2))
        left = np.stack([_products(fair, task, group != g)[1] for g in range(G)])  # [G, 3, S, P]
        without_items = _correlation(left.sum(axis=3).transpose(1, 0, 2))
        without_both = _correlation((left.sum(axis=3)[..., None] - left * P / (P - 1)).transpose(1, 0, 2, 3))  # [G, S, P]
    known = np.isfinite(rho)
    both = np.where(np.isfinite(without_both), without_both, np.nanmean(np.where(np.isfinite(without_both), without_both, 0)))
    level = both.mean(axis=(0, 2), keepdims=True)
    of_group, of_placement = both.mean(axis=2, keepdims=True) - level, both.mean(axis=0, keepdims=True) - level
    interaction = (G - 1) * (P - 1) / (G * P) * ((both - level - of_group - of_placement) ** 2).sum(axis=(0, 2))
    items = (G - 1) / G * of_group[:, :, 0].T @ of_group[:, :, 0]
    placements = (P - 1) / P * of_placement[0] @ of_placement[0].T
    variance = np.maximum(np.diag(items) + np.diag(placements) - interaction, np.maximum(np.diag(items), np.diag(placements)))
    wanted = (1 - fraction) * variance + fraction * np.diag(items)
    safe = items + placements
    scale = np.sqrt(np.divide(wanted, np.diag(safe), out=np.zeros(S), where=np.diag(safe) > 0))
    covariance = safe * np.outer(scale, scale)
    total = whole.sum(axis=2) / (P - 1)
    rho[-1] = 1.0 if known[-1] else np.nan
    covariance[-1] = covariance[:, -1] = 0
    tt, cross, last = total
    signal = np.stack([np.stack([tt, cross], axis=1), np.stack([cross, last], axis=1)], axis=1)
    observed = (means**2).sum(axis=1) / (P - 1)
    reliability = np.divide(observed - noise, observed, out=np.zeros(S), where=observed > 0)
    degrees = round((1 - fraction) * min(P - 1, G - 1) + fraction * (G - 1))
    return Linear(rho, covariance, np.diag(items).copy(), without_items, means, signal, np.maximum(reliability, 0), degrees)


def _products(fair: np.ndarray, task: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per placement, products of disjoint items' means: fair [S, P, I] -> means [S, P], (tt, tT, TT) [3, S, P], noise variance [S]."""
    S, P, I = fair.shape
    sizes = np.bincount(task)
    held = np.bincount(task[keep], minlength=len(sizes))
    stratum = np.where(held[task] >= 2, task, len(sizes))  # tasks with a single item left share a stratum
    means, own = np.zeros((S, P)), np.zeros((2, S, P))
    for k in np.unique(stratum[keep]):
        items = np.flatnonzero((stratum == k) & keep)
        share = (stratum == k).sum() / I
        part = fair[:, :, items]
        mean = part.mean(axis=2)
        means += share * mean
        if len(items) > 1:
            scale = share**2 / (len(items) * (len(items) - 1))
            own[0] += scale * (np.einsum("spi,spi->sp", part, part) - len(items) * mean**2)
            own[1] += scale * (np.einsum("spi,pi->sp", part, part[-1]) - len(items) * mean * mean[-1])
    products = np.stack([means**2 - own[0], means * means[-1] - own[1], np.broadcast_to(means[-1] ** 2 - own[0, -1], (S, P))])
    return means, products, own[0].sum(axis=1) / (P - 1)


def _correlation(sums: np.ndarray) -> np.ndarray:
    """ρ from (tt, tT, TT) [3, ...]; NaN where a variance without noise is not positive."""
    product = sums[0] * sums[2]
    usable = (sums[0] > 0) & (sums[2] > 0)
    return np.where(usable, sums[1] / np.sqrt(np.where(usable, product, 1)), np.nan)
