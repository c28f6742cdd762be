"""Streams of random numbers by name: no two of them collide, whatever seeds and numbers they are given."""

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """The generator of (seed, name, numbers): a function of them alone. Numbers, such as a step or an epoch, are 0 or more.

    The name is part of the spawn key, not of the entropy: there ``[seed, 1]`` and ``[seed, 1, 0]`` would be one stream.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()), *numbers)))


def torch_stream(seed: int, name: str, *numbers: int) -> "torch.Generator":
    """The same for torch, on the CPU."""
    import torch  # takes seconds, which a command that finds all done does not need

    return torch.Generator().manual_seed(torch_seed(seed, name, *numbers))


def torch_seed(seed: int, name: str, *numbers: int) -> int:
    """For ``torch.manual_seed``: module constructors know no generator."""
    return int(stream(seed, name, *numbers).integers(2**63))
