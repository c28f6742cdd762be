"""The preset of every budget, and what to judge on fresh items."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.cost import placement_costs
from analysis.optimise.against_random import best_random
from analysis.optimise.constraints import Constraints, meets
from analysis.optimise.exact import at_budget, frontier
from analysis.surrogate.expansion import ClusterExpansion
from analysis.surrogate.fitting import REACHES, fit
from analysis.table import Scores
from supernet.placement import COST

OBJECTIVE = "loglik"


SHARES = np.array([10, 13, 18, 26, 36, 48]) / 48
"""Budgets of the published presets (10, 13, 18, 26 of 48) and two above, as shares of all-FA."""


def default_budgets(layers: int, cheapest: float = 0.0) -> list[float]:
    """The published budgets at another depth: whole FA layers from 20 layers on, tenths below; none under the cheapest placement's cost."""
    rounded = {round(float(share * layers), 0 if layers >= 20 else 1) for share in SHARES}
    return sorted(budget for budget in rounded if budget >= cheapest - 1e-9)


def surrogate(scores: Scores, checkpoint: int = -1, reaches: Sequence[float] = REACHES) -> ClusterExpansion:
    """The surrogate of one checkpoint. All placements are scored on the same items, whose noise is known from the scores of each."""
    quality = scores.quality[checkpoint]
    return fit(scores.placements, quality.mean(axis=1), 0.0, items=quality, reaches=reaches)


def choose(
    expansion: ClusterExpansion, budgets: Sequence[float], coefficients: Mapping[str, float] = COST, k: int = 10,
    constraints: Constraints | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The preset of every budget: budget, placement, cost, predicted, sd, difference, error.

    Of the surrogate's k best placements within each budget and all scored ones, that whose quality is highest at the *lower* end of its 95%
    interval, so that nothing wins by optimism alone. The interval is that of the difference to the dearest mixer in all layers (all-FA),
    the columns difference and error: all-FA itself, once measured, is only replaced by what is surely better. Raises ValueError for
    a budget below the cheapest placement.
    """
    table = frontier(expansion, coefficients, k, constraints)
    listed = [name for budget in budgets for name in at_budget(table, budget)["placement"]]
    known = [name for name in expansion.placements if constraints is None or meets(name, constraints)]
    names = list(dict.fromkeys([*known, *listed]))
    cost, (mean, sd) = placement_costs(names, coefficients), expansion.estimate(names)
    difference, error = expansion.estimate(names, against=max(expansion.letters, key=coefficients.get) * expansion.layers)
    lower = difference - expansion.quantile * error
    best = [int(np.argmax(np.where(cost <= budget + 1e-9, lower, -np.inf))) for budget in budgets]
    columns = ["placement", "cost", "predicted", "sd", "difference", "error"]
    chosen = pd.DataFrame(dict(zip(columns, (names, cost, mean, sd, difference, error), strict=True))).iloc[best].reset_index(drop=True)
    chosen.insert(0, "budget", np.asarray(budgets, float))
    return chosen


def winners(run: Path, scores: Scores, last: Scores, coefficients: Mapping[str, float] = COST) -> list[str]:
    """What to judge on fresh items: the presets of the default budgets at the last checkpoint, the best of the random sample at the same
    budgets, and all-FA that both are held against."""
    expansion = surrogate(last)
    budgets = budgets_of(expansion, coefficients)
    chosen = choose(expansion, budgets, coefficients)["placement"]
    return list(dict.fromkeys([*chosen, *best_random(run, scores, budgets, coefficients).values(), all_attention(expansion)]))


def presets(
    last: Scores, expansion: ClusterExpansion, budgets: Sequence[float], coefficients: Mapping[str, float] = COST,
    fresh: pd.DataFrame | None = None,
) -> dict:  # fmt: skip
    """The presets of the last checkpoint as plain data for presets.yaml, by name ``loglik-<budget>``.

    Intervals are 95%. ``fresh`` (from ``load_fresh``) has the qualities of winners on items that did not choose them. ``measured`` and
    ``retention`` come from there where both the preset and all-FA have them (``fresh_items`` true), else from the items that also helped to
    choose, which favours the preset, and are null and a prediction where the preset was not scored at all. ``difference`` is quality minus
    that of all-FA, its interval from differences paired by item (predicted where all-FA was not scored); retention is its exponential.
    """
    full = all_attention(expansion)
    same = {p: last.quality[-1, i] for i, p in enumerate(last.placements)}
    new = {} if fresh is None else {str(p): own.to_numpy() for p, own in fresh.iterrows()}
    named = {}
    for row in choose(expansion, budgets, coefficients).itertuples():
        (ahead,), (error,) = expansion.estimate([row.placement], against=full)
        difference = _interval(ahead, error, expansion.quantile)
        entry = {
            "budget": float(row.budget), "placement": row.placement, "cost": float(row.cost),
            "layers": {mixer: row.placement.count(mixer) for mixer in expansion.letters},
            "predicted": _interval(row.predicted, row.sd, expansion.quantile, "quality") | {"difference": difference}, "measured": None,
        }  # fmt: skip
        table = new if row.placement in new and full in new else same
        if row.placement in table:
            own = table[row.placement]
            quantile = student.ppf(0.975, len(own) - 1)
            if full in table:
                difference = _interval(*_mean_and_error(own - table[full]), quantile)
            entry["measured"] = _interval(*_mean_and_error(own), quantile, "quality")
            entry["measured"] |= {"difference": difference, "items": len(own), "fresh_items": table is new}
        entry["retention"] = {key: round(float(np.exp(value)), 6) for key, value in difference.items()}
        named[f"{OBJECTIVE}-{row.budget:g}"] = entry
    return named


def all_attention(expansion: ClusterExpansion) -> str:
    if "F" not in expansion.letters:
        raise ValueError("no placement with F was scored: retention needs all-FA, score it too")
    return "F" * expansion.layers


def budgets_of(expansion: ClusterExpansion, coefficients: Mapping[str, float] = COST) -> list[float]:
    return default_budgets(expansion.layers, expansion.layers * min(coefficients[mixer] for mixer in expansion.letters))


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _interval(mean: float, error: float, quantile: float, name: str = "value") -> dict[str, float]:
    """95%: ``quantile`` standard errors to either side."""
    return {key: round(float(value), 6) for key, value in ((name, mean), ("lo", mean - quantile * error), ("hi", mean + quantile * error))}
