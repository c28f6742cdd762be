"""How often is a truly settled ranking said to be settled?  ``python -m analysis.power [--placements 100 --items 96] [--noise 0.1]``

Without --placements and --items: the committed curve (results/validation/power.csv). With them: simulated anew, for a band of so many
placements, scored on so many items whose scores scatter by --noise nats/token about what a placement scores on average.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.output.command import ends
from analysis.output.one_line import Parser
from analysis.output.write import write_csv
from analysis.stability.endpoints import ENDPOINTS, load_endpoints
from analysis.validation.landscape_coverage import margin_coverage
from analysis.validation.landscapes import LANDSCAPES

COMMITTED = Path(__file__).parents[1] / "results" / "validation" / "power.csv"
SEED = 20260101
PLACEMENTS, ITEMS, NOISES = (30, 100, 300, 1000), (24, 48, 96, 200), (0.05, 0.1, 0.2)


def power(placements: int, items: int, noise: float, repetitions: int = 200) -> pd.DataFrame:
    """One row: rates of the verdicts of the endpoint resolution in a settled world with a spread of 0.1 nats/token between placements."""
    endpoints = replace(load_endpoints(ENDPOINTS), resamples=100)
    world = replace(LANDSCAPES["settled"], noise=noise)
    rates = margin_coverage(world, placements, items, repetitions, endpoints, SEED)[1]
    row = rates[["declared_settled", "declared_undecided", "declared_not_settled"]]
    return row.assign(placements=placements, items=items, noise=noise, n=repetitions, seed=SEED)


def recompute(path: Path, repetitions: int) -> pd.DataFrame:
    """The whole curve into ``path``; rows that it holds at this number of repetitions or more are kept, so a run that was cut short
    continues."""
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["placements", "items", "noise", "n"])
    for placements in PLACEMENTS:
        for items in ITEMS:
            for noise in NOISES:
                same = (table["placements"] == placements) & (table["items"] == items) & (table["noise"] == noise)
                if (table[same]["n"] >= repetitions).any():
                    continue
                new = power(placements, items, noise, repetitions)
                table = pd.concat([table[~same], new], ignore_index=True) if len(table) else new
                write_csv(table, path, digits=5)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser(prog="python -m analysis.power", description=__doc__.splitlines()[0])
    parser.add_argument("--placements", type=int, help="placements in a cost band, 8 or more")
    parser.add_argument("--items", type=int, help="items, 4 or more")
    parser.add_argument("--noise", type=float, default=0.1, help="of one item, nats/token, where the spread between placements is 0.1")
    parser.add_argument("--repetitions", type=int, default=200, help="simulated runs, 2 or more")
    parser.add_argument("--recompute", action="store_true", help=f"make {COMMITTED.name} again")

    def show() -> None:
        options = parser.parse_args(argv)
        for name, least in (("placements", 8), ("items", 4), ("repetitions", 2)):
            if (value := getattr(options, name)) is not None and value < least:
                raise ValueError(f"--{name} is {value}: give {least} or more")
        if not 0 < options.noise < math.inf:
            raise ValueError(f"--noise is {options.noise}: give nats/token above 0")
        if (options.placements is None) != (options.items is None):
            raise ValueError("give both --placements and --items, or neither for the committed curve")
        if options.placements is not None:
            row = power(options.placements, options.items, options.noise, options.repetitions).iloc[0]
            said, open_ = row["declared_settled"], row["declared_undecided"]
            band = f"a settled band of {options.placements} placements and {options.items} items"
            print(f"{band} is said to be settled in {said:.0%} of {options.repetitions} simulated runs (undecided {open_:.0%})")
            return
        if not options.recompute and not COMMITTED.is_file():
            raise ValueError(f"{COMMITTED} is not there: make it with --recompute, or give --placements and --items")
        table = recompute(COMMITTED, options.repetitions) if options.recompute else pd.read_csv(COMMITTED)
        print("Share of truly settled bands that are said to be settled, by the noise of one item (nats/token), placements and items;")
        print("the spread between placements is 0.1 nats/token.")
        print(
            table.pivot_table(index=["noise", "placements"], columns="items", values="declared_settled").to_string(
                float_format="{:.2f}".format
            )
        )

    return ends(show)


if __name__ == "__main__":
    sys.exit(main())
