"""Several training seeds of one scale together."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.bands import inside
from analysis.stability.bands_over_time import stability_table
from analysis.stability.endpoints import Endpoints
from analysis.stability.settling import FEWEST, MIN_ITEMS
from analysis.statistics import intervals, ranks
from analysis.statistics.linear import linear
from analysis.table import Scores


def seeds_table(runs: list[Scores], endpoints: Endpoints, teachers: Sequence[str] | None = None) -> pd.DataFrame:
    """Several training seeds of one scale, per step and band: means over seeds of ratio, order, linear and regret_share with intervals,
    and Kendall's W of the seeds' qualities over the placements that all have (w_chance: W of unrelated rankings, 1 / n_seeds).

    The seeds share their items, so their spread alone misses the error that all have in common: the variance of a mean is s² / n + κ v,
    s² the variance over seeds, v the mean of their own variances, κ (``shared``) the correlation over groups of items left out jointly of
    the linear correlation with T. Where runs have other items κ is 0. ``varies`` says so.

    ``teachers``: that of each run. Of several the runs are averaged within each first, and n is the number of teachers: their items, too,
    are of their own. ValueError unless the runs share steps and at least 8 placements.
    """
    if len({tuple(r.steps) for r in runs}) != 1:
        raise ValueError(
            "runs " + ", ".join(r.run for r in runs) + " were checkpointed at different steps: give seeds of one configuration"
        )
    common = sorted(set.intersection(*(set(r.placements) for r in runs)))
    if len(common) < FEWEST:
        raise ValueError(f"the runs share {len(common)} placements, {FEWEST} are needed: sweep the same placements in each")
    tables = [stability_table(r, endpoints) for r in runs]
    index = [[{p: i for i, p in enumerate(r.placements)}[c] for c in common] for r in runs]
    quality = np.stack([r.quality.mean(axis=2)[:, i] for r, i in zip(runs, index, strict=True)])  # [seeds, S, common]
    cost = np.asarray(runs[0].cost)[index[0]]
    frame = tables[0][["step", "tokens", "band_lo", "band_hi"]].assign(n_seeds=len(runs))
    several = len(set(teachers or ())) > 1
    groups = teachers if several else range(len(runs))
    members = [[n for n, group in enumerate(groups) if group == one] for one in dict.fromkeys(groups)]
    same = len({tuple(r.items) for r in runs}) == 1 and not several
    shared = _shared(runs, frame, endpoints) if same else np.zeros(len(frame))
    for name in ("ratio", "order", "linear", "regret_share"):
        frame[name], frame[f"{name}_lo"], frame[f"{name}_hi"] = _mean(tables, name, shared, members, endpoints.level)
    frame["shared"] = shared
    own = "teachers and seeds, items of each teacher's own" if several else "seeds with items of their own"
    frame["varies"] = "seeds, items jointly" if same else own
    position = {step: s for s, step in enumerate(runs[0].steps)}
    top = frame["band_hi"].max()
    concordance, number = [], []
    for row in frame.itertuples():
        member = inside(cost, row.band_lo, row.band_hi, top)
        number.append(int(member.sum()))
        concordance.append(ranks.kendall_w(quality[:, position[row.step]][:, member]) if member.sum() >= FEWEST else np.nan)
    return frame.assign(n_placements=number, kendall_w=concordance, w_chance=1 / len(runs))


def _mean(
    tables: list[pd.DataFrame], name: str, shared: np.ndarray, members: list[list[int]], level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [rows] over the means of ``members`` (places of tables) and its interval, from spread and shared error; degrees of freedom by
    Satterthwaite (1946)."""
    values = np.stack([np.mean([tables[n][name] for n in those], axis=0) for those in members])
    half = np.stack([(t[f"{name}_hi"] - t[f"{name}_lo"]) / 2 for t in tables]) / intervals.quantile(level, 30)
    n = len(values)
    spread, common = values.var(axis=0, ddof=1) / n, shared * (half**2).mean(axis=0)
    total = spread + common
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = np.where(total > 0, total**2 / (spread**2 / (n - 1) + common**2 / 30), n - 1)
    wide = np.array([intervals.quantile(level, d) if np.isfinite(d) else np.nan for d in degrees]) * np.sqrt(total)
    mean = values.mean(axis=0)
    return mean, mean - wide, mean + wide


def _shared(runs: list[Scores], frame: pd.DataFrame, endpoints: Endpoints) -> np.ndarray:
    """Correlation between seeds of what leaving out a group of items does to the linear correlation with T -> [rows], 0 to 1."""
    top = frame["band_hi"].max()
    position = {step: s for s, step in enumerate(runs[0].steps)}
    found = {}
    for lo, hi in frame[["band_lo", "band_hi"]].drop_duplicates().itertuples(index=False):
        left = []
        for run in runs:
            member = inside(run.cost, lo, hi, top)
            if member.sum() < FEWEST or len(run.items) < MIN_ITEMS:
                break
            rng = np.random.default_rng(endpoints.seed)  # the same groups of items in every run
            left.append(linear(run.quality[:, member], run.tasks, endpoints.groups, rng).without_items)
        if len(left) < len(runs):
            continue
        change = np.stack(left) - np.mean(left, axis=1, keepdims=True)  # [runs, groups, S]
        own = (change**2).sum(axis=1).sum(axis=0)
        both = (change.sum(axis=0) ** 2).sum(axis=0) - own
        found[lo, hi] = np.clip(np.divide(both, own * (len(runs) - 1), out=np.zeros_like(own), where=own > 0), 0, 1)
    return np.array([found[row.band_lo, row.band_hi][position[row.step]] if (row.band_lo, row.band_hi) in found else 0.0
                     for row in frame.itertuples()])  # fmt: skip
