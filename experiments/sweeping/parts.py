"""The parts of a run's score tables: which are missing, and how they are scored. Killed anywhere, the same call finds the same rest."""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis.table import WANTED, write_part
from experiments.data.items import read_items
from experiments.machine import matmul_rate, peak_memory, pick_device
from experiments.run import Run, Sweep
from experiments.runs.kernels import choose_kernels
from experiments.runs.progress import progress
from experiments.runs.records import exclusive, read_json, read_status, status, turns, update_manifest, write_json, write_text
from experiments.runs.steps import step_dir, whole_checkpoints
from experiments.runs.stopping import raise_if_asked
from experiments.sweeping.tables import files_of, merge, scored_pairs, steps_in, write_placements
from experiments.sweeping.weights import Weights, memory_bytes, open_step, opener, weight_bytes
from experiments.training.strategy import checkpoint_steps
from supernet.acceptance import acceptance_chunk
from supernet.config import SupernetConfig
from supernet.reader import LayerReader
from supernet.scoring import Counts, Item, Trie, build_trie, plan_chunks, score_chunk
from supernet.size import count_bytes
from supernet.streaming import Traffic

WORKERS = 2
"""Parts that are scored at once on a CPU where ``workers`` says nothing."""

REMEDY = "run python -m experiments.distill with the same options"


@dataclass(frozen=True)
class Part:
    """One call of the engine and one file: some placements on some items at one checkpoint."""

    step: int
    trie: Trie
    items: list[Item]

    @property
    def name(self) -> str:
        """From the content, so that no two different parts share a name and the same part always has the same."""
        content = "\n".join([*self.trie.placements, "", *(item.name for item in self.items)])
        return f"part-{hashlib.sha256(content.encode()).hexdigest()[:12]}.parquet"


@dataclass(frozen=True)
class Request:
    """What a run's tables should hold, and this process's parts of what they lack."""

    placements: pd.DataFrame
    items: list[Item]
    steps: list[int]
    parts: list[Part]
    files: set[Path]  # of the tables, when they were read


def score_missing(run: Run, sweep: Sweep, wanted: pd.DataFrame) -> None:
    """Score what is missing, so that the run's tables hold every placement on every item at every checkpoint.

    Placements and items asked for in earlier sweeps of the run stay in: a larger request extends the tables, a smaller one changes nothing.
    With ``shards`` this process scores its share of the items, which depends on nothing but their order in the data.
    """
    folder = sweep.tables(run.folder)
    request = ask(run, sweep, wanted)
    record = {"steps": request.steps, "items": [item.name for item in request.items]}
    known = not (folder / WANTED).exists() or read_json(folder / WANTED) == record
    if request.parts or not known or read_status(folder).get(sweep.part, {}).get("state") != "done":
        with claim(folder, sweep.part, sweep.shards):
            with turns(folder, "placements"):
                placements = merge(folder / "placements.parquet", wanted)
                write_placements(placements, folder / "placements.parquet")
                write_json(folder / WANTED, record)
                if run.supernet:
                    write_text(folder / "config.yaml", run.options(run.stage))
                    update_manifest(folder, warnings=(warnings := unseen_window(run.model, request.items)))
                    print("".join(f"warning: {line}\n" for line in warnings), end="")
            if files_of(folder) != request.files or not placements.equals(request.placements):
                request = ask(run, sweep, wanted)  # another process has written meanwhile
            if request.parts:
                score_parts(run, sweep, request.parts, folder / "scores")
    else:
        share = f"shard {sweep.shard} of {sweep.shards} " if sweep.shards > 1 else ""
        print(f"sweep: {share}complete, {len(request.placements)} placements x {len(request.items)} items x "
              f"{len(request.steps)} checkpoints in {folder}")  # fmt: skip


def ask(run: Run, sweep: Sweep, wanted: pd.DataFrame) -> Request:
    """The request of a sweep, given what the run has. Raises ValueError naming a step that has neither checkpoint nor scores."""
    folder = sweep.tables(run.folder)
    there, files = checkpoints(run), files_of(folder)
    scored = steps_in(files)
    asked = sweep.steps or checkpoint_steps(run.training)
    unknown = sorted(set(asked) - set(there) - scored)
    if unknown:
        have = f"choose from {', '.join(map(str, there))} or " if there else ""
        raise ValueError(f"no checkpoint of step {', '.join(map(str, unknown))} in {folder}: {have}{REMEDY}")
    placements = merge(folder / "placements.parquet", wanted)
    have = {step: scored_pairs(step_dir(folder / "scores", step)) for step in sorted({*asked, *scored})}
    items = items_to_score(run, sweep.items, {item for pairs in have.values() for _, item in pairs})
    share = [item for place, item in items if place % sweep.shards == sweep.shard]
    parts = plan(run, sweep, there, have, list(placements["placement"]), share)
    return Request(placements, [item for _, item in items], sorted(have), parts, files)


