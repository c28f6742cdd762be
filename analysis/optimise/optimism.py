"""How much too good the prediction of a *chosen* optimum is, and an interval of it that says so."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.cost import dearest
from analysis.optimise.choice import choose
from analysis.statistics.intervals import quantile
from analysis.surrogate.expansion import ClusterExpansion
from analysis.surrogate.redrawn import redrawn
from supernet.placement import COST

WORLDS = 48
"""Worlds behind an interval: their mean is known to a seventh of a standard deviation."""


def optimum(
    expansion: ClusterExpansion, budgets: Sequence[float], coefficients: Mapping[str, float] = COST, level: float = 0.95,
    worlds: int = WORLDS, rng: np.random.Generator | None = None, believed: ClusterExpansion | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The choice of ``choose`` per budget with an interval for it as the chosen one, from worlds of ``redrawn`` in which it was chosen
    again.

    In each world z = (truth - prediction) / sd of what is chosen there. With mean m and standard deviation s of z over the n worlds,
    quality lies at predicted + sd (m ± t_{n-1} s √(1 + 1/n)): a prediction interval for the z of this run. Columns: budget, placement,
    cost, predicted, lo, hi (as if it had not been chosen), corrected, corrected_lo, corrected_hi, the same six of the difference to the
    dearest mixer in all layers (difference, ...), worlds. A choice without any error, as all-FA is against itself, has width 0.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    reference = dearest(expansion.letters, coefficients) * expansion.layers
    own = choose(expansion, budgets, coefficients, level=level)
    z = {"predicted": np.zeros((worlds, len(own))), "difference": np.zeros((worlds, len(own)))}
    for n, world in enumerate(redrawn(expansion, rng, worlds, believed)):
        chosen = choose(world.refitted, budgets, coefficients, level=level)
        truth, full = world.quality(list(chosen["placement"])), world.quality([reference])
        for name, true, sd in (("predicted", truth, chosen["sd"]), ("difference", truth - full, chosen["error"])):
            error = np.asarray(sd, float)
            np.divide(true - chosen[name].to_numpy(), error, out=z[name][n], where=error > 1e-12)
    table = own[["budget", "placement", "cost"]].copy()
    plain, wide = expansion.quantile(level), quantile(level, worlds - 1) * np.sqrt(1 + 1 / worlds)
    for name, sd in (("predicted", own["sd"]), ("difference", own["error"])):
        ends = ("lo", "hi") if name == "predicted" else ("difference_lo", "difference_hi")
        corrected = "corrected" if name == "predicted" else "difference_corrected"
        middle, half = z[name].mean(axis=0), wide * z[name].std(axis=0, ddof=1)
        table[name] = own[name]
        table[ends[0]], table[ends[1]] = own[name] - plain * sd, own[name] + plain * sd
        table[corrected] = own[name] + middle * sd
        table[f"{corrected}_lo"], table[f"{corrected}_hi"] = own[name] + (middle - half) * sd, own[name] + (middle + half) * sd
    return table.assign(worlds=worlds)
