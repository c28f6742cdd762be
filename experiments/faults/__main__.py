"""``python -m experiments.faults``: the fault table. Real commands are killed, starved and lied to; the same command must make it good."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.output.one_line import Parser
from experiments.faults.drill import Forked, warm_up
from experiments.faults.inflict import (
    corrupted_status,
    full_disk,
    kill_chain,
    on_small_disk,
    read_only,
    signal_chain,
    truncated_checkpoint,
    truncated_part,
    truncated_state,
    two_at_once,
)
from experiments.faults.judge import Row, undisturbed
from experiments.runs.records import write_text


def everything(home: Path, kills: int, seed: int) -> Iterator[list[Row]]:
    """All faults, one after another, each in a results folder of its own under ``home``."""
    warm_up()
    base = undisturbed(home, Forked)
    rng = np.random.default_rng(seed)
    for fault in (truncated_checkpoint, truncated_part, corrupted_status):
        yield tried(fault, base, base.copy(fault.__name__))
    for number in (signal.SIGTERM, signal.SIGUSR2):
        yield tried(signal_chain, base, home / number.name, number, rng.random())
    for fault in (two_at_once, truncated_state):
        yield tried(fault, base, home / fault.__name__)
    for fault in (full_disk, read_only):
        yield tried(on_small_disk, base, fault)
    killed = chains = 0
    while killed < kills and chains < kills:  # a kill that comes too late is made up for by another chain
        chains += 1
        rows = tried(kill_chain, base, home / f"killed-{chains}", rng)
        killed += len(rows)
        yield rows


def tried(fault: Callable[..., list[Row]], *arguments: object) -> list[Row]:
    """The rows of a fault; one that says so where even the repeated command did not end well."""
    try:
        return fault(*arguments)
    except (RuntimeError, TimeoutError, OSError, subprocess.SubprocessError) as error:
        return [Row(fault.__name__.replace("_", " "), "", "", "not recovered from", 0, 0, " ".join(str(error).split())[-300:], "")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0 if no row was lost or doubled and all ended as without the fault."""
    parser = Parser(prog="python -m experiments.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=24, help="kill -9 at so many random moments at least (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("results/validation/faults.csv"), help="default: results/validation/faults.csv")
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as home:
        for found in everything(Path(home), given.kills, given.seed):
            rows += found
            print(*(" | ".join([row.fault, row.command, row.moment, row.outcome, row.line]) for row in found), sep="\n", flush=True)
            write_text(given.out, pd.DataFrame(rows).to_csv(index=False))
    bad = [row for row in rows if row.rows_lost or row.rows_doubled or "differs" in row.outcome or row.outcome.startswith("not ")]
    print(f"{given.out}: {len(rows)} faults, {len(bad)} of them did harm or were not run")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
