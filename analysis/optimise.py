"""The best placement at every cost budget at once, exactly, by dynamic programming; and what to score next.

Quality is a sum of terms over three neighbouring layers, cost a sum over layers: after layer i all that matters of the past is the last
two mixers, the cost spent so far (an integer number of 0.01 FA layers) and, for constraints that count, the number of layers of a mixer.
Shapes: L layers, M mixers, Q counter states, C costs, k best.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.cost import UNIT, placement_costs
from analysis.surrogate import ClusterExpansion, Landscape, encode
from supernet.placement import COST, sample_counts, sample_local

MEMORY_LIMIT = 4 * 2**30


@dataclass(frozen=True)
class Constraints:
    """What a user may ask of a placement. Layers count from 0."""

    at_least: Mapping[str, int] = field(default_factory=dict)
    """Least number of layers of a mixer, e.g. {"F": 3}."""
    fixed: Mapping[int, str] = field(default_factory=dict)
    """The mixer of a layer, e.g. {0: "F"}."""
    forbidden: str = ""
    """Mixers that no layer may take, e.g. "K"."""
    forbidden_at: Mapping[int, str] = field(default_factory=dict)
    """Mixers that a layer may not take, e.g. {5: "KG"}."""
    no_singletons: bool = False
    """A mixer that is used at all is used in at least two layers."""
    no_isolated: bool = False
    """Every layer has a neighbour with the same mixer."""


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
    coefficients off the grid of 0.01, unknown mixers or layers, constraints that cannot be met.
    """
    landscape = expansion.landscape if isinstance(expansion, ClusterExpansion) else expansion
    constraints = constraints or Constraints()
    letters, layers = landscape.letters, len(landscape.potentials)
    _check(constraints, letters, layers, k)
    price = _units(letters, coefficients)
    potentials = landscape.potentials + _barriers(constraints, letters, layers)
    counters = _Counters.of(constraints, letters)
    tables = _forward(potentials, price, counters, k)
    costs, states, ranks, values = _collect(tables[-1], counters, k)
    if not len(costs):
        raise ValueError(f"no placement of {layers} layers meets {constraints}: loosen one of them")
    rows = _running_best(costs, values, k)
    used = np.unique(rows["entry"])
    codes = _backtrack(tables, potentials, price, counters, states[used], costs[used], ranks[used])
    names = np.array(["".join(row) for row in np.array(list(letters))[codes]], dtype=object)
    at = np.searchsorted(used, rows["entry"])
    lowest = layers * min(price)
    return pd.DataFrame(
        {
            "budget": np.round((rows["budget"] + lowest) * UNIT, 2),
            "rank": rows["rank"],
            "placement": names[at],
            "cost": np.round((costs[rows["entry"]] + lowest) * UNIT, 2),
            "predicted": landscape.link.quality(landscape.constant + values[rows["entry"]]),
        }
    )


