"""Questions of reasoning-gym, judged by its own verifiers."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from experiments.data.tokens import as_prompt
from experiments.data.traces import open_task, split_of
from experiments.evaluation.questions import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASK = "{question}\nProvide your final answer between <answer> and </answer> tags."
MOST = 100
"""Prompts that are looked at for each that is wanted: those of the training's split are passed over, and repetitions."""


def questions(
    tokenizer: "PreTrainedTokenizerBase", tasks: list[str], items: int, seed: int
) -> tuple[list[Question], Callable[[Question, list[int]], float]]:
    """``items`` of each generator, none that training may have seen; and what judges the tokens of an answer, 0 to 1.

    Raises ValueError on a name that reasoning-gym does not know, or where it has too few distinct prompts.
    """
    found, entries = [], {}
    for task in tasks:
        dataset, seen = open_task(task, items * MOST, seed), set()
        for index in range(len(dataset)):
            entry = dataset[index]
            text = entry["question"].strip()
            if text in seen or split_of(text) != "items":
                continue
            seen.add(text)
            name = f"{task}-s{seed}-{index:06d}"
            entries[name] = (dataset, entry)
            found.append(Question(name, task, torch.tensor(as_prompt(tokenizer, ASK.format(question=text))), torch.empty(0, dtype=int)))
            if len(seen) == items:
                break
        if len(seen) < items:
            raise ValueError(f"task {task} has {len(seen)} distinct prompts of {len(dataset)} for evaluation, items is {items}: lower it")

    def judge(question: Question, tokens: list[int]) -> float:
        from reasoning_gym.utils import extract_answer

        text = tokenizer.decode(tokens, skip_special_tokens=True)
        dataset, entry = entries[question.name]
        answer = extract_answer(text) or (text.strip().splitlines() or [""])[-1]  # without tags: the last line
        return float(dataset.score_answer(answer, entry))

    return found, judge
