"""How well the ranking of one run predicts that of another: placements are matched by their mixers, pairs of them compared.

Shapes: A and B placements of the two runs, L layers, n matched placements.
"""

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from analysis.cost import full_cost
from analysis.statistics.intervals import quantile
from analysis.table import Scores

TOLERANCE = 0.15
"""Largest distance (see ``distances``) at which placements of two runs count as the same placement."""


SIMILAR_COST = 0.05
"""Pairs of placements are of similar cost when their costs, as shares of all-FA's, differ by at most this in both runs."""


def distances(a: list[str], b: list[str]) -> np.ndarray:
    """[A, B] how different placements of (possibly) different depth are, from 0 to 1.

    Mean of two total variation distances: between the shares of the mixers in the whole placement (composition), and between their shares
    in the first, middle and last third of the depth, averaged over the thirds (relative depth; a layer that straddles two thirds counts
    for each in proportion). 0 for equal placements; one layer of 30 changed makes 1/30.
    """
    if not a or not b:
        return np.zeros((len(a), len(b)))
    letters = sorted(set("".join(a)) | set("".join(b)))
    whole, thirds = (_total_variation(_profile(a, letters, n), _profile(b, letters, n)) for n in (1, 3))
    return (whole + thirds) / 2


def match(a: list[str], b: list[str], tolerance: float = TOLERANCE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of placements (index into a, index into b, distance), one to one, none further apart than ``tolerance``.

    Placements that are equal are paired first; the others so that the sum of distances is least (the assignment problem).
    """
    where = {placement: j for j, placement in enumerate(b)}
    equal = np.array([(i, where[placement]) for i, placement in enumerate(a) if placement in where], dtype=int).reshape(-1, 2).T
    rest_a, rest_b = np.setdiff1d(np.arange(len(a)), equal[0]), np.setdiff1d(np.arange(len(b)), equal[1])
    if len(rest_a) == 0 or len(rest_b) == 0:
        return *equal, np.zeros(equal.shape[1])
    distance = distances([a[i] for i in rest_a], [b[j] for j in rest_b])
    # beyond the tolerance a pair is as bad as none: otherwise one hopeless placement would pull good pairs apart
    i, j = linear_sum_assignment(np.minimum(distance, tolerance + 1e-9))
    near = distance[i, j] <= tolerance + 1e-12
    found = np.stack([rest_a[i[near]], rest_b[j[near]]])
    return *np.concatenate([equal, found], axis=1), np.concatenate([np.zeros(equal.shape[1]), distance[i, j][near]])


def accuracy_interval(
    x: np.ndarray, y: np.ndarray, pairs: np.ndarray | None = None, level: float = 0.95
) -> tuple[float, float, float, int]:
    """Decision accuracy: the share of pairs that x [n] orders as y [n] does, its interval (lo, hi) and the number of pairs.

    Pairs tied in y ask for no decision and are left out, those tied only in x count one half, as in ``ranks.decision_accuracy``.
    ``pairs`` [n, n] symmetric bool: which pairs count (all by default). Without pairs (NaN, NaN, NaN, 0).
    Interval: delete-one jackknife over placements (a U-statistic of degree two; Arvesen 1969) with Student's t, clipped to [0, 1].
    It covers the choice of placements, not of items.
    """
    truth = np.sign(y[:, None] - y).astype(np.int8)
    agree = (1 + np.sign(x[:, None] - x).astype(np.int8) * truth) / 2
    counts = truth != 0 if pairs is None else pairs & (truth != 0)
    per, right = counts.sum(axis=1), np.where(counts, agree, 0).sum(axis=1)  # pairs and agreements of each placement
    total, n_pairs = right.sum() / 2, int(per.sum() // 2)
    if n_pairs == 0:
        return np.nan, np.nan, np.nan, 0
    accuracy = total / n_pairs
    kept = per < n_pairs
    without = (total - right[kept]) / (n_pairs - per[kept])
    m = len(without)
    if m < 3:
        return accuracy, 0.0, 1.0, n_pairs
    half = quantile(level, m - 1) * np.sqrt((m - 1) / m * np.sum((without - without.mean()) ** 2))
    return accuracy, max(0.0, accuracy - half), min(1.0, accuracy + half), n_pairs


def transfer(source: Scores, target: Scores, tolerance: float = TOLERANCE, level: float = 0.95) -> pd.DataFrame:
    """How well the ranking of ``source`` at each of its steps predicts the final ranking of ``target``: one row per step.

    Placements are matched by ``match``. ``accuracy`` with ``lo``, ``hi`` is over all ``n_pairs`` pairs of the ``n_matched`` placements,
    ``accuracy_cost`` the same for a ranking by cost alone (dearer is better), which any comparison over the whole cost range has for
    free; ``similar_*`` is over the pairs of similar cost only, where chance is 1/2.
    """
    i, j, distance = match(source.placements, target.placements, tolerance)
    columns = {"source": source.run, "source_scale": source.scale, "target": target.run, "target_scale": target.scale}
    if len(i) < 2:
        return pd.DataFrame([columns | {"step": source.steps[-1], "tokens": source.tokens[-1], "n_matched": len(i), "n_pairs": 0}])
    truth = target.quality[-1].mean(axis=1)[j]
    per_layer = (run.cost[chosen] / full_cost(run.placements, run.cost) for run, chosen in ((source, i), (target, j)))
    per_layer = tuple(per_layer)
    similar = np.logical_and(*(np.abs(c[:, None] - c) <= SIMILAR_COST + 1e-9 for c in per_layer))
    by_cost = accuracy_interval(per_layer[0], truth)[0]
    rows = []
    for step, tokens, quality in zip(source.steps, source.tokens, source.quality, strict=True):
        guess = quality[i].mean(axis=1)
        accuracy, lo, hi, n_pairs = accuracy_interval(guess, truth, level=level)
        within, within_lo, within_hi, n_within = accuracy_interval(guess, truth, similar, level=level)
        rows.append(columns | {
            "step": step, "tokens": tokens, "share_of_training": tokens / source.tokens[-1] if source.tokens[-1] else np.nan,
            "n_matched": len(i), "mean_distance": distance.mean(),
            "n_pairs": n_pairs, "accuracy": accuracy, "lo": lo, "hi": hi, "accuracy_cost": by_cost,
            "similar_pairs": n_within, "similar_accuracy": within, "similar_lo": within_lo, "similar_hi": within_hi,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _profile(placements: list[str], letters: list[str], parts: int) -> np.ndarray:
    """[P, parts, letters] share of each mixer in each of ``parts`` equal stretches of the depth."""
    layers = len(placements[0])
    taken = np.array([list(placement) for placement in placements])[:, :, None] == np.array(letters)  # [P, L, letters]
    edges = np.linspace(0, layers, parts + 1)
    lo, hi = np.maximum(edges[:-1, None], np.arange(layers)), np.minimum(edges[1:, None], np.arange(layers) + 1)
    return np.einsum("ql,plm->pqm", np.clip(hi - lo, 0, None), taken) * parts / layers


def _total_variation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[A, B] mean over parts of half the L1 distance of profiles [A, parts, letters] and [B, parts, letters]."""
    total = np.zeros((len(a), len(b)))
    for part in range(a.shape[1]):
        for letter in range(a.shape[2]):  # one pair of vectors at a time: the whole [A, B, parts, letters] would not fit
            total += np.abs(a[:, None, part, letter] - b[None, :, part, letter])
    return total / 2 / a.shape[1]
