"""The parts of a run's score tables: which are missing, and how they are scored. Killed anywhere, the same call finds the same rest."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

from analysis.table import load_placements, write_part
from experiments.build import load_frozen, supernet_to_load
from experiments.config import Config, data_dir, model_config, run_dir
from experiments.data import read_items
from experiments.progress import progress
from experiments.records import status, update_manifest
from experiments.strategy import checkpoint_steps
from supernet.checkpoint import load_trained
from supernet.decoder import Supernet
from supernet.scoring import Counts, Item, Trie, build_trie, plan_chunks, score_chunk

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


def score_missing(config: Config, wanted: pd.DataFrame) -> None:
    """Score what is missing, so that the run's tables hold every placement on every item at every checkpoint.

    Placements and items asked for in earlier sweeps of the run stay in: a larger request extends the tables, a smaller one changes nothing.
    """
    folder = run_dir(config)
    steps = checkpoints(folder)
    scored = [int(p.name.removeprefix("step-")) for p in sorted((folder / "scores").glob("step-??????")) if any(p.glob("*.parquet"))]
    asked = config.steps or checkpoint_steps(config.distill)
    unknown = sorted(set(asked) - set(steps) - set(scored))
    if unknown:
        have = f"choose from {', '.join(map(str, steps))} or " if steps else ""
        raise ValueError(f"no checkpoint of step {', '.join(map(str, unknown))} in {folder}: {have}{REMEDY}")
    placements = merge(folder / "placements.parquet", wanted)
    have = {step: scored_pairs(folder / "scores" / f"step-{step:06d}") for step in sorted({*asked, *scored})}
    items = items_to_score(config, {item for pairs in have.values() for _, item in pairs})
    parts = plan(config, have, list(placements["placement"]), items)
    if not parts:
        print(f"sweep: complete, {len(placements)} placements x {len(items)} items x {len(scored)} checkpoints in {folder}")
        return
    with status(folder, "sweep"):
        write_placements(placements, folder / "placements.parquet")
        score_parts(config, parts, folder / "scores")


def score_parts(config: Config, parts: list[Part], table: Path) -> None:
    """Score ``parts`` into their steps' folders under ``table``."""
    folder, device = run_dir(config), pick_device(config)
    teacher = load_frozen(config, torch.float32)
    model = supernet_to_load(config, teacher).requires_grad_(False).cast(getattr(torch, config.dtype)).to(device)
    work, least, started = Counts(0, 0, 0, 0.0), 0, time.perf_counter()
    bar = progress(None, table.name, total=len(parts))
    with ThreadPoolExecutor(workers(config, device), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for step in sorted({part.step for part in parts}):
            meta = load_trained(model, folder / "checkpoints" / f"step-{step:06d}")
            here = [part for part in parts if part.step == step]
            for part, done in zip(here, pool.map(partial(score_part, config, table, model, meta), here), strict=True):
                work, least = work + done, least + part.trie.prefixes * len(part.items)
                bar.update()
    bar.close()
    report_work(folder, "sweep" if table.name == "scores" else "winners", model, work, least, time.perf_counter() - started)


def score_part(config: Config, table: Path, model: Supernet, meta: dict, part: Part) -> Counts:
    """Score one part with the model as it is and write its file."""
    logp, done = score_chunk(model, part.trie, part.items)
    write_part(rows(config, run_dir(config).name, meta, part, logp), table / f"step-{part.step:06d}" / part.name)
    return done


def checkpoints(folder: Path) -> list[int]:
    """Steps of the run's complete checkpoints."""
    return [int(p.name.removeprefix("step-")) for p in sorted((folder / "checkpoints").glob("step-??????")) if (p / "meta.json").exists()]


def workers(config: Config, device: str) -> int:
    """Parts scored at once. On a CPU each takes one thread: small operations do not share well, and the numbers then do not depend on
    how many cores there are."""
    return 1 if device == "cuda" else config.workers or torch.get_num_threads()


def pick_device(config: Config) -> str:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda' and torch sees no GPU: set device=cpu, or install a CUDA build of torch")
    return ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device


def merge(path: Path, wanted: pd.DataFrame) -> pd.DataFrame:
    """The placements of earlier sweeps of this run, then the new ones."""
    if not path.exists():
        return wanted
    return pd.concat([load_placements(path), wanted]).drop_duplicates("placement", ignore_index=True)


def write_placements(placements: pd.DataFrame, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    placements.to_parquet(temporary, index=False)
    temporary.replace(path)


def items_to_score(config: Config, scored: set[str]) -> list[Item]:
    """The first ``items`` of the run's evaluation items, and those that earlier sweeps scored."""
    path, asked = data_dir(config) / "items.parquet", config.items or config.data.items
    read_items(path, asked)  # says so when there are not as many
    return [item for i, item in enumerate(read_items(path)) if i < asked or item.name in scored]


def plan(config: Config, have: dict[int, set[tuple[str, str]]], placements: list[str], items: list[Item]) -> list[Part]:
    """The parts that are missing, given the (placement, item) pairs that each step has.

    Items that lack the same placements are swept together, in chunks that fit the memory budget. Raises ValueError where the checkpoint
    of a missing part is gone.
    """
    model, device, folder, parts = model_config(config), pick_device(config), run_dir(config), []
    shares = workers(config, device)
    memory = int(config.memory_gib * 2**30 / shares)
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
                    for chunk in plan_chunks(model, trie, [items[i] for i in share], memory, getattr(torch, config.dtype), device):
                        chosen = [items[share[i]] for i in chunk if share[i] in group]
                        parts += [Part(step, trie, chosen)] if chosen else []
    if gone := sorted({part.step for part in parts} - set(checkpoints(folder))):
        raise ValueError(f"{folder} lacks scores at step {', '.join(map(str, gone))} and has no checkpoint there: {REMEDY}")
    return parts


def scored_pairs(folder: Path) -> set[tuple[str, str]]:
    """(placement, item) of every row of a step's parts. Raises ValueError naming a file that cannot be read."""
    pairs: set[tuple[str, str]] = set()
    for path in sorted(folder.glob("*.parquet")):
        try:
            table = pq.read_table(path, columns=["placement", "item"])
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is truncated or not a score table ({reason}): delete it and run the sweep again") from None
        pairs.update(zip(table["placement"].to_pylist(), table["item"].to_pylist(), strict=True))
    return pairs


def rows(config: Config, run_name: str, meta: dict, part: Part, logp: np.ndarray) -> pd.DataFrame:
    """Long score rows of one part: logp [P, n] -> P * n rows."""
    P, n = logp.shape
    return pd.DataFrame(
        {
            "scale": config.scale,
            "run": run_name,
            "seed": config.seed,
            "step": part.step,
            "tokens": meta["tokens"],
            "placement": np.repeat(part.trie.placements, n),
            "item": np.tile([item.name for item in part.items], P),
            "task": np.tile([item.task for item in part.items], P),
            "logp": logp.ravel(),
            "num_tokens": np.tile([len(item.tokens) - item.prompt for item in part.items], P),
        }
    )


def report_work(folder: Path, name: str, model: Supernet, work: Counts, least: int, seconds: float) -> None:
    """Say what was done against the least that could be done, and how near the machine's matmul rate it came."""
    peak = matmul_rate(model)
    fields = {"layer_evaluations": work.layer_evaluations, "distinct_prefixes": least, "flops": work.flops, "seconds": round(seconds, 2),
              "flops_per_second": work.flops / seconds, "matmul_flops_per_second": peak}  # fmt: skip
    update_manifest(folder, **{name: fields})
    rate = work.flops / seconds
    print(f"{name}: {work.layer_evaluations} layer evaluations (distinct prefixes: {least}), {work.flops / 1e12:.2f} TFLOP in "
          f"{seconds:.1f} s: {rate / 1e9:.1f} GFLOP/s, {rate / peak:.0%} of this machine's matmul rate")  # fmt: skip


def matmul_rate(model: Supernet, size: int = 1024, repeats: int = 10) -> float:
    """FLOP/s of a square matmul in the model's dtype on its device."""
    x = model.embed.weight.new_ones(size, size)
    x @ x
    synchronise = torch.cuda.synchronize if x.is_cuda else lambda: None
    synchronise()
    started = time.perf_counter()
    for _ in range(repeats):
        x @ x
    synchronise()
    return repeats * 2 * size**3 / (time.perf_counter() - started)
