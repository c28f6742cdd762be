"""Quality of any placement from a few hundred scored ones: a cluster expansion with Bayesian shrinkage, and how well it predicts.

Per layer the M mixers are described by M - 1 functions that sum to zero over the mixers and are orthonormal under a uniform choice.
A cluster is a set of layers at given offsets; its functions are the products of its layers' functions. All coefficients of one kind
of cluster share one prior variance, so that the prior does not depend on which sum-to-zero basis was taken.
All placements are scored on the same items, so the items' noise is not independent between placements: an item that likes attention in
the first layer lifts all that have it. The posterior mean is linear in the data, so with the quality per item every item gets its
own landscape by one matrix product. Their spread says how far a difference between placements would be off on other items.
All this holds on a latent scale (``analysis.link``), which is quality itself unless the evidence says that losses compound.
Shapes: P placements, I items, L layers, M mixers, N coefficients (2,223 and the constant at L = 48, M = 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import solve_triangular

from analysis.statistics import intervals
from analysis.surrogate.design import design, encode, sum_to_zero
from analysis.surrogate.link import Link


@dataclass(frozen=True)
class Landscape:
    """A quality for every placement: a constant and, per layer, a table over the mixers of the two layers before and its own, whose sum is
    quality on the scale of the link."""

    letters: str
    constant: float
    potentials: np.ndarray  # [L, M, M, M]; the axes that would lie before the first layer are constant
    link: Link = Link()

    def value(self, placements: Sequence[str]) -> np.ndarray:
        """Quality [P] in nats per token."""
        codes = encode(placements, self.letters, len(self.potentials))
        before = np.pad(codes, ((0, 0), (2, 0)))
        layers = np.arange(codes.shape[1])
        return self.link.quality(self.constant + self.potentials[layers, before[:, :-2], before[:, 1:-1], codes].sum(1))


@dataclass(frozen=True)
class ClusterExpansion:
    """Posterior of the expansion's coefficients given scored placements; made by ``fit``. All but what the methods return is latent."""

    letters: str
    layers: int
    clusters: tuple[tuple[int, ...], ...]
    explained: np.ndarray
    """[kinds] prior variance that each kind of cluster explains over uniform placements, nats² per token²."""
    nugget: float
    """Variance of what the expansion cannot express (interactions of longer range or higher order), nats² per token²."""
    weights: np.ndarray
    """[N] posterior mean; the constant first, then the kinds of cluster in order."""
    groups: np.ndarray
    """[N] which kind each coefficient is of; -1 for the constant."""
    root: np.ndarray
    """[N, N] lower Cholesky factor of the posterior precision."""
    placements: tuple[str, ...]
    scored: np.ndarray
    """[P] their qualities on the latent scale."""
    noise: np.ndarray
    items: np.ndarray | None = None
    """[P, I] the same per item, less what the item adds to all placements alike; None where only means are known."""
    item_weights: np.ndarray | None = None
    """[N, I] the posterior mean that each item alone would give."""
    item_share: float = 0.0
    """Share of the nugget that is noise of the items: other items would have other remainders."""
    link: Link = Link()

    @cached_property
    def landscape(self) -> Landscape:
        """The posterior mean."""
        return self._landscape(self.weights)

    def quantile(self, level: float) -> float:
        """Half the width of a ``level`` interval in standard deviations: of Student's t where the number of items limits it."""
        return intervals.quantile(level, self.items.shape[1] - 1 if self.items is not None else np.inf)

    def predict(self, placements: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Mean [P] and standard deviation [P] of the quality, on the items of the scores, of placements that were not scored.

        Where the link is bent the mean is that of the latent scale carried over (the median of quality), and the sd is of first order.
        """
        features = design(placements, self.letters, self.layers, self.clusters)
        latent = features @ self.weights
        return self.link.quality(latent), self.link.slope(latent) * np.sqrt(self._variance(features) + self.nugget)

    def estimate(self, placements: Sequence[str], against: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean [P] and sd [P] of the quality on *any* items, of scored and other placements, or of its difference to ``against``.

        Where a placement was scored, prediction f and measurement y are weighed: f + s (y - f) with s = own / (nugget + noise); own is the
        nugget less its share of item noise. Its error then has three independent parts: (1 - s) times that of f; (1 - s) of its own
        remainder, plus s of the noise; and the items drawn, from the spread of the same estimate over items. What an item adds
        to all placements alike is left out. Without items the first two.
        """
        names = [*placements] if against is None else [against, *placements]
        weights, own, offset, by_item = self._weighing(names)
        latent = weights @ self.weights + offset
        mean, slope = self.link.quality(latent), self.link.slope(latent)
        weights, own, by_item = slope[:, None] * weights, slope**2 * own, slope[:, None] * by_item  # errors are carried over to first order
        if against is not None:
            same = np.array([name == against for name in placements])
            mean, weights, by_item = (values[1:] - values[0] for values in (mean, weights, by_item))
            own = np.where(same, 0.0, own[1:] + own[0])
        variance = self._variance(weights) + own
        if self.items is not None:
            variance = variance + (weights @ self.item_weights + by_item).var(axis=1, ddof=1) / by_item.shape[1]
        return mean, np.sqrt(variance)

    def draw(self, rng: np.random.Generator, n: int, other_items: bool = False) -> list[Landscape]:
        """``n`` draws from the posterior of the expansion (the nugget left out: it has no structure to optimise).

        With ``other_items`` also as if the items had been others of their kind: the mean of the items' landscapes varies by their spread.
        """
        return [self._landscape(weights) for weights in self.draw_weights(rng, n, other_items)]

    def draw_weights(self, rng: np.random.Generator, n: int, other_items: bool = False) -> np.ndarray:
        """The coefficients of ``draw`` -> [n, N]."""
        steps = solve_triangular(self.root, rng.standard_normal((len(self.weights), n)), lower=True, trans="T")
        if other_items and self.item_weights is not None:
            count = self.item_weights.shape[1]
            apart = self.item_weights - self.item_weights.mean(axis=1, keepdims=True)
            steps = steps + apart @ rng.standard_normal((count, n)) / np.sqrt(count * (count - 1))
        return self.weights + steps.T

    def _weighing(self, placements: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What ``estimate`` puts together: weights of the coefficients [P, N], variance of what is their own [P], what the measurements add
        to the mean [P] and to every item [P, I or 0]."""
        index = {name: i for i, name in enumerate(self.placements)}
        rows = np.array([index.get(name, -1) for name in placements])
        own = (1 - self.item_share) * self.nugget
        share = np.where(rows >= 0, own / (self.nugget + self.noise[rows]), 0.0)
        features = (1 - share)[:, None] * design(placements, self.letters, self.layers, self.clusters)
        items = self.items[rows] if self.items is not None else np.empty((len(rows), 0))
        return features, (1 - share) ** 2 * own + share**2 * self.noise[rows], share * self.scored[rows], share[:, None] * items

    def _variance(self, features: np.ndarray) -> np.ndarray:
        return np.sum(solve_triangular(self.root, features.T, lower=True) ** 2, axis=0)

    def _landscape(self, weights: np.ndarray) -> Landscape:
        basis, size = sum_to_zero(len(self.letters)), len(self.letters)
        potentials = np.zeros((self.layers, size, size, size))
        for kind, offsets in enumerate(self.clusters):
            span = offsets[-1]
            if self.layers <= span:
                continue
            table = weights[self.groups == kind].reshape(self.layers - span, *[size - 1] * len(offsets))
            for _ in offsets:  # each turn moves the first function axis to the end and expands it over mixers
                table = np.tensordot(table, basis, axes=(1, 1))
            shape = [size if offset in offsets else 1 for offset in range(span - 2, span + 1)]
            potentials[span:] += table.reshape(self.layers - span, *shape)
        return Landscape(self.letters, float(weights[0]), potentials, self.link)
