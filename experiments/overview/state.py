"""What of a run is done, told by status.json, locks, checkpoints and the rows of its score tables; never by a scheduler or a clock."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.table import WANTED, load_placements
from experiments.config import Config, check
from experiments.run import Run, Sweep
from experiments.runs.records import is_held, read_json, read_status
from experiments.runs.steps import whole_checkpoints
from experiments.sweeping.placements import select
from experiments.sweeping.tables import read_keys
from experiments.training.strategy import checkpoint_steps

ORDER = ("chain", "teach", "distill", "sft", "sweep", "propose", "winners", "report")
BAD = ("failed", "stopped", "incomplete", "missing")
REMEDY = {"distill": "run python -m experiments.distill again", "sft": "run python -m experiments.sft again"}


KEYS = pa.schema([("placement", pa.string()), ("item", pa.string())])
"""Parts have dictionaries of their own; as strings their keys can be counted together."""

Options = tuple[Run, Sweep]
"""What a command was asked for."""


@dataclass(frozen=True)
class Line:
    """One part of one run, all shards of a sweep together."""

    folder: Path  # of the run
    part: str
    state: str  # done, running, stopped (by a signal or a kill), failed, incomplete or missing
    have: int  # rows of a sweep, checkpoints of a training, else 0
    want: int
    attempts: int
    note: str = ""  # the first line of the error

    @property
    def run(self) -> str:
        """<scale>/<run-id>"""
        return f"{self.folder.parent.name}/{self.folder.name}"


def lines_of(folder: Path, asked: set[str], options: Options | None = None, sweeps: Sequence[Options] = ()) -> list[Line]:
    """A line for each part that a run has begun or that is ``asked`` for.

    ``options`` stand in for a config.yaml that is not there yet; ``sweeps`` are those of sweeps that a grid asks for.
    """
    try:
        if (folder / "config.yaml").exists():
            config = read_config(folder)
            options = Run.of(config), Sweep.of(config)
        entries = read_status(folder)
    except ValueError as error:
        entries, broken = {}, str(error)
    else:
        broken = ""
    chain = state_of(folder, "chain", entries["chain"])[0] if "chain" in entries else "done"
    run = options[0] if options else None
    if chain in BAD and run and not run.supernet:  # it has not begun all that it was to do
        sweep_parts = {"proposed": {"propose", "winners"}, "winners": {"winners"}}.get(options[1].placements, {"sweep"})
        asked = {*asked, run.stage, *sweep_parts, "report"}
    sweep = sweep_line(folder, entries, asked, options, sweeps)
    parts = {part for part in {*entries, *asked} if not part.startswith("sweep")}
    if run and not run.supernet and (folder / "config.yaml").exists():
        parts.add(run.stage)
    found = [part_line(folder, part, entries, run, sweep) for part in parts]
    others = [line for line in [*found, *([sweep] if sweep else [])] if line.part != "chain"]
    if chain == "done" or (chain in BAD and others and all(line.state == "done" for line in others)):
        found = [line for line in found if line.part != "chain"]  # its parts say it
    if broken and not (sweep and sweep.state == "done"):
        found.append(Line(folder, "status.json", "failed", 0, 0, 0, broken))
    found = sorted([*found, *([sweep] if sweep else [])], key=lambda line: ORDER.index(line.part) if line.part in ORDER else len(ORDER))
    return [*found, *evaluation_lines(folder)]


def read_config(folder: Path) -> Config:
    """The options a run was made with. ValueError where config.yaml cannot be read or asks for what this version does not know."""
    path = folder / "config.yaml"
    try:
        return check(OmegaConf.load(path))
    except (ValueError, OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}: correct it, or delete it and train again") from None


def part_line(folder: Path, part: str, entries: dict[str, Any], run: Run | None, sweep: Line | None) -> Line:
    """One part that is no sweep. A training whose checkpoints are all there is done, whatever became of the process that made the last."""
    state, note = state_of(folder, part, entries.get(part))
    have = want = 0
    if run and part == run.stage:
        steps = steps_of(run)
        want = len(steps)
        have = len(whole_checkpoints(folder).keys() & set(steps))
        scored = sweep is not None and sweep.state == "done"
        if have == want or (scored and state != "running"):
            state, note = "done", ""  # checkpoints are not needed any more where everything is scored
        elif state == "done":
            state, note = "incomplete", f"checkpoints are gone: {REMEDY[part]}"
    return Line(folder, part, state, have, want, entries.get(part, {}).get("attempt", 0), note)


def state_of(folder: Path, part: str, entry: dict[str, Any] | None) -> tuple[str, str]:
    """(state, first line of the error) by what status.json and the part's lock say."""
    if entry is None:
        return "missing", ""
    state, error = entry.get("state"), entry.get("error") or ""
    if state == "running" and not is_held(folder, part):
        return "stopped", "killed: its process is gone and left no word"
    if state == "failed" and error.startswith("stopped by"):
        return "stopped", error
    return (state, error) if state in ("running", "done", "failed") else ("failed", f"status.json says {state!r} of {part}")


