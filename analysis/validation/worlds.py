"""Simulated runs whose true rankings are known, to measure whether estimates are unbiased and intervals cover.

Letters: S steps, P placements that are scored, N placements of the population.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.table import Scores
from supernet.placement import COST, LETTERS, Placement


@dataclass(frozen=True)
class World:
    """What is planted. Standard deviations are in units of the spread of true quality between placements of equal cost."""

    name: str
    correlation: tuple[float, ...] = (0.0, 0.5, 0.8, 0.95, 1.0)
    """Pearson correlation of true quality (at equal cost) between each step and the last; never falls, the last is 1."""
    placements: int = 64
    items: int = 64
    tasks: int = 4
    layers: int = 48  # up to 5: the 4^layers placements are the whole population, from which ``placements`` are drawn
    noise: float = 2.0  # of one item, fresh at every step
    shared: float = 2.0  # placement × item interaction, the same at every step: makes τ on the same items too high
    structured: float = 0.0  # item × feature interaction, shared by steps *and* placements: the noise that only resampling items sees
    features: int = 3
    cost_slope: float = 0.0  # true quality gained per layers/10 of cost
    band: tuple[float, float] = (0.0, 1.0)  # cost of the placements drawn, as a share of all-FA
    levels: float = 0.0  # true quality is rounded to this grid (0: not), which plants ties
    skewed: bool = False  # exponential instead of normal true quality: breaks the normal model on which the correction rests


def true_quality(world: World, cost: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """True quality of placements of the given cost [P] at every step -> [S, P]. A Markov chain backwards from the last step."""
    steps = len(world.correlation)
    true = np.empty((steps, len(cost)))
    draw = (lambda: rng.exponential(size=len(cost)) - 1) if world.skewed else (lambda: rng.standard_normal(len(cost)))
    true[-1] = draw()
    for s in range(steps - 2, -1, -1):
        now, later = world.correlation[s], world.correlation[s + 1]
        keep = now / later if later else 0.0
        true[s] = keep * true[s + 1] + np.sqrt(max(0.0, 1 - keep**2)) * draw()
    true = true + world.cost_slope * 10 / world.layers * cost
    return np.round(true / world.levels) * world.levels if world.levels else true


def draw_placements(world: World, rng: np.random.Generator, n: int) -> tuple[list[str], np.ndarray]:
    """n placements inside the world's band and their costs [n]; the mix of mixers varies freely, so that all costs are visited."""
    coefficients = np.array([COST[c] for c in LETTERS])
    found: dict[str, float] = {}
    low, high = (world.layers * edge for edge in world.band)
    while len(found) < n:
        mix = rng.dirichlet(np.full(len(LETTERS), 0.7), size=4 * n).cumsum(axis=1)
        letters = (rng.random((4 * n, world.layers, 1)) > mix[:, None, :-1]).sum(axis=2)
        cost = coefficients[letters].sum(axis=1)
        for row in np.flatnonzero((cost >= low) & (cost < high)):
            found.setdefault("".join(LETTERS[i] for i in letters[row]), round(float(cost[row]), 9))
    names = list(found)[:n]
    return names, np.array([found[name] for name in names])


def simulate(world: World, rng: np.random.Generator) -> tuple[Scores, np.ndarray]:
    """One run of the world and the true qualities [S, N] of the population: all 4^layers placements, or, if too many, those scored."""
    if world.layers <= 5:
        names = ["".join(letters) for letters in itertools.product(LETTERS, repeat=world.layers)]
        cost = np.array([Placement(name).cost() for name in names])
    else:
        names, cost = draw_placements(world, rng, world.placements)
    population = true_quality(world, cost, rng)
    chosen = np.sort(rng.choice(len(names), size=world.placements, replace=False))
    names, cost, true = [names[p] for p in chosen], cost[chosen], population[:, chosen]
    S, P, I = len(true), len(names), world.items
    quality = np.repeat(true[:, :, None], I, axis=2) + 2 * rng.standard_normal(I) - 5
    if world.shared:
        quality += world.shared * rng.standard_normal((P, I))
    if world.structured:
        taste = rng.standard_normal((P, world.features)) @ rng.standard_normal((world.features, I))
        quality += world.structured / np.sqrt(world.features) * taste
    if world.noise:
        quality += world.noise * rng.standard_normal((S, P, I))
    steps = np.concatenate([[0], 100 * 2 ** np.arange(S - 1)])
    scores = Scores(
        scale="simulated", run=world.name, seed=0, steps=steps, tokens=4096 * steps, placements=names, cost=cost,
        items=[f"item-{i:04d}" for i in range(I)], tasks=[f"task-{i % world.tasks}" for i in range(I)], quality=quality,
    )  # fmt: skip
    return scores, population


def realised_tau(true: np.ndarray) -> np.ndarray:
    """τ-b of each step with the last of true qualities [S, N] -> [S]."""
    return np.array([stats.kendalltau(row, true[-1]).statistic for row in true])


def true_tau(world: World, rng: np.random.Generator, n: int = 20_000, repeats: int = 4) -> np.ndarray:
    """True τ-b of each step with the last over the population of placements -> [S].

    (2/π) asin of the correlation (Greiner) where quality is normal and free of cost, else by drawing ``repeats`` populations of ``n``.
    """
    if not (world.cost_slope or world.levels or world.skewed):
        return 2 / np.pi * np.arcsin(np.array(world.correlation))
    _, cost = draw_placements(world, rng, 4000)
    drawn = [true_quality(world, rng.choice(cost, size=n), rng) for _ in range(repeats)]
    return np.mean([realised_tau(true) for true in drawn], axis=0)


def observed_tau(world: World) -> np.ndarray:
    """τ of each step with the last as seen on the world's items, the same at both steps -> [S]; worlds with normal quality only.

    Attenuated by the noise and inflated by what the steps share: correlation (ρ + s²/I) / (1 + (s² + n²)/I).
    """
    assert not (world.cost_slope or world.levels or world.skewed)
    shared, noise = (world.shared**2 + world.structured**2) / world.items, world.noise**2 / world.items
    seen = (np.array(world.correlation) + shared) / (1 + shared + noise)
    seen[-1] = 1
    return 2 / np.pi * np.arcsin(seen)


WORLDS = {
    world.name: world
    for world in (
        World("planted"),
        World("settled", correlation=(1.0, 1.0, 1.0, 1.0, 1.0), noise=0.5, shared=0.5),
        World("random", correlation=(0.0, 0.0, 0.0, 0.0, 1.0)),
        World("noisy", noise=3.0, shared=3.0),
        World("structured", noise=1.0, shared=1.0, structured=3.0),
        World("slope", cost_slope=2.0, band=(0.31, 0.48)),
        World("ties", levels=0.1),
        World("skewed", skewed=True),
        World("all", layers=3),
        World("quarter", layers=4),
        World("coarse ties", levels=0.25),
        World("many", placements=96, noise=1.5, shared=1.5, structured=1.0),
        World("settling", correlation=(0.5, 0.9, 0.97, 0.998, 0.999, 1.0), noise=0.5, shared=0.5),
    )
}
"""The worlds of the committed validation table. ``all`` and ``quarter``: 64 placements of a population of 64 and of 256."""
