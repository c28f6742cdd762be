"""What the landscape of a small cell is worth for a large one: placements matched by relative depth.

Letters: P placements, I items, R random halves of the items.
"""

import itertools

import numpy as np
import pandas as pd

from analysis.statistics.uncertainty import item_weights, split_halves
from analysis.table import Scores

HALVES = 64
"""Random halves of the items: one chooses the best of the large cell, the other scores."""

MOST = 4096
"""Small placements that one large placement is averaged over, at most; beyond, every so-manieth of them."""


def predicted(large: list[str], small: dict[str, float]) -> np.ndarray:
    """Quality of every large placement as the small cell has it [P]: ``small`` holds the quality of *all* its placements.

    Layer j of the small one stands for the large layers at its relative depth. The mean is over the placements that take the mixer of one
    of them at every layer.
    """
    layers = len(next(iter(small)))
    found = np.empty(len(large))
    for n, placement in enumerate(large):
        cuts = [len(placement) * j // layers for j in range(layers + 1)]
        choices = [placement[a:b] for a, b in itertools.pairwise(cuts)]
        total = int(np.prod([len(c) for c in choices]))
        every = itertools.islice(itertools.product(*choices), 0, None, max(1, total // MOST))
        found[n] = np.mean([small["".join(p)] for p in every])
    return found


def transfer(small: Scores, large: Scores, members: list[tuple[float, np.ndarray]], seed: int = 0) -> pd.DataFrame:
    """Regret at the large cell's last checkpoint (nats/token), one row per band: columns band, small, large, n, regret (of the placement
    that the small cell predicts best), regret_cost (of the dearest), regret_random, spearman of prediction and quality.

    ``members``: (lower edge as a share of all-FA's cost, indices of placements) of every band of the large cell. The best of the large
    cell is chosen on one half of the items and scored, like the others, on the other half.
    """
    prediction = predicted(large.placements, dict(zip(small.placements, small.quality[-1].mean(axis=1), strict=True)))
    masks = split_halves(large.tasks, HALVES, np.random.default_rng(seed))
    masks = np.concatenate([masks, ~masks])
    rows = []
    for lower, chosen in members:
        quality, cost = large.quality[-1][chosen], np.asarray(large.cost)[chosen]
        best = (item_weights(masks, large.tasks) @ quality.T).argmax(axis=1)
        scored = item_weights(~masks, large.tasks) @ quality.T  # [R, P]
        top = scored[np.arange(len(best)), best]
        dearest = cost >= cost.max() - 1e-9
        ranks = pd.DataFrame({"predicted": prediction[chosen], "quality": quality.mean(axis=1)}).corr("spearman").iloc[0, 1]
        rows.append({
            "band": lower, "small": f"{small.scale}/{small.run}", "large": f"{large.scale}/{large.run}", "n": len(chosen),
            "regret": float((top - scored[:, prediction[chosen].argmax()]).mean()),
            "regret_cost": float((top[:, None] - scored[:, dearest]).mean()),
            "regret_random": float((top[:, None] - scored).mean()), "spearman": float(ranks),
        })  # fmt: skip
    return pd.DataFrame(rows)
