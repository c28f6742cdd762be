"""Tables, figures and report.md of one run."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.bands import bands_in, rows_of
from analysis.input.provenance import about, losses
from analysis.input.runs import describe, noted
from analysis.output import run_figures, style
from analysis.output.page import page_data, write_page
from analysis.output.words import FEW_ITEMS, frontier_of_one, interval, lit, verdict, warn
from analysis.output.write import bullets, markdown, write_csv, write_text
from analysis.stability.checkpoints import analyse, mean_tau
from analysis.stability.endpoints import Endpoints
from analysis.stability.pareto import uniform_reference
from analysis.statistics.intervals import of_mean
from analysis.table import Scores

ENDPOINTS_SHOWN = {"resolution": "resolution", "order": "order at the margin", "regret_share": "regret share", "linear": "linear",
                   "ratio": "τ/ceiling"}  # fmt: skip
"""What report.md repeats of tables/stability.csv, with intervals."""


RANKED = 5
"""Placements of a band whose ranks are drawn; tables/top_ranks.csv has more."""


def interval_by_placement(scores: Scores, level: float) -> tuple[pd.Series, str]:
    """Half the widths of t intervals at T by placement, and in words of what: of the difference to the dearest mixer in all layers, paired
    by item, where that was scored; else of quality itself."""
    reference = uniform_reference(scores)
    quality = scores.quality[-1] - (0.0 if reference is None else scores.quality[-1, reference])
    mean, low, _ = of_mean(quality, level)
    how = "the quality of each" if reference is None else f"the difference to all-{scores.placements[reference][0]}, paired by item"
    return pd.Series(mean - low, index=scores.placements), how


def draw(scores: Scores, tables: dict[str, pd.DataFrame], endpoints: Endpoints, folder: Path) -> dict[str, str]:
    """Every figure of one run as .pdf and .png in ``folder``; returns their names with captions."""
    stability, bands = tables["stability"], bands_in(tables["stability"])
    n = f"{len(scores.placements)} placements, {len(scores.items)} items, seed {scores.seed}"
    level = f"{endpoints.level:.0%}"
    judged = [band for band in bands if not band.whole and rows_of(band, stability)["resolution"].notna().any()] or bands[-1:]
    with style.figure(len(judged), height=1.5, sharex=True) as (fig, axes):
        for ax, band in zip(axes, judged, strict=True):
            rows = rows_of(band, stability).sort_values("step")
            run_figures.resolution_panel(ax, rows, endpoints.delta_settled, scores.unit)
            ax.set_title(f"cost {band}: {rows['n_placements'].iloc[0]} placements")
            ax.label_outer()
        style.save(fig, folder / "resolution")
    ranked = [band for band in bands if rows_of(band, stability)["ratio"].notna().any()]
    with style.figure(max(1, len(ranked)), height=1.5, sharex=True) as (fig, axes):
        if not ranked:
            run_figures.nothing(axes[0], "no band has a ranking that its items tell from noise")
        for ax, band in zip(axes, ranked, strict=False):
            rows = rows_of(band, stability).sort_values("step")
            run_figures.stability_panel(ax, rows, endpoints.threshold)
            ax.set_title(f"cost {band}: {rows['n_placements'].iloc[0]} placements" + (", whole range" if band.whole else ""))
            ax.label_outer()
        style.save(fig, folder / "stability")
    chosen = [band for band in bands if not band.whole and rows_of(band, stability)["regret"].notna().any()]
    with style.figure(max(1, len(chosen)), height=1.5, sharex=True) as (fig, axes):
        if not chosen:
            run_figures.nothing(axes[0], "no band holds enough placements and items to choose from")
        for ax, band in zip(axes, chosen, strict=False):  # over the whole range the best is the dearest one, at any time
            rows = rows_of(band, stability).sort_values("step")
            run_figures.regret_panel(ax, rows, scores.unit)
            ax.set_title(f"cost {band}: {rows['n_placements'].iloc[0]} placements")
            ax.label_outer()
        if chosen:
            style.legend_below(axes[-1], None, columns=1)
        style.save(fig, folder / "regret")
    matrices = mean_tau(tables["tau_matrix"], bands)
    with style.figure(max(1, len(matrices)), height=2.6) as (fig, axes):
        if not matrices:
            run_figures.nothing(axes[0], "all placements score the same at some checkpoint:\nno τ with it")
            axes = []
        for ax, (title, (tau, n_placements)) in zip(axes, matrices.items(), strict=True):
            run_figures.tau_heatmap(ax, tau, scores.tokens, n_placements)
            ax.set_title(title)
        style.save(fig, folder / "tau_matrix")
    with style.figure(height=2.7) as (fig, (ax,)):
        half, how = interval_by_placement(scores, endpoints.level)
        run_figures.pareto_drift(ax, tables["frontier"], scores.cost, scores.quality[-1].mean(axis=1), half, unit=scores.unit)
        style.save(fig, folder / "pareto_drift")
    with style.figure(height=2.4) as (fig, (ax,)):
        run_figures.frontier_kept(ax, tables["pareto_drift"])
        style.save(fig, folder / "frontier_kept")
    enough = tables["top_ranks"].query("n_placements >= @endpoints.min_placements")
    filled = [band for band in bands if len(rows_of(band, enough))] or bands_in(tables["top_ranks"])[-1:]
    narrow = [band for band in filled if not band.whole] or filled
    with style.figure(len(narrow), height=2.2) as (fig, axes):
        for ax, band in zip(axes, narrow, strict=True):
            rows = rows_of(band, tables["top_ranks"])
            names = rows.sort_values("final_rank", kind="stable")["placement"].drop_duplicates().tolist()[:RANKED]
            ranks, *interval = (
                rows.pivot(index="step", columns="placement", values=name)[names].to_numpy() for name in ("rank", "rank_lo", "rank_hi")
            )
            run_figures.rank_trajectories(ax, ranks, names, scores.tokens, rows["n_placements"].iloc[0], tuple(interval))
            ax.set_title(f"cost {band}")
        style.save(fig, folder / "top_ranks")
    final = tables["frontier"].query("step == @scores.steps[-1]")
    with style.figure(height=1.2 + min(2.4, 0.16 * len(scores.placements[0]))) as (fig, (ax,)):
        run_figures.frontier_layers(ax, final["placement"].tolist(), final["cost"].to_numpy())
        style.save(fig, folder / "frontier_layers")
    return {
        "resolution": f"From which difference on the order at t is the final one, per cost band ({n}). Shaded: {level} intervals. Dashed: "
        "what is declared as settled. Hollow: the last checkpoint, 0 by construction; none: no difference is final yet.",
        "stability": f"Kendall's τ-b between the ranking at t and at the end, relative to its noise ceiling, within cost bands ({n}). "
        f"Shaded: {level} intervals. Dashed: the declared threshold. Hollow: the last checkpoint, 1 by construction. The whole cost range "
        "is inflated by trivial pairs.",
        "regret": "Regret at the end of the placement chosen at t, per cost band, judged on items that did not choose; "
        f"{level} intervals, dotted: a random choice ({n}). Hollow: the last checkpoint, 0 by construction.",
        "tau_matrix": "Kendall's τ-b of mean qualities between all pairs of checkpoints, not corrected for noise; within bands: mean over "
        f"the bands, weighted by their pairs of placements ({n}).",
        "pareto_drift": f"The frontier of each checkpoint, with its own qualities; grey dots: all placements at the end ({n}). "
        f"Bars: {level} intervals of {how}.",
        "frontier_kept": "Share of the final frontier that the frontier of t, chosen on other items, contains; "
        f"{level} intervals over half-samples of the items ({n}). Hollow: the last checkpoint itself, which is the noise ceiling.",
        "top_ranks": f"Ranks over training of the {RANKED} placements that are best at the end, per cost band; tied ones share a rank; "
        f"bars: {level} intervals over resampled items ({n}).",
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
        write_text(one_checkpoint(scores, run, tables, out).replace("nats/token", scores.unit), out / "report.md")
        page(scores, run, tables, endpoints, out)
        return tables
    captions = draw(scores, tables, endpoints, out / "figures") | draw_losses(scores, losses(run), out / "figures")
    also = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)))
    text = [
        f"# Is the ranking settled? {scores.scale}, run {scores.run}",
        *([" ".join(told)] if (told := about(run, scores)) else []),
        markdown(at_a_glance(tables)),
        bullets(verdict(tables, endpoints)),
        "## Warnings",
        bullets(warn(scores, tables) + also + noted(run, scores.steps[-1])),
        "## What was measured",
        markdown(describe(scores, run).drop(columns=["scale", "run"])),
        "Quality is the mean log-likelihood per token over items (nats/token, higher is better); cost in FA-layer equivalents. Resolution "
        "is the difference from which on the order of t is the final one; settled is a band whose differences above "
        f"{endpoints.delta_settled:g} nats/token are final and where choosing loses less than {endpoints.regret_threshold:.0%} of "
        "what it can gain. "
        "Every column is explained in docs/statistics.md.",
        "## Figures",
        *(f"![{name}](figures/{name}.png)\n\n{caption}" for name, caption in captions.items()),
        "## Agreement with the end, over training",
        "With intervals; more columns are in tables/stability.csv.",
        markdown(agreement(tables["stability"])),
        "## As published: the whole range of costs, before training beside it",
        markdown(tables["published"].drop(columns=["run", "n_placements", "n_items"])),
        "## Frontier over training",
        "Of its members at the end: how many are found, on other items, and what keeping the frontier of that time would cost at the end "
        "(nats/token, mean over budgets). More columns are in tables/pareto_drift.csv.",
        markdown(frontiers(tables["pareto_drift"])),
    ]
    write_text("\n\n".join(text).replace("nats/token", scores.unit) + "\n", out / "report.md")
    page(scores, run, tables, endpoints, out)
    return tables


def page(scores: Scores, run: Path, tables: dict[str, pd.DataFrame], endpoints: Endpoints, out: Path) -> None:
    """report.html, from the tables of ``report``."""
    settles = "stability" in tables
    question = "Is the ranking settled?" if settles else "The frontier at one checkpoint:"
    title = f"{question} {scores.scale}, run {scores.run}"
    glance = at_a_glance(tables) if settles else pd.DataFrame({"verdict": ["⚪ one checkpoint: nothing can be said about stability"]})
    words = [line.replace("**", "") for line in verdict(tables, endpoints)]
    write_page(page_data(scores, tables, title, about(run, scores), glance, words, endpoints.level, endpoints.seed), out / "report.html")


def draw_losses(scores: Scores, table: pd.DataFrame, folder: Path) -> dict[str, str]:
    """The loss curve, where there are losses of two steps or more; returns its name with its caption."""
    if len(table) < 2:
        return {}
    with style.figure(height=2.3) as (fig, (ax,)):
        run_figures.loss_curve(ax, table, scores.tokens)
        style.save(fig, folder / "loss")
    return {"loss": "Training loss of every step, each of another placement (dots); line and band: median and quartiles of neighbouring "
            "steps. Ticks above: the checkpoints that were scored."}  # fmt: skip


def at_a_glance(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The verdicts of a run: a row per band and endpoint, with its light, and the number and interval halfway through training."""
    times, stability = tables["time_to_stability"], tables["stability"]
    half = stability["tokens"].unique()
    half = half[np.abs(half - half.max() / 2).argmin()]
    at = stability[stability["tokens"] == half].set_index(["band_lo", "band_hi"])
    column = {"resolution": "resolution", "regret": "regret_share"}
    rows = []
    for time in times.itertuples():
        now = at.loc[(time.band_lo, time.band_hi)]
        value, low, high = (now[column[time.endpoint] + end] for end in ("", "_lo", "_hi"))
        number = f"{value:.3g} ({low:.3g} to {high:.3g})" if np.isfinite([value, low]).all() else "-"
        rows.append({
            "cost": f"{time.band_lo:.3g}–{time.band_hi:.3g}", "placements": int(now["n_placements"]), "endpoint": time.endpoint,
            "verdict": lit(time.verdict), "from token": style.count(time.tokens) if time.reached else "-",
            f"at {style.count(half)} tokens": number,
        })  # fmt: skip
    return pd.DataFrame(rows)


