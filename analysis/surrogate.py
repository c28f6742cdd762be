"""Quality of any placement from a few hundred scored ones: a cluster expansion with Bayesian shrinkage, and how well it predicts.

Per layer the M mixers are described by M - 1 functions that sum to zero over the mixers and are orthonormal under a uniform choice.
A cluster is a set of layers at given offsets; its functions are the products of its layers' functions. All coefficients of one kind
of cluster share one prior variance, so that the prior does not depend on which sum-to-zero basis was taken.
All placements are scored on the same items, so the items' noise is not independent between placements: an item that likes attention in
the first layer lifts all placements that have it. The posterior mean is linear in the data: with the quality per item every item gets its
own landscape by one matrix product, and their spread says how far a difference between placements would be off on other items.
All this holds on a latent scale (``analysis.link``), which is quality itself unless the evidence says that losses compound.
Shapes: P placements, I items, L layers, M mixers, N coefficients (2,223 and the constant at L = 48, M = 4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.linalg import cholesky, helmert, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize
from scipy.stats import t as student

from analysis.link import Link
from analysis.ranks import kendall_tau_b

CLUSTERS = ((0,), (0, 1), (0, 2), (0, 1, 2))
"""Kinds of cluster as offsets of their layers: points, pairs at lag 1, pairs at lag 2, triples of neighbours."""

CLUSTER_NAMES = {(0,): "points", (0, 1): "pairs, lag 1", (0, 2): "pairs, lag 2", (0, 1, 2): "triples"}

CONSTANT_VARIANCE = 100.0  # of the constant, in units of the sample variance: wide enough to be flat
SHARE_BOUNDS = (1e-6, 1e2)  # of the variance that one kind of cluster explains, in the same units
REACHES = (np.inf, 3.0, 1.0, 0.3)  # of the link, in standard deviations of the scored qualities: from no bend to a strong one
STRAIGHT = np.log(10)  # how much likelier no bend is before any score is seen: by chance alone a bend is hardly ever taken
SHARE_PRIOR = (0.1, 2.0)  # median and sd of the logarithm: weak, but few placements may not make a kind of cluster vanish for sure


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

    @cached_property
    def quantile(self) -> float:
        """Half the width of a 95% interval in standard deviations: of Student's t where the number of items limits it."""
        return float(student.ppf(0.975, self.items.shape[1] - 1)) if self.items is not None else 1.96

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
        steps = solve_triangular(self.root, rng.standard_normal((len(self.weights), n)), lower=True, trans="T")
        if other_items and self.item_weights is not None:
            count = self.item_weights.shape[1]
            apart = self.item_weights - self.item_weights.mean(axis=1, keepdims=True)
            steps = steps + apart @ rng.standard_normal((count, n)) / np.sqrt(count * (count - 1))
        return [self._landscape(self.weights + step) for step in steps.T]

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


