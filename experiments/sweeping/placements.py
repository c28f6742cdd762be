"""Which placements a sweep scores: drawn by name, listed, or read from a file. More of them extend the same sequence."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.run import Sweep
from experiments.runs.streams import stream
from supernet.config import SupernetConfig
from supernet.placement import COST, Placement, exhaustive, sample_band, sample_counts, sample_local

EXHAUSTIVE_LIMIT = 100_000
SAMPLERS = ("exhaustive", "mixed", "local", "counts", "band")


def select(sweep: Sweep, model: SupernetConfig) -> pd.DataFrame:
    """The placement table (placement, source, cost) that a sweep asks for. Raises ValueError naming what cannot be met."""
    name = sweep.placements
    if name == "exhaustive":
        if len(model.mixers) ** model.layers > EXHAUSTIVE_LIMIT:
            raise ValueError(f"placements=exhaustive would be {len(model.mixers)}^{model.layers} placements, over {EXHAUSTIVE_LIMIT}: "
                             "choose mixed, local, counts or band with num_placements=...")  # fmt: skip
        return table([(p, "exhaustive") for p in exhaustive(model.layers, model.mixers)])
    if name in SAMPLERS or name == "proposed":  # proposed: where it starts when nothing is scored yet
        most = len(model.mixers) ** model.layers // 2  # drawing more of them without repetition would take for ever: use exhaustive
        if not 1 <= sweep.num_placements <= most:
            raise ValueError(f"num_placements is {sweep.num_placements}: give 1 to {most} for placements={name}")
        chosen: dict[Placement, str] = {}
        for placement, source in endless(
            "mixed" if name == "proposed" else name, model, sweep.bands, stream(sweep.placement_seed, "placements")
        ):
            chosen.setdefault(placement, source)
            if len(chosen) == sweep.num_placements:
                return table(list(chosen.items()))
    listed = Path(name).read_text() if Path(name).is_file() else name
    letters = re.split(r"[\s,+]+", listed.strip())
    if not Path(name).is_file() and len(letters) == 1 and set(name) - set(model.mixers):
        raise ValueError(f"placements is {name!r}: choose from {', '.join(SAMPLERS)}, proposed, winners, or give placements of "
                         f"{model.layers} letters like {'F' * model.layers}+{'G' * model.layers}, or a file with one a line")  # fmt: skip
    return table([(Placement(p, model.layers, model.mixers), "preset") for p in dict.fromkeys(letters)])


def endless(name: str, model: SupernetConfig, bands: int, rng: np.random.Generator) -> Iterator[tuple[Placement, str]]:
    """Endless (placement, source). ``mixed`` starts with the homogeneous placements, then takes local, counts and band in turn."""
    if name == "mixed":
        yield from ((Placement(m * model.layers, letters=model.mixers), "preset") for m in model.mixers)
    costs = [COST[m] * model.layers for m in model.mixers]
    edges = np.linspace(min(costs), max(costs), bands + 1)
    turn = 0
    while True:
        source = ("local", "counts", "band")[turn % 3] if name == "mixed" else name
        if source == "local":
            yield sample_local(model.layers, rng, model.mixers), source
        elif source == "counts":
            yield sample_counts(model.layers, rng, model.mixers), source
        else:
            band = (turn // 3 if name == "mixed" else turn) % bands
            yield sample_band(model.layers, edges[band], edges[band + 1], rng, model.mixers), source
        turn += 1


def table(rows: list[tuple[Placement, str]]) -> pd.DataFrame:
    return pd.DataFrame({"placement": [str(p) for p, _ in rows], "source": [s for _, s in rows], "cost": [p.cost() for p, _ in rows]})
