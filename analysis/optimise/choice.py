"""The preset of every budget, and what to judge on fresh items."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.cost import coefficients_of, dearest, on_grid, placement_costs
from analysis.optimise.against_random import best_random
from analysis.optimise.constraints import Constraints, meets
from analysis.optimise.exact import at_budget, frontier
from analysis.statistics.intervals import quantile
from analysis.surrogate.expansion import ClusterExpansion
from analysis.surrogate.fitting import REACHES, fit
from analysis.table import Scores
from supernet.placement import COST

OBJECTIVE, SCORE = "loglik", "score"
"""What quality is: the likelihood of traces, or the column score of a table that has no likelihood."""


SHARES = np.array([10, 13, 18, 26, 36, 48]) / 48
"""Budgets of the published presets (10, 13, 18, 26 of 48) and two above, as shares of all-FA."""


def default_budgets(layers: int, cheapest: float = 0.0, full: float | None = None) -> list[float]:
    """The published budgets at another depth: whole FA layers from 20 layers on, tenths below; none under the cheapest placement's cost.

    ``full`` is what all-FA costs (default: one a layer); other units of cost move the rounding by their power of ten.
    """
    full = float(layers) if full is None else full
    digits = (0 if layers >= 20 else 1) - int(np.floor(np.log10(full / layers) + 1e-9))
    rounded = {round(float(share * full), digits) for share in SHARES}
    return sorted(budget for budget in rounded if budget >= cheapest - 1e-9)


def surrogate(
    scores: Scores, checkpoint: int = -1, reaches: Sequence[float] = REACHES, clusters: tuple[tuple[int, ...], ...] | None = None
) -> ClusterExpansion:
    """The surrogate of one checkpoint. All placements are scored on the same items, whose noise is known from the scores of each."""
    quality = scores.quality[checkpoint]
    return fit(scores.placements, quality.mean(axis=1), 0.0, clusters=clusters, items=quality, reaches=reaches)


def choose(
    expansion: ClusterExpansion, budgets: Sequence[float], coefficients: Mapping[str, float] = COST, k: int = 10,
    constraints: Constraints | None = None, level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """The preset of every budget: budget, placement, cost, predicted, sd, difference, error.

    Of the surrogate's k best placements within each budget and all scored ones, that whose quality is highest at the *lower* end of its
    interval, so that nothing wins by optimism alone. The interval is that of the difference to the dearest mixer in all layers (all-FA),
    the columns difference and error. So all-FA itself, once measured, is only replaced by what is surely better. Raises ValueError for
    a budget below the cheapest placement.
    """
    table = frontier(expansion, on_grid(coefficients), k, constraints)
    listed = [name for budget in budgets for name in at_budget(table, budget)["placement"]]
    known = [name for name in expansion.placements if constraints is None or meets(name, constraints)]
    names = list(dict.fromkeys([*known, *listed]))
    reference = max(expansion.letters, key=lambda letter: coefficients[letter]) * expansion.layers
    cost, (mean, sd) = placement_costs(names, coefficients), expansion.estimate(names)
    difference, error = expansion.estimate(names, against=reference)
    lower = difference - expansion.quantile(level) * error
    order = np.argsort(cost, kind="stable")  # of equally good ones the cheaper
    best = [int(order[np.argmax(np.where(cost <= budget + 1e-9, lower, -np.inf)[order])]) for budget in budgets]
    columns = ["placement", "cost", "predicted", "sd", "difference", "error"]
    chosen = pd.DataFrame(dict(zip(columns, (names, cost, mean, sd, difference, error), strict=True))).iloc[best].reset_index(drop=True)
    chosen.insert(0, "budget", np.asarray(budgets, float))
    return chosen


def winners(run: Path, scores: Scores, last: Scores) -> list[str]:
    """What to judge on fresh items: the presets of the default budgets at the last checkpoint, the best of the random sample at the same
    budgets, and all-FA that both are held against."""
    expansion, coefficients = surrogate(last), coefficients_of(scores.placements, scores.cost)
    budgets = budgets_of(expansion, coefficients)
    chosen = choose(expansion, budgets, coefficients)["placement"]
    return list(dict.fromkeys([*chosen, *best_random(run, scores, budgets).values(), all_attention(expansion, coefficients)]))


def presets(
    last: Scores, expansion: ClusterExpansion, budgets: Sequence[float], coefficients: Mapping[str, float] = COST,
    fresh: pd.DataFrame | None = None, level: float = 0.95, corrected: pd.DataFrame | None = None, objective: str = OBJECTIVE,
) -> dict:  # fmt: skip
    """The presets of the last checkpoint as plain data for presets.yaml, by name ``<objective>-<budget>``.

    Intervals are of this ``level``. ``fresh`` (from ``load_fresh``) has the qualities of winners on items that did not choose them.
    ``measured`` and ``retention`` come from there where both the preset and all-FA have them (``fresh_items`` true), else from the items
    that also helped to choose, which favours the preset, and are null and a prediction where the preset was not scored at all.
    ``difference`` is quality minus that of all-FA, its interval from differences paired by item (predicted where all-FA was not scored);
    retention is its exponential. ``corrected`` (from ``optimism.optimum``) adds ``optimum``: quality and difference with intervals
    that know that the placement was chosen; retention of an unscored preset then comes from there.
    Of another ``objective`` than likelihood quality is an accuracy, and retention its ratio to that of all-FA, which is held fixed (null
    where all-FA has none).
    """
    full, wide = all_attention(expansion, coefficients), expansion.quantile(level)
    same = {p: last.quality[-1, i] for i, p in enumerate(last.placements)}
    new = {} if fresh is None else {str(p): own.to_numpy() for p, own in fresh.iterrows()}
    named = {}
    for row in choose(expansion, budgets, coefficients, level=level).itertuples():
        (ahead,), (error,) = expansion.estimate([row.placement], against=full)
        difference = _interval(ahead, error, wide)
        entry = {
            "budget": float(row.budget), "placement": row.placement, "cost": float(row.cost),
            "layers": {mixer: row.placement.count(mixer) for mixer in expansion.letters},
            "predicted": _interval(row.predicted, row.sd, wide, "quality") | {"difference": difference}, "measured": None,
        }  # fmt: skip
        if corrected is not None:
            known = corrected[np.isclose(corrected["budget"], row.budget)].iloc[0]
            difference = _ends(known, "difference_corrected")
            entry["optimum"] = _ends(known, "corrected", "quality") | {"difference": difference, "worlds": int(known["worlds"])}
        table = new if row.placement in new and full in new else same
        if row.placement in table:
            own = table[row.placement]
            paired = quantile(level, len(own) - 1)
            if full in table:
                difference = _interval(*mean_and_error(own - table[full]), paired)
            entry["measured"] = _interval(*mean_and_error(own), paired, "quality")
            entry["measured"] |= {"difference": difference, "items": len(own), "fresh_items": table is new}
        if objective == OBJECTIVE:
            entry["retention"] = {key: round(float(np.exp(value)), 6) for key, value in difference.items()}
        else:
            whole = float(table[full].mean()) if full in table else float(expansion.estimate([full])[0][0])
            entry["retention"] = {k: round(1 + float(v) / whole, 6) if whole > 0 else None for k, v in difference.items()}
        named[f"{objective}-{row.budget:g}"] = entry
    return named


def all_attention(expansion: ClusterExpansion, coefficients: Mapping[str, float]) -> str:
    """What presets are held against: full attention in all layers, or the dearest mixer where another project's letters hold no F."""
    return dearest(expansion.letters, coefficients) * expansion.layers


def budgets_of(expansion: ClusterExpansion, coefficients: Mapping[str, float]) -> list[float]:
    """The default budgets at these costs."""
    grid, layers = on_grid(coefficients), expansion.layers
    full = layers * coefficients[dearest(expansion.letters, coefficients)]
    return default_budgets(layers, layers * min(grid[mixer] for mixer in expansion.letters), full)


def _ends(row: pd.Series, column: str, name: str = "value") -> dict[str, float]:
    return {key: round(float(row[c]), 6) for key, c in ((name, column), ("lo", f"{column}_lo"), ("hi", f"{column}_hi"))}


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _interval(mean: float, error: float, quantile: float, name: str = "value") -> dict[str, float]:
    """``quantile`` standard errors to either side."""
    return {key: round(float(value), 6) for key, value in ((name, mean), ("lo", mean - quantile * error), ("hi", mean + quantile * error))}
