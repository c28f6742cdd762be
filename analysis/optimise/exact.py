"""The best placement at every cost budget at once, exactly, by dynamic programming; and what to score next.

Quality is a sum of terms over three neighbouring layers, cost a sum over layers. So after layer i three things of the past matter: the
last two mixers, the cost so far (an integer number of 0.01 FA layers) and, for constraints that count, the layers of a mixer.
Shapes: L layers, M mixers, Q counter states, C costs, B budgets, k best.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.cost import unit_of
from analysis.optimise.constraints import Constraints, Counters, barriers, check
from analysis.surrogate.expansion import ClusterExpansion, Landscape
from supernet.placement import COST

MEMORY_LIMIT = 4 * 2**30


def frontier(
    expansion: ClusterExpansion | Landscape,
    coefficients: Mapping[str, float] = COST,
    k: int = 1,
    constraints: Constraints | None = None,
) -> pd.DataFrame:
    """The k best placements within every budget: columns budget, rank, placement, cost, predicted.

    A budget appears where its list of k best differs from that of the next smaller budget; ``at_budget`` looks one up. Rank 1 is
    the best; of equal values the cheaper comes first. Exact for the posterior mean (or for one draw). Time O(L M³ C k log k), times the
    states of constraints that count: (n + 1) for at least n layers of a mixer, 3 per mixer for ``no_singletons``. Raises ValueError for
    coefficients off the grid (``cost.on_grid`` puts them on it), unknown mixers or layers, constraints that cannot be met.
    """
    landscape = expansion.landscape if isinstance(expansion, ClusterExpansion) else expansion
    constraints = constraints or Constraints()
    letters, layers = landscape.letters, len(landscape.potentials)
    check(constraints, letters, layers, k)
    price = _units(letters, coefficients)
    potentials = landscape.potentials + barriers(constraints, letters, layers)
    counters = Counters.of(constraints, letters)
    tables = _forward(potentials, price, counters, k)
    costs, states, ranks, values = _collect(tables[-1], counters, k)
    if not len(costs):
        raise ValueError(f"no placement of {layers} layers meets {constraints}: loosen one of them")
    rows = _running_best(costs, values, k)
    used = np.unique(rows["entry"])
    codes = _backtrack(tables, potentials, price, counters, states[used], costs[used], ranks[used])
    names = np.array(["".join(row) for row in np.array(list(letters))[codes]], dtype=object)
    at = np.searchsorted(used, rows["entry"])
    lowest, unit = layers * min(price), unit_of(coefficients)
    digits = max(2, round(-np.log10(unit)))
    return pd.DataFrame(
        {
            "budget": np.round((rows["budget"] + lowest) * unit, digits),
            "rank": rows["rank"],
            "placement": names[at],
            "cost": np.round((costs[rows["entry"]] + lowest) * unit, digits),
            "predicted": landscape.link.quality(landscape.constant + values[rows["entry"]]),
        }
    )


def at_budget(table: pd.DataFrame, budget: float) -> pd.DataFrame:
    """The rows of a frontier that hold at ``budget``. Raises ValueError when even the cheapest placement costs more."""
    reached = table["budget"].to_numpy() <= budget + 1e-9
    if not reached.any():
        raise ValueError(f"budget {budget:g} is infeasible: the cheapest placement costs {table['budget'].min():g}, ask for that or more")
    return table[table["budget"] == table["budget"][reached].max()]


def best_at(table: pd.DataFrame, budgets: Sequence[float] | np.ndarray) -> np.ndarray:
    """The best placement [B] within each budget, from a frontier with k = 1. Raises ValueError as ``at_budget``."""
    assert (table["rank"] == 1).all(), "the rows must be one per budget"
    at_budget(table, np.min(budgets))
    return table["placement"].to_numpy()[np.searchsorted(table["budget"].to_numpy(), np.asarray(budgets) + 1e-9, side="right") - 1]


def _units(letters: str, coefficients: Mapping[str, float]) -> list[int]:
    """Cost of each mixer in units of the grid (0.01 FA layer for the published costs)."""
    missing = [letter for letter in letters if letter not in coefficients]
    if missing:
        raise ValueError(f"no cost coefficient for mixer {missing[0]}: give one beside {dict(coefficients)}")
    unit = unit_of(coefficients)
    price = [round(coefficients[letter] / unit) for letter in letters]
    off = [letter for letter, n in zip(letters, price, strict=True) if abs(n * unit - coefficients[letter]) > 1e-6 * unit or n < 0]
    if off:
        raise ValueError(f"cost {coefficients[off[0]]} of mixer {off[0]} is not a positive multiple of {unit:g}: round it to the grid")
    return price


def _forward(potentials: np.ndarray, price: list[int], counters: Counters, k: int) -> list[np.ndarray]:
    """After 0, 1, … L layers: the k best values, ascending, [Q (+ 1 that means 'none'), M before last, M last, C, k].

    Cost is counted above that of taking the cheapest mixer everywhere. No back pointers are kept: ``_backtrack`` forms the candidates
    again, bit for bit, for the few entries that are asked for; sorting values alone is several times faster than sorting with their origin.
    """
    layers, size = potentials.shape[:2]
    extra = np.array(price) - min(price)
    bytes_needed = 8 * k * len(counters.states) * size**2 * (extra.max() * layers * (layers + 1) // 2 + layers + 1)
    if bytes_needed > MEMORY_LIMIT:
        raise ValueError(
            f"this needs {bytes_needed / 2**30:.1f} GiB ({len(counters.states)} states of counting constraints, k = {k}): "
            f"ask for a smaller k or smaller least numbers of layers"
        )
    rows = counters.before.max() + 1
    start = np.full((rows, size, size, 1, k), -np.inf)
    start[0, 0, 0, 0, -1] = 0.0  # before the first layer the potentials do not look at the state
    tables = [start]
    for layer in range(layers):
        old = tables[-1]
        new = np.full((*old.shape[:3], old.shape[3] + extra.max(), k), -np.inf)
        for mixer in range(size):
            steps = potentials[layer, :, :, mixer]
            if np.isneginf(steps).all():
                continue
            origin = np.moveaxis(old[counters.before[:, mixer]], (3, 4), (1, 2))  # [Q, b, C, W, a, k]
            order = "C" if k > 1 else "K"  # rows are sorted where they lie; a maximum is quicker across the axes as they came
            candidates = np.add(origin, steps.T[:, None, None, :, None], order=order).reshape(len(origin), size, old.shape[3], -1)
            if k > 1:
                candidates.sort(axis=-1)
            best = candidates[..., -k:] if k > 1 else candidates.max(-1, keepdims=True)
            new[: len(best), :, mixer, extra[mixer] : extra[mixer] + old.shape[3]] = best
        tables.append(new)
    return tables


def _collect(table: np.ndarray, counters: Counters, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Finished placements as costs, states (flat over Q, M, M), ranks in their state, values: the k best of each cost, best first."""
    ends = np.where(counters.accepted[:, None, None, None, None], table[: len(counters.states)], -np.inf)
    size = ends.shape[1]
    flat = np.moveaxis(ends, 3, 0).reshape(ends.shape[3], -1)  # [C, Q * M * M * k]
    keep = np.argpartition(-flat, min(k, flat.shape[1]) - 1, axis=1)[:, :k]
    values = np.take_along_axis(flat, keep, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    keep, values = np.take_along_axis(keep, order, 1), np.take_along_axis(values, order, 1)
    costs = np.repeat(np.arange(len(flat)), keep.shape[1])
    finite = np.isfinite(values.ravel())
    assert flat.shape[1] == len(counters.states) * size**2 * k
    return costs[finite], keep.ravel()[finite] // k, keep.ravel()[finite] % k, values.ravel()[finite]


def _running_best(costs: np.ndarray, values: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The k best entries of cost at most c, for every c at which they change (entries come by cost, then best first)."""
    best: list[tuple[float, int]] = []  # (-value, entry): of equal values the cheaper, earlier entry stays in front
    budgets, ranks, entries = [], [], []
    ends = np.append(np.flatnonzero(np.diff(costs)) + 1, len(costs))
    start = 0
    for end in ends.tolist():
        fresh = [(-values[i], i) for i in range(start, end)]
        if len(best) < k or fresh[0] < best[-1]:
            best = sorted(best + fresh)[:k]
            budgets += [int(costs[start])] * len(best)
            ranks += range(1, len(best) + 1)
            entries += [entry for _, entry in best]
        start = end
    return {"budget": np.array(budgets), "rank": np.array(ranks), "entry": np.array(entries)}


def _backtrack(
    tables: list[np.ndarray], potentials: np.ndarray, price: list[int], counters: Counters,
    states: np.ndarray, costs: np.ndarray, ranks: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Mixer codes [entries, L] of entries of the last table, all at once, from the last layer to the first."""
    size, k = potentials.shape[1], tables[0].shape[-1]
    extra = np.array(price) - min(price)
    count, before, last = np.unravel_index(states, (len(counters.states), size, size))
    codes = np.empty((len(states), len(potentials)), np.intp)
    for layer in range(len(potentials) - 1, -1, -1):
        codes[:, layer] = last
        costs = costs - extra[last]
        origin = counters.before[count, last]  # [n, W]
        # [n, W, a, k]: the candidates of _forward, in its order
        candidates = tables[layer][origin, :, before[:, None], costs[:, None]] + potentials[layer, :, before, last][:, None, :, None]
        flat = candidates.reshape(len(states), -1)
        chosen = flat.argmax(1) if k == 1 else np.argsort(flat, axis=1, kind="stable")[np.arange(len(states)), flat.shape[1] - k + ranks]
        which, earlier, ranks = np.unravel_index(chosen, candidates.shape[1:])
        count, last, before = origin[np.arange(len(states)), which], before, earlier
    return codes
