"""``python -m experiments.status [PATH]``: which parts of which runs and grids are done, and the commands that finish the rest."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.output.one_line import Parser
from experiments.config import Config, check
from experiments.grids.cells import parts_of
from experiments.overview.state import BAD, Line, Options, lines_of, read_config
from experiments.run import Run, Sweep
from experiments.runs.entry import CONF, fail, one_line
from experiments.runs.records import parsed, read_status

WORDS = ("null", "true", "false", "nan", "inf")  # which Hydra reads as something else
MODULE = {"propose": "sweep", "winners": "sweep"}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 if all is done or running."""
    parser = Parser(prog="python -m experiments.status", description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=Path("results"), help="results folder, scale or run (default: results)")
    parser.add_argument("--rerun", action="store_true", help="print the commands that finish what is not done")
    parser.add_argument("--submit", action="store_true", help="with --rerun: run them, one after another")
    arguments = parser.parse_args(argv)
    if arguments.submit and not arguments.rerun:
        parser.error("--submit runs what --rerun prints: give both")
    try:
        grids = read_grids(arguments.path)
        lines = survey(arguments.path, grids)
        commands = commands_for(arguments.path, grids, lines) if arguments.rerun else []
    except (ValueError, OSError) as error:
        fail(one_line(error))
    if arguments.submit:
        return submit(commands)
    if arguments.rerun:
        print(*(" && ".join(shlex.join(command) for command in chain) for chain in commands), sep="\n")
    else:
        print(table(lines))
    return int(any(line.state in BAD for line in lines))


def read_grids(path: Path) -> list[dict[str, Any]]:
    """The records of the grids that were started into a results folder."""
    grids = []
    for record in sorted(path.glob("grids/*.json")):
        grid = parsed(record)
        cells = grid.get("cells") if isinstance(grid, dict) and {"command", "overrides", "launcher"} <= set(grid) else None
        if not isinstance(cells, list) or not all(isinstance(cell, dict) and {"run", "overrides"} <= set(cell) for cell in cells):
            raise ValueError(f"{record} is no record of a grid: delete it and start the grid again")
        grids.append(grid)
    return grids


def survey(path: Path, grids: list[dict[str, Any]]) -> list[Line]:
    """All parts of all runs under ``path``, and of all cells of its grids, begun or not."""
    if not path.is_dir():
        raise ValueError(f"no folder {path}: give a results folder, a scale or a run in it")
    root = path.resolve()
    here = [folder for folder in (root, *root.glob("*"), *root.glob("*/*")) if folder.is_dir()]
    runs = [folder for folder in here if any((folder / name).exists() for name in ("config.yaml", "status.json"))]
    asked: dict[Path, set[str]] = {folder: set() for folder in runs}
    options: dict[Path, Options] = {}
    sweeps: dict[Path, list[Options]] = {}
    for grid in grids:
        for cell in grid["cells"]:
            folder, config = root / cell["run"], composed(cell["overrides"])
            run, sweep = Run.of(replace(config, stage="sft") if grid["command"] == "sft" else config), Sweep.of(config)
            options[folder] = run, sweep
            if grid["command"] != "teach":  # leaves teachers and data in the cache, nothing in the run
                parts = parts_of(grid["command"], config.stage, sweep)
                asked.setdefault(folder, set()).update(parts)
                sweeps.setdefault(folder, []).extend([(run, sweep)] if any(part.startswith("sweep") for part in parts) else [])
    if not asked:
        raise ValueError(f"no run and no grid in {path}: give a results folder, a scale or a run in it")
    return [line for folder in sorted(asked) for line in lines_of(folder, asked[folder], options.get(folder), sweeps.get(folder, ()))]


def composed(overrides: list[str]) -> Config:
    """The options of a command. Raises ValueError in one line where they are not what this version takes."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return check(compose("config", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(one_line(error)) from None


def table(lines: list[Line]) -> str:
    """The lines in columns, then how many there are of each state."""
    shown = pd.DataFrame({
        "run": [line.run for line in lines],
        "part": [line.part for line in lines],
        "state": [line.state for line in lines],
        "have/want": [f"{line.have}/{line.want}" if line.want or line.have else "-" for line in lines],
        "attempts": [line.attempts or "-" for line in lines],
        "": [line.note for line in lines],
    })  # fmt: skip
    widths = [max(map(len, [column, *map(str, shown[column])])) for column in shown]
    rows = [shown.columns, *shown.itertuples(index=False)]
    text = ["  ".join(str(value).ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = pd.Series([line.state for line in lines]).value_counts()
    finish = "; --rerun prints what finishes them" if any(state in BAD for state in counts.index) else ""
    return "\n".join([*text, "", f"{len(lines)} parts: " + ", ".join(f"{n} {state}" for state, n in counts.items()) + finish])


def commands_for(path: Path, grids: list[dict[str, Any]], lines: list[Line]) -> list[list[list[str]]]:
    """What finishes the parts that are not done: a grid's own command, else for each run its commands in order."""
    unfinished = {(line.folder, line.part) for line in lines if line.state in BAD}
    chains = []
    for grid in grids:
        cells = [
            (path.resolve() / cell["run"], (*cell_parts(grid["command"], cell["overrides"]), grid["command"])) for cell in grid["cells"]
        ]
        here = unfinished & {(folder, part.partition("-")[0]) for folder, parts in cells for part in parts}
        if here:
            chains.append([again(path, grid)])
            unfinished -= here
    for folder in dict.fromkeys(line.folder for line in lines):
        parts = [line.part for line in lines if line.folder == folder and (folder, line.part) in unfinished]
        tasks = [part for part in parts if part.startswith("evaluation/")]
        if own := [part for part in parts if part not in tasks]:
            chains.append(run_commands(folder, own))
        chains += [[evaluation_command(folder, task)] for task in tasks]
    return chains


