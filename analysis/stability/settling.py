"""When the ranking of a cost band settled: the first checkpoint from which it stays the one of the last."""

import numpy as np
import pandas as pd

from analysis.stability.endpoints import Endpoints


def time_to_stability(table: pd.DataFrame, endpoints: Endpoints) -> pd.DataFrame:
    """When each band of a stability table settled: ``tokens`` is the first t before T from which ratio_lo stays at or above the
    threshold at all later steps; NaN with reached = False if there is none. T itself agrees with itself and proves nothing.

    tokens_lo, tokens_hi: interval of the first step from which the *true* ratio stays above, by the simultaneous band: from its upper
    and its lower curve. inf: not within the run. verdict: settled (reached); not settled (even the upper curve lies below at the last
    step before T); undecided (the interval at that step includes the threshold: more items or placements would decide); no data.
    """
    rows = []
    for (run, lo, hi), band in table.groupby(["run", "band_lo", "band_hi"], sort=False):
        band = band.sort_values("step").iloc[:-1]
        tokens, earliest, latest = (
            _first_lasting(band, column, endpoints.threshold) for column in ("ratio_lo", "ratio_band_hi", "ratio_band_lo")
        )
        known = len(band) > 0 and np.isfinite(band["ratio_lo"].iloc[-1])
        reached = bool(known and np.isfinite(tokens))
        verdict = "settled" if reached else "no data" if not known else "undecided" if np.isfinite(earliest) else "not settled"
        rows.append({
            "run": run, "band_lo": lo, "band_hi": hi, "threshold": endpoints.threshold, "tokens": tokens if reached else np.nan,
            "tokens_lo": earliest if known else np.nan, "tokens_hi": latest if known else np.nan, "reached": reached, "verdict": verdict,
            "level": endpoints.level,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _first_lasting(band: pd.DataFrame, column: str, threshold: float) -> float:
    """Tokens of the first step from which the column stays at or above the threshold; inf if it does not at the end."""
    below = np.flatnonzero(~(band[column].to_numpy() >= threshold))
    first = below[-1] + 1 if len(below) else 0
    return float(band["tokens"].iloc[first]) if first < len(band) else np.inf
