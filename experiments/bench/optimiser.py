"""How long the surrogate and the optimiser take at 48 layers: 2,223 coefficients, all budgets, ten best.

Target on one core: the fit on 1,000 placements within 10 s, the ten best of every budget within 1 s. ``core_seconds`` is the processor time
of all threads together, so it does not depend on how many there are or on who else uses the machine; the best of three.
"""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis.optimise import Constraints, frontier
from analysis.surrogate import fit
from analysis.surrogate.design import design
from supernet.placement import LETTERS, sample_counts, sample_local

LAYERS = 48


def run(quick: bool = False) -> pd.DataFrame:
    """A row per measurement: what, layers, coefficients, placements, best, core_seconds, wall_seconds, target (seconds; NaN: none set).

    ``quick``: 200 placements and once instead of the best of three, which says that it runs, not how fast.
    """
    count, repeats = (200, 1) if quick else (1000, 3)
    rng = np.random.default_rng(0)
    samplers = (sample_local, sample_counts)
    placements = [str(samplers[i % 2](LAYERS, rng)) for i in range(count)]
    features = design(placements, LETTERS, LAYERS)[:, 1:]
    quality = features @ rng.normal(size=features.shape[1]) / np.sqrt(features.shape[1]) + 0.1 * rng.normal(size=count)
    size = {"layers": LAYERS, "coefficients": features.shape[1], "placements": count}
    rows = []

    def measure(what: str, best: int, target: float, action: Callable[[], object]) -> object:
        timed = []
        for _ in range(repeats):
            wall, core = time.perf_counter(), time.process_time()
            result = action()
            timed.append((time.process_time() - core, time.perf_counter() - wall))
        core, wall = min(timed)
        rows.append({"what": what, **size, "best": best, "core_seconds": core, "wall_seconds": wall, "target": target})
        return result

    expansion = measure("fit", 0, 10.0, lambda: fit(placements, quality, 0.01))
    measure("all budgets", 1, np.nan, lambda: frontier(expansion))
    measure("all budgets", 10, 1.0, lambda: frontier(expansion, k=10))
    measure("all budgets, no isolated layer", 10, np.nan, lambda: frontier(expansion, k=10, constraints=Constraints(no_isolated=True)))
    measure("all budgets, 12 F or more", 1, np.nan, lambda: frontier(expansion, constraints=Constraints(at_least={"F": 12})))
    measure("100 posterior draws", 0, np.nan, lambda: expansion.draw(rng, 100))
    return pd.DataFrame(rows)
