"""Figures of one run: computed numbers in, drawn on a given Axes, one function per figure."""

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.bands import bands_in, rows_of
from analysis.output.style import BAND_COLOURS, GREY, MARKERS, MIXER_COLOURS, count, legend_below, token_axis


def resolution_panel(ax: Axes, rows: pd.DataFrame, settled: float) -> None:
    """The difference from which on the order of t is final, of one band (rows of stability.csv), with its interval; dashed: ``settled``.

    The last point is 0 by construction and drawn hollow; at the upper edge no difference is final yet (inf).
    """
    top, floor = 1.0, settled / 8
    tokens = rows["tokens"].to_numpy()
    value, low, high = (np.clip(rows[name].to_numpy(float), 0, top) for name in ("resolution", "resolution_lo", "resolution_hi"))
    known = np.isfinite(value)
    ax.fill_between(tokens, low, high, where=known & np.isfinite(low), color=BAND_COLOURS[0], alpha=0.2, linewidth=0)
    ax.plot(tokens[:-1][known[:-1]], value[:-1][known[:-1]], color=BAND_COLOURS[0])
    ax.plot(tokens[-2:], value[-2:], color=BAND_COLOURS[0], linestyle=":")
    ax.plot(tokens[:-1][known[:-1]], value[:-1][known[:-1]], linestyle="", marker="o", color=BAND_COLOURS[0])
    ax.plot(tokens[-1:], value[-1:], linestyle="", marker="o", color=BAND_COLOURS[0], markerfacecolor="white")
    ax.axhline(settled, color="black", linestyle="--", linewidth=0.8)
    ax.set_yscale("symlog", linthresh=floor, linscale=0.4)
    ax.set_ylim(-floor / 4, 1.5 * top)
    ax.yaxis.set_major_locator(FixedLocator([0, settled, 0.1, top]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_yticklabels(["0", f"{settled:g}", "0.1", "none"])
    ax.set_ylabel("final above (nats/token)")
    token_axis(ax, rows["tokens"])


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
    token_axis(ax, stability["tokens"])
    legend_below(ax, "cost band in FA layers (placements)", columns=2)


def regret_curve(ax: Axes, stability: pd.DataFrame) -> None:
    """Regret of choosing at t, per band of one run (rows of stability.csv); dotted: of a random choice, if ``regret_random`` is there.

    Without the whole cost range: its best placement is the dearest one, at any time.
    """
    if len(narrow := [rows_of(band, stability) for band in bands_in(stability) if not band.whole]):
        stability = pd.concat(narrow)
    _band_lines(ax, stability, "regret", "regret_lo", "regret_hi")
    if "regret_random" in stability:
        for n, band in enumerate(bands_in(stability)):
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
    token_axis(ax, stability["tokens"])
    legend_below(ax, "cost band in FA layers (placements)", columns=2)


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
    legend_below(ax, "training tokens (markers: on the final frontier)", columns=4)


def frontier_kept(ax: Axes, drift: pd.DataFrame) -> None:
    """Share of the final frontier that is found at t on other items, interval, ceiling and a random choice (rows of pareto_drift.csv)."""
    ax.fill_between(drift["tokens"], drift["shared_cross_lo"], drift["shared_cross_hi"], color=BAND_COLOURS[0], alpha=0.2, linewidth=0)
    ax.plot(drift["tokens"], drift["shared_cross"], "o-", color=BAND_COLOURS[0], label="found at t")
    ax.plot(drift["tokens"], drift["shared_ceiling"], "--", color="black", linewidth=0.8, label="noise ceiling")
    ax.plot(drift["tokens"], drift["shared_random"], ":", color="black", linewidth=1, label="random choice")
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("share of the final frontier")
    token_axis(ax, drift["tokens"])
    legend_below(ax, f"{drift['n_placements'].iloc[0]} placements, {drift['n_items'].iloc[0]} items", columns=3)


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
    legend_below(ax, "mixer", columns=len(letters))


def _band_lines(ax: Axes, stability: pd.DataFrame, value: str, low: str, high: str) -> None:
    for n, band in enumerate(bands_in(stability)):
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
