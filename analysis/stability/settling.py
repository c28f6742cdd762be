"""When a cost band settled, by each primary endpoint: the first checkpoint from which nothing that matters changes any more."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.stability.endpoints import Endpoints

MIN_ITEMS = 4
"""Fewer items cannot be halved and jackknifed: nothing is known about their noise."""

FEWEST = 8
"""A band with fewer placements gets no numbers at all."""


class Rule(NamedTuple):
    """What "reached" means for one endpoint: the sign makes higher better; columns of the stability table."""

    endpoint: str
    column: str
    sign: int
    threshold: float


def rules(endpoints: Endpoints) -> tuple[Rule, Rule]:
    """The two primary endpoints. Resolution at or below δ is order at δ at or above its threshold: a statement about one curve."""
    return Rule("resolution", "order", 1, endpoints.order_threshold), Rule("regret", "regret_share", -1, endpoints.regret_threshold)


def time_to_stability(table: pd.DataFrame, endpoints: Endpoints, reruns: pd.DataFrame | None = None) -> pd.DataFrame:
    """When each band of a stability table settled, one row per endpoint: ``tokens`` is the first t from which the endpoint surely stays
    within its threshold at all later steps; NaN with reached = False if there is none. T agrees with itself and proves nothing, and
    checkpoints within ``neighbours`` of T show training noise: neither is judged.

    tokens_lo, tokens_hi: interval of the first step from which the truth stays within, by the simultaneous band; inf: not in the run.
    verdict, by the last step judged: settled; settled before training (step 0 already reaches); not settled (surely not reached);
    undecided (the interval includes the threshold: more items or placements would decide; also where no two placements differ by more
    than delta_settled, so that the order beyond it is not known); as settled as a rerun (a rerun of the
    training surely does not reach the threshold either, and the curve lies within its interval: ``reference`` says which);
    not enough data (below min_placements or min_items); no data (nothing to rank).

    ``reruns``: rows of ``analysis.stability.reruns.rerun_agreement``; neighbours of T serve where it has none.
    """
    rows = []
    for (run, lo, hi), band in table.groupby(["run", "band_lo", "band_hi"], sort=False):
        band = band.drop_duplicates("step").sort_values("step")  # a band that is the whole range has its rows twice
        last = band["step"].iloc[-1]
        near = band[(band["step"] < last) & (band["step"] > (1 - endpoints.neighbours) * last)]
        judged = band.iloc[:-1].drop(near.index)
        references = [("neighbours", near)]
        if reruns is not None:
            references.insert(0, ("seeds", reruns[(reruns["band_lo"] == lo) & (reruns["band_hi"] == hi) & (reruns["run"] == run)]))
        for rule in rules(endpoints):
            found = _judge(judged, rule)
            found |= _reference(judged, rule, references) if found["verdict"] in ("not settled", "undecided") else {}
            if short := _short(judged if len(judged) else band, endpoints):
                found |= {"verdict": short, "reached": False, "tokens": np.nan, "tokens_lo": np.nan, "tokens_hi": np.nan, "reference": ""}
            rows.append({
                "run": run, "band_lo": lo, "band_hi": hi, "threshold": rule.threshold, "tokens": found["tokens"],
                "tokens_lo": found["tokens_lo"], "tokens_hi": found["tokens_hi"], "reached": found["reached"], "endpoint": rule.endpoint,
                "delta": endpoints.delta_settled if rule.endpoint == "resolution" else np.nan, "verdict": found["verdict"],
                "reference": found["reference"], "level": endpoints.level,
            })  # fmt: skip
    return pd.DataFrame(rows)


def overall(verdicts: pd.Series) -> str:
    """One word for a band from the verdicts of its endpoints: settled needs both; else the less settled of the two."""
    worst = ["no data", "not enough data", "not settled", "undecided", "as settled as a rerun", "settled", "settled before training"]
    return min(verdicts, key=worst.index)


def by_ratio(table: pd.DataFrame, endpoints: Endpoints) -> pd.DataFrame:
    """The same for τ over its ceiling with ``endpoints.threshold``: reported and validated, but no verdict hangs on it."""
    rows = []
    for (run, lo, hi), band in table.groupby(["run", "band_lo", "band_hi"], sort=False):
        rule = Rule("ratio", "ratio", 1, endpoints.threshold)
        found = _judge(band.drop_duplicates("step").sort_values("step").iloc[:-1], rule)
        found["verdict"] = found["verdict"].removesuffix(" before training")
        rows.append({"run": run, "band_lo": lo, "band_hi": hi, "threshold": rule.threshold, **found, "level": endpoints.level})
    return pd.DataFrame(rows)


def _judge(band: pd.DataFrame, rule: Rule) -> dict[str, object]:
    worse, better = ("lo", "hi") if rule.sign > 0 else ("hi", "lo")
    columns = (f"{rule.column}_{worse}", f"{rule.column}_band_{better}", f"{rule.column}_band_{worse}")
    tokens, earliest, latest = (_first_lasting(band, rule.sign * band[column], rule.sign * rule.threshold) for column in columns)
    known = len(band) > 0 and np.isfinite(band[columns[0]].iloc[-1])
    reached = bool(known and np.isfinite(tokens))
    at_start = reached and band["step"].iloc[0] == 0 and tokens == band["tokens"].iloc[0]
    verdict = "settled before training" if at_start else "settled" if reached else "undecided" if np.isfinite(earliest) else "not settled"
    return {
        "tokens": tokens if reached else np.nan, "tokens_lo": earliest if known else np.nan, "tokens_hi": latest if known else np.nan,
        "reached": reached, "verdict": verdict if known else "no data", "reference": "",
    }  # fmt: skip


def _reference(band: pd.DataFrame, rule: Rule, references: list[tuple[str, pd.DataFrame]]) -> dict[str, object]:
    """The verdict beside a rerun, where one surely stays short of the threshold and the curve lies within its interval at the end."""
    worse, better = ("lo", "hi") if rule.sign > 0 else ("hi", "lo")
    for name, rows in references:
        if not len(rows):
            continue
        least, most = rule.sign * rows[f"{rule.column}_{worse}"].mean(), rule.sign * rows[f"{rule.column}_{better}"].mean()
        tokens = _first_lasting(band, rule.sign * band[rule.column], least)
        if most < rule.sign * rule.threshold and np.isfinite(tokens):
            return {"verdict": "as settled as a rerun", "reference": name}
    return {}


def _short(band: pd.DataFrame, endpoints: Endpoints) -> str:
    """Why there is no verdict, or nothing. Without a ranking at equal cost there is no choice to judge, either."""
    row = band.iloc[-1]
    computed = row["n_placements"] >= FEWEST and row["n_items"] >= MIN_ITEMS
    if row["n_placements"] == 0 or (computed and np.isnan(row["order_lo"])):
        return "no data"
    return "not enough data" if row["n_placements"] < endpoints.min_placements or row["n_items"] < endpoints.min_items else ""


def _first_lasting(band: pd.DataFrame, values: pd.Series, threshold: float) -> float:
    """Tokens of the first step from which the values stay at or above the threshold; inf if they do not at the end."""
    below = np.flatnonzero(~(values.to_numpy() >= threshold - 1e-12))
    first = below[-1] + 1 if len(below) else 0
    return float(band["tokens"].iloc[first]) if first < len(band) else np.inf
