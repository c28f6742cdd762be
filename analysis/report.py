"""`python -m analysis.report RUN…`: tables, figures and a report that starts with the verdict, from score tables and nothing else."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis import compare, figures, pareto
from analysis.ranks import tau_matrix
from analysis.stability import Endpoints, load_endpoints, seeds_table, stability_table, time_to_stability
from analysis.table import Scores, load_scores

ENDPOINTS = Path(__file__).parents[1] / "conf" / "stability.yaml"
FEW_PLACEMENTS, FEW_ITEMS, LOW_CEILING, WIDE = 20, 30, 0.5, 0.5
"""Below (width: above) these the report warns."""
SHOWN = [
    "step", "tokens", "band_lo", "band_hi", "n_placements", "tau", "tau_cross", "ceiling", "ratio", "ratio_lo", "ratio_hi", "regret",
    "regret_lo", "regret_hi", "regret_random", "decision_accuracy", "topk_overlap", "topk_chance",
]  # fmt: skip
"""Columns of tables/stability.csv that report.md repeats."""


def analyse(scores: Scores, endpoints: Endpoints) -> dict[str, pd.DataFrame]:
    """Every table of one run by file name. A run with one checkpoint has its frontier only: nothing can be said about stability."""
    if len(scores.steps) < 2:
        return {"frontier": pareto.frontier(scores), "behind": behind_best(scores, endpoints.level)}
    stability = stability_table(scores, endpoints)
    members = band_members(scores, figures.bands(stability))
    return {
        "stability": stability,
        "time_to_stability": time_to_stability(stability, endpoints),
        "pareto_drift": pareto.drift(scores, np.random.default_rng(endpoints.seed), level=endpoints.level),
        "frontier": pareto.frontier(scores),
        "tau_matrix": tau_between_checkpoints(scores, members),
        "top_ranks": top_ranks(scores, members, endpoints.top_k),
    }


def behind_best(scores: Scores, level: float) -> pd.DataFrame:
    """How far each placement is behind the best one at the last checkpoint, in nats per token, cheapest first.

    ``behind`` is the mean over items of the best placement's quality minus its own on the same item, ``lo`` and ``hi`` a t interval over
    items. The same items chose the best one, so ``behind`` is a little too large for all others.
    """
    quality = scores.quality[-1]  # [P, I]
    gap = quality[quality.mean(axis=1).argmax()] - quality
    half = gap.std(axis=1, ddof=1) / np.sqrt(gap.shape[1]) * student.ppf((1 + level) / 2, gap.shape[1] - 1)
    frame = pd.DataFrame({
        "run": scores.run, "step": scores.steps[-1], "placement": scores.placements, "cost": scores.cost, "quality": quality.mean(axis=1),
        "behind": gap.mean(axis=1), "behind_lo": gap.mean(axis=1) - half, "behind_hi": gap.mean(axis=1) + half,
    })  # fmt: skip
    return frame.sort_values(["cost", "placement"], ignore_index=True)


def band_members(scores: Scores, bands: list[figures.Band]) -> dict[figures.Band, np.ndarray]:
    """Indices of the placements of each band that holds two or more; the upper edge belongs to the dearest band only."""
    top = max(band.hi for band in bands)
    members = {}
    for band in bands:
        inside = (scores.cost >= band.lo - 1e-9) & ((scores.cost < band.hi - 1e-9) | (band.hi == top))
        if inside.sum() > 1:
            members[band] = np.flatnonzero(inside)
    return members


def tau_between_checkpoints(scores: Scores, members: dict[figures.Band, np.ndarray]) -> pd.DataFrame:
    """Kendall's τ-b of mean qualities between all pairs of checkpoints: run, band_lo, band_hi, n_placements, step_a, step_b, tau."""
    mean = scores.quality.mean(axis=2)
    a, b = (index.ravel() for index in np.indices((len(scores.steps),) * 2))
    frames = []
    for band, inside in members.items():
        frames.append(pd.DataFrame({
            "run": scores.run, "band_lo": band.lo, "band_hi": band.hi, "n_placements": len(inside),
            "step_a": scores.steps[a], "step_b": scores.steps[b], "tau": tau_matrix(mean[:, inside]).ravel(),
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def mean_tau(table: pd.DataFrame, bands: list[figures.Band]) -> dict[str, tuple[np.ndarray, int]]:
    """Matrices [S, S] of ``tau_between_checkpoints`` by title, and their numbers of placements: within cost bands (mean over the bands,
    weighted by their pairs of placements), and over the whole cost range."""
    steps = table["step_a"].nunique()
    found = {}
    for title, chosen in (("within cost bands", [b for b in bands if not b.whole]), ("whole cost range", [b for b in bands if b.whole])):
        rows = [figures.rows_of(band, table) for band in chosen]
        rows = [r for r in rows if len(r) and r["tau"].notna().all()]
        if rows:
            n = np.array([r["n_placements"].iloc[0] for r in rows])
            found[title] = np.average([r["tau"].to_numpy().reshape(steps, steps) for r in rows], axis=0, weights=n * (n - 1)), int(n.sum())
    return found


def top_ranks(scores: Scores, members: dict[figures.Band, np.ndarray], k: int) -> pd.DataFrame:
    """Rank at each step (1 = best, within the band) of the k placements of each band that are best at T (at most half of the band)."""
    frames = []
    for band, inside in members.items():
        ranks = (-scores.quality[:, inside].mean(axis=2)).argsort(axis=1, kind="stable").argsort(axis=1) + 1  # [S, placements]
        top = np.argsort(ranks[-1])[: min(k, len(inside) // 2)]
        step, n = (index.ravel() for index in np.indices((len(scores.steps), len(top))))
        frames.append(pd.DataFrame({
            "run": scores.run, "band_lo": band.lo, "band_hi": band.hi, "n_placements": len(inside), "final_rank": n + 1,
            "placement": np.array(scores.placements)[inside[top[n]]], "cost": scores.cost[inside[top[n]]],
            "step": scores.steps[step], "tokens": scores.tokens[step], "rank": ranks[step, top[n]],
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def warn(scores: Scores, tables: dict[str, pd.DataFrame], endpoints: Endpoints) -> list[str]:
    """What makes the answer of this run wide or narrow in scope, a sentence each."""
    found = [f"One training seed ({scores.seed}): nothing is said about how rankings differ between trainings."]
    if len(scores.items) < FEW_ITEMS:
        found.append(f"Only {len(scores.items)} items: noise ceilings and intervals are themselves uncertain below {FEW_ITEMS}.")
    for band in figures.bands(tables["stability"]):
        rows = figures.rows_of(band, tables["stability"])
        before = rows[rows["step"] < scores.steps[-1]]
        n, ceiling, width = rows["n_placements"].iloc[0], rows["ceiling"].iloc[-1], (before["ratio_hi"] - before["ratio_lo"]).median()
        if endpoints.min_placements <= n < FEW_PLACEMENTS:
            found.append(f"Cost band {band} holds only {n:.0f} placements: its intervals are wide.")
        if ceiling < LOW_CEILING:
            found.append(f"Cost band {band}: the noise ceiling at the end is {ceiling:.2f}; more items would tell the placements apart.")
        if width > WIDE:
            found.append(f"Cost band {band}: the interval of τ/ceiling is {width:.2f} wide at the median checkpoint.")
    return found


def verdict(tables: dict[str, pd.DataFrame], endpoints: Endpoints) -> list[str]:
    """A sentence in plain words per cost band, the whole cost range after them, then the frontier; of one checkpoint that alone."""
    if "stability" not in tables:
        return frontier_of_one(tables)
    said = []
    for band in figures.bands(tables["time_to_stability"]):
        time = figures.rows_of(band, tables["time_to_stability"]).iloc[0]
        rows = figures.rows_of(band, tables["stability"]).sort_values("tokens")
        where = (
            f"Over the whole cost range {band} (inflated by trivial pairs, for comparison only)" if band.whole else f"In cost band {band}"
        )
        n = f"n = {rows['n_placements'].iloc[0]} placements, {rows['n_items'].iloc[0]} items"
        if time["verdict"] == "no data":
            said.append(f"{where} **nothing can be said** ({n}).")
            continue
        if time["reached"]:
            now = rows[rows["tokens"] == time["tokens"]].iloc[0]
            said.append(
                f"{where} the ranking is **stable from {figures.count(now['tokens'])} tokens** ({endpoints.level:.0%}: {_span(time)}): "
                f"τ/ceiling there {_interval(now, 'ratio', 2)}, regret of choosing then {_interval(now, 'regret', 3)} nats/token; {n}."
            )
            continue
        before = rows.iloc[-2]
        at = (
            f"at {figures.count(before['tokens'])} tokens, the last checkpoint before the end, τ/ceiling is {_interval(before, 'ratio', 2)}"
        )
        if time["verdict"] == "undecided":
            said.append(
                f"{where} it is **undecided** whether the ranking is settled: {at}, which leaves open whether it is above "
                f"{time['threshold']:g} (more items or placements would decide); {n}."
            )
        else:
            said.append(f"{where} the ranking is **not settled**: {at}, below {time['threshold']:g}; {n}.")
    drift = tables["pareto_drift"]
    first, before = drift.iloc[0], drift.iloc[-2]
    said.append(
        f"Frontier: freezing it at {figures.count(first['tokens'])} tokens costs {_interval(first, 'loss', 3)} nats/token at the end (mean "
        f"over budgets; random choice {first['loss_random']:.3f}), at {figures.count(before['tokens'])} tokens "
        f"{_interval(before, 'loss', 3)}; by then {before['shared_cross']:.0%} of the final frontier is found on other items (noise "
        f"ceiling {before['shared_ceiling']:.0%}, random choice {before['shared_random']:.0%})."
    )
    return said


def frontier_of_one(tables: dict[str, pd.DataFrame]) -> list[str]:
    """What one checkpoint can tell."""
    front = tables["frontier"].merge(tables["behind"][["placement", "behind", "behind_lo", "behind_hi"]])
    best, cheapest = front.iloc[-1], front.iloc[0]  # dearer members of a frontier are better
    return [
        "There is one checkpoint: **nothing can be said about stability**, that is, whether the ranking would change with more training.",
        f"Frontier: {len(front)} of {len(tables['behind'])} placements, of cost {cheapest['cost']:.2f} to {best['cost']:.2f}; the best is "
        f"{best['placement']} ({best['quality']:.3f} nats/token), the cheapest, {cheapest['placement']}, is "
        f"{_interval(cheapest, 'behind', 3)} nats/token behind it. Chosen and judged on the same items: `make presets` judges on others.",
    ]


def draw(scores: Scores, tables: dict[str, pd.DataFrame], endpoints: Endpoints, folder: Path) -> dict[str, str]:
    """Every figure of one run as .pdf and .png in ``folder``; returns their names with captions."""
    stability, bands = tables["stability"], figures.bands(tables["stability"])
    n = f"{len(scores.placements)} placements, {len(scores.items)} items, seed {scores.seed}"
    level = f"{endpoints.level:.0%}"
    with figures.figure(height=2.7) as (fig, (ax,)):
        figures.stability_curve(ax, stability, endpoints.threshold)
        figures.save(fig, folder / "stability")
    with figures.figure(height=2.7) as (fig, (ax,)):
        figures.regret_curve(ax, stability)
        figures.save(fig, folder / "regret")
    matrices = mean_tau(tables["tau_matrix"], bands)
    with figures.figure(len(matrices), height=2.6) as (fig, axes):
        for ax, (title, (tau, n_placements)) in zip(axes, matrices.items(), strict=True):
            figures.tau_heatmap(ax, tau, scores.tokens, n_placements)
            ax.set_title(title)
        figures.save(fig, folder / "tau_matrix")
    with figures.figure(height=2.7) as (fig, (ax,)):
        figures.pareto_drift(ax, tables["frontier"], scores.cost, scores.quality[-1].mean(axis=1))
        figures.save(fig, folder / "pareto_drift")
    with figures.figure(height=2.4) as (fig, (ax,)):
        figures.frontier_kept(ax, tables["pareto_drift"])
        figures.save(fig, folder / "frontier_kept")
    enough = tables["top_ranks"].query("n_placements >= @endpoints.min_placements")
    filled = [band for band in bands if len(figures.rows_of(band, enough))] or figures.bands(tables["top_ranks"])[-1:]
    narrow = [band for band in filled if not band.whole] or filled
    with figures.figure(len(narrow), height=2.2) as (fig, axes):
        for ax, band in zip(axes, narrow, strict=True):
            rows = figures.rows_of(band, tables["top_ranks"])
            ranks = rows.pivot(index="step", columns="final_rank", values="rank").to_numpy()
            names = rows.sort_values("final_rank")["placement"].drop_duplicates().tolist()
            figures.rank_trajectories(ax, ranks, names, scores.tokens, rows["n_placements"].iloc[0])
            ax.set_title(f"cost {band}")
        figures.save(fig, folder / "top_ranks")
    final = tables["frontier"].query("step == @scores.steps[-1]")
    with figures.figure(height=1.2 + min(2.4, 0.16 * len(scores.placements[0]))) as (fig, (ax,)):
        figures.frontier_layers(ax, final["placement"].tolist(), final["cost"].to_numpy())
        figures.save(fig, folder / "frontier_layers")
    return {
        "stability": f"Kendall's τ-b between the ranking at t and at the end, relative to its noise ceiling, within cost bands ({n}). "
        f"Shaded: {level} intervals. Dashed: the declared threshold. The whole cost range is inflated by trivial pairs.",
        "regret": "Regret at the end of the placement chosen at t, per cost band, judged on items that did not choose; "
        f"{level} intervals, dotted: a random choice ({n}).",
        "tau_matrix": "Kendall's τ-b of mean qualities between all pairs of checkpoints, not corrected for noise; within bands: mean over "
        f"the bands, weighted by their pairs of placements ({n}).",
        "pareto_drift": f"The frontier of each checkpoint, with its own qualities; grey dots: all placements at the end ({n}).",
        "frontier_kept": "Share of the final frontier that the frontier of t, chosen on other items, contains; "
        f"{level} intervals over half-samples of the items ({n}).",
        "top_ranks": f"Ranks over training of the placements that are best at the end, per cost band ({n}).",
        "frontier_layers": f"Which mixer sits at which layer on the final frontier, cheapest placement left ({n}).",
    }


def report(scores: Scores, run: Path, endpoints: Endpoints, out: Path) -> dict[str, pd.DataFrame]:
    """Tables, figures and report.md of one run (its scores, and the directory that has its manifest) into ``out``; returns the tables."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        tables = analyse(scores, endpoints)
    for name, table in tables.items():
        write_csv(table, out / "tables" / f"{name}.csv")
    if "stability" not in tables:
        write_text(one_checkpoint(scores, run, tables, out), out / "report.md")
        return tables
    captions = draw(scores, tables, endpoints, out / "figures")
    also = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)))
    text = [
        f"# Is the ranking settled? {scores.scale}, run {scores.run}",
        _bullets(verdict(tables, endpoints)),
        "## Warnings",
        _bullets(warn(scores, tables, endpoints) + also),
        "## What was measured",
        _markdown(compare.describe(scores, run).drop(columns=["scale", "run"])),
        "Quality is the mean log-likelihood per token over items (nats/token, higher is better); cost in FA-layer equivalents. τ is "
        "Kendall's τ-b with the last checkpoint within cost bands, its ceiling what item noise alone leaves of a perfect agreement. "
        "Columns are explained at `stability_table` in analysis/stability.py and `drift` in analysis/pareto.py.",
        "## Stability",
        _markdown(tables["time_to_stability"].drop(columns="run")),
        _markdown(tables["stability"][SHOWN]),
        "## Frontier",
        _markdown(tables["pareto_drift"].drop(columns=["run", "n_placements", "n_items"])),
        "## Figures",
        *(f"![{name}](figures/{name}.png)\n\n{caption}" for name, caption in captions.items()),
    ]
    write_text("\n\n".join(text) + "\n", out / "report.md")
    return tables


def one_checkpoint(scores: Scores, run: Path, tables: dict[str, pd.DataFrame], out: Path) -> str:
    """The text of report.md of a run with one checkpoint; draws its figures."""
    with figures.figure(height=2.7) as (fig, (ax,)):
        figures.pareto_drift(ax, tables["frontier"], scores.cost, scores.quality[-1].mean(axis=1))
        fig.legends[0].remove()  # of checkpoints
        figures.save(fig, out / "figures" / "frontier")
    with figures.figure(height=1.2 + min(2.4, 0.16 * len(scores.placements[0]))) as (fig, (ax,)):
        figures.frontier_layers(ax, tables["frontier"]["placement"].tolist(), tables["frontier"]["cost"].to_numpy())
        figures.save(fig, out / "figures" / "frontier_layers")
    few = [f"Only {len(scores.items)} items: qualities are uncertain below {FEW_ITEMS}."] if len(scores.items) < FEW_ITEMS else []
    front = tables["behind"][tables["behind"]["placement"].isin(tables["frontier"]["placement"])]
    n = f"{len(scores.placements)} placements, {len(scores.items)} items"
    text = [
        f"# The frontier at one checkpoint: {scores.scale}, run {scores.run}",
        _bullets(frontier_of_one(tables)),
        *(["## Warnings", _bullets(few)] if few else []),
        "## What was measured",
        _markdown(compare.describe(scores, run).drop(columns=["scale", "run"])),
        "Quality is the mean log-likelihood per token over items (nats/token, higher is better); cost in FA-layer equivalents. Columns are "
        "explained at `behind_best` in analysis/report.py; all placements are in tables/behind.csv.",
        "## Frontier",
        _markdown(front.drop(columns=["run", "step"])),
        "## Figures",
        f"![frontier](figures/frontier.png)\n\nThe frontier; grey dots: all placements ({n}).",
        f"![layers](figures/frontier_layers.png)\n\nWhich mixer sits at which layer on the frontier, cheapest placement left ({n}).",
    ]
    return "\n\n".join(text) + "\n"


def report_comparison(runs: list[Path], results: list[tuple[Scores, dict[str, pd.DataFrame]]], endpoints: Endpoints, out: Path) -> None:
    """Tables, figures and report.md that set several runs side by side."""
    described = pd.concat([compare.describe(scores, run) for run, (scores, _) in zip(runs, results, strict=True)], ignore_index=True)
    stability = compare.side_by_side(pd.concat([tables["stability"] for _, tables in results], ignore_index=True), described)
    times = pd.concat([tables["time_to_stability"] for _, tables in results], ignore_index=True)
    transfers = pd.concat(
        [compare.transfer(a, b, level=endpoints.level) for a, _ in results for b, _ in results if a.run != b.run], ignore_index=True
    )
    tables = {"runs": described, "comparison": stability, "time_to_stability": times, "transfer": transfers}
    seeds, notes = seeds_of_scales(described, [scores for scores, _ in results], endpoints)
    if seeds is not None:
        tables["seeds"] = seeds
    for name, table in tables.items():
        write_csv(table, out / "tables" / f"{name}.csv")
    captions = draw_comparison(stability, endpoints, out / "figures")
    last = transfers.groupby(["source", "target"], sort=False).tail(1)  # the final ranking of the source
    text = [
        "# Runs side by side",
        _bullets([_transfer_sentence(row, endpoints) for _, row in last.iterrows()]),
        "Placements of two runs are matched one to one: equal ones first, the others by the mean of two total variation distances, of "
        "their mixers' shares in the whole placement and in the first, middle and last third of the depth; pairs further apart than "
        f"{compare.TOLERANCE} are left out. Intervals: jackknife over placements. Pairs of similar cost differ by at most "
        f"{compare.SIMILAR_COST} FA-layer equivalents per layer in both runs.",
        "## Runs",
        _markdown(described),
        "## Time to stability",
        *(f"**{scores.scale}, run {scores.run}**\n\n" + _bullets(verdict(tables, endpoints)) for scores, tables in results),
        _markdown(times),
        "## Transfer of final rankings",
        _markdown(last),
        *([] if seeds is None else ["## Training seeds: mean of τ/ceiling, Kendall's W of the seeds", _markdown(seeds)]),
        *([_bullets(notes)] if notes else []),
        "## Figures",
        *(f"![{name}](figures/{name}.png)\n\n{caption}" for name, caption in captions.items()),
    ]  # fmt: skip
    write_text("\n\n".join(text) + "\n", out / "report.md")


def seeds_of_scales(described: pd.DataFrame, runs: list[Scores], endpoints: Endpoints) -> tuple[pd.DataFrame | None, list[str]]:
    """``stability.seeds_table`` of every scale with several training seeds, and a line on each that cannot be summarised."""
    frames, notes = [], []
    for scale, rows in described.groupby("scale", sort=False):
        if rows["seed"].nunique() < len(rows) or len(rows) < 2:
            continue
        try:
            table = seeds_table([runs[i] for i in rows.index], endpoints)
            frames.append(table.assign(scale=scale)[["scale", *table.columns]])
        except ValueError as error:
            notes.append(f"No summary over the seeds of {scale}: {error}")
    return (pd.concat(frames, ignore_index=True) if frames else None), notes


def draw_comparison(stability: pd.DataFrame, endpoints: Endpoints, folder: Path) -> dict[str, str]:
    """The figures of ``report_comparison``: one panel per band, the n-th cheapest of each run together."""
    narrow = []
    for run, rows in stability.groupby("run", sort=False):
        for n, band in enumerate(band for band in figures.bands(rows) if not band.whole):
            of_band = figures.rows_of(band, rows)
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
        with figures.figure(known["panel"].nunique(), height=2.6) as (fig, axes):
            for ax, (_, rows) in zip(axes, known.groupby("panel"), strict=True):
                figures.scales(ax, rows, endpoints.threshold, labels, axis)
                ax.set_title(" / ".join(rows["title"].drop_duplicates()))
            figures.save(fig, folder / name)
        captions[name] = (f"τ/ceiling of every run over {words}, one panel per cost band; {endpoints.level:.0%} intervals. "
                          "Bands as shares of the cost of all-FA.")  # fmt: skip
    return captions


def _transfer_sentence(row: pd.Series, endpoints: Endpoints) -> str:
    names = f"{row['source_scale']} ({row['source']}) and {row['target_scale']} ({row['target']})"
    if not row["n_pairs"] > 0:
        return f"{names} share {row['n_matched']:.0f} matched placements: too few to compare rankings."
    level = f"{endpoints.level:.0%}"
    similar = "no pairs are of similar cost"
    if row["similar_pairs"] > 0:
        similar = f"{row['similar_accuracy']:.0%} ({level}: {row['similar_lo']:.0%}–{row['similar_hi']:.0%}) of the "
        similar += f"{row['similar_pairs']:.0f} pairs of similar cost, where a coin gets 50%"
    return (
        f"{names}: the final ranking of the first orders {row['accuracy']:.0%} ({level}: {row['lo']:.0%}–{row['hi']:.0%}) of "
        f"{row['n_pairs']:.0f} pairs of {row['n_matched']:.0f} matched placements as the second does (by cost alone "
        f"{row['accuracy_cost']:.0%}), and {similar}."
    )


def _interval(row: pd.Series, name: str, digits: int) -> str:
    lo, hi = row[f"{name}_lo"], row[f"{name}_hi"]
    return f"{row[name]:.{digits}f} ({lo:.{digits}f} to {hi:.{digits}f})"


def _span(time: pd.Series) -> str:
    low, high = ("beyond the last checkpoint" if not np.isfinite(t) else figures.count(t) for t in (time["tokens_lo"], time["tokens_hi"]))
    return f"{low} to {high}"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _markdown(table: pd.DataFrame) -> str:
    """A Markdown table, numbers to three significant digits (whole numbers in full)."""

    def cell(value: object) -> str:
        if not isinstance(value, float | np.floating):
            return str(value)
        if np.isnan(value):
            return ""
        return f"{value:.0f}" if abs(value) >= 1 and float(value).is_integer() else f"{value:.3g}"

    rows = ([cell(value) for value in row] for row in table.itertuples(index=False, name=None))
    lines = [list(table.columns), ["---"] * len(table.columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Nine significant digits, so that rounding in the last place of a sum does not change the file."""
    write_text(table.to_csv(index=False, float_format="%.9g", lineterminator="\n"), path)


def write_text(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def find_runs(results: Path) -> list[Path]:
    """Every run directory results/<scale>/<run-id> that has scores. ValueError if there is none."""
    runs = sorted({part.parents[2] for part in results.glob("*/*/scores/step-*/*.parquet")})
    if not runs:
        raise ValueError(f"no run directory with scores under {results.resolve()}: run the sweep first, or name a run or a file of scores")
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description="Tables, figures and a verdict from score tables.")
    runs_help = "run directory, or a .parquet or .csv file of scores; default: every run directory under results/ that has scores"
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help=runs_help)
    parser.add_argument("--endpoints", type=Path, default=ENDPOINTS, help="the declared endpoints (default: conf/stability.yaml)")
    out_help = "one RUN: where all of it goes (default: beside its scores); several: their comparisons (default: results/comparison)"
    parser.add_argument("--out", type=Path, help=out_help)
    arguments = parser.parse_args(argv)
    try:
        endpoints = load_endpoints(arguments.endpoints)
        runs = list(dict.fromkeys(path.resolve() for path in arguments.runs or find_runs(Path("results"))))
        loaded = [load_scores(run) for run in runs]  # all of them before anything is written
        names = [scores.run for scores in loaded]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two of the runs are called {twice[0]}: they cannot be told apart in a comparison, rename one")
        results = []
        for run, scores in zip(runs, loaded, strict=True):
            out = arguments.out if arguments.out and len(runs) == 1 else run if run.is_dir() else run.parent
            results.append((scores, report(scores, run, endpoints, out)))
            print(f"{out / 'report.md'}:", *verdict(results[-1][1], endpoints), sep="\n  ")
        several = [i for i, scores in enumerate(loaded) if len(scores.steps) > 1]
        families = {i: compare.family(runs[i]) for i in several}
        for family in sorted(set(families.values())):  # runs of different samplers are no replicates: see analysis.strategies
            members = [i for i in several if families[i] == family]
            if len(members) > 1:
                out = (arguments.out or Path("results") / "comparison") / family
                report_comparison([runs[i] for i in members], [results[i] for i in members], endpoints, out)
                print(out / "report.md")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
