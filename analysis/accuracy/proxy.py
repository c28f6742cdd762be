"""Is the likelihood ranking the accuracy ranking? The endpoints of stability, with likelihood in the place of an early checkpoint.

Stability asks whether the ranking of step t is that of the last step T. Here t is the likelihood and T the accuracy, of one checkpoint: the
statistics are the same ones, freed of item noise, within cost bands. S, P, I as in analysis.table; G groups of items.
"""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.bands import inside
from analysis.cost import full_cost
from analysis.input.evaluations import Evaluation
from analysis.stability.bands_over_time import regret_by_set
from analysis.stability.endpoints import Endpoints
from analysis.stability.margin_columns import margin_columns
from analysis.stability.settling import FEWEST, MIN_ITEMS
from analysis.statistics.ranks import spearman
from analysis.statistics.uncertainty import at_equal_cost, item_groups
from analysis.table import Scores

ALL = "all"
"""All tasks of an evaluation together."""

KEPT = ("linear", "order", "resolution")
"""Columns of the margin endpoints that are reported; resolution is in points of accuracy."""

RESAMPLES = 200
"""Random halves of the items for regret."""


def proxy_table(traces: Scores | None, evaluation: Evaluation, endpoints: Endpoints) -> pd.DataFrame:
    """One row per step, target, likelihood and cost band, the whole range last: how well a likelihood ranks by accuracy.

    - target: a task of the evaluation, or all of them.
    - likelihood: ``traces`` (of the run's own score tables, what presets are chosen by), ``own traces`` (of the task of the same name), and
      at the last step ``answers`` (the right answers of the same questions).
    - linear, order, resolution with _lo and _hi: as in stability.csv; resolution and the margin of order are in accuracy.
    - spearman, and spearman_equal_cost: of means, item noise left in.
    - regret, regret_lo, regret_hi: accuracy of the best placement of the band less that of the one with the highest likelihood, each found
      on one half of the items and measured on the other; regret_share: over that of choosing at random. Negative where likelihood, which
      is less noisy, chooses better than accuracy on half of the items.
    """
    endpoints = replace(endpoints, resamples=RESAMPLES)
    accuracy, rows = evaluation.accuracy, []
    for s, step in enumerate(accuracy.steps):
        here = accuracy.part(steps=slice(s, s + 1))
        tasks = sorted(set(here.tasks))
        for target in [ALL, *(tasks if len(tasks) > 1 else [])]:
            wanted = here if target == ALL else of_task(here, target)
            if len(wanted.items) < MIN_ITEMS:
                continue
            for name, likelihood in likelihoods(traces, evaluation, target, int(step)):
                pair = side_by_side(likelihood, wanted, np.random.default_rng([endpoints.seed, s]))
                if pair is None:
                    continue
                about = {"run": here.run, "evaluation": evaluation.name, "step": step, "tokens": here.tokens[0], "target": target,
                         "likelihood": name}  # fmt: skip
                rows += [about | row for row in by_band(pair, endpoints)]
    return pd.DataFrame(rows)


def likelihoods(traces: Scores | None, evaluation: Evaluation, target: str, step: int) -> list[tuple[str, Scores]]:
    """What may stand for accuracy, at this step."""
    found = []
    if traces is not None and step in traces.steps:
        at = int(np.flatnonzero(traces.steps == step)[0])
        now = traces.part(steps=slice(at, at + 1))
        found.append(("traces", now))
        if target in now.tasks:
            found.append(("own traces", of_task(now, target)))
    if evaluation.answers is not None and step == evaluation.accuracy.steps[-1]:
        now = evaluation.answers.part(steps=slice(-1, None))
        found.append(("answers", now if target == ALL else of_task(now, target)))
    return found


def of_task(scores: Scores, task: str) -> Scores:
    return scores.part(items=[item for item, its in zip(scores.items, scores.tasks, strict=True) if its == task])


