"""The roofline: ``python -m analysis.roofline`` prints the six published 15B presets at 32k and 16k beside it, and what does not fit.

``python -m analysis.roofline RUN`` shows how a run's presets differ by the costs they are chosen by: published, and predicted for a device
at several contexts. Writes presets_by_cost.csv and the figure presets_by_cost into --out. All of it is predicted, nothing measured.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.cost import coefficients_of, on_grid
from analysis.input.runs import load
from analysis.optimise.choice import budgets_of, choose, surrogate
from analysis.optimise.proposals import with_proposed
from analysis.output import style
from analysis.output.command import ends
from analysis.output.one_line import Parser
from analysis.output.roofline_figure import layers_by_cost
from analysis.output.write import markdown, write_csv
from analysis.roofline.model_card import misfit, published


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser(prog="python -m analysis.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="a run directory with scores")
    parser.add_argument("--device", default="h100", help="by name, or NAME,GB/s,TFLOP/s,GB (default: h100)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 16384, 32768], help="tokens")
    parser.add_argument("--measured", nargs="*", default=[], metavar="FILE@CONTEXT", help="measured costs to put beside them")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where table and figure of RUN go (default: beside its scores)")
    options = parser.parse_args(argv)
    return ends(lambda: of_run(options) if options.run else of_card(options.device))


def of_card(device: str) -> None:
    """The published presets, as Markdown."""
    table = published(device)
    print(f"Predicted for one {device}, 90% of its memory; card: measured by its authors.\n")
    print(markdown(table))
    print("\nOver the six presets without all-FA:\n")
    print(markdown(misfit(table)))


def of_run(options: argparse.Namespace) -> None:
    """Table and figure of one run."""
    sources = ["published", *(f"roofline:{options.device}@{n}" for n in options.contexts), *(f"measured:{m}" for m in options.measured)]
    tables = [presets_at(options.run, source) for source in sources]
    table, out = pd.concat(tables, ignore_index=True), options.out or options.run
    write_csv(table, out / "tables" / "presets_by_cost.csv" if options.out is None else out / "presets_by_cost.csv", digits=6)
    figure = out / "figures" / "presets_by_cost" if options.out is None else out / "presets_by_cost"
    with style.figure(rows=len(sources), height=1.15, sharex=True) as (fig, axes):
        layers_by_cost(axes, table)
        style.save(fig, figure)
    print(table.drop(columns=["placement"]).to_string(index=False, float_format="%.3g"))
    print(f"{figure}.png")


def presets_at(run: Path, costs: str) -> pd.DataFrame:
    """The presets of the last checkpoint by one kind of cost, at the default budgets: costs, budget, share (of all-FA's cost), placement,
    cost, predicted (nats per token), and the layers of each mixer."""
    (found,) = load(run, costs)
    last = with_proposed(found.beside, found.scores)
    expansion, price = surrogate(last), coefficients_of(found.scores.placements, found.scores.cost)
    chosen = choose(expansion, budgets_of(expansion, price), price)
    full = expansion.layers * max(on_grid(price).values())
    table = chosen[["budget", "placement", "cost", "predicted"]].assign(share=chosen["budget"] / full)
    table.insert(0, "costs", costs)
    return table.assign(**{letter: [p.count(letter) for p in chosen["placement"]] for letter in expansion.letters})


if __name__ == "__main__":
    sys.exit(main())
