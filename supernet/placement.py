"""A placement: one mixer letter per layer, first layer first. Imports without torch.

Cost is in FA-layer equivalents: all-FA of L layers costs L. Samplers take a numpy Generator and nothing else that is random.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np

LETTERS = "FSKG"
"""Full attention, sliding-window attention, Kimi Delta Attention, Gated DeltaNet."""

COST = {"F": 1.00, "S": 0.48, "K": 0.21, "G": 0.14}
"""Relative decode cost of one layer, regressed on measured throughput (Super Apriel, arXiv 2604.19877)."""


class Placement(str):
    """The mixer letters of all layers, e.g. ``Placement("FFSKG")``. It is a string: tables and keys need no conversion.

    Raises ValueError on an empty placement, a letter outside ``letters``, or a length other than ``layers`` when that is given.
    """

    __slots__ = ()

    def __new__(cls, text: str, layers: int | None = None, letters: str = LETTERS) -> "Placement":
        if not isinstance(text, str) or not text:
            raise ValueError(f"a placement is a non-empty string of mixer letters such as 'FFSKG', got {text!r}")
        unknown = sorted(set(text) - set(letters))
        if unknown:
            raise ValueError(f"placement {text!r} has unknown mixer {', '.join(unknown)}: choose from {', '.join(letters)}")
        if layers is not None and len(text) != layers:
            raise ValueError(f"placement {text!r} has {len(text)} layers, the model has {layers}: give one letter per layer")
        return super().__new__(cls, text)

    def counts(self, letters: str = LETTERS) -> dict[str, int]:
        """How many layers take each mixer."""
        return {letter: self.count(letter) for letter in letters}

    def cost(self, coefficients: Mapping[str, float] = COST) -> float:
        """Sum of the layers' cost coefficients, in FA-layer equivalents, rounded to 1e-9 so that equal counts cost exactly the same."""
        missing = sorted(set(self) - set(coefficients))
        if missing:
            raise ValueError(f"no cost coefficient for mixer {', '.join(missing)}: give one beside {dict(coefficients)}")
        return round(sum(self.count(letter) * coefficients[letter] for letter in sorted(set(self))), 9)


def exhaustive(layers: int, letters: str = LETTERS) -> Iterator[Placement]:
    """All ``len(letters) ** layers`` placements in lexicographic order of ``letters``."""
    return (Placement("".join(p), letters=letters) for p in itertools.product(letters, repeat=layers))


def sample_local(layers: int, rng: np.random.Generator, letters: str = LETTERS) -> Placement:
    """Each layer uniform and independent (the paper's sampler)."""
    return Placement("".join(letters[i] for i in rng.integers(len(letters), size=layers)), letters=letters)


def sample_counts(layers: int, rng: np.random.Generator, letters: str = LETTERS) -> Placement:
    """Mixer counts uniform over all compositions of ``layers`` (stars and bars), then shuffled over the layers.

    Reaches the cheap and the expensive extreme, which ``sample_local`` almost never does.
    """
    bars = np.sort(rng.choice(layers + len(letters) - 1, size=len(letters) - 1, replace=False))
    counts = np.diff(np.concatenate([[-1], bars, [layers + len(letters) - 1]])) - 1
    sorted_letters = [letter for letter, count in zip(letters, counts, strict=True) for _ in range(count)]
    return Placement("".join(rng.permutation(sorted_letters)), letters=letters)


@lru_cache(maxsize=8)
def completions(layers: int, units: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """[n]: the costs that n letters can have, ascending, and how many sequences cost less than each, then all of them (exact integers).

    0 <= n <= layers; ``units`` are the costs of the letters.
    """
    table, found = {0: 1}, []
    for _ in range(layers + 1):
        found.append((sorted(table), [0, *itertools.accumulate(table[cost] for cost in sorted(table))]))
        longer: dict[int, int] = {}
        for spent, ways in table.items():
            for unit in units:
                longer[spent + unit] = longer.get(spent + unit, 0) + ways
        table = longer
    return found


def sample_band(
    layers: int,
    low: float,
    high: float,
    rng: np.random.Generator,
    letters: str = LETTERS,
    coefficients: Mapping[str, float] = COST,
) -> Placement:
    """Exactly uniform over the placements whose cost lies in [low, high].

    Counts the completions of every partial cost by dynamic programming on costs rounded to 0.01 FA layer, then draws layer by layer.
    Raises ValueError when no placement lies in the band.
    """
    unit = {c: round(coefficients[c] * 100) for c in letters}
    lo, hi = int(np.ceil(low * 100 - 1e-6)), int(np.floor(high * 100 + 1e-6))
    counted = completions(layers, tuple(unit.values()))
    picked, spent = "", 0
    for remaining in range(layers - 1, -1, -1):
        costs, below = counted[remaining]
        rooms = [(lo - spent - unit[c], hi - spent - unit[c]) for c in letters]
        ways = [below[bisect_right(costs, most)] - below[bisect_left(costs, least)] if least <= most else 0 for least, most in rooms]
        if sum(ways) == 0:
            raise ValueError(f"no placement of {layers} layers costs between {low} and {high}: costs run from "
                             f"{layers * min(unit.values()) / 100:g} to {layers * max(unit.values()) / 100:g}")  # fmt: skip
        total = sum(ways)
        letter = letters[rng.choice(len(letters), p=np.array([w / total for w in ways]))]
        picked, spent = picked + letter, spent + unit[letter]
    return Placement(picked, letters=letters)
