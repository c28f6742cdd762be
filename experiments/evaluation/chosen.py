"""Which placements an evaluation asks: presets, uniform ones, random ones per cost band, all that a run has scored, or by name."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.bands import inside
from analysis.optimise.against_random import RANDOM
from analysis.stability import ENDPOINTS, load_endpoints
from analysis.table import load_placements
from experiments.runs.streams import stream
from experiments.sweeping.placements import EXHAUSTIVE_LIMIT, table
from supernet.config import SupernetConfig
from supernet.placement import COST, Placement, exhaustive, sample_band
from supernet.presets import resolve

TRIES = 50
"""Draws for each random placement that is wanted: a narrow band may hold few."""


def choose(names: list[str], run: Path | None, presets: dict[str, str], model: SupernetConfig, count: int, seed: int) -> pd.DataFrame:
    """The placement table (placement, source, cost): all-FA, then what ``names`` say. Raises ValueError naming what cannot be met."""
    scored = load_placements(run) if run and (run / "placements.parquet").exists() else None
    chosen: dict[Placement, str] = {model.placement("F" * model.layers): "preset"} if "F" in model.mixers else {}
    for name in names:
        if name == "presets":
            if not presets and names == ["presets"]:
                raise ValueError(f"placements=presets and there is no presets.yaml in {run}: python -m analysis.presets {run} makes it")
            if not presets:
                print(f"no presets.yaml beside the checkpoint: python -m analysis.presets {run or 'RUN'} makes it; the others are asked")
            new = [(model.placement(p), "preset") for p in presets.values()]
        elif name == "uniform":
            new = [(model.placement(letter * model.layers), "preset") for letter in model.mixers]
        elif name == "scored":
            if scored is None:
                raise ValueError(f"placements=scored and there is no placements.parquet in {run}: run the sweep, or choose others")
            new = [(model.placement(p), s) for p, s in zip(scored["placement"], scored["source"], strict=True)]
        elif name == "exhaustive":
            if (number := len(model.mixers) ** model.layers) > EXHAUSTIVE_LIMIT:
                raise ValueError(f"placements=exhaustive would be {number} placements, over {EXHAUSTIVE_LIMIT}: choose random")
            new = [(p, "exhaustive") for p in exhaustive(model.layers, model.mixers)]
        elif name == "random":
            new = draw(model, scored, count, seed)
        else:
            try:
                new = [(resolve(name, presets, model), "preset")]
            except ValueError as error:
                kinds = "presets, uniform, random, scored, exhaustive"
                raise ValueError(f"placements: {error}; or {kinds}") from None
        for placement, source in new:
            chosen.setdefault(placement, source)
    return table(list(chosen.items()))


def draw(model: SupernetConfig, scored: pd.DataFrame | None, count: int, seed: int) -> list[tuple[Placement, str]]:
    """``count`` of each cost band of the declared endpoints, or as many as there are: those that a sweep has scored come first, so that
    their likelihood is known, the others are drawn uniformly within the band. ``all-FA`` is none of them."""
    edges = np.array(load_endpoints(ENDPOINTS).bands) * model.layers * max(COST.get(m, 1.0) for m in model.mixers)
    known = [] if scored is None else list(scored["placement"][scored["source"].isin(RANDOM)])
    found: list[tuple[Placement, str]] = []
    for band, (low, high) in enumerate(itertools.pairwise(edges)):
        rng = stream(seed, "evaluated placements", band)
        there = [p for p in known if inside(np.array([Placement(p, letters=model.mixers).cost()]), low, high, edges[-1])[0]]
        here = dict.fromkeys(model.placement(there[i]) for i in rng.permutation(len(there))[:count])
        for _ in range(TRIES * count):
            if len(here) >= count:
                break
            try:
                here[sample_band(model.layers, low, high, rng, model.mixers)] = None
            except ValueError:  # the band holds none
                break
        found += [(p, "band") for p in here]
    return found
