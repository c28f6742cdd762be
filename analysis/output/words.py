"""What a run says, in plain words: verdicts, warnings."""

import numpy as np
import pandas as pd

from analysis.bands import Band, bands_in, rows_of
from analysis.output import style
from analysis.stability.endpoints import Endpoints
from analysis.stability.settling import overall
from analysis.table import Scores

FEW_ITEMS, LOW_CEILING, WIDE = 30, 0.5, 0.5
"""Below (width: above) these the report warns."""


LIGHTS = {"settled": "🟢", "settled before training": "🟢", "as settled as a rerun": "🟢", "undecided": "🟡", "not settled": "🔴"}
"""Of the verdicts; what has none has no data."""


def lit(verdict: str) -> str:
    """A verdict behind its light."""
    return f"{LIGHTS.get(verdict, '⚪')} {verdict}"


def warn(scores: Scores, tables: dict[str, pd.DataFrame]) -> list[str]:
    """What makes the answer of this run wide or narrow in scope, a sentence each."""
    found = [f"One training seed ({scores.seed}): nothing is said about how rankings differ between trainings."]
    if len(scores.items) < FEW_ITEMS:
        found.append(f"Only {len(scores.items)} items: noise ceilings and intervals are themselves uncertain below {FEW_ITEMS}.")
    for band in bands_in(tables["stability"]):
        rows = rows_of(band, tables["stability"])
        before = rows[rows["step"] < scores.steps[-1]]
        ceiling, width = rows["ceiling"].iloc[-1], (before["ratio_hi"] - before["ratio_lo"]).median()
        if ceiling < LOW_CEILING:
            found.append(f"Cost band {band}: the noise ceiling at the end is {ceiling:.2f}; more items would tell the placements apart.")
        if width > WIDE:
            found.append(f"Cost band {band}: the interval of τ/ceiling is {width:.2f} wide at the median checkpoint.")
    return found


def verdict(tables: dict[str, pd.DataFrame], endpoints: Endpoints) -> list[str]:
    """A sentence in plain words per cost band, the whole cost range after them, then the frontier; of one checkpoint that alone."""
    if "stability" not in tables:
        return frontier_of_one(tables)
    said = [
        _band_sentence(band, rows_of(band, tables["time_to_stability"]), rows_of(band, tables["stability"]).sort_values("step"), endpoints)
        for band in bands_in(tables["time_to_stability"])
    ]
    drift = tables["pareto_drift"]
    first, before = drift.iloc[0], drift.iloc[-2]
    said.append(
        f"Frontier: freezing it at {style.count(first['tokens'])} tokens costs {interval(first, 'loss', 3)} nats/token at the end (mean "
        f"over budgets; random choice {first['loss_random']:.3f}), at {style.count(before['tokens'])} tokens "
        f"{interval(before, 'loss', 3)}; by then {before['shared_cross']:.0%} of the final frontier is found on other items (noise "
        f"ceiling {before['shared_ceiling']:.0%}, random choice {before['shared_random']:.0%})."
    )
    return said


