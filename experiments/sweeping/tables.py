"""What a run's sweeps have written: placements, parts, which pairs are scored. Known without torch, whose import takes seconds."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.output.files import replacing
from analysis.table import load_placements
from experiments.run import Run, Sweep
from experiments.runs.steps import step_dir, step_dirs
from experiments.training.strategy import checkpoint_steps


def all_scored(run: Run, sweep: Sweep, wanted: pd.DataFrame) -> bool:
    """Whether the tables hold every placement on every item at every checkpoint, those of earlier sweeps of the run included."""
    folder = sweep.tables(run.folder)
    steps = {*(sweep.steps or checkpoint_steps(run.training)), *steps_in(files_of(folder))}
    have = {step: scored_pairs(step_dir(folder / "scores", step)) for step in steps}
    placements = merge(folder / "placements.parquet", wanted)["placement"]
    names = pd.read_parquet(run.items, columns=["item"])["item"]
    asked = sweep.items or (len(names) if run.items_file else run.data.items)
    items = {*names[:asked], *(item for pairs in have.values() for _, item in pairs)}
    return asked <= len(names) and all((p, item) in pairs for pairs in have.values() for p in placements for item in items)


def files_of(folder: Path) -> set[Path]:
    """The parts of the score tables in a folder: each is written once, whole, and not changed again."""
    return {file for path in step_dirs(folder / "scores").values() for file in path.glob("*.parquet")}


def steps_in(files: set[Path]) -> set[int]:
    """The steps that parts are of."""
    return {int(path.parent.name.removeprefix("step-")) for path in files}


def merge(path: Path, wanted: pd.DataFrame) -> pd.DataFrame:
    """The placements of earlier sweeps of this run, then the new ones."""
    if not path.exists():
        return wanted
    return pd.concat([load_placements(path), wanted]).drop_duplicates("placement", ignore_index=True)


def write_placements(placements: pd.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        placements.to_parquet(temporary, index=False)


def scored_pairs(folder: Path) -> set[tuple[str, str]]:
    """(placement, item) of every row of a step's parts. Raises ValueError naming a file that cannot be read."""
    pairs: set[tuple[str, str]] = set()
    for path in sorted(folder.glob("*.parquet")):
        table = read_keys(path)
        pairs.update(zip(_names(table["placement"]), _names(table["item"]), strict=True))
    return pairs


def read_keys(path: Path) -> pa.Table:
    """Placement and item of every row of a part, as dictionaries. Raises ValueError naming a file that cannot be read."""
    try:
        return pq.read_table(path, columns=["placement", "item"], read_dictionary=["placement", "item"])
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is truncated or not a score table ({reason}): delete it and run the sweep again") from None


def _names(column: pa.ChunkedArray) -> list[str]:
    """The strings of a dictionary column, some ten times as fast as ``to_pylist``."""
    column = column.unify_dictionaries().combine_chunks()
    return np.array(column.dictionary.to_pylist(), dtype=object)[column.indices.to_numpy()].tolist()
