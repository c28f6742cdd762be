"""Tables, figures and report.md of a run's evaluations."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.accuracy.proxy import ALL, proxy_table
from analysis.accuracy.retention import retention
from analysis.bands import Band, inside
from analysis.cost import full_cost
from analysis.input.evaluations import Evaluation, named_placements
from analysis.output import evaluation_figures, style
from analysis.output.write import markdown, write_csv, write_text
from analysis.stability.endpoints import Endpoints
from analysis.statistics.intervals import of_mean
from analysis.table import Scores


def write_evaluation(run: Path, traces: Scores | None, evaluation: Evaluation, endpoints: Endpoints, folder: Path) -> str:
    """Everything of one task; returns the report."""
    kept = retention_table(run, evaluation, endpoints.level)
    points = accuracy_table(run, traces, evaluation, endpoints)
    proxy = proxy_table(traces, evaluation, endpoints)
    if len(proxy):
        proxy["band"] = [str(Band(lo, hi, whole)) for lo, hi, whole in zip(proxy["band_lo"], proxy["band_hi"], proxy["whole"], strict=True)]
    for name, table in (("retention", kept), ("accuracy", points), ("proxy", proxy)):
        write_csv(table, folder / "tables" / f"{name}.csv", digits=6)
    figures = draw(run, evaluation, points, proxy, endpoints.level, folder / "figures")
    text = report(run, evaluation, kept, proxy, figures)
    write_text(text, folder / "evaluation.md")
    return text


def retention_table(run: Path, evaluation: Evaluation, level: float) -> pd.DataFrame:
    """One row per step, task (all of them, then each), named placement and reference (all-FA, teacher): evaluation, step, tokens, task,
    name, placement, cost, items, chance, against, the columns of ``retention``, and ``no_data``: why retention is empty."""
    accuracy, rows = evaluation.accuracy, []
    named = named_placements(run, accuracy)
    tasks = np.array(accuracy.tasks)
    chance = evaluation.questions["chance"].to_numpy(float)
    for s, step in enumerate(accuracy.steps):
        references = {"all-FA": accuracy.quality[s, accuracy.placements.index(named["all-FA"])]} if "all-FA" in named else {}
        references |= {"teacher": evaluation.teacher} if evaluation.teacher is not None else {}
        for task in [ALL, *(sorted(set(tasks)) if len(set(tasks)) > 1 else [])]:
            here = np.ones(len(tasks), dtype=bool) if task == ALL else tasks == task
            if here.sum() < 2:
                continue
            for name, placement in named.items():
                at = accuracy.placements.index(placement)
                for against, reference in references.items():
                    found = retention(accuracy.quality[s, at, here], reference[here], list(tasks[here]), chance[here], level)
                    why = f"no data: {against} is within two standard errors of chance" if np.isnan(found["retention"]) else ""
                    rows.append({"evaluation": evaluation.name, "step": step, "tokens": accuracy.tokens[s], "task": task, "name": name,
                                 "placement": placement, "cost": accuracy.cost[at], "items": int(here.sum()),
                                 "chance": chance[here].mean(), "against": against, **found, "no_data": why, "level": level})  # fmt: skip
    return pd.DataFrame(rows)


def accuracy_table(run: Path, traces: Scores | None, evaluation: Evaluation, endpoints: Endpoints) -> pd.DataFrame:
    """One row per step and placement: step, tokens, placement, name ("" for most), cost, band, accuracy with its interval over items, and
    the mean log-likelihood of the run's traces at that step where it is known."""
    accuracy = evaluation.accuracy
    names = {placement: name for name, placement in reversed(named_placements(run, accuracy).items())}
    edges = np.array(endpoints.bands) * full_cost(accuracy.placements, accuracy.cost)
    band = np.full(len(accuracy.placements), "", dtype=object)
    for lo, hi in zip(edges, edges[1:], strict=False):
        band[inside(accuracy.cost, lo, hi, edges[-1])] = str(Band(lo, hi, False))
    frames = []
    for s, step in enumerate(accuracy.steps):
        mean, low, high = of_mean(accuracy.quality[s], endpoints.level)
        known = {}
        if traces is not None and step in traces.steps:
            at = int(np.flatnonzero(traces.steps == step)[0])
            known = dict(zip(traces.placements, traces.quality[at].mean(axis=1), strict=True))
        frames.append(pd.DataFrame({
            "step": step, "tokens": accuracy.tokens[s], "placement": accuracy.placements,
            "name": [names.get(p, "") for p in accuracy.placements], "cost": accuracy.cost, "band": band,
            "accuracy": mean, "accuracy_lo": low, "accuracy_hi": high, "likelihood": [known.get(p, np.nan) for p in accuracy.placements],
        }).sort_values(["cost", "placement"]))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def length_and_depth(run: Path, evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    """Accuracy at the last step by length and depth, of the teacher and of named placements; {} where questions have no length."""
    asked, accuracy = evaluation.questions, evaluation.accuracy
    if not (asked["length"] > 0).any() or asked["depth"].isna().any():
        return {}
    own = {name: accuracy.quality[-1, accuracy.placements.index(p)] for name, p in named_placements(run, accuracy).items()}
    own = ({"frozen teacher": evaluation.teacher} if evaluation.teacher is not None else {}) | own
    return {name: asked.assign(score=score).pivot_table(index="depth", columns="length", values="score") for name, score in own.items()}


def draw(run: Path, evaluation: Evaluation, points: pd.DataFrame, proxy: pd.DataFrame, level: float, folder: Path) -> list[str]:
    """The figures; returns their names."""
    last = points[points["step"] == points["step"].max()]
    teacher = None if evaluation.teacher is None else float(evaluation.teacher.mean())
    with style.figure(height=2.6) as (fig, axes):
        evaluation_figures.accuracy_by_cost(axes[0], last, teacher, level)
        style.save(fig, folder / "accuracy")
    made = ["accuracy"]
    if cells := length_and_depth(run, evaluation):
        with style.figure(rows=len(cells), height=0.95, sharex=True) as (fig, axes):
            evaluation_figures.by_length_and_depth(axes, cells)
            style.save(fig, folder / "length_and_depth")
        made.append("length_and_depth")
    if len(proxy) and last["likelihood"].notna().any():
        rows = proxy[(proxy["target"] == ALL) & (proxy["likelihood"] == "traces") & ~proxy["whole"]]
        rows = rows[rows["linear"].notna()]
        several = rows["step"].nunique() > 1
        with style.figure(rows=1 + 2 * (len(rows) > 0), height=2.1) as (fig, axes):
            evaluation_figures.likelihood_and_accuracy(axes[0], last)
            if len(rows):
                now = rows[rows["step"] == rows["step"].max()]
                for ax, column, label in ((axes[1], "linear", "correlation without\nitem noise"),
                                          (axes[2], "regret", "accuracy lost by choosing\nby likelihood")):  # fmt: skip
                    if several:
                        evaluation_figures.agreement_over_training(ax, rows, column, label)
                    else:
                        evaluation_figures.agreement_by_band(ax, now, column, label)
                axes[1].set_ylim(-1.05, 1.3)
            style.save(fig, folder / "proxy")
        made.append("proxy")
    return made


def report(run: Path, evaluation: Evaluation, kept: pd.DataFrame, proxy: pd.DataFrame, figures: Sequence[str]) -> str:
    """evaluation.md: the paragraph on the proxy first, then what named placements keep."""
    accuracy = evaluation.accuracy
    lines = [f"# Accuracy of {accuracy.scale}/{accuracy.run} on {evaluation.name}", "",
             f"{len(accuracy.placements)} placements, {len(accuracy.items)} questions, {len(accuracy.steps)} checkpoints. Intervals are "
             f"{kept['level'].iloc[0] if len(kept) else 0.95:.0%}; they vary the questions (and placements, where not all were asked) and "
             "hold teacher, data and training seed fixed.", "", "## Is the likelihood ranking the accuracy ranking?", "",
             paragraph(proxy), ""]  # fmt: skip
    if len(proxy):
        last = proxy[(proxy["step"] == proxy["step"].max()) & (proxy["target"] == ALL)]
        shown = ["band", "spearman_equal_cost", "linear", "linear_lo", "linear_hi", "regret", "regret_lo", "regret_hi"]
        lines += [markdown(last[["likelihood", "n_placements", "n_items", *shown, "regret_share", "spearman"]]), ""]
        by_task = proxy[(proxy["step"] == proxy["step"].max()) & (proxy["target"] != ALL) & ~proxy["whole"]]
        if len(by_task := by_task[by_task["likelihood"] == "traces"]):
            lines += ["By task, traces as likelihood:", "", markdown(by_task[["target", *shown]]), ""]
    lines += ["## What placements keep", ""]
    if len(kept):
        now = kept[(kept["step"] == kept["step"].max()) & (kept["task"] == ALL)]
        columns = ["name", "cost", "against", "accuracy", "reference", "difference", "difference_lo", "difference_hi", "retention",
                   "retention_lo", "retention_hi", "no_data"]  # fmt: skip
        lines += [markdown(now[columns]), ""]
    lines += [f"![{name}](figures/{name}.png)\n" for name in figures]
    lines += ["Tables: tables/proxy.csv, tables/retention.csv, tables/accuracy.csv. Columns: docs/evaluation.md.", ""]
    return "\n".join(lines)


def paragraph(proxy: pd.DataFrame) -> str:
    """The proxy in words, from the bands of the last step."""
    rows = proxy[(proxy["target"] == ALL) & (proxy["likelihood"] == "traces")] if len(proxy) else proxy
    if rows.empty:
        return "No answer: fewer than 8 placements have both a likelihood on traces and an accuracy at one checkpoint."
    now = rows[rows["step"] == rows["step"].max()]
    whole, bands = now[now["whole"]], now[~now["whole"]]
    said = []
    if len(whole):
        said.append(f"Over the whole cost range Spearman's correlation is {whole['spearman'].iloc[0]:.2f}, the effect of cost included.")
    known = bands[bands["linear"].notna()]
    if len(known):
        said.append("Within cost bands, at equal cost and without item noise, likelihood and accuracy correlate by "
                    + ", ".join(f"{r.linear:.2f} ({r.linear_lo:.2f} to {r.linear_hi:.2f}) at cost {r.band}" for r in known.itertuples())
                    + ".")  # fmt: skip
    if len(silent := bands[bands["linear"].isna()]):
        said.append(f"At cost {', '.join(silent['band'])} the questions do not tell placements apart: no data.")
    lost = bands[bands["regret"].notna()]
    if len(lost):
        said.append("Choosing by likelihood there loses, against choosing by accuracy on half of the questions, in points of accuracy, "
                    + ", ".join(f"{100 * r.regret:.1f} ({100 * r.regret_lo:.1f} to {100 * r.regret_hi:.1f}; a random choice "
                                f"{100 * r.regret_random:.1f}) at cost {r.band}" for r in lost.itertuples())
                    + ". Below zero the likelihood chooses better than that few questions do.")  # fmt: skip
    return " ".join(said)
