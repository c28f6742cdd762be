"""One function per figure: computed numbers in, draws on a given Axes. Made for one column (3.3 inches), 7 pt and larger."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter, NullLocator

WIDTH = 3.3
"""Inches, one column."""

BAND_COLOURS = sns.color_palette("colorblind").as_hex()
GREY = "#6f6f6f"
MARKERS = "osD^vP*X"
MIXER_COLOURS = {"F": "#0173b2", "S": "#56b4e9", "K": "#de8f05", "G": "#fbe5a0"}
"""Attention blue, delta rule orange, the cheaper of each lighter: they differ in lightness, too. Other letters take spare colours."""

STYLE = {
    "font.size": 7, "axes.labelsize": 7.5, "axes.titlesize": 7.5, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7,
    "legend.title_fontsize": 7, "lines.linewidth": 1.1, "lines.markersize": 3.2, "axes.linewidth": 0.6, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.linewidth": 0.4, "grid.color": "#e4e4e4", "axes.axisbelow": True,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "legend.frameon": False, "legend.handlelength": 1.8, "pdf.fonttype": 42,
    "figure.dpi": 100, "savefig.dpi": 200, "mathtext.default": "regular",
}  # fmt: skip


class Band(NamedTuple):
    """A cost band in FA-layer equivalents; ``whole`` when it is the whole cost range, which stands beside bands and never alone."""

    lo: float
    hi: float
    whole: bool

    def __str__(self) -> str:
        return f"{self.lo:.3g}–{self.hi:.3g}"


def bands(stability: pd.DataFrame) -> list[Band]:
    """The bands of a table with band_lo and band_hi, cheapest first; the one that spans all others is the whole range, and last."""
    edges = sorted(set(stability[["band_lo", "band_hi"]].itertuples(index=False, name=None)))
    span = min(lo for lo, _ in edges), max(hi for _, hi in edges)
    found = [Band(lo, hi, len(edges) > 1 and (lo, hi) == span) for lo, hi in edges]
    return sorted(found, key=lambda band: (band.whole, band))


def rows_of(band: Band, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one band."""
    return frame[(frame["band_lo"] == band.lo) & (frame["band_hi"] == band.hi)]


@contextmanager
def figure(rows: int = 1, height: float = 2.3, width: float = WIDTH, **subplots: object) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure of ``rows`` Axes in the house style, closed afterwards; ``height`` in inches for each row."""
    with matplotlib.rc_context(STYLE):
        fig, axes = plt.subplots(rows, squeeze=False, figsize=(width, height * rows), layout="constrained", **subplots)
        try:
            yield fig, axes[:, 0]
        finally:
            plt.close(fig)


def save(fig: Figure, path: Path) -> None:
    """Write ``path`` with the suffixes .pdf and .png, without dates, so that the same numbers give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # laid out once, not again for every format
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        fig.savefig(temporary, format=suffix, metadata=metadata)
        os.replace(temporary, path.with_name(f"{path.name}.{suffix}"))


