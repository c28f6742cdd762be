"""What the optimiser found against the best of the random sample, at the same budgets and judged on items that chose neither."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from analysis.cost import placement_costs
from analysis.statistics.intervals import of_mean
from analysis.table import Scores, load_placements

RANDOM = ("local", "counts", "band", "exhaustive")
"""Sources of placements that no surrogate and no person chose."""


def best_random(run: Path, scores: Scores, budgets: Sequence[float]) -> dict[float, str]:
    """The measured best of the run's random sample within each budget at the last checkpoint, as a random search would answer.

    A budget under the cheapest of them is left out. Without a placement table all placements count as random.
    """
    table = (run if run.is_dir() else run.parent) / "placements.parquet"
    quality = pd.Series(scores.quality[-1].mean(axis=1), index=scores.placements)
    cost = pd.Series(scores.cost, index=scores.placements)
    if table.exists():
        listed = load_placements(table)
        quality = quality[quality.index.isin(listed["placement"][listed["source"].isin(RANDOM)])]
    cost = cost[quality.index]
    return {budget: str(quality[cost <= budget + 1e-9].idxmax()) for budget in budgets if (cost <= budget + 1e-9).any()}


def found(
    presets: Mapping[float, str],
    randoms: Mapping[float, str],
    fresh: pd.DataFrame,
    full: str,
    coefficients: Mapping[str, float],
    level: float,
) -> pd.DataFrame:
    """A row per budget at which both were judged on fresh items: the preset and the random best, nats per token with t intervals.

    ``preset_ahead`` and ``random_ahead`` are their qualities less that of all-FA (``full``), ``difference`` is the preset's less the random
    best's, all paired by item. ``fresh`` is what ``load_fresh`` gives: placements × items.
    """
    rows = []
    for budget, preset in presets.items():
        random = randoms.get(budget)
        if random is None or not {preset, random, full} <= set(fresh.index):
            continue
        own, other, reference = (fresh.loc[name].to_numpy() for name in (preset, random, full))
        costs = placement_costs([preset, random], coefficients)
        row = {"budget": budget, "preset": preset, "preset_cost": costs[0], "random": random, "random_cost": costs[1], "items": len(own)}
        for name, values in (("preset_ahead", own - reference), ("random_ahead", other - reference), ("difference", own - other)):
            row |= dict(zip((name, f"{name}_lo", f"{name}_hi"), of_mean(values, level), strict=True))
        rows.append(row)
    return pd.DataFrame(rows)
