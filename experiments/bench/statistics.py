"""The τ matrix by sign matrices against scipy in a loop, in one run, and a whole stability table of the tiny scale."""

import resource
import time

import numpy as np
import pandas as pd
from scipy import stats

from analysis.stability import Endpoints, stability_table
from analysis.statistics import pairs
from analysis.statistics.ranks import tau_matrix
from analysis.validation.worlds import World, simulate


def run(quick: bool = False) -> pd.DataFrame:
    """Measures one by one (columns: measure, value, unit, target). ``quick`` takes fewer placements and resamples."""
    checkpoints, placements, repeats = 20, 200 if quick else 1000, 2 if quick else 5
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((checkpoints, placements)) + np.linspace(0, 2, checkpoints)[:, None] * rng.standard_normal(placements)
    scores[:2] = np.round(scores[:2], 1)  # ties
    slow, fast = np.inf, np.inf
    for _ in range(repeats):  # in turns, the best of each: other work on the machine slows both alike
        start = time.perf_counter()
        reference = _by_scipy(scores)
        slow, start = min(slow, time.perf_counter() - start), time.perf_counter()
        matrix = tau_matrix(scores)
        fast = min(fast, time.perf_counter() - start)
    whole, blocks, apart = _pairs(quick)
    table, cpu = _table(quick)
    return pd.DataFrame(
        [
            (f"tau matrix {checkpoints} x {placements}, scipy in a loop", slow, "s", ""),
            (f"tau matrix {checkpoints} x {placements}, sign matrices", fast, "s", ""),
            ("tau matrix, times faster", slow / fast, "ratio", ">= 5"),
            ("tau matrix, largest difference from scipy", np.abs(matrix - reference).max(), "tau", "<= 1e-12"),
            ("pairs of one set of placements, all at once in bytes", whole, "s", ""),
            ("pairs of one set of placements, compiled loops", blocks, "s", ""),
            ("pairs, times faster", whole / blocks, "ratio", ">= 2"),
            ("pairs, largest difference over largest value", apart, "", "<= 1e-5"),
            (f"stability table {'64 x 4 x 50, 100' if quick else '1024 x 8 x 200, 1000'} resamples, wall clock", table, "s", "<= 45"),
            ("stability table, processor time", cpu, "s", ""),
            ("peak memory of the process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB", "<= 2"),
        ],
        columns=["measure", "value", "unit", "target"],
    )


def _by_scipy(scores: np.ndarray) -> np.ndarray:
    reference = np.eye(len(scores))
    for i in range(len(scores)):
        for j in range(i):
            reference[i, j] = reference[j, i] = stats.kendalltau(scores[i], scores[j]).statistic
    return reference


def _pairs(quick: bool) -> tuple[float, float, float]:
    """Processor seconds of both ways for 1,024 placements x 8 steps, 8 halves and 33 sets of items, and how far apart they are."""
    sets, halves, steps, placements = (3, 8, 4, 100) if quick else (33, 8, 8, 1024)
    rng = np.random.default_rng(0)
    first, second = (rng.random((sets, halves, steps, placements)).argsort(axis=-1).astype(np.int16) for _ in range(2))
    slopes = np.append(rng.normal(size=(2, steps)), np.zeros((3, steps)), axis=0)
    pairs.changes(first[:2], second[:2], slopes)  # compiles
    start = time.process_time()
    slow = _whole(first, second, slopes)
    whole, start = time.process_time() - start, time.process_time()
    fast = pairs.changes(first, second, slopes)[1]
    return whole, time.process_time() - start, float(np.abs(slow - fast).max() / np.abs(fast).max())


def _whole(first: np.ndarray, second: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Gram matrices [N, S, S] of ``pairs.changes`` without ties, the old way: products of all pairs at once, float32."""

    def signs(rank: np.ndarray) -> np.ndarray:
        a, b = rank[:, :, None], rank[:, None, :]
        return (a > b).view(np.int8) - (a < b).view(np.int8)

    gram, base = [], None
    for sides in zip(first, second, strict=True):
        cross = within = np.int8(0)
        for a, b in zip(*sides, strict=True):
            x, y = signs(a), signs(b)
            cross, within = cross + x * y[-1] + y * x[-1], within + 2 * (x * y)
        products, base = (cross, within), base or (cross, within)
        cross, within = products if not gram else (now - before for now, before in zip(products, base, strict=True))
        column = slopes.astype(np.float32)[:, :, None, None]
        flat = (cross * column[0] + within * column[1] + within[-1] * column[3]).reshape(len(cross), -1)
        gram.append(flat @ flat.T)
    return np.array(gram, dtype=float)


def _table(quick: bool) -> tuple[float, float]:
    """Wall-clock and processor seconds of a stability table of every placement of the tiny scale."""
    world = World("bench", layers=3 if quick else 5, placements=64 if quick else 1024, items=50 if quick else 200)
    steps = (0.3, 0.6, 0.9, 1.0) if quick else (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0)
    scores, _ = simulate(World(**{**vars(world), "correlation": steps}), np.random.default_rng(0))
    start, cpu = time.perf_counter(), time.process_time()
    stability_table(scores, Endpoints(resamples=100 if quick else 1000))
    return time.perf_counter() - start, time.process_time() - cpu
