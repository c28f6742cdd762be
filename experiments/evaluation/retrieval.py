"""Retrieval of a number from a long text, by our own seeded generator, in the manner of RULER (Hsieh et al. 2024, arXiv 2404.06654).

A sentence with a key and a number of seven digits is hidden at a depth of a text. The text is a ``repeat`` of the same five sentences, or
all ``needle``: sentences like the hidden one with other keys. The prompt ends where the number is next.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from experiments.data.tokens import as_prompt
from experiments.evaluation.questions import Question
from experiments.runs.streams import stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPEAT = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
ASK = (
    "A special magic number is hidden within the following text. Memorize it.\n"
    "{text}\nWhat is the special magic number for {key} mentioned in the provided text?"
)
REPLY = "The special magic number for {key} mentioned in the provided text is"
NEEDLE = "One of the special magic numbers for {key} is: {value}."
FIRST = ("amber", "ancient", "bitter", "brave", "calm", "clever", "cold", "crimson", "dusty", "eager", "faint", "gentle", "golden",
         "hollow", "humble", "icy", "jolly", "keen", "lively", "lonely", "mellow", "misty", "noble", "odd", "pale", "proud", "quick",
         "rough", "silent", "sturdy", "tidy", "vivid")  # fmt: skip
SECOND = ("anchor", "apple", "basket", "beacon", "bridge", "candle", "castle", "cloud", "copper", "desert", "engine", "feather", "forest",
          "garden", "hammer", "harbor", "island", "kettle", "ladder", "lantern", "marble", "meadow", "mirror", "needle", "orchard", "paper",
          "pepper", "river", "saddle", "tower", "violin", "window")  # fmt: skip
VALUES = (1_000_000, 10_000_000)
"""From, and up to but not with."""


def questions(
    tokenizer: "PreTrainedTokenizerBase", lengths: list[int], depths: list[float], haystacks: list[str], items: int, seed: int
) -> list[Question]:
    """``items`` questions of each haystack, length and depth; the task is haystack and length.

    A prompt has as many sentences as fit ``length`` tokens, chat template and beginning of the reply included. A question depends on the
    seed and its own place alone, so more of them extend the same ones. Raises ValueError for a length that holds no text.
    """
    found = []
    for haystack in haystacks:
        for length in lengths:
            for depth in depths:
                for n in range(items):
                    rng = stream(seed, f"retrieval {haystack}", length, round(1000 * depth), n)
                    name = f"{haystack}-{length:05d}-{round(1000 * depth):04d}-s{seed}-{n:04d}"
                    prompt, answer = one(tokenizer, haystack, length, depth, rng)
                    found.append(Question(name, f"{haystack}-{length}", prompt, answer, 0.0, length, depth))
    return found


def one(
    tokenizer: "PreTrainedTokenizerBase", haystack: str, length: int, depth: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(prompt, answer) as tokens."""
    keys = [f"{FIRST[i // len(SECOND)]}-{SECOND[i % len(SECOND)]}" for i in rng.permutation(len(FIRST) * len(SECOND)).tolist()]
    values = rng.choice(VALUES[1] - VALUES[0], size=len(keys), replace=False) + VALUES[0]
    hay = REPEAT if haystack == "repeat" else [NEEDLE.format(key=k, value=v) for k, v in zip(keys[1:], values[1:], strict=True)]
    needle = NEEDLE.format(key=keys[0], value=values[0])

    def prompt(sentences: int) -> list[int]:
        text = [hay[i % len(hay)] for i in range(sentences)]
        text.insert(round(depth * sentences), needle)
        asked = as_prompt(tokenizer, ASK.format(text=" ".join(text), key=keys[0]))
        return asked + tokenizer(REPLY.format(key=keys[0]), add_special_tokens=False)["input_ids"]

    if (least := len(prompt(1))) > length:
        raise ValueError(f"lengths has {length}: a question with one sentence of text takes {least} tokens here, give longer ones")
    low, high = 1, 2
    while len(prompt(high)) <= length:
        low, high = high, 2 * high
    while high - low > 1:  # low fits, high does not
        middle = (low + high) // 2
        low, high = (middle, high) if len(prompt(middle)) <= length else (low, middle)
    answer = tokenizer(f" {values[0]}", add_special_tokens=False)["input_ids"]
    return torch.tensor(prompt(low)), torch.tensor(answer)
