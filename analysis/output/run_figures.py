"""Figures of one run: computed numbers in, drawn on a given Axes, one function per figure."""

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullLocator

from analysis.output.style import BAND_COLOURS, MARKERS, count, ink_on, legend_below, mixer_colours, token_axis

NONE_FINAL = 1.0
"""Nats/token: where a resolution is drawn that is as large or larger, up to no difference at all being final."""


def resolution_panel(ax: Axes, rows: pd.DataFrame, settled: float, unit: str = "nats/token") -> None:
    """The difference from which on the order of t is final, of one band (rows of stability.csv), with its interval; dashed: ``settled``.

    The last point is 0 by construction and drawn hollow; at the upper edge no difference is final yet (inf).
    """
    tokens = rows["tokens"].to_numpy()
    value, low, high = (np.clip(rows[name].to_numpy(float), 0, NONE_FINAL) for name in ("resolution", "resolution_lo", "resolution_hi"))
    known = np.isfinite(value)
    ax.fill_between(tokens, low, high, where=known & np.isfinite(low), color=BAND_COLOURS[0], alpha=0.2, linewidth=0)
    ax.plot(tokens[:-1][known[:-1]], value[:-1][known[:-1]], color=BAND_COLOURS[0])
    ax.plot(tokens[-2:], value[-2:], color=BAND_COLOURS[0], linestyle=":")
    ax.plot(tokens[:-1][known[:-1]], value[:-1][known[:-1]], linestyle="", marker="o", color=BAND_COLOURS[0])
    ax.plot(tokens[-1:], value[-1:], linestyle="", marker="o", color=BAND_COLOURS[0], markerfacecolor="white")
    resolution_axis(ax, settled, unit)
    token_axis(ax, rows["tokens"])


