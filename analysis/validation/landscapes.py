"""Simulated runs in nats per token whose order at every margin is known: the worlds in which earlier endpoints failed.

Letters: S steps, P placements, I items. Differences between placements of equal cost have a standard deviation of about 0.1 nats/token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.table import Scores
from analysis.validation.worlds import World, draw_placements

SPREAD = 0.1
"""Standard deviation of true quality at T between placements, nats per token."""


@dataclass(frozen=True)
class Landscape:
    """A world: true qualities of P placements at every step, and the law of the items' noise."""

    name: str
    true: Callable[[int, np.random.Generator], np.ndarray]  # (P, rng) -> [S, P]
    noise: float = 0.1  # of one item, half of its variance the same at every step, nats per token
    tail: str = "normal"  # or "heavy" (t with 3 degrees of freedom), or "skewed" (exponential)
    tasks: int = 2
    task_effect: float = 0.0  # spread of a placement's own quality in each task, times SPREAD; its mean over tasks is 0


def _path(last: np.ndarray, other: np.ndarray, correlations: tuple[float, ...]) -> np.ndarray:
    return SPREAD * np.stack([r * last + np.sqrt(1 - r**2) * other for r in correlations] + [last])


def drifting(*correlations: float) -> Callable[[int, np.random.Generator], np.ndarray]:
    """Normal qualities whose correlation with T is given at every step before T."""
    return lambda P, rng: _path(*rng.standard_normal((2, P)), correlations)


def _clustered(P: int, rng: np.random.Generator) -> np.ndarray:
    a, b = rng.integers(0, 2, (2, P))
    small = 0.01 * rng.standard_normal((2, P))
    return np.stack([0.15 * a + 0.17 * b + small[0], 0.17 * a + 0.15 * b + small[1]])


def _clusters_settled(P: int, rng: np.random.Generator) -> np.ndarray:
    last = _clustered(P, rng)[-1]
    return np.stack([last, last])


def _layers(P: int, rng: np.random.Generator) -> np.ndarray:
    choice = rng.integers(0, 4, (P, 12))
    effects = np.random.default_rng(12).standard_normal((2, 12, 4))  # one supernet: its effects are the truth, placements are drawn
    effects[0] = 0.95 * effects[1] + np.sqrt(1 - 0.95**2) * effects[0]
    return SPREAD / np.sqrt(12) * effects[:, np.arange(12), choice].sum(axis=2)


def _duplicates(P: int, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(drifting(0.98)((P + 1) // 2, rng), 2, axis=1)[:, :P]


def _checkpoint_noise(P: int, rng: np.random.Generator) -> np.ndarray:
    base = rng.standard_normal(P)
    return SPREAD * (base + 0.4 * rng.standard_normal((3, P)))


LANDSCAPES = {
    world.name: world
    for world in (
        Landscape("settled", drifting(1.0)),
        Landscape("clusters settled", _clusters_settled),
        Landscape("at the threshold", drifting(0.9802)),  # order at 0.02 is 0.95
        Landscape("drifting", drifting(0.9)),
        Landscape("clustered", _clustered),
        Landscape("layers", _layers),
        Landscape("heavy items", drifting(0.9802), tail="heavy"),
        Landscape("skewed items", drifting(0.9802), tail="skewed"),
        Landscape("four tasks", drifting(0.9802), tasks=4, task_effect=1.0),
        Landscape("duplicates", _duplicates),
        Landscape("checkpoint noise", _checkpoint_noise),
        Landscape("reversal", lambda P, rng: SPREAD * np.outer([-1, 1], rng.standard_normal(P))),
        Landscape("plateau then jump", drifting(0.6, 0.6, 0.6)),
        Landscape("wider before", lambda P, rng: drifting(0.9802)(P, rng) * np.array([[2.0], [1.0]])),
        Landscape("much noise", drifting(0.9802), noise=0.3),
        Landscape("clustered, much noise", _clustered, noise=0.3),
    )
}


def landscape_scores(world: Landscape, placements: int, items: int, rng: np.random.Generator) -> tuple[Scores, np.ndarray]:
    """One run of the world and its true qualities [S, P]; all placements in one cost band without an effect of cost."""
    names, cost = draw_placements(World("names", layers=48), rng, placements)
    true = world.true(placements, rng)
    S = len(true)

    def draw(*shape: int) -> np.ndarray:
        if world.tail == "heavy":
            return rng.standard_t(3, shape) / np.sqrt(3)
        return rng.exponential(size=shape) - 1 if world.tail == "skewed" else rng.standard_normal(shape)

    noise = world.noise * np.sqrt(0.5) * (draw(placements, items) + draw(S, placements, items))
    quality = true[:, :, None] + noise + 0.3 * rng.standard_normal(items) - 2
    if world.task_effect:
        own = world.task_effect * SPREAD * rng.standard_normal((placements, world.tasks))
        quality = quality + (own - own.mean(axis=1, keepdims=True))[:, np.arange(items) % world.tasks]
    steps = np.arange(S) * 100
    scores = Scores(
        scale="simulated", run=world.name, seed=0, steps=steps, tokens=4096 * steps, placements=names, cost=cost,
        items=[f"item-{i:04d}" for i in range(items)], tasks=[f"task-{i % world.tasks}" for i in range(items)], quality=quality,
    )  # fmt: skip
    return scores, true