def _band_sentence(band: Band, times: pd.DataFrame, rows: pd.DataFrame, endpoints: Endpoints) -> str:
    """The verdict of one band: the word, from when, resolution and regret there or at the last checkpoint that is judged."""
    where = f"Over the whole cost range {band} (inflated by trivial pairs, for comparison only)" if band.whole else f"In cost band {band}"
    P, I = rows["n_placements"].iloc[0], rows["n_items"].iloc[0]
    n = f"n = {P} placements, {I} items"
    word = overall(times["verdict"])
    if word == "no data":
        return f"{where} **nothing can be said** ({n})."
    if word == "not enough data":
        return (
            f"{where} there is **not enough data** for a verdict: {n}, at least {endpoints.min_placements} placements and "
            f"{endpoints.min_items} items are needed."
        )
    judged = rows[rows["step"] <= (1 - endpoints.neighbours) * rows["step"].iloc[-1]]
    now = (judged if len(judged) else rows.iloc[:-1]).iloc[-1]
    if times["reached"].all():
        from_when = times["tokens"].max()
        now = rows[rows["tokens"] == from_when].iloc[0]
    when = f"at {style.count(now['tokens'])} tokens ({_share(now['tokens'], rows['tokens'].iloc[-1])})"
    at = f"{when}, {_final(now, endpoints)}; {_choice(now)}"
    before = (
        f" Before training order at that margin was {now['order_start']:.2f}, so little of this is learned."
        if now["order_start"] >= endpoints.order_threshold
        else ""
    )
    if word == "settled":
        latest = times.loc[times["tokens"].idxmax()]
        span = f"{endpoints.level:.0%}: {_span(latest)}"
        return f"{where} the ranking is **settled from {style.count(latest['tokens'])} tokens** ({span}): {at}; {n}."
    if word == "settled before training":
        return f"{where} the ranking is **settled before training**, which is no evidence of settling: {at}; {n}."
    if word == "as settled as a rerun":
        return f"{where} the ranking is **as settled as a rerun**: {at}; a rerun reaches no more; {n}.{before}"
    parts = ", ".join(f"{row['endpoint']} {row['verdict']}" for _, row in times.iterrows())
    why = " (more items or placements would decide)" if word == "undecided" else ""
    if np.isnan(now["order"]) and np.isfinite(now["resolution"]):
        why = f" (no two placements differ by more than {endpoints.delta_settled:g}, so that there is nothing to rank at this margin)"
    return f"{where} the ranking is **{word}** ({parts}): {at}{why}; {n}.{before}"


def _share(tokens: float, last: float) -> str:
    return f"{tokens / last:.0%} of the training" if last else "before the end"


def _final(row: pd.Series, endpoints: Endpoints) -> str:
    """From which difference on the order is final."""
    level = f"{endpoints.level:.0%}"
    lo, hi = (f"{row[c]:.3g}" if np.isfinite(row[c]) else "none" for c in ("resolution_lo", "resolution_hi"))
    if np.isnan(row["resolution"]):
        return "item noise hides which differences are final"
    if row["resolution"] == 0 and row["resolution_hi"] == 0:
        return "all differences are final"
    if np.isinf(row["resolution"]):
        return f"no difference is final ({level}: from {lo} nats/token on at best)"
    return f"differences above {row['resolution']:.3g} nats/token are final ({level}: {lo} to {hi})"


def _choice(row: pd.Series) -> str:
    share = interval(row, "regret_share", 2)
    if np.isnan(row["regret_share"]):
        return "the items do not tell the best placement from a random one"
    return f"choosing then loses {share} of what choosing can gain ({interval(row, 'regret', 3)} nats/token)"


def frontier_of_one(tables: dict[str, pd.DataFrame]) -> list[str]:
    """What one checkpoint can tell."""
    front = tables["frontier"].merge(tables["behind"][["placement", "behind", "behind_lo", "behind_hi"]])
    best, cheapest = front.iloc[-1], front.iloc[0]  # dearer members of a frontier are better
    return [
        "There is one checkpoint: **nothing can be said about stability**, that is, whether the ranking would change with more training.",
        f"Frontier: {len(front)} of {len(tables['behind'])} placements, of cost {cheapest['cost']:.2f} to {best['cost']:.2f}; the best is "
        f"{best['placement']} ({best['quality']:.3f} nats/token), the cheapest, {cheapest['placement']}, is "
        f"{interval(cheapest, 'behind', 3)} nats/token behind it. Chosen and judged on the same items: `make presets` judges on others.",
    ]


def interval(row: pd.Series, name: str, digits: int) -> str:
    lo, hi = row[f"{name}_lo"], row[f"{name}_hi"]
    if np.isnan([row[name], lo, hi]).any():
        return "unknown" if np.isnan(row[name]) else f"{row[name]:.{digits}f} (no interval)"
    return f"{row[name]:.{digits}f} ({lo:.{digits}f} to {hi:.{digits}f})"


def _span(time: pd.Series) -> str:
    low, high = ("beyond the last checkpoint" if not np.isfinite(t) else style.count(t) for t in (time["tokens_lo"], time["tokens_hi"]))
    return f"{low} to {high}"
