"""The teacher's own sampled answers to reasoning-gym prompts, as training sequences and as evaluation items. Tokens only, no text."""

import hashlib
import itertools
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

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
    tasks: list[str],
    count: int,
    prompt_tokens: int,
    length: int,
    seed: int,
    split: str,
    batch: int,
    progress: bool,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Item]:
    """``count`` sequences, the tasks in turn (so the first n are balanced too): a chat prompt of at most ``prompt_tokens`` and a trace.

    Traces are the teacher's, sampled at temperature 1 (its distribution itself), and end with its end token or at ``length`` tokens,
    prompt included. A prompt's text decides its split by hash, so "train" and "items" never share one, whatever the seeds.
    Raises ValueError on unknown tasks or splits, on lengths that leave no room, or when a task has too few fitting prompts.
    """
    if split not in SPLITS:
        raise ValueError(f"data split is {split!r}: choose from {', '.join(SPLITS)}")
    if not tasks or count < len(tasks):
        raise ValueError(f"{count} sequences of {len(tasks)} tasks were asked: give at least one task and one sequence for each")
    if length < prompt_tokens + SHORTEST:
        raise ValueError(
            f"data.length={length} leaves no room for a trace after data.prompt={prompt_tokens}: raise it by {SHORTEST} or more"
        )
    wanted = {task: count // len(tasks) + (i < count % len(tasks)) for i, task in enumerate(tasks)}
    datasets = {task: open_task(task, wanted[task] * TRIES, seed) for task in tasks}
    model, tokenizer = hugging_face_model(model_path, gguf_file, dtype), load_tokenizer(model_path, gguf_file)
    streams = {task: prompts(task, datasets[task], prompt_tokens, split, tokenizer) for task in tasks}
    taken: dict[str, list[Item]] = {task: [] for task in tasks}
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {split} traces".encode()))
    with tqdm(total=count, desc=f"{split} traces", disable=not progress) as bar:
        while missing := [task for task in tasks for _ in range(wanted[task] - len(taken[task]))]:
            # Every so-manieth of what is missing: each batch draws on all tasks.
            drawn = [(task, *next(streams[task])) for task in missing[:: max(1, len(missing) // batch)][:batch]]
            traces = sample_traces(model, [tokens for _, _, tokens in drawn], length, tokenizer.eos_token_id, generator)
            for (task, index, tokens), trace in zip(drawn, traces, strict=True):
                if len(trace) >= SHORTEST:
                    taken[task].append(Item(f"{task}-{index:05d}", task, torch.tensor(tokens + trace), len(tokens)))
                    bar.update()
    return [item for one_of_each in itertools.zip_longest(*taken.values()) for item in one_of_each if item is not None]


def load_tokenizer(model_path: str, gguf_file: str) -> "PreTrainedTokenizerBase":
    """The teacher's own tokenizer. Raises ValueError where it has no chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path, **({"gguf_file": gguf_file} if gguf_file else {}))
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {model_path!r} has no chat template or no end token: choose an instruction-tuned teacher")
    return tokenizer


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


def prompts(
    task: str, dataset: "ProceduralDataset", prompt_tokens: int, split: str, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[int, list[int]]]:
    """A task's distinct prompts that belong to the split and fit, in its order: (index in the dataset, chat-formatted tokens)."""
    seen = set()
    for index in range(len(dataset)):
        text = dataset[index]["question"].strip()
        if text in seen or split != split_of(text):
            continue
        seen.add(text)
        chat = [{"role": "user", "content": text}]
        tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        if len(tokens) <= prompt_tokens:
            yield index, tokens
    raise ValueError(
        f"task {task!r} gave too few prompts of at most {prompt_tokens} tokens in {len(dataset)}: raise data.prompt or drop the task"
    )


def split_of(text: str) -> str:
    """The split that a prompt belongs to, from its text alone."""
    return SPLITS[int(hashlib.sha256(text.encode()).hexdigest(), 16) % ITEM_SHARE == 0]


@torch.inference_mode()
def sample_traces(model: "PreTrainedModel", prompts: list[list[int]], length: int, end: int, generator: torch.Generator) -> list[list[int]]:
    """One continuation per prompt at temperature 1: up to and with token ``end``, or until prompt and trace have ``length`` tokens.

    Prompts are padded on the left; rows that have ended leave the batch and the key-value cache.
    """
    from transformers import DynamicCache

    width = max(map(len, prompts))
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    tokens = torch.tensor([[end] * (width - len(p)) + p for p in prompts])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    traces: list[list[int]] = [[] for _ in prompts]
    rows, cache = torch.arange(len(prompts)), DynamicCache()
    while len(rows):
        output = model(tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        # By the inverse of the distribution function: torch.multinomial draws a number per word of the vocabulary, a fifth of the time.
        below = output.logits[:, -1].float().softmax(-1).cumsum(-1, dtype=torch.float64)
        drawn = torch.rand(len(rows), 1, dtype=torch.float64, generator=generator) * below[:, -1:]
        tokens = torch.searchsorted(below, drawn, right=True).clamp(max=below.shape[-1] - 1)
        for row, token in zip(rows.tolist(), tokens[:, 0].tolist(), strict=True):
            traces[row].append(token)
        going = torch.tensor([traces[r][-1] != end and len(prompts[r]) + len(traces[r]) < length for r in rows.tolist()])
        if not going.all():
            rows, tokens, mask, positions = rows[going], tokens[going], mask[going], positions[going]
            cache.batch_select_indices(going.nonzero()[:, 0])
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], 1)
        positions = positions[:, -1:] + 1
    return traces
