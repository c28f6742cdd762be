"""Tables, figures and report.md of several runs side by side."""

from collections import Counter
from pathlib import Path

import pandas as pd

from analysis.bands import bands_in, rows_of
from analysis.comparison.transfer import SIMILAR_COST, TOLERANCE, transfer
from analysis.cost import full_cost
from analysis.input.runs import Recipe, describe, recipe, side_by_side
from analysis.output import comparison_figures, style
from analysis.output.words import lit, verdict
from analysis.output.write import bullets, markdown, write_csv, write_text
from analysis.stability.endpoints import Endpoints
from analysis.stability.reruns import rerun_agreement
from analysis.stability.seeds import seeds_table
from analysis.stability.settling import overall, time_to_stability
from analysis.table import Scores


def report_comparison(runs: list[Path], results: list[tuple[Scores, dict[str, pd.DataFrame]]], endpoints: Endpoints, out: Path) -> None:
    """Tables, figures and report.md that set several runs side by side."""
    described = pd.concat([describe(scores, run) for run, (scores, _) in zip(runs, results, strict=True)], ignore_index=True)
    full = {scores.run: full_cost(scores.placements, scores.cost) for scores, _ in results}
    stability = side_by_side(pd.concat([tables["stability"] for _, tables in results], ignore_index=True), described, full)
    cubes, recipes = [scores for scores, _ in results], [recipe(run) for run in runs]
    groups = {name: [cubes[n].run for n in places] for name, places in replicates(cubes, recipes).items()}
    reruns = rerun_agreement(cubes, endpoints, recipes)
    known = reruns[reruns["varies"] == "seed"] if len(reruns) else None
    times = pd.concat([time_to_stability(tables["stability"], endpoints, known) for _, tables in results], ignore_index=True)

    def verdict_of(scores: Scores, tables: dict[str, pd.DataFrame]) -> str:
        own = tables | {"time_to_stability": times[times["run"] == scores.run]}
        return bullets(verdict(own, endpoints)).replace("nats/token", scores.unit)

    transfers = pd.concat(
        [transfer(a, b, level=endpoints.level) for a, _ in results for b, _ in results if a.run != b.run], ignore_index=True
    )
    tables = {"runs": described, "comparison": stability, "time_to_stability": times, "transfer": transfers}
    seeds, notes = seeds_of_scales(described, cubes, endpoints, recipes)
    if seeds is not None:
        tables["seeds"] = seeds
    if len(reruns):
        tables["reruns"] = reruns
    for name, table in tables.items():
        write_csv(table, out / "tables" / f"{name}.csv")
    captions = {}
    if len(reruns):
        teachers = {scores.run: of.teacher for scores, of in zip(cubes, recipes, strict=True)}
        captions |= draw_references(stability, reruns, groups, teachers, endpoints, cubes[0].unit, out / "figures")
    captions |= draw_comparison(stability, endpoints, out / "figures")
    last = transfers.groupby(["source", "target"], sort=False).tail(1)  # the final ranking of the source
    text = [
        "# Runs side by side",
        markdown(verdicts(times, described)),
        "Bands of cost in FA-layer equivalents; the widest, over all costs, is inflated by trivial pairs. A verdict needs both endpoints, "
        "resolution and regret: below, run by run.",
        "## What the final ranking of one run says of another's",
        markdown(ordered_alike(last)),
        f"Shares of pairs, with {endpoints.level:.0%} intervals, where a coin gets 50%. "
        "Placements of two runs are matched one to one: equal ones first, the others by the mean of two total variation distances, of "
        "their mixers' shares in the whole placement and in the first, middle and last third of the depth; pairs further apart than "
        f"{TOLERANCE} are left out. Intervals: jackknife over placements. Pairs of similar cost differ by at most "
        f"{SIMILAR_COST} FA-layer equivalents per layer in both runs.",
        "## Runs",
        markdown(described),
        "## Time to stability",
        *(f"**{scores.scale}, run {scores.run}**\n\n{verdict_of(scores, tables)}" for scores, tables in results),
        markdown(times),
        *([] if seeds is None else ["## Training seeds and teachers: means over runs, Kendall's W of the runs", markdown(seeds)]),
        *(["## What another seed or teacher reaches at its end", markdown(reached(reruns, groups))] if len(reruns) else []),
        *([bullets(notes)] if notes else []),
        "## Figures",
        *(f"![{name}](figures/{name}.png)\n\n{caption}" for name, caption in captions.items()),
    ]  # fmt: skip
    write_text("\n\n".join(text) + "\n", out / "report.md")


