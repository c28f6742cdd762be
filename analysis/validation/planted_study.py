"""A study of scales whose slopes are known: do the intervals of the fitted ones hold?

Two levels. ``planted_tables``: endpoints of runs are drawn from the model itself, so that only the fit and its degrees of freedom are
tried. ``planted_scores``: score tables of every run are drawn, with a correlation between t and T that falls with depth and width, item
noise and a teacher's own deviation; the drift of the landscape is measured from them as in a real study.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison.cells import Cell, Fit, at_share, design, fit, table_of
from analysis.stability.endpoints import Endpoints
from analysis.statistics.intervals import quantile
from analysis.table import Scores

Plan = tuple[tuple[int, int, int], ...]

PLANNED: Plan = ((5, 64, 4), (10, 64, 4), (5, 128, 3), (20, 64, 3), (10, 128, 2))
"""(layers, width, teachers) of the registered study."""

DONE = ((5, 64, 4), (10, 64, 4), (20, 64, 3), (5, 128, 3))
"""What of it has been run (docs/study.md)."""

TRUTH = np.array([0.10, 0.04, 0.02])
"""Drift at the reference cell, and its change per doubling of depth and of width."""


def runs(plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(layers, width, teacher), a value per run."""
    rows = [(layers, width, k) for layers, width, teachers in plan for k in range(teachers)]
    layers, width, teacher = (np.array(column) for column in zip(*rows, strict=True))
    return layers, width, teacher


def planted_tables(
    teacher_sd: float, residual_sd: float, repetitions: int, seed: int, level: float = 0.95, plan: Plan | None = None
) -> pd.DataFrame:
    """Coverage of every coefficient where endpoints follow the model. Columns coefficient, truth, mean, coverage, n. ``plan``: PLANNED."""
    layers, width, teacher = runs(plan or PLANNED)
    names, X = design(layers.astype(float), width.astype(float), np.full(len(layers), 2.0))
    rng = np.random.default_rng(seed)
    fits = []
    for _ in range(repetitions):
        noise = teacher_sd * rng.standard_normal(teacher.max() + 1)[teacher] + residual_sd * rng.standard_normal(len(teacher))
        fits.append(fit(X @ TRUTH + noise, X, names, teacher))
    return _coverage(names, fits, level)


def planted_scores(repetitions: int, seed: int, placements: int = 120, items: int = 48, level: float = 0.95) -> pd.DataFrame:
    """The same from score tables: correlation 1 - drift between the middle and the end, items that disagree."""
    layers, width, teacher = runs(PLANNED)
    names, X = design(layers.astype(float), width.astype(float), np.full(len(layers), 2.0))
    endpoints = Endpoints(bands=(0.1, 1.0), groups=8)
    fits = []
    for repetition in range(repetitions):
        rng = np.random.default_rng([seed, repetition])
        own = 0.02 * rng.standard_normal(teacher.max() + 1)[teacher] + 0.02 * rng.standard_normal(len(teacher))
        drift = np.clip(X @ TRUTH + own, 0, 1)
        drawn = enumerate(zip(layers, width, teacher, drift, strict=True))
        cells = [Cell(Path(), L, W, 2.0, k, _scores(d, n, placements, items, rng)) for n, (L, W, k, d) in drawn]
        here = at_share(table_of(cells, endpoints), 0.5).set_index("run").loc[[f"planted/{n}" for n in range(len(cells))]]
        fits.append(fit(here["landscape"].to_numpy(), X, names, teacher))
    return _coverage(names, fits, level)


def _scores(drift: float, number: int, P: int, I: int, rng: np.random.Generator) -> Scores:
    """Step 0 unrelated, the middle correlated 1 - drift with the end, all at equal cost."""
    last, fresh, start = rng.standard_normal((3, P))
    rho = 1 - drift
    true = np.stack([start, rho * last + np.sqrt(1 - rho**2) * fresh, last])
    shared = rng.standard_normal((P, I))  # what an item thinks of a placement, at every step
    quality = true[:, :, None] + shared + rng.standard_normal((3, P, I))
    names = ["".join(rng.permutation(list("FSKG" * 3))) for _ in range(P)]
    items = [f"i{n}" for n in range(I)]
    steps = np.array([0, 1, 2])
    return Scores("planted", str(number), 0, steps, steps, names, np.full(P, 6.0), items, ["t"] * I, quality)


def _coverage(names: tuple[str, ...], fits: list[Fit], level: float) -> pd.DataFrame:
    values, errors = np.array([f.values for f in fits]), np.array([f.errors for f in fits])
    q = np.array([quantile(level, f.degrees) for f in fits])[:, None]
    hit = np.abs(values - TRUTH) <= q * errors
    return pd.DataFrame({"coefficient": names, "truth": TRUTH, "mean": values.mean(axis=0), "coverage": hit.mean(axis=0), "n": len(fits)})
