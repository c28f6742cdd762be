"""``python -m experiments.bench.streaming RUN... [--out FILE]``: what streamed sweeps took, a row each, from their manifests."""

from pathlib import Path

import pandas as pd

from analysis.output.files import replacing
from analysis.output.one_line import Parser
from experiments.runs.records import read_json

COLUMNS = ("parameters", "bytes_on_disk", "placements", "items", "tokens", "seconds", "gb_read", "gb_per_second", "flops",
           "flops_per_second", "peak_rss_gib", "memory_gib")  # fmt: skip
OUT = Path("results/validation/streaming.csv")


def rows(runs: list[Path]) -> pd.DataFrame:
    """One row per run directory: the scale, then COLUMNS. ValueError naming a run whose last sweep was not streamed."""
    found = []
    for run in runs:
        work = read_json(run / "manifest.json").get("sweep", {})
        if "gb_read" not in work:
            raise ValueError(f"{run} has no streamed sweep in its manifest.json: give run directories that were swept with stream=true")
        found.append({"scale": run.resolve().parent.name} | {name: work[name] for name in COLUMNS})
    return pd.DataFrame(found)


def main() -> None:
    parser = Parser(prog="python -m experiments.bench.streaming", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run that was swept with stream=true")
    parser.add_argument("--out", type=Path, default=OUT, help=f"the table (default: {OUT})")
    arguments = parser.parse_args()
    try:
        table = rows(arguments.runs)
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")
    with replacing(arguments.out) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
