"""The score tables: their schema, how a part is written, and how one run's rows become complete rectangular scores.

Nothing but the tables is needed: scores of any project that are written in this schema can be analysed.
Shapes, here and in all of analysis/: S steps, P placements, I items.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.cost import placement_costs
from analysis.input.cost_source import by_mixer
from analysis.input.formats import FORMATS, batches, columns_of, conform, format_of
from analysis.output.files import replacing
from supernet.placement import COST as PUBLISHED

SCHEMA = {
    "scale": "string",
    "run": "string",
    "seed": "int64",
    "step": "int64",
    "tokens": "int64",  # training tokens seen at this step
    "placement": "string",
    "item": "string",
    "task": "string",
    "logp": "float64",  # natural log-likelihood, summed over the item's target tokens
    "num_tokens": "int64",  # target tokens of the item
}
"""Columns of the score table, one row per (step, placement, item).

``score``, any number of which more is better (0 or 1 for a wrong or a right answer), may stand in place of ``logp`` and ``num_tokens``.
A further column ``cost`` gives the cost of each placement.
"""

SCORED = {name: kind for name, kind in SCHEMA.items() if name not in ("logp", "num_tokens")} | {"score": "float64"}
"""The same with scores that are no log-likelihoods."""

PLACEMENT_SCHEMA = {"placement": "string", "source": "string", "cost": "float64"}
"""Columns of the placement table; cost in FA-layer equivalents."""

WRITERS = ("sweep", "evaluate")
"""Parts in a run's status.json whose command completes its scores."""

WANTED = "wanted.json"
"""In a run directory: the steps and the names of the items that its tables are to hold, written before the first row is scored."""

HUGE = 1e100
"""Scores beyond this are refused: squares of differences would be beyond what a float64 holds."""


@dataclass(frozen=True)
class Scores:
    """Complete rectangular scores of ONE run. The quality of a placement is the mean over items of ``quality``."""

    scale: str
    run: str
    seed: int
    steps: np.ndarray  # [S] int, increasing; the last is T
    tokens: np.ndarray  # [S] int, training tokens seen
    placements: list[str]  # [P]
    cost: np.ndarray  # [P] FA-layer equivalents
    items: list[str]  # [I]
    tasks: list[str]  # [I] task of each item
    quality: np.ndarray  # [S, P, I] float64: logp / num_tokens, nats per token (or score), higher is better
    unit: str = "nats/token"  # of quality, for texts; "in score" where the table has scores

    @property
    def scored(self) -> bool:
        """Whether quality is a score and no log-likelihood."""
        return self.unit != "nats/token"

    def part(self, steps: slice | None = None, placements: Sequence | np.ndarray | None = None, items: Sequence | None = None) -> "Scores":
        """The scores of some steps, placements (their names, a mask [P] or indices) and items (their names), in the order given."""
        step = slice(None) if steps is None else steps
        p = _places(self.placements, placements)
        i = _places(self.items, items)
        return replace(
            self, steps=self.steps[step], tokens=self.tokens[step], placements=[self.placements[n] for n in p],
            cost=np.asarray(self.cost)[p], items=[self.items[n] for n in i], tasks=[self.tasks[n] for n in i],
            quality=self.quality[step] if placements is None and items is None else self.quality[step][:, p][:, :, i],
        )  # fmt: skip


def _places(names: list[str], chosen: Sequence | np.ndarray | None) -> np.ndarray:
    """Indices of ``chosen``: names, a mask, or indices themselves; all of them for None."""
    if chosen is None:
        return np.arange(len(names))
    if len(chosen) and isinstance(chosen[0], str):
        place = {name: n for n, name in enumerate(names)}
        return np.array([place[name] for name in chosen])
    return np.arange(len(names))[np.asarray(chosen, dtype=None if len(chosen) else int)]


def write_part(frame: pd.DataFrame, path: str | Path) -> None:
    """Write one part of a score table (all columns of ``SCHEMA``, or of ``SCORED`` where it has ``score``) as zstd parquet.

    It is written beside its name and then renamed into place. Raises ValueError when columns are missing, of both kinds, of the wrong type
    or hold nulls (NaN in logp is written, and refused by ``load_scores``).
    """
    path = Path(path)
    schema = _kind(frame.columns, path)
    table = conform(pa.Table.from_pandas(frame, preserve_index=False), schema, str(path))
    numbers = [name for name in schema if schema[name] == "float64"]
    dictionary = [name for name in schema if name not in numbers]
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=dictionary, use_byte_stream_split=numbers)