def sweep_line(
    folder: Path, entries: dict[str, Any], asked: set[str], options: Options | None, sweeps: Sequence[Options] = ()
) -> Line | None:
    """The sweep, whole or in shards."""
    if not shares({*entries, *asked}, "sweep") and not any(folder.glob("scores/step-*/*.parquet")):
        return None

    def want() -> int:
        return max([wanted_rows(folder, options), *(asked_rows(its, len(select(its[1], its[0].model))) for its in sweeps)])

    return tables_line(Line(folder, "sweep", "missing", 0, 0, 0), folder, entries, shares({*entries, *asked}, "sweep"), want)


def evaluation_lines(folder: Path) -> list[Line]:
    """Every task that the run was evaluated on, and its teacher, whose tables lie in a folder inside that of the task."""
    lines = []
    for path in sorted(folder.glob("evaluation/**/status.json")):
        line, below = Line(folder, str(path.parent.relative_to(folder)), "missing", 0, 0, 0), path.parent
        try:
            entries = read_status(below)
        except ValueError as error:
            lines.append(replace(line, state="failed", note=str(error)))
        else:
            lines.append(tables_line(line, below, entries, shares(entries, "evaluate"), partial(wanted_rows, below, None)))
    return lines


def shares(parts: Iterable[str], whole: str) -> list[str]:
    """Those that are a part as a whole or a shard of it."""
    return sorted({part for part in parts if part == whole or part.startswith(f"{whole}-")})


def tables_line(line: Line, tables: Path, entries: dict[str, Any], parts: list[str], want: Callable[[], int]) -> Line:
    """``line`` with what is known of the score tables in a folder, which ``parts`` fill. Rows decide: where all are there, and each once,
    an older failure is history."""
    line = replace(line, attempts=sum(entries.get(part, {}).get("attempt", 0) for part in parts))
    try:
        have, doubled = rows(tables)
        line = replace(line, have=have, want=want())
    except ValueError as error:
        return replace(line, state="failed", note=str(error))
    if doubled:
        command = parts[0].partition("-")[0] if parts else "sweep"
        note = f"{doubled} rows are there twice: delete one of the parts that hold them, or scores/ and {command} again"
        return replace(line, state="failed", note=note)
    if 0 < line.want <= have:
        return replace(line, state="done")
    states = {part: state_of(tables, part, entries.get(part)) for part in parts}
    for state in ("failed", "stopped", "running"):
        if those := [part for part in parts if states[part][0] == state]:
            also = f" (and {len(those) - 1} more)" if len(those) > 1 else ""
            note = states[those[0]][1]
            return replace(line, state=state, note=f"{those[0]}{also}: {note}" if note and len(parts) > 1 else note)
    return replace(line, state="incomplete" if have else "missing")


def rows(folder: Path) -> tuple[int, int]:
    """(distinct rows of a run's score tables, rows that are there more than once). ValueError names a file that cannot be read."""
    distinct = doubled = 0
    for step in sorted((folder / "scores").glob("step-*")):
        tables = [read_keys(path).cast(KEYS) for path in sorted(step.glob("*.parquet"))]
        if tables:
            table = pa.concat_tables(tables)
            once = table.group_by(["placement", "item"], use_threads=False).aggregate([]).num_rows
            distinct, doubled = distinct + once, doubled + table.num_rows - once
    return distinct, doubled


def wanted_rows(folder: Path, options: Options | None) -> int:
    """Placements x items x checkpoints: what the sweeps of a run asked for, or, before the first, what its options do. 0 if unknown."""
    listed = folder / "placements.parquet"
    asked = read_json(folder / WANTED)
    if listed.exists() and asked:
        return len(load_placements(listed)) * len(asked["items"]) * len(asked["steps"])
    if options is None or options[1].placements == "winners":
        return 0  # the score tables decide which are winners, and on which items they are scored
    run, sweep = options
    return asked_rows(options, len(load_placements(listed) if listed.exists() else select(sweep, run.model)))


def asked_rows(options: Options, placements: int) -> int:
    run, sweep = options
    return placements * (sweep.items or run.data.items) * len(sweep.steps or steps_of(run))


def steps_of(run: Run) -> list[int]:
    """The checkpoints of a run; a given supernet has one."""
    return [0] if run.supernet else checkpoint_steps(run.training)
