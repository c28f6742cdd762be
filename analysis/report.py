"""`python -m analysis.report RUN…`: tables, figures and a report that starts with the verdict, from score tables and nothing else."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.output.comparison_report import report_comparison
from analysis.output.run_report import report
from analysis.output.words import verdict
from analysis.runs import family, find_runs
from analysis.stability import ENDPOINTS, load_endpoints
from analysis.stability.checkpoints import analyse
from analysis.table import load_scores

__all__ = ["ENDPOINTS", "analyse", "load_endpoints", "main", "report", "verdict"]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description="Tables, figures and a verdict from score tables.")
    runs_help = "run directory, or a .parquet or .csv file of scores; default: every run directory under results/ that has scores"
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help=runs_help)
    parser.add_argument("--endpoints", type=Path, default=ENDPOINTS, help="the declared endpoints (default: conf/stability.yaml)")
    out_help = "one RUN: where all of it goes (default: beside its scores); several: their comparisons (default: results/comparison)"
    parser.add_argument("--out", type=Path, help=out_help)
    arguments = parser.parse_args(argv)
    try:
        endpoints = load_endpoints(arguments.endpoints)
        runs = list(dict.fromkeys(path.resolve() for path in arguments.runs or find_runs(Path("results"))))
        loaded = [load_scores(run) for run in runs]  # all of them before anything is written
        names = [scores.run for scores in loaded]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two of the runs are called {twice[0]}: they cannot be told apart in a comparison, rename one")
        results = []
        for run, scores in zip(runs, loaded, strict=True):
            out = arguments.out if arguments.out and len(runs) == 1 else run if run.is_dir() else run.parent
            results.append((scores, report(scores, run, endpoints, out)))
            print(f"{out / 'report.md'}:", *verdict(results[-1][1], endpoints), sep="\n  ")
        several = [i for i, scores in enumerate(loaded) if len(scores.steps) > 1]
        families = {i: family(runs[i]) for i in several}
        for kind in sorted(set(families.values())):  # runs of different samplers are no replicates: see analysis.strategies
            members = [i for i in several if families[i] == kind]
            if len(members) > 1:
                out = (arguments.out or Path("results") / "comparison") / kind
                report_comparison([runs[i] for i in members], [results[i] for i in members], endpoints, out)
                print(out / "report.md")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
