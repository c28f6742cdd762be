"""What the optimiser found against the best of the random sample, at the same budgets and judged on items that chose neither."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.cost import placement_costs
from analysis.table import Scores, load_placements
from supernet.placement import COST

RANDOM = ("local", "counts", "band", "exhaustive")
"""Sources of placements that no surrogate and no person chose."""


def best_random(run: Path, scores: Scores, budgets: Sequence[float], coefficients: Mapping[str, float] = COST) -> dict[float, str]:
    """The measured best of the run's random sample within each budget at the last checkpoint, as a random search would answer.

    A budget under the cheapest of them is left out. Without a placement table all placements count as random.
    """
    table = (run if run.is_dir() else run.parent) / "placements.parquet"
    quality = pd.Series(scores.quality[-1].mean(axis=1), index=scores.placements)
    if table.exists():
        listed = load_placements(table)
        quality = quality[quality.index.isin(listed["placement"][listed["source"].isin(RANDOM)])]
    cost = placement_costs(list(quality.index), coefficients) if len(quality) else np.array([])
    return {budget: str(quality[cost <= budget + 1e-9].idxmax()) for budget in budgets if (cost <= budget + 1e-9).any()}


def found(
    presets: Mapping[float, str], randoms: Mapping[float, str], fresh: pd.DataFrame, full: str, coefficients: Mapping[str, float] = COST
) -> pd.DataFrame:
    """A row per budget at which both were judged on fresh items: the preset and the random best, nats per token with 95% t intervals.

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
            half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
            row |= {name: values.mean(), f"{name}_lo": values.mean() - half, f"{name}_hi": values.mean() + half}
        rows.append(row)
    return pd.DataFrame(rows)
