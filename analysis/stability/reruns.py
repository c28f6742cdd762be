"""How well a rerun of the training agrees with a run: what no earlier checkpoint can be asked to exceed."""

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.stability.bands_over_time import stability_table
from analysis.stability.endpoints import Endpoints
from analysis.table import Scores


def rerun_agreement(runs: list[Scores], endpoints: Endpoints) -> pd.DataFrame:
    """The last checkpoint of every other run, judged as if it were a step of each run: one row per run, other run and band, with the
    columns of ``stability_table``. Only placements and items that both have count; items are the same in both, so they are resampled
    jointly. Pairs of runs that share nothing to compare are left out.
    """
    rows = [_pair(a, b, endpoints) for a in runs for b in runs if a.run != b.run]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def _pair(a: Scores, b: Scores, endpoints: Endpoints) -> pd.DataFrame:
    placements = sorted(set(a.placements) & set(b.placements))
    items = sorted(set(a.items) & set(b.items))
    if len(placements) < endpoints.min_placements or len(items) < endpoints.min_items:
        return pd.DataFrame()

    def last(run: Scores) -> np.ndarray:
        p, i = ({name: n for n, name in enumerate(names)} for names in (run.placements, run.items))
        return run.quality[-1][np.ix_([p[name] for name in placements], [i[name] for name in items])]

    cost, task = dict(zip(a.placements, a.cost, strict=True)), dict(zip(a.items, a.tasks, strict=True))
    both = replace(
        a, steps=np.array([0, 1]), tokens=np.array([0, 1]), placements=placements, cost=np.array([cost[p] for p in placements]),
        items=items, tasks=[task[i] for i in items], quality=np.stack([last(b), last(a)]),
    )  # fmt: skip
    table = stability_table(both, replace(endpoints, resamples=min(endpoints.resamples, 200)))
    return table[table["step"] == 0].assign(other=b.run)
