"""How sure a ranking statistic is: resampling of items and placements, noise ceilings, intervals that cover, bands over steps, seeds.

Two things are random, the items and the placements. For a statistic that averages over pairs of placements their shares of the variance
come apart without resampling noise a second time (the percentile bootstrap over items does that, and misses):

- V_P, over placements with the items fixed (see ``_placement_covariance``). It holds the sampling of placements and the item noise that
  is independent from placement to placement.
- V_I, jackknife over groups of items with the placements fixed: all item noise. Its *pure* part V_I' comes from products over pairs of
  pairs that share no placement: noise that placements have in common (an item that favours all placements with FA in layer 3).

Total variance: V_P + V_I' for a small sample of a large population of placements; V_I when every placement was scored; with a sampled
fraction f, (1 - f)(V_P - V_I + V_I') + V_I.
Shapes: S steps, P placements, I items, H halves, N sets of items (all, and all but each group), R any number of choices of items.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.statistics import pairs
from analysis.statistics.ranks import with_ties

PURE_FLOOR = 0.8
"""V_I' is unbiased and so may be negative by chance; it takes off at most a fifth of V_P."""


LEAST_RELIABLE = 0.05
"""Below this reliability (product of both steps) a ratio to the ceiling is not estimated: NaN, with the interval [-1, 1]."""


# --- resampling -----------------------------------------------------------------------------------------------------------------------


def split_halves(tasks: list[str], halves: int, rng: np.random.Generator) -> np.ndarray:
    """Random halves of the items, stratified by task: [halves, I] bool, True for the first half; odd tasks take turns to give one more."""
    names = np.unique(tasks, return_inverse=True)[1]
    order = np.argsort(names + rng.random((halves, len(tasks))), axis=1)  # by task, random within
    masks = np.zeros(order.shape, dtype=bool)
    # alternating along the order splits each task evenly; the random phase gives odd tasks' spare item to either half
    phase = rng.integers(2, size=(halves, 1))
    np.put_along_axis(masks, order, (np.arange(len(tasks)) + phase) % 2 == 0, axis=1)
    return masks


def item_groups(tasks: list[str], groups: int, rng: np.random.Generator) -> np.ndarray:
    """Items dealt into at most ``groups`` groups of nearly equal size, each task spread evenly over them: group of each item [I]."""
    names = np.unique(tasks, return_inverse=True)[1]
    order = np.argsort(names + rng.random(len(tasks)))
    dealt = np.empty(len(tasks), dtype=int)
    dealt[order] = np.arange(len(tasks)) % min(groups, len(tasks))
    return dealt


def item_weights(masks: np.ndarray, tasks: list[str]) -> np.ndarray:
    """Weights [R, I] that average the chosen items (masks [R, I], bool or counts) with every task at its share of all items.

    Rows sum to 1; a task without chosen items passes its share to the others. A row without items is NaN.
    """
    names = np.unique(tasks, return_inverse=True)[1]
    member = (names[:, None] == np.arange(names.max() + 1)).astype(float)  # [I, tasks]
    masks = np.asarray(masks, dtype=float)
    chosen = masks @ member
    share = np.divide(member.sum(axis=0), chosen, out=np.zeros_like(chosen), where=chosen > 0)
    weights = masks * share[:, names]
    with np.errstate(invalid="ignore"):
        return weights / weights.sum(axis=1, keepdims=True)


def difference_error(quality: np.ndarray) -> np.ndarray:
    """Standard error of the difference of any two placements' mean quality, items paired: quality [P, I] -> [P, P]."""
    items = quality.shape[1]
    if items < 2:
        return np.full((len(quality), len(quality)), np.nan)
    centred = quality - quality.mean(axis=1, keepdims=True)
    covariance = centred @ centred.T / (items - 1)
    variance = np.diag(covariance)
    return np.sqrt(np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0) / items)


# --- noise ceiling --------------------------------------------------------------------------------------------------------------------


def spearman_brown(r_half: np.ndarray) -> np.ndarray:
    """Reliability of all items from the correlation of two halves: 2 r / (1 + r), 0 where r is negative (Spearman 1910, Brown 1910)."""
    r_half = np.maximum(r_half, 0)
    return 2 * r_half / (1 + r_half)


