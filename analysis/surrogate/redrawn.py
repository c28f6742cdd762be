"""Worlds that the scores might have come from: a truth from the posterior, scores of it as they were made, the surrogate fitted again.

What an optimum loses between prediction and truth because it was chosen (the winner's curse) is seen in them, where the truth is known.
Letters: P placements, I items, N coefficients. All on the latent scale, as in ``ClusterExpansion``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_triangular

from analysis.surrogate.design import design
from analysis.surrogate.expansion import ClusterExpansion
from analysis.surrogate.fitting import posterior

FEW = 256
"""Placements up to which a world is fitted from scratch."""


@dataclass(frozen=True)
class World:
    """A truth and the surrogate that was fitted to scores of it."""

    refitted: ClusterExpansion
    weights: np.ndarray
    """[N] the true coefficients."""
    remainders: dict[str, float]
    """What the coefficients cannot express, of each scored placement."""
    rng: np.random.Generator

    believed: ClusterExpansion
    """Whose posterior the coefficients are from."""

    def quality(self, placements: Sequence[str]) -> np.ndarray:
        """True quality [placements] on items of the kind that was scored, nats per token; asked again, a placement answers the same."""
        e = self.believed
        sd = np.sqrt(max(0.0, (1 - e.item_share) * e.nugget))
        own = np.array([self.remainders.setdefault(name, sd * self.rng.standard_normal()) for name in placements])
        return e.link.quality(design(placements, e.letters, e.layers, e.clusters) @ self.weights + own)


def redrawn(
    expansion: ClusterExpansion, rng: np.random.Generator, n: int, believed: ClusterExpansion | None = None, few: int = FEW
) -> Iterator[World]:
    """``n`` worlds, by the parametric bootstrap (Efron and Tibshirani 1993, section 6.5).

    Coefficients come from the posterior of ``believed`` (default: ``expansion``), the items included; remainders from its nugget less the
    share of item noise. One with more kinds of cluster, on the same link, lets the truth be richer than what is fitted to it. A score is
    that truth and what one of the items, drawn with replacement, added to each placement. Up to ``few`` placements all is fitted again:
    clusters, link and prior variances, which are themselves uncertain. With more they stay those of ``expansion``, and fitting again is
    two triangular solves.
    """
    features = design(expansion.placements, expansion.letters, expansion.layers, expansion.clusters)
    weight = 1 / (expansion.noise + expansion.nugget)
    leverage = weight * np.sum(solve_triangular(expansion.root, features.T, lower=True) ** 2, axis=0)

    def solve(values: np.ndarray) -> np.ndarray:
        """Posterior mean [N, ...] of data [P, ...]; the constant's prior lies at their mean, as in ``fit``."""
        middle = values.mean()
        half = solve_triangular(expansion.root, (features.T * weight) @ (values - middle), lower=True)
        found = solve_triangular(expansion.root, half, lower=True, trans="T")
        found[0] += middle
        return found

    P, believed = len(expansion.placements), believed or expansion
    own_sd = np.sqrt(max(0.0, (1 - believed.item_share) * believed.nugget))
    true_features = design(expansion.placements, believed.letters, believed.layers, believed.clusters)
    for weights in believed.draw_weights(rng, n, other_items=True):
        own = own_sd * rng.standard_normal(P)
        scored = true_features @ weights + own + np.sqrt(expansion.noise) * rng.standard_normal(P)
        by_item = {}
        if expansion.items is not None:
            count = expansion.items.shape[1]
            added = np.sqrt(count / (count - 1)) * (expansion.items - expansion.items.mean(axis=1, keepdims=True))
            items = scored[:, None] + added[:, rng.integers(count, size=count)]
            scored = items.mean(axis=1)
            item_weights = solve(items)
            left_out = (items - features @ item_weights) / (1 - leverage)[:, None]
            remainder = np.sum(left_out.mean(axis=1) ** 2)
            share = min(left_out.var(axis=1, ddof=1).sum() / count / remainder, 1.0) if remainder else 0.0
            by_item = {"items": items, "item_weights": item_weights, "item_share": float(share)}
        refitted = replace(expansion, weights=solve(scored), scored=scored, **by_item)
        if few >= P:
            refitted = _fitted_anew(refitted)
        yield World(refitted, weights, dict(zip(expansion.placements, own.tolist(), strict=True)), rng, believed)


def _fitted_anew(expansion: ClusterExpansion) -> ClusterExpansion:
    """What ``fit`` makes of the scores that an expansion holds, put back on the scale of quality."""
    quality, slope = expansion.link.quality(expansion.scored), expansion.link.slope(expansion.scored)
    items = None
    if expansion.items is not None:
        items = quality[:, None] + slope[:, None] * (expansion.items - expansion.scored[:, None])
    return posterior(list(expansion.placements), quality, expansion.noise * slope**2, expansion.letters, items=items)