def fit(
    placements: Sequence[str],
    quality: np.ndarray,
    variance: np.ndarray | float,
    letters: str | None = None,
    clusters: tuple[tuple[int, ...], ...] = CLUSTERS,
    items: np.ndarray | None = None,
    reaches: Sequence[float] = REACHES,
) -> ClusterExpansion:
    """Fits the expansion to scored placements.

    quality [P] in nats per token; variance [P] (or one number) of the noise that each has for itself, in nats² per token². ``letters`` are
    the mixers that exist (default: those seen). With ``items`` [P, I], the quality per item whose mean is ``quality``, ``variance`` is what
    noise there is beyond the items', usually 0. The variance of each kind of cluster and of the nugget maximise the evidence (MacKay 1992)
    times a weak prior, in its P × P form when there are fewer placements than coefficients and in its N × N form otherwise. So does the
    link, among those with ``reaches``, bent only where that makes the scores ten times likelier.
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
    least = 2 * (len(clusters) + 1)
    if len(placements) < least:
        raise ValueError(f"{len(placements)} placements are too few for {len(clusters)} kinds of cluster: score at least {least}")
    letters = letters if letters is not None else alphabet(placements)
    codes = encode(placements, letters)
    for code, letter in enumerate(letters):
        unseen = np.flatnonzero(~(codes == code).any(0))
        if len(unseen):
            raise ValueError(f"mixer {letter} is never seen at layer {unseen[0]}: score a placement that has it there")
    return _posterior(placements, quality, noise, letters, clusters, items, reaches)


def alphabet(placements: Sequence[str]) -> str:
    """The mixers that occur, F S K G first, then others in alphabetical order."""
    return "".join(sorted(set().union(*map(set, placements)), key=lambda c: ("FSKG".find(c) % 99, c)))


def encode(placements: Sequence[str], letters: str, layers: int | None = None) -> np.ndarray:
    """Codes [P, L] int of placements as positions in ``letters``. Raises ValueError on another length or an unknown mixer."""
    layers = layers or len(placements[0])
    other = next((p for p in placements if len(p) != layers), None)
    if other is not None:
        raise ValueError(f"placement {other} has {len(other)} layers where {layers} are expected: give one letter per layer")
    table = {letter: code for code, letter in enumerate(letters)}
    try:
        return np.array([[table[c] for c in p] for p in placements], dtype=np.intp).reshape(len(placements), layers)
    except KeyError as error:
        raise ValueError(f"unknown mixer {error.args[0]}: choose from {', '.join(letters)}") from None


def sum_to_zero(size: int) -> np.ndarray:
    """[M, M - 1] functions of the mixer with mean 0 and mean square 1 (Helmert contrasts, scaled)."""
    return helmert(size).T * np.sqrt(size)


def design(placements: Sequence[str], letters: str, layers: int, clusters: tuple[tuple[int, ...], ...] = CLUSTERS) -> np.ndarray:
    """Features [P, N]: the constant, then for each kind of cluster its products of functions, by first layer."""
    functions = sum_to_zero(len(letters))[encode(placements, letters, layers)]  # [P, L, M - 1]
    columns = [np.ones((len(functions), 1))]
    for offsets in clusters:
        count = max(layers - offsets[-1], 0)
        product = functions[:, :count]
        for offset in offsets[1:]:
            product = product[..., None] * functions[:, offset : offset + count, None, :]
            product = product.reshape(*product.shape[:2], product.shape[2] * product.shape[3])
        columns.append(product.reshape(len(functions), product.shape[1] * product.shape[2]))
    return np.concatenate(columns, axis=1)


def _posterior(
    placements: list[str], quality: np.ndarray, noise: np.ndarray, letters: str, clusters: tuple[tuple[int, ...], ...],
    items: np.ndarray | None = None, reaches: Sequence[float] = REACHES,
) -> ClusterExpansion:  # fmt: skip
    layers = len(placements[0])
    features = design(placements, letters, layers, clusters)
    widths = [max(layers - c[-1], 0) * (len(letters) - 1) ** len(c) for c in clusters]
    groups = np.repeat(np.arange(-1, len(clusters)), [1, *widths])
    link, shares = _link(features, quality, noise, groups, len(clusters), reaches)
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
        share = min(sampling / np.sum(left_out.mean(axis=1) ** 2), 1.0)
        by_item = {"items": centred, "item_weights": item_weights, "item_share": float(share)}
    return ClusterExpansion(
        letters, layers, tuple(clusters), shares[:-1] * scale**2, float(shares[-1]) * scale**2,
        weights, groups, root / scale, tuple(placements), scored, noise / slope**2, link=link, **by_item,
    )  # fmt: skip


def _link(
    features: np.ndarray, quality: np.ndarray, noise: np.ndarray, groups: np.ndarray, kinds: int, reaches: Sequence[float]
) -> tuple[Link, np.ndarray]:  # fmt: skip
    """The link under which the scored qualities are likeliest, and its shares: from none over stronger and stronger bends while that helps.

    A density of z is one of quality when multiplied with |dz/dq| (Box & Cox 1964, equation 3).
    """
    best: tuple[float, Link, np.ndarray] | None = None
    for reach in reaches:
        link = Link(float(quality.max()), reach * (quality.std() or 1.0))
        _, slope, scale, y, v = _standardised(link, quality, noise)
        shares, unlikely = _maximise_evidence(features, y, v, groups, kinds)
        unlikely += len(quality) * np.log(scale) + np.log(slope).sum() - (STRAIGHT if np.isinf(reach) else 0)
        if best is not None and unlikely >= best[0]:
            break
        best = unlikely, link, shares
    return best[1:]


def _standardised(link: Link, quality: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, np.ndarray]:
    """Latent qualities z [P], dq/dz [P], the sd of z; z and its noise variance in units of that sd, z about its mean."""
    scored = link.latent(quality)
    slope, scale = link.slope(scored), scored.std() or 1.0
    return scored, slope, scale, (scored - scored.mean()) / scale, noise / slope**2 / scale**2


def _maximise_evidence(
    features: np.ndarray, y: np.ndarray, v: np.ndarray, groups: np.ndarray, kinds: int
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Explained variance of each kind, then the nugget [kinds + 1], and what is minimised: L-BFGS on logarithms with exact gradients.

    Evidence times SHARE_PRIOR: the evidence of some 64 placements alone puts variances at zero that are not, and intervals get too narrow.
    """
    blocks = [features[:, groups == kind] for kind in range(kinds)]
    widths = np.array([max(block.shape[1], 1) for block in blocks])
    if len(y) <= features.shape[1]:
        kernels = [block @ block.T / width for block, width in zip(blocks, widths, strict=True)]

        def evidence(shares: np.ndarray) -> tuple[float, np.ndarray]:
            return _evidence_dual(shares, kernels, y, v)
    else:

        def evidence(shares: np.ndarray) -> tuple[float, np.ndarray]:
            return _evidence_primal(shares, features, groups, widths, y, v)

    def objective(log_shares: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evidence(np.exp(log_shares))
        median, sd = SHARE_PRIOR
        away = (log_shares - np.log(median)) / sd
        return value + 0.5 * away @ away, gradient + away / sd

    start = np.log([0.5 / kinds] * kinds + [0.5])
    bounds = [tuple(np.log(SHARE_BOUNDS))] * (kinds + 1)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60, "ftol": 1e-7})
    return np.exp(found.x), float(found.fun)


