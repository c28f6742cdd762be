"""lm-evaluation-harness (lm-eval 0.4.13) on placements of one loaded supernet: likelihoods on the sweep engine, text on the decode engine.

lm-eval ships no data. Its RULER tasks that code makes need none: niah_single_1, niah_multikey_2, niah_multikey_3, vt, cwe, fwe. Any other
is found by name where the user has its data. The package has no entry points for models, so an object is handed to ``simple_evaluate``.
"""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from analysis.table import WANTED, write_part
from experiments.evaluation.asking import TABLES, Asked
from experiments.evaluation.options import Options
from experiments.evaluation.questions import Question, merged, read_questions, write_questions
from experiments.runs.progress import progress
from experiments.runs.records import read_json, read_status, turns, write_json
from experiments.runs.steps import step_dir
from experiments.runs.stopping import raise_if_asked
from experiments.sweeping.parts import claim
from experiments.sweeping.tables import merge, scored_pairs, write_placements
from supernet.decoder import Supernet
from supernet.generate import generate
from supernet.matching import match_chunk
from supernet.scoring import Item, build_trie, plan_chunks

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager
except ImportError:
    raise ValueError("tasks=lm_eval needs the extra: pip install .[eval]") from None

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

RULER = ("niah_", "ruler", "vt", "cwe", "fwe")
"""Beginnings of the names of tasks that code makes at a length: they are asked at each of ``lengths``."""


