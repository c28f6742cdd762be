"""Coverage of the primary endpoints at the step that decides, and how often a verdict is right."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.stability.endpoints import Endpoints
from analysis.stability.margin_columns import margin_columns
from analysis.statistics.margins import DELTAS, order_curve, resolution
from analysis.validation.landscapes import Landscape, landscape_scores

POPULATION, POPULATIONS = 3000, 20
"""Placements from which the truth of a world is taken, and how often: one population's own error is that of a run of 300 by a third."""


def truth_of(world: Landscape, endpoints: Endpoints, seed: int) -> dict[str, float]:
    """order, resolution and linear of the step before T, of large populations without noise."""
    rng = np.random.default_rng(seed)
    populations = [world.true(POPULATION, rng)[[-2, -1]] for _ in range(POPULATIONS)]
    curves, pairs = (np.stack(values) for values in list(zip(*map(order_curve, populations), strict=True))[:2])
    with np.errstate(invalid="ignore"):
        curve = np.nansum(curves * pairs, axis=0) / pairs.sum(axis=0)
    at = int(np.flatnonzero(endpoints.delta_settled + 1e-9 >= DELTAS)[-1])
    return {
        "order": float(curve[at]), "resolution": resolution(curve, pairs.sum(axis=0), endpoints.order_threshold),
        "linear": float(np.mean([np.corrcoef(true)[0, 1] for true in populations])),
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
