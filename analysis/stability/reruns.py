"""How well a rerun of the training agrees with a run: what no earlier checkpoint can be asked to exceed."""

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.input.runs import Recipe
from analysis.stability.bands_over_time import stability_table
from analysis.stability.endpoints import Endpoints
from analysis.table import Scores


def rerun_agreement(runs: list[Scores], endpoints: Endpoints, recipes: list[Recipe] | None = None) -> pd.DataFrame:
    """The last checkpoint of every other run of the same scale and recipe, judged as if it were a step of each run.

    One row per run, other run and band, with the columns of ``stability_table``, ``other`` and ``varies``: seed, or teacher where that
    differs (and the seed may). Only placements and items that both have count. Items are resampled jointly; those of another teacher are
    other traces of the same prompts. Pairs that share nothing to compare are left out. Without ``recipes`` all runs are of one.
    """
    known = recipes or [Recipe("", "")] * len(runs)
    rows = []
    for a, of_a in zip(runs, known, strict=True):
        for b, of_b in zip(runs, known, strict=True):
            if a.run != b.run and a.scale == b.scale and of_a.same == of_b.same:
                rows.append(_pair(a, b, endpoints).assign(varies="seed" if of_a.teacher == of_b.teacher else "teacher"))
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
