"""Asks placements the questions of a task, part by part: killed anywhere, the same call finds the same rest.

A task's folder is laid out like a run, so that everything that reads a run's scores reads it: ``scores/step-*/part-*.parquet`` with the
accuracy of each item, placements.parquet, wanted.json, status.json, manifest.json; beside them questions.parquet, ``loglik/`` with the
log-likelihoods of the answers in the same layout, and ``teacher/`` with both of the frozen teacher. Shapes: P placements, n questions.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.table import WANTED, write_part
from experiments.evaluation.options import Options
from experiments.evaluation.questions import Question, merged, read_questions, write_questions
from experiments.runs.progress import progress
from experiments.runs.records import read_json, read_status, turns, update_manifest, write_json
from experiments.runs.steps import step_dir
from experiments.runs.stopping import raise_if_asked
from experiments.sweeping.parts import claim
from experiments.sweeping.tables import merge, scored_pairs, write_placements
from experiments.sweeping.weights import Weights
from supernet.generate import generate
from supernet.matching import match_chunk
from supernet.scoring import build_trie, plan_chunks, sweep_flops

PART = 16
"""Questions of a part at most, but where layers are read for each: what is lost where a process is killed."""

WORK = {"cpu": 1e13, "cuda": 1e16}
"""FLOPs of a part at most, but for a single question: some minutes of a CPU's core, for the same reason."""

TABLES = {"accuracy": "scores", "loglik": "loglik/scores"}
"""Kind of number -> where its parts are below a task's folder."""


@dataclass(frozen=True)
class Asked:
    """What is asked: which checkpoints of what, and how they are opened."""

    scale: str
    run: str
    seed: int
    tokens: dict[int, int]  # training tokens by step
    open: Callable[[int], Weights]  # of a step


@dataclass(frozen=True)
class Part:
    """Some placements on some questions at one checkpoint, by one of the two engines."""

    step: int
    placements: list[str]
    questions: list[Question]
    decode: bool

    @property
    def name(self) -> str:
        """From the content, so that the same part always has the same."""
        content = "\n".join([*self.placements, "", *(q.name for q in self.questions)])
        return f"part-{hashlib.sha256(content.encode()).hexdigest()[:12]}.parquet"


@dataclass(frozen=True)
class Verifier:
    """What judges the text of answers: 0 to 1 for a question and the tokens that were said; tokens that end an answer."""

    judge: Callable[[Question, list[int]], float]
    stop: tuple[int, ...]


Have = dict[tuple[str, int], set[tuple[str, str]]]
"""(kind, step) -> the (placement, question) that a table has."""

Group = tuple[int, list[str], list[Question], bool]
"""(step, placements, questions, whether they are decoded) that lack the same."""


def ask(
    folder: Path, asked: Asked, placements: pd.DataFrame, questions: list[Question], options: Options, verifier: Verifier | None = None
) -> None:
    """Score what is missing, so that the folder's tables hold every placement on every question at every checkpoint of ``asked``.

    What was asked for earlier stays in: a larger request extends the tables. With a ``verifier`` answers are decoded and have no
    log-likelihood. Raises ValueError where an earlier request needs a checkpoint that is not among the steps of ``asked``.
    """
    decoded = {"accuracy": True} if verifier else {"accuracy": options.match == "generate", "loglik": False}
    with turns(folder, "request"):
        questions = merged(read_questions(folder / "questions.parquet"), questions, folder / "questions.parquet")
        placements = merge(folder / "placements.parquet", placements)
        earlier = read_json(folder / WANTED).get("steps", [])
        steps = sorted({*asked.tokens, *earlier})
        share = [q for place, q in enumerate(questions) if place % options.shards == options.shard]
        have = {(kind, step): scored_pairs(step_dir(folder / TABLES[kind], step)) for kind in decoded for step in steps}
        todo = missing(have, list(placements["placement"]), share, decoded)
        if gone := sorted({step for step, *_ in todo} - set(asked.tokens)):
            raise ValueError(f"{folder} lacks answers at step {', '.join(map(str, gone))}, asked for earlier: add steps={gone[0]}, or out=")
        whole = f"{len(placements)} placements x {len(questions)} questions x {len(steps)} checkpoints in {folder}"
        if not todo and read_status(folder).get(options.part, {}).get("state") == "done":
            print(f"{folder.name}: complete, {whole}")
            return
        write_questions(questions, folder / "questions.parquet")
        for kind in decoded:
            below = (folder / TABLES[kind]).parent
            below.mkdir(parents=True, exist_ok=True)
            write_placements(placements, below / "placements.parquet")
            write_json(below / WANTED, {"steps": steps, "items": [q.name for q in questions]})
    with claim(folder, options.part, options.shards):
        have = {(kind, step): scored_pairs(step_dir(folder / TABLES[kind], step)) for kind, step in have}
        todo = missing(have, list(placements["placement"]), share, decoded)
        started, total = time.perf_counter(), sum(len(placed) * len(some) for _, placed, some, _ in todo)
        bar = progress(None, folder.name, total=total)
        for step in sorted({step for step, *_ in todo}):
            weights = asked.open(step)
            for p in parts(weights, [group for group in todo if group[0] == step], options):
                raise_if_asked()
                for kind, values in measure(weights, p, options, verifier).items():
                    write(folder, asked, p, kind, values, have[kind, step])
                bar.update(len(p.placements) * len(p.questions))
        bar.close()
        work = {"answers": total, "seconds": round(time.perf_counter() - started, 2), "options": dataclasses.asdict(options)}
        update_manifest(folder, **{options.part: work})
    print(f"{folder.name}: {whole}")