def agreement(stability: pd.DataFrame) -> pd.DataFrame:
    """A row per band and checkpoint: the endpoints with their intervals."""
    rows = []
    for band in bands_in(stability):
        for _, row in rows_of(band, stability).iterrows():
            its = {words: interval(row, name, 3 if name == "resolution" else 2) for name, words in ENDPOINTS_SHOWN.items()}
            rows.append({"cost": str(band), "token": style.count(row["tokens"])} | its)
    return pd.DataFrame(rows)


def frontiers(drift: pd.DataFrame) -> pd.DataFrame:
    """A row per checkpoint: members, the share of the final ones that is found, and what keeping this frontier would lose."""
    return pd.DataFrame([
        {
            "token": style.count(row["tokens"]),
            "members": int(row["size"]),
            "shared": interval(row, "shared_cross", 2),
            "shared at best": row["shared_ceiling"],
            "loss": interval(row, "loss", 3),
            "loss of random ones": row["loss_random"],
        }
        for _, row in drift.iterrows()
    ])  # fmt: skip


def one_checkpoint(scores: Scores, run: Path, tables: dict[str, pd.DataFrame], out: Path) -> str:
    """The text of report.md of a run with one checkpoint; draws its figures."""
    with style.figure(height=2.7) as (fig, (ax,)):
        run_figures.pareto_drift(ax, tables["frontier"], scores.cost, scores.quality[-1].mean(axis=1), unit=scores.unit)
        fig.legends[0].remove()  # of checkpoints
        style.save(fig, out / "figures" / "frontier")
    with style.figure(height=1.2 + min(2.4, 0.16 * len(scores.placements[0]))) as (fig, (ax,)):
        run_figures.frontier_layers(ax, tables["frontier"]["placement"].tolist(), tables["frontier"]["cost"].to_numpy())
        style.save(fig, out / "figures" / "frontier_layers")
    few = [f"Only {len(scores.items)} items: qualities are uncertain below {FEW_ITEMS}."] if len(scores.items) < FEW_ITEMS else []
    few += noted(run, scores.steps[-1])
    front = tables["behind"][tables["behind"]["placement"].isin(tables["frontier"]["placement"])]
    n = f"{len(scores.placements)} placements, {len(scores.items)} items"
    text = [
        f"# The frontier at one checkpoint: {scores.scale}, run {scores.run}",
        *([" ".join(told)] if (told := about(run, scores)) else []),
        bullets(frontier_of_one(tables)),
        *(["## Warnings", bullets(few)] if few else []),
        "## What was measured",
        markdown(describe(scores, run).drop(columns=["scale", "run"])),
        "Quality is the mean log-likelihood per token over items (nats/token, higher is better); cost in FA-layer equivalents. Every "
        "column is explained in docs/statistics.md; all placements are in tables/behind.csv.",
        "## Frontier",
        markdown(front.drop(columns=["run", "step"])),
        "## Figures",
        f"![frontier](figures/frontier.png)\n\nThe frontier; grey dots: all placements ({n}).",
        f"![layers](figures/frontier_layers.png)\n\nWhich mixer sits at which layer on the frontier, cheapest placement left ({n}).",
    ]
    return "\n\n".join(text) + "\n"