class Placements(TemplateLM):
    """One supernet as lm-eval knows a model; ``placement`` is the one that answers, one of ``placements``.

    Likelihoods that are asked of one placement are scored for all of ``placements`` in one sweep and kept for the others' turns.
    """

    def __init__(
        self, model: Supernet, tokenizer: "PreTrainedTokenizerBase", placements: Sequence[str], memory_bytes: int = 1 << 30,
        rows: int = 32, most: int = 256,
    ):  # fmt: skip
        super().__init__()
        self.model, self.tokenizer, self.placements, self.placement = model, tokenizer, list(placements), placements[0]
        self.memory_bytes, self.rows, self.most = memory_bytes, rows, most
        self.known: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.tokenizer(string, add_special_tokens=bool(add_special_tokens), verbose=False)["input_ids"]

    def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether it is what greedy decoding says) of each continuation."""
        keys = [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        self._score(list(dict.fromkeys(key for key in keys if key not in self.known)))
        at = self.placements.index(self.placement)
        return [(float(self.known[key][0][at]), bool(self.known[key][1][at])) for key in keys]

    def _score(self, keys: list[tuple]) -> None:
        items = [Item(f"request {n}", "", torch.tensor(a + b), len(a)) for n, (a, b) in enumerate(keys)]
        trie, weight = build_trie(self.model.config, self.placements), self.model.embed.weight
        for chunk in plan_chunks(self.model.config, trie, items, self.memory_bytes, weight.dtype, weight.device.type):
            logp, right, _ = match_chunk(self.model, trie, [items[i] for i in chunk])
            self.known.update({keys[i]: (logp[:, n], right[:, n]) for n, i in enumerate(chunk)})

    def loglikelihood_rolling(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts behind the end token, each in one piece."""
        texts = [((text, ""), [self.eot_token_id], self.tok_encode(text)) for (text,) in (request.args for request in requests)]
        return [logp for logp, _ in self._loglikelihood_tokens(texts)]

    def generate_until(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[str]:
        """Greedy text up to a stop string, the end token, or max_gen_toks (at most ``most``)."""
        said = []
        for start in range(0, len(requests), self.rows):
            asked = [request.args for request in requests[start : start + self.rows]]
            if sampled := next((kwargs for _, kwargs in asked if kwargs.get("do_sample") and kwargs.get("temperature", 1.0)), None):
                raise ValueError(f"this lm-eval task samples its answers ({sampled}): placements answer greedily, choose another task")
            new = [min(int(kwargs.get("max_gen_toks", self.most)), self.most) for _, kwargs in asked]
            prompts = [torch.tensor(self.tok_encode(context) or [self.eot_token_id]) for context, _ in asked]
            found = generate(self.model, prompts, [self.placement] * len(prompts), max(new), stop=(self.eot_token_id,))
            for (_, kwargs), tokens, count in zip(asked, found, new, strict=True):
                text = self.tokenizer.decode(tokens[:count].tolist(), skip_special_tokens=True)
                until = kwargs.get("until") or []
                for stop in [until] if isinstance(until, str) else until:
                    text = text.split(stop)[0] if stop else text
                said.append(text)
        return said


@contextmanager
def without_downloads() -> Iterator[None]:
    """RULER's module fetches a sentence splitter when it is imported, which only essays need: half a minute without a network, in vain."""
    import nltk

    before, nltk.download = nltk.download, lambda *_, **__: False
    try:
        yield
    finally:
        nltk.download = before


@dataclass(frozen=True)
class Loaded:
    """The documents of a task (of each task of a group) at one length, made once for all placements; length 0: it has none."""

    length: int
    tasks: list
    manager: TaskManager


def load_tasks(task: str, lengths: list[int], tokenizer: "PreTrainedTokenizerBase", seed: int) -> list[Loaded]:
    """Of lm-eval, by name. Raises ValueError, one line, for a task that it does not know or has no data of."""
    found = []
    with tempfile.TemporaryDirectory() as folder, without_downloads():
        tokenizer.save_pretrained(folder)  # RULER measures its prompts with a tokenizer that it opens by name
        for length in lengths if task.startswith(RULER) else [0]:
            random.seed(seed)  # RULER draws from the global generator
            try:
                manager = TaskManager(metadata={"tokenizer": folder, "max_seq_lengths": [length]} if length else None)
                found.append(Loaded(length, list(manager.load([task])["tasks"].values()), manager))
            except Exception as error:  # of datasets, the hub and tasks, by name
                said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                raise ValueError(f"lm-eval cannot load {task!r} ({said}): is that its name, and are its data on this machine?") from None
    return found


def samples(model: Placements, loaded: list[Loaded], limit: int, seed: int) -> list[tuple[Question, float]]:
    """What ``model.placement`` scores on ``limit`` documents of each task and length, by the task's first metric."""
    found = []
    for one in loaded:
        result = simple_evaluate(model=model, tasks=one.tasks, limit=limit, task_manager=one.manager, bootstrap_iters=0, random_seed=seed)
        for name, rows in result["samples"].items():
            first = {row["doc_id"]: row for row in reversed(rows)}  # of several filters the first
            for number, row in sorted(first.items()):
                own = f"{name}-{one.length}" if one.length else name
                chance = 1 / len(row["resps"]) if len(row["resps"]) > 1 else 0.0  # one request for each choice
                question = Question(f"{own}-s{seed}-{number:05d}", own, torch.empty(0), torch.empty(0), chance, one.length)
                found.append((question, value(row, name)))
    return found


def value(row: dict[str, Any], task: str) -> float:
    """The first metric of a sample that is a number from 0 to 1; RULER has -1 for other lengths."""
    for metric in row["metrics"]:
        if isinstance(row[metric], int | float | np.number) and 0 <= row[metric] <= 1:
            return float(row[metric])
    raise ValueError(f"lm-eval task {task!r} has no metric from 0 to 1 ({', '.join(row['metrics'])}): it cannot be ranked by accuracy")


def ask_harness(
    folder: Path, asked: Asked, placements: pd.DataFrame, load: Callable[[], list[Loaded]], tokenizer: "PreTrainedTokenizerBase",
    options: Options,
) -> None:  # fmt: skip
    """As ``asking.ask`` for a task of lm-eval, which ``load`` gives; a part is a placement, and shards share the placements."""
    with turns(folder, "request"):
        known, placements = len(placements), merge(folder / "placements.parquet", placements)
        if known != len(placements) or not (folder / "placements.parquet").exists():
            write_placements(placements, folder / "placements.parquet")
        steps = sorted({*asked.tokens, *read_json(folder / WANTED).get("steps", [])})
    mine = list(placements["placement"])[options.shard :: options.shards]
    request = {"steps": steps, "limit": options.items, "lengths": options.lengths, "seed": options.seed}

    def lacking(step: int) -> list[str]:
        wanted, have = read_json(folder / WANTED), scored_pairs(step_dir(folder / TABLES["accuracy"], step))
        same = all(wanted.get(key) == request[key] for key in ("limit", "lengths", "seed"))
        items = wanted.get("items") or [""]
        return [p for p in mine if not same or any((p, item) not in have for item in items)]

    if not any(map(lacking, asked.tokens)) and read_status(folder).get(options.part, {}).get("state") == "done":
        print(f"{folder.name}: complete, {len(placements)} placements in {folder}")
        return
    with claim(folder, options.part, options.shards):
        loaded = load()
        todo = {step: names for step in asked.tokens if (names := lacking(step))}
        bar = progress(None, folder.name, total=sum(map(len, todo.values())))
        for step, names in todo.items():
            model = Placements(asked.open(step).model, tokenizer, names, int(options.memory_gib * 2**30), options.rows, options.new_tokens)
            for model.placement in names:
                raise_if_asked()
                write_answers(folder, asked, step, model.placement, samples(model, loaded, options.items, options.seed), request)
                bar.update()
        bar.close()
    print(f"{folder.name}: {len(placements)} placements in {folder}")


def write_answers(folder: Path, asked: Asked, step: int, placement: str, answers: list[tuple[Question, float]], request: dict) -> None:
    """The rows of one placement that the table does not have, and what it is to hold."""
    with turns(folder, "request"):
        questions = merged(read_questions(folder / "questions.parquet"), [q for q, _ in answers], folder / "questions.parquet")
        write_questions(questions, folder / "questions.parquet")
        write_json(folder / WANTED, {**request, "items": [q.name for q in questions]})
    below = step_dir(folder / TABLES["accuracy"], step)
    have = scored_pairs(below)
    new = [(q, score) for q, score in answers if (placement, q.name) not in have]
    if new:
        rows = pd.DataFrame({
            "scale": asked.scale, "run": asked.run, "seed": asked.seed, "step": step, "tokens": asked.tokens[step], "placement": placement,
            "item": [q.name for q, _ in new], "task": [q.task for q, _ in new], "score": [score for _, score in new],
        })  # fmt: skip
        write_part(rows, below / f"part-{placement}-{len(have)}.parquet")
