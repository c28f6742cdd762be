"""The cells of a grid: which run and part each of them writes, the grid's record, and what became of a cell."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from experiments.config import check, digest
from experiments.run import Run, Sweep
from experiments.runs.records import read_json, write_json

# What a sweep may be asked for in several cells of one run: they follow one another, as each extends the same tables.
ASKS = ("placements", "num_placements", "placement_seed", "items", "steps")


@dataclass(frozen=True)
class Cell:
    """One cell of a grid: a command with its overrides."""

    number: int
    overrides: tuple[str, ...]
    name: str  # the overrides that tell it from the other cells
    folder: Path  # what it writes into: its run, or teach's data
    parts: tuple[str, ...]  # of status.json


@dataclass(frozen=True)
class Grid:
    """A command, its cells, and the folder of their logs; the record is beside that folder."""

    command: str
    cells: list[Cell]
    folder: Path
    turns: list[list[Cell]]  # the cells of a turn write the same tables, so they follow one another

    def log(self, cell: Cell) -> Path:
        first = next(turn[0] for turn in self.turns if cell in turn)
        return self.folder / f"{first.number}.log"

    def argv(self, cell: Cell) -> list[str]:
        return [sys.executable, "-m", f"experiments.{self.command}", *cell.overrides]


def make_grid(command: str, typed: list[str], launcher: str, overrides: Sequence[Sequence[str]], configs: Sequence[DictConfig]) -> Grid:
    """Check every cell and write the record, before any starts. ``typed`` are the overrides of the whole grid, as on the command line.

    The record is ``<results>/grids/<digest>.json``: command, overrides, launcher, and of each cell its overrides and ``<scale>/<run>``.
    Raises ValueError for options that no command takes, and for cells that would do the same thing twice.
    """
    checked = [check(config) for config in configs]
    if command == "sft":  # whose stage is its own, whatever the options say
        checked = [replace(config, stage="sft") for config in checked]
    cells, made = [], [(Run.of(config), Sweep.of(config)) for config in checked]
    for number, (its, (run, sweep)) in enumerate(zip(overrides, made, strict=True)):
        name = " ".join(o for o in its if not all(o in others for others in overrides)) or command
        folder = run.data_dir if command == "teach" else run.folder
        cells.append(Cell(number, tuple(its), name, folder, parts_of(command, run.stage, sweep)))
    what = [o for o in typed if not o.startswith("hydra.")]  # the same grid on another partition is the same grid
    folder = (Path(checked[0].results) / "grids" / digest(command, sorted(what))).resolve()
    grid = Grid(command, cells, folder, turns_of(command, cells, [sweep for _, sweep in made]))
    rows = [{"overrides": list(cell.overrides), "run": f"{run.scale}/{run.id}"} for cell, (run, _) in zip(cells, made, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder.with_suffix(".json"), {"command": command, "overrides": typed, "launcher": launcher, "cells": rows})
    return grid


def parts_of(command: str, stage: str, sweep: Sweep) -> tuple[str, ...]:
    """The parts of status.json that a command writes; the command's own name where it keeps none."""
    swept = {"proposed": ("propose", "winners"), "winners": ("winners",)}.get(sweep.placements, (sweep.part,))
    return {"sweep": swept, "chain": (stage, *swept, "report")}.get(command, (command,))


def turns_of(command: str, cells: list[Cell], sweeps: list[Sweep]) -> list[list[Cell]]:
    """The cells grouped by what they write. Raises ValueError where two of a group do the same thing."""
    groups: dict[object, list[Cell]] = {}
    asked: dict[object, Cell] = {}
    for cell, sweep in zip(cells, sweeps, strict=True):
        asks = repr([getattr(sweep, name) for name in ASKS]) if command == "sweep" else ""
        for part in cell.parts:
            first = asked.setdefault((cell.folder, part, asks), cell)
            if first is not cell:
                both = f"cells {first.number} ({first.name}) and {cell.number} ({cell.name}) both write {part} of {cell.folder}"
                raise ValueError(f"{both}: leave one out, or vary what tells runs and parts apart, such as seed or shard")
        groups.setdefault((cell.folder, cell.parts), []).append(cell)
    return list(groups.values())


def entries(cell: Cell) -> dict[str, dict]:
    """What status.json says of each part of a cell now. Raises ValueError where it cannot be read."""
    content = read_json(cell.folder / "status.json")
    return {part: content.get(part, {}) for part in cell.parts}


def problem(cell: Cell, code: int | None, before: dict[str, dict], log: Path) -> str:
    """Why a cell is not done, in one line, or '' if it is.

    Done is exit code 0 and no part that its process began and did not finish; ``before`` is what ``entries`` said when the cell began (a
    command that finds its work done leaves status.json alone). ``code`` is None for a process that left none.
    """
    try:
        now = entries(cell)
    except ValueError as error:
        return line(cell, str(error), log)
    open_parts = [part for part, its in now.items() if its != before.get(part, {}) and its.get("state") != "done"]
    if code == 0 and not open_parts:
        return ""
    if code is None:
        return line(cell, "vanished from the queue without an exit code: killed?", log)
    errors = [its["error"] for part, its in now.items() if part in open_parts and its.get("error")]
    return line(cell, f"{ended(code)}: {(errors or [last_words(log)])[0]}", log)


def ended(code: int) -> str:
    """How a process ended, by its exit code; a shell says 128 + the signal's number, Python's subprocess minus the number."""
    number = -code if code < 0 else code - 128
    return f"exit code {code}" if number <= 0 else f"exit code {128 + number} ({signal.Signals(number).name})"


def line(cell: Cell, what: str, log: Path) -> str:
    return f"cell {cell.number} ({cell.name}): {what}: see {log}"


def last_words(log: Path) -> str:
    """The error line of a log, or its last one: what the user would have seen."""
    lines = [words.strip() for words in log.read_text(errors="replace").splitlines() if words.strip()] if log.exists() else []
    errors = [
        words[words.index("error: ") :] for words in lines if "error: " in words and not words.startswith("slurmstepd")
    ]  # after a bar
    return [*(lines[-1:] or ["no output"]), *errors][-1]