def score_files(run: str | Path) -> list[Path]:
    """The files that hold a run's scores: the parts of a run directory, or a single file itself (see ``FORMATS``). ValueError if none."""
    run = Path(run)
    if run.is_file():
        if not format_of(run):
            raise ValueError(f"{run} is neither a run directory nor a file of scores: give one of these ({', '.join(FORMATS)})")
        return [run]
    if not run.is_dir():
        raise ValueError(f"no run at {run}: give a run directory results/<scale>/<run-id> or a file of scores ({', '.join(FORMATS)})")
    files = sorted(run.glob("scores/step-*/*.parquet"))
    if not files and (tables := sorted(path for path in run.iterdir() if path.is_file() and format_of(path))):
        raise ValueError(f"{run} is no run directory, which holds scores/step-*/*.parquet: give a file in it, such as {tables[0]}")
    if not files:
        raise ValueError(f"{run} holds no scores (scores/step-*/*.parquet): run the sweep first, or give another run directory")
    return files


def load_scores(run: str | Path, costs: str | Path | None = None) -> Scores:
    """The scores of one run, as ``load_runs`` reads them. ValueError where a file holds several runs."""
    found = _rows_of(Path(run))
    if len(found) > 1:
        names = ", ".join(list(found)[:3])
        raise ValueError(f"{run} mixes {len(found)} runs ({names}): give each its own file; the commands take them all")
    return _scores_of(found, costs, Path(run))[0]


def load_runs(run: str | Path, costs: str | Path | None = None) -> list[Scores]:
    """Read, check and pivot scores: a run directory, or a single file of one or several runs, sorted by name.

    Placements and items come out sorted by name, so the order of parts and rows is of no consequence. Costs come from the file ``costs``
    (see ``load_costs``); else from a column ``cost`` of the scores or from ``placements.parquet`` in the run directory (beside the single
    file); without these they are computed from the placements' letters. Memory: about 30 bytes a row, whatever the format.
    Raises ValueError, one line that names the first offender and the remedy, for scores that are not complete, unique and finite.
    """
    return _scores_of(_rows_of(Path(run)), costs, Path(run))


def _rows_of(run: Path) -> dict[str, "_Rows"]:
    """What the files hold, by run, sorted by name."""
    found: dict[str, _Rows] = {}
    for file in score_files(run):
        schema = _schema_of(file)
        for table in batches(file, schema, "delete it and run the sweep again" if run.is_dir() else "write it again"):
            for name, rows in _by_run(table):
                found.setdefault(name, _Rows(run, f"{run}, run {name}")).add(rows)
    if not found:
        raise ValueError(f"the scores of {run} have no rows: {'run the sweep again' if run.is_dir() else 'add some'}")
    if len(found) == 1:
        found[next(iter(found))].where = str(run)
    elif run.is_dir():
        raise ValueError(f"{run} mixes {len(found)} runs ({', '.join(sorted(found)[:3])}): give each run its own directory")
    return dict(sorted(found.items()))


def _scores_of(found: dict[str, "_Rows"], costs: str | Path | None, run: Path) -> list[Scores]:
    given = load_costs(costs, run) if costs is not None else None
    return [found.pop(name).scores(name, given) for name in list(found)]


def _schema_of(file: Path) -> dict[str, str]:
    """The columns to read of a file, with its costs where it has any."""
    names = columns_of(file)
    return _kind(names, file) | ({"cost": "float64"} if "cost" in names else {})


def _kind(names: Iterable[str], where: Path) -> dict[str, str]:
    """The schema of a table with these columns. ValueError where it has both kinds of quality: nobody can tell which is meant."""
    if {"score", "logp"} <= set(names):
        raise ValueError(f"{where} has both columns score and logp, and quality is one of them: drop score, or drop logp and num_tokens")
    return SCORED if "score" in names else SCHEMA


