"""How well a surrogate predicts placements that it has not seen, by cost band, beside simpler models.

A model: (scored placements, quality, noise, placements to predict, mixers, rng) -> [P].
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis.bands import inside
from analysis.statistics.ranks import kendall_tau_b
from analysis.surrogate.design import CLUSTERS, alphabet, encode
from analysis.surrogate.fitting import posterior


def predict_expansion(
    train: list[str], quality: np.ndarray, noise: np.ndarray, test: list[str], letters: str, rng: np.random.Generator
) -> np.ndarray:
    """The expansion with the clusters that the evidence chooses; unlike ``fit`` it accepts a fold in which a mixer is never seen at a layer
    (the prior fills in)."""
    return posterior(train, quality, noise, letters).landscape.value(test)


def predict_all_clusters(
    train: list[str], quality: np.ndarray, noise: np.ndarray, test: list[str], letters: str, rng: np.random.Generator
) -> np.ndarray:
    """All kinds of clusters, whatever the evidence says."""
    return posterior(train, quality, noise, letters, CLUSTERS).landscape.value(test)


def predict_additive(
    train: list[str], quality: np.ndarray, noise: np.ndarray, test: list[str], letters: str, rng: np.random.Generator
) -> np.ndarray:
    """Points only: every layer adds its own amount."""
    return posterior(train, quality, noise, letters, ((0,),)).landscape.value(test)


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
    "all clusters": predict_all_clusters,
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

    R² = 1 - Σ(q - q̂)² / Σ(q - q̄_band)²; regret = max q - q[argmax q̂], nats per token. Bands: ``bands.inside``.
    """
    rows = []
    for low, high in bands:
        held = inside(cost, low, high, bands[-1][1])
        q, p, n = truth[held], predicted[held], int(held.sum())
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
