"""Where a sweep's weights come from: a run's checkpoints or any checkpoint folder, whole or a layer at a time; and what memory there is."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from experiments.config import Config
from experiments.machine import free_memory
from experiments.run import Run, Sweep
from experiments.runs.kept import check_origins
from experiments.runs.steps import checkpoint_dir
from experiments.runs.stopping import raise_if_asked
from experiments.training.build import supernet_to_load
from supernet import checkpoint
from supernet.decoder import Block, Supernet
from supernet.reader import LayerReader
from supernet.streaming import Traffic, resident_bytes, streamed
from supernet.teacher import load_teacher

FREE_SHARE = {"cpu": 0.5, "cuda": 0.8}
"""Of the memory that is free now, what ``memory_gib=0`` takes: on a CPU others use the same memory."""


@dataclass(frozen=True)
class Weights:
    """One checkpoint, ready for ``score_chunk``."""

    model: Supernet
    block_at: Callable[[int], Block] | None  # None: the model has its blocks
    tokens: int  # training tokens seen
    held: int = 0  # bytes of the memory budget that they take


def of_folder(config: Config) -> Config:
    """``config`` for ``supernet=FOLDER``: shapes from the folder, one checkpoint called step 0, items in a file."""
    shapes = asdict(checkpoint.open_layers(Path(config.supernet)).config)
    if config.steps not in ([], [0]):
        raise ValueError(f"steps is {config.steps}: supernet={config.supernet} is one checkpoint, step 0")
    return replace(config, model=shapes, items_file=str(Run.of(config).items), steps=[0])


def open_step(run: Run, step: int) -> LayerReader:
    """One checkpoint, to be read layer by layer."""
    if run.supernet:
        return checkpoint.open_layers(Path(run.supernet))
    return checkpoint.open_layers(checkpoint_dir(run.folder, step), teacher=run.teacher_dir)


def opener(run: Run, sweep: Sweep, device: str, traffic: Traffic) -> Callable[[int], Weights]:
    """A function that gives the weights of a step; what the one before gave is not to be used any more."""
    dtype = getattr(torch, sweep.dtype)
    if not run.supernet:
        check_origins(run)
    if sweep.stream:

        def stream(step: int) -> Weights:
            reader = open_step(run, step)
            ahead = two_layers_fit(reader, dtype, memory_bytes(sweep.memory_gib, device))
            model, block_at = streamed(reader, dtype, device, ahead, traffic, before=raise_if_asked)
            return Weights(model, block_at, 0 if run.supernet else tokens_of(checkpoint_dir(run.folder, step)))

        return stream
    if run.supernet:
        whole = checkpoint.load(Path(run.supernet)).requires_grad_(False).eval().cast(dtype).to(device)
        return lambda step: Weights(whole, None, 0)
    model = supernet_to_load(run, load_teacher(run.teacher_dir, torch.float32)).requires_grad_(False).cast(dtype).to(device)
    return lambda step: Weights(model, None, checkpoint.load_trained(model, checkpoint_dir(run.folder, step))["tokens"])


def tokens_of(folder: Path) -> int:
    """Training tokens that a checkpoint has seen."""
    return json.loads((folder / "meta.json").read_text())["tokens"]


def memory_bytes(gib: float, device: str) -> int:
    """The sweep's budget: so many GiB, or (0) a share of what is free now."""
    if gib:
        return int(gib * 2**30)
    return int(FREE_SHARE[device] * (torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()))


def two_layers_fit(reader: LayerReader, dtype: torch.dtype, budget: int) -> bool:
    """Whether the next layer may be read while one is in use: where it takes at most half of what is left beside one layer."""
    shared, layer = resident_bytes(reader, dtype)
    return 2 * layer <= budget - shared - layer


def weight_bytes(reader: LayerReader, dtype: torch.dtype, budget: int) -> int:
    """What of the budget (bytes) a streamed sweep needs for weights: the shared ones and one layer or two."""
    shared, layer = resident_bytes(reader, dtype)
    return shared + layer * (2 if two_layers_fit(reader, dtype, budget) else 1)