def _by_run(table: pa.Table) -> Iterator[tuple[str, dict]]:
    """The rows of each run in a batch: strings as codes with their names, numbers as arrays."""
    columns = {name: _column(table[name]) for name in table.column_names}
    codes, names = columns.pop("run")
    present = np.unique(codes)
    for code in present:
        rows = slice(None) if len(present) == 1 else codes == code
        yield (
            names[code],
            {name: (column[0][rows], column[1]) if isinstance(column, tuple) else column[rows] for name, column in columns.items()},
        )


def _column(column: pa.ChunkedArray) -> np.ndarray | tuple[np.ndarray, list[str]]:
    if not pa.types.is_dictionary(column.type):
        return column.to_numpy()
    if column.num_chunks != 1:
        column = column.unify_dictionaries().combine_chunks()
        column = pa.chunked_array([column]) if isinstance(column, pa.Array) else column
    if column.num_chunks == 0:
        return np.empty(0, np.int32), []
    return column.chunk(0).indices.to_numpy(), column.chunk(0).dictionary.to_pylist()


@dataclass
class _Names:
    """Distinct values in the order in which they were met."""

    codes: dict = field(default_factory=dict)

    def of(self, values: np.ndarray, names: list | None = None) -> np.ndarray:
        """Codes [rows] of values, which are themselves codes into ``names`` where that is given."""
        if names is None:
            distinct, values = np.unique(values, return_inverse=True)
            names, used = distinct.tolist(), range(len(distinct))
        else:
            used = np.flatnonzero(np.bincount(values, minlength=len(names)))
        code = np.empty(len(names), np.int32)
        for n in used:
            code[n] = self.codes.setdefault(names[n], len(self.codes))
        return code[values]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def names(self) -> list:
        return list(self.codes)