def _evidence_dual(shares: np.ndarray, kernels: list[np.ndarray], y: np.ndarray, v: np.ndarray) -> tuple[float, np.ndarray]:
    """-log N(y; 0, C) and its gradient in log shares, with C = c 11ᵀ + Σ share_k K_k + diag(v + nugget).

    Rasmussen & Williams 2006, equations 5.8 and 5.9.
    """
    covariance = np.full((len(y), len(y)), CONSTANT_VARIANCE)
    for share, kernel in zip(shares, kernels, strict=False):
        covariance += share * kernel
    covariance[np.diag_indices(len(y))] += v + shares[-1]
    root, failed = dpotrf(covariance, lower=1, clean=1)
    assert not failed, "the covariance has the nugget on its diagonal and is positive definite"
    alpha = solve_triangular(root, solve_triangular(root, y, lower=True), lower=True, trans="T")
    inverse = np.tril(dpotri(root, lower=1)[0])  # the other triangle follows by symmetry: count it twice, the diagonal once
    diagonal = inverse.diagonal()
    traces = [2 * np.vdot(inverse, kernel) - diagonal @ kernel.diagonal() for kernel in kernels] + [diagonal.sum()]
    squares = [alpha @ kernel @ alpha for kernel in kernels] + [alpha @ alpha]
    value = 0.5 * (y @ alpha) + np.log(root.diagonal()).sum()
    return value, 0.5 * shares * (np.array(traces) - np.array(squares))


