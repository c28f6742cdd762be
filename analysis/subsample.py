"""Do the intervals from some of a run's placements cover what all of them say?

``python -m analysis.subsample RUN`` takes an exhaustively scored run as the truth, draws sub-samples of its placements, and writes
results/validation/subsamples.csv: how often the interval of τ/ceiling holds the value of the whole run. Items are the same in both, so
intervals that count item noise as well should cover more often than their level, never less.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.input.runs import load
from analysis.output.command import arguments, ends
from analysis.output.write import write_csv
from analysis.stability.endpoints import load_endpoints
from analysis.validation.subsamples import coverage

SIZES = (64, 128, 256)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = arguments("subsample", __doc__.splitlines()[0], "where subsamples.csv goes (default: results/validation)", runs="+")
    parser.add_argument("--repetitions", type=int, default=100, help="sub-samples of each size")
    parser.add_argument("--seed", type=int, default=0)
    return ends(lambda: write(parser.parse_args(argv)))


def write(options: argparse.Namespace) -> None:
    """One table of all runs named."""
    # regret is not judged here, and its resamples take the time
    endpoints, tables = replace(load_endpoints(options.endpoints), resamples=100), []
    for scores in (run.scores for path in options.runs for run in load(path, options.costs)):
        if max(SIZES) >= len(scores.placements):
            raise ValueError(f"{scores.run} has {len(scores.placements)} placements: give a run with more than {max(SIZES)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # thin bands are expected and counted
            tables.append(coverage(scores, endpoints, SIZES, options.repetitions, np.random.default_rng(options.seed)))
    table = pd.concat(tables, ignore_index=True)
    write_csv(table, (options.out or Path("results/validation")) / "subsamples.csv", digits=5)
    print(table.groupby("size").apply(lambda t: np.average(t["coverage"], weights=t["n"])).rename("coverage").to_string())


if __name__ == "__main__":
    sys.exit(main())
