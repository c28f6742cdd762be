"""Do the estimates and intervals hold in worlds whose truth is known?

``python -m analysis.validate [--repetitions 500] [--only 100x48] [--out results/validation]`` (``repetitions=500`` is understood, too)

Writes, one row per world and step (or verdict), with n, seed and level:
- intervals.csv: truth, mean estimate, bias, spread and coverage of ratio and tau, pointwise and for all steps at once, and of the
  percentile bootstrap over items for comparison;
- verdicts.csv: how often a band is declared settled, not settled, undecided, and how often the interval of its time covers the truth;
- regret.csv: regret of choosing at t against its expectation, and coverage of its interval;
- margins.csv, settled.csv: coverage of resolution, order and linear at the step before T in the worlds of ``landscapes``, at several
  numbers of placements and items; rates of the verdicts there (the worlds in which earlier endpoints failed);
- bands.csv: two cost bands in one run, by the whole stability table: coverage per band, of regret share too; rates of the verdicts;
- seeds.csv: means over training seeds that share their items;
- optimum.csv: does the interval of a chosen optimum hold its true quality, as predicted and corrected for having been chosen;
- study.csv: the slopes of a planted study of scales (the fit alone, and from score tables);
- slope.csv: what a cost slope does to τ over the whole range, within bands, and within bands at equal cost.
Worlds that a file already holds at this n or more, seed and level are kept: a run that was cut short continues with the same command.
Each draws from the seed alone, so that the order in which they are made is of no consequence; ``--only`` makes those whose name (the
column ``world``) contains a text. Delete a file whose estimator was changed.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.output.command import ends
from analysis.output.one_line import Parser
from analysis.output.write import write_csv
from analysis.stability.endpoints import ENDPOINTS as DECLARED
from analysis.stability.endpoints import load_endpoints
from analysis.validation.chosen_optima import PLANTED, coverage_of_optima
from analysis.validation.coverage import ENDPOINTS, SEED, bootstrap, intervals, regrets, repeat, slopes, truths, verdicts
from analysis.validation.landscape_coverage import margin_coverage
from analysis.validation.landscapes import LANDSCAPES
from analysis.validation.planted_study import DONE, planted_scores, planted_tables
from analysis.validation.whole_tables import seeds_coverage, two_band_coverage
from analysis.validation.worlds import WORLDS, World

SIZES = ((30, 24), (100, 48), (300, 96), (1000, 48))
"""Placements and items of the landscapes."""

DECIDING = ("settled", "at the threshold", "clustered", "checkpoint noise")
"""The landscapes that are worth a thousand placements."""

PAIRS = (("settled", "drifting"), ("at the threshold", "clustered"))
"""Landscapes of the cheaper and the dearer band of one run; both have two steps."""


def main(repetitions: int = 500, out: str | Path = "results/validation", only: str = "") -> None:
    """Write the tables, world by world: those whose name contains ``only``."""
    if repetitions < 2:
        raise ValueError(f"repetitions is {repetitions}: give 2 or more")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    mark = {"n": repetitions, "seed": SEED, "level": ENDPOINTS.level}
    for world in WORLDS.values():
        if not _due(out / "verdicts.csv", world.name, mark, only):
            continue
        runs = repeat(world, repetitions, ENDPOINTS)
        truth = truths(world, runs)
        frame = intervals(world, runs, truth)
        if world.name == "planted":
            frame = pd.concat([frame, bootstrap(world, repetitions)], ignore_index=True)
            _append(out / "regret.csv", regrets(world, runs), world, mark)
        _append(out / "intervals.csv", frame, world, mark)
        _append(out / "verdicts.csv", verdicts(world, runs, truth, ENDPOINTS.threshold), world, mark)
        print(
            f"{world.name}: coverage of ratio " + " ".join(f"{c:.3f}" for c in frame.query("statistic == 'ratio'")["coverage"]), flush=True
        )
    margins(out, repetitions, only)
    bands_and_seeds(out, repetitions, only)
    optima(out, repetitions, only)
    study(out, repetitions, only)
    fewer = {**mark, "n": max(2, repetitions // 10)}
    if _due(out / "slope.csv", "slopes", fewer, only):
        _append(out / "slope.csv", slopes(fewer["n"]), World("slopes", placements=240), fewer)


def study(out: Path, repetitions: int, only: str = "") -> None:
    """study.csv: the tables four times as often as the rest, score tables a fifth as often, which take seconds each."""
    as_run = f"as run, {sum(teachers for *_, teachers in DONE)} runs"
    planned = {
        "teachers alike": lambda n: planted_tables(0.0, 0.05, n, SEED, ENDPOINTS.level),
        "teachers differ": lambda n: planted_tables(0.1, 0.03, n, SEED, ENDPOINTS.level),
        f"{as_run}, teachers alike": lambda n: planted_tables(0.0, 0.05, n, SEED, ENDPOINTS.level, DONE),
        f"{as_run}, teachers differ": lambda n: planted_tables(0.1, 0.03, n, SEED, ENDPOINTS.level, DONE),
        "from scores": lambda n: planted_scores(n, SEED, level=ENDPOINTS.level),
    }
    for name, simulate in planned.items():
        n = max(2, repetitions // 5) if name == "from scores" else 4 * repetitions
        if _due(out / "study.csv", name, {"n": n, "seed": SEED, "level": ENDPOINTS.level}, only):
            _append(out / "study.csv", simulate(n), World(name), {"n": n, "seed": SEED, "level": ENDPOINTS.level})


def bands_and_seeds(out: Path, repetitions: int, only: str = "") -> None:
    """bands.csv and seeds.csv."""
    endpoints = replace(load_endpoints(DECLARED), resamples=100, halves=1)  # neither moves what is judged here
    mark = {"n": repetitions, "seed": SEED, "level": endpoints.level}
    for placements, items in SIZES[:2]:
        for pair in PAIRS:
            size = World(f"{' + '.join(pair)} {placements}x{items}", placements=placements, items=items)
            if _due(out / "bands.csv", size.name, mark, only):
                _append(out / "bands.csv", two_band_coverage(pair, placements, items, repetitions, endpoints, SEED), size, mark)
                print(f"{size.name}: written", flush=True)
    for seeds in (3, 5):
        size = World(f"{seeds} seeds", placements=64, items=48)
        if _due(out / "seeds.csv", size.name, mark, only):
            _append(out / "seeds.csv", seeds_coverage(seeds, 48, repetitions, endpoints, SEED), size, mark)
            print(f"{size.name}: written", flush=True)


def optima(out: Path, repetitions: int, only: str = "") -> None:
    """optimum.csv with a fifth of the repetitions: each chooses under five budgets, and for each fits two dozen worlds."""
    n = max(2, repetitions // 5)
    mark = {"n": n, "seed": SEED, "level": ENDPOINTS.level}
    for layers, placements, items in ((12, 64, 24), (20, 96, 24)):
        for world in PLANTED.values():
            size = World(f"{world.name}, {layers} layers", placements=placements, items=items)
            if _due(out / "optimum.csv", size.name, mark, only):
                found = coverage_of_optima(world, layers, placements, items, n, SEED, ENDPOINTS.level, worlds=24)
                _append(out / "optimum.csv", found, size, mark)
                print(f"{size.name}: coverage " + " ".join(f"{c:.3f}" for c in found["coverage"]), flush=True)


def margins(out: Path, repetitions: int, only: str = "") -> None:
    """margins.csv and settled.csv, world by world."""
    endpoints = replace(load_endpoints(DECLARED), resamples=100)
    for placements, items in SIZES:
        for world in LANDSCAPES.values():
            if placements == 1000 and world.name not in DECIDING:
                continue
            size = World(f"{world.name} {placements}x{items}", placements=placements, items=items)
            mark = {"n": repetitions, "seed": SEED, "level": endpoints.level}
            if not _due(out / "settled.csv", size.name, mark, only):
                continue
            coverage, rates = margin_coverage(world, placements, items, repetitions, endpoints, SEED)
            _append(out / "margins.csv", coverage, size, mark)
            _append(out / "settled.csv", rates, size, mark)
            print(f"{size.name}: coverage " + " ".join(f"{c:.3f}" for c in coverage["coverage"]), flush=True)


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["world", "n", "seed", "level"])


def _due(path: Path, name: str, mark: dict, only: str) -> bool:
    return only in name and not _has(path, name, mark)


def _has(path: Path, name: str, mark: dict) -> bool:
    rows = _read(path)
    rows = rows[rows["world"] == name]
    return len(rows) > 0 and all(((rows[key] >= value) if key == "n" else rows[key] == value).all() for key, value in mark.items())


def _append(path: Path, frame: pd.DataFrame, world: World, mark: dict) -> None:
    """Replace the world's rows."""
    frame = frame.assign(**mark, placements=world.placements, items=world.items)
    frame.insert(0, "world", world.name)
    rows = _read(path)
    frame = pd.concat([rows[rows["world"] != world.name], frame], ignore_index=True) if len(rows) else frame
    write_csv(frame, path, digits=5)


def run(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser(prog="python -m analysis.validate", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=500, help="of every world, 2 or more")
    parser.add_argument("--only", default="", metavar="TEXT", help="worlds whose name contains this, such as 100x48")
    parser.add_argument("--out", type=Path, default=Path("results/validation"), metavar="FOLDER", help="where the tables go")
    words = sys.argv[1:] if argv is None else argv
    options = parser.parse_args([f"--{word}" if word.startswith(("repetitions=", "out=", "only=")) else word for word in words])
    return ends(lambda: main(options.repetitions, options.out, options.only))


if __name__ == "__main__":
    sys.exit(run())