def replicates(runs: list[Scores], recipes: list[Recipe]) -> dict[str, list[int]]:
    """Places of the runs that share a scale and a recipe with another; by the scale's name, with the recipe's digest where a scale has
    several such groups."""
    groups: dict[tuple[str, str], list[int]] = {}
    for n, (run, of) in enumerate(zip(runs, recipes, strict=True)):
        groups.setdefault((run.scale, of.same), []).append(n)
    groups = {key: places for key, places in groups.items() if len(places) > 1}
    several = Counter(scale for scale, _ in groups)
    return {f"{scale}-{same[:6]}" if several[scale] > 1 else scale: places for (scale, same), places in groups.items()}


def seeds_of_scales(
    described: pd.DataFrame, runs: list[Scores], endpoints: Endpoints, recipes: list[Recipe] | None = None
) -> tuple[pd.DataFrame | None, list[str]]:
    """``stability.seeds_table`` of the replicates of every teacher that has several training seeds, and of all teachers of a recipe
    together; and a line on each that cannot be summarised. Column ``runs`` says which they are."""
    frames, notes = [], []
    known = recipes or [Recipe("", "")] * len(runs)
    keys = described.assign(teacher=[of.teacher for of in known])
    for places in replicates(runs, known).values():
        rows = keys.iloc[places]
        groups = [of_one for _, of_one in rows.groupby("teacher", sort=False)]
        for group in [*groups, *([rows] if len(groups) > 1 else [])]:
            if len(group) < 2 or group.duplicated(["teacher", "seed"]).any():
                continue
            scale = group["scale"].iloc[0]
            try:
                table = seeds_table([runs[n] for n in group.index], endpoints, list(group["teacher"]))
            except ValueError as error:
                notes.append(f"No summary over the seeds of {scale}: {error}")
            else:
                frames.append(table.assign(scale=scale, runs=", ".join(group["run"]))[["scale", *table.columns, "runs"]])
    return (pd.concat(frames, ignore_index=True) if frames else None), notes


def reached(reruns: pd.DataFrame, groups: dict[str, list[str]]) -> pd.DataFrame:
    """What the end of another seed or teacher reaches: means over pairs of runs, for each group of replicates (names of runs) and band."""
    columns = ["order", "resolution", "regret_share", "linear", "ratio"]
    group_of = {run: name for name, members in groups.items() for run in members}
    pairs = reruns.assign(scale=reruns["run"].map(group_of)).groupby(["scale", "band_lo", "band_hi", "varies"], sort=False)
    return pairs[columns].mean().assign(pairs=pairs.size()).reset_index()


def draw_references(
    stability: pd.DataFrame, reruns: pd.DataFrame, groups: dict[str, list[str]], teachers: dict[str, str], endpoints: Endpoints,
    unit: str, folder: Path,
) -> dict[str, str]:  # fmt: skip
    """One figure for each group of replicates (names of runs): their resolution over training, beside what a replicate's end reaches.

    ``teachers``: that of each run.
    """
    captions = {}
    for scale, members in groups.items():
        own = reruns[reruns["run"].isin(members)]
        rows = stability[stability["run"].isin(members)]
        numbers = list(dict.fromkeys(teachers[run] for run in members))
        rows = rows.assign(teacher=[numbers.index(teachers[run]) for run in rows["run"]])
        bands = [band for band in bands_in(rows) if not band.whole and rows_of(band, rows)["resolution"].notna().any()]
        if not len(own) or not bands:
            continue
        name = f"references_{scale}"
        with style.figure(len(bands), height=2.0, sharex=True) as (fig, axes):
            for ax, band in zip(axes, bands, strict=True):
                comparison_figures.references(ax, rows_of(band, rows), rows_of(band, own), endpoints.delta_settled, unit)
                ax.set_title(f"cost {band}")
                ax.label_outer()
            style.legend_below(axes[-1], None, columns=2)
            style.save(fig, folder / name)
        captions[name] = (f"{scale}: from which difference on the order of t is final, over training; a line per run, a colour per "
                          "teacher. Across: what the end of another seed and of another teacher reaches, mean over pairs and mean "
                          f"{endpoints.level:.0%} interval. Hollow: the last checkpoint, 0 by construction.")  # fmt: skip
    return captions


