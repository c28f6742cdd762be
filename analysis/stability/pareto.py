"""The frontier in (cost, quality), and how it drifts over training. Cost is minimised, quality maximised.

Wherever a choice is made from scores, the choosing and the judging items are random halves of the items, so that luck on the
choosing items does not count as quality (the winner's curse).
Shapes: S steps, P placements, I items; R random halves of the items, N shuffles, B distinct costs.
"""

import numpy as np
import pandas as pd

from analysis.statistics.uncertainty import split_halves
from analysis.table import Scores


def nondominated(cost: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Which placements no other one beats: cost [P], quality [..., P] -> bool [..., P].

    A placement is dominated when another costs no more and is no worse, and is better in at least one of the two. Exact ties in both
    stay together.
    """
    order, start, group = _cost_levels(cost)
    best = np.maximum.reduceat(quality[..., order], start, axis=-1)  # [..., B] best quality at each cost level
    cheaper = np.full_like(best, -np.inf)
    cheaper[..., 1:] = np.maximum.accumulate(best, axis=-1)[..., :-1]
    return (quality == best[..., group]) & (quality > cheaper[..., group])


def uniform_reference(scores: Scores) -> int | None:
    """Place of what others are held against: full attention in all layers, or the dearest placement of one mixer where there is no F; None
    where that was not scored."""
    full = "F" in "".join(scores.placements)
    alike = [p for p, name in enumerate(scores.placements) if len(set(name)) == 1 and ("F" in name or not full)]
    return max(alike, key=lambda p: scores.cost[p], default=None)


def hypervolume(cost: np.ndarray, quality: np.ndarray, reference: tuple[float, float]) -> np.ndarray:
    """Area between the frontier and the reference point (cost, quality), in FA-layer equivalents × nats per token.

    cost [P], quality [..., P] -> [...]. It is the integral over budgets c up to the reference cost of max(0, best quality at cost <= c
    minus the reference quality); -inf in quality leaves a placement out. (Zitzler and Thiele 1999, in two dimensions.)
    """
    end, floor = reference
    order, start, _ = _cost_levels(cost)
    best = np.maximum.accumulate(np.maximum.reduceat(quality[..., order], start, axis=-1), axis=-1)
    levels = np.minimum(np.append(cost[order][start], end), end)
    return np.clip(best - floor, 0, None) @ np.diff(levels)


def drift(scores: Scores, rng: np.random.Generator, n_splits: int = 200, n_shuffles: int = 200, level: float = 0.95) -> pd.DataFrame:
    """The frontier of every checkpoint against the last one's: one row per step.

    - ``size``: placements on the frontier of t (all items).
    - ``hypervolume``: of the frontier of t with the qualities of t; reference: the dearest cost and the lowest mean quality at any step.
    - ``shared``: share of the final frontier that is already on the frontier of t (all items), ``shared_random`` the same for a
      random choice.
    - ``shared_cross``: the same with t on one half of the items and T on the other, its ``lo`` and ``hi``, and ``shared_ceiling``, which
      is ``shared_cross`` at T: even the final frontier is not found again on other items, and no checkpoint can be expected to do better.
    - ``loss``: what freezing the frontier of t costs at T: quality at T of the best of the final frontier minus that of the best of the
      frontier of t, mean over all budgets between the cheapest and the dearest cost, in nats per token; both frontiers are chosen on one
      half of the items and judged on the other. ``loss_random`` is the same for a random choice.

    Random choice: the qualities of T shuffled among placements of similar cost (ten groups of equal count), so that it knows what cost
    alone tells. Intervals are quantiles over half-samples of the items, drawn within tasks: the half-sample deviates from the whole as the
    whole does from the population (Shao and Tu 1995, the delete-half jackknife). They cover the choice of items, not of placements.
    """
    S, P, I = scores.quality.shape
    mean = scores.quality.mean(axis=2)  # [S, P]
    front = nondominated(scores.cost, mean)
    reference = (scores.cost.max(), mean.min())
    shared = _share(front, front[-1])

    halves = split_halves(scores.tasks, n_splits, rng)  # [R, I] bool
    total = scores.quality.sum(axis=2)
    cross, loss = np.empty((n_splits, S)), np.empty((n_splits, S))
    for r, half in enumerate(halves):
        chooser = scores.quality @ half.astype(float)  # [S, P] sums over one half
        judged = (total[-1] - chooser[-1]) / (I - half.sum())
        chosen = nondominated(scores.cost, chooser / half.sum())
        cross[r] = _share(chosen, nondominated(scores.cost, judged))
        kept = _mean_best(scores.cost, judged, chosen)
        loss[r] = kept[-1] - kept
    shuffled = _shuffle_within_cost(scores.cost, mean[-1], rng, n_shuffles)  # [N, P]
    random = nondominated(scores.cost, shuffled)
    tail = (1 - level) / 2
    return pd.DataFrame({
        "run": scores.run, "step": scores.steps, "tokens": scores.tokens, "n_placements": P, "n_items": I,
        "size": front.sum(axis=1), "hypervolume": hypervolume(scores.cost, mean, reference),
        "reference_cost": reference[0], "reference_quality": reference[1],
        "shared": shared, "shared_random": _share(random, front[-1]).mean(),
        "shared_cross": cross.mean(axis=0), "shared_cross_lo": np.quantile(cross, tail, axis=0),
        "shared_cross_hi": np.quantile(cross, 1 - tail, axis=0), "shared_ceiling": cross[:, -1].mean(),
        "loss": loss.mean(axis=0), "loss_lo": np.quantile(loss, tail, axis=0), "loss_hi": np.quantile(loss, 1 - tail, axis=0),
        "loss_random": _mean_best(scores.cost, mean[-1], front[-1]) - _mean_best(scores.cost, mean[-1], random).mean(),
    })  # fmt: skip


def frontier(scores: Scores) -> pd.DataFrame:
    """The members of every checkpoint's frontier, cheapest first: run, step, tokens, placement, cost, quality (at t), final_quality, final.

    ``final`` says whether the placement is on the last checkpoint's frontier, too.
    """
    mean = scores.quality.mean(axis=2)
    front = nondominated(scores.cost, mean)
    step, placement = np.nonzero(front)
    frame = pd.DataFrame({
        "run": scores.run, "step": scores.steps[step], "tokens": scores.tokens[step], "placement": np.array(scores.placements)[placement],
        "cost": scores.cost[placement], "quality": mean[step, placement], "final_quality": mean[-1, placement],
        "final": front[-1, placement],
    })  # fmt: skip
    return frame.sort_values(["step", "cost", "placement"], ignore_index=True)


def _cost_levels(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order [P] by cost, where each distinct cost starts in that order [B], and the cost level of each placement [P]."""
    _, group, counts = np.unique(cost, return_inverse=True, return_counts=True)
    return np.argsort(group, kind="stable"), np.concatenate([[0], np.cumsum(counts)[:-1]]), group


def _share(chosen: np.ndarray, final: np.ndarray) -> np.ndarray:
    """Share of the members of ``final`` [P] that are in ``chosen`` [..., P]."""
    return (chosen & final).sum(axis=-1) / final.sum()


def _mean_best(cost: np.ndarray, quality: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Quality [P] of the best affordable member of ``chosen`` [..., P], mean over budgets, in nats per token above the worst."""
    quality = np.where(chosen, quality - quality.min(), -np.inf)
    width = cost.max() - cost.min()
    return hypervolume(cost, quality, (cost.max(), 0.0)) / width if width else quality.max(axis=-1)


def _shuffle_within_cost(cost: np.ndarray, quality: np.ndarray, rng: np.random.Generator, n: int, groups: int = 10) -> np.ndarray:
    """[n, P]: quality [P] shuffled among placements of similar cost (``groups`` of equal count)."""
    order = np.argsort(cost, kind="stable")
    shuffled = np.empty((n, len(cost)))
    for members in np.array_split(order, min(groups, len(cost) // 2)):
        shuffled[:, members] = rng.permuted(np.tile(quality[members], (n, 1)), axis=1)
    return shuffled
