"""Active learning of the frontier: score what the optimiser proposes, refit, stop when it hardly hopes for more; then judge the winners.

All that a round decides is a function of the tables and of (placement_seed, placements scored so far). So a run that was killed anywhere
finds the same rounds again.
"""

from contextlib import nullcontext

import numpy as np
import pandas as pd

from analysis.fresh import TABLE as FRESH
from analysis.presets import next_placements, winners
from analysis.table import load_placements, load_scores
from experiments.config import Config, data_dir, model_config, run_dir
from experiments.data import read_items
from experiments.parts import plan, score_missing, score_parts, scored_pairs
from experiments.placements import select, table
from experiments.records import read_json, status, write_json
from supernet.placement import Placement

RANDOM = ("local", "counts", "band", "exhaustive")
"""Sources of placements that no surrogate chose: the test set is drawn from them."""


def learn(config: Config) -> None:
    """Rounds of proposals until the predicted gain is under its uncertainty, or ``rounds`` of them have been scored.

    Starts from what the run has scored, or from ``num_placements`` of ``mixed``. The run's ``active.json`` holds the test set, chosen
    before the first round and never learned from, and a row per fit: scored, learned, r2 and tau on the test set, gain, uncertainty,
    proposed (how many; 0 where it stopped), stopped (why).
    """
    folder = run_dir(config)
    path = folder / "placements.parquet"
    score_missing(config, load_placements(path) if path.exists() else select(config))
    while True:
        scores, record = load_scores(folder), read_json(folder / "active.json")
        scored, rounds = len(scores.placements), record.get("rounds", [])
        test = record["test"] if record else held_out(load_placements(path), config)
        rng = np.random.default_rng([config.placement_seed, 3, scored])
        known = any(row["scored"] == scored for row in rounds)  # a finished run is not touched
        with nullcontext() if known else status(folder, "propose"):
            rows, gain, judged = next_placements(scores, config.proposals, rng, test)
        before = [row for row in rounds if row["scored"] < scored]
        stopped = ""
        if gain.stop:
            stopped = "predicted gain under its uncertainty"
        elif sum(row["proposed"] > 0 for row in before) >= config.rounds:
            stopped = f"rounds={config.rounds}"
        elif rows.empty:
            stopped = "every placement is scored or in the test set"
        row = {"scored": scored, "learned": scored - len(test), **judged, "gain": gain.gain, "uncertainty": gain.uncertainty,
               "proposed": 0 if stopped else len(rows), "stopped": stopped}  # fmt: skip
        updated = {"test": test, "rounds": [*before, row]}
        if updated != record:
            write_json(folder / "active.json", updated)
        print(describe(row, len(test)), flush=True)
        if stopped:
            return
        letters = model_config(config).mixers
        score_missing(config, table([(Placement(p, letters=letters), s) for p, s in rows.itertuples(index=False)]))


def held_out(placements: pd.DataFrame, config: Config) -> list[str]:
    """The test set: a share, drawn once, of the placements that were chosen at random."""
    candidates = placements["placement"][placements["source"].isin(RANDOM)]
    rng = np.random.default_rng([config.placement_seed, 4])
    return sorted(map(str, rng.permutation(candidates.to_numpy())[: round(config.test_share * len(candidates))]))


def describe(row: dict, test: int) -> str:
    """A round in one line."""
    quality = "too few to judge" if row["r2"] is None else f"R² {row['r2']:.2f}, τ {row['tau']:.2f}"
    then = f"stop: {row['stopped']}" if row["stopped"] else f"{row['proposed']} proposed"
    return (f"proposed: {row['scored']} scored, of these {test} held out ({quality}); the frontier may gain {row['gain']:.4f} ± "
            f"{row['uncertainty']:.4f} nats/token: {then}")  # fmt: skip


def score_winners(config: Config) -> None:
    """Score the presets and all-FA at the last checkpoint on items that no table holds, into the run's fresh/.

    Only placements that the score tables alone chose get there, so the items stay fresh however often this is done. Without such items:
    a line that says so after proposals, an error where winners were asked for.
    """
    folder = run_dir(config)
    scores = load_scores(folder)
    step, used = int(scores.steps[-1]), set(scores.items)
    items = [item for item in read_items(data_dir(config) / "items.parquet") if item.name not in used]
    if len(items) < 2:
        said = (f"no fresh items, the tables of {folder} use {len(used)} of data.items={config.data.items}: presets are reported on items "
                "that helped to choose them; raise data.items (which makes it another run) or sweep with items=... below it")  # fmt: skip
        if config.placements == "winners":
            raise ValueError(said)
        print(f"winners: {said}")
        return
    have = scored_pairs(folder / FRESH / f"step-{step:06d}")
    placements = sorted({*(placement for placement, _ in have), *winners(scores)})
    parts = plan(config, {step: have}, placements, items)
    if parts:
        with status(folder, "winners"):
            score_parts(config, parts, folder / FRESH)
    print(f"winners: {len(placements)} placements on {len(items)} fresh items at step {step} in {folder / FRESH}: "
          f"python -m analysis.presets {folder} reports them")  # fmt: skip