class _Rows:
    """Rows of one run on their way into a cube [S, P, I]: 18 bytes for each, and what must be the same for all of them."""

    def __init__(self, run: Path, where: str) -> None:
        self.run, self.where = run, where
        self.once = {name: _Names() for name in ("scale", "seed")}
        self.axes = {name: _Names() for name in ("step", "placement", "item")}
        self.tasks = _Names()
        self.fixed = {("tokens", "step"): {}, ("task", "item"): {}, ("num_tokens", "item"): {}, ("cost", "placement"): {}}
        self.parts: list[tuple[np.ndarray, ...]] = []
        self.bad: dict[str, list] = {}  # kind of fault -> how many rows, the first of them in words
        self.costed, self.scored = None, False

    def add(self, rows: dict) -> None:
        """One batch."""
        for name, known in self.once.items():
            known.of(*rows[name]) if isinstance(rows[name], tuple) else known.of(rows[name])
        code = {name: known.of(*rows[name]) if isinstance(rows[name], tuple) else known.of(rows[name]) for name, known in self.axes.items()}
        if self.parts and self.scored != ("score" in rows):
            raise ValueError(f"{self.where} has rows with logp and rows with score: give each kind its own run")
        self.scored = "score" in rows
        value = rows["score"] if self.scored else rows["logp"]

        def note(kind: str, wrong: np.ndarray) -> None:
            if wrong.any():
                first = int(np.argmax(wrong))
                where = {name: known.names[code[name][first]] for name, known in self.axes.items()}
                self.bad.setdefault(kind, [0, f"placement {where['placement']}, item {where['item']}, step {where['step']}"])[0] += (
                    wrong.sum()
                )

        note("score values" if "score" in rows else "logp values", ~np.isfinite(value))
        note("huge", np.abs(value) > HUGE)
        if "score" not in rows:
            note("positive", value > 1e-6)
            note("num_tokens", rows["num_tokens"] < 1)
            value = value / np.maximum(rows["num_tokens"], 1)
        for (name, axis), known in self.fixed.items():
            if name in rows:
                own = self.tasks.of(*rows[name]) if isinstance(rows[name], tuple) else rows[name]
                note(f"{axis} {name}", self._differs(known, code[axis], own, len(self.axes[axis])))
        self.costed = "cost" in rows if self.costed is None else self.costed and "cost" in rows
        self.parts.append((*code.values(), value))

    @staticmethod
    def _differs(known: dict, code: np.ndarray, own: np.ndarray, size: int) -> np.ndarray:
        """[rows] whether a row says something else of its step, placement or item than the first one did; ``known`` [size] learns."""
        old, have = known.get("value", np.empty(0, own.dtype)), known.get("have", np.empty(0, bool))
        value, seen = np.zeros(size, own.dtype), np.zeros(size, bool)
        value[: len(old)], seen[: len(have)] = old, have
        fresh = np.flatnonzero(~seen[code])[::-1]  # of several new rows the first one is written last and stays
        value[code[fresh]], seen[code[fresh]] = own[fresh], True
        known["value"], known["have"] = value, seen
        return (value[code] != own) & ~((own != own) & (value[code] != value[code]))  # NaN is complained about later

    def scores(self, name: str, costs: "Costs | None") -> Scores:
        """The cube, once all rows are there. Raises ValueError for the first fault."""
        where, again = self.where, _remedy(self.run)
        for column, known in (("scale", self.once["scale"]), ("seed", self.once["seed"])):
            if len(known) > 1:
                some = ", ".join(str(one) for one in sorted(known.names)[:3])
                what = f"{len(known)} scales ({some})" if column == "scale" else f"the seeds {some}"
                raise ValueError(
                    f"{where} mixes {what}: give each run its own {'directory' if self.run.is_dir() else 'name in column run'}"
                )
        self._refuse(again)
        order = {axis: np.argsort(np.array(known.names), kind="stable") for axis, known in self.axes.items()}
        steps, placements, items = ([known.names[n] for n in order[axis]] for axis, known in self.axes.items())
        quality = self._cube(steps, placements, items, order, again)
        if self.run.is_dir():
            _check_wanted(self.run, {"step": steps, "item": items, "placement": placements})
        if len(items) < 2:
            raise ValueError(f"{where} has one item ({items[0]}): no uncertainty can be told from it, score at least two items")
        if len(placements) < 2:
            raise ValueError(f"{where} has one placement ({placements[0]}): there is nothing to rank, score at least two")
        if len({len(p) for p in placements}) > 1:
            short, long = min(placements, key=len), max(placements, key=len)
            raise ValueError(
                f"{where} mixes placements of different lengths ({short}, {long}): all need one letter per layer of the same model"
            )
        tokens = self.fixed["tokens", "step"]["value"][order["step"]]
        if tokens[0] < 0:
            raise ValueError(f"{where} has {tokens[0]} tokens at step {steps[0]}: tokens are counted from 0")
        if steps[0] < 0:
            raise ValueError(f"{where} has step {steps[0]}: steps are counted from 0")
        if (back := tokens[1:] <= tokens[:-1]).any():  # a difference may be more than an integer holds
            n = int(np.argmax(back)) + 1
            what = "fewer tokens at step {} than" if tokens[n] < tokens[n - 1] else "as many tokens at step {} as"
            raise ValueError(f"{where} has {what.format(steps[n])} at the step before: correct tokens (the step itself where they are not "
                             "known)")  # fmt: skip
        tasks = [self.tasks.names[n] for n in self.fixed["task", "item"]["value"][order["item"]]]
        column = self.fixed["cost", "placement"]["value"][order["placement"]] if self.costed else None
        return Scores(
            scale=self.once["scale"].names[0], run=name, seed=int(self.once["seed"].names[0]), steps=np.array(steps), tokens=tokens,
            placements=placements, cost=_costs(self.run, placements, column, costs), items=items, tasks=tasks, quality=quality,
            **({"unit": "in score"} if self.scored else {}),
        )  # fmt: skip

    def _refuse(self, again: str) -> None:
        """ValueError for what was noted of the rows."""
        values = "delete those parts and run the sweep again" if self.run.is_dir() else "correct or drop them"
        remedies = {
            "logp values": ("logp values that are NaN or infinite", f"find out why the model gave them, {values}"),
            "score values": ("score values that are NaN or infinite", values),
            "huge": (f"values beyond {HUGE:g}", "give them in another unit, or correct or drop them"),
            "positive": ("positive logp values", "logp is a log-likelihood (higher is better, at most 0), so negate losses; other scores "
                                                 "belong in a column score in place of logp and num_tokens"),
            "num_tokens": ("num_tokens below 1", "every item needs at least one target token"),
        }  # fmt: skip
        for kind, (what, remedy) in remedies.items():
            if kind in self.bad:
                count, first = self.bad[kind]
                number = "" if kind == "num_tokens" else f"{count} "
                raise ValueError(f"{self.where} has {number}{what}, {'' if kind == 'num_tokens' else 'the '}first for {first}: {remedy}")

    def _cube(self, steps: list, placements: list, items: list, order: dict[str, np.ndarray], again: str) -> np.ndarray:
        """Quality [S, P, I]. The rows are let go of while they are written."""
        S, P, I = shape = len(steps), len(placements), len(items)
        rank = {axis: np.argsort(o) for axis, o in order.items()}
        rows = sum(len(part[-1]) for part in self.parts)
        quality, seen = np.empty(S * P * I), np.zeros(S * P * I, np.uint16)
        for n in range(len(self.parts)):
            step, placement, item, value = self.parts[n]
            self.parts[n] = ()
            cell = (rank["step"][step] * P + rank["placement"][placement]) * I + rank["item"][item]
            quality[cell] = value
            np.add.at(seen, cell, 1)
        if rows > (filled := np.count_nonzero(seen)):
            s, p, i = np.unravel_index(np.argmax(seen > 1), shape)
            raise ValueError(f"{self.where} has {rows - filled} duplicate rows, the first for placement {placements[p]}, item {items[i]}, "
                             f"step {steps[s]}: keep each row once")  # fmt: skip
        if filled < seen.size:
            s, p, i = np.unravel_index(np.argmin(seen), shape)
            raise ValueError(f"{self.where} lacks {seen.size - filled} of {seen.size} scores, the first for placement {placements[p]}, "
                             f"item {items[i]}, step {steps[s]}: {again}")  # fmt: skip
        for name, axis in self.fixed:
            if f"{axis} {name}" in self.bad:
                first = self.bad[f"{axis} {name}"][1]
                raise ValueError(f"{self.where} gives one {axis} several values of {name}, at {first}: give it one value")
        return quality.reshape(shape)


