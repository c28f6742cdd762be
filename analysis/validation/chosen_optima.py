"""Does the interval of a chosen optimum hold its true quality? Planted landscapes, scored, fitted, chosen from.

Letters: L layers, P placements, I items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.cost import dearest
from analysis.optimise.optimism import optimum
from analysis.surrogate.design import CLUSTERS, design
from analysis.surrogate.fitting import fit, spread
from supernet.placement import COST, LETTERS


@dataclass(frozen=True)
class Planted:
    """Variances over uniform placements, nats² per token²: of each kind of cluster, of what no cluster expresses, and of one item's noise,
    half of it in the effects of single layers (so shared by alike placements)."""

    name: str
    clusters: tuple[float, float, float, float]
    remainder: float = 0.0005
    noise: float = 0.02
    compounding: float = np.inf  # losses multiply: quality is bent at this many nats/token below 0


PLANTED = {
    world.name: world
    for world in (
        Planted("additive", (0.02, 0.0, 0.0, 0.0)),
        Planted("pairs", (0.015, 0.005, 0.002, 0.0)),
        Planted("strong interactions", (0.008, 0.006, 0.004, 0.004), remainder=0.002),
        Planted("much noise", (0.02, 0.0, 0.0, 0.0), noise=0.2),
        Planted("compounding", (0.02, 0.002, 0.0, 0.0), compounding=1.0),
    )
}


def planted(
    world: Planted, layers: int, placements: int, items: int, rng: np.random.Generator
) -> tuple[list[str], np.ndarray, Callable[[Sequence[str]], np.ndarray]]:
    """Scored placements, their quality [P, I] and the true quality of any placements. Dearer mixers are better on average."""
    names = [LETTERS[0] * layers]
    while len(names) < placements:
        mix = rng.dirichlet(np.full(len(LETTERS), 0.7))
        name = "".join(rng.choice(list(LETTERS), size=layers, p=mix))
        names += [name] * (name not in names)
    widths = [max(layers - c[-1], 0) * (len(LETTERS) - 1) ** len(c) for c in CLUSTERS]
    variance = np.repeat([0.0, *(v / w for v, w in zip(world.clusters, widths, strict=True))], [1, *widths])
    weights = np.sqrt(variance) * rng.standard_normal(len(variance))
    slope = 0.25 * np.array([COST[c] for c in LETTERS]) / np.sqrt(layers)
    own: dict[str, float] = {}

    def latent(asked: Sequence[str]) -> np.ndarray:
        cost = np.array([slope[[LETTERS.index(c) for c in name]].sum() for name in asked])
        remainder = np.array([own.setdefault(name, np.sqrt(world.remainder) * rng.standard_normal()) for name in asked])
        return design(asked, LETTERS, layers) @ weights + cost + remainder - 1

    def true(asked: Sequence[str]) -> np.ndarray:
        z = latent(asked)
        return z if np.isinf(world.compounding) else -world.compounding * np.expm1(-z / world.compounding)

    points = design(names, LETTERS, layers, CLUSTERS[:1])[:, 1:]
    shared = points @ rng.standard_normal((points.shape[1], items)) * np.sqrt(0.5 * world.noise / points.shape[1])
    noise = shared + np.sqrt(0.5 * world.noise) * rng.standard_normal((placements, items))
    return names, true(names)[:, None] + noise + 0.3 * rng.standard_normal(items), true


def coverage_of_optima(world: Planted, layers: int, placements: int, items: int, repetitions: int, seed: int, level: float = 0.95,
                       worlds: int = 32) -> pd.DataFrame:  # fmt: skip
    """One row per interval of the difference to all-FA, over repetitions and five budgets: plain, corrected as ``analysis.presets`` does.
    Coverage with its standard error over repetitions, how often the truth lies below and above the interval, its mean width, how much
    too good its middle is."""
    found = []
    budgets = np.round(np.array([0.25, 0.35, 0.5, 0.65, 0.8]) * layers, 2)
    full = dearest(LETTERS, COST) * layers
    for repetition in range(repetitions):
        rng = np.random.default_rng([seed, repetition])
        names, quality, true = planted(world, layers, placements, items, rng)
        quality = quality - quality.mean(axis=0) + quality.mean()  # what an item adds to all alike is no matter of choice
        mean = quality.mean(axis=1)
        expansion = fit(names, mean, 0.0, items=quality)
        rich = fit(names, mean, 0.0, items=quality, clusters=CLUSTERS, reaches=(expansion.link.reach / spread(mean),))
        table = optimum(expansion, budgets, COST, level, worlds, rng, rich)
        truth = true(list(table["placement"])) - true([full])
        for name, column in (("plain", "difference"), ("corrected", "difference_corrected")):
            low, high, middle = (table[f"{column}{end}"].to_numpy() for end in ("_lo", "_hi", ""))
            found += [
                {"repetition": repetition, "interval": name, "coverage": a - 1e-9 <= value <= b + 1e-9, "below": value < a - 1e-9,
                 "above": value > b + 1e-9, "width": b - a, "too_good": m - value}
                for a, b, m, value in zip(low, high, middle, truth, strict=True)
            ]  # fmt: skip
    frame = pd.DataFrame(found).astype({"coverage": float, "below": float, "above": float})
    rows = frame.drop(columns="repetition").groupby("interval", sort=False).mean().reset_index()
    by_run = frame.groupby(["interval", "repetition"], sort=False)["coverage"].mean().groupby(level=0, sort=False)
    rows.insert(2, "coverage_se", (by_run.std() / np.sqrt(by_run.size())).to_numpy())
    return rows
