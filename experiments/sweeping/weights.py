"""Where a sweep's weights come from: a run's checkpoints or any checkpoint folder, whole or a layer at a time; and what memory there is."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from experiments.config import Config, items_path, run_dir, teacher_dir
from experiments.runs.kept import check_origins
from experiments.runs.stopping import raise_if_asked
from experiments.training.build import load_frozen, supernet_to_load
from supernet import checkpoint
from supernet.decoder import Block, Supernet
from supernet.reader import LayerReader
from supernet.streaming import Traffic, resident_bytes, streamed

FREE_SHARE = {"cpu": 0.5, "cuda": 0.8}
"""Of the memory that is free now, what ``memory_gib=0`` takes: on a CPU others use the same memory."""


@dataclass(frozen=True)
class Weights:
    """One checkpoint, ready for ``score_chunk``."""

    model: Supernet
    block_at: Callable[[int], Block] | None  # None: the model has its blocks
    tokens: int  # training tokens seen


def of_folder(config: Config) -> Config:
    """``config`` for ``supernet=FOLDER``: shapes from the folder, one checkpoint called step 0, items in a file."""
    shapes = asdict(checkpoint.open_layers(Path(config.supernet)).config)
    if config.steps not in ([], [0]):
        raise ValueError(f"steps is {config.steps}: supernet={config.supernet} is one checkpoint, step 0")
    return replace(config, model=shapes, items_file=str(items_path(config)), steps=[0])


def open_step(config: Config, step: int) -> LayerReader:
    """One checkpoint, to be read layer by layer."""
    if config.supernet:
        return checkpoint.open_layers(Path(config.supernet))
    return checkpoint.open_layers(checkpoint_folder(config, step), teacher=teacher_dir(config))


def checkpoint_folder(config: Config, step: int) -> Path:
    return run_dir(config) / "checkpoints" / f"step-{step:06d}"


def opener(config: Config, device: str, traffic: Traffic) -> Callable[[int], Weights]:
    """A function that gives the weights of a step; what the one before gave is not to be used any more."""
    dtype = getattr(torch, config.dtype)
    if not config.supernet:
        check_origins(config)
    if config.stream:

        def stream(step: int) -> Weights:
            reader = open_step(config, step)
            ahead = two_layers_fit(config, reader, device)
            model, block_at = streamed(reader, dtype, device, ahead, traffic, before=raise_if_asked)
            return Weights(model, block_at, 0 if config.supernet else meta_of(config, step)["tokens"])

        return stream
    if config.supernet:
        whole = checkpoint.load(Path(config.supernet)).requires_grad_(False).eval().cast(dtype).to(device)
        return lambda step: Weights(whole, None, 0)
    teacher = load_frozen(config, torch.float32)
    model = supernet_to_load(config, teacher).requires_grad_(False).cast(dtype).to(device)
    return lambda step: Weights(model, None, checkpoint.load_trained(model, checkpoint_folder(config, step))["tokens"])


def meta_of(config: Config, step: int) -> dict:
    return json.loads((checkpoint_folder(config, step) / "meta.json").read_text())


def memory_bytes(config: Config, device: str) -> int:
    """The sweep's budget: ``memory_gib``, or a share of what is free now."""
    if config.memory_gib:
        return int(config.memory_gib * 2**30)
    return int(FREE_SHARE[device] * (torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()))


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control groups (version 2), as a scheduler sets them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    except OSError:
        raise ValueError("memory_gib=0 needs Linux, which tells what memory is free: give memory_gib a number") from None
    free = [1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))]
    group = Path("/sys/fs/cgroup") / own.lstrip("/")
    for folder in (group, *group.parents):
        limit = folder / "memory.max"
        if limit.is_file() and (most := limit.read_text().strip()) != "max":
            free.append(int(most) - int((folder / "memory.current").read_text()))
    return max(min(free), 0)


def two_layers_fit(config: Config, reader: LayerReader, device: str) -> bool:
    """Whether the next layer may be read while one is in use: where it takes at most half of what is left beside one layer."""
    shared, layer = resident_bytes(reader, getattr(torch, config.dtype))
    return 2 * layer <= memory_bytes(config, device) - shared - layer


def weight_bytes(config: Config, step: int, device: str) -> int:
    """What of the budget a streamed sweep needs for weights: the shared ones and one layer or two."""
    reader = open_step(config, step)
    shared, layer = resident_bytes(reader, getattr(torch, config.dtype))
    return shared + layer * (2 if two_layers_fit(config, reader, device) else 1)
