"""Prompts from a file or a Hugging Face data set, with the teacher's own sampled answers or with given ones, as sequences of tokens."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from experiments.config import DataConfig
from experiments.data.tokens import load_tokenizer
from experiments.data.traces import answered, in_turn, prompts, shares
from experiments.runs.streams import stream
from supernet.scoring import Item
from supernet.teacher import hugging_face_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

READERS = {
    ".parquet": lambda path: pd.read_parquet(path, dtype_backend="numpy_nullable"),  # whole numbers stay so beside missing ones
    ".jsonl": lambda path: read_lines(path),
    ".csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False),
}


def read_lines(path: Path) -> pd.DataFrame:
    """JSON objects, one a line. Raises ValueError at a line that is none."""
    rows = []
    with path.open(encoding="utf-8-sig") as file:  # some editors put a mark of byte order in front
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict):
                    raise ValueError(f'line {number} is no object such as {{"prompt": "..."}}')
    return pd.DataFrame(rows, dtype=object)


def make_items(
    model_path: str,
    gguf_file: str,
    data: DataConfig,
    split: str,
    batch: int,
    progress: bool,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
) -> list[Item]:
    """The ``train`` or ``items`` sequences: a chat prompt of at most ``data.prompt`` tokens and an answer, ``data.length`` at most in all.

    Tasks take turns, as equally often as can be; a task's prompts come in an order drawn from ``data.seed``. A prompt's text decides its
    split by hash, so the two never share one. Answers are the teacher's traces, or, with ``data.answer``, those of that column and the end
    token. Raises ValueError, one line, where the data cannot be read or do not suffice.
    """
    frame = read_prompts(data)
    tasks = list(data.tasks) if data.task and data.tasks else sorted(frame["task"].unique())
    wanted = shares(tasks, data.count(split), data.prompt, data.length, split)
    order = stream(data.seed, "prompts").permutation(len(frame))
    texts = {task: [(i, frame["prompt"][i]) for i in order[(frame["task"] == task).to_numpy()[order]].tolist()] for task in tasks}
    if absent := [task for task in tasks if not texts[task]]:
        known = ", ".join(sorted(frame["task"].unique())[:10])
        raise ValueError(f"data.tasks has {absent[0]!r}, which no prompt of {data.path} is of: choose from {known}")
    tokenizer = load_tokenizer(model_path, gguf_file)
    streams = {task: prompts(task, texts[task], data.prompt, split, tokenizer, wanted[task]) for task in tasks}
    if data.answer:
        taken = {
            task: [with_answer(task, *next(streams[task]), frame["answer"], tokenizer, data.length) for _ in range(wanted[task])]
            for task in tasks
        }
        return in_turn(taken)
    model = hugging_face_model(model_path, gguf_file, dtype, data.length).to(device)
    return answered(model, tokenizer.eos_token_id, streams, wanted, data.length, data.seed, split, batch, progress)


def with_answer(task: str, row: int, prompt: list[int], answers: pd.Series, tokenizer: "PreTrainedTokenizerBase", length: int) -> Item:
    """A prompt with the answer of its row and the end token, cut at ``length`` tokens."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    answer = tokenizer(answers[row], add_special_tokens=False)["input_ids"] + end
    return Item(f"{task}-{row:05d}", task, torch.tensor((prompt + answer)[:length]), len(prompt))


def read_prompts(data: DataConfig, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Columns prompt, task and, with ``data.answer``, answer; rows without a prompt or an answer are left out. Raises ValueError.

    ``table``: what ``read_table`` gives, where it was read before.
    """
    table = read_table(data) if table is None else table
    columns = {"prompt": data.column, "task": data.task, "answer": data.answer}
    for option, column in columns.items():
        if column and column not in table:
            name = "column" if option == "prompt" else option
            raise ValueError(f"data.{name} is {column!r}, no column of {data.path}: choose from {', '.join(map(str, table.columns))}")
    frame = pd.DataFrame({option: table[column] for option, column in columns.items() if column})
    kept = frame.notna().all(axis=1)
    frame = frame.apply(whole_numbers)[kept]
    for option in frame:
        if (foreign := frame[option].map(lambda value: not isinstance(value, str | int | float))).any():
            kind = type(frame[option][foreign].iloc[0]).__name__
            raise ValueError(f"column {columns[option]!r} of {data.path} holds a {kind} where text is needed: choose another column")
    try:
        frame = frame.astype(str)
    except UnicodeEncodeError as error:
        raise ValueError(f"{data.path} holds text that is no Unicode ({error.reason}): correct it") from None
    frame = frame[(frame.drop(columns="task", errors="ignore").apply(lambda column: column.str.strip()) != "").all(axis=1)]
    if few := len(table) - len(frame):
        lacking = " or no ".join(name for name in columns.values() if name)
        print(f"{data.path}: {few} of {len(table)} rows have no {lacking} and are left out")
    return (frame if data.task else frame.assign(task=Path(data.path).stem)).reset_index(drop=True)


def whole_numbers(column: pd.Series) -> pd.Series:
    """A column of floats that are whole numbers beside missing values: pandas made it so, and 18 was meant, not 18.0."""
    if not pd.api.types.is_float_dtype(column) or not column.isna().any() or not (column.dropna() % 1 == 0).all():
        return column
    return column.astype("Int64")


def read_table(data: DataConfig) -> pd.DataFrame:
    """The file or data set as it is. Raises ValueError, one line, where it is missing, unreadable or of an unknown type."""
    path = Path(data.path)
    if path.suffix.lower() in READERS:
        if not path.is_file():
            raise ValueError(f"no file {path}: set data.path to a {', '.join(READERS)} file or the name of a Hugging Face data set")
        try:
            return READERS[path.suffix.lower()](path)
        except Exception as error:  # pyarrow, pandas and json each have their own
            raise ValueError(f"{path} is not a readable {path.suffix} file ({first_line(error)}): make it anew") from None
    if path.exists():
        raise ValueError(f"data.path is {data.path!r}, of a type that is not known: give a file of type {', '.join(READERS)}")
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"{data.path} is no local file, and Hugging Face data sets need a package: pip install datasets") from None
    try:
        return load_dataset(data.path, data.subset or None, split=data.part).to_pandas()
    except Exception as error:  # of datasets, the hub and several HTTP libraries
        raise ValueError(f"data.path={data.path!r} is no local file, and the hub's data set of that name can't be loaded "
                         f"({first_line(error)}): check data.path, data.subset and data.part, or give a file") from None  # fmt: skip


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
