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
    return parts_beside(run, TABLE, scores)


def load_fresh(run: Path, scores: Scores) -> pd.DataFrame:
    """Quality at the last checkpoint, nats per token: a row per winner, a column per item that ``scores`` does not hold.

    Empty without such scores. Raises ValueError for files that cannot be read, of another run, incomplete, duplicate or not finite.
    """
    quality = load_beside(run, TABLE, scores, known=False)
    return quality if quality.shape[1] >= 2 else pd.DataFrame()  # a later sweep took them into the tables, and one item has no interval


def parts_beside(run: Path, table: str, scores: Scores) -> list[Path]:
    """The files of the last checkpoint in a folder that stands beside a run's score tables."""
    return sorted((run / table / f"step-{scores.steps[-1]:06d}").glob("*.parquet"))


def load_beside(run: Path, table: str, scores: Scores, known: bool) -> pd.DataFrame:
    """Quality of these files, nats per token: a row per placement, a column per item; of the items that ``scores`` holds (``known``) or of
    the others. Empty without files. Raises ValueError for what cannot be read, is of another run, incomplete, duplicate or not finite."""
    files, rows = parts_beside(run, table, scores), []
    if not files:
        return pd.DataFrame()
    again = f"delete {run / table} and score them again"
    for file in files:
        try:
            rows.append(pd.read_parquet(file, columns=list(SCHEMA)))
        except Exception as error:
            raise ValueError(f"{file} cannot be read ({str(error).splitlines()[0]}): delete it and score them again") from None
    frame = pd.concat(rows, ignore_index=True).astype({"run": str, "placement": str, "item": str})
    frame = frame[frame["item"].isin(scores.items) == known]
    if other := sorted(set(frame["run"]) - {scores.run}):
        raise ValueError(f"{run / table} holds scores of run {other[0]}, the tables are of {scores.run}: {again}")
    if (twice := frame.duplicated(["placement", "item"])).any():
        first = frame[twice].iloc[0]
        raise ValueError(f"{run / table} scores placement {first['placement']} twice on item {first['item']}: {again}")
    quality = (frame["logp"] / frame["num_tokens"]).set_axis(pd.MultiIndex.from_frame(frame[["placement", "item"]])).unstack("item")
    if not np.isfinite(quality.to_numpy()).all():
        placement = quality.index[~np.isfinite(quality.to_numpy()).all(axis=1)][0]
        raise ValueError(f"{run / table} lacks finite scores of {placement} on some item: score them again, which continues what is "
                         "missing")  # fmt: skip
    return quality
