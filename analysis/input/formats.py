"""Tables as they come: parquet, csv, tsv or json lines, the last three also gzipped; read as record batches with the types of a schema."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

TEXT = {".csv": ",", ".tsv": "\t", ".jsonl": ""}
"""Text formats, and what separates their columns."""

FORMATS = (".parquet", *TEXT, *(f"{suffix}.gz" for suffix in TEXT))

ARROW = {"string": pa.dictionary(pa.int32(), pa.string()), "int64": pa.int64(), "float64": pa.float64()}

GZIP, UTF16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")
"""How such files begin."""

ROWS = 1 << 20
"""Rows of a batch."""


def format_of(path: Path) -> str:
    """The suffix of ``FORMATS`` that a file's name ends with; "" for any other."""
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """The name without that suffix."""
    return path.name[: len(path.name) - len(format_of(path))]


def columns_of(path: Path) -> list[str]:
    """The names of a file's columns; none where it cannot be read."""
    try:
        if format_of(path) == ".parquet":
            return pq.read_schema(path).names
        with pa.input_stream(str(path), compression="detect") as stream:
            start = stream.read(1 << 16)
        first = start[: start.find(b"\n") + 1] or start
        if format_of(path).startswith(".jsonl"):
            return pa.json.read_json(pa.BufferReader(first)).column_names
        options = pa.csv.ParseOptions(delimiter=TEXT[format_of(path).removesuffix(".gz")])
        return pa.csv.read_csv(pa.BufferReader(first), parse_options=options).column_names
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError):
        return []


def batches(path: Path, schema: Mapping[str, str], again: str) -> Iterator[pa.Table]:
    """The columns of ``schema`` (name -> string, int64, float64) of a file, in its order and types, at most ``ROWS`` rows at a time.

    ``again``: what to do about a file that cannot be read. Raises ValueError, one line, for such a file, a column that is missing or of
    another type, and for empty values.
    """
    row, names = 0, columns_of(path)
    if twice := sorted({name for name in names if names.count(name) > 1} & set(schema)):
        raise ValueError(f"{path} has the column {twice[0]} twice: keep one")
    try:
        for table in _tables(path, schema):
            complain_of_missing(names or table.column_names, schema, str(path))
            yield conform(table, schema, str(path), row)
            row += table.num_rows
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: {again}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8: save it as UTF-8") from None
    except (pa.ArrowException, OSError) as error:
        remedy = again if format_of(path) == ".parquet" else "correct the file"
        start = beginning(path)
        if path.suffix.lower() != ".gz" and start == GZIP:
            raise ValueError(f"{path} is gzipped: call it {path.name}.gz") from None
        if start in UTF16:
            raise ValueError(f"{path} is no text in UTF-8: save it as UTF-8") from None
        if len(names) == 1:  # of another separator
            complain_of_missing(names, schema, str(path))
        raise ValueError(f"{path} cannot be read, it may be truncated ({str(error).splitlines()[0]}): {remedy}") from None


def _tables(path: Path, schema: Mapping[str, str]) -> Iterator[pa.Table]:
    kind = format_of(path).removesuffix(".gz")
    if kind in ("", ".parquet"):
        found = pq.read_schema(path)
        there = [name for name in schema if name in found.names]
        coded = [name for name in there if pa.types.is_string(found.field(name).type) or pa.types.is_large_string(found.field(name).type)]
        with pq.ParquetFile(path, read_dictionary=coded) as file:
            empty = True
            for batch in file.iter_batches(ROWS, columns=there):
                empty = False
                yield pa.Table.from_batches([batch])
            if empty:
                yield file.schema_arrow.empty_table().select(there)
        return
    if kind == ".jsonl":
        strings = pa.schema([(name, pa.string()) for name, its in schema.items() if its == "string"])  # else a date would be no name
        try:
            table = pa.json.read_json(path, parse_options=pa.json.ParseOptions(explicit_schema=strings))
        except pa.ArrowInvalid:  # names that are whole numbers
            table = pa.json.read_json(path)
        present = columns_of(path)  # the explicit schema adds what is not there
        table = table.select([name for name in table.column_names if name in present])
        for n, name in enumerate(table.column_names):  # 0 and 0.0 are one number in JSON
            if schema.get(name) == "float64" and pa.types.is_integer(table[name].type):
                table = table.set_column(n, name, table[name].cast(pa.float64()))
    else:
        types = {name: ARROW[its] for name, its in schema.items()}
        # strings are never null, so an item may be called "NA"
        options = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
        table = pa.csv.read_csv(path, convert_options=options, parse_options=pa.csv.ParseOptions(delimiter=TEXT[kind]))
    for start in range(0, max(table.num_rows, 1), ROWS):
        yield table.slice(start, ROWS)


def complain_of_missing(names: list[str], schema: Mapping[str, str], where: str) -> None:
    """Raises ValueError where ``names`` lacks columns of the schema, with those that are there."""
    if missing := [column for column in schema if column not in names]:
        also = " (or score in place of logp and num_tokens)" if "logp" in missing else ""
        there = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
        if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
            there += ": separate columns by commas in a .csv, by tabs in a .tsv"
        what = f"column{'s' * (len(missing) > 1)} {', '.join(missing)}"
        raise ValueError(f"{where} lacks the {what}: a table needs {', '.join(schema)}{also}; it has {there}")


def beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def conform(table: pa.Table, schema: Mapping[str, str], name: str, row: int = 0) -> pa.Table:
    """The columns of ``schema``, in its order and types. Integers may be narrower, floats too, strings may be dictionaries; names of items,
    tasks, runs and scales may be whole numbers, and whole numbers may be stored as floats. ``row``: number of the first row."""
    complain_of_missing(table.column_names, schema, name)
    columns = []
    for column, kind in schema.items():
        array, found = table[column], table[column].type
        value = found.value_type if pa.types.is_dictionary(found) else found
        text = pa.types.is_string(value) or pa.types.is_large_string(value)
        number = pa.types.is_integer(value) or pa.types.is_floating(value)
        fits = {
            "string": text or (pa.types.is_integer(value) and column != "placement"),
            "int64": number,
            "float64": pa.types.is_floating(value)
            or pa.types.is_null(value)
            or (column != "logp" and (number or pa.types.is_boolean(value))),
        }[kind]
        if not fits and (table.num_rows or not pa.types.is_null(value)):
            raise ValueError(f"{name} has column {column} of type {value}, it must be {kind}: convert it")
        if pa.types.is_boolean(value) and kind == "float64":  # right or wrong
            array, value, number = array.cast(pa.int8()), pa.int8(), True
        if kind == "float64":  # pandas writes NaN as null; whoever uses the numbers complains about NaN
            array = pc.fill_null(array.cast(pa.float64()), float("nan"))
        if array.null_count:
            first = row + pc.index(pc.is_null(array), True).as_py()
            raise ValueError(f"{name} has {array.null_count} empty values in column {column}, the first in row {first}: fill or drop them")
        if kind == "string" and not pa.types.is_dictionary(found):
            array = pc.dictionary_encode(array.cast(pa.string()))
        try:
            columns.append(array.cast(ARROW[kind]))
        except pa.ArrowInvalid:
            raise ValueError(f"{name} has column {column} of type {value}, it must be {kind}: convert it") from None
    return pa.table(columns, names=list(schema))
