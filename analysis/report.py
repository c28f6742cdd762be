"""`python -m analysis.report RUN…`: tables, figures and a report that starts with the verdict, from score tables and nothing else."""

import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.input.runs import family, find_runs, load
from analysis.output.command import arguments, ends
from analysis.output.comparison_report import report_comparison
from analysis.output.run_report import report
from analysis.output.words import verdict
from analysis.stability import ENDPOINTS, load_endpoints
from analysis.stability.checkpoints import analyse

__all__ = ["ENDPOINTS", "analyse", "load_endpoints", "main", "report", "verdict"]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    out = "one RUN: where all of it goes (default: beside its scores); several: their comparisons (default: results/comparison)"
    options = arguments("report", "Tables, figures and a verdict from score tables.", out).parse_args(argv)
    return ends(lambda: write_all(options.runs, options.endpoints, options.costs, options.out))


def write_all(paths: Sequence[Path], declared: Path, costs: str | Path | None, out: Path | None) -> None:
    """A report for every run, and one that compares those that may be compared."""
    endpoints = load_endpoints(declared)
    paths = list(dict.fromkeys(path.resolve() for path in paths or find_runs(Path("results"))))
    # all of them are read before anything is written
    runs = [run for path in paths for run in load(path, costs, out if len(paths) == 1 else None)]
    names = [run.scores.run for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two of the runs are called {twice[0]}: they cannot be told apart in a comparison, rename one")
    tables = []
    for run in runs:
        tables.append(report(run.scores, run.path, endpoints, run.folder))
        print(
            f"{run.folder / 'report.md'}:",
            *(line.replace("nats/token", run.scores.unit) for line in verdict(tables[-1], endpoints)),
            sep="\n  ",
        )
    several = [n for n, run in enumerate(runs) if len(run.scores.steps) > 1]
    # differences in score and in nats are no replicates of each other, and have a comparison each
    families = {n: family(runs[n].path) + "-score" * runs[n].scores.scored for n in several}
    for kind in sorted(set(families.values())):  # runs of different samplers are no replicates: see analysis.strategies
        members = [n for n in several if families[n] == kind]
        if len(members) > 1:
            folder = (out or Path("results") / "comparison") / ("comparison" if out and len(paths) == 1 else "") / kind
            report_comparison([runs[n].path for n in members], [(runs[n].scores, tables[n]) for n in members], endpoints, folder)
            print(folder / "report.md")


if __name__ == "__main__":
    sys.exit(main())
