"""Figures of the scales study: computed numbers in, drawn on a given Axes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.output.style import BAND_COLOURS, GREY, MARKERS, legend_below
from analysis.statistics.intervals import quantile


def drift_over_training(ax: Axes, drift: pd.DataFrame, endpoint: str, label: str) -> None:
    """One line per cell (mean over teachers, with its t interval) with each teacher as a thin line; the end is 0 by construction."""
    cells = drift[["width", "layers", "cell"]].drop_duplicates().sort_values(["width", "layers"])["cell"]
    for n, cell in enumerate(cells):
        rows = drift[drift["cell"] == cell]
        colour = BAND_COLOURS[n % len(BAND_COLOURS)]
        for _, run in rows.groupby("run"):
            ax.plot(run["share"], run[endpoint], color=colour, linewidth=0.4, alpha=0.6)
        rank = rows.groupby("run")["step"].rank().astype(int)
        mean = rows.groupby(rank)[["share", endpoint]].mean()
        inner = rows[endpoint].groupby(rank)
        if inner.size().min() > 1:
            half = inner.std() / np.sqrt(inner.size()) * [quantile(0.95, n - 1) for n in inner.size()]
            ax.fill_between(mean["share"], mean[endpoint] - half, mean[endpoint] + half, color=colour, alpha=0.15, linewidth=0)
        ax.plot(mean["share"], mean[endpoint], color=colour, marker=MARKERS[n % len(MARKERS)], label=cell)
    low, high = drift[endpoint].min(), drift[endpoint].max()
    if low < high:  # the runs decide what is seen: an interval of two teachers may be ten times as wide
        ax.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    ax.plot(1, 0, marker="o", markerfacecolor="white", color=GREY, linestyle="none", label="the end itself")
    ax.set_xlabel("share of the training")
    ax.set_ylabel(f"drift of {label}")
    legend_below(ax, None, columns=6)


def slopes_beside(ax: Axes, slopes: pd.DataFrame, endpoint: str) -> None:
    """Change per doubling with its interval, by share of the training; grey: the least slope that would be found with 80% power."""
    ax.axvline(0, color="black", linewidth=0.7)
    ax.set_xlabel("change per doubling")
    rows = slopes[(slopes["endpoint"] == endpoint) & (slopes["coefficient"] != "intercept")] if len(slopes) else slopes
    if rows.empty:
        ax.text(0.5, 0.5, "too few runs", transform=ax.transAxes, ha="center", color=GREY)
        return
    labels = [f"{row.coefficient}, at {row.share:.2g}" for row in rows.itertuples()]
    y = np.arange(len(rows))
    bars = np.abs(rows[["lo", "hi"]].to_numpy() - rows[["value"]].to_numpy()).T
    ax.barh(y, 2 * rows["detectable"], left=-rows["detectable"], color="#ececec", height=0.7)
    colours = {name: BAND_COLOURS[n] for n, name in enumerate(rows["coefficient"].drop_duplicates())}
    for place, (row, bar) in enumerate(zip(rows.itertuples(), bars.T, strict=True)):
        ax.errorbar(row.value, place, xerr=bar[:, None], fmt="o", color=colours[row.coefficient], elinewidth=0.9)
    ax.set_yticks(y, labels)
    ax.grid(axis="y", visible=False)
    ax.invert_yaxis()
