"""The report of the scales study: tables as CSV, one figure, and what they say."""

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison.cells import DRIFTS, SHARES, at_share
from analysis.output.cells_figures import drift_over_training, slopes_beside
from analysis.output.style import figure, save
from analysis.output.write import bullets, markdown, write_csv, write_text
from analysis.stability.endpoints import Endpoints

PRIMARY = ("order", "choice")
WORDS = {"order": "order at the margin", "choice": "choice (regret share)", "landscape": "landscape (1 - linear correlation)",
         "tau": "Kendall's τ in the bands", "whole_range": "Spearman over the whole range"}  # fmt: skip


def write(tables: dict[str, pd.DataFrame], why: str, left_out: list[str], endpoints: Endpoints, out: Path) -> list[Path]:
    """tables/*.csv, figures/scales.* and scales.md; ``why`` says why there are no slopes, ``left_out`` which runs are
    not in them. Returns what was written."""
    paths = []
    for name, table in tables.items():
        if len(table):
            paths.append(out / "tables" / f"{name}.csv")
            write_csv(table, paths[-1])
    for name, suffix in (("scales", ""), ("cooled", "_to_cooled")):
        if len(tables[f"drift{suffix}"]):
            paths.append(out / "figures" / f"{name}.png")
            draw(tables[f"drift{suffix}"], tables[f"slopes{suffix}"], paths[-1].with_suffix(""))
    write_text("\n".join(text(tables, why, left_out, endpoints)) + "\n", out / "scales.md")
    return paths


def draw(drift: pd.DataFrame, found: pd.DataFrame, path: Path) -> None:
    """The primary endpoints over training, a line per cell, and their slopes beside them."""
    rows = len(PRIMARY)
    with figure(rows, 2.4, 6.8, ncols=2, gridspec_kw={"width_ratios": (1.7, 1)}) as (fig, _):
        axes = np.array(fig.axes).reshape(rows, 2)
        for n, name in enumerate(PRIMARY):
            drift_over_training(axes[n, 0], drift, name, WORDS[name])
            slopes_beside(axes[n, 1], found, name)
        save(fig, path)


def text(tables: dict[str, pd.DataFrame], why: str, left_out: list[str], endpoints: Endpoints) -> list[str]:
    drift, found = tables["drift"], tables["slopes"]
    runs = drift.groupby(["cell", "layers", "width"])["teacher"].nunique().reset_index().sort_values(["width", "layers"])
    lines = ["# Drift over depth and width", "", "Declared in docs/study.md and conf/study.yaml.", ""]
    lines += [bullets([f"{row.cell}: {row.teacher} teacher{'s' * (row.teacher > 1)}" for row in runs.itertuples()]), ""]
    lines += ["Left out:", "", bullets([f"{line}." for line in left_out]), ""] if left_out else []
    lines += ["## Halfway through the training: means over teachers", "", markdown(halfway(drift)), ""]
    lines += ["0: as at the end. The last rows of a cell's checkpoints before the end show training noise; step 0 is before training.", ""]
    lines += ["## Slopes per doubling", ""]
    lines += [f"None: {why}.", ""] if why else [*verdicts(found, endpoints.level), "", markdown(shown(found)), ""]
    if len(tables["drift_to_cooled"]):
        lines += ["## With the cooled copy as the end (not registered)", ""]
        lines += [
            "A single checkpoint at a constant rate carries training noise, and so does the end. Here the end is the copy whose rate falls "
            "to 0 afterwards; halfway is as before, at 0.44 of the training where its cooling counts.",
            "",
        ]
        lines += [markdown(halfway(tables["drift_to_cooled"], "end at the constant rate")), ""]
        if len(tables["slopes_to_cooled"]):
            its = tables["slopes_to_cooled"]
            lines += [*verdicts(its, endpoints.level), "", markdown(shown(its)), ""]
    if len(tables["controls"]):
        lines += ["## Controls: a cell repeated with one thing changed", "", markdown(tables["controls"]), ""]
    if len(tables["controls_to_cooled"]):
        lines += ["With the cooled copies as the end:", "", markdown(tables["controls_to_cooled"]), ""]
    if len(tables["transfer"]):
        keep = ["small", "large", "band", "n", "regret", "regret_cost", "regret_random", "spearman"]
        mean = tables["transfer"][keep].groupby(["small", "large", "band"], as_index=False).mean()
        lines += ["## What a small cell is worth for a large one (nats/token lost at the end)", "", markdown(mean), ""]
    quoted = at_step(tables["published"])
    lines += ["## As published: whole range, with the value before training", "", markdown(quoted), ""]
    return lines


def halfway(drift: pd.DataFrame, before: str = "just before the end") -> pd.DataFrame:
    """Per cell: every endpoint at step 0, halfway, and at the last checkpoint before the end, which is called ``before``."""
    last = drift.groupby("run")["share"].transform(lambda s: s[s < 1].max())
    parts = {"step 0": at_share(drift, 0.0), "halfway": at_share(drift, 0.5), before: drift[drift["share"] == last]}
    frames = [
        part.groupby(["layers", "width", "cell"], as_index=False)[list(DRIFTS)].mean().assign(when=when) for when, part in parts.items()
    ]
    table = pd.concat(frames).sort_values(["width", "layers"], kind="stable")
    return table[["cell", "when", *DRIFTS]]


def shown(found: pd.DataFrame) -> pd.DataFrame:
    columns = ["endpoint", "share", "coefficient", "value", "lo", "hi", "items", "detectable", "degrees"]
    return found.loc[(found["coefficient"] != "intercept") & found["share"].isin([SHARES[1], SHARES[-1]]), columns]


def verdicts(found: pd.DataFrame, level: float) -> list[str]:
    """A sentence per coefficient of the primary endpoints, halfway."""
    said = []
    for row in found[(found["share"] == 0.5) & found["endpoint"].isin(PRIMARY) & (found["coefficient"] != "intercept")].itertuples():
        how = "grows" if row.lo > 0 else "falls" if row.hi < 0 else "neither grows nor falls that can be seen"
        said.append(
            f"Drift of {WORDS[row.endpoint]} {how} with {row.coefficient}: {row.value:+.3f} per doubling ({level:.0%} {row.lo:+.3f} to "
            f"{row.hi:+.3f}); {row.detectable:.3f} would be found with 80% power, {row.runs} runs of {row.cells} cells."
        )
    return [bullets(said)]


def at_step(published: pd.DataFrame) -> pd.DataFrame:
    """Per cell: Spearman and W with the end at step 0 and halfway."""
    half = published.assign(share=published["tokens"] / published.groupby(["cell", "teacher"])["tokens"].transform("max"))
    half = half.assign(run=half["cell"] + half["teacher"].astype(str))
    columns = ["spearman", "spearman_start", "kendall_w", "w_chance", "w_with_last", "w_with_last_start"]
    return at_share(half, 0.5).groupby("cell", as_index=False)[columns].mean()