def _check_wanted(run: Path, found: dict[str, list]) -> None:
    """Refuse tables that lack all scores of a placement, item or step that the sweep was to score: without a single row of it, they look
    complete. What it was to score is in placements.parquet and WANTED, where the run has these."""
    try:
        wanted = json.loads((run / WANTED).read_text())
        steps, items = list(wanted["steps"]), list(wanted["items"])
    except FileNotFoundError:
        steps, items = [], []
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{run / WANTED} is not what a sweep writes: {_remedy(run)}") from None
    placements = list(load_placements(run)["placement"]) if (run / "placements.parquet").exists() else []
    for what, asked in (("step", steps), ("item", items), ("placement", placements)):
        there = set(found[what])
        if absent := [one for one in asked if one not in there]:
            raise ValueError(f"{run} lacks {len(absent)} of {len(asked)} {what}s altogether, {what} {absent[0]} first: {_remedy(run)}")


def _remedy(run: Path) -> str:
    """What completes the scores of a run: the command, as its status.json tells it, a shard's without its share; rows, for a file."""
    if not run.is_dir():
        return "add the rows that are missing, or leave out that step, placement or item"
    path = run / "status.json"
    try:
        entries = json.loads(path.read_text()) if path.exists() else {}
        commands = [entry.get("command") or "" for part, entry in sorted(entries.items()) if part.partition("-")[0] in WRITERS]
    except (ValueError, AttributeError):
        commands = []
    again = "run the sweep again, it continues what is missing"
    if not commands or not commands[0]:
        return again
    words = [word for word in shlex.split(commands[0]) if not word.startswith(("shard=", "shards="))]
    return f"{again}: {shlex.join(words)}"


def load_placements(path: str | Path) -> pd.DataFrame:
    """The placement table of a run directory (or the file itself): placement, source, cost.

    Raises ValueError when it is not one row per placement with a positive cost.
    """
    path = Path(path)
    path = path / "placements.parquet" if path.is_dir() else path
    frame = _frame(path, PLACEMENT_SCHEMA, "delete it and run the sweep again")
    _check_costs(path, frame, "placement")
    return frame


