"""Figures of accuracy: over cost, over length and depth, against likelihood. Computed numbers in, drawn on given Axes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.output.style import BAND_COLOURS, GREY, MARKERS, legend_below, token_axis


def accuracy_by_cost(ax: Axes, accuracy: pd.DataFrame, teacher: float | None, level: float) -> None:
    """Every placement, those with a name on top with their intervals; rows of accuracy.csv of one step: cost, accuracy, _lo, _hi, name."""
    plain, named = accuracy[accuracy["name"] == ""], accuracy[accuracy["name"] != ""]
    ax.plot(
        plain["cost"], plain["accuracy"], ".", color="#b5b5b5", markersize=2.5, label=f"{len(plain)} others", rasterized=len(plain) > 300
    )
    kinds = {"presets": ~named["name"].str.startswith("all-"), "one mixer": named["name"].str.startswith("all-")}
    for n, (label, chosen) in enumerate(kinds.items()):
        rows = named[chosen].sort_values("cost")
        if rows.empty:
            continue
        errors = [rows["accuracy"] - rows["accuracy_lo"], rows["accuracy_hi"] - rows["accuracy"]]
        line = "-" if label == "presets" else "none"
        ax.errorbar(rows["cost"], rows["accuracy"], yerr=np.clip(errors, 0, None), color=BAND_COLOURS[n], marker=MARKERS[n], linestyle=line,
                    elinewidth=0.7, label=f"{label} ({level:.0%})")  # fmt: skip
        if label == "one mixer":
            for row in rows.itertuples():
                ax.annotate(row.name, (row.cost, row.accuracy), xytext=(3, 3), textcoords="offset points", fontsize=6)
    if teacher is not None:
        ax.axhline(teacher, color="black", linewidth=0.7, linestyle="--", label="frozen teacher")
    ax.set_xlabel("cost (FA-layer equivalents)")
    ax.set_ylabel("accuracy")
    ax.set_ylim(-0.03, 1.03)
    legend_below(ax, None, 2)


def by_length_and_depth(axes: Sequence[Axes], cells: Mapping[str, pd.DataFrame]) -> None:
    """One panel a placement; ``cells``: name -> accuracy, lengths across, depths down, 0 (the beginning of the text) at the top."""
    for ax, (name, table) in zip(axes, cells.items(), strict=True):
        ax.imshow(table.to_numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            ax.text(column, row, f"{value:.2f}".lstrip("0") if value < 1 else "1", ha="center", va="center", fontsize=6,
                    color="white" if value < 0.6 else "black")  # fmt: skip
        ax.set_xticks(range(len(table.columns)), [str(c) for c in table.columns])
        ax.set_yticks(range(len(table.index)), [f"{d:g}" for d in table.index])
        ax.set_ylabel("depth")
        ax.set_title(name, loc="left", pad=2)
        ax.grid(False)
    axes[-1].set_xlabel("prompt length (tokens)")


def likelihood_and_accuracy(ax: Axes, accuracy: pd.DataFrame) -> None:
    """A point a placement, coloured by cost band; rows of accuracy.csv of one step: likelihood, accuracy, band."""
    rows = accuracy.dropna(subset=["likelihood"])
    for n, (band, own) in enumerate(rows.groupby("band", sort=False)):
        ax.plot(own["likelihood"], own["accuracy"], MARKERS[n % len(MARKERS)], color=BAND_COLOURS[n % 10], markersize=2.2, linestyle="none",
                alpha=0.6, label=str(band), rasterized=len(rows) > 300)  # fmt: skip
    ax.set_xlabel("log-likelihood of traces (nats/token)")
    ax.set_ylabel("accuracy")
    legend_below(ax, "cost (FA-layer equivalents)", 3)


def agreement_over_training(ax: Axes, proxy: pd.DataFrame, column: str, label: str) -> None:
    """A line per cost band with its interval; rows of proxy.csv of one target and likelihood: tokens, band, and the column's ends."""
    bands = list(dict.fromkeys(proxy["band"]))
    for n, band in enumerate(bands):
        rows = proxy[proxy["band"] == band].sort_values("tokens")
        ax.plot(rows["tokens"], rows[column], color=BAND_COLOURS[n % 10], marker=MARKERS[n % len(MARKERS)], label=band)
        ax.fill_between(rows["tokens"], rows[f"{column}_lo"], rows[f"{column}_hi"], color=BAND_COLOURS[n % 10], alpha=0.12, linewidth=0)
    token_axis(ax, proxy["tokens"])
    ax.set_ylabel(label)


def agreement_by_band(ax: Axes, proxy: pd.DataFrame, column: str, label: str) -> None:
    """The same at one step: a point per cost band with its interval."""
    x = np.arange(len(proxy))
    errors = [proxy[column] - proxy[f"{column}_lo"], proxy[f"{column}_hi"] - proxy[column]]
    ax.errorbar(x, proxy[column], yerr=np.clip(errors, 0, None), color=GREY, marker="o", linestyle="none", elinewidth=0.8)
    ax.set_xticks(x, proxy["band"])
    ax.set_xlabel("cost (FA-layer equivalents)")
    ax.set_ylabel(label)
