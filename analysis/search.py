"""The optimiser against simpler searches at equal evaluations, where the truth is known: an exhaustively scored run.

``python -m analysis.search results/tiny/<run-id>`` writes tables/search.csv, tables/search_budgets.csv and figures/search into the run.
A search may score a number of placements and answers with candidates and how good it believes each to be. At every budget its best
candidate that fits is taken and judged by the true landscape. All searches are given the cheapest placement and all-FA to start with.
"""

import argparse
import sys
from collections.abc import Sequence

from analysis.cost import coefficients_of
from analysis.input.runs import Run, load
from analysis.output import preset_figures, style
from analysis.output.command import arguments, ends
from analysis.output.write import write_csv
from analysis.stability import load_endpoints
from analysis.validation.known_truth import truth_experiment


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = arguments("search", __doc__.splitlines()[0], "where tables and the figure go (default: beside the scores)", runs="+")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[128, 256], help="placements that a search may score")
    parser.add_argument("--repetitions", type=int, default=20, help="of every search")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    return ends(lambda: write_all(options))


def write_all(options: argparse.Namespace) -> None:
    """Tables and figure of every run."""
    level = load_endpoints(options.endpoints).level
    if options.out and len(options.runs) > 1:
        raise ValueError(f"--out {options.out} is for one RUN, {len(options.runs)} are given: leave it out, or name one")
    for run in [run for path in options.runs for run in load(path, options.costs, options.out)]:
        write(run, options, level)


def write(run: Run, options: argparse.Namespace, level: float) -> None:
    """Tables and figure of one run."""
    scores = run.scores
    coefficients = coefficients_of(scores.placements, scores.cost)
    quality, largest = scores.quality.mean(axis=2), max(options.evaluations)
    tables = truth_experiment(scores.placements, quality, options.evaluations, options.repetitions, options.seed, coefficients, level)
    for name, table in zip(("search", "search_budgets"), tables, strict=True):
        table.insert(0, "run", scores.run)
        table.insert(1, "step", scores.steps[table["checkpoint"]])
        table.insert(2, "tokens", scores.tokens[table.pop("checkpoint")])
        write_csv(table, run.folder / "tables" / f"{name}.csv", digits=6)
    with style.figure(rows=2, height=2.2) as (fig, axes):
        preset_figures.search_by_step(axes[0], tables[0][tables[0]["evaluations"] == largest], level, scores.unit)
        final = tables[1]["step"] == scores.steps[-1]
        preset_figures.search_by_budget(axes[1], tables[1][final & (tables[1]["evaluations"] == largest)], level, scores.unit)
        style.save(fig, run.folder / "figures" / "search")
    print(tables[0][tables[0]["step"] == scores.steps[-1]].to_string(index=False, float_format="%.4g"))


if __name__ == "__main__":
    sys.exit(main())
