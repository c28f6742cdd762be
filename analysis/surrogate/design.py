"""Placements as numbers: codes, sum-to-zero functions per layer, and the products of these for every cluster of layers.

Letters: P placements, L layers, N features.
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import helmert

CLUSTERS = ((0,), (0, 1), (0, 2), (0, 1, 2))
"""Kinds of cluster as offsets of their layers: points, pairs at lag 1, pairs at lag 2, triples of neighbours."""


NESTED = tuple(CLUSTERS[: n + 1] for n in range(len(CLUSTERS)))
"""The sets of clusters among which the evidence chooses, each with one kind more: from an additive model to all four kinds."""


CLUSTER_NAMES = {(0,): "points", (0, 1): "pairs, lag 1", (0, 2): "pairs, lag 2", (0, 1, 2): "triples"}


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
