"""The statistics that the field quotes, over the whole range of costs, with their values before training beside them."""

import numpy as np
import pandas as pd

from analysis.stability.pareto import frontier
from analysis.statistics.ranks import kendall_w, spearman
from analysis.table import Scores


def published(scores: Scores) -> pd.DataFrame:
    """One row per step: Spearman's ρ of all placements with T, and Kendall's W of the placements on the frontier of T over the
    checkpoints from this one to T; w_chance is W of unrelated rankings. ``*_start``: before training, NaN where step 0 is not there.

    As in Super Apriel (arXiv 2604.19877), which reports both without a baseline: neither is evidence of settling where it is as high
    at step 0, when nothing has been trained yet.
    """
    means = scores.quality.mean(axis=2)
    front = frontier(scores)
    names = front.loc[front["step"] == scores.steps[-1], "placement"]
    index = np.flatnonzero(np.isin(scores.placements, names))
    S = len(scores.steps)
    rho = np.array([spearman(row, means[-1]) for row in means])
    pair = np.array([kendall_w(means[[s, -1]][:, index]) for s in range(S)])
    start = scores.steps[0] == 0
    return pd.DataFrame({
        "run": scores.run, "step": scores.steps, "tokens": scores.tokens, "n_placements": len(scores.placements),
        "n_items": len(scores.items),
        "n_frontier": len(index), "spearman": rho, "spearman_start": rho[0] if start else np.nan,
        "kendall_w": [kendall_w(means[s:, index]) if s < S - 1 else 1.0 for s in range(S)], "w_chance": 1 / (S - np.arange(S)),
        "w_with_last": pair, "w_with_last_start": pair[0] if start else np.nan,
    })  # fmt: skip