def ceiling_tau(r_t: np.ndarray, r_T: np.ndarray) -> np.ndarray:
    """The τ that noise alone would leave of a perfect agreement: (2/π) asin √(r_t r_T) (Greiner's relation for normal qualities)."""
    return 2 / np.pi * np.arcsin(np.sqrt(r_t * r_T))


def half_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson r over placements between the two halves, averaged over the halves: [H, S, P] twice -> [S]. NaN for a constant step."""
    a, b = (m - m.mean(axis=-1, keepdims=True) for m in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))).mean(axis=0)


def tau_of(correlation: np.ndarray) -> np.ndarray:
    """Greiner's relation τ = (2/π) asin ρ, continued above 1 by 2 - τ(2 - ρ): an estimate of a perfect correlation may exceed 1, and
    cutting it there would make the mean of such estimates too low."""
    x = np.clip(correlation, -1, 3)
    inside = 2 / np.pi * np.arcsin(np.where(x > 1, 2 - x, x))
    return np.where(x > 1, 2 - inside, inside)


# --- agreement of each step with the last ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Agreement of every step with the last, over one set of placements. All arrays [S] or, for covariances, [S, S]."""

    tau: np.ndarray  # τ-b of the mean qualities over all items
    tau_cov: np.ndarray
    tau_cross: np.ndarray  # τ-b of t on one half of the items with T on the other
    r_half: np.ndarray  # Pearson correlation of the two halves at each step
    attenuation: np.ndarray  # of the correlation behind tau_cross: √(r_t r_T) of halves, from cross-half τ at the same step
    rho: np.ndarray  # correlation without item noise: sin(π tau_cross / 2) / attenuation; 1 at T; may exceed 1
    rho_cov: np.ndarray
    degrees: int  # of freedom of the variances