def _evidence_primal(
    shares: np.ndarray, features: np.ndarray, groups: np.ndarray, widths: np.ndarray, y: np.ndarray, v: np.ndarray
) -> tuple[float, np.ndarray]:
    """The same number and gradient as ``_evidence_dual`` through the N × N precision (Woodbury): cheaper when P > N."""
    prior = np.concatenate([[CONSTANT_VARIANCE], shares[:-1] / widths])[groups + 1]
    weight = 1 / (v + shares[-1])
    weighted = features.T * weight
    gram = weighted @ features
    root = cholesky(gram + np.diag(1 / prior), lower=True)
    coefficients = solve_triangular(root, solve_triangular(root, weighted @ y, lower=True), lower=True, trans="T")
    alpha = weight * (y - features @ coefficients)  # C⁻¹ y
    half = solve_triangular(root, gram, lower=True)
    trace = gram.diagonal() - np.sum(half**2, axis=0)  # diag(Xᵀ C⁻¹ X)
    slope = (features.T @ alpha) ** 2
    by_kind = np.bincount(groups + 1, prior * (trace - slope), minlength=len(shares))[1:]
    leverage = np.sum(solve_triangular(root, features.T, lower=True) ** 2, axis=0)
    nugget = np.sum(weight - weight**2 * leverage) - alpha @ alpha
    value = 0.5 * (y @ alpha) + np.log(root.diagonal()).sum() + 0.5 * np.log(prior).sum() - 0.5 * np.log(weight).sum()
    return value, 0.5 * np.append(by_kind, shares[-1] * nugget)


# How well it predicts, beside simpler models. A model: (scored placements, quality, noise, placements to predict, mixers, rng) -> [P].


def predict_expansion(
    train: list[str], quality: np.ndarray, noise: np.ndarray, test: list[str], letters: str, rng: np.random.Generator
) -> np.ndarray:
    """The cluster expansion; unlike ``fit`` it accepts a fold in which a mixer is never seen at a layer (the prior fills in)."""
    return _posterior(train, quality, noise, letters, CLUSTERS).landscape.value(test)


def predict_additive(
    train: list[str], quality: np.ndarray, noise: np.ndarray, test: list[str], letters: str, rng: np.random.Generator
) -> np.ndarray:
    """Points only: every layer adds its own amount."""
    return _posterior(train, quality, noise, letters, ((0,),)).landscape.value(test)


def predict_ridge(
    train: list[str], quality: np.ndarray, noise: np.ndarray, test: list[str], letters: str, rng: np.random.Generator
) -> np.ndarray:
    """Ridge regression on one-hot mixers, penalty by inner cross-validation; item noise is ignored."""

    def one_hot(placements: list[str]) -> np.ndarray:
        return np.eye(len(letters))[encode(placements, letters)].reshape(len(placements), -1)

    def predict(x: np.ndarray, y: np.ndarray, z: np.ndarray, penalty: float) -> np.ndarray:
        left, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
        beta = right.T @ (values / (values**2 + penalty) * (left.T @ (y - y.mean())))
        return y.mean() + (z - x.mean(0)) @ beta

    x = one_hot(train)
    return predict(x, quality, one_hot(test), _inner_choice(predict, np.logspace(-3, 3, 13), x, quality, rng))


def predict_neighbours(
    train: list[str], quality: np.ndarray, noise: np.ndarray, test: list[str], letters: str, rng: np.random.Generator
) -> np.ndarray:
    """Mean of the nearest scored placements in Hamming distance, how many by inner cross-validation."""

    def predict(x: np.ndarray, y: np.ndarray, z: np.ndarray, k: int) -> np.ndarray:
        near = np.array([np.argsort((x != row).sum(1), kind="stable")[: int(k)] for row in z])
        return y[near].mean(1)

    x = encode(train, letters)
    return predict(x, quality, encode(test, letters), _inner_choice(predict, [1, 2, 4, 8, 16], x, quality, rng))


