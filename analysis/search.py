"""The optimiser against simpler searches at equal evaluations, where the truth is known: an exhaustively scored run.

``python -m analysis.search results/tiny/<run-id>`` writes tables/search.csv, tables/search_budgets.csv and figures/search into the run.
A search may score a number of placements and answers with candidates and how good it believes each to be; at every budget its best
candidate that fits is taken and judged by the true landscape. All searches are given the cheapest placement and all-FA to start with.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis import figures, preset_figures
from analysis.cost import UNIT, placement_costs
from analysis.optimise import frontier, propose
from analysis.surrogate import ClusterExpansion, alphabet, fit
from analysis.table import load_scores
from supernet.placement import COST, sample_counts, sample_local


class Spent(Exception):
    """All evaluations are used up."""


class Meter:
    """Scores placements, each once, and counts; raises ``Spent`` when a new one would exceed the limit."""

    def __init__(self, score: Callable[[str], float], limit: int, layers: int, letters: str) -> None:
        self.score, self.limit, self.layers, self.letters = score, limit, layers, letters
        self.by_cost = sorted(letters, key=lambda c: COST[c])
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
    """Greedy layer replacement: from all-FA the change of one layer that loses least per cost saved, down to the cheapest; then from the
    cheapest up by what gains most per cost; then down and up from random placements while evaluations last."""

    def walk(placement: str, direction: int) -> None:
        while True:
            changes = []
            for layer, letter in enumerate(placement):
                for other in meter.letters:
                    step = direction * (COST[other] - COST[letter])
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


def search_genetic(meter: Meter, rng: np.random.Generator, first: int = 32, tournament: int = 4) -> None:
    """Steady-state genetic search: at a budget drawn uniformly, the better of two tournaments among what fits are crossed layer by layer,
    one layer in L mutates, and a child that is too dear has random layers made cheaper."""
    for placement in random_placements(meter, rng):
        meter(placement)
        if len(meter.seen) >= min(first, meter.limit // 4):
            break
    low, high = COST[meter.by_cost[0]] * meter.layers, COST[meter.by_cost[-1]] * meter.layers
    while True:
        budget = rng.uniform(low, high)
        names = list(meter.seen)
        fitting = [names[i] for i in np.flatnonzero(placement_costs(names) <= budget)]
        parents = [max(rng.choice(fitting, size=tournament), key=meter) for _ in range(2)]
        child = [parents[side][layer] for layer, side in enumerate(rng.integers(2, size=meter.layers))]
        for layer in np.flatnonzero(rng.random(meter.layers) < 1 / meter.layers):
            child[layer] = str(rng.choice(list(meter.letters)))
        while sum(COST[c] for c in child) > budget + 1e-9:
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
        for placement in propose(_fit(meter), -(-meter.left // remaining), rng, list(meter.seen), random_share=0.1)["placement"]:
            meter(placement)


def _fit(meter: Meter) -> ClusterExpansion:
    return fit(list(meter.seen), np.array(list(meter.seen.values())), 0.0, meter.letters)


def answer_scored(meter: Meter) -> dict[str, float]:
    """What was scored, as it was scored."""
    return dict(meter.seen)


def answer_predicted(meter: Meter, k: int = 10) -> dict[str, float]:
    """What was scored, and beside it the surrogate's k best placements of every budget as predicted."""
    table = frontier(_fit(meter), k=k)
    return dict(zip(table["placement"], table["predicted"], strict=True)) | meter.seen


SEARCHES = {
    "optimiser": (search_optimiser, answer_scored),
    "random + surrogate": (search_random, answer_predicted),
    "genetic": (search_genetic, answer_scored),
    "greedy": (search_greedy, answer_scored),
    "random": (search_random, answer_scored),
}
"""How placements are chosen for scoring, and what is answered. All use the same number of evaluations."""


def search(
    score: Callable[[str], float], method: str, evaluations: int, layers: int, letters: str, rng: np.random.Generator
) -> dict[str, float]:
    """Candidates and what ``method`` believes their quality to be, after exactly that many calls of ``score`` (fewer if all are known)."""
    meter = Meter(score, evaluations, layers, letters)
    explore, answer = SEARCHES[method]
    meter(meter.by_cost[0] * layers)
    meter(meter.by_cost[-1] * layers)
    with contextlib.suppress(Spent):
        explore(meter, rng)
    return answer(meter)


