"""Questions: prompts with an answer of known tokens, or with one that a verifier judges; the table that keeps those of a task."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.output.files import replacing
from supernet.scoring import Item


@dataclass(frozen=True)
class Question:
    """One item of an evaluation."""

    name: str
    task: str
    prompt: Tensor  # [T] int64
    answer: Tensor  # [A] int64: greedy decoding is right where it says these; empty: a verifier judges the text
    chance: float = 0.0  # accuracy of guessing among the possible answers
    length: int = 0  # retrieval: tokens that were asked for; 0: no such thing
    depth: float = np.nan  # retrieval: where the needle is, 0 to 1

    @property
    def item(self) -> Item:
        """For the sweep engine: prompt, then answer."""
        return Item(self.name, self.task, torch.cat([self.prompt, self.answer]), len(self.prompt))


def write_questions(questions: list[Question], path: Path) -> None:
    """Parquet: item, task, prompt, answer (token ids), chance, length, depth."""
    frame = pd.DataFrame({
        "item": [q.name for q in questions], "task": [q.task for q in questions],
        "prompt": [np.asarray(q.prompt, np.int32) for q in questions], "answer": [np.asarray(q.answer, np.int32) for q in questions],
        "chance": [float(q.chance) for q in questions], "length": [int(q.length) for q in questions],
        "depth": [float(q.depth) for q in questions],
    })  # fmt: skip
    with replacing(path) as temporary:
        frame.to_parquet(temporary, compression="zstd", index=False)


def read_questions(path: Path) -> list[Question]:
    """All of them, in order; [] where there is no file. Raises ValueError for a file that is not such a table."""
    if not path.exists():
        return []
    try:
        frame = pd.read_parquet(path)
        return [
            Question(row.item, row.task, torch.from_numpy(row.prompt.astype(np.int64)), torch.from_numpy(row.answer.astype(np.int64)),
                     row.chance, row.length, row.depth)
            for row in frame.itertuples()
        ]  # fmt: skip
    except Exception as error:
        raise ValueError(f"{path} is not a readable table of questions ({str(error).splitlines()[0]}): delete its folder") from None


def merged(old: list[Question], new: list[Question], path: Path) -> list[Question]:
    """The old ones, then the new ones. ValueError where one name means two questions: another tokenizer, or another version."""
    known = {q.name: q for q in old}
    for q in new:
        same = known.setdefault(q.name, q)
        if same is not q and not (torch.equal(same.prompt, q.prompt) and torch.equal(same.answer, q.answer)):
            raise ValueError(f"question {q.name} of {path} has other tokens than now (another tokenizer?): give another seed=, or out=")
    return list(known.values())