def _inner_choice(predict: Callable, options: Sequence[float], x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> float:
    """The option with the least squared error over five inner folds."""
    errors = np.zeros(len(options))
    for fold in np.array_split(rng.permutation(len(y)), 5):
        rest = np.setdiff1d(np.arange(len(y)), fold)
        errors += [np.sum((predict(x[rest], y[rest], x[fold], option) - y[fold]) ** 2) for option in options]
    return options[int(np.argmin(errors))]


MODELS = {
    "cluster expansion": predict_expansion,
    "additive": predict_additive,
    "ridge one-hot": predict_ridge,
    "nearest neighbours": predict_neighbours,
}


def cost_bands(cost: np.ndarray, bands: int = 5) -> list[tuple[float, float]]:
    """The whole range of cost first, then ``bands`` intervals of equal width over it."""
    edges = np.linspace(cost.min(), cost.max(), bands + 1)
    return [(edges[0], edges[-1]), *zip(edges[:-1], edges[1:], strict=True)]


def judge(truth: np.ndarray, predicted: np.ndarray, cost: np.ndarray, bands: list[tuple[float, float]]) -> pd.DataFrame:
    """Held-out R², Kendall's τ-b and regret of taking the predicted best, within each cost band; NaN where fewer than 3 lie in it.

    R² = 1 - Σ(q - q̂)² / Σ(q - q̄_band)²; regret = max q - q[argmax q̂], nats per token. A band holds its lower edge, the last also its upper.
    """
    rows = []
    for low, high in bands:
        top = high + 1e-9 if high == bands[-1][1] else high - 1e-9
        inside = (cost >= low - 1e-9) & (cost < top)
        q, p, n = truth[inside], predicted[inside], int(inside.sum())
        row = {"band_lo": low, "band_hi": high, "n": n, "r2": np.nan, "tau": np.nan, "regret": np.nan}
        if n >= 3 and np.ptp(q) > 0:
            row |= {"r2": 1 - np.sum((q - p) ** 2) / np.sum((q - q.mean()) ** 2)}
            row |= {"tau": kendall_tau_b(q, p), "regret": q.max() - q[np.argmax(p)]}
        rows.append(row)
    return pd.DataFrame(rows)


def evaluate(
    train: Sequence[str], quality: np.ndarray, noise: np.ndarray,
    test: Sequence[str], truth: np.ndarray, test_cost: np.ndarray, rng: np.random.Generator, bands: int = 5,
) -> pd.DataFrame:  # fmt: skip
    """Every model of MODELS fitted on ``train`` and judged on an untouched test set: model, band_lo, band_hi, n, r2, tau, regret."""
    letters = alphabet([*train, *test])
    tables = {
        name: judge(truth, predict(list(train), quality, noise, list(test), letters, rng), test_cost, cost_bands(test_cost, bands))
        for name, predict in MODELS.items()
    }
    return pd.concat(tables, names=["model"]).reset_index(level=0).reset_index(drop=True)


def cross_validate(
    placements: Sequence[str], quality: np.ndarray, noise: np.ndarray, cost: np.ndarray,
    rng: np.random.Generator, folds: int = 5, bands: int = 5,
) -> pd.DataFrame:  # fmt: skip
    """As ``evaluate`` where no test set can be spared: nested, so that each outer fold sets its own variances, penalty and neighbours."""
    placements, letters = list(placements), alphabet(placements)
    if len(placements) < 2 * folds:
        raise ValueError(f"{len(placements)} placements are too few for {folds} folds: score at least {2 * folds}")
    predicted = {name: np.empty(len(placements)) for name in MODELS}
    for fold in np.array_split(rng.permutation(len(placements)), folds):
        rest = np.setdiff1d(np.arange(len(placements)), fold)
        for name, predict in MODELS.items():
            test = [placements[i] for i in fold]
            predicted[name][fold] = predict([placements[i] for i in rest], quality[rest], noise[rest], test, letters, rng)
    tables = {name: judge(quality, values, cost, cost_bands(cost, bands)) for name, values in predicted.items()}
    return pd.concat(tables, names=["model"]).reset_index(level=0).reset_index(drop=True)