def meets(placement: str, constraints: Constraints) -> bool:
    """Whether a placement is one that ``frontier`` might give under these constraints."""
    counts = {mixer: placement.count(mixer) for mixer in placement}
    around = zip("-" + placement[:-1], placement, placement[1:] + "-", strict=True)
    return (
        all(counts.get(mixer, 0) >= least for mixer, least in constraints.at_least.items())
        and all(placement[layer] == mixer for layer, mixer in constraints.fixed.items())
        and not any(mixer in constraints.forbidden + constraints.forbidden_at.get(i, "") for i, mixer in enumerate(placement))
        and not (constraints.no_singletons and 1 in counts.values())
        and not (constraints.no_isolated and any(mixer not in (before, after) for before, mixer, after in around))
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


@dataclass(frozen=True)
class _Counters:
    """Saturating counts of the mixers that a constraint counts."""

    states: np.ndarray  # [Q, M] the counts
    before: np.ndarray  # [Q, M, W] states from which taking the mixer leads here; Q where there is none
    accepted: np.ndarray  # [Q] whether a placement may end here

    @staticmethod
    def of(constraints: Constraints, letters: str) -> "_Counters":
        least = [constraints.at_least.get(letter, 0) for letter in letters]
        top = [max(n, 2) if constraints.no_singletons else n for n in least]
        states = np.array(list(itertools.product(*[range(t + 1) for t in top])))
        index = {tuple(state): i for i, state in enumerate(states.tolist())}
        lists: list[list[list[int]]] = [[[] for _ in letters] for _ in states]
        for i, state in enumerate(states.tolist()):
            for mixer in range(len(letters)):
                after = [min(n + (m == mixer), t) for m, (n, t) in enumerate(zip(state, top, strict=True))]
                lists[index[tuple(after)]][mixer].append(i)
        width = max(len(origin) for row in lists for origin in row)
        before = np.array([[origin + [len(states)] * (width - len(origin)) for origin in row] for row in lists])
        accepted = (states >= least).all(1) & ~(constraints.no_singletons & (states == 1).any(1))
        return _Counters(states, before, accepted)


def _units(letters: str, coefficients: Mapping[str, float]) -> list[int]:
    """Cost of each mixer in units of 0.01 FA layer."""
    missing = [letter for letter in letters if letter not in coefficients]
    if missing:
        raise ValueError(f"no cost coefficient for mixer {missing[0]}: give one beside {dict(coefficients)}")
    price = [round(coefficients[letter] / UNIT) for letter in letters]
    off = [letter for letter, units in zip(letters, price, strict=True) if abs(units * UNIT - coefficients[letter]) > 1e-9 or units < 0]
    if off:
        raise ValueError(f"cost {coefficients[off[0]]} of mixer {off[0]} is not a positive multiple of {UNIT}: round it to the grid")
    return price


def _check(constraints: Constraints, letters: str, layers: int, k: int) -> None:
    if k < 1:
        raise ValueError(f"k = {k} best placements cannot be found: ask for at least 1")
    named = "".join([*constraints.at_least, *constraints.fixed.values(), constraints.forbidden, *constraints.forbidden_at.values()])
    unknown = [letter for letter in named if letter not in letters]
    if unknown:
        raise ValueError(f"constraint on unknown mixer {unknown[0]}: choose from {', '.join(letters)}")
    outside = [i for i in [*constraints.fixed, *constraints.forbidden_at] if not 0 <= i < layers]
    if outside:
        raise ValueError(f"constraint on layer {outside[0]}: layers run from 0 to {layers - 1}")
    for mixer, least in constraints.at_least.items():
        if not 0 <= least <= layers:
            raise ValueError(f"at least {least} layers of {mixer} is infeasible: the model has {layers} layers")


def _barriers(constraints: Constraints, letters: str, layers: int) -> np.ndarray:
    """[L, M, M, M] 0 where a mixer may follow the two before it, -inf where not."""
    size = len(letters)
    allowed = np.ones((layers, size), bool)
    for layer, letter in constraints.fixed.items():
        allowed[layer] &= np.array(list(letters)) == letter
    for layer in range(layers):
        for letter in constraints.forbidden + constraints.forbidden_at.get(layer, ""):
            allowed[layer, letters.index(letter)] = False
    empty = np.flatnonzero(~allowed.any(1))
    if len(empty):
        raise ValueError(f"no mixer is left for layer {empty[0]}: loosen 'fixed' or 'forbidden'")
    passable = np.broadcast_to(allowed[:, None, None, :], (layers, size, size, size)).copy()
    if constraints.no_isolated:
        if layers == 1:
            raise ValueError("no_isolated is infeasible: a single layer has no neighbour")
        same = np.eye(size, dtype=bool)
        passable[1] &= same[None]  # the first layer needs the second
        passable[2:] &= same[:, :, None] | same[None]  # the middle one of three is like one of its neighbours
        passable[-1] &= same[None]  # the last needs the one before
    return np.where(passable, 0.0, -np.inf)


def _forward(potentials: np.ndarray, price: list[int], counters: _Counters, k: int) -> list[np.ndarray]:
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


def _collect(table: np.ndarray, counters: _Counters, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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
    tables: list[np.ndarray], potentials: np.ndarray, price: list[int], counters: _Counters,
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


# How sure the optimum is, and what to score next.


def stability(
    expansion: ClusterExpansion,
    budgets: Sequence[float],
    rng: np.random.Generator,
    draws: int = 100,
    coefficients: Mapping[str, float] = COST,
    constraints: Constraints | None = None,
) -> pd.DataFrame:
    """How often each layer of the best placement changes under posterior draws, as if scored on other items of the same kind.

    Columns budget, layer, mixer (of the best placement under the posterior mean) and one share per mixer letter: of the draws, how many
    have an optimum at this budget that takes it there (they sum to 1; the share of ``mixer`` is how sure that choice is).
    """
    names = best_at(frontier(expansion, coefficients, 1, constraints), budgets)
    shares = np.zeros((len(budgets), expansion.layers, len(expansion.letters)))
    for landscape in expansion.draw(rng, draws, other_items=True):
        drawn = best_at(frontier(landscape, coefficients, 1, constraints), budgets)
        shares += np.eye(len(expansion.letters))[encode(drawn, expansion.letters)]
    index = pd.MultiIndex.from_product([budgets, range(expansion.layers)], names=["budget", "layer"])
    table = pd.DataFrame(shares.reshape(len(index), -1) / draws, index, list(expansion.letters)).reset_index()
    table.insert(2, "mixer", [letter for name in names for letter in name])
    return table


def propose(
    expansion: ClusterExpansion,
    n: int,
    rng: np.random.Generator,
    exclude: Sequence[str] = (),
    coefficients: Mapping[str, float] = COST,
    constraints: Constraints | None = None,
    random_share: float = 0.25,
) -> pd.DataFrame:
    """Up to ``n`` placements to score next: columns placement, source ("frontier" or "local" / "counts", as in the placement table).

    Thompson sampling: the optimum of a posterior draw at a budget drawn uniformly; mixed with random placements, which keep the surrogate
    honest away from the frontier. None of ``exclude`` (what is scored already and the test set) is proposed, nor any placement twice.
    Fewer than ``n`` come back only when the placements run out.
    """
    taken, rows = set(exclude), []

    def add(placement: str, source: str) -> None:
        if placement not in taken and len(rows) < n:
            taken.add(placement)
            rows.append((str(placement), source))

    wanted = n - round(random_share * n)
    dearest = expansion.layers * max(coefficients[letter] for letter in expansion.letters)  # beyond the last change, too
    for landscape in expansion.draw(rng, 32):
        if len(rows) == wanted:
            break
        table = frontier(landscape, coefficients, 1, constraints)
        for placement in best_at(table, rng.uniform(table["budget"].min(), dearest, size=-(-wanted // 8))):
            if len(rows) < wanted:
                add(placement, "frontier")
    for attempt in range(100 * n):
        if len(rows) == n:
            break
        local = attempt % 2 == 0
        sampler = sample_local if local else sample_counts
        add(sampler(expansion.layers, rng, expansion.letters), "local" if local else "counts")
    return pd.DataFrame(rows, columns=["placement", "source"])


@dataclass(frozen=True)
class Gain:
    """What scoring the predicted frontier might still bring, averaged over budgets, nats per token."""

    gain: float
    """Predicted quality of the frontier minus that of the best scored placements."""
    uncertainty: float
    """Standard deviation of that difference under the posterior."""

    @property
    def stop(self) -> bool:
        """The predicted gain is not larger than its uncertainty."""
        return self.gain <= self.uncertainty


def predicted_gain(
    expansion: ClusterExpansion,
    rng: np.random.Generator,
    draws: int = 200,
    coefficients: Mapping[str, float] = COST,
    constraints: Constraints | None = None,
) -> Gain:
    """The stopping rule of active learning, over all budgets that a scored placement fits into.

    Budgets (every 0.01 FA layer) weigh equally; the incumbent at a budget is the scored placement with the best predicted quality in it.
    """
    table = frontier(expansion, coefficients, 1, constraints)
    scored = np.array(expansion.placements, dtype=object)
    cost = placement_costs(list(scored), coefficients)
    order = np.argsort(cost, kind="stable")
    value = expansion.landscape.value(list(scored[order]))
    leader = np.maximum.accumulate(value)
    leader_index = np.maximum.accumulate(np.where(value == leader, np.arange(len(value)), 0))
    highest = max(table["budget"].max(), cost.max())
    grid = np.arange(round(cost.min() / UNIT), round(highest / UNIT) + 1) * UNIT + UNIT / 2
    incumbent = scored[order][leader_index[np.searchsorted(cost[order], grid) - 1]]
    optimum = best_at(table, grid)
    pairs = pd.Series(1, index=pd.MultiIndex.from_arrays([optimum, incumbent])).groupby(level=[0, 1]).sum()
    better, known = (list(pairs.index.get_level_values(level)) for level in (0, 1))
    share = pairs.to_numpy() / pairs.sum()

    def difference(landscape: Landscape) -> float:
        return float(share @ (landscape.value(better) - landscape.value(known)))

    return Gain(difference(expansion.landscape), float(np.std([difference(d) for d in expansion.draw(rng, draws)])))
