"""Clusters of placements: where qualities are not one normal cloud, noise within a cluster must be told from what lies between clusters.

Letters: P placements, I items, S steps, K clusters.
"""

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

MOST = 8
"""Clusters that are looked for: three binary factors make as many."""

STRONG = 10
"""Twice the logarithm of the odds from which evidence is very strong (Kass & Raftery 1995): worse partitions are left out."""

BLURRED = (15, 0.25)
"""So much worse they may be where one cloud is the best, at least and per placement: noise may have blurred them. A normal cloud loses
about 0.4 per placement when it is cut."""


def partitions(means: np.ndarray) -> list[np.ndarray]:
    """The clusters of placements by their qualities at t and T [2, P]: labels [P] from 0, the best partition first, then those that the
    qualities do not speak against strongly. All 0 where one normal cloud describes them.

    Ward's tree (1963) is cut into 1 to MOST clusters of one common covariance W; partitions are judged by the integrated completed
    likelihood (Biernacki, Celeux & Govaert 2000), P log|W| + 2 P H(shares) + 3 K log P: a normal cloud that is cut in two gains
    less in W than the labels cost, so that one normal stays one.
    """
    P = means.shape[1]
    spread = means.std(axis=1, keepdims=True)
    if P < 3 or not (spread > 0).all():
        return [np.zeros(P, dtype=int)]
    points = ((means - means.mean(axis=1, keepdims=True)) / spread).T
    tree = linkage(points, "ward")
    labels = [fcluster(tree, number, "maxclust") - 1 for number in range(1, max(1, min(MOST, P // 4)) + 1)]
    losses = np.array([_loss(points, label) for label in labels])
    allowed = losses.min() + (max(BLURRED[0], BLURRED[1] * P) if losses.argmin() == 0 else STRONG)
    return [labels[k] for k in np.argsort(losses, kind="stable") if losses[k] <= allowed]


def _loss(points: np.ndarray, label: np.ndarray) -> float:
    """Of one partition of points [P, 2]."""
    P = len(points)
    rest = without_clusters(points.T[:, :, None], label)[:, :, 0]
    share = np.bincount(label) / P
    within = np.linalg.slogdet(rest @ rest.T / P + 1e-12 * np.eye(2))[1]
    return P * within - 2 * P * (share * np.log(share)).sum() + 3 * len(share) * np.log(P)


def without_clusters(quality: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Quality [S, P, I], or a number per placement [P], less the mean of its cluster, item by item, so that disjoint items stay
    independent."""
    member = (label[:, None] == np.arange(label.max() + 1)).astype(float)
    return quality - member @ ((member / member.sum(axis=0)).T @ quality)


def at_equal_cost_within(quality: np.ndarray, cost: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Quality [S, P, I] less its linear trend in cost [P] within clusters, item by item. A trend over all placements follows how clusters
    happen to lie along cost; taken out, it would leave a common slope within them that looks like agreement of t and T."""
    inner = without_clusters(cost, label)
    if (inner**2).sum() <= 1e-9 * max(1.0, (cost**2).sum()):
        return quality
    slope = np.einsum("p,spi->si", inner, quality) / (inner**2).sum()
    return quality - slope[:, None, :] * (cost - cost.mean())[:, None]