def best_within(cost: np.ndarray, value: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Index [B] of the best of ``value`` among what costs at most each budget; of equal values the cheaper."""
    order = np.lexsort((-value, cost))
    leader = np.maximum.accumulate(value[order])
    first = np.r_[True, leader[1:] > leader[:-1]]
    index = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    return order[index[np.searchsorted(cost[order], budgets + UNIT / 2) - 1]]


def experiment(
    placements: list[str], quality: np.ndarray, evaluations: Sequence[int], repetitions: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Budgets [B] and regret [evaluations, methods, repetitions, B] of every search on one true landscape ``quality`` [P].

    Regret at a budget: true quality of the truly best placement that fits minus that of the search's choice, nats per token. Budgets are
    every 0.01 FA layer from the cheapest placement to the dearest. Raises ValueError when not all placements are there.
    """
    letters, layers = alphabet(placements), len(placements[0])
    if len(placements) != len(letters) ** layers:
        raise ValueError(
            f"{len(placements)} of {len(letters) ** layers} placements are scored: the truth must be known, run an exhaustive sweep"
        )
    if max(evaluations) > len(placements) // 2:
        raise ValueError(f"{max(evaluations)} evaluations of {len(placements)} placements is no search: ask for at most half of them")
    cost, index = placement_costs(placements), {p: i for i, p in enumerate(placements)}
    budgets = np.arange(round(cost.min() / UNIT), round(cost.max() / UNIT) + 1) * UNIT
    best = quality[best_within(cost, quality, budgets)]
    regret = np.empty((len(evaluations), len(SEARCHES), repetitions, len(budgets)))
    for e, m, r in np.ndindex(regret.shape[:3]):
        rng = np.random.default_rng([seed, evaluations[e], m, r])
        found = search(lambda p: quality[index[p]], list(SEARCHES)[m], evaluations[e], layers, letters, rng)
        rows = np.array([index[p] for p in found])
        regret[e, m, r] = best - quality[rows[best_within(cost[rows], np.array(list(found.values())), budgets)]]
    return budgets, regret


def summarise(samples: np.ndarray, name: str, most: float = np.inf) -> dict[str, float]:
    """Mean over repetitions [R] with its 95% t interval, cut at 0 (neither regret nor a share can be less) and at ``most``."""
    half = student.ppf(0.975, len(samples) - 1) * samples.std(ddof=1) / np.sqrt(len(samples))
    return {name: samples.mean(), f"{name}_lo": max(samples.mean() - half, 0.0), f"{name}_hi": min(samples.mean() + half, most)}


def truth_experiment(
    placements: list[str], quality: np.ndarray, evaluations: Sequence[int] = (128, 256), repetitions: int = 20, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables for the true landscapes ``quality`` [S, P] of the checkpoints (numbered in ``checkpoint``).

    The first has a row per checkpoint, evaluations, method: mean regret over all budgets, and ``found``, the share of budgets where the
    true best is found (equal value). The second has the regret at each of 25 budgets. Each with its 95% t interval over repetitions;
    ``spread`` is the standard deviation of the true quality over all placements, for scale.
    """
    if repetitions < 2:
        raise ValueError(f"{repetitions} repetition gives no interval: ask for at least 2")
    summary, by_budget = [], []
    for checkpoint, landscape in enumerate(quality):
        budgets, regret = experiment(placements, landscape, evaluations, repetitions, seed)
        shown = np.unique(np.linspace(0, len(budgets) - 1, 25).round().astype(int))
        for (e, n), (m, method) in ((e, m) for e in enumerate(evaluations) for m in enumerate(SEARCHES)):
            row = {"checkpoint": checkpoint, "evaluations": n, "method": method, "repetitions": repetitions, "spread": landscape.std()}
            samples, found = regret[e, m], regret[e, m] <= 1e-12
            summary.append(row | summarise(samples.mean(axis=1), "regret") | summarise(found.mean(axis=1), "found", most=1.0))
            by_budget += [
                row | {"budget": round(budgets[b], 2)} | summarise(samples[:, b], "regret") | {"found": found[:, b].mean()} for b in shown
            ]
    return pd.DataFrame(summary), pd.DataFrame(by_budget)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m analysis.search", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory with exhaustive scores")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        scores = load_scores(options.run)
        tables = truth_experiment(scores.placements, scores.quality.mean(axis=2), options.evaluations, options.repetitions, options.seed)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    folder = options.run if options.run.is_dir() else options.run.parent
    (folder / "tables").mkdir(exist_ok=True)
    for name, table in zip(("search", "search_budgets"), tables, strict=True):
        table.insert(0, "run", scores.run)
        table.insert(1, "step", scores.steps[table["checkpoint"]])
        table.insert(2, "tokens", scores.tokens[table.pop("checkpoint")])
        temporary = folder / "tables" / f".{name}.csv.tmp"
        table.to_csv(temporary, index=False, float_format="%.6g")
        temporary.replace(folder / "tables" / f"{name}.csv")
    with figures.figure(rows=2, height=2.2) as (fig, axes):
        largest = tables[0]["evaluations"] == max(options.evaluations)
        preset_figures.search_by_step(axes[0], tables[0][largest])
        final = tables[1]["step"] == scores.steps[-1]
        preset_figures.search_by_budget(axes[1], tables[1][final & (tables[1]["evaluations"] == max(options.evaluations))])
        figures.save(fig, folder / "figures" / "search")
    print(tables[0][tables[0]["step"] == scores.steps[-1]].to_string(index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
