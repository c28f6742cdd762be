"""Active learning of the frontier: score what the optimiser proposes, refit, stop when it hardly hopes for more; then judge the winners.

Proposals and their scores live in the run's proposed/: its own tables stay a random sample, which only the other modes extend. All that a
round decides is a function of these tables and of (placement_seed, placements scored so far). So a run that was killed anywhere finds the
same rounds again.
"""

from contextlib import nullcontext

import pandas as pd

from analysis.optimise.against_random import RANDOM
from analysis.optimise.choice import winners
from analysis.optimise.fresh_items import TABLE as FRESH
from analysis.optimise.next_round import next_placements
from analysis.optimise.proposals import TABLE as PROPOSED
from analysis.optimise.proposals import with_proposed
from analysis.table import Scores, load_placements, load_scores
from experiments.data.items import read_items
from experiments.run import Run, Sweep
from experiments.runs.records import read_json, settled, status, write_json
from experiments.runs.steps import step_dir
from experiments.runs.streams import stream
from experiments.sweeping.parts import checkpoints, plan, score_missing, score_parts
from experiments.sweeping.placements import select, table
from experiments.sweeping.tables import merge, scored_pairs, write_placements
from supernet.placement import Placement


def learn(run: Run, sweep: Sweep) -> None:
    """Rounds of proposals until the predicted gain is under its uncertainty twice in a row, or ``rounds`` of them have been scored.

    Starts from what the run has scored, or from ``num_placements`` of ``mixed``. The run's ``active.json`` holds the test set, chosen
    before the first round and never learned from, and a row per fit. Its columns: scored, learned, r2 and tau on the test set, gain,
    uncertainty, proposed (how many; 0 where it stopped), stopped (why). One fit may be content by chance: where the next is not, the
    rounds go on.
    """
    folder = run.folder
    path = folder / "placements.parquet"
    score_missing(run, sweep, load_placements(path) if path.exists() else select(sweep, run.model))
    while True:
        scores, record = load_scores(folder, sweep.costs), read_json(folder / "active.json")
        score_proposals(run, sweep, scores)  # of a round that was killed, or items and a checkpoint that the tables have got since
        last = with_proposed(folder, scores)
        scored, rounds = len(last.placements), record.get("rounds", [])
        test = record["test"] if record else held_out(load_placements(path), sweep.test_share, sweep.placement_seed)
        rng = stream(sweep.placement_seed, "proposals", scored)
        known = any(row["scored"] == scored for row in rounds) and settled(folder, "propose")  # a finished run is not touched
        with nullcontext() if known else status(folder, "propose"):
            rows, gain, judged = next_placements(last, sweep.proposals, rng, test)
        before = [row for row in rounds if row["scored"] < scored]
        stopped = ""
        if gain.stop and before and before[-1]["gain"] <= before[-1]["uncertainty"]:
            stopped = "predicted gain under its uncertainty twice in a row"
        elif sum(row["proposed"] > 0 for row in before) >= sweep.rounds:
            stopped = f"rounds={sweep.rounds}"
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
        letters = run.model.mixers
        score_proposals(run, sweep, scores, table([(Placement(p, letters=letters), s) for p, s in rows.itertuples(index=False)]))


def score_proposals(run: Run, sweep: Sweep, scores: Scores, wanted: pd.DataFrame | None = None) -> None:
    """Score what proposed/ lacks of its placements and of ``wanted``: at the last checkpoint, on the items of the run's tables."""
    folder, step = run.folder / PROPOSED, int(scores.steps[-1])
    path = folder / "placements.parquet"
    if wanted is None and not path.exists():
        return
    placements = merge(path, wanted) if wanted is not None else load_placements(path)
    names = [name for name in placements["placement"] if name not in set(scores.placements)]
    items = [item for item in read_items(run.items) if item.name in set(scores.items)]
    parts = plan(run, sweep, checkpoints(run), {step: scored_pairs(step_dir(folder, step))}, names, items) if names else []
    if parts:
        with status(folder.parent, "propose"):
            folder.mkdir(exist_ok=True)
            write_placements(placements, path)
            score_parts(run, sweep, parts, folder)


def held_out(placements: pd.DataFrame, share: float, seed: int) -> list[str]:
    """The test set: a share, drawn once, of the placements that were chosen at random."""
    candidates = placements["placement"][placements["source"].isin(RANDOM)]
    rng = stream(seed, "held out")
    return sorted(map(str, rng.permutation(candidates.to_numpy())[: round(share * len(candidates))]))


def describe(row: dict, test: int) -> str:
    """A round in one line."""
    quality = "too few to judge" if row["r2"] is None else f"R² {row['r2']:.2f}, τ {row['tau']:.2f}"
    then = f"stop: {row['stopped']}" if row["stopped"] else f"{row['proposed']} proposed"
    return (f"proposed: {row['scored']} scored, of these {test} held out ({quality}); the frontier may gain {row['gain']:.4f} ± "
            f"{row['uncertainty']:.4f} nats/token: {then}")  # fmt: skip


def score_winners(run: Run, sweep: Sweep) -> None:
    """Score the presets, the best of the random sample and all-FA at the last checkpoint on items that no table holds, into fresh/.

    So are the presets that the options name (distill.presets, sft.presets). Only placements that the score tables or somebody else chose
    get there, so the items stay fresh however often this is done. Without such items: a line that says so after proposals, an error
    where winners were asked for.
    """
    folder = run.folder
    scores = load_scores(folder, sweep.costs)
    step, used = int(scores.steps[-1]), set(scores.items)
    items = [item for item in read_items(run.items) if item.name not in used]
    if len(items) < 2:
        said = (f"no fresh items, the tables of {folder} use {len(used)} of data.items={run.data.items}: presets are reported on items "
                "that helped to choose them; raise data.items (which makes it another run) or sweep with items=... below it")  # fmt: skip
        if sweep.placements == "winners":
            raise ValueError(said)
        print(f"winners: {said}")
        return
    have = scored_pairs(step_dir(folder / FRESH, step))
    chosen = winners(folder, scores, with_proposed(folder, scores))
    placements = sorted({*(placement for placement, _ in have), *chosen, *run.training.presets})
    parts = plan(run, sweep, checkpoints(run), {step: have}, placements, items)
    if parts or not settled(folder, "winners"):
        with status(folder, "winners"):
            if parts:
                score_parts(run, sweep, parts, folder / FRESH)
    print(f"winners: {len(placements)} placements on {len(items)} fresh items at step {step} in {folder / FRESH}: "
          f"python -m analysis.presets {folder} reports them")  # fmt: skip
