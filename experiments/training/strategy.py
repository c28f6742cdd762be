"""Which placement each training step draws: a function of (seed, step) alone, so every rank and every restart draws the same."""

import numpy as np

from experiments.config import DistillConfig, SftConfig
from experiments.runs.streams import stream
from supernet.config import SupernetConfig
from supernet.placement import Placement, sample_counts, sample_local


def draw(options: DistillConfig | SftConfig, model: SupernetConfig, seed: int, step: int, trained: str = "") -> Placement:
    """The placement of one step. ``targeted`` cycles over the presets; ``hybrid`` alternates local, counts and a preset.

    Placements without any of the ``trained`` mixers (empty: all are) teach nothing and are passed over.
    """
    trained = trained or model.mixers
    rng = stream(seed, "draw", step)
    name = options.sampler
    if name == "hybrid":
        name = ("local", "counts", "targeted")[step % 3]
        step //= 3
    if name == "targeted":
        presets = [p for p in options.presets if set(p) & set(trained)]
        return Placement(presets[step % len(presets)], model.layers, model.mixers)
    sampler = {"local": sample_local, "counts": sample_counts}[name]
    while True:
        placement = sampler(model.layers, rng, model.mixers)
        if set(placement) & set(trained):
            return placement


def checkpoint_steps(options: DistillConfig | SftConfig) -> list[int]:
    """The steps whose checkpoints are kept: ``checkpoints_at``, shares of the training, rounded to steps.

    Without shares: step 0, then log-spaced from ``first_checkpoint`` to the last step, at most ``checkpoints`` of them, all distinct.
    """
    if options.checkpoints_at:
        return sorted({round(share * options.steps) for share in options.checkpoints_at})
    first = min(options.first_checkpoint, options.steps)
    spaced = np.geomspace(first, options.steps, options.checkpoints - 1).round().astype(int) if options.checkpoints > 2 else [options.steps]
    return sorted({0, *map(int, spaced), options.steps})
