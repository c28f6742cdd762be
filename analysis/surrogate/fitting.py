"""The posterior of a cluster expansion from scored placements: the link and the prior variances that make the scores likeliest."""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from analysis.surrogate.design import CLUSTERS, NESTED, alphabet, design, encode
from analysis.surrogate.evidence import CONSTANT_VARIANCE, maximise_evidence
from analysis.surrogate.expansion import ClusterExpansion
from analysis.surrogate.link import Link

REACHES = (np.inf, 3.0, 1.0, 0.3)  # of the link, in standard deviations of the scored qualities: from no bend to a strong one


STRAIGHT = np.log(10)  # how much likelier no bend is before any score is seen: by chance alone a bend is hardly ever taken


def fit(
    placements: Sequence[str],
    quality: np.ndarray,
    variance: np.ndarray | float,
    letters: str | None = None,
    clusters: tuple[tuple[int, ...], ...] | None = None,
    items: np.ndarray | None = None,
    reaches: Sequence[float] = REACHES,
) -> ClusterExpansion:
    """Fits the expansion to scored placements.

    quality [P] in nats per token; variance [P] (or one number) of the noise that each has for itself, in nats² per token². ``letters`` are
    the mixers that exist (default: those seen). With ``items`` [P, I], the quality per item whose mean is ``quality``, ``variance`` is what
    noise there is beyond the items', usually 0. The variance of each kind of cluster and of the nugget maximise the evidence (MacKay 1992)
    times a weak prior, in its P × P form when there are fewer placements than coefficients and in its N × N form otherwise. So does the
    link, among those with ``reaches``, bent only where that makes the scores ten times likelier. And so do the ``clusters`` (None), among
    the sets of NESTED: a kind of interaction that few scores cannot tell from noise costs more by its own uncertainty than it explains.
    Raises ValueError for unequal lengths, values that are not finite, duplicates, too few placements, a mixer never seen at a layer.
    """
    placements, quality = list(placements), np.asarray(quality, float)
    noise = np.broadcast_to(np.asarray(variance, float), quality.shape).copy()
    if quality.shape != (len(placements),):
        raise ValueError(f"{len(placements)} placements but quality of shape {quality.shape}: give one number per placement")
    if not (np.isfinite(quality).all() and np.isfinite(noise).all() and (noise >= 0).all()):
        raise ValueError("quality and variance must be finite and variance not negative: drop placements that were not scored in full")
    shape = np.shape(items) if items is not None else (len(placements), 2)
    if len(shape) != 2 or shape[0] != len(placements) or shape[1] < 2:
        raise ValueError(f"items of shape {shape} for {len(placements)} placements: give a row for each, of two items or more")
    if items is not None and not np.allclose(np.mean(items, axis=1), quality):
        raise ValueError("quality is not the mean over items: give items and quality of the same scores")
    if len(set(placements)) < len(placements):
        twice = next(p for i, p in enumerate(placements) if p in placements[:i])
        raise ValueError(f"placement {twice} is given twice: average its scores first")
    kinds = len(CLUSTERS if clusters is None else clusters)
    least = 2 * (kinds + 1)
    if len(placements) < least:
        raise ValueError(f"{len(placements)} placements are too few for {kinds} kinds of cluster: score at least {least}")
    letters = letters if letters is not None else alphabet(placements)
    codes = encode(placements, letters)
    for code, letter in enumerate(letters):
        unseen = np.flatnonzero(~(codes == code).any(0))
        if len(unseen):
            raise ValueError(f"mixer {letter} is never seen at layer {unseen[0]}: score a placement that has it there")
    return posterior(placements, quality, noise, letters, clusters, items, reaches)


