"""The teacher's own sampled answers to prompts (here: reasoning-gym's), as training sequences and evaluation items. Tokens, no text."""

import hashlib
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from experiments.config import DataConfig
from experiments.data.tokens import as_prompt, load_tokenizer
from supernet.scoring import Item
from supernet.teacher import hugging_face_model

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPLITS = ("train", "items")
ITEM_SHARE = 5  # one prompt text in five belongs to the items
SHORTEST = 8  # tokens of a trace: shorter ones say too little
TRIES = 100  # prompts drawn from a task for each sequence that is wanted


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
    """The ``train`` or ``items`` sequences: a chat prompt of at most ``data.prompt`` tokens and a trace, ``data.length`` at most in all.

    Tasks take turns, so the first n are balanced too.
    A prompt's text decides its split by hash, so "train" and "items" never share one, whatever the seeds.
    Raises ValueError on unknown tasks or splits, on lengths that leave no room, or when a task has too few fitting prompts.
    """
    wanted = shares(data.tasks, data.count(split), data.prompt, data.length, split)
    datasets = {task: open_task(task, wanted[task] * TRIES, data.seed) for task in data.tasks}
    model, tokenizer = hugging_face_model(model_path, gguf_file, dtype, data.length).to(device), load_tokenizer(model_path, gguf_file)
    streams = {task: prompts(task, questions(datasets[task]), data.prompt, split, tokenizer, wanted[task]) for task in data.tasks}
    return answered(model, tokenizer.eos_token_id, streams, wanted, data.length, data.seed, split, batch, progress)


