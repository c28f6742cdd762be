"""Scores of the winners on fresh items: items that no score table holds and that so did not help to choose.

They lie in ``RUN/fresh/step-*/*.parquet`` in the schema of the score table.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.table import SCHEMA, Scores

TABLE = "fresh"


def fresh_files(run: Path, scores: Scores) -> list[Path]:
    """The parts of the last checkpoint; none where no winner has been scored again."""
    return sorted((run / TABLE / f"step-{scores.steps[-1]:06d}").glob("*.parquet"))


def load_fresh(run: Path, scores: Scores) -> pd.DataFrame:
    """Quality at the last checkpoint, nats per token: a row per winner, a column per item that ``scores`` does not hold.

    Empty without such scores. Raises ValueError for files that cannot be read, of another run, incomplete, duplicate or not finite.
    """
    files = fresh_files(run, scores)
    if not files:
        return pd.DataFrame()
    rows = []
    for file in files:
        try:
            rows.append(pd.read_parquet(file, columns=list(SCHEMA)))
        except Exception as error:
            raise ValueError(f"{file} cannot be read ({str(error).splitlines()[0]}): delete it and score the winners again") from None
    table = pd.concat(rows, ignore_index=True).astype({"run": str, "placement": str, "item": str})
    table = table[~table["item"].isin(scores.items)]
    if table["item"].nunique() < 2:  # a later sweep took them into the tables, and one item has no interval
        return pd.DataFrame()
    again = f"delete {run / TABLE} and score the winners again"
    if other := sorted(set(table["run"]) - {scores.run}):
        raise ValueError(f"{run / TABLE} holds scores of run {other[0]}, the tables are of {scores.run}: {again}")
    if (twice := table.duplicated(["placement", "item"])).any():
        first = table[twice].iloc[0]
        raise ValueError(f"{run / TABLE} scores placement {first['placement']} twice on item {first['item']}: {again}")
    quality = (table["logp"] / table["num_tokens"]).set_axis(pd.MultiIndex.from_frame(table[["placement", "item"]])).unstack("item")
    if not np.isfinite(quality.to_numpy()).all():
        placement = quality.index[~np.isfinite(quality.to_numpy()).all(axis=1)][0]
        raise ValueError(f"{run / TABLE} lacks finite scores of {placement} on some fresh item: score the winners again, which "
                         "continues what is missing")  # fmt: skip
    return quality