def draw_comparison(stability: pd.DataFrame, endpoints: Endpoints, folder: Path) -> dict[str, str]:
    """The figures of ``report_comparison``: one panel per band, the n-th cheapest of each run together."""
    narrow = []
    for run, rows in stability.groupby("run", sort=False):
        for n, band in enumerate(band for band in bands_in(rows) if not band.whole):
            of_band = rows_of(band, rows)
            lo, hi = of_band[["relative_lo", "relative_hi"]].iloc[0]
            name = f"{of_band['scale'].iloc[0]} {run}"
            label = name if len(name) <= 26 else name[:25] + "…"
            narrow.append(of_band.assign(label=label, panel=n, title=f"cost {lo:.0%}–{hi:.0%} of all-FA"))
    frame = pd.concat(narrow)
    labels = frame["label"].drop_duplicates().tolist()
    captions = {}
    for axis, words in (("share_of_training", "share of training"), ("tokens_per_parameter", "tokens per trained parameter")):
        known = frame[frame[axis].notna() & frame["ratio"].notna()]
        if known.empty:
            continue
        name = f"scales_{axis}"
        with style.figure(known["panel"].nunique(), height=2.6) as (fig, axes):
            for ax, (_, rows) in zip(axes, known.groupby("panel"), strict=True):
                comparison_figures.scales(ax, rows, endpoints.threshold, labels, axis)
                ax.set_title(" / ".join(rows["title"].drop_duplicates()))
            style.save(fig, folder / name)
        captions[name] = (f"τ/ceiling of every run over {words}, one panel per cost band; {endpoints.level:.0%} intervals. "
                          "Bands as shares of the cost of all-FA. Hollow: the last checkpoint, 1 by construction.")  # fmt: skip
    return captions


def verdicts(times: pd.DataFrame, described: pd.DataFrame) -> pd.DataFrame:
    """A row per run, a column per cost band: the verdict of both endpoints together."""
    rows = []
    for run in described.itertuples():
        its = times[times["run"] == run.run]
        rows.append({"scale": run.scale, "run": run.run} | {str(b): lit(overall(rows_of(b, its)["verdict"])) for b in bands_in(its)})
    return pd.DataFrame(rows).fillna("")


def ordered_alike(last: pd.DataFrame) -> pd.DataFrame:
    """How many pairs of matched placements two runs order alike: a row per pair of runs, shares in words."""

    def share(row: dict, name: str, pairs: str, ends: tuple[str, str]) -> str:
        return f"{row[name]:.0%} ({row[ends[0]]:.0%} to {row[ends[1]]:.0%})" if row[pairs] > 0 else "too few"

    return pd.DataFrame([
        {
            "of": f"{row['source_scale']} {row['source']}",
            "for": f"{row['target_scale']} {row['target']}",
            "placements": int(row["n_matched"]),
            "ordered alike": share(row, "accuracy", "n_pairs", ("lo", "hi")),
            "of similar cost": share(row, "similar_accuracy", "similar_pairs", ("similar_lo", "similar_hi")),
            "by cost alone": f"{row['accuracy_cost']:.0%}" if row["n_pairs"] > 0 else "",
        }
        for row in last.to_dict("records")
    ])  # fmt: skip
