"""Cost bands: which there are in a table, their rows, and which placements they hold."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.table import Scores

EDGE = 1e-9


class Band(NamedTuple):
    """A cost band in FA-layer equivalents; ``whole`` when it is the whole cost range, which stands beside bands and never alone."""

    lo: float
    hi: float
    whole: bool

    def __str__(self) -> str:
        return f"{self.lo:.3g}–{self.hi:.3g}"


def bands_in(stability: pd.DataFrame) -> list[Band]:
    """The bands of a table with band_lo and band_hi, cheapest first; the one that spans all others is the whole range, and last."""
    edges = sorted(set(stability[["band_lo", "band_hi"]].itertuples(index=False, name=None)))
    span = min(lo for lo, _ in edges), max(hi for _, hi in edges)
    found = [Band(lo, hi, len(edges) > 1 and (lo, hi) == span) for lo, hi in edges]
    return sorted(found, key=lambda band: (band.whole, band))


def rows_of(band: Band, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one band."""
    return frame[(frame["band_lo"] == band.lo) & (frame["band_hi"] == band.hi)]


def inside(cost: np.ndarray, lo: float, hi: float, top: float) -> np.ndarray:
    """Which costs [P] a band holds -> bool [P]: its lower edge included, its upper edge only in the band that ends at ``top``.

    Costs are sums of rounded numbers, so an edge is met within 1e-9.
    """
    cost = np.asarray(cost)
    return (cost >= lo - EDGE) & (cost < (hi + EDGE if hi == top else hi - EDGE))


def band_members(scores: Scores, bands: list[Band]) -> dict[Band, np.ndarray]:
    """Indices of the placements of each band that holds two or more."""
    top = max(band.hi for band in bands)
    members = {band: np.flatnonzero(inside(scores.cost, band.lo, band.hi, top)) for band in bands}
    return {band: rows for band, rows in members.items() if len(rows) > 1}