def evaluation_command(folder: Path, task: str) -> list[str]:
    """The command that finishes an evaluation: what was typed, whole, on the run where it is now; else the task with all defaults."""
    try:
        entries = read_status(folder / task)
    except ValueError:
        entries = {}
    typed = [words for its in entries.values() if (words := overrides_of(its.get("command")))]
    options = typed[-1][1:] if typed else [f"tasks={Path(task).parts[1]}"]
    whole = [o for o in options if not o.startswith(("shard=", "shards="))]
    return ["python", "-m", "experiments.evaluate", os.path.relpath(folder), *whole]


def cell_parts(command: str, overrides: list[str]) -> tuple[str, ...]:
    config = composed(overrides)
    return parts_of(command, config.stage, Sweep.of(config))


def again(path: Path, grid: dict[str, Any]) -> list[str]:
    """The command of a whole grid; its cells that are done are skipped."""
    overrides = placed(grid["overrides"], path)
    if grid["launcher"] != "basic" and not any(o.startswith("hydra/launcher=") for o in overrides):
        overrides.append(f"hydra/launcher={grid['launcher']}")
    return ["python", "-m", f"experiments.{grid['command']}", "-m", *overrides]


def run_commands(folder: Path, parts: list[str]) -> list[list[str]]:
    """The commands that finish a run, by what status.json says was typed, else by its config.yaml."""
    try:
        entries = read_status(folder)
    except ValueError:
        entries = {}
    typed = {part: words for part, its in entries.items() if (words := overrides_of(its.get("command"))) is not None}
    if "chain" in parts and "chain" in typed:
        parts = ["chain"]  # does all the rest
    chosen: dict[str, list[str]] = {}
    for part in parts:
        given = [o for name, o in typed.items() if name.partition("-")[0] == part]
        overrides = (given or list(typed.values()) or [differences(folder)])[-1]
        whole = [o for o in overrides if not o.startswith(("shard=", "shards="))]  # what all shards left over
        chosen.setdefault(MODULE.get(part, part), placed(whole, folder.parents[1]))
    return [["python", "-m", f"experiments.{module}", *overrides] for module, overrides in chosen.items()]


def overrides_of(command: object) -> list[str] | None:
    """What follows ``python -m module`` in a command that was recorded; None where it is no command."""
    try:
        return shlex.split(command)[3:] if command and isinstance(command, str) else None
    except ValueError:  # a quote without its other
        return None


def differences(folder: Path) -> list[str]:
    """The overrides that make a run's options from those of its scale, of which some follow from others."""
    config = read_config(folder)
    its, given = flat(OmegaConf.structured(config)), [f"scale={config.scale}"]
    while True:
        plain, told = flat(OmegaConf.structured(composed(given))), {override.partition("=")[0] for override in given}
        changed = [key for key, value in its.items() if plain.get(key) != value and key not in {"results", "cache", *told}]
        if not changed:
            return given
        given += [f"{key}={literal(its[key])}" for key in changed]


def flat(options: DictConfig) -> dict[str, Any]:
    """Every option by its dotted name."""

    def walk(node: dict, prefix: str) -> dict[str, Any]:
        found = {}
        for key, value in node.items():
            found |= walk(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return found

    return walk(OmegaConf.to_container(options), "")


def literal(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if isinstance(value, str):
        return value if re.fullmatch(r"[A-Za-z_./][\w./-]*", value, re.ASCII) and value.lower() not in WORDS else quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    return json.dumps(value)


def quoted(text: str) -> str:
    """Between quotes, in which Hydra reads everything as it is but a quote and the backslashes before it."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text) + '"'


def placed(overrides: list[str], results: Path) -> list[str]:
    """The same options for the results folder in which the run was found."""
    relative = results.resolve()
    if relative.is_relative_to(Path.cwd()):
        relative = relative.relative_to(Path.cwd())
    kept = [o for o in overrides if not o.startswith("results=")]
    return kept if relative == Path("results") else [*kept, f"results={literal(str(relative))}"]


def submit(commands: list[list[list[str]]]) -> int:
    """Run the commands of each run until one fails; 0 if all went well."""
    codes = []
    for chain in commands:
        for command in chain:
            print("+", shlex.join(command), flush=True)
            codes.append(subprocess.run([sys.executable, *command[1:]]).returncode)
            if codes[-1]:
                break
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
