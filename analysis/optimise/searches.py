"""Searches that the optimiser is held against: each may score a number of placements and answers with candidates."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from analysis.cost import placement_costs
from analysis.optimise.exact import frontier
from analysis.optimise.next_round import propose
from analysis.surrogate.expansion import ClusterExpansion
from analysis.surrogate.fitting import fit
from supernet.placement import COST, sample_counts, sample_local


class Spent(Exception):
    """All evaluations are used up."""


class Meter:
    """Scores placements, each once, and counts; raises ``Spent`` when a new one would exceed the limit."""

    def __init__(self, score: Callable[[str], float], limit: int, layers: int, letters: str, price: Mapping[str, float]) -> None:
        self.score, self.limit, self.layers, self.letters, self.price = score, limit, layers, letters, price
        self.by_cost = sorted(letters, key=lambda c: price[c])
        self.seen: dict[str, float] = {}

    def __call__(self, placement: str) -> float:
        if placement not in self.seen:
            if len(self.seen) == self.limit:
                raise Spent
            self.seen[placement] = self.score(placement)
        return self.seen[placement]

    @property
    def left(self) -> int:
        return self.limit - len(self.seen)


def random_placements(meter: Meter, rng: np.random.Generator) -> Iterator[str]:
    """Without end: uniform and uniform in counts, in turn."""
    while True:
        yield str(sample_local(meter.layers, rng, meter.letters))
        yield str(sample_counts(meter.layers, rng, meter.letters))


def search_random(meter: Meter, rng: np.random.Generator) -> None:
    """The best of a random sample."""
    for placement in random_placements(meter, rng):
        meter(placement)


def search_greedy(meter: Meter, rng: np.random.Generator) -> None:
    """Greedy layer replacement: from all-FA the change of one layer that loses least per cost saved, down to the cheapest. Then from the
    cheapest up by what gains most per cost; then down and up from random placements while evaluations last."""

    def walk(placement: str, direction: int) -> None:
        while True:
            changes = []
            for layer, letter in enumerate(placement):
                for other in meter.letters:
                    step = direction * (meter.price[other] - meter.price[letter])
                    if step > 0:
                        changed = placement[:layer] + other + placement[layer + 1 :]
                        changes.append(((meter(changed) - meter(placement)) / step, changed))
            if not changes:
                return
            placement = max(changes)[1]

    walk(meter.by_cost[-1] * meter.layers, -1)
    walk(meter.by_cost[0] * meter.layers, 1)
    for placement in random_placements(meter, rng):
        walk(placement, -1)
        walk(placement, 1)


def search_importance(meter: Meter, rng: np.random.Generator) -> None:
    """Layer importance, as hybrid models are often cut: with one cheap mixer everywhere, the gain of restoring each single layer to the
    dearest one. Then layers are restored in the order of these gains. So with every cheap mixer, the cheapest first; then at random."""
    full = meter.by_cost[-1]
    for cheap in meter.by_cost[:-1]:
        base = cheap * meter.layers
        gains = [meter(base[:layer] + full + base[layer + 1 :]) - meter(base) for layer in range(meter.layers)]
        placement = base
        for layer in np.argsort(gains)[::-1]:
            placement = placement[:layer] + full + placement[layer + 1 :]
            meter(placement)
    search_random(meter, rng)


def search_genetic(meter: Meter, rng: np.random.Generator, first: int = 32, tournament: int = 4) -> None:
    """Steady-state genetic search: at a budget drawn uniformly, the better of two tournaments among what fits are crossed layer by layer.
    One layer in L mutates, and a child that is too dear has random layers made cheaper."""
    for placement in random_placements(meter, rng):
        meter(placement)
        if len(meter.seen) >= min(first, meter.limit // 4):
            break
    low, high = meter.price[meter.by_cost[0]] * meter.layers, meter.price[meter.by_cost[-1]] * meter.layers
    while True:
        budget = rng.uniform(low, high)
        names = list(meter.seen)
        fitting = [names[i] for i in np.flatnonzero(placement_costs(names, meter.price) <= budget)]
        parents = [max(rng.choice(fitting, size=tournament), key=meter) for _ in range(2)]
        child = [parents[side][layer] for layer, side in enumerate(rng.integers(2, size=meter.layers))]
        for layer in np.flatnonzero(rng.random(meter.layers) < 1 / meter.layers):
            child[layer] = str(rng.choice(list(meter.letters)))
        while sum(meter.price[c] for c in child) > budget + 1e-9:
            layer = int(rng.integers(meter.layers))
            child[layer] = meter.by_cost[max(meter.by_cost.index(child[layer]) - 1, 0)]
        if "".join(child) in meter.seen:  # what is known needs no evaluation: somewhere near it instead
            layer = int(rng.integers(meter.layers))
            child[layer] = str(rng.choice(list(meter.letters)))
        meter("".join(child))


def search_optimiser(meter: Meter, rng: np.random.Generator, rounds: int = 4) -> None:
    """Half of the evaluations at random, then rounds of: fit the surrogate, score what ``propose`` asks for."""
    for placement in random_placements(meter, rng):
        if meter.left <= meter.limit // 2:
            break
        meter(placement)
    for remaining in range(rounds, 0, -1):
        wanted = -(-meter.left // remaining)
        for placement in propose(_fit(meter), wanted, rng, list(meter.seen), meter.price, random_share=0.1)["placement"]:
            meter(placement)


def _fit(meter: Meter) -> ClusterExpansion:
    return fit(list(meter.seen), np.array(list(meter.seen.values())), 0.0, meter.letters)


def answer_scored(meter: Meter) -> dict[str, float]:
    """What was scored, as it was scored."""
    return dict(meter.seen)


def answer_predicted(meter: Meter, k: int = 10) -> dict[str, float]:
    """What was scored, and beside it the surrogate's k best placements of every budget as predicted."""
    table = frontier(_fit(meter), meter.price, k)
    return dict(zip(table["placement"], table["predicted"], strict=True)) | meter.seen


SEARCHES = {
    "optimiser": (search_optimiser, answer_scored),
    "random + surrogate": (search_random, answer_predicted),
    "genetic": (search_genetic, answer_scored),
    "greedy": (search_greedy, answer_scored),
    "layer importance": (search_importance, answer_scored),
    "random": (search_random, answer_scored),
}
"""How placements are chosen for scoring, and what is answered. All use the same number of evaluations."""


def search(
    score: Callable[[str], float], method: str, evaluations: int, layers: int, letters: str, rng: np.random.Generator,
    price: Mapping[str, float] = COST,
) -> dict[str, float]:  # fmt: skip
    """Candidates and what ``method`` believes their quality to be, after exactly that many calls of ``score`` (fewer if all are known)."""
    meter = Meter(score, evaluations, layers, letters, price)
    explore, answer = SEARCHES[method]
    meter(meter.by_cost[0] * layers)
    meter(meter.by_cost[-1] * layers)
    with contextlib.suppress(Spent):
        explore(meter, rng)
    return answer(meter)
