"""Training strategies (distill.sampler) against each other: final quality per group of placements, and stability, seeds as replicates.

``python -m analysis.strategies [RUN ...]`` (default: every run under results/ with scores) writes, per scale with runs of several samplers,
strategies.md, tables/ and figures/ into results/comparison/strategies/<scale>. Runs must differ in sampler, presets and seed alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.comparison.samplers import grids
from analysis.output.samplers_report import write
from analysis.runs import find_runs
from analysis.stability.endpoints import ENDPOINTS, load_endpoints


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.strategies", description="Training strategies compared.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories; default: every run under results/ with scores")
    parser.add_argument("--endpoints", type=Path, default=ENDPOINTS, help="the declared endpoints (default: conf/stability.yaml)")
    parser.add_argument("--out", type=Path, default=Path("results") / "comparison", help="default: results/comparison")
    arguments = parser.parse_args(argv)
    try:
        endpoints = load_endpoints(arguments.endpoints)
        found = grids([run.resolve() for run in arguments.runs or find_runs(Path("results"))], endpoints)
        if not found:
            print("strategies: no scale has runs of several samplers that differ in sampler and seed alone")
        for grid in found:
            out = arguments.out / "strategies" / grid.scale
            print(f"{out / 'strategies.md'}:", *write(grid, endpoints, out), sep="\n  ")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