@dataclass(frozen=True)
class Costs:
    """Costs that were given: of placements, or of one layer of each mixer."""

    path: Path | str  # where they come from
    by: str
    values: dict[str, float]

    def of(self, placements: Sequence[str]) -> np.ndarray:
        """[P]; ValueError for a placement or a mixer that the file lacks."""
        if self.by == "mixer":
            if missing := sorted(set("".join(placements)) - set(self.values)):
                raise ValueError(f"{self.path} lacks mixer {missing[0]}: add its cost")
            return placement_costs(placements, self.values)
        if missing := [p for p in placements if p not in self.values]:
            raise ValueError(f"{self.path} lacks the scored placement {missing[0]}: add its cost")
        return np.array([self.values[p] for p in placements])


def load_costs(path: str | Path, run: Path | None = None) -> Costs:
    """``published``, ``measured:FILE@CONTEXT`` or ``roofline:DEVICE@CONTEXT`` (for the model of ``run``); or a table with the columns mixer
    (one letter) and cost, or placement and cost. Raises ValueError for anything else."""
    if (named := by_mixer(str(path), run)) is not None:
        return Costs(str(path), "mixer", named)
    path = Path(path)
    if not path.is_file() or not format_of(path):
        raise ValueError(f"no table of costs at {path}: give a file with the columns mixer, cost or placement, cost ({', '.join(FORMATS)})")
    by = "mixer" if "mixer" in columns_of(path) else "placement"
    frame = _frame(path, {by: "string", "cost": "float64"}, "correct it")
    _check_costs(path, frame, by)
    if by == "mixer" and (long := frame["mixer"][frame["mixer"].str.len() != 1]).size:
        raise ValueError(f"{path} has mixer {long.iloc[0]!r}: a mixer is one letter")
    return Costs(path, by, dict(zip(frame[by], frame["cost"].tolist(), strict=True)))


def _frame(path: Path, schema: dict[str, str], again: str) -> pd.DataFrame:
    frames = [table.to_pandas() for table in batches(path, schema, again)]
    return pd.concat(frames, ignore_index=True).astype({name: str for name, kind in schema.items() if kind == "string"})


def _check_costs(path: Path, frame: pd.DataFrame, by: str) -> None:
    if (twice := frame[by].duplicated()).any():
        raise ValueError(f"{path} lists {by} {frame[by][twice].iloc[0]} twice: keep one row")
    if (bad := ~(np.isfinite(frame["cost"]) & (frame["cost"] > 0))).any():
        raise ValueError(f"{path} gives {by} {frame[by][bad].iloc[0]} the cost {frame['cost'][bad].iloc[0]}: costs must be positive")


def _costs(run: Path, placements: list[str], column: np.ndarray | None, given: Costs | None) -> np.ndarray:
    """[P] from a file of costs, the column of the scores, placements.parquet where there is one, else from the letters."""
    if given is not None:
        return given.of(placements)
    path = (run if run.is_dir() else run.parent) / "placements.parquet"
    table = None
    if path.exists():
        table = load_placements(path).set_index("placement")["cost"].reindex(placements)
        if column is None and table.isna().any():
            raise ValueError(f"{path} lacks the scored placement {table.index[table.isna()][0]}: "
                             f"{'run the sweep again' if run.is_dir() else 'add it, or give costs with --costs'}")  # fmt: skip
    if column is not None:
        _check_costs(run, pd.DataFrame({"placement": placements, "cost": column}), "placement")
        if table is not None and (differs := (table.notna() & ~np.isclose(table, column, rtol=1e-6)).to_numpy()).any():
            n = int(np.argmax(differs))
            raise ValueError(f"{run} gives placement {placements[n]} the cost {column[n]:g}, {path} {table.iloc[n]:g}: remove one of them")
        return column
    if table is not None:
        return table.to_numpy()
    try:
        return placement_costs(placements)
    except ValueError:
        letter = next(c for p in placements for c in p if c not in PUBLISHED)
        example, said = next(p for p in placements if letter in p), letter if letter.strip() else repr(letter)
        raise ValueError(
            f"placement {example!r} has unknown mixer {said}, whose cost is not known: give a table with the columns mixer, cost as "
            f"--costs, a column cost beside the scores, or write {path} with the columns placement, source, cost"
        ) from None
