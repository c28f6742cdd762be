"""Accuracy of a run's placements: ``python -m analysis.evaluation RUN [RUN ...] [--costs measured:FILE@CONTEXT]``.

Needs what ``python -m experiments.evaluate RUN`` writes into RUN/evaluation. Writes beside each task there evaluation.md, tables/ (proxy,
retention, accuracy) and figures/: is the likelihood ranking the accuracy ranking, what choosing by likelihood costs, what presets keep.
How stable accuracy rankings are over training is asked of ``python -m analysis.report RUN/evaluation/TASK``.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from analysis.input.evaluations import load_evaluations
from analysis.output.command import arguments, ends
from analysis.output.evaluation_report import write_evaluation
from analysis.stability import load_endpoints
from analysis.table import load_scores


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    out = "one RUN: where a folder for each task goes (default: RUN/evaluation)"
    options = arguments("evaluation", __doc__.splitlines()[0], out, runs="+").parse_args(argv)
    return max(ends(lambda run=run: one(run, options), str(run)) for run in options.runs)


def one(run: Path, options: argparse.Namespace) -> None:
    """The tasks of one run."""
    if options.out and len(options.runs) > 1:
        raise ValueError(f"--out {options.out} is for one run: leave it out, each run's results go beside its tables")
    endpoints = load_endpoints(options.endpoints)
    traces = load_scores(run, options.costs) if any(run.glob("scores/step-*/*.parquet")) else None
    for evaluation in load_evaluations(run, options.costs):
        folder = options.out / evaluation.name if options.out else evaluation.folder
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # means of no items in bands that say nothing
            text = write_evaluation(run, traces, evaluation, endpoints, folder)
        print(f"{folder / 'evaluation.md'}:\n  " + text.split("accuracy ranking?\n\n")[1].split("\n")[0])


if __name__ == "__main__":
    sys.exit(main())