def unseen_window(model: SupernetConfig, items: list[Item]) -> list[str]:
    """What is wrong where no item leaves the window of a supernet that was made elsewhere; a run of ours is refused then."""
    longest = max((len(item.tokens) for item in items), default=0)
    if "S" not in model.mixers or longest > model.window:
        return []
    return [f"No item has more than {longest} tokens, and the window of S is {model.window}: S sees all that F sees, so this sweep says "
            "nothing of what the window costs. Give longer items."]  # fmt: skip


@contextmanager
def claim(folder: Path, part: str, shards: int) -> Iterator[None]:
    """Hold a folder's scores: a whole ``part`` (sweep) alone, a shard (sweep-0of4) beside the other shards of as many. ValueError says who
    else is at it."""
    if shards == 1:
        with status(folder, part):
            yield
        return
    whole = part.partition("-")[0]
    with ExitStack() as held:
        with turns(folder, "shards"):  # two that start at once would see each other's tries
            held.enter_context(exclusive(folder, f"{whole}-of-{shards}", shared=True))
            for other in {path.name[1:].removesuffix(".lock") for path in folder.glob(f".{whole}-of-*.lock")}:
                if other != f"{whole}-of-{shards}":
                    with exclusive(folder, other):
                        pass
        held.enter_context(status(folder, part))
        yield


def score_parts(run: Run, sweep: Sweep, parts: list[Part], table: Path) -> None:
    """Score ``parts`` into their steps' folders under ``table``; a request to stop is heeded between them (streamed: between layers)."""
    device, traffic = pick_device(sweep.device), Traffic()
    delta_rule = choose_kernels(run.kernels, run.model, device, sweep.dtype, run.cache)
    weights_of, rate_of = opener(run, sweep, device, traffic), partial(matmul_rate, device, getattr(torch, sweep.dtype))
    work, least, started, rate = Counts(0, 0, 0, 0.0), 0, time.perf_counter(), 0.0
    bar = progress(None, table.name, total=len(parts))
    with own_threads(sweep, device) as pool:
        for step in sorted({part.step for part in parts}):
            weights = weights_of(step)
            if not rate:
                before = time.perf_counter()
                rate = rate_of()
                started += time.perf_counter() - before
            here = [part for part in parts if part.step == step]
            for part, done in zip(here, pool.map(partial(score_part, run, sweep.score, table, weights), here), strict=True):
                work, least = work + done, least + part.trie.prefixes * len(part.items)
                bar.update()
    bar.close()
    name = {"scores": sweep.part, "proposed": "propose", "fresh": "winners"}[table.name]
    more: dict[str, object] = {"delta_rule": delta_rule}
    if sweep.stream:
        more |= streaming_work(open_step(run, parts[-1].step), parts, traffic, sweep.memory_gib)
    seconds = time.perf_counter() - started
    report_work(sweep.tables(run.folder), name, (rate + rate_of()) / 2, work, least, seconds, more)


