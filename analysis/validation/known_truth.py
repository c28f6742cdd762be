"""Searches judged by the true landscape of an exhaustively scored run.

Letters: P placements, B budgets, R repetitions.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.cost import UNIT, on_grid, placement_costs, unit_of
from analysis.optimise.searches import SEARCHES, search
from analysis.statistics.intervals import of_mean
from analysis.surrogate.design import alphabet
from supernet.placement import COST


def best_within(cost: np.ndarray, value: np.ndarray, budgets: np.ndarray, unit: float = UNIT) -> np.ndarray:
    """Index [B] of the best of ``value`` among what costs at most each budget; of equal values the cheaper."""
    order = np.lexsort((-value, cost))
    leader = np.maximum.accumulate(value[order])
    first = np.r_[True, leader[1:] > leader[:-1]]
    index = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    return order[index[np.searchsorted(cost[order], budgets + unit / 2) - 1]]


def experiment(
    placements: list[str], quality: np.ndarray, evaluations: Sequence[int], repetitions: int, seed: int = 0,
    coefficients: Mapping[str, float] = COST,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Budgets [B] and regret [evaluations, methods, repetitions, B] of every search on one true landscape ``quality`` [P].

    Regret at a budget: true quality of the truly best placement that fits minus that of the search's choice, nats per token. Budgets are
    every step of the grid of costs from the cheapest placement to the dearest. Raises ValueError when not all placements are there.
    """
    letters, layers = alphabet(placements), len(placements[0])
    if len(placements) != len(letters) ** layers:
        raise ValueError(
            f"{len(placements)} of {len(letters) ** layers} placements are scored: the truth must be known, run an exhaustive sweep"
        )
    if max(evaluations) > len(placements) // 2:
        raise ValueError(f"{max(evaluations)} evaluations of {len(placements)} placements is no search: ask for at most half of them")
    price, unit = on_grid(coefficients), unit_of(coefficients)
    cost, index = placement_costs(placements, price), {p: i for i, p in enumerate(placements)}
    budgets = np.arange(round(cost.min() / unit), round(cost.max() / unit) + 1) * unit
    best = quality[best_within(cost, quality, budgets, unit)]
    regret = np.empty((len(evaluations), len(SEARCHES), repetitions, len(budgets)))
    for e, m, r in np.ndindex(regret.shape[:3]):
        rng = np.random.default_rng([seed, evaluations[e], m, r])
        found = search(lambda p: quality[index[p]], list(SEARCHES)[m], evaluations[e], layers, letters, rng, price)
        rows = np.array([index[p] for p in found])
        regret[e, m, r] = best - quality[rows[best_within(cost[rows], np.array(list(found.values())), budgets, unit)]]
    return budgets, regret


def summarise(samples: np.ndarray, name: str, level: float, most: float = np.inf) -> dict[str, float]:
    """Mean over repetitions [R] with its t interval, cut at 0 (neither regret nor a share can be less) and at ``most``."""
    mean, lo, hi = of_mean(samples, level)
    return {name: mean, f"{name}_lo": max(lo, 0.0), f"{name}_hi": min(hi, most)}


def truth_experiment(
    placements: list[str], quality: np.ndarray, evaluations: Sequence[int] = (128, 256), repetitions: int = 20, seed: int = 0,
    coefficients: Mapping[str, float] = COST, level: float = 0.95,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Two tables for the true landscapes ``quality`` [S, P] of the checkpoints (numbered in ``checkpoint``).

    The first has a row per checkpoint, evaluations, method: mean regret over all budgets, and ``found``, the share of budgets where the
    true best is found (equal value). The second has the regret at each of 25 budgets. Each with its t interval over repetitions;
    ``spread`` is the standard deviation of the true quality over all placements, for scale.
    """
    if repetitions < 2:
        raise ValueError(f"{repetitions} repetition gives no interval: ask for at least 2")
    summary, by_budget = [], []
    for checkpoint, landscape in enumerate(quality):
        budgets, regret = experiment(placements, landscape, evaluations, repetitions, seed, coefficients)
        shown = np.unique(np.linspace(0, len(budgets) - 1, 25).round().astype(int))
        for (e, n), (m, method) in ((e, m) for e in enumerate(evaluations) for m in enumerate(SEARCHES)):
            row = {"checkpoint": checkpoint, "evaluations": n, "method": method, "repetitions": repetitions, "spread": landscape.std()}
            samples, found = regret[e, m], regret[e, m] <= 1e-12
            summary.append(row | summarise(samples.mean(axis=1), "regret", level) | summarise(found.mean(axis=1), "found", level, most=1.0))
            by_budget += [
                row | {"budget": round(budgets[b], 2)} | summarise(samples[:, b], "regret", level) | {"found": found[:, b].mean()}
                for b in shown
            ]
    return pd.DataFrame(summary), pd.DataFrame(by_budget)
