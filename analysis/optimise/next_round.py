"""What to score next: optima of posterior draws, and what they may still gain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.cost import coefficients_of, on_grid, placement_costs, unit_of
from analysis.optimise.choice import budgets_of, surrogate
from analysis.optimise.exact import best_at, frontier
from analysis.surrogate.expansion import ClusterExpansion, Landscape
from analysis.surrogate.judging import cost_bands, judge
from analysis.table import Scores
from supernet.placement import COST, sample_counts, sample_local


def propose(
    expansion: ClusterExpansion,
    n: int,
    rng: np.random.Generator,
    exclude: Sequence[str] = (),
    coefficients: Mapping[str, float] = COST,
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
        table = frontier(landscape, on_grid(coefficients))
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
) -> Gain:
    """The stopping rule of active learning, over all budgets that a scored placement fits into.

    Budgets (every step of the grid of costs) weigh equally; the incumbent at a budget is the scored placement with the best predicted
    quality in it.
    """
    table, unit = frontier(expansion, on_grid(coefficients)), unit_of(coefficients)
    scored = np.array(expansion.placements, dtype=object)
    cost = placement_costs(list(scored), coefficients)
    order = np.argsort(cost, kind="stable")
    value = expansion.landscape.value(list(scored[order]))
    leader = np.maximum.accumulate(value)
    leader_index = np.maximum.accumulate(np.where(value == leader, np.arange(len(value)), 0))
    highest = max(table["budget"].max(), cost.max())
    grid = np.arange(round(max(cost.min(), table["budget"].min()) / unit), round(highest / unit) + 1) * unit + unit / 2
    incumbent = scored[order][leader_index[np.searchsorted(cost[order], grid) - 1]]
    optimum = best_at(table, grid)
    pairs = pd.Series(1, index=pd.MultiIndex.from_arrays([optimum, incumbent])).groupby(level=[0, 1]).sum()
    better, known = (list(pairs.index.get_level_values(level)) for level in (0, 1))
    share = pairs.to_numpy() / pairs.sum()

    def difference(landscape: Landscape) -> float:
        return float(share @ (landscape.value(better) - landscape.value(known)))

    return Gain(difference(expansion.landscape), float(np.std([difference(d) for d in expansion.draw(rng, draws)])))


def next_placements(
    scores: Scores, n: int, rng: np.random.Generator, test: Sequence[str] = ()
) -> tuple[pd.DataFrame, Gain, dict[str, float | None]]:
    """One round of active learning at the last checkpoint.

    What to score next (placement, source), what that may gain and so whether to stop instead, and the surrogate's R² and τ on ``test``
    (None where fewer than 3 of them are scored). ``test`` placements are neither learned from nor proposed. First of all come the predicted
    optima of the presets' budgets: the best of very many predictions is the one most overrated, and only its score puts that right.
    """
    out = np.isin(scores.placements, list(test))
    # the others' items' means are left out, too: they would be learned from by way of these
    learned, unknown = scores.part(placements=~out), scores.part(placements=out)
    expansion, coefficients = surrogate(learned), coefficients_of(scores.placements, scores.cost)
    gain = predicted_gain(expansion, rng, coefficients=coefficients)
    judged = {"r2": None, "tau": None}
    if out.sum() >= 3:
        truth, predicted = unknown.quality[-1].mean(axis=1), expansion.landscape.value(unknown.placements)
        whole = judge(truth, predicted, unknown.cost, cost_bands(unknown.cost)[:1]).iloc[0]
        judged = {name: float(whole[name]) if np.isfinite(whole[name]) else None for name in judged}
    taken = {*scores.placements, *test}
    optima = best_at(frontier(expansion, on_grid(coefficients)), budgets_of(expansion, coefficients))
    now = [placement for placement in dict.fromkeys(optima) if placement not in taken][:n]
    rows = propose(expansion, n - len(now), rng, [*taken, *now], coefficients)
    return pd.concat([pd.DataFrame({"placement": now, "source": "frontier"}), rows], ignore_index=True), gain, judged
