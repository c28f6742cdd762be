"""Tasks apart and pooled: a pool can hide two settled rankings whose scales move, or a task that says nothing."""

import numpy as np
import pandas as pd

from analysis.bands import Band
from analysis.stability.endpoints import Endpoints
from analysis.stability.margin_columns import margin_columns
from analysis.stability.settling import FEWEST, MIN_ITEMS
from analysis.statistics.linear import linear
from analysis.statistics.ranks import spearman
from analysis.table import Scores

POOLED = "standardised"
STARTS = ("resolution", "order", "linear", "spearman")


def by_task(scores: Scores, members: dict[Band, np.ndarray], endpoints: Endpoints) -> pd.DataFrame:
    """The margin columns of every cost band, task and step, and of the tasks pooled after each was scaled by the spread that its
    placements have at T without item noise ("standardised"; units stay nats/token of the mean task). Bands at equal cost, the whole range
    left out. Tasks with fewer than 4 items are left out; those without any spread are left out of the pool.
    """
    tasks = np.array(scores.tasks)
    frames = []
    for number, (band, rows) in enumerate(members.items()):
        if band.whole or len(rows) < FEWEST:
            continue
        cost = np.asarray(scores.cost)[rows] if endpoints.equal_cost else None
        scaled = np.zeros((len(scores.steps), len(rows), len(tasks)))
        spreads = {}
        for task in sorted(set(tasks)):
            items = np.flatnonzero(tasks == task)
            if len(items) < MIN_ITEMS:
                continue
            quality = scores.quality[:, rows][:, :, items]
            rng = np.random.default_rng([endpoints.seed, *b"task", number])
            frames.append(_rows(scores, band, task, quality, [task] * len(items), cost, endpoints, rng))
            spread = linear(quality, [task] * len(items), endpoints.groups, rng, 0.0, cost).signal[-1, 1, 1]
            if spread > 0:
                spreads[task] = np.sqrt(spread)
                scaled[:, :, items] = quality / spreads[task]
        if len(spreads) > 1:
            items = np.flatnonzero(np.isin(tasks, list(spreads)))
            rng = np.random.default_rng([endpoints.seed, *b"pool", number])
            quality = scaled[:, :, items] * np.mean(list(spreads.values()))
            frames.append(_rows(scores, band, POOLED, quality, list(tasks[items]), cost, endpoints, rng))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _rows(
    scores: Scores,
    band: Band,
    task: str,
    quality: np.ndarray,
    tasks: list[str],
    cost: np.ndarray | None,
    endpoints: Endpoints,
    rng: np.random.Generator,
) -> pd.DataFrame:
    means = quality.mean(axis=2)
    columns = margin_columns(quality, tasks, endpoints, rng, 0.0, cost)
    frame = pd.DataFrame({
        "run": scores.run, "task": task, "step": scores.steps, "tokens": scores.tokens, "band_lo": band.lo, "band_hi": band.hi,
        "n_placements": quality.shape[1], "n_items": quality.shape[2], **columns, "spearman": [spearman(row, means[-1]) for row in means],
    })  # fmt: skip
    for name in STARTS:
        frame[f"{name}_start"] = frame[name].iloc[0] if scores.steps[0] == 0 else np.nan
    return frame.assign(level=endpoints.level)