def shares(tasks: list[str], count: int, prompt_tokens: int, length: int, split: str) -> dict[str, int]:
    """How many of ``count`` sequences each task gets: as equal as can be. Raises ValueError on requests that cannot be met."""
    if split not in SPLITS:
        raise ValueError(f"data split is {split!r}: choose from {', '.join(SPLITS)}")
    if not tasks or count < len(tasks):
        raise ValueError(f"{count} sequences of {len(tasks)} tasks were asked: give at least one task and one sequence for each")
    if length < prompt_tokens + SHORTEST:
        raise ValueError(
            f"data.length={length} leaves no room for a trace after data.prompt={prompt_tokens}: raise it by {SHORTEST} or more"
        )
    return {task: count // len(tasks) + (i < count % len(tasks)) for i, task in enumerate(tasks)}


def answered(
    model: "PreTrainedModel",
    end: int | None,
    streams: Mapping[str, Iterator[tuple[int, list[int]]]],
    wanted: Mapping[str, int],
    length: int,
    seed: int,
    split: str,
    batch: int,
    progress: bool,
) -> list[Item]:
    """``wanted`` prompts of each task's stream (index, tokens), each with a trace of the model, the tasks in turn.

    Traces are sampled at temperature 1 (the model's distribution itself) and end with token ``end`` (None: never) or at ``length``
    tokens, prompt included. Those shorter than SHORTEST are left out, and another prompt taken.
    """
    tasks = list(streams)
    taken: dict[str, list[Item]] = {task: [] for task in tasks}
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {split} traces".encode()))
    with tqdm(total=sum(wanted.values()), desc=f"{split} traces", disable=not progress) as bar:
        while missing := [task for task in tasks for _ in range(wanted[task] - len(taken[task]))]:
            # Every so-manieth of what is missing: each batch draws on all tasks.
            drawn = [(task, *next(streams[task])) for task in missing[:: max(1, len(missing) // batch)][:batch]]
            traces = sample_traces(model, [tokens for _, _, tokens in drawn], length, end, generator)
            for (task, index, tokens), trace in zip(drawn, traces, strict=True):
                if len(trace) >= SHORTEST:
                    taken[task].append(Item(f"{task}-{index:05d}", task, torch.tensor(tokens + trace), len(tokens)))
                    bar.update()
    return in_turn(taken)


def in_turn(taken: Mapping[str, list[Item]]) -> list[Item]:
    """The first item of every task, then the second of every task, and so on."""
    return [item for one_of_each in itertools.zip_longest(*taken.values()) for item in one_of_each if item is not None]


def open_task(task: str, size: int, seed: int) -> "ProceduralDataset":
    """A task of reasoning-gym with ``size`` prompts. Raises ValueError on a name it does not know."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ValueError("the prompts come from reasoning-gym: pip install .[llm]") from None
    if task not in DATASETS:
        raise ValueError(f"task {task!r} is not one of reasoning-gym's {len(DATASETS)}: choose such as gsm_symbolic, chain_sum, gcd")
    # Its prompt i depends on seed + i, so seeds next to each other would give nearly the same prompts.
    start = int(np.random.SeedSequence([seed, zlib.crc32(task.encode())]).generate_state(1)[0])
    return reasoning_gym.create_dataset(task, seed=start, size=size)


def questions(dataset: "ProceduralDataset") -> Iterator[tuple[int, str]]:
    """(index, question) of a task of reasoning-gym."""
    return ((index, dataset[index]["question"]) for index in range(len(dataset)))


def prompts(
    task: str, texts: Iterable[tuple[int, str]], prompt_tokens: int, split: str, tokenizer: "PreTrainedTokenizerBase", wanted: int
) -> Iterator[tuple[int, list[int]]]:
    """A task's distinct prompts that belong to the split and fit, in the order of ``texts`` (index, text): (index, tokens).

    Raises ValueError, which says how many there are and that ``wanted`` are needed, when another is asked for and there is none.
    """
    seen, tried, fitting, longer = set(), 0, 0, 0
    for tried, (index, text) in enumerate(texts, start=1):  # noqa: B007
        text = text.strip()
        if text in seen or split != split_of(text):
            continue
        seen.add(text)
        tokens = as_prompt(tokenizer, text)
        if len(tokens) <= prompt_tokens:
            fitting += 1
            yield index, tokens
        else:
            longer += 1
    # A trace that is too short takes another prompt: more may be used up than sequences are wanted.
    raise ValueError(
        f"task {task!r} has {fitting} distinct prompts of at most {prompt_tokens} tokens for {split} ({tried} read, {longer} are longer), "
        f"and {wanted} sequences are needed: raise data.prompt, lower data.{split}, or give more prompts"
    )


def split_of(text: str) -> str:
    """The split that a prompt belongs to, from its text alone."""
    return side_of(hashlib.sha256(text.encode()).digest())


def side_of(digest: bytes) -> str:
    """The split of whatever has this hash: one in ITEM_SHARE is an item."""
    return SPLITS[int.from_bytes(digest) % ITEM_SHARE == 0]


@torch.inference_mode()
def sample_traces(
    model: "PreTrainedModel", prompts: list[list[int]], length: int, end: int | None, generator: torch.Generator
) -> list[list[int]]:
    """One continuation per prompt at temperature 1: up to and with token ``end``, or until prompt and trace have ``length`` tokens.

    Prompts are padded on the left; rows that have ended leave the batch and the key-value cache.
    """
    from transformers import DynamicCache

    width, device = max(map(len, prompts)), model.device
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    tokens = torch.tensor([[end or 0] * (width - len(p)) + p for p in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    traces: list[list[int]] = [[] for _ in prompts]
    rows, cache = torch.arange(len(prompts), device=device), DynamicCache()
    while len(rows):
        output = model(tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        # By the inverse of the distribution function: torch.multinomial draws a number per word of the vocabulary, a fifth of the time.
        below = output.logits[:, -1].float().softmax(-1).cumsum(-1, dtype=torch.float64)
        # Drawn on the CPU, so that the random numbers are the same everywhere.
        drawn = torch.rand(len(rows), 1, dtype=torch.float64, generator=generator).to(device) * below[:, -1:]
        tokens = torch.searchsorted(below, drawn, right=True).clamp(max=below.shape[-1] - 1)
        for row, token in zip(rows.tolist(), tokens[:, 0].tolist(), strict=True):
            traces[row].append(token)
        going = torch.tensor([traces[r][-1] != end and len(prompts[r]) + len(traces[r]) < length for r in rows.tolist()], device=device)
        if not going.all():
            rows, tokens, mask, positions = rows[going], tokens[going], mask[going], positions[going]
            cache.batch_select_indices(going.nonzero()[:, 0])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
    return traces
