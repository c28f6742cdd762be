"""Sequences on disk: one parquet file of items (name, task, tokens, prompt length), hashed, written once."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis.output.files import replacing
from experiments.runs.streams import stream
from supernet.scoring import Item


def write_items(items: list[Item], path: Path) -> None:
    """Write items atomically. Training sequences and evaluation items share the format."""
    frame = pd.DataFrame(
        {
            "item": [i.name for i in items],
            "task": [i.task for i in items],
            "tokens": [np.asarray(i.tokens, dtype=np.int32) for i in items],
            "prompt": np.array([i.prompt for i in items], dtype=np.int32),
        }
    )
    with replacing(path) as temporary:
        frame.to_parquet(temporary, compression="zstd", index=False)


def read_items(path: Path, count: int | None = None) -> list[Item]:
    """The first ``count`` items of a file. Raises ValueError when it is missing, unreadable or holds too few."""
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError:
        raise ValueError(f"no items at {path}: make them with python -m experiments.teach") from None
    except Exception as error:
        raise ValueError(f"{path} is not a readable table of items ({error}): delete it and run python -m experiments.teach") from None
    if count is not None and count > len(frame):
        raise ValueError(f"{path} holds {len(frame)} items, {count} were asked: lower the number or raise data.items and teach again")
    frame = frame.iloc[:count]
    return [
        Item(name, task, torch.from_numpy(tokens.astype(np.int64)), int(prompt))
        for name, task, tokens, prompt in zip(frame["item"], frame["task"], frame["tokens"], frame["prompt"], strict=True)
    ]


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def collate(items: list[Item]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens [B, T] padded with zeros at the right, mask [B, T] true on real tokens, answers [B, T] true on those after the prompt)."""
    tokens = torch.nn.utils.rnn.pad_sequence([i.tokens for i in items], batch_first=True)
    lengths, prompts = torch.tensor([len(i.tokens) for i in items]), torch.tensor([i.prompt for i in items])
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    return tokens, mask, mask & (torch.arange(tokens.shape[1]) >= prompts[:, None])


def batch_of_step(count: int, batch: int, seed: int, step: int) -> list[int]:
    """Indices of the sequences that step ``step`` trains on: a function of its arguments alone, epoch after shuffled epoch."""
    positions = range(step * batch, (step + 1) * batch)
    orders = {epoch: stream(seed, "order", epoch).permutation(count) for epoch in {p // count for p in positions}}
    return [int(orders[p // count][p % count]) for p in positions]
