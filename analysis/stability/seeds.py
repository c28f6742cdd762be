"""Several training seeds of one scale together."""

import numpy as np
import pandas as pd

from analysis.bands import inside
from analysis.stability.bands_over_time import stability_table
from analysis.stability.endpoints import Endpoints
from analysis.stability.settling import FEWEST
from analysis.statistics import intervals, ranks
from analysis.table import Scores


def seeds_table(runs: list[Scores], endpoints: Endpoints) -> pd.DataFrame:
    """Several training seeds of one scale, per step and band: the mean of ratio over seeds with its t interval, and Kendall's W of the
    seeds' qualities over the placements that all have (w_chance: W of unrelated rankings, 1 / n_seeds). ValueError unless the runs share
    steps and at least 8 placements.
    """
    if len({tuple(r.steps) for r in runs}) != 1:
        raise ValueError(
            "runs " + ", ".join(r.run for r in runs) + " were checkpointed at different steps: give seeds of one configuration"
        )
    common = sorted(set.intersection(*(set(r.placements) for r in runs)))
    if len(common) < FEWEST:
        raise ValueError(f"the runs share {len(common)} placements, {FEWEST} are needed: sweep the same placements in each")
    tables = [stability_table(r, endpoints) for r in runs]
    mean, low, high = intervals.of_mean(np.stack([t["ratio"] for t in tables]), endpoints.level, axis=0)
    index = [[{p: i for i, p in enumerate(r.placements)}[c] for c in common] for r in runs]
    quality = np.stack([r.quality.mean(axis=2)[:, i] for r, i in zip(runs, index, strict=True)])  # [seeds, S, common]
    cost = np.asarray(runs[0].cost)[index[0]]
    frame = tables[0][["step", "tokens", "band_lo", "band_hi"]].assign(n_seeds=len(runs), ratio=mean, ratio_lo=low, ratio_hi=high)
    position = {step: s for s, step in enumerate(runs[0].steps)}
    top = frame["band_hi"].max()
    concordance, number = [], []
    for row in frame.itertuples():
        member = inside(cost, row.band_lo, row.band_hi, top)
        number.append(int(member.sum()))
        concordance.append(ranks.kendall_w(quality[:, position[row.step]][:, member]) if member.sum() >= FEWEST else np.nan)
    return frame.assign(n_placements=number, kendall_w=concordance, w_chance=1 / len(runs))