def missing(have: Have, placements: list[str], questions: list[Question], decoded: dict[str, bool]) -> list[Group]:
    """What the tables lack. Questions that lack the same placements go together."""
    groups: dict[tuple, Group] = {}
    for step in sorted({step for _, step in have}):
        for decode in sorted(set(decoded.values())):
            tables = [have[kind, step] for kind, by in decoded.items() if by == decode]
            for q in questions:
                lacking = tuple(p for p in placements if any((p, q.name) not in table for table in tables))
                if lacking:
                    groups.setdefault((step, lacking, decode), (step, list(lacking), [], decode))[2].append(q)
    return list(groups.values())


def parts(weights: Weights, groups: list[Group], options: Options) -> Iterator[Part]:
    """The parts of one checkpoint: for the sweep engine all placements on a few questions, for decoding a batch of one placement."""
    model, memory = weights.model, int(options.memory_gib * 2**30)
    dtype, device = model.embed.weight.dtype, model.embed.weight.device.type
    for step, placements, questions, decode in groups:
        if decode:
            order = sorted(questions, key=lambda q: len(q.prompt))
            for placement in placements:
                for start in range(0, len(order), options.rows):
                    yield Part(step, [placement], order[start : start + options.rows], True)
            continue
        trie, items = build_trie(model.config, placements), [q.item for q in questions]
        for chunk in plan_chunks(model.config, trie, items, memory, dtype, device, weights.held):
            size = len(chunk)  # streamed: every part reads all layers
            if weights.block_at is None:
                each = sweep_flops(model.config, trie, [items[i] for i in chunk]) / len(chunk)
                size = min(PART, max(1, int(WORK[device] / each)))
            for start in range(0, len(chunk), size):
                yield Part(step, placements, [questions[i] for i in chunk[start : start + size]], False)


def measure(weights: Weights, part: Part, options: Options, verifier: Verifier | None) -> dict[str, np.ndarray]:
    """Kind of number -> [P, n]."""
    model = weights.model
    if not part.decode:
        trie = build_trie(model.config, part.placements)
        logp, right, _ = match_chunk(model, trie, [q.item for q in part.questions], weights.block_at)
        return {"loglik": logp} | ({"accuracy": right.astype(float)} if options.match == "engine" else {})
    new = options.new_tokens if verifier else max(len(q.answer) for q in part.questions)
    (placement,) = part.placements
    prompts = [q.prompt for q in part.questions]
    said = generate(model, prompts, [placement] * len(prompts), new, stop=verifier.stop if verifier else ())
    judge = verifier.judge if verifier else exact
    return {"accuracy": np.array([[judge(q, tokens.tolist()) for q, tokens in zip(part.questions, said, strict=True)]], float)}


def exact(question: Question, tokens: list[int]) -> float:
    """1 where decoding begins with the answer."""
    return float(tokens[: len(question.answer)] == question.answer.tolist())


def write(folder: Path, asked: Asked, part: Part, kind: str, values: np.ndarray, have: set[tuple[str, str]]) -> None:
    """The rows of a part but those that the table has: the part may be there for the sake of the other table."""
    P, n = values.shape
    rows = pd.DataFrame({
        "scale": asked.scale, "run": asked.run, "seed": asked.seed, "step": part.step, "tokens": asked.tokens[part.step],
        "placement": np.repeat(part.placements, n), "item": np.tile([q.name for q in part.questions], P),
        "task": np.tile([q.task for q in part.questions], P),
    })  # fmt: skip
    if kind == "accuracy":
        rows["score"] = values.ravel()
    else:
        rows["logp"], rows["num_tokens"] = values.ravel(), np.tile([len(q.answer) for q in part.questions], P)
    rows = rows[[pair not in have for pair in zip(rows["placement"], rows["item"], strict=True)]]
    if len(rows):
        write_part(rows.reset_index(drop=True), step_dir(folder / TABLES[kind], part.step) / part.name)
