"""``python -m experiments.random_supernet scale=15b supernet=FOLDER items_file=FILE``: a supernet of true shapes with random weights.

For trying sizes without weights. The folder is a native checkpoint in ``dtype``, written tensor by tensor (15b in bfloat16: 49.3 GB). The
file holds ``items`` items of ``data.length`` random tokens. The same options then name them to ``experiments.sweep``.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.config import Config, model_shapes
from experiments.data.items import write_items
from experiments.runs.entry import run
from experiments.runs.progress import progress
from experiments.runs.streams import stream
from supernet.checkpoint import new_folder
from supernet.config import SupernetConfig
from supernet.decoder import DECAYS, Block, Supernet
from supernet.mixers.delta import A_LOG
from supernet.reader import native_raw
from supernet.scoring import Item
from supernet.shards import write_tensors

SHARD_BYTES = 2 * 10**9


def make(config: Config) -> None:
    """Write what is missing of the folder and the file. ValueError when they are not named."""
    if not (config.supernet and config.items_file):
        raise ValueError("random_supernet writes supernet=FOLDER and items_file=FILE: name both")
    model, folder, path = model_shapes(config.model), Path(config.supernet), Path(config.items_file)
    if not folder.exists():
        rng = stream(config.seed, "random weights")
        with new_folder(folder) as new:
            write_tensors(new, random_tensors(model, getattr(torch, config.dtype), rng), SHARD_BYTES)
            (new / "config.json").write_text(json.dumps(native_raw(model, config.dtype), indent=2) + "\n")
    if not path.exists():
        rng = stream(config.seed, "random items")
        write_items([random_item(i, model.vocab, config.data.length, config.data.prompt, rng) for i in range(config.items or 1)], path)
    print(f"random supernet of {config.scale} in {folder}, items in {path}")


def random_item(i: int, vocab: int, length: int, prompt: int, rng: np.random.Generator) -> Item:
    return Item(f"random-{i:04d}", "random", torch.from_numpy(rng.integers(vocab, size=length)), prompt)


def random_tensors(config: SupernetConfig, dtype: torch.dtype, rng: np.random.Generator) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a supernet by its name in the state dict; norms, biases and decays (in float32) as modules start them.

    All matrices are cut from one pool of random numbers, each from another place: 25 billion numbers of their own would take minutes.
    """
    with torch.device("meta"):
        around, block = Supernet(config.replace(layers=1)), Block(config)
    shapes = [(name, p.shape) for name, p in around.named_parameters() if not name.startswith("blocks.")]
    inside = [(name, p.shape) for name, p in block.named_parameters()]
    room = max(shape.numel() for _, shape in shapes + inside)
    pool = rng.bit_generator.random_raw(room // 2 + 2).view(np.uint16) & np.uint16(0x807F)  # signs and mantissas of bfloat16
    layers = [(f"blocks.{layer}.{name}", shape) for layer in range(config.layers) for name, shape in inside]
    for name, shape in progress(shapes + layers, "tensors"):
        if name.endswith(DECAYS):
            yield name, torch.full(shape, A_LOG if name.endswith("A_log") else 0.0)
        elif len(shape) == 1:
            yield name, torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
        else:
            start = int(rng.integers(len(pool) - shape.numel()))
            yield name, random_matrix(shape, dtype, pool[start : start + shape.numel()])


def random_matrix(shape: torch.Size, dtype: torch.dtype, bits: np.ndarray) -> Tensor:
    """Signs and mantissas of ``bits`` [numel] under one exponent: root mean square between 0.5 and 1 over the root of the fan-in."""
    fan_in = shape[1:].numel()
    exponent = math.floor(math.log2(fan_in**-0.5 / math.sqrt(7 / 3)))  # the mean square of 1 + u, u uniform in [0, 1), is 7/3
    whole = (bits | np.uint16(exponent + 127 << 7)).view(np.int16)
    return torch.from_numpy(whole).view(torch.bfloat16).view(shape).to(dtype)


if __name__ == "__main__":
    run(make)
