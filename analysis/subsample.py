"""Do the intervals from some of a run's placements cover what all of them say?

``python -m analysis.subsample RUN`` takes an exhaustively scored run as the truth, draws sub-samples of its placements, and writes
results/validation/subsamples.csv: how often the interval of τ/ceiling holds the value of the whole run. Items are the same in both, so
intervals that count item noise as well should cover more often than their level, never less.
"""

import argparse
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.stability.endpoints import load_endpoints
from analysis.table import load_scores
from analysis.validation.subsamples import coverage

SIZES = (64, 128, 256)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.subsample", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="an exhaustively scored run directory")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/validation/subsamples.csv"))
    arguments = parser.parse_args()
    try:
        scores = load_scores(arguments.run)
        if max(SIZES) >= len(scores.placements):
            raise ValueError(f"{arguments.run} has {len(scores.placements)} placements: give a run with more than {max(SIZES)}")
        # Regret is not judged here, and its resamples take the time.
        endpoints = replace(load_endpoints("conf/stability.yaml"), resamples=100)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # thin bands are expected and counted
            table = coverage(scores, endpoints, SIZES, arguments.repetitions, np.random.default_rng(arguments.seed))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False, float_format="%.5g")
    print(table.groupby("size").apply(lambda t: np.average(t["coverage"], weights=t["n"])).rename("coverage").to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
