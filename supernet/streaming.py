"""A supernet of which one layer at a time is in memory, for the sweep engine: each layer is read anew for every chunk of items."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from supernet.config import SupernetConfig
from supernet.decoder import Block, Supernet, stored


class Reader(Protocol):
    """What ``supernet.checkpoint.open_layers`` gives."""

    config: SupernetConfig

    def shared(self) -> dict[str, Tensor]: ...
    def layer(self, i: int) -> dict[str, Tensor]: ...
    def bytes_of_layer(self, i: int) -> int: ...


@dataclass
class Traffic:
    """What was read so far: bytes as they lie on disk, and the seconds that reading and converting them took."""

    bytes: int = 0
    seconds: float = 0.0


def resident_bytes(reader: Reader, dtype: torch.dtype) -> tuple[int, int]:
    """(bytes of embedding, final norm and head, bytes of the largest layer), as they are held in ``dtype``."""
    c = reader.config
    with torch.device("meta"):
        layer = sum(p.numel() for p in Block(c).parameters()) * dtype.itemsize
    on_disk = max(reader.bytes_of_layer(i) for i in range(c.layers))
    return (c.vocab * (1 if c.tied else 2) + 1) * c.hidden * dtype.itemsize, max(layer, on_disk)


def streamed(
    reader: Reader, dtype: torch.dtype, device: str, ahead: bool, traffic: Traffic, before: Callable[[], None] = lambda: None
) -> tuple[Supernet, Callable[[int], Block]]:
    """(a supernet whose blocks have no weights, ``block_at`` for ``score_chunk``): the same weights as ``Supernet.cast`` gives.

    A block that ``block_at`` gave is emptied by its next call. ``ahead``: a thread reads the next layer meanwhile, so two are held.
    ``before`` is called before each layer and may raise. Raises what the reader raises.
    """
    with torch.device("meta"):
        model = Supernet(reader.config).requires_grad_(False).eval()
    read = _timed(reader.shared, traffic, dtype, device)
    model.embed.load_state_dict({"weight": read["embed.weight"]}, assign=True)
    model.norm.load_state_dict({"weight": read["norm.weight"]}, assign=True)
    model.head.load_state_dict({"weight": read["embed.weight" if reader.config.tied else "head.weight"]}, assign=True)
    pool, coming, used = ThreadPoolExecutor(1), {}, []

    def start(layer: int) -> Future:
        return pool.submit(_timed, lambda: reader.layer(layer), traffic, dtype, device)

    def block_at(layer: int) -> Block:
        before()
        while used:
            used.pop().to_empty(device="meta")  # before the next layer takes its place
        block = model.blocks[layer]
        used.append(block)
        tensors = (coming.pop(layer, None) or start(layer)).result()
        coming.clear()
        block.load_state_dict(tensors, assign=True)
        if ahead and layer + 1 < reader.config.layers:
            coming[layer + 1] = start(layer + 1)
        return block

    return model, block_at


def _timed(read: Callable[[], dict[str, Tensor]], traffic: Traffic, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """The tensors in ``dtype`` on ``device``, decays in float32; only one thread reads at a time."""
    started = time.perf_counter()
    tensors = read()
    traffic.bytes += sum(t.nbytes for t in tensors.values())
    for name in tensors:  # one by one, so that no two copies of a layer are held
        tensors[name] = tensors[name].to(device, stored(name, dtype))
    traffic.seconds += time.perf_counter() - started
    return tensors
