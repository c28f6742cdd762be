"""``python -m experiments.bench [NAME ...] [--quick]``: one table per benchmark; speeds are ratios measured in the same run."""

import argparse

import pandas as pd

from experiments.bench import (
    decode,
    distillation,
    engine,
    generation,
    losses,
    memory,
    optimiser,
    serving,
    speedups,
    statistics,
    token_mixing,
    whole_report,
)

BENCHMARKS = {
    "sweep": engine.run,
    "statistics": statistics.run,
    "report": whole_report.run,
    "optimiser": optimiser.run,
    "kernels": token_mixing.run,
    "losses": losses.run,
    "generation": generation.run,
    "decode": decode.run,
    "training": distillation.run,
    "memory": memory.run,
    "speedups": speedups.run,
    "serving": serving.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"any of {', '.join(BENCHMARKS)} (default: all but serving, which has an environment of its own), or table",
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    arguments = parser.parse_args()
    if arguments.names == ["table"]:  # docs/benchmarks.md
        return speedups.write_table()
    for name in arguments.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name}: choose from {', '.join(BENCHMARKS)}")
    pd.set_option("display.width", 200, "display.max_columns", None, "display.max_colwidth", 60)
    for name in arguments.names or [name for name in BENCHMARKS if name != "serving"]:
        print(f"\n{name}\n{BENCHMARKS[name](quick=arguments.quick).to_string(index=False)}")


if __name__ == "__main__":
    main()
