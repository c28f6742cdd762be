"""Figures of runs against each other: computed numbers in, drawn on a given Axes, one function per figure."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from analysis.bands import Band, bands_in, rows_of
from analysis.output.run_figures import NONE_FINAL, course, resolution_axis
from analysis.output.style import BAND_COLOURS, GREY, MARKERS, legend_below, symlog


def scales(ax: Axes, comparison: pd.DataFrame, threshold: float, labels: list[str], axis: str = "share_of_training") -> None:
    """τ / ceiling of several runs side by side (rows of comparison.csv, one band each): one line with its interval per run.

    Hollow: T, 1 by construction. ``axis``: ``share_of_training`` or ``tokens_per_parameter``; ``label`` in the rows names the line,
    ``labels`` are those of all panels.
    """
    for n, label in enumerate(labels):
        rows = comparison[comparison["label"] == label].sort_values("tokens")
        if rows.empty:
            continue
        colour = BAND_COLOURS[n % len(BAND_COLOURS)]
        course(ax, *(rows[name] for name in (axis, "ratio", "ratio_lo", "ratio_hi")), colour, MARKERS[n % len(MARKERS)], label)
    ax.axhline(threshold, color="black", linestyle="--", linewidth=0.8)
    ax.set_ylim(min(-0.05, comparison["ratio"].min() - 0.05), max(1.05, comparison["ratio"].max() + 0.05))
    ax.set_ylabel("τ / noise ceiling")
    if axis == "share_of_training":
        symlog(ax, comparison[axis])
        ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g}%")
        ax.set_xlabel("share of training tokens seen")
    else:
        symlog(ax, comparison[axis])
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:.3g}")
        ax.set_xlabel("training tokens per trained parameter")
    legend_below(ax, None, columns=1 if max(map(len, labels)) > 24 else 2)


def references(ax: Axes, comparison: pd.DataFrame, reruns: pd.DataFrame, settled: float, unit: str = "nats/token") -> None:
    """Resolution over training of replicates in one band (rows of comparison.csv with ``teacher``, a number): a line per run, a colour per
    teacher. Across: what the end of another seed, and of another teacher, reaches (rows of reruns.csv; mean over pairs and mean interval).
    """
    for _, rows in comparison.groupby("run", sort=False):
        rows = rows.sort_values("tokens")
        number = int(rows["teacher"].iloc[0])
        value = np.clip(rows["resolution"].to_numpy(float), 0, NONE_FINAL)
        line = {"color": BAND_COLOURS[number % len(BAND_COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 2.5}
        ax.plot(rows["share_of_training"].iloc[:-1], value[:-1], label=f"teacher {number + 1}", **line)
        ax.plot(rows["share_of_training"].iloc[-1:], value[-1:], **line | {"markerfacecolor": "white"})
    for name, style in (("seed", ":"), ("teacher", "-.")):
        rows = reruns[reruns["varies"] == name]
        if len(rows):
            mean, low, high = (np.clip(rows[f"resolution{end}"], 0, NONE_FINAL).mean() for end in ("", "_lo", "_hi"))
            ax.axhspan(low, high, color=GREY, alpha=0.12, linewidth=0)
            ax.axhline(mean, color=GREY, linestyle=style, label=f"another {name}")
    resolution_axis(ax, settled, unit)
    symlog(ax, comparison["share_of_training"])
    ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g}%")
    ax.set_xlabel("share of training tokens seen")


def strategy_differences(ax: Axes, quality: pd.DataFrame) -> None:
    """Difference of final quality to the reference strategy per group (rows of ``strategies.final_quality``).

    Intervals are over seeds, or over items where there is one seed.
    """
    rows = quality[quality["strategy"] != quality["against"]]
    groups, names = rows["group"].drop_duplicates().tolist(), rows["strategy"].drop_duplicates().tolist()
    ends = ["seeds_lo", "seeds_hi"] if (rows["n_seeds"] > 1).all() else ["items_lo", "items_hi"]
    for n, name in enumerate(names, start=1):  # the first colour is the reference's, in the other figure
        of_name = rows[rows["strategy"] == name]
        y = np.array([groups.index(group) for group in of_name["group"]]) + 0.22 * (n - (len(names) + 1) / 2)
        bars = np.abs(of_name[ends].to_numpy() - of_name[["difference"]].to_numpy()).T
        ax.errorbar(of_name["difference"], y, xerr=np.nan_to_num(bars), fmt=MARKERS[n], color=BAND_COLOURS[n], label=name, elinewidth=0.9)
    ax.axvline(0, color="black", linewidth=0.7)
    sizes = rows.drop_duplicates("group")["n_placements"]
    ax.set_yticks(range(len(groups)), [f"{group} ({size})" for group, size in zip(groups, sizes, strict=True)])
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    largest = rows["difference"].abs().max()
    small = rows["difference"].abs().median()
    if largest > 5 * small > 0:  # a few placements lose much, most differ little
        decades = 10.0 ** np.arange(np.floor(np.log10(small)), np.ceil(np.log10(largest)) + 1)
        ax.set_xscale("symlog", linthresh=decades[0], linscale=0.7)
        ax.xaxis.set_major_locator(FixedLocator([*-decades[::-1], 0, *decades]))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.tick_params(axis="x", labelrotation=45)
    ax.set_xlabel(f"final quality less that of {quality['against'].iloc[0]}\n(nats/token)")
    legend_below(ax, None, columns=3)


def strategy_stability(ax: Axes, stability: pd.DataFrame, threshold: float) -> None:
    """τ/ceiling before the end per cost band and strategy, with intervals over seeds (rows of ``strategies.stability_by_strategy``)."""
    shown = [band for band in bands_in(stability) if _has_ratio(band, stability)]
    names = stability["strategy"].drop_duplicates().tolist()
    for n, name in enumerate(names):
        rows = pd.concat([rows_of(band, stability[stability["strategy"] == name]) for band in shown])
        x = np.arange(len(shown)) + 0.17 * (n - (len(names) - 1) / 2)
        bars = np.abs(rows[["ratio_lo", "ratio_hi"]].to_numpy() - rows[["ratio"]].to_numpy()).T
        ax.errorbar(x, rows["ratio"], yerr=np.nan_to_num(bars), fmt=MARKERS[n], color=BAND_COLOURS[n], label=name, elinewidth=0.9)
    ax.axhline(threshold, color="black", linewidth=0.8, linestyle="--")
    ax.set_xticks(range(len(shown)), [f"{band}" + ("\nwhole range" if band.whole else "") for band in shown])
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("cost band (FA-layer equivalents)")
    ax.set_ylabel("τ/ceiling before the end")
    legend_below(ax, None, columns=4)


def _has_ratio(band: Band, stability: pd.DataFrame) -> bool:
    """Whether any row of a band has a number."""
    return bool(rows_of(band, stability)["ratio"].notna().any())