def posterior(
    placements: list[str], quality: np.ndarray, noise: np.ndarray, letters: str, clusters: tuple[tuple[int, ...], ...] | None = None,
    items: np.ndarray | None = None, reaches: Sequence[float] = REACHES,
) -> ClusterExpansion:  # fmt: skip
    """As ``fit``, unchecked."""
    layers = len(placements[0])
    candidates = NESTED if clusters is None else (clusters,)
    features = design(placements, letters, layers, candidates[-1])
    widths = [max(layers - c[-1], 0) * (len(letters) - 1) ** len(c) for c in candidates[-1]]
    groups = np.repeat(np.arange(-1, len(widths)), [1, *widths])
    fitted = [_link(features, quality, noise, groups, len(widths), reaches)]  # how the scale bends is learned from the richest set
    reach = fitted[0][1].reach / spread(quality)
    for fewer in candidates[-2::-1]:
        inside = groups < len(fewer)
        fitted.append(_link(features[:, inside], quality, noise, groups[inside], len(fewer), (reach,)))
    best = int(np.argmin([unlikely for unlikely, _, _ in fitted]))
    (_, link, shares), clusters = fitted[best], candidates[::-1][best]
    features, groups, widths = features[:, groups < len(clusters)], groups[groups < len(clusters)], widths[: len(clusters)]
    if items is not None:  # what an item adds to all placements alike goes before the bend, which would give it to some more than to others
        items = items - items.mean(axis=0) + quality.mean()
    scored, slope, scale, y, v = _standardised(link, quality, noise)
    mean = scored.mean()
    prior = np.concatenate([[CONSTANT_VARIANCE], shares[:-1] / np.maximum(widths, 1)])[groups + 1]
    weight = 1 / (v + shares[-1])
    precision = (features.T * weight) @ features
    precision[np.diag_indices_from(precision)] += 1 / prior
    root = cholesky(precision, lower=True)

    def solve(values: np.ndarray) -> np.ndarray:
        """Posterior mean [N, columns] given data [P, columns]."""
        half = solve_triangular(root, (features.T * weight) @ values, lower=True)
        return solve_triangular(root, half, lower=True, trans="T")

    weights = scale * solve(y)
    weights[0] += mean
    by_item = {}
    if items is not None:
        centred = scored[:, None] + (items - quality[:, None]) / slope[:, None]
        item_weights = solve(centred - mean)
        item_weights[0] += mean
        leverage = weight * np.sum(solve_triangular(root, features.T, lower=True) ** 2, axis=0)
        left_out = (centred - features @ item_weights) / (1 - leverage)[:, None]  # each placement as predicted from the others
        sampling = left_out.var(axis=1, ddof=1).sum() / items.shape[1]
        remainder = np.sum(left_out.mean(axis=1) ** 2)
        share = min(sampling / remainder, 1.0) if remainder else 0.0
        by_item = {"items": centred, "item_weights": item_weights, "item_share": float(share)}
    return ClusterExpansion(
        letters, layers, tuple(clusters), shares[:-1] * scale**2, float(shares[-1]) * scale**2,
        weights, groups, root / scale, tuple(placements), scored, noise / slope**2, link=link, **by_item,
    )  # fmt: skip


def _link(
    features: np.ndarray, quality: np.ndarray, noise: np.ndarray, groups: np.ndarray, kinds: int, reaches: Sequence[float]
) -> tuple[float, Link, np.ndarray]:  # fmt: skip
    """-log evidence (and prior), the link under which the scored qualities are likeliest, and its shares: from no bend over stronger and
    stronger ones while that helps.

    A density of z is one of quality when multiplied with |dz/dq| (Box & Cox 1964, equation 3).
    """
    best: tuple[float, Link, np.ndarray] | None = None
    for reach in reaches:
        link = Link(float(quality.max()), reach * spread(quality))
        _, slope, scale, y, v = _standardised(link, quality, noise)
        shares, unlikely = maximise_evidence(features, y, v, groups, kinds)
        unlikely += len(quality) * np.log(scale) + np.log(slope).sum() - (STRAIGHT if np.isinf(reach) else 0)
        if best is not None and unlikely >= best[0]:
            break
        best = unlikely, link, shares
    return best


def spread(values: np.ndarray) -> float:
    """Standard deviation; 1 where the values differ by rounding only, which is no spread to measure anything by."""
    sd = float(np.std(values))
    return sd if sd > 1e-12 * np.abs(values).max() else 1.0


def _standardised(link: Link, quality: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, np.ndarray]:
    """Latent qualities z [P], dq/dz [P], the sd of z; z and its noise variance in units of that sd, z about its mean."""
    scored = link.latent(quality)
    slope, scale = link.slope(scored), spread(scored)
    return scored, slope, scale, (scored - scored.mean()) / scale, noise / slope**2 / scale**2
