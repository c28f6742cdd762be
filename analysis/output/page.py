"""report.html of one run: one file, plotly.js inside, in which a reader moves over the frontier and through training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from analysis.bands import bands_in
from analysis.cost import full_cost
from analysis.output.style import ink_on, mixer_colours
from analysis.output.write import write_text
from analysis.stability.pareto import nondominated, uniform_reference
from analysis.statistics.intervals import of_mean
from analysis.table import Scores

PAGE = Path(__file__).with_name("page.html")
MOST = 2000
"""Placements that a page holds; of more, the frontiers and a random sample."""

FEW = 5
"""Items of a task under which its quality is given without an interval."""

NAMES = {"F": "full attention", "S": "sliding window", "K": "Kimi Delta Attention", "G": "Gated DeltaNet"}


def page_data(
    scores: Scores, tables: dict[str, pd.DataFrame], title: str, about: Sequence[str], verdict: pd.DataFrame, words: Sequence[str],
    level: float, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """What the page shows, as plain data. Lists over steps [S] of lists over placements [P]: ``quality`` and ``half``, half the width of
    its t interval over items; ``ahead`` and ``ahead_half``, quality less that of the dearest mixer in all layers, paired by item, None
    where that was not scored; the same per task. ``frontier`` [S]: places of its members in ``placements``, cheapest first.
    """
    letters = "".join(sorted(set("".join(scores.placements)), key=lambda c: ("FSKG".find(c) % 99, c)))
    costs = np.asarray(scores.cost)
    front = nondominated(costs, scores.quality.mean(axis=2))
    dearest = uniform_reference(scores)
    kept, note = np.arange(len(costs)), f"{len(costs)} placements, {len(scores.items)} items."
    if len(costs) > MOST:
        drawn = np.random.default_rng([seed, *b"page"]).permutation(len(costs))[:MOST]
        kept = np.union1d(drawn, np.flatnonzero(front.any(axis=0)))
        kept = kept if dearest is None else np.union1d(kept, [dearest])
        note += f" Shown: those on a frontier and a random sample, {len(kept)} in all."
    quality, half = _mean_and_half(scores.quality[:, kept], level)
    ahead, ahead_half = None, None
    if dearest is not None:
        gap = scores.quality[:, kept] - scores.quality[:, [dearest]]
        ahead, ahead_half = _mean_and_half(gap, level)
    tasks = []
    if len(set(scores.tasks)) > 1:
        for name in dict.fromkeys(scores.tasks):
            of_task = np.array(scores.tasks) == name
            own, wide = _mean_and_half(scores.quality[:, kept][:, :, of_task], level if of_task.sum() >= FEW else np.nan)
            tasks.append({"name": f"task {name}", "quality": own, "half": wide})
    where = {p: n for n, p in enumerate(kept.tolist())}
    order = np.argsort(costs, kind="stable")
    edges = sorted({e for b in bands_in(tables["stability"]) if not b.whole for e in (b.lo, b.hi)}) if "stability" in tables else []
    seen = scores.quality[-1].mean(axis=1)
    room = 0.05 * (scores.quality.mean(axis=2).max() - np.quantile(seen, 0.02))
    return {
        "title": title, "about": list(about), "words": list(words), "note": note, "level": f"{level:.0%}", "items": len(scores.items),
        "verdict": {"columns": list(verdict.columns), "rows": verdict.astype(str).to_numpy().tolist()},
        "steps": scores.steps.tolist(), "tokens": scores.tokens.tolist(), "placements": [scores.placements[p] for p in kept],
        "cost": costs[kept].tolist(), "full": full_cost(scores.placements, scores.cost), "axis": "decode cost (FA-layer equivalents)",
        "reference": "all-F" if "F" in letters else "the dearest" if dearest is None else f"all-{scores.placements[dearest][0]}",
        "quality": quality, "half": half, "ahead": ahead, "ahead_half": ahead_half, "tasks": tasks, "bands": edges,
        "frontier": [[where[p] for p in order[row[order]].tolist()] for row in front],
        "range": [float(np.quantile(seen, 0.02) - room), float(scores.quality.mean(axis=2).max() + room)],
        "colours": {
            letter: {"fill": fill, "ink": ink_on(fill), "name": NAMES.get(letter, f"mixer {letter}")}
            for letter, fill in mixer_colours(letters).items()
        },
    }  # fmt: skip


def write_page(data: dict[str, Any], path: Path) -> None:
    """The page with plotly.js and the data inside: it asks no network for anything."""
    content = (
        json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("</", "<\\/").replace("<!--", "<\\u0021--")
    )
    text = PAGE.read_text(encoding="utf-8")
    write_text(text.replace("/*PLOTLY*/", get_plotlyjs()).replace("/*DATA*/", content), path)


def _mean_and_half(values: np.ndarray, level: float) -> tuple[list[list[float]], list[list[float | None]]]:
    """Means over items [S, P] of values [S, P, I] and half the widths of their intervals; None where one item has none."""
    mean, low, _ = of_mean(values, level)
    half = [[None if np.isnan(h) else round(float(h), 4) for h in row] for row in mean - low]
    return np.round(mean, 4).tolist(), half
