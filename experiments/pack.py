"""``python -m experiments.pack RUN ...``: one file per checkpoint in place of the many parts of a finished sweep, before tables are kept.

Rows and numbers stay. Sorted into one file they take a fifth to a half less room.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.output.command import ends
from analysis.output.one_line import Parser
from analysis.table import load_scores, write_part
from experiments.runs.records import exclusive
from experiments.runs.steps import step_dirs

PACKED = "all.parquet"


def pack(run: Path) -> tuple[int, int]:
    """Merge the parts of every step of a run directory; (bytes before, after). Killed anywhere, the same call goes on.

    Raises ValueError where a step has two different scores for one placement and item, or the run's tables are not complete.
    """
    if not (run / "scores").is_dir():
        raise ValueError(f"no score tables at {run}: give run directories results/<scale>/<run-id>")
    with exclusive(run, "sweep"):
        before = _bytes(run)
        for folder in step_dirs(run / "scores").values():
            pack_step(folder)
        load_scores(run)
        return before, _bytes(run)


def pack_step(folder: Path) -> None:
    """The same of one step's folder. The parts go when their rows are in the one file; a row that is in both is the same twice."""
    parts = sorted(folder.glob("*.parquet"))
    if parts == [folder / PACKED]:
        return
    rows = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    rows = rows.astype({name: str for name in rows.columns if isinstance(rows[name].dtype, pd.CategoricalDtype)})
    rows = rows.drop_duplicates().sort_values(["item", "placement"])  # neighbours are alike, which makes the file small
    if (twice := rows.duplicated(["item", "placement"])).any():
        first = rows[twice].iloc[0]
        raise ValueError(f"{folder} has two scores of placement {first.placement}, item {first['item']}: delete the wrong part")
    write_part(rows, folder / PACKED)
    for part in parts:
        if part.name != PACKED:
            part.unlink()


def _bytes(run: Path) -> int:
    return sum(path.stat().st_size for path in run.glob("scores/*/*.parquet"))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser(prog="python -m experiments.pack", description="One file of scores per checkpoint of finished sweeps.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories results/<scale>/<run-id>")
    runs = parser.parse_args(argv).runs
    return ends(lambda: report(runs))


def report(runs: list[Path]) -> None:
    for run in runs:
        before, after = pack(run)
        print(f"{run}: {before / 1e6:.2f} MB of scores -> {after / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