def resolution_axis(ax: Axes, settled: float, unit: str) -> None:
    """The vertical axis of resolutions up to NONE_FINAL, where no difference is final yet; dashed: ``settled``."""
    floor = settled / 8
    ax.axhline(settled, color="black", linestyle="--", linewidth=0.8)
    ax.set_yscale("symlog", linthresh=floor, linscale=0.4)
    ax.set_ylim(-floor / 4, 1.5 * NONE_FINAL)
    ax.yaxis.set_major_locator(FixedLocator([0, settled, 0.1, NONE_FINAL]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_yticklabels(["0", f"{settled:g}", "0.1", "none"])
    ax.set_ylabel(f"final above ({unit})")


def stability_panel(ax: Axes, rows: pd.DataFrame, threshold: float) -> None:
    """τ / ceiling over tokens of one band (rows of stability.csv), with its interval. Dashed: the threshold; hollow: T, 1 by
    construction."""
    course(ax, rows["tokens"], rows["ratio"], rows["ratio_lo"], rows["ratio_hi"])
    ax.axhline(threshold, color="black", linestyle="--", linewidth=0.8)
    ax.annotate(f"{threshold:g}", (1, threshold), (2, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center")
    # intervals far below 0 say nothing more than "anything": they may run out of the picture, the curves may not
    ax.set_ylim(min(-0.05, rows["ratio"].min() - 0.05), max(1.1, rows["ratio"].max() + 0.05))
    ax.set_ylabel("τ / noise ceiling")
    token_axis(ax, rows["tokens"])


def regret_panel(ax: Axes, rows: pd.DataFrame, unit: str = "nats/token") -> None:
    """Regret of choosing at t in one band (rows of stability.csv), with its interval; dotted: of a random choice; hollow: T, 0 by
    construction."""
    course(ax, rows["tokens"], rows["regret"], rows["regret_lo"], rows["regret_hi"])
    ax.plot(rows["tokens"], rows["regret_random"], color="black", linestyle=":", linewidth=1, label="random choice")
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set_ylabel(f"regret ({unit})")
    token_axis(ax, rows["tokens"])


def course(ax: Axes, x: pd.Series, value: pd.Series, low: pd.Series, high: pd.Series, colour: str = BAND_COLOURS[0], marker: str = "o",
           label: str | None = None) -> None:  # fmt: skip
    """A statistic of t against T with its interval. T against itself is what it is by construction: hollow, and dotted on the way there."""
    x, value, low, high = (np.asarray(column, dtype=float) for column in (x, value, low, high))
    ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    for edge in (low, high):
        ax.plot(x, edge, color=colour, linewidth=0.4, alpha=0.6)
    ax.plot(x[-2:], value[-2:], color=colour, linestyle=":")
    ax.plot(x[:-1], value[:-1], color=colour, marker=marker, label=label)
    ax.plot(x[-1:], value[-1:], color=colour, marker=marker, markerfacecolor="white", linestyle="none")


def loss_curve(ax: Axes, losses: pd.DataFrame, checkpoints: np.ndarray) -> None:
    """Loss of every training step (step, tokens, loss), the median and quartiles of neighbouring steps (32 groups of as many steps each, or
    as many as there are), ticks above at the checkpoints' tokens."""
    tokens, loss = losses["tokens"].to_numpy(float), losses["loss"].to_numpy(float)
    ax.plot(tokens, loss, ".", color="#b0b0b0", markersize=1.8, markeredgewidth=0, rasterized=len(loss) > 2000)
    groups = losses.groupby(np.arange(len(loss)) * min(32, len(loss)) // len(loss))
    middle = groups["tokens"].median()
    low, half, high = (groups["loss"].quantile(q) for q in (0.25, 0.5, 0.75))
    ax.fill_between(middle, low, high, color=BAND_COLOURS[0], alpha=0.25, linewidth=0)
    ax.plot(middle, half, color=BAND_COLOURS[0])
    for at in checkpoints:
        ax.axvline(at, 0.96, 1.0, color="black", linewidth=0.8)
    if loss.min() > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlabel("training tokens")
    ax.set_ylabel("training loss")


def nothing(ax: Axes, why: str) -> None:
    """In place of a figure that has no numbers."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, why, ha="center", va="center", transform=ax.transAxes)


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


def pareto_drift(
    ax: Axes, frontiers: pd.DataFrame, cost: np.ndarray | None = None, quality: np.ndarray | None = None, half: pd.Series | None = None,
    unit: str = "nats/token",
) -> None:  # fmt: skip
    """The frontier of each checkpoint (rows of frontier.csv of one run), early light and late dark, with the qualities of that checkpoint.

    Circled: placements that are on the final frontier, too. ``cost`` [P] and ``quality`` [P]: all placements at T, as dots; ``half``: half
    the width of an interval by placement, a bar at those of the final frontier.
    """
    if cost is not None:
        ax.plot(cost, quality, ".", color="#b0b0b0", markersize=1.5, markeredgewidth=0, zorder=1, rasterized=len(cost) > 2000)
    steps = frontiers["tokens"].drop_duplicates().tolist()
    colours = sns.color_palette("viridis_r", len(steps) + 1).as_hex()[1:]
    for colour, tokens in zip(colours, steps, strict=True):
        rows = frontiers[frontiers["tokens"] == tokens]
        last = tokens == steps[-1]
        ax.plot(rows["cost"], rows["quality"], drawstyle="steps-post", color=colour, linewidth=1.6 if last else 0.9, label=count(tokens))
        if last and half is not None:
            bars = half[rows["placement"]].to_numpy()
            ax.errorbar(rows["cost"], rows["quality"], bars, fmt="none", ecolor=colour, elinewidth=0.7, capsize=1.5, capthick=0.7)
        final = rows[rows["final"]]
        ax.plot(final["cost"], final["quality"], "o", color=colour, markersize=2.6, markerfacecolor=colour if last else "white",
                markeredgewidth=0.7)  # fmt: skip
    ax.set_xlabel("decode cost (FA-layer equivalents)")
    ax.set_ylabel(f"quality ({unit})")
    legend_below(ax, "training tokens (markers: on the final frontier)", columns=4)


def frontier_kept(ax: Axes, drift: pd.DataFrame) -> None:
    """Share of the final frontier that is found at t on other items, interval, ceiling and a random choice (rows of pareto_drift.csv)."""
    course(ax, *(drift[name] for name in ("tokens", "shared_cross", "shared_cross_lo", "shared_cross_hi")), label="found at t")
    ax.plot(drift["tokens"], drift["shared_ceiling"], "--", color="black", linewidth=0.8, label="noise ceiling")
    ax.plot(drift["tokens"], drift["shared_random"], ":", color="black", linewidth=1, label="random choice")
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("share of the final frontier")
    token_axis(ax, drift["tokens"])
    legend_below(ax, f"{drift['n_placements'].iloc[0]} placements, {drift['n_items'].iloc[0]} items", columns=3)


def rank_trajectories(
    ax: Axes, ranks: np.ndarray, placements: list[str], tokens: np.ndarray, n: int, interval: tuple[np.ndarray, np.ndarray] | None = None
) -> None:
    """Ranks over training of the k placements that are best at T: ranks [S, k] among n, 1 = best, by their rank at T. Tied ones share a
    rank; their labels stand below each other and are joined to it. ``interval``: lowest and highest ranks [S, k], as bars."""
    S, k = ranks.shape
    position = np.arange(S)  # the labels and crossings need room, so checkpoints are evenly spaced here
    colours = sns.color_palette("colorblind", k).as_hex()
    for p in range(k):
        marker = MARKERS[p % len(MARKERS)]
        ax.plot(position, ranks[:, p], marker=marker, color=colours[p], clip_on=False, zorder=10 - p / k)
        if interval is not None:
            beside = position + 0.07 * (p - (k - 1) / 2)
            ax.vlines(beside, interval[0][:, p], interval[1][:, p], color=colours[p], linewidth=1.6, alpha=0.45, zorder=3)
        if ranks[-1, p] != p + 1:
            ax.plot([S - 1, S - 0.9], [ranks[-1, p], p + 1], color=colours[p], linewidth=0.5, clip_on=False)
        label = placements[p] if len(placements[p]) <= 12 else _composition(placements[p])
        ax.annotate(label, (S - 1, p + 1), (6, 0), textcoords="offset points", va="center", color=_darker(colours[p]),
                    family="monospace", annotation_clip=False)  # fmt: skip
    worst = max(ranks.max(), k + 1, *([] if interval is None else [interval[1].max()]))
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
    colours = list(mixer_colours("".join(letters)).values())
    grid = np.array([[letters.index(c) for c in placement] for placement in placements]).T  # [L, placements]
    L, n = grid.shape
    ax.imshow(
        grid, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(letters) - 0.5, aspect="auto", origin="lower", interpolation="nearest"
    )
    if L <= 12 and n <= 24:
        for layer, column in np.ndindex(L, n):
            letter = placements[column][layer]
            ax.text(column, layer, letter, ha="center", va="center", fontsize=7, color=ink_on(colours[letters.index(letter)]))
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
    legend_below(ax, "mixer", columns=len(letters))


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
