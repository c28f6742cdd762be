"""What a user may ask of a placement, checked, and as what the dynamic programme understands: barriers and counters.

Letters: L layers, M mixers, Q counter states, W ways that lead to one.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Constraints:
    """What a user may ask of a placement. Layers count from 0."""

    at_least: Mapping[str, int] = field(default_factory=dict)
    """Least number of layers of a mixer, e.g. {"F": 3}."""
    fixed: Mapping[int, str] = field(default_factory=dict)
    """The mixer of a layer, e.g. {0: "F"}."""
    forbidden: str = ""
    """Mixers that no layer may take, e.g. "K"."""
    forbidden_at: Mapping[int, str] = field(default_factory=dict)
    """Mixers that a layer may not take, e.g. {5: "KG"}."""
    no_singletons: bool = False
    """A mixer that is used at all is used in at least two layers."""
    no_isolated: bool = False
    """Every layer has a neighbour with the same mixer."""


def meets(placement: str, constraints: Constraints) -> bool:
    """Whether a placement is one that ``frontier`` might give under these constraints."""
    counts = {mixer: placement.count(mixer) for mixer in placement}
    around = zip("-" + placement[:-1], placement, placement[1:] + "-", strict=True)
    return (
        all(counts.get(mixer, 0) >= least for mixer, least in constraints.at_least.items())
        and all(placement[layer] == mixer for layer, mixer in constraints.fixed.items())
        and not any(mixer in constraints.forbidden + constraints.forbidden_at.get(i, "") for i, mixer in enumerate(placement))
        and not (constraints.no_singletons and 1 in counts.values())
        and not (constraints.no_isolated and any(mixer not in (before, after) for before, mixer, after in around))
    )


@dataclass(frozen=True)
class Counters:
    """Saturating counts of the mixers that a constraint counts."""

    states: np.ndarray  # [Q, M] the counts
    before: np.ndarray  # [Q, M, W] states from which taking the mixer leads here; Q where there is none
    accepted: np.ndarray  # [Q] whether a placement may end here

    @staticmethod
    def of(constraints: Constraints, letters: str) -> "Counters":
        least = [constraints.at_least.get(letter, 0) for letter in letters]
        top = [max(n, 2) if constraints.no_singletons else n for n in least]
        states = np.array(list(itertools.product(*[range(t + 1) for t in top])))
        index = {tuple(state): i for i, state in enumerate(states.tolist())}
        lists: list[list[list[int]]] = [[[] for _ in letters] for _ in states]
        for i, state in enumerate(states.tolist()):
            for mixer in range(len(letters)):
                after = [min(n + (m == mixer), t) for m, (n, t) in enumerate(zip(state, top, strict=True))]
                lists[index[tuple(after)]][mixer].append(i)
        width = max(len(origin) for row in lists for origin in row)
        before = np.array([[origin + [len(states)] * (width - len(origin)) for origin in row] for row in lists])
        accepted = (states >= least).all(1) & ~(constraints.no_singletons & (states == 1).any(1))
        return Counters(states, before, accepted)


def check(constraints: Constraints, letters: str, layers: int, k: int) -> None:
    if k < 1:
        raise ValueError(f"k = {k} best placements cannot be found: ask for at least 1")
    named = "".join([*constraints.at_least, *constraints.fixed.values(), constraints.forbidden, *constraints.forbidden_at.values()])
    unknown = [letter for letter in named if letter not in letters]
    if unknown:
        raise ValueError(f"constraint on unknown mixer {unknown[0]}: choose from {', '.join(letters)}")
    outside = [i for i in [*constraints.fixed, *constraints.forbidden_at] if not 0 <= i < layers]
    if outside:
        raise ValueError(f"constraint on layer {outside[0]}: layers run from 0 to {layers - 1}")
    for mixer, least in constraints.at_least.items():
        if not 0 <= least <= layers:
            raise ValueError(f"at least {least} layers of {mixer} is infeasible: the model has {layers} layers")


def barriers(constraints: Constraints, letters: str, layers: int) -> np.ndarray:
    """[L, M, M, M] 0 where a mixer may follow the two before it, -inf where not."""
    size = len(letters)
    allowed = np.ones((layers, size), bool)
    for layer, letter in constraints.fixed.items():
        allowed[layer] &= np.array(list(letters)) == letter
    for layer in range(layers):
        for letter in constraints.forbidden + constraints.forbidden_at.get(layer, ""):
            allowed[layer, letters.index(letter)] = False
    empty = np.flatnonzero(~allowed.any(1))
    if len(empty):
        raise ValueError(f"no mixer is left for layer {empty[0]}: loosen 'fixed' or 'forbidden'")
    passable = np.broadcast_to(allowed[:, None, None, :], (layers, size, size, size)).copy()
    if constraints.no_isolated:
        if layers == 1:
            raise ValueError("no_isolated is infeasible: a single layer has no neighbour")
        same = np.eye(size, dtype=bool)
        passable[1] &= same[None]  # the first layer needs the second
        passable[2:] &= same[:, :, None] | same[None]  # the middle one of three is like one of its neighbours
        passable[-1] &= same[None]  # the last needs the one before
    return np.where(passable, 0.0, -np.inf)
