"""Which placement each training step draws: a function of (seed, step) alone, so every rank and every restart draws the same."""

import numpy as np

from experiments.config import DistillConfig, SftConfig
from supernet.config import SupernetConfig
from supernet.placement import Placement, sample_counts, sample_local


def draw(options: DistillConfig | SftConfig, model: SupernetConfig, seed: int, step: int) -> Placement:
    """The placement of one step. ``targeted`` cycles over the presets; ``hybrid`` alternates local, counts and a preset."""
    rng = np.random.default_rng([seed, step])
    name = options.sampler
    if name == "hybrid":
        name = ("local", "counts", "targeted")[step % 3]
        step //= 3
    if name == "targeted":
        return Placement(options.presets[step % len(options.presets)], model.layers, model.mixers)
    sampler = {"local": sample_local, "counts": sample_counts}[name]
    return sampler(model.layers, rng, model.mixers)


def checkpoint_steps(options: DistillConfig | SftConfig) -> list[int]:
    """Step 0, then log-spaced from ``first_checkpoint`` to the last step: at most ``checkpoints`` of them, all distinct."""
    first = min(options.first_checkpoint, options.steps)
    spaced = np.geomspace(first, options.steps, options.checkpoints - 1).round().astype(int) if options.checkpoints > 2 else [options.steps]
    return sorted({0, *map(int, spaced), options.steps})
