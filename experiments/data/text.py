"""Documents of a file or data set, cut into sequences of tokens that are scored behind a prefix. Nothing is sampled."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from experiments.config import DataConfig
from experiments.data.prompts import read_prompts, read_table
from experiments.data.tokens import load_tokenizer
from experiments.data.traces import SHORTEST, shares, side_of
from experiments.runs.streams import stream
from supernet.scoring import Item


def make_items(model_path: str, gguf_file: str, data: DataConfig, split: str) -> list[Item]:
    """The ``train`` or ``items`` sequences: pieces of ``data.length`` tokens, of which the first ``data.prompt`` are not scored.

    A document's last piece may be shorter. A piece's own tokens decide its split by hash, so that one long document has both; pieces come
    in an order drawn from ``data.seed``. Raises ValueError, one line, where the data cannot be read or do not suffice.
    """
    documents, count = read_documents(data), data.count(split)
    shares(["text"], count, data.prompt, data.length, split)
    tokenizer = load_tokenizer(model_path, gguf_file)
    rng, name = stream(data.seed, "text"), Path(data.path).stem
    found: dict[bytes, Item] = {}  # by content: a piece that comes twice is taken once
    for row in rng.permutation(len(documents)).tolist():
        tokens = np.asarray(tokenizer(documents[row], verbose=False)["input_ids"], dtype=np.int64)
        for start in range(0, len(tokens) - data.prompt - SHORTEST + 1, data.length):
            piece = tokens[start : start + data.length]
            digest = hashlib.sha256(piece.tobytes()).digest()
            if side_of(digest) == split:
                found.setdefault(digest, Item(f"{name}-{row:05d}-{start:07d}", name, torch.from_numpy(piece.copy()), data.prompt))
        if len(found) >= 10 * count:
            break
    if len(found) < count:
        raise ValueError(f"{data.path} gives {len(found)} sequences of {data.prompt + SHORTEST} to {data.length} tokens for {split}, "
                         f"{count} are needed: lower data.{split} or data.length, or give more text")  # fmt: skip
    pieces = list(found.values())
    return [pieces[i] for i in rng.permutation(len(pieces))[:count]]


def read_documents(data: DataConfig) -> list[str]:
    """The documents: the whole of a .txt file, else the rows of a column. Raises ValueError as ``read_prompts`` does."""
    path = Path(data.path)
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise ValueError(f"no file {path}: set data.path to a .txt, .jsonl, .parquet or .csv file")
        try:
            text = path.read_text(encoding="utf-8-sig")  # some editors put a mark of byte order in front
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8 ({error}): save it as UTF-8") from None
        return [text] if text.strip() else []
    table = read_table(data)
    column = "text" if data.column == DataConfig.column and data.column not in table and "text" in table else data.column
    return read_prompts(replace(data, column=column, answer="", task=""), table)["prompt"].tolist()
