"""Intervals from some of a run's placements against what all of them say."""

import numpy as np
import pandas as pd

from analysis.stability.bands_over_time import stability_table
from analysis.stability.endpoints import Endpoints
from analysis.table import Scores


def coverage(scores: Scores, endpoints: Endpoints, sizes: tuple[int, ...], repetitions: int, rng: np.random.Generator) -> pd.DataFrame:
    """Per size, step before the last and band: the whole run's ratio, the sub-samples' mean ratio, coverage and mean width of intervals.

    Sub-samples with too few placements in a band give no interval there and are left out; ``n`` counts the others.
    """
    keys = ["step", "band_lo", "band_hi"]
    truth = stability_table(scores, endpoints).set_index(keys)["ratio"]
    rows = []
    for size in sizes:
        for _ in range(repetitions):
            chosen = np.sort(rng.choice(len(scores.placements), size, replace=False))
            table = stability_table(scores.part(placements=chosen), endpoints).dropna(subset=["ratio_lo", "ratio_hi"])
            rows.append(table.assign(size=size)[[*keys, "size", "ratio", "ratio_lo", "ratio_hi"]])
    found = pd.concat(rows).join(truth.rename("truth"), on=keys)
    found = found[found["step"] < scores.steps[-1]]
    found["covered"] = found["truth"].between(found["ratio_lo"], found["ratio_hi"])
    found["width"] = found["ratio_hi"] - found["ratio_lo"]
    grouped = found.groupby(["size", *keys])
    table = grouped.agg(
        truth=("truth", "first"), estimate=("ratio", "mean"), coverage=("covered", "mean"), width=("width", "mean"), n=("covered", "size")
    )
    return table.reset_index().assign(run=scores.run, level=endpoints.level)