def stability_curve(ax: Axes, stability: pd.DataFrame, threshold: float) -> None:
    """τ / ceiling over tokens, a line with its interval per cost band of one run (rows of stability.csv); dashed: the threshold.

    The whole cost range, where it is there, is drawn in grey and without interval.
    """
    _band_lines(ax, stability, "ratio", "ratio_lo", "ratio_hi")
    ax.axhline(threshold, color="black", linestyle="--", linewidth=0.8)
    ax.annotate(f"{threshold:g}", (1, threshold), (2, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center")
    # intervals far below 0 say nothing more than "anything": they may run out of the picture, the curves may not
    ax.set_ylim(min(-0.05, stability["ratio"].min() - 0.05), max(1.05, stability["ratio"].max() + 0.05))
    ax.set_ylabel("τ / noise ceiling")
    _token_axis(ax, stability["tokens"])
    _legend_below(ax, "cost band in FA layers (placements)", columns=2)


def regret_curve(ax: Axes, stability: pd.DataFrame) -> None:
    """Regret of choosing at t, per band of one run (rows of stability.csv); dotted: of a random choice, if ``regret_random`` is there.

    Without the whole cost range: its best placement is the dearest one, at any time.
    """
    if len(narrow := [rows_of(band, stability) for band in bands(stability) if not band.whole]):
        stability = pd.concat(narrow)
    _band_lines(ax, stability, "regret", "regret_lo", "regret_hi")
    if "regret_random" in stability:
        for n, band in enumerate(bands(stability)):
            rows = rows_of(band, stability)
            ax.plot(
                rows["tokens"],
                rows["regret_random"],
                color=GREY if band.whole else BAND_COLOURS[n % len(BAND_COLOURS)],
                linestyle=":",
                linewidth=1,
            )
        ax.plot([], [], color="black", linestyle=":", linewidth=1, label="random choice")
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set_ylabel("regret at T (nats/token)")
    _token_axis(ax, stability["tokens"])
    _legend_below(ax, "cost band in FA layers (placements)", columns=2)


def tau_heatmap(ax: Axes, tau: np.ndarray, tokens: np.ndarray, n: int) -> None:
    """Kendall's τ-b between all pairs of checkpoints: tau [S, S] over n placements."""
    S = len(tau)
    lowest = min(0.8, np.floor(10 * np.nanmin(tau)) / 10)
    image = ax.imshow(tau, cmap="cividis", vmin=lowest, vmax=1, aspect="equal")
    if S <= 12:
        for i, j in np.ndindex(S, S):
            shade = "white" if tau[i, j] < (lowest + 1) / 2 else "black"
            ax.text(j, i, f"{tau[i, j]:.2f}".replace("0.", ".").replace("1.00", "1"), ha="center", va="center", color=shade)
    shown = np.unique(np.linspace(0, S - 1, min(S, 12)).round().astype(int))
    labels = [count(tokens[i]) for i in shown]
    ax.set_xticks(shown, labels, rotation=90)
    ax.set_yticks(shown, labels)
    ax.set_xlabel("training tokens")
    ax.set_ylabel("training tokens")
    ax.grid(False)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.02)
    bar.set_label(f"Kendall's τ-b over {n} placements")
    bar.outline.set_linewidth(0.4)


def pareto_drift(ax: Axes, frontiers: pd.DataFrame, cost: np.ndarray | None = None, quality: np.ndarray | None = None) -> None:
    """The frontier of each checkpoint (rows of frontier.csv of one run), early light and late dark, with the qualities of that checkpoint.

    Circled: placements that are on the final frontier, too. ``cost`` [P] and ``quality`` [P]: all placements at T, as dots.
    """
    if cost is not None:
        ax.plot(cost, quality, ".", color="#b0b0b0", markersize=1.5, markeredgewidth=0, zorder=1, rasterized=len(cost) > 2000)
    steps = frontiers["tokens"].drop_duplicates().tolist()
    colours = sns.color_palette("viridis_r", len(steps) + 1).as_hex()[1:]
    for colour, tokens in zip(colours, steps, strict=True):
        rows = frontiers[frontiers["tokens"] == tokens]
        last = tokens == steps[-1]
        ax.plot(rows["cost"], rows["quality"], drawstyle="steps-post", color=colour, linewidth=1.6 if last else 0.9, label=count(tokens))
        final = rows[rows["final"]]
        ax.plot(final["cost"], final["quality"], "o", color=colour, markersize=2.6, markerfacecolor=colour if last else "white",
                markeredgewidth=0.7)  # fmt: skip
    ax.set_xlabel("decode cost (FA-layer equivalents)")
    ax.set_ylabel("quality (nats/token)")
    _legend_below(ax, "training tokens (markers: on the final frontier)", columns=4)


def frontier_kept(ax: Axes, drift: pd.DataFrame) -> None:
    """Share of the final frontier that is found at t on other items, interval, ceiling and a random choice (rows of pareto_drift.csv)."""
    ax.fill_between(drift["tokens"], drift["shared_cross_lo"], drift["shared_cross_hi"], color=BAND_COLOURS[0], alpha=0.2, linewidth=0)
    ax.plot(drift["tokens"], drift["shared_cross"], "o-", color=BAND_COLOURS[0], label="found at t")
    ax.plot(drift["tokens"], drift["shared_ceiling"], "--", color="black", linewidth=0.8, label="noise ceiling")
    ax.plot(drift["tokens"], drift["shared_random"], ":", color="black", linewidth=1, label="random choice")
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("share of the final frontier")
    _token_axis(ax, drift["tokens"])
    _legend_below(ax, f"{drift['n_placements'].iloc[0]} placements, {drift['n_items'].iloc[0]} items", columns=3)


def rank_trajectories(ax: Axes, ranks: np.ndarray, placements: list[str], tokens: np.ndarray, n: int) -> None:
    """Ranks over training of the k placements that are best at T: ranks [S, k] among n, 1 = best; at T they are 1 to k."""
    S, k = ranks.shape
    position = np.arange(S)  # the labels and crossings need room, so checkpoints are evenly spaced here
    colours = sns.color_palette("colorblind", k).as_hex()
    for p in range(k):
        marker = MARKERS[p % len(MARKERS)]
        ax.plot(position, ranks[:, p], marker=marker, color=colours[p], clip_on=False, zorder=10 - p / k)
        label = placements[p] if len(placements[p]) <= 12 else _composition(placements[p])
        ax.annotate(label, (S - 1, p + 1), (6, 0), textcoords="offset points", va="center", color=_darker(colours[p]),
                    family="monospace", annotation_clip=False)  # fmt: skip
    worst = max(ranks.max(), k + 1)
    # even steps down to rank k, where the lines end and have their labels; logarithmic below, in at most a third of the height
    squeeze = min(1.0, 0.5 / np.log(worst / k))
    ax.set_yscale("function", functions=(lambda r: _rank_scale(r, k, squeeze), lambda y: _rank_unscale(y, k, squeeze)))
    ax.set_ylim(_rank_unscale(_rank_scale(worst, k, squeeze) + 0.4, k, squeeze), 0.5)
    ticks: list[float] = []
    for rank in (1, k, worst, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000):  # as many as have room, the most telling first
        place = _rank_scale(np.array([rank, *ticks]), k, squeeze)
        if rank <= worst and np.all(np.abs(place[1:] - place[0]) > 0.1 * _rank_scale(worst, k, squeeze)):
            ticks.append(rank)
    ax.yaxis.set_major_locator(FixedLocator(sorted(ticks)))
    ax.yaxis.set_major_formatter("{x:.0f}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xticks(position, [count(t) for t in tokens], rotation=45 if S > 7 else 0)
    ax.set_xlim(-0.15, S - 0.85)
    ax.set_xlabel("training tokens (checkpoints evenly spaced)")
    ax.set_ylabel(f"rank among {n}")


def frontier_layers(ax: Axes, placements: list[str], cost: np.ndarray) -> None:
    """Which mixer sits at which layer: one column per placement of the frontier, cheapest first; first layer at the bottom."""
    letters = [c for c in "FSKG" if c in "".join(placements)] + sorted(set("".join(placements)) - set("FSKG"))
    spare = iter(["#029e73", "#cc78bc", "#ca9161", "#949494", "#ece133"])
    colours = [MIXER_COLOURS.get(c) or next(spare) for c in letters]
    grid = np.array([[letters.index(c) for c in placement] for placement in placements]).T  # [L, placements]
    L, n = grid.shape
    ax.imshow(
        grid, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(letters) - 0.5, aspect="auto", origin="lower", interpolation="nearest"
    )
    if L <= 12 and n <= 24:
        for layer, column in np.ndindex(L, n):
            letter = placements[column][layer]
            ax.text(column, layer, letter, ha="center", va="center", fontsize=7, color="white" if letter == "F" else "black")
    shown = np.arange(0, n, -(-n // 7))
    ax.set_xticks(shown, [f"{cost[i]:.3g}" for i in shown])
    layers = np.arange(L) if L <= 12 else np.arange(0, L, 5 if L <= 40 else 10)
    ax.set_yticks(layers, [str(layer + 1) for layer in layers])
    ax.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(L + 1) - 0.5, minor=True)
    ax.grid(False, which="major")
    ax.grid(True, which="minor", color="white", linewidth=0.5 if max(L, n) <= 40 else 0.2)
    ax.tick_params(which="minor", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_xlabel(f"decode cost of {n} placements (FA layers)")
    ax.set_ylabel("layer (1 = first)")
    for letter, colour in zip(letters, colours, strict=True):
        ax.plot([], [], "s", color=colour, markersize=6, markeredgecolor="#606060", markeredgewidth=0.4, label=letter)
    _legend_below(ax, "mixer", columns=len(letters))


def scales(ax: Axes, comparison: pd.DataFrame, threshold: float, labels: list[str], axis: str = "share_of_training") -> None:
    """τ / ceiling of several runs side by side (rows of comparison.csv, one band each): one line with its interval per run.

    ``axis``: ``share_of_training`` or ``tokens_per_parameter``; ``label`` in the rows names the line, ``labels`` are those of all panels.
    """
    for n, label in enumerate(labels):
        rows = comparison[comparison["label"] == label].sort_values("tokens")
        if rows.empty:
            continue
        colour = BAND_COLOURS[n % len(BAND_COLOURS)]
        ax.fill_between(rows[axis], rows["ratio_lo"], rows["ratio_hi"], color=colour, alpha=0.15, linewidth=0)
        ax.plot(rows[axis], rows["ratio"], color=colour, marker=MARKERS[n % len(MARKERS)], label=label)
    ax.axhline(threshold, color="black", linestyle="--", linewidth=0.8)
    ax.set_ylim(min(-0.05, comparison["ratio"].min() - 0.05), max(1.05, comparison["ratio"].max() + 0.05))
    ax.set_ylabel("τ / noise ceiling")
    if axis == "share_of_training":
        _symlog(ax, comparison[axis])
        ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g}%")
        ax.set_xlabel("share of training tokens seen")
    else:
        _symlog(ax, comparison[axis])
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:.3g}")
        ax.set_xlabel("training tokens per trained parameter")
    _legend_below(ax, None, columns=1 if max(map(len, labels)) > 24 else 2)


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
    _legend_below(ax, None, columns=3)


def strategy_stability(ax: Axes, stability: pd.DataFrame, threshold: float) -> None:
    """τ/ceiling before the end per cost band and strategy, with intervals over seeds (rows of ``strategies.stability_by_strategy``)."""
    shown = [band for band in bands(stability) if _has_ratio(band, stability)]
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
    _legend_below(ax, None, columns=4)


def _has_ratio(band: Band, stability: pd.DataFrame) -> bool:
    """Whether any row of a band has a number."""
    return bool(rows_of(band, stability)["ratio"].notna().any())


def _band_lines(ax: Axes, stability: pd.DataFrame, value: str, low: str, high: str) -> None:
    for n, band in enumerate(bands(stability)):
        rows = rows_of(band, stability).sort_values("tokens")
        if rows[value].isna().all():
            continue
        label = f"{band} ({rows['n_placements'].iloc[0]:.0f})"
        if band.whole:  # it is there for comparison: its interval would only cover those of the bands
            ax.plot(rows["tokens"], rows[value], color=GREY, linestyle="-.", label=f"{label} whole range")
            continue
        colour = BAND_COLOURS[n % len(BAND_COLOURS)]
        ax.fill_between(rows["tokens"], rows[low], rows[high], color=colour, alpha=0.12, linewidth=0)
        for edge in (low, high):
            ax.plot(rows["tokens"], rows[edge], color=colour, linewidth=0.5, alpha=0.7)
        ax.plot(rows["tokens"], rows[value], color=colour, marker=MARKERS[n % len(MARKERS)], label=label)


def _token_axis(ax: Axes, tokens: pd.Series) -> None:
    _symlog(ax, tokens)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlabel("training tokens")


def _symlog(ax: Axes, values: pd.Series) -> None:
    """Logarithmic with room for 0 at the left: linear up to the first positive value."""
    values = np.unique(np.asarray(values, dtype=float))
    positive = values[values > 0]
    if len(positive) < 2:
        return
    if values[0] > 0:
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        ax.set_xlim(-0.12 * positive[0], positive[-1] * (positive[-1] / positive[0]) ** 0.03)
    decades = 10.0 ** np.arange(np.ceil(np.log10(positive[0]) - 1e-9), np.floor(np.log10(positive[-1]) + 1e-9) + 1)
    if len(decades) < 2:  # a short axis: 1, 2 and 5 times the powers of ten
        exponents = np.arange(np.floor(np.log10(positive[0])), np.ceil(np.log10(positive[-1])) + 1)
        decades = np.sort(np.outer([1, 2, 5], 10.0**exponents).ravel())
        decades = decades[(decades >= positive[0]) & (decades <= positive[-1])]
    ax.xaxis.set_major_locator(FixedLocator(np.concatenate([[0.0] if values[0] == 0 else [], decades])))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())


def _legend_below(ax: Axes, title: str | None, columns: int) -> None:
    """Below the axes, where it can cover no data."""
    by_label = {h.get_label(): h for axes in ax.figure.axes for h in axes.get_legend_handles_labels()[0]}
    for drawn in ax.figure.legends[:]:  # one legend for all panels
        drawn.remove()
    if handles := list(by_label.values()):
        ax.figure.legend(handles=handles, title=title, loc="outside lower center", ncols=min(columns, len(handles)), columnspacing=1.2,
                         handletextpad=0.5, borderaxespad=0.2)  # fmt: skip


def count(tokens: float) -> str:
    """1234567 -> 1.23M"""
    return EngFormatter(sep="", places=None).format_eng(float(f"{tokens:.3g}"))


def _rank_scale(rank: np.ndarray, k: int, squeeze: float) -> np.ndarray:
    """Linear up to rank k, logarithmic below."""
    return np.where(rank <= k, rank, k + squeeze * k * np.log(np.maximum(rank, k) / k))


def _rank_unscale(y: np.ndarray, k: int, squeeze: float) -> np.ndarray:
    return np.where(y <= k, y, k * np.exp((np.maximum(y, k) - k) / (squeeze * k)))


def _composition(placement: str) -> str:
    """FFSKG -> F2S1K1G1: for placements too long to be written out."""
    return "".join(f"{c}{placement.count(c)}" for c in sorted(set(placement), key=placement.index))


def _darker(colour: str) -> tuple[float, ...]:
    """Text in a light colour cannot be read on white."""
    return tuple(0.75 * c for c in matplotlib.colors.to_rgb(colour))
