"""Does drift grow with scale? Endpoints of the scales study (docs/study.md) over depth, width and tokens per trained parameter.

``python -m analysis.scales [RUN ...]`` (default: every run under results/ that is a cell of the study and fully swept) writes scales.md,
tables/ and figures/ into results/scales: drift of every run over training, slopes with intervals and the least slope that this design
would find, the statistics as published, and what a small cell is worth for a large one.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.comparison.cells import SHARES, Cell, beside_controls, cooled, load_cells, members_of, slopes, table_of
from analysis.comparison.relative_depth import transfer
from analysis.input.runs import find_runs
from analysis.output.cells_report import write
from analysis.output.command import arguments, ends
from analysis.stability.endpoints import ENDPOINTS, Endpoints, load_endpoints
from analysis.stability.published import published

DECLARED = ENDPOINTS.with_name("study.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = arguments("scales", "Drift over depth and width.", "where the report goes (default: results/scales)")
    parser.set_defaults(endpoints=DECLARED)
    options = parser.parse_args(argv)
    return ends(lambda: write_all(options.runs, options.endpoints, options.costs, options.out or Path("results") / "scales"))


def write_all(runs: Sequence[Path], declared: Path, costs: str | None, out: Path) -> None:
    """The report of all cells. ValueError where there is none."""
    endpoints = load_endpoints(declared)
    loaded, left_out = load_cells([run.resolve() for run in runs or find_runs(Path("results"))], costs, strict=bool(runs))
    ended_cooled, without = cooled(loaded, costs)
    left_out += without
    print(*(f"left out: {line}" for line in left_out), sep="\n", end="\n" * bool(left_out))
    cells, controls = ([c for c in loaded if c.control is its] for its in (False, True))
    cells_cooled, controls_cooled = ([c for c in ended_cooled if c.control is its] for its in (False, True))
    if not cells:
        raise ValueError("no run is a cell of the scales study: make study, or name run directories of its scales (l5-h64, ...)")
    drift, found, why = _drift_and_slopes(cells, endpoints, SHARES)
    to_cooled, found_to_cooled, _ = _drift_and_slopes(cells_cooled, endpoints, SHARES[:3])
    quoted = pd.concat([published(c.scores).assign(cell=c.name, teacher=c.teacher) for c in cells], ignore_index=True)
    tables = {
        "drift": drift,
        "slopes": found,
        "published": quoted,
        "transfer": transfers(cells, endpoints),
        "controls": beside_controls(controls, drift, endpoints, (SHARES[1], SHARES[-1])),
        "controls_to_cooled": beside_controls(controls_cooled, to_cooled, endpoints, SHARES[1:2]),
        "drift_to_cooled": to_cooled,
        "slopes_to_cooled": found_to_cooled,
    }
    print(f"{out / 'scales.md'}:", *write(tables, why, left_out, endpoints, out), sep="\n  ")


def _drift_and_slopes(cells: Sequence[Cell], endpoints: Endpoints, shares: Sequence[float]) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Drift of every run, slopes, and '' or why there are none: what too few runs have is still shown."""
    drift = table_of(cells, endpoints) if cells else pd.DataFrame()
    try:
        return drift, slopes(cells, drift, endpoints, shares) if cells else pd.DataFrame(), ""
    except ValueError as error:
        return drift, pd.DataFrame(), str(error)


def transfers(cells: Sequence[Cell], endpoints: Endpoints) -> pd.DataFrame:
    """``transfer`` from every fully scored cell to every deeper one of the same width, within each teacher."""
    frames = []
    for small in cells:
        if len(small.scores.placements) < 4**small.layers:
            continue
        for large in cells:
            if large.teacher == small.teacher and large.width == small.width and large.layers > small.layers:
                rows = transfer(small.scores, large.scores, members_of(large.scores, endpoints), endpoints.seed)
                frames.append(rows.assign(small=small.name, large=large.name, teacher=small.teacher))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


if __name__ == "__main__":
    sys.exit(main())
