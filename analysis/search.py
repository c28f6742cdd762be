"""The optimiser against simpler searches at equal evaluations, where the truth is known: an exhaustively scored run.

``python -m analysis.search results/tiny/<run-id>`` writes tables/search.csv, tables/search_budgets.csv and figures/search into the run.
A search may score a number of placements and answers with candidates and how good it believes each to be; at every budget its best
candidate that fits is taken and judged by the true landscape. All searches are given the cheapest placement and all-FA to start with.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.output import preset_figures, style
from analysis.table import load_scores
from analysis.validation.known_truth import truth_experiment


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m analysis.search", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory with exhaustive scores")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        scores = load_scores(options.run)
        tables = truth_experiment(scores.placements, scores.quality.mean(axis=2), options.evaluations, options.repetitions, options.seed)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    folder = options.run if options.run.is_dir() else options.run.parent
    (folder / "tables").mkdir(exist_ok=True)
    for name, table in zip(("search", "search_budgets"), tables, strict=True):
        table.insert(0, "run", scores.run)
        table.insert(1, "step", scores.steps[table["checkpoint"]])
        table.insert(2, "tokens", scores.tokens[table.pop("checkpoint")])
        temporary = folder / "tables" / f".{name}.csv.tmp"
        table.to_csv(temporary, index=False, float_format="%.6g")
        temporary.replace(folder / "tables" / f"{name}.csv")
    with style.figure(rows=2, height=2.2) as (fig, axes):
        largest = tables[0]["evaluations"] == max(options.evaluations)
        preset_figures.search_by_step(axes[0], tables[0][largest])
        final = tables[1]["step"] == scores.steps[-1]
        preset_figures.search_by_budget(axes[1], tables[1][final & (tables[1]["evaluations"] == max(options.evaluations))])
        style.save(fig, folder / "figures" / "search")
    print(tables[0][tables[0]["step"] == scores.steps[-1]].to_string(index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
