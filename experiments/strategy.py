"""Which placement each training step draws: a function of (seed, step) alone, so every rank and every restart draws the same."""

import numpy as np

from experiments.config import DistillConfig
from supernet.config import SupernetConfig
from supernet.placement import Placement, sample_counts, sample_local


def draw(distill: DistillConfig, model: SupernetConfig, seed: int, step: int) -> Placement:
    """The placement of one step. ``targeted`` cycles over the presets; ``hybrid`` alternates local, counts and a preset."""
    rng = np.random.default_rng([seed, step])
    name = distill.sampler
    if name == "hybrid":
        name = ("local", "counts", "targeted")[step % 3]
        step //= 3
    if name == "targeted":
        return Placement(distill.presets[step % len(distill.presets)], model.layers, model.mixers)
    sampler = {"local": sample_local, "counts": sample_counts}[name]
    return sampler(model.layers, rng, model.mixers)


def checkpoint_steps(distill: DistillConfig) -> list[int]:
    """Step 0, then log-spaced from ``first_checkpoint`` to the last step: at most ``checkpoints`` of them, all distinct."""
    first = min(distill.first_checkpoint, distill.steps)
    spaced = np.geomspace(first, distill.steps, distill.checkpoints - 1).round().astype(int) if distill.checkpoints > 2 else [distill.steps]
    return sorted({0, *map(int, spaced), distill.steps})
