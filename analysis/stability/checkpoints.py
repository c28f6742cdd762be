"""Checkpoints against each other, and every table of one run by file name.

Letters: S steps, P placements, I items, R resamples of the items.
"""

import numpy as np
import pandas as pd

from analysis.bands import Band, band_members, bands_in, rows_of
from analysis.stability import pareto
from analysis.stability.bands_over_time import ranked, stability_table
from analysis.stability.by_task import by_task
from analysis.stability.endpoints import Endpoints
from analysis.stability.published import published
from analysis.stability.settling import time_to_stability
from analysis.statistics.intervals import of_mean
from analysis.statistics.ranks import tau_matrix
from analysis.table import Scores


def analyse(scores: Scores, endpoints: Endpoints) -> dict[str, pd.DataFrame]:
    """Every table of one run by file name. A run with one checkpoint has its frontier only: nothing can be said about stability."""
    if len(scores.steps) < 2:
        return {"frontier": pareto.frontier(scores), "behind": behind_best(scores, endpoints.level)}
    stability = stability_table(scores, endpoints)
    members = band_members(scores, bands_in(stability))
    tasks = by_task(scores, members, endpoints) if len(set(scores.tasks)) > 1 else pd.DataFrame()
    return ({"stability_tasks": tasks} if len(tasks) else {}) | {
        "stability": stability,
        "time_to_stability": time_to_stability(stability, endpoints),
        "pareto_drift": pareto.drift(scores, np.random.default_rng(endpoints.seed), level=endpoints.level),
        "frontier": pareto.frontier(scores),
        "published": published(scores),
        "tau_matrix": tau_between_checkpoints(scores, members),
        "top_ranks": top_ranks(scores, members, endpoints.top_k, endpoints.level, endpoints.seed),
    }


def behind_best(scores: Scores, level: float) -> pd.DataFrame:
    """How far each placement is behind the best one at the last checkpoint, in nats per token, cheapest first.

    ``behind`` is the mean over items of the best placement's quality minus its own on the same item, ``lo`` and ``hi`` a t interval over
    items. The same items chose the best one, so ``behind`` is a little too large for all others.
    """
    quality = scores.quality[-1]  # [P, I]
    gap = quality[quality.mean(axis=1).argmax()] - quality
    behind, lo, hi = of_mean(gap, level)
    frame = pd.DataFrame({
        "run": scores.run, "step": scores.steps[-1], "placement": scores.placements, "cost": scores.cost, "quality": quality.mean(axis=1),
        "behind": behind, "behind_lo": lo, "behind_hi": hi,
    })  # fmt: skip
    return frame.sort_values(["cost", "placement"], ignore_index=True)


def tau_between_checkpoints(scores: Scores, members: dict[Band, np.ndarray]) -> pd.DataFrame:
    """Kendall's τ-b of mean qualities between all pairs of checkpoints: run, band_lo, band_hi, n_placements, step_a, step_b, tau."""
    a, b = (index.ravel() for index in np.indices((len(scores.steps),) * 2))
    frames = []
    for band, inside in members.items():
        rank = ranked(scores.quality[:, inside]).astype(float)
        frames.append(pd.DataFrame({
            "run": scores.run, "band_lo": band.lo, "band_hi": band.hi, "n_placements": len(inside),
            "step_a": scores.steps[a], "step_b": scores.steps[b], "tau": tau_matrix(rank).ravel(),
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def mean_tau(table: pd.DataFrame, bands: list[Band]) -> dict[str, tuple[np.ndarray, int]]:
    """Matrices [S, S] of ``tau_between_checkpoints`` by title, and their numbers of placements: within cost bands (mean over the bands,
    weighted by their pairs of placements), and over the whole cost range."""
    steps = table["step_a"].nunique()
    found = {}
    for title, chosen in (("within cost bands", [b for b in bands if not b.whole]), ("whole cost range", [b for b in bands if b.whole])):
        rows = [rows_of(band, table) for band in chosen]
        rows = [r for r in rows if len(r) and r["tau"].notna().all()]
        if rows:
            n = np.array([r["n_placements"].iloc[0] for r in rows])
            found[title] = np.average([r["tau"].to_numpy().reshape(steps, steps) for r in rows], axis=0, weights=n * (n - 1)), int(n.sum())
    return found


RESAMPLES = 200
"""Draws of items behind the intervals of ranks."""


def top_ranks(scores: Scores, members: dict[Band, np.ndarray], k: int, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Rank at each step (1 = best, within the band; tied ones share the best rank among them) of the k placements of each band that are
    best at T (at most half of the band). ``rank_lo``, ``rank_hi``: quantiles over items drawn again within tasks."""
    frames = []
    rng = np.random.default_rng([seed, *b"ranks"])
    weights = _resampled(scores.tasks, RESAMPLES, rng)  # [R, I]
    tail = 100 * (1 - level) / 2
    for band, inside in members.items():
        quality = scores.quality[:, inside]
        dense = ranked(quality)  # higher is better
        top = np.argsort(-quality[-1].mean(axis=1), kind="stable")[: min(k, len(inside) // 2)]
        ranks = np.stack([_place(row, top) for row in dense])  # [S, k]
        drawn = np.empty((RESAMPLES, *ranks.shape))
        for r, weight in enumerate(weights):
            drawn[r] = [_place(row, top) for row in quality @ weight]
        low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
        step, n = (index.ravel() for index in np.indices(ranks.shape))
        frames.append(pd.DataFrame({
            "run": scores.run, "band_lo": band.lo, "band_hi": band.hi, "n_placements": len(inside), "final_rank": ranks[-1, n],
            "placement": np.array(scores.placements)[inside[top[n]]], "cost": scores.cost[inside[top[n]]],
            "step": scores.steps[step], "tokens": scores.tokens[step], "rank": ranks[step, n],
            "rank_lo": np.minimum(low, ranks)[step, n], "rank_hi": np.maximum(high, ranks)[step, n],
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def _place(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """1 and how many of the values [P] are higher than each chosen one -> [k]."""
    return 1 + len(values) - np.searchsorted(np.sort(values), values[chosen], side="right")


def _resampled(tasks: list[str], draws: int, rng: np.random.Generator) -> np.ndarray:
    """Weights [draws, I] of items drawn with replacement within tasks; every task keeps its share."""
    weights = np.zeros((draws, len(tasks)))
    for task in np.unique(tasks):
        items = np.flatnonzero(np.array(tasks) == task)
        weights[:, items] = rng.multinomial(len(items), np.full(len(items), 1 / len(items)), size=draws)
    return weights / len(tasks)