def side_by_side(likelihood: Scores, accuracy: Scores, rng: np.random.Generator) -> Scores | None:
    """Both on the placements that both have, as two steps of one table [2, P, G]; None where fewer than 8 are shared.

    The same items stay paired. Other items are dealt at random into as many groups as the smaller table has, within tasks where both have
    the same ones: items of different sets are independent, so that any pairing will do.
    """
    shared = sorted(set(likelihood.placements) & set(accuracy.placements))
    if len(shared) < FEWEST:
        return None
    x, y = likelihood.part(placements=shared), accuracy.part(placements=shared)
    if x.items == y.items:
        quality, tasks = np.concatenate([x.quality, y.quality]), y.tasks
    else:
        if set(x.tasks) == set(y.tasks):
            blocks = [(of_task(x, task), of_task(y, task), task) for task in sorted(set(y.tasks))]
        else:
            blocks = [(x, y, ALL)]
        grouped, tasks = [], []
        for a, b, task in blocks:
            G = min(len(a.items), len(b.items))
            grouped.append(np.stack([_grouped(part, G, rng) for part in (a, b)]))
            tasks += [task] * G
        quality = np.concatenate(grouped, axis=2)
    return replace(
        y, steps=np.arange(2), tokens=np.arange(2), items=[f"{n:05d}" for n in range(quality.shape[2])], tasks=tasks, quality=quality
    )


def _grouped(scores: Scores, groups: int, rng: np.random.Generator) -> np.ndarray:
    """Means [P, G] of items dealt into groups, each task spread over them."""
    dealt = item_groups(scores.tasks, groups, rng)
    return np.stack([scores.quality[0][:, dealt == g].mean(axis=1) for g in range(groups)], axis=1)


def by_band(pair: Scores, endpoints: Endpoints) -> list[dict[str, object]]:
    """The statistics of every cost band that holds 8 placements or more, and of the whole range."""
    cost, layers = np.asarray(pair.cost), len(pair.placements[0])
    edges = np.array(endpoints.bands) * full_cost(pair.placements, pair.cost)
    bands = [(lo, hi, inside(cost, lo, hi, edges[-1])) for lo, hi in itertools.pairwise(edges)]
    bands.append((min(edges[0], cost.min()), max(edges[-1], cost.max()), np.ones(len(cost), dtype=bool)))
    bands = [band for band in bands if band[2].sum() >= FEWEST]
    sampled = min(1.0, len(cost) / float(len(set("".join(pair.placements)))) ** layers)
    regrets = regret_by_set(pair, endpoints, [member for _, _, member in bands])
    rows = []
    for number, ((lo, hi, member), regret) in enumerate(zip(bands, regrets, strict=True)):
        whole = number == len(bands) - 1
        quality, own_cost = pair.quality[:, member], None if whole else cost[member]
        rng = np.random.default_rng([endpoints.seed, number])
        means = quality.mean(axis=2)
        fair = means if whole else at_equal_cost(means[:, :, None], cost[member])[:, :, 0]
        row: dict[str, object] = {
            "band_lo": round(lo, 9), "band_hi": round(hi, 9), "whole": whole, "n_placements": int(member.sum()),
            "n_items": quality.shape[2], "spearman": spearman(*means), "spearman_equal_cost": spearman(*fair),
        }  # fmt: skip
        known = np.ptp(fair[0]) > 1e-9 and np.ptp(fair[1]) > 1e-9
        columns = margin_columns(quality, pair.tasks, endpoints, rng, sampled, own_cost) if known else {}
        for name in KEPT:
            row |= {f"{name}{end}": float(columns[f"{name}{end}"][0]) if known else np.nan for end in ("", "_lo", "_hi")}
        for name in ("regret", "regret_lo", "regret_hi", "regret_random", "regret_share", "regret_share_lo", "regret_share_hi"):
            row[name] = float(regret[name][0])
        rows.append(row)
    return rows
