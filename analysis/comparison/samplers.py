"""Runs of one scale that differ in the sampler of training and the seed alone: final quality and stability, seeds as replicates."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.bands import bands_in, inside, rows_of
from analysis.cost import full_cost
from analysis.input.runs import family, options
from analysis.optimise.fresh_items import load_fresh
from analysis.stability.bands_over_time import COLUMNS, stability_table
from analysis.stability.endpoints import Endpoints
from analysis.stability.settling import time_to_stability
from analysis.statistics.intervals import of_mean
from analysis.table import Scores, load_placements, load_scores

REFERENCE = "local"
"""The paper's stochastic sampling: the others are compared with it."""


UNIFORM = ("exhaustive", "local", "band")
"""Sources of placements that are uniform within a cost band."""


NAMES = {"F": "all-FA", "S": "all-SWA", "K": "all-KDA", "G": "all-GDN"}


EVERY, PRESETS, FRESH = "all uniform", "presets", "presets, fresh items"


PLACES = {
    EVERY: "Over uniformly drawn placements",
    PRESETS: "On the presets that targeted training cycles over",
    FRESH: "On these presets and on items that chose none of them",
}
"""The groups that the text speaks of."""


@dataclass(frozen=True)
class Grid:
    """Runs of one scale that differ in sampler and seed, on the placements and items that all of them scored."""

    scale: str
    runs: dict[tuple[str, int], Scores]  # by (strategy, seed), complete: every strategy with every seed
    folders: dict[tuple[str, int], Path]
    strategies: list[str]  # the reference first
    seeds: list[int]
    groups: dict[str, np.ndarray]  # indices of placements
    fresh: dict[str, np.ndarray]  # [seeds, presets, fresh items] by strategy: quality at T; the reference's among them, or empty

    @property
    def any(self) -> Scores:
        return self.runs[self.strategies[0], self.seeds[0]]


def grids(folders: Sequence[Path], endpoints: Endpoints, costs: str | Path | None = None) -> list[Grid]:
    """The grids among run directories: of each scale the runs of several samplers that differ in sampler, presets and seed alone.

    Runs without config.yaml, and those whose samplers have no companion, are left out. ValueError where a grid is ambiguous.
    """
    alike: list[tuple[dict[str, Any], list[Path]]] = []
    for folder in folders:
        if family(folder):
            its = comparable(options(folder))
            group = next((g for g in alike if all(g[0][name] == its[name] for name in g[0].keys() & its.keys())), None)
            if group is None:
                alike.append((its, [folder]))
            else:
                group[0].update(its)
                group[1].append(folder)
    found = [grid_of(runs, endpoints, costs) for _, runs in alike if len({family(run) for run in runs}) > 1]
    scales = [grid.scale for grid in found]
    if twice := [scale for scale in scales if scales.count(scale) > 1]:
        raise ValueError(f"scale {twice[0]} has several sets of samplers, which differ in more than sampler and seed: name the runs of one")
    return found


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """What has to be equal in runs that are compared, by option. One that a config.yaml lacks did not exist yet when it was written, so it
    is at its default and forbids nothing."""
    its = {name: config.get(name) for name in ("scale", "model")} | {"stage": config.get("stage", "distill")}
    for section in ("teacher", "data", "distill", *(["sft"] if its["stage"] == "sft" else [])):
        its |= {f"{section}.{name}": value for name, value in (config.get(section) or {}).items()}
    return {name: value for name, value in its.items() if name not in ("distill.sampler", "distill.presets")}


def grid_of(folders: Sequence[Path], endpoints: Endpoints, costs: str | Path | None = None) -> Grid:
    """The complete part of a grid: seeds that every strategy has, placements and items that every run has."""
    by: dict[tuple[str, int], Path] = {}
    for folder in folders:
        key = family(folder), int(options(folder)["seed"])
        if key in by:
            raise ValueError(f"{by[key]} and {folder} are both of sampler {key[0]} and seed {key[1]}: name the runs of one")
        by[key] = folder
    names = sorted({strategy for strategy, _ in by}, key=lambda name: (name.partition("-")[0] != REFERENCE, name))
    seeds = sorted(set.intersection(*({seed for s, seed in by if s == name} for name in names)))
    if not seeds:
        raise ValueError(f"the samplers {', '.join(names)} share no seed: train the same seeds with each")
    by = {key: folder for key, folder in by.items() if key[1] in seeds}
    whole = {key: load_scores(folder, costs) for key, folder in by.items()}
    some = next(iter(whole.values()))
    placements = sorted(set.intersection(*(set(scores.placements) for scores in whole.values())))
    items = [item for item in some.items if all(item in scores.items for scores in whole.values())]
    if not placements or len(items) < 2:
        raise ValueError(f"the runs of {some.scale} share {len(placements)} placements and {len(items)} items: sweep the same with each")
    runs = {key: scores.part(placements=placements, items=items) for key, scores in whole.items()}
    presets = sorted({p for key in by for p in options(by[key])["distill"].get("presets") or [] if len(set(p)) > 1})
    fresh = on_fresh({key: load_fresh(folder, whole[key]) for key, folder in by.items()}, names, seeds, presets)
    return Grid(some.scale, runs, by, names, seeds, groups_of(next(iter(runs.values())), by.values(), presets, endpoints), fresh)


def on_fresh(tables: dict[tuple[str, int], pd.DataFrame], names: list[str], seeds: list[int], presets: list[str]) -> dict[str, np.ndarray]:
    """The presets on items that chose none of them, of every strategy all of whose runs scored them (``sweep placements=winners``)."""
    whole = [name for name in names if all(set(presets) <= set(tables[name, seed].index) for seed in seeds)]
    if not presets or names[0] not in whole or len(whole) < 2:
        return {}
    items = sorted(set.intersection(*(set(tables[name, seed].columns) for name in whole for seed in seeds)))
    if len(items) < 2:
        return {}
    return {name: np.stack([tables[name, seed].loc[presets, items].to_numpy() for seed in seeds]) for name in whole}