def agreement(
    quality: np.ndarray,
    tasks: list[str],
    rng: np.random.Generator,
    halves: int = 8,
    groups: int = 32,
    fraction: float = 0.0,
    cost: np.ndarray | None = None,
) -> Agreement:
    """τ with the last step as observed, across halves and freed of item noise, with covariances over steps: quality [S, P, I].

    ``rho`` divides on the scale where noise acts, the correlation: cross-half τ of t with T, of t with t and of T with T each become
    r = sin(π τ / 2) (Greiner), and ρ = r_tT / √(r_tt r_TT). All three come from the same halves and from ranks, so that ρ is 1 in
    expectation for an unchanged ranking whatever the distribution of quality. ``fraction``: share of the population of placements that
    was scored (see the module's docstring). ``cost`` [P]: all but ``tau`` compare at equal cost, see ``at_equal_cost``.
    """
    S, P, I = quality.shape
    masks = split_halves(tasks, halves, rng)
    group = item_groups(tasks, groups, rng)
    number = group.max() + 1
    raw = _items_first(quality - quality.mean(axis=1, keepdims=True))  # an item's level ranks nothing, and would cost float32 its digits
    fair = raw if cost is None else _items_first(at_equal_cost(quality, cost))

    kept = np.concatenate([np.ones((1, I), dtype=bool), group != np.arange(number)[:, None]])  # everything, then without each group

    def means(flat: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """chosen [..., I] -> [..., S, P]"""
        weights = item_weights(chosen.reshape(-1, I), tasks)
        return (weights @ flat).reshape(*chosen.shape[:-1], S, P)

    scale = np.abs(quality).max()  # of the scores themselves: what is left of them at equal cost may be rounding alone
    full = with_ties(means(raw, kept[:, None]), scale)  # [1 + groups, 1, S, P]
    tau, _, untied = _tau_b(pairs.sums(full[0], full[0]), 1, P)
    tau_cov = _two_way(_tau_slopes(tau, untied), full, full, fraction)
    tau_cov[-1] = tau_cov[:, -1] = 0  # T agrees with itself

    first, second = means(fair, masks & kept[:, None]), means(fair, ~masks & kept[:, None])  # [1 + groups, halves, S, P]
    r_half = half_correlation(first[0], second[0])
    first, second = with_ties(first, scale), with_ties(second, scale)
    tau_cross, tau_within, untied = _tau_b(pairs.sums(first[0], second[0]), halves, P)
    r = np.sin(np.pi / 2 * tau_within)
    usable = (r * r[-1] > LEAST_RELIABLE) & (r > 0)
    attenuation = np.sqrt(np.where(usable, r * r[-1], np.nan))
    rho = np.sin(np.pi / 2 * tau_cross) / attenuation
    with np.errstate(invalid="ignore"):
        rho_cov = _two_way(_rho_slopes(tau_cross, tau_within, untied), first, second, fraction)
    rho[-1] = 1.0 if usable[-1] else np.nan
    rho_cov[-1] = rho_cov[:, -1] = 0
    degrees = round((1 - fraction) * (P - 1) + fraction * (number - 1))
    return Agreement(tau, tau_cov, tau_cross, r_half, attenuation, rho, rho_cov, degrees)


def at_equal_cost(quality: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Quality with each item's linear trend in cost (and level) over placements removed, [S, P, I] -> [S, P, I]: even a narrow band ranks
    partly by cost, which is known beforehand and never drifts. A projection per item, so that halves of the items stay independent.
    """
    basis = np.stack([np.ones(len(cost)), cost - np.mean(cost)], axis=1)
    basis = basis[:, : 1 + (np.ptp(cost) > 1e-9)]
    basis = basis / np.linalg.norm(basis, axis=0)
    return quality - basis @ (basis.T @ quality)


def _items_first(quality: np.ndarray) -> np.ndarray:
    """[S, P, I] -> [I, S P]"""
    return np.ascontiguousarray(quality.transpose(2, 0, 1)).reshape(quality.shape[2], -1)


def _tau_b(sums: np.ndarray, halves: int, P: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """τ-b of each step with the last, of each step with itself in the other half, and the untied pairs; from ``pairs.sums`` [3, S]."""
    cross, within, tied = sums
    untied = 2.0 * halves * P * (P - 1) - tied
    untied = np.where(untied > 0, untied, np.nan)
    return cross / np.sqrt(untied * untied[-1]), within / untied, untied


def _tau_slopes(tau: np.ndarray, untied: np.ndarray) -> np.ndarray:
    """Derivative of τ-b with T by the sums of: cross, within, tied at t, within of T, tied at T -> [5, S]."""
    none = np.zeros_like(tau)
    return np.stack([1 / np.sqrt(untied * untied[-1]), none, tau / 2 / untied, none, tau / 2 / untied[-1]])


def _rho_slopes(tau: np.ndarray, own: np.ndarray, untied: np.ndarray) -> np.ndarray:
    """The same of ρ: dρ = ρ (d log r_tT - ½ d log r_tt - ½ d log r_TT), r = sin(π τ / 2)."""
    r, slope = np.sin(np.pi / 2 * own), np.pi / 2 * np.cos(np.pi / 2 * own)
    scale = np.sqrt(np.maximum(r * r[-1], LEAST_RELIABLE))
    rho = np.sin(np.pi / 2 * tau) / scale
    slopes = _tau_slopes(tau, untied) * np.pi / 2 * np.cos(np.pi / 2 * tau) / scale
    change = slope / np.maximum(r, LEAST_RELIABLE) / 2 / untied
    slopes[1] -= rho * change
    slopes[2] -= rho * change * own
    slopes[3] -= rho * change[-1]
    slopes[4] -= rho * change[-1] * own[-1]
    return slopes


def _placement_covariance(rows: np.ndarray, gram: np.ndarray, disjoint: float) -> np.ndarray:
    """Covariance [S, S] over placements of the sum of a kernel over ordered pairs, whose estimate is 0 (centred): from its row sums [S, P]
    and Gram matrix [S, S].

    Halfway between the jackknife, which counts noise of single pairs twice (Efron & Stein 1981), and the unbiased estimator from
    products of pairs that share a placement (Hoeffding 1948), whose own noise makes intervals slightly short: measured on settled
    rankings, where noise of pairs is most of it, they cover 98.5% and 92.5 to 95%.
    """
    S, P = rows.shape
    rows = rows - rows.mean(axis=1, keepdims=True)
    # leaving out p changes a U-statistic of degree 2 by 2 (row of p) P / (P - 2)
    jackknife = (2 * P / (P - 2)) ** 2 * (P - 1) / P * (rows @ rows.T)
    unbiased = (P * (P - 1)) ** 2 / disjoint * (rows @ rows.T - gram / 2)
    wanted = (np.diag(jackknife) + np.maximum(np.diag(unbiased), 0)) / 2
    scale = np.sqrt(np.divide(wanted, np.diag(jackknife), out=np.zeros(S), where=np.diag(jackknife) > 0))
    return jackknife * np.outer(scale, scale)


def _two_way(slopes: np.ndarray, first: np.ndarray, second: np.ndarray, fraction: float) -> np.ndarray:
    """Covariance over steps [S, S] of a statistic that is a function of sums over pairs of placements, with these derivatives [5, S].

    ``first``, ``second``: ranks [N, H, S, P] in both halves, with all items and with each group of them left out.
    """
    N, _, S, P = first.shape
    groups, n_pairs = N - 1, P * (P - 1) / 2
    disjoint = n_pairs * (n_pairs - 2 * (P - 1) + 1)  # ordered pairs of pairs that share no placement
    rows, gram = pairs.changes(first, second, np.nan_to_num(slopes))
    placements = _placement_covariance(rows[0], gram[0], disjoint)
    items, pure = np.zeros((S, S)), np.zeros((S, S))
    for row, own in zip(rows[1:], gram[1:], strict=True):
        total = row.sum(axis=1) / 2
        shared = row @ row.T - own / 2  # products of pairs with at least one placement in common
        items += 4 * np.outer(total, total)
        pure += 4 * (np.outer(total, total) - shared) * n_pairs**2 / disjoint
    items, pure = items * (groups - 1) / groups, pure * (groups - 1) / groups
    sampled = np.maximum(np.diag(placements + pure), PURE_FLOOR * np.diag(placements))
    wanted = (1 - fraction) * sampled + fraction * np.diag(items)
    # correlations over steps from a covariance that is surely positive, variances as derived
    safe = (1 - fraction) * placements + items
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(np.diag(safe) > 0, np.sqrt(wanted / np.diag(safe)), 0)
    return safe * np.outer(scale, scale)


# --- intervals ------------------------------------------------------------------------------------------------------------------------


def fisher_interval(
    value: np.ndarray, variance: np.ndarray, quantile: float | np.ndarray, bound: np.ndarray | float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a correlation that lies within ±1/bound: ± quantile standard errors on the scale atanh(bound · value), then back.

    With bound = the attenuation of a corrected correlation this is Fisher's z of what was observed, and nearly linear under much noise.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = np.clip(value * bound, -1 + 1e-12, 1 - 1e-12)
        step = quantile * np.sqrt(variance) * bound / (1 - seen**2)
        low, high = np.tanh(np.arctanh(seen) - step) / bound, np.tanh(np.arctanh(seen) + step) / bound
    exact = variance == 0
    return np.where(exact, value, low), np.where(exact, value, high)


def max_t_quantile(covariance: np.ndarray, level: float, resamples: int, rng: np.random.Generator) -> float:
    """The q for which estimate ± q standard errors holds at *all* steps at once with probability ``level``: the quantile of the largest
    |t| over steps, from ``resamples`` normal draws with the estimated covariance [S, S] (multiplier bootstrap of the influence values).
    """
    error = np.sqrt(np.diag(covariance))
    used = np.isfinite(error) & (error > 0)
    if not used.any():
        return float(stats.norm.ppf((1 + level) / 2))
    correlation = covariance[np.ix_(used, used)] / np.outer(error[used], error[used])
    values, vectors = np.linalg.eigh(correlation)
    draws = rng.standard_normal((resamples, int(used.sum()))) @ (vectors * np.sqrt(np.maximum(values, 0))).T
    return float(np.quantile(np.abs(draws).max(axis=1), level))