@contextmanager
def own_threads(sweep: Sweep, device: str) -> Iterator[ThreadPoolExecutor]:
    """Threads for parts. A streamed sweep has one, which takes all cores; parts that wait are forgotten when one fails or is stopped."""
    inside = (sweep.workers or torch.get_num_threads()) if sweep.stream else 1
    at_once = sweep.workers or min(workers(sweep, device), torch.get_num_threads())
    pool = ThreadPoolExecutor(1 if sweep.stream or device == "cuda" else at_once, initializer=torch.set_num_threads, initargs=(inside,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def score_part(run: Run, score: str, table: Path, weights: Weights, part: Part) -> Counts:
    """Score one part and write its file."""
    raise_if_asked()
    engine = score_chunk if score == "loglik" else acceptance_chunk
    sums, done = engine(weights.model, part.trie, part.items, weights.block_at)
    write_part(rows(run, score, weights.tokens, part, sums), step_dir(table, part.step) / part.name)
    return done


def checkpoints(run: Run) -> list[int]:
    """Steps of the complete checkpoints; a folder that is not a run's is step 0."""
    return [0] if run.supernet else list(whole_checkpoints(run.folder))


def workers(sweep: Sweep, device: str) -> int:
    """Among how many the items are shared, each scoring its parts with one thread: small operations do not share well.

    Not the number of cores: which items lie in one part decides the last digits, and those are not to depend on the machine.
    """
    return 1 if device == "cuda" or sweep.stream else sweep.workers or WORKERS


def items_to_score(run: Run, count: int, scored: set[str]) -> list[tuple[int, Item]]:
    """The first ``count`` evaluation items (0: all) and those that earlier sweeps scored, each with its place in the file."""
    everything = read_items(run.items)
    asked = count or (len(everything) if run.items_file else run.data.items)
    if asked > len(everything):
        read_items(run.items, asked)  # says so
    return [(i, item) for i, item in enumerate(everything) if i < asked or item.name in scored]


def plan(
    run: Run, sweep: Sweep, there: list[int], have: dict[int, set[tuple[str, str]]], placements: list[str], items: list[Item]
) -> list[Part]:
    """The parts that are missing, given the checkpoints that are there and the (placement, item) pairs that each step has.

    Items that lack the same placements are swept together, in chunks that fit the memory budget. Raises ValueError where the checkpoint
    of a missing part is gone.
    """
    model, device, parts = run.model, pick_device(sweep.device), []
    dtype, shares = getattr(torch, sweep.dtype), workers(sweep, device)
    memory, weights = memory_of_part(run, sweep, [step for step in there if step in have], device)
    for step, pairs in have.items():
        missing = np.array([[(placement, item.name) not in pairs for item in items] for placement in placements])
        groups: dict[bytes, set[int]] = {}
        for i in range(len(items)):
            groups.setdefault(missing[:, i].tobytes(), set()).add(i)
        for group in groups.values():
            lacking = [p for p, lacks in zip(placements, missing[:, min(group)], strict=True) if lacks]
            if lacking:
                # All items are cut into chunks, whichever are missing: a continued sweep then finds the parts of the one that was killed.
                trie = build_trie(model, lacking)
                for share in (list(range(len(items)))[worker::shares] for worker in range(shares)):
                    for chunk in plan_chunks(model, trie, [items[i] for i in share], memory, dtype, device, weights):
                        chosen = [items[share[i]] for i in chunk if share[i] in group]
                        parts += [Part(step, trie, chosen)] if chosen else []
    if gone := sorted({part.step for part in parts} - set(there)):
        raise ValueError(f"{run.folder} lacks scores at step {', '.join(map(str, gone))} and has no checkpoint there: {REMEDY}")
    return parts


def memory_of_part(run: Run, sweep: Sweep, steps: list[int], device: str) -> tuple[int, int]:
    """(bytes for each of the parts that are scored at once, what of them weights take), for checkpoints ``steps``.

    ``memory_gib`` is for activations alone; what is free (``memory_gib=0``), and the budget of a streamed sweep, is for the weights too.
    """
    memory, dtype = memory_bytes(sweep.memory_gib, device), getattr(torch, sweep.dtype)
    if sweep.stream:
        return memory, weight_bytes(open_step(run, steps[0]), dtype, memory) if steps else 0
    if not sweep.memory_gib:
        memory -= count_bytes(run.model, dtype)
    return memory // workers(sweep, device), 0


def rows(run: Run, score: str, tokens: int, part: Part, sums: np.ndarray) -> pd.DataFrame:
    """Long score rows of one part: sums over target tokens [P, n] -> P * n rows. ``score`` is the mean acceptance of a token."""
    P, n = sums.shape
    sums = sums.astype(np.float32).astype(np.float64)  # digits beyond are rounding, and a quarter of a table's size on disk
    num_tokens = np.tile([len(item.tokens) - item.prompt for item in part.items], P)
    values = {"logp": sums.ravel(), "num_tokens": num_tokens} if score == "loglik" else {"score": sums.ravel() / num_tokens}
    return pd.DataFrame(
        {
            "scale": run.scale,
            "run": run.id,
            "seed": run.seed,
            "step": part.step,
            "tokens": tokens,
            "placement": np.repeat(part.trie.placements, n),
            "item": np.tile([item.name for item in part.items], P),
            "task": np.tile([item.task for item in part.items], P),
        }
        | values
    )


def streaming_work(reader: LayerReader, parts: list[Part], traffic: Traffic, memory_gib: float) -> dict[str, float]:
    """What a streamed sweep was about, what it read and what memory it held; tokens are those of the longest item that are read."""
    tensors = reader.tensors.values()
    lengths = {item.name: len(item.tokens) - 1 for part in parts for item in part.items}
    return {
        "parameters": sum(torch.Size(entry.shape).numel() for entry in tensors),
        "bytes_on_disk": sum(entry.bytes for entry in tensors),
        "placements": len(parts[-1].trie.placements),
        "items": len(lengths),
        "tokens": max(lengths.values()),
        "gb_read": traffic.bytes / 1e9,
        "gb_per_second": traffic.bytes / 1e9 / traffic.seconds,
        "peak_rss_gib": peak_memory() / 2**30,
        "memory_gib": memory_gib,
    }


def report_work(folder: Path, name: str, peak: float, work: Counts, least: int, seconds: float, more: dict[str, object]) -> None:
    """Say what was done against the least that could be done, how near the machine's matmul rate ``peak`` it came, and what was read.

    The rate is measured before and after: on a machine that others use it changes meanwhile.
    """
    rate = work.flops / seconds
    fields = {"layer_evaluations": work.layer_evaluations, "distinct_prefixes": least, "flops": work.flops, "seconds": round(seconds, 2),
              "flops_per_second": rate, "matmul_flops_per_second": peak}  # fmt: skip
    said = (f"{name}: {work.layer_evaluations} layer evaluations (distinct prefixes: {least}), {work.flops / 1e12:.2f} TFLOP in "
            f"{seconds:.1f} s: {rate / 1e9:.1f} GFLOP/s, {rate / peak:.0%} of this machine's matmul rate")  # fmt: skip
    if "gb_read" in more:
        said += (f"; {more['gb_read']:.2f} GB read at {more['gb_per_second']:.2f} GB/s, at most {more['peak_rss_gib']:.2f} GiB of memory "
                 "held")  # fmt: skip
    update_manifest(folder, **{name: fields | more})
    print(said)
