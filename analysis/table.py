"""The score tables: their schema, how a part is written, and how one run's parts become complete rectangular scores.

Nothing but the tables is needed: scores of any project that are written in this schema can be analysed.
"""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from supernet.placement import Placement

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
"""Columns of the score table, one row per (step, placement, item)."""

PLACEMENT_SCHEMA = {"placement": "string", "source": "string", "cost": "float64"}
"""Columns of the placement table; cost in FA-layer equivalents."""

WANTED = "wanted.json"
"""In a run directory: the steps and the names of the items that its tables are to hold, written before the first row is scored."""

ARROW = {"string": pa.dictionary(pa.int32(), pa.string()), "int64": pa.int64(), "float64": pa.float64()}


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
    quality: np.ndarray  # [S, P, I] float64: logp / num_tokens, nats per token, higher is better


def write_part(frame: pd.DataFrame, path: str | Path) -> None:
    """Write one part of a score table (all columns of ``SCHEMA``) as zstd parquet, beside its name and then renamed into place.

    Raises ValueError when columns are missing, of the wrong type or hold nulls (NaN in logp is written, and refused by ``load_scores``).
    """
    path = Path(path)
    table = _conform(pa.Table.from_pandas(frame, preserve_index=False), SCHEMA, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    dictionary = [name for name in SCHEMA if name != "logp"]
    pq.write_table(table, temporary, compression="zstd", use_dictionary=dictionary, use_byte_stream_split=["logp"])
    os.replace(temporary, path)


def score_files(run: str | Path) -> list[Path]:
    """The files that hold a run's scores: the parts of a run directory, or a single parquet or csv file itself. ValueError if none."""
    run = Path(run)
    if run.is_file():
        if run.suffix not in (".parquet", ".csv"):
            raise ValueError(f"{run} is neither a run directory nor a .parquet or .csv file: give one of these")
        return [run]
    if not run.is_dir():
        raise ValueError(f"no run at {run}: give a run directory results/<scale>/<run-id> or a .parquet or .csv file of scores")
    files = sorted(run.glob("scores/step-*/*.parquet"))
    if not files:
        raise ValueError(f"{run} holds no scores (scores/step-*/*.parquet): run the sweep first, or give another run directory")
    return files


def load_scores(run: str | Path) -> Scores:
    """Read, check and pivot the scores of one run: a run directory, or a single parquet or csv file in ``SCHEMA``.

    Placements and items come out sorted by name, so the order of parts and rows is of no consequence. Costs come from
    ``placements.parquet`` in the run directory (or beside the single file); without it they are computed from the placements' letters.
    Raises ValueError, one line that names the first offender and the remedy, for scores that are not complete, unique, finite and
    of one run.
    """
    run = Path(run)
    files = score_files(run)
    table = pa.concat_tables([_read(file, SCHEMA) for file in files]).unify_dictionaries().combine_chunks()
    if table.num_rows == 0:
        raise ValueError(f"the scores of {run} have no rows: run the sweep again")
    code, names = {}, {}
    for column in ("scale", "run", "placement", "item", "task"):
        code[column], names[column] = _codes(table[column])
    for column in ("seed", "step", "tokens", "num_tokens"):
        code[column] = table[column].to_numpy()
    logp = table["logp"].to_numpy()
    del table

    def row(i: int) -> str:
        return f"placement {names['placement'][code['placement'][i]]}, item {names['item'][code['item'][i]]}, step {code['step'][i]}"

    for column in ("scale", "run"):
        if len(names[column]) > 1:
            raise ValueError(
                f"{run} mixes {len(names[column])} {column}s ({', '.join(names[column][:3])}): give each run its own directory"
            )
    if len(seeds := np.unique(code["seed"])) > 1:
        raise ValueError(f"{run} mixes the seeds {', '.join(map(str, seeds[:3]))}: give each run its own directory")
    if not (finite := np.isfinite(logp)).all():
        raise ValueError(f"{run} has {np.sum(~finite)} logp values that are NaN or infinite, the first for {row(np.argmin(finite))}: "
                         "find out why the model gave them, delete those parts and run the sweep again")  # fmt: skip
    if (positive := logp > 1e-6).any():
        raise ValueError(f"{run} has {positive.sum()} positive logp values, the first for {row(np.argmax(positive))}: "
                         "logp is a log-likelihood (higher is better, at most 0), so negate losses")  # fmt: skip
    if (empty := code["num_tokens"] < 1).any():
        raise ValueError(f"{run} has num_tokens below 1, first for {row(np.argmax(empty))}: every item needs at least one target token")

    steps, code["step_index"] = np.unique(code["step"], return_inverse=True)
    shape = S, P, I = len(steps), len(names["placement"]), len(names["item"])
    cell = (code["step_index"] * P + code["placement"]) * I + code["item"]
    seen = np.bincount(cell, minlength=S * P * I)
    if (seen > 1).any():
        first = np.argmax(seen[cell] > 1)
        raise ValueError(f"{run} has {np.sum(seen[seen > 1] - 1)} duplicate rows, the first for {row(first)}: keep each row once")
    if (seen == 0).any():
        s, p, i = np.unravel_index(np.argmin(seen), shape)
        raise ValueError(f"{run} lacks {np.sum(seen == 0)} of {seen.size} scores, the first for placement {names['placement'][p]}, "
                         f"item {names['item'][i]}, step {steps[s]}: {_remedy(run)}")  # fmt: skip
    if run.is_dir():
        _check_wanted(run, {"step": steps.tolist(), "item": names["item"], "placement": names["placement"]})
    if I < 2:
        raise ValueError(f"{run} has one item ({names['item'][0]}): no uncertainty can be told from it, score at least two items")
    if P < 2:
        raise ValueError(f"{run} has one placement ({names['placement'][0]}): there is nothing to rank, score at least two")
    if len({len(p) for p in names["placement"]}) > 1:
        short, long = min(names["placement"], key=len), max(names["placement"], key=len)
        raise ValueError(f"{run} mixes placements of different lengths ({short}, {long}): all need one letter per layer of the same model")

    def constant(column: str, group: str, size: int) -> np.ndarray:
        """The one value that ``column`` has in each group."""
        value = np.empty(size, dtype=code[column].dtype)
        value[code[group]] = code[column]
        if (differs := value[code[group]] != code[column]).any():
            what = "step" if group == "step_index" else group
            raise ValueError(f"{run} gives one {what} several values of {column}, at {row(np.argmax(differs))}: give it one value")
        return value

    tokens = constant("tokens", "step_index", S)
    if (np.diff(tokens) < 0).any():
        raise ValueError(
            f"{run} has fewer tokens at step {steps[np.argmax(np.diff(tokens) < 0) + 1]} than at the step before: correct tokens"
        )
    tasks = [names["task"][t] for t in constant("task", "item", I)]
    constant("num_tokens", "item", I)
    quality = np.empty(S * P * I)
    quality[cell] = logp / code["num_tokens"]
    return Scores(
        scale=names["scale"][0], run=names["run"][0], seed=int(seeds[0]), steps=steps, tokens=tokens, placements=names["placement"],
        cost=_costs(run, names["placement"]), items=names["item"], tasks=tasks, quality=quality.reshape(shape),
    )  # fmt: skip


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
    """The command that completes the scores of a run, as its status.json tells it; a shard's without its share."""
    path = run / "status.json"
    try:
        entries = json.loads(path.read_text()) if run.is_dir() and path.exists() else {}
        commands = [entry.get("command") or "" for part, entry in sorted(entries.items()) if part.partition("-")[0] == "sweep"]
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
    frame = _read(path, PLACEMENT_SCHEMA).to_pandas().astype({"placement": str, "source": str})
    if (twice := frame["placement"].duplicated()).any():
        raise ValueError(f"{path} lists placement {frame['placement'][twice].iloc[0]} twice: keep one row")
    if (bad := ~(np.isfinite(frame["cost"]) & (frame["cost"] > 0))).any():
        raise ValueError(
            f"{path} gives placement {frame['placement'][bad].iloc[0]} the cost {frame['cost'][bad].iloc[0]}: costs must be positive"
        )
    return frame


def _costs(run: Path, placements: list[str]) -> np.ndarray:
    """[P] from placements.parquet where there is one, else from the letters."""
    path = (run if run.is_dir() else run.parent) / "placements.parquet"
    if not path.exists():
        try:
            return np.array([Placement(p).cost() for p in placements])
        except ValueError as error:
            raise ValueError(f"{error}; or write {path} with the columns placement, source, cost") from None
    cost = load_placements(path).set_index("placement")["cost"].reindex(placements)
    if cost.isna().any():
        raise ValueError(f"{path} lacks the scored placement {cost.index[cost.isna()][0]}: run the sweep again")
    return cost.to_numpy()


def _read(path: Path, schema: dict[str, str]) -> pa.Table:
    """One file with exactly the columns and types of ``schema``."""
    try:
        if path.suffix == ".csv":
            types = {name: pa.string() if kind == "string" else ARROW[kind] for name, kind in schema.items()}
            # strings are never null, so an item may be called "NA"
            options = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
            table = pa.csv.read_csv(path, convert_options=options)
        else:
            table = pq.ParquetFile(path).read(columns=list(schema))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: run the sweep first") from None
    except (pa.ArrowException, OSError) as error:
        remedy = "correct the file" if path.suffix == ".csv" else "delete it and run the sweep again"
        raise ValueError(f"{path} cannot be read, it may be truncated ({str(error).splitlines()[0]}): {remedy}") from None
    return _conform(table, schema, str(path))


def _conform(table: pa.Table, schema: dict[str, str], name: str) -> pa.Table:
    """The columns of ``schema``, in its order and types; integers may be narrower, floats too, strings may be dictionaries."""
    if missing := [column for column in schema if column not in table.column_names]:
        raise ValueError(f"{name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: a table needs {', '.join(schema)}")
    columns = []
    for column, kind in schema.items():
        array, found = table[column], table[column].type
        value = found.value_type if pa.types.is_dictionary(found) else found
        text = pa.types.is_string(value) or pa.types.is_large_string(value)
        fits = {
            "string": text,
            "int64": pa.types.is_integer(value),
            "float64": pa.types.is_floating(value) or (pa.types.is_integer(value) and column != "logp"),
        }[kind]
        if not fits:
            raise ValueError(f"{name} has column {column} of type {value}, it must be {kind}: convert it")
        if kind == "float64" and array.null_count:
            array = pc.fill_null(array, float("nan"))  # pandas writes NaN as null; whoever uses the numbers complains about NaN
        if array.null_count:
            first = pc.index(pc.is_null(array), True)
            raise ValueError(f"{name} has {array.null_count} empty values in column {column}, the first in row {first}: fill or drop them")
        if kind == "string" and not pa.types.is_dictionary(found):
            array = pc.dictionary_encode(array)
        columns.append(array.cast(ARROW[kind]))
    return pa.table(columns, names=list(schema))


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Integer codes [rows] into the sorted distinct values that occur."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    codes, names = array.indices.to_numpy(), array.dictionary.to_pylist()
    used = np.unique(codes)
    order = sorted(used, key=lambda code: names[code])
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[codes], [names[code] for code in order]
