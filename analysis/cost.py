"""Cost of a placement: a sum of one coefficient per layer, published or regressed on measured decode speed.

Letters: P placements, M mixers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from supernet.placement import COST

UNIT = 0.01
"""The grid of budgets, in FA-layer equivalents."""

BENCH_COLUMNS = ("placement", "tokens_per_second")
"""What a bench table must hold: decode throughput of a placement at its largest batch, all rows at one context length."""


def placement_costs(placements: Sequence[str], coefficients: Mapping[str, float] = COST) -> np.ndarray:
    """Costs [P] of placements of one length, in FA-layer equivalents. Raises ValueError for a mixer without a coefficient."""
    mixers = sorted(set().union(*map(set, placements)))
    missing = [mixer for mixer in mixers if mixer not in coefficients]
    if missing:
        raise ValueError(f"no cost coefficient for mixer {', '.join(missing)}: give one beside {dict(coefficients)}")
    return np.round(mixer_counts(placements, mixers) @ np.array([coefficients[mixer] for mixer in mixers]), 9)


def coefficients_of(placements: Sequence[str], cost: np.ndarray) -> dict[str, float]:
    """Cost of one layer of each mixer, from the costs [P] of placements: the published ones where they give these costs, else solved for.

    Raises ValueError where the costs are no sum over mixers, or do not determine every mixer's.
    """
    mixers = sorted(set().union(*map(set, placements)), key=lambda c: ("FSKG".find(c) % 99, c))
    cost = np.asarray(cost, float)
    if set(mixers) <= set(COST) and np.allclose(placement_costs(placements), cost, rtol=0, atol=1e-6):
        return dict(COST)
    counts = mixer_counts(placements, mixers)
    solved, _, rank, _ = np.linalg.lstsq(counts, cost, rcond=None)
    if (apart := np.abs(counts @ solved - cost)).max() > 1e-6 * max(1.0, cost.max()):
        worst = int(apart.argmax())
        raise ValueError(
            f"the costs are no sum over mixers: placement {placements[worst]} costs {cost[worst]:g}, its mixers "
            f"{counts[worst] @ solved:g}; the optimiser needs one cost per mixer: give a table with the columns mixer, cost as --costs"
        )
    if rank < len(mixers):
        raise ValueError(f"the costs of {len(placements)} placements do not determine those of the mixers {', '.join(mixers)}: "
                         "give a table with the columns mixer, cost as --costs")  # fmt: skip
    found = dict(zip(mixers, np.round(solved, 9).tolist(), strict=True))
    if bad := [mixer for mixer, value in found.items() if value <= 0]:
        raise ValueError(f"by the costs of the placements a layer of mixer {bad[0]} costs {found[bad[0]]:g}: costs must be positive")
    return found


def dearest(letters: str, coefficients: Mapping[str, float]) -> str:
    """The mixer that others are held against: full attention (F), or the dearest one where there is no F."""
    return "F" if "F" in letters else max(letters, key=lambda letter: coefficients[letter])


def full_cost(placements: Sequence[str], cost: np.ndarray) -> float:
    """Cost of all-FA (of the dearest mixer in all layers where there is no F); of the dearest scored placement where the costs are no sum
    over mixers."""
    try:
        coefficients = coefficients_of(placements, cost)
    except ValueError:
        return float(np.max(cost))
    letters = "".join(sorted(set().union(*map(set, placements))))
    if set(letters) <= set(COST) and coefficients == COST:
        return float(len(placements[0]))
    return round(len(placements[0]) * coefficients[dearest(letters, coefficients)], 9)


def unit_of(coefficients: Mapping[str, float]) -> float:
    """The grid of budgets: 0.01 where all coefficients lie on it, else a hundredth of the power of ten under the dearest one."""
    values = np.array(list(coefficients.values()))
    if values.max() < 10 and np.allclose(values, np.round(values / UNIT) * UNIT, rtol=0, atol=1e-9):
        return UNIT
    return float(UNIT * 10 ** np.floor(np.log10(values.max())))


def on_grid(coefficients: Mapping[str, float]) -> dict[str, float]:
    """Coefficients rounded up to the grid of budgets: what fits a budget by these fits it by the given ones."""
    unit = unit_of(coefficients)
    return {mixer: round(float(np.ceil(value / unit - 1e-6)) * unit, 12) for mixer, value in coefficients.items()}


def mixer_counts(placements: Sequence[str], mixers: Sequence[str]) -> np.ndarray:
    """How many layers of each placement take each mixer: [P, M]."""
    return np.array([[placement.count(mixer) for mixer in mixers] for placement in placements], float)


@dataclass(frozen=True)
class MeasuredCost:
    """Decode time regressed on mixer counts."""

    seconds: dict[str, float]
    """Seconds per token of one layer of each mixer; what does not depend on the placement is shared out evenly over the layers."""
    coefficients: dict[str, float]
    """``seconds`` relative to F, rounded to the grid of budgets: what the optimiser takes."""
    r2: float
    """Held-out share of the variance of time per token that is explained."""
    error: float
    """Held-out mean absolute error of time per token, relative to it."""
    rows: int

    def speedup(self, placements: Sequence[str]) -> np.ndarray:
        """Predicted decode speed [P] relative to all-FA of the same depth."""
        mixers = list(self.seconds)
        time = mixer_counts(placements, mixers) @ np.array(list(self.seconds.values()))
        return len(placements[0]) * self.seconds["F"] / time


def regress(bench: pd.DataFrame, rng: np.random.Generator, folds: int = 5) -> MeasuredCost:
    """Least squares of seconds per token on mixer counts, and its error on held-out folds.

    There is no intercept: counts sum to the number of layers, so a constant could not be told from the same time on every layer.
    Raises ValueError on missing columns, placements of several lengths, speeds that are not positive, too few rows to hold some
    out, counts that do not determine every mixer, or a mixer whose time comes out at or below zero.
    """
    missing = [column for column in BENCH_COLUMNS if column not in bench]
    if missing:
        raise ValueError(f"the bench table lacks column {', '.join(missing)}: it needs {', '.join(BENCH_COLUMNS)}")
    placements, speed = list(bench["placement"]), bench["tokens_per_second"].to_numpy(float)
    if len({len(p) for p in placements}) != 1:
        raise ValueError(f"the bench table has placements of {sorted({len(p) for p in placements})} layers: regress one model at a time")
    if not (np.isfinite(speed) & (speed > 0)).all():
        raise ValueError(f"the bench table has tokens_per_second {speed[~(speed > 0)][0]}: speeds must be positive")
    mixers = sorted(set().union(*map(set, placements)), key="FSKG".find)
    counts, time = mixer_counts(placements, mixers), 1 / speed
    if "F" not in mixers:
        raise ValueError("the bench table never uses F: cost is relative to full attention, measure placements with F layers")
    smallest = len(placements) - -(-len(placements) // folds)
    if smallest < len(mixers) or np.linalg.matrix_rank(counts) < len(mixers):
        raise ValueError(f"{len(placements)} bench rows do not determine {len(mixers)} mixers with {folds} folds: measure more placements")

    def solve(rows: np.ndarray) -> np.ndarray:  # relative errors count: weights 1 / time
        return np.linalg.lstsq(counts[rows] / time[rows, None], np.ones(len(rows)), rcond=None)[0]

    heldout = np.empty(len(time))
    for fold in np.array_split(rng.permutation(len(time)), folds):
        heldout[fold] = counts[fold] @ solve(np.setdiff1d(np.arange(len(time)), fold))
    seconds = dict(zip(mixers, solve(np.arange(len(time))).tolist(), strict=True))
    negative = [mixer for mixer, value in seconds.items() if value <= 0]
    if negative:
        raise ValueError(f"mixer {negative[0]} comes out at {seconds[negative[0]]:.3g} s per token: measure more placements that use it")
    return MeasuredCost(
        seconds=seconds,
        coefficients={mixer: round(max(value / seconds["F"], UNIT) / UNIT) * UNIT for mixer, value in seconds.items()},
        r2=float(1 - np.sum((time - heldout) ** 2) / np.sum((time - time.mean()) ** 2)),
        error=float(np.mean(np.abs(heldout / time - 1))),
        rows=len(time),
    )
