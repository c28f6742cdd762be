"""Tiny's own synthetic tasks as questions: a true sequence up to where its next token can be known, and that token."""

import torch

from experiments.data.synthetic import DIGITS, SYMBOLS, TASKS, VALUES, known
from experiments.evaluation.questions import Question
from experiments.runs.streams import stream

CHANCE = {"recall": 1 / len(VALUES), "local": 1 / len(SYMBOLS), "state": 1 / len(DIGITS)}
"""Accuracy of guessing one of the tokens that may come there."""


TRIES = 100
"""Sequences that are drawn for one with such a place."""


def questions(length: int, items: int, seed: int) -> list[Question]:
    """``items`` of each task, from sequences of ``length`` tokens, the tasks in turn. ValueError where they are too short for a task."""
    found = []
    for n in range(items):
        for task in TASKS:
            rng = stream(seed, f"probe {task}", n)
            drawn = (TASKS[task](length, rng) for _ in range(TRIES))
            sequence, at = next(((s, at) for s in drawn if (at := place(task, s))), ([], 0))
            if not at:
                raise ValueError(f"data.length={length} is too short to know any token of a sequence of task {task}: train on longer ones")
            prompt, answer = torch.tensor(sequence[:at]), torch.tensor(sequence[at : at + 1])
            found.append(Question(f"{task}-s{seed}-{n:04d}", task, prompt, answer, CHANCE[task]))
    return found


def place(task: str, tokens: list[int]) -> int | None:
    """The last place whose token follows from those before it; None where there is none."""
    return max(known(task, tokens), default=None)
