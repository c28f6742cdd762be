"""Training strategies (distill.sampler) against each other: final quality per group of placements, and stability, seeds as replicates.

``python -m analysis.strategies [RUN ...]`` (default: every run under results/ with scores) writes, per scale with runs of several samplers,
strategies.md, tables/ and figures/ into results/comparison/strategies/<scale>. Runs must differ in sampler, presets and seed alone.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.comparison.samplers import grids
from analysis.input.runs import find_runs
from analysis.output.command import arguments, ends
from analysis.output.samplers_report import write
from analysis.stability.endpoints import load_endpoints


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    out = "where strategies/<scale> goes (default: results/comparison)"
    options = arguments("strategies", "Training strategies compared.", out).parse_args(argv)
    return ends(lambda: write_all(options.runs, options.endpoints, options.costs, options.out or Path("results") / "comparison"))


def write_all(runs: Sequence[Path], declared: Path, costs: str | Path | None, folder: Path) -> None:
    """A report for every scale."""
    endpoints = load_endpoints(declared)
    if gone := [run for run in runs if not run.exists()]:
        raise ValueError(f"no run at {gone[0]}: give run directories results/<scale>/<run-id>")
    found = grids([run.resolve() for run in runs or find_runs(Path("results"))], endpoints, costs)
    if not found:
        print("strategies: no scale has runs of several samplers that differ in sampler and seed alone")
    for grid in found:
        out = folder / "strategies" / grid.scale
        print(f"{out / 'strategies.md'}:", *write(grid, endpoints, out), sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
