"""What a run says, in plain words: verdicts, warnings."""

import numpy as np
import pandas as pd

from analysis.bands import bands_in, rows_of
from analysis.output import style
from analysis.stability.endpoints import Endpoints
from analysis.table import Scores

FEW_PLACEMENTS, FEW_ITEMS, LOW_CEILING, WIDE = 20, 30, 0.5, 0.5
"""Below (width: above) these the report warns."""


def warn(scores: Scores, tables: dict[str, pd.DataFrame], endpoints: Endpoints) -> list[str]:
    """What makes the answer of this run wide or narrow in scope, a sentence each."""
    found = [f"One training seed ({scores.seed}): nothing is said about how rankings differ between trainings."]
    if len(scores.items) < FEW_ITEMS:
        found.append(f"Only {len(scores.items)} items: noise ceilings and intervals are themselves uncertain below {FEW_ITEMS}.")
    for band in bands_in(tables["stability"]):
        rows = rows_of(band, tables["stability"])
        before = rows[rows["step"] < scores.steps[-1]]
        n, ceiling, width = rows["n_placements"].iloc[0], rows["ceiling"].iloc[-1], (before["ratio_hi"] - before["ratio_lo"]).median()
        if endpoints.min_placements <= n < FEW_PLACEMENTS:
            found.append(f"Cost band {band} holds only {n:.0f} placements: its intervals are wide.")
        if ceiling < LOW_CEILING:
            found.append(f"Cost band {band}: the noise ceiling at the end is {ceiling:.2f}; more items would tell the placements apart.")
        if width > WIDE:
            found.append(f"Cost band {band}: the interval of τ/ceiling is {width:.2f} wide at the median checkpoint.")
    return found


def verdict(tables: dict[str, pd.DataFrame], endpoints: Endpoints) -> list[str]:
    """A sentence in plain words per cost band, the whole cost range after them, then the frontier; of one checkpoint that alone."""
    if "stability" not in tables:
        return frontier_of_one(tables)
    said = []
    for band in bands_in(tables["time_to_stability"]):
        time = rows_of(band, tables["time_to_stability"]).iloc[0]
        rows = rows_of(band, tables["stability"]).sort_values("tokens")
        where = (
            f"Over the whole cost range {band} (inflated by trivial pairs, for comparison only)" if band.whole else f"In cost band {band}"
        )
        n = f"n = {rows['n_placements'].iloc[0]} placements, {rows['n_items'].iloc[0]} items"
        if time["verdict"] == "no data":
            said.append(f"{where} **nothing can be said** ({n}).")
            continue
        if time["reached"]:
            now = rows[rows["tokens"] == time["tokens"]].iloc[0]
            said.append(
                f"{where} the ranking is **stable from {style.count(now['tokens'])} tokens** ({endpoints.level:.0%}: {_span(time)}): "
                f"τ/ceiling there {interval(now, 'ratio', 2)}, regret of choosing then {interval(now, 'regret', 3)} nats/token; {n}."
            )
            continue
        before = rows.iloc[-2]
        at = f"at {style.count(before['tokens'])} tokens, the last checkpoint before the end, τ/ceiling is {interval(before, 'ratio', 2)}"
        if np.isnan(before["ratio"]):
            at = (
                f"item noise hides the ranking at {style.count(before['tokens'])} tokens, the last checkpoint before the end, or at the end"
            )
        if time["verdict"] == "undecided":
            said.append(
                f"{where} it is **undecided** whether the ranking is settled: {at}, which leaves open whether it is above "
                f"{time['threshold']:g} (more items or placements would decide); {n}."
            )
        else:
            said.append(f"{where} the ranking is **not settled**: {at}, below {time['threshold']:g}; {n}.")
    drift = tables["pareto_drift"]
    first, before = drift.iloc[0], drift.iloc[-2]
    said.append(
        f"Frontier: freezing it at {style.count(first['tokens'])} tokens costs {interval(first, 'loss', 3)} nats/token at the end (mean "
        f"over budgets; random choice {first['loss_random']:.3f}), at {style.count(before['tokens'])} tokens "
        f"{interval(before, 'loss', 3)}; by then {before['shared_cross']:.0%} of the final frontier is found on other items (noise "
        f"ceiling {before['shared_ceiling']:.0%}, random choice {before['shared_random']:.0%})."
    )
    return said


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