def groups_of(scores: Scores, folders: Sequence[Path], presets: list[str], endpoints: Endpoints) -> dict[str, np.ndarray]:
    """Groups of placements: all uniformly drawn ones, those of each cost band, the presets, each mixer alone."""
    names, layers = scores.placements, len(scores.placements[0])
    uniform = {
        p
        for folder in folders
        if (folder / "placements.parquet").is_file()
        for p, source in load_placements(folder)[["placement", "source"]].itertuples(index=False)
        if source in UNIFORM
    }
    drawn = np.array([p in uniform for p in names])
    cost, edges = np.asarray(scores.cost), np.array(endpoints.bands) * full_cost(names, scores.cost)
    groups = {EVERY: drawn}
    for lo, hi in itertools.pairwise(edges):
        groups[f"cost {lo:.3g}–{hi:.3g}"] = drawn & inside(cost, lo, hi, edges[-1])
    groups[PRESETS] = np.array([p in presets for p in names])
    groups |= {name: np.array([p == letter * layers for p in names]) for letter, name in NAMES.items()}
    return {name: np.flatnonzero(member) for name, member in groups.items() if member.any()}


def final_quality(grid: Grid, level: float) -> pd.DataFrame:
    """A row per group and strategy: mean quality at T over the group's placements, items and seeds, and its difference to the reference.

    ``difference`` is paired by seed, placement and item, nats per token, positive where the strategy is better. Its t intervals: over
    items (items_lo, items_hi; of the mean over seeds) and over training seeds (seeds_lo, seeds_hi; NaN for one seed).
    """
    final = {s: np.stack([grid.runs[s, seed].quality[-1] for seed in grid.seeds]) for s in grid.strategies}  # [seeds, P, I]
    groups = {group: {s: final[s][:, members] for s in grid.strategies} for group, members in grid.groups.items()}
    rows = []
    for group, its in (groups | ({FRESH: grid.fresh} if grid.fresh else {})).items():
        for strategy, scored in its.items():
            mean = scored.mean(axis=1)  # [seeds, I]
            quality, lo, hi = of_mean(mean.mean(axis=1), level)
            difference = mean - its[grid.strategies[0]].mean(axis=1)
            value, seeds_lo, seeds_hi = of_mean(difference.mean(axis=1), level)
            _, items_lo, items_hi = of_mean(difference.mean(axis=0), level)
            rows.append({
                "scale": grid.scale, "group": group, "strategy": strategy, "n_placements": scored.shape[1], "n_items": mean.shape[1],
                "n_seeds": len(grid.seeds), "quality": quality, "quality_lo": lo, "quality_hi": hi, "against": grid.strategies[0],
                "difference": value, "items_lo": items_lo, "items_hi": items_hi, "seeds_lo": seeds_lo, "seeds_hi": seeds_hi,
                "verdict": verdict(items_lo, items_hi, seeds_lo, seeds_hi) if strategy != grid.strategies[0] else "", "level": level,
            })  # fmt: skip
    return pd.DataFrame(rows)


def verdict(items_lo: float, items_hi: float, seeds_lo: float, seeds_hi: float) -> str:
    """better or worse than the reference where both intervals exclude 0 on that side; else undecided, and so with one seed."""
    if items_lo > 0 and seeds_lo > 0:
        return "better"
    return "worse" if items_hi < 0 and seeds_hi < 0 else "undecided"


def stability_by_strategy(grid: Grid, endpoints: Endpoints) -> pd.DataFrame:
    """A row per strategy and cost band at the last checkpoint before T: τ/ceiling and regret, means over seeds with t intervals, and how
    many seeds have settled."""
    rows = []
    for strategy in grid.strategies:
        tables = [stability_of(grid, (strategy, seed), endpoints) for seed in grid.seeds]
        settled = pd.concat([time_to_stability(table, endpoints) for table in tables])
        for band in bands_in(tables[0]):
            before = [rows_of(band, table).sort_values("step").iloc[-2] for table in tables]
            ratio, lo, hi = of_mean(np.array([row["ratio"] for row in before]), endpoints.level)
            regret, regret_lo, regret_hi = of_mean(np.array([row["regret"] for row in before]), endpoints.level)
            rows.append({
                "scale": grid.scale, "strategy": strategy, "band_lo": band.lo, "band_hi": band.hi, "tokens": before[0]["tokens"],
                "n_placements": before[0]["n_placements"], "n_seeds": len(before), "ratio": ratio, "ratio_lo": lo, "ratio_hi": hi,
                "regret": regret, "regret_lo": regret_lo, "regret_hi": regret_hi,
                "settled": int(rows_of(band, settled).groupby("run")["reached"].all().sum()),
            })  # fmt: skip
    return pd.DataFrame(rows)


def stability_of(grid: Grid, key: tuple[str, int], endpoints: Endpoints) -> pd.DataFrame:
    """tables/stability.csv of a run where it is of the grid's placements and items, else computed on them."""
    path, scores = grid.folders[key] / "tables" / "stability.csv", grid.runs[key]
    if path.is_file():
        table = pd.read_csv(path)
        whole = rows_of(bands_in(table)[-1], table)
        if (
            set(COLUMNS) <= set(table)
            and (whole["n_placements"] == len(scores.placements)).all()
            and (table["n_items"] == len(scores.items)).all()
        ):
            return table
    return stability_table(scores, endpoints)
