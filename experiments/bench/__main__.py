"""``python -m experiments.bench [NAME ...] [--quick]``: one table per benchmark; speeds are ratios measured in the same run."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas as pd

from analysis.output.one_line import Parser

BENCHMARKS = {
    "sweep": "engine",
    "statistics": "statistics",
    "report": "whole_report",
    "optimiser": "optimiser",
    "kernels": "token_mixing",
    "losses": "losses",
    "generation": "generation",
    "decode": "decode",
    "training": "distillation",
    "memory": "memory",
    "speedups": "speedups",
    "serving": "serving",
}
"""Modules, imported when they run: the first that has numba compile settles for the process what it compiles for (``numba_loops``)."""


def module(name: str) -> ModuleType:
    """The one that has ``run``."""
    return import_module(f"experiments.bench.{BENCHMARKS[name]}")


def main() -> None:
    parser = Parser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"any of {', '.join(BENCHMARKS)} (default: all but serving, which has an environment of its own), or table",
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument("--run", type=Path, help="for serving: a run or a checkpoint folder with presets, instead of a random model")
    arguments = parser.parse_args()
    if arguments.names == ["table"]:  # docs/benchmarks.md
        return module("speedups").write_table(arguments.quick)
    if arguments.run and arguments.names != ["serving"]:
        parser.error("--run is for serving: python -m experiments.bench serving --run RUN")
    for name in arguments.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name}: choose from {', '.join(BENCHMARKS)}")
    pd.set_option("display.width", 200, "display.max_columns", None, "display.max_colwidth", 60)
    for name in arguments.names or [name for name in BENCHMARKS if name != "serving"]:
        more = {"where": arguments.run} if name == "serving" else {}
        print(f"\n{name}\n{module(name).run(quick=arguments.quick, **more).to_string(index=False)}")


if __name__ == "__main__":
    main()
