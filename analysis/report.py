"""`python -m analysis.report RUN…`: tables, figures and a report that starts with the verdict, from score tables and nothing else."""

import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.input.runs import Run, family, find_runs, load, recipe
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


def write_all(named: Sequence[Path], declared: Path, costs: str | Path | None, out: Path | None) -> None:
    """A report for every run, and one that compares those that may be compared."""
    endpoints = load_endpoints(declared)
    paths = list(dict.fromkeys(path.resolve() for path in named or find_runs(Path("results"))))
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
    groups = comparable([runs[n] for n in several], found=not named)
    for kind in sorted(set(groups)):
        members = [n for n, group in zip(several, groups, strict=True) if group == kind]
        if len(members) > 1:
            folder = (out or Path("results") / "comparison") / ("comparison" if out and len(paths) == 1 else "") / kind
            report_comparison([runs[n].path for n in members], [(runs[n].scores, tables[n]) for n in members], endpoints, folder)
            print(folder / "report.md")


def comparable(runs: Sequence[Run], found: bool) -> list[str]:
    """The comparison that each run belongs to, which is the name of its folder.

    Samplers are compared by analysis.strategies, and differences in score and in nats are not alike. Runs that were ``found``, not named,
    are compared with replicates alone: of the same scale and recipe, which has a digest in its name where the scale has several.
    """
    kinds = [family(run.path) + "-score" * run.scores.scored for run in runs]
    if not found:
        return kinds
    known = [recipe(run.path).same for run in runs]
    names = [f"{run.scores.scale}-{kind}" if same else kind for run, kind, same in zip(runs, kinds, known, strict=True)]
    recipes = {name: {same for other, same in zip(names, known, strict=True) if other == name} for name in names}
    return [f"{name}-{same[:6]}" if len(recipes[name]) > 1 else name for name, same in zip(names, known, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
