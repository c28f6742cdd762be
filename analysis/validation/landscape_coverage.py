"""Coverage of the primary endpoints at the step that decides, and how often a verdict is right."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.stability.endpoints import Endpoints
from analysis.stability.margin_columns import margin_columns
from analysis.statistics.margins import DELTAS, resolution, row_sums
from analysis.validation.landscapes import Landscape, landscape_scores

POPULATION, POPULATIONS = 300, 500
"""Placements from which the truth of a world is taken, and how often: its error of order is then 0.002 at most."""


def truth_of(world: Landscape, endpoints: Endpoints, seed: int) -> dict[str, float]:
    """order, resolution and linear of the step before T, of many populations without noise."""
    rng = np.random.default_rng(seed)
    populations = [world.true(POPULATION, rng)[[-2, -1]] for _ in range(POPULATIONS)]
    counted = np.sum([row_sums(true[-1:], true[None, :1]).sum(axis=0) for true in populations], axis=0) / 2
    with np.errstate(invalid="ignore"):
        curve, pairs = counted[:, 0] / counted[:, 1], counted[:, 1]
    at = int(np.flatnonzero(endpoints.delta_settled + 1e-9 >= DELTAS)[-1])
    return {
        "order": float(curve[at]), "resolution": resolution(curve, pairs, endpoints.order_threshold),
        "linear": float(np.corrcoef(np.concatenate(populations, axis=1))[0, 1]),
    }  # fmt: skip


def margin_coverage(
    world: Landscape, placements: int, items: int, repetitions: int, endpoints: Endpoints, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coverage of each statistic at the step before T, and the rates of the verdicts there: one row per statistic, one row."""
    truth = truth_of(world, endpoints, seed)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for repetition in range(repetitions):
            rng = np.random.default_rng([seed, repetition])
            scores, _ = landscape_scores(world, placements, items, rng)
            columns = margin_columns(scores.quality, scores.tasks, replace(endpoints, seed=repetition), rng)
            found.append({name: values[-2] for name, values in columns.items()})
    table = pd.DataFrame(found)
    rows = []
    for name, value in truth.items():
        lo, hi = table[f"{name}_lo"], table[f"{name}_hi"]
        inside = ((lo <= value + 1e-9) & (value <= hi + 1e-9)).mean()
        rows.append({
            "statistic": name, "truth": value, "estimate": table[name].median() if name == "resolution" else table[name].mean(),
            "coverage": inside, "coverage_se": np.sqrt(inside * (1 - inside) / repetitions),
            "lo_above": (lo > value + 1e-9).mean(), "hi_below": (hi < value - 1e-9).mean(),
        })  # fmt: skip
    settled, not_settled = table["order_lo"] >= endpoints.order_threshold, table["order_hi"] < endpoints.order_threshold
    rates = pd.DataFrame([{
        "truly_settled": truth["order"] >= endpoints.order_threshold, "order": truth["order"], "declared_settled": settled.mean(),
        "declared_not_settled": not_settled.mean(), "declared_undecided": 1 - settled.mean() - not_settled.mean(),
    }])  # fmt: skip
    return pd.DataFrame(rows), rates
