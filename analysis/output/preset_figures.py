"""Figures of presets, their drift, the surrogate and the searches: computed numbers in, drawn on a given Axes, one function per figure.

``unit``: that of quality, as ``analysis.table.Scores`` has it.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from analysis.output.style import BAND_COLOURS, MARKERS, count, mixer_colours
from analysis.statistics.intervals import quantile


def frontier_by_step(ax: Axes, drift: pd.DataFrame, level: float, unit: str) -> None:
    """Predicted quality over budget by checkpoint, and with proposals; band: its interval at the last, sd of a normal distribution.

    Rows of preset_drift.csv: tokens, learned, budget, predicted, sd.
    """
    keys = sorted(drift[["learned", "tokens"]].drop_duplicates().itertuples(index=False, name=None))
    for n, (learned, tokens) in enumerate(keys):
        rows = drift[(drift["tokens"] == tokens) & (drift["learned"] == learned)].sort_values("budget")
        last = n == len(keys) - 1
        shade = 0.85 * (1 - n / max(len(keys) - 1, 1))
        colour = "#0173b2" if last else (shade, shade, shade)
        label = count(tokens) if learned == keys[0][0] else f"{count(tokens)}, with proposals"
        ax.step(rows["budget"], rows["predicted"], where="post", color=colour, label=label, zorder=3 if last else 2)
        if last:
            half = quantile(level, np.inf) * rows["sd"]
            low, high = rows["predicted"] - half, rows["predicted"] + half
            ax.fill_between(rows["budget"], low, high, step="post", color=colour, alpha=0.2, linewidth=0)
    ax.set_xlabel("budget (FA-layer equivalents)")
    ax.set_ylabel(f"estimated quality of the\npreset ({unit})")
    _legend_below(ax, f"training tokens; band: {level:.0%} at the last", 4 if len(keys) == drift["tokens"].nunique() else 3)


def chosen_optima(ax: Axes, optimum: pd.DataFrame) -> None:
    """Presets with the intervals that know that they were chosen (rows of optimum.csv), on the axes of ``frontier_by_step``."""
    bars = [optimum["corrected"] - optimum["corrected_lo"], optimum["corrected_hi"] - optimum["corrected"]]
    ax.errorbar(optimum["budget"], optimum["corrected"], yerr=bars, fmt="D", color="black", markersize=2.4, elinewidth=0.8, capsize=1.5,
                zorder=5, label="chosen, corrected")  # fmt: skip
    handles, labels = ax.get_legend_handles_labels()
    _legend_below(ax, ax.get_legend().get_title().get_text(), 3, handles=handles, labels=labels)


def mixer_map(ax: Axes, placements: Sequence[str], labels: Sequence[str], certainty: np.ndarray | None = None) -> None:
    """One column per placement, one row per layer (first at the bottom), coloured by mixer; ``certainty`` [placements, L] 0 to 1: paler."""
    letters = [c for c in "FSKG" if c in "".join(placements)] + sorted(set("".join(placements)) - set("FSKG"))
    colours = {c: np.array(to_rgb(colour)) for c, colour in mixer_colours("".join(letters)).items()}
    picture = np.array([[colours[c] for c in placement] for placement in placements]).transpose(1, 0, 2)  # [L, columns, 3]
    if certainty is not None:
        alpha = np.asarray(certainty).T[..., None]
        picture = alpha * picture + (1 - alpha)
    ax.imshow(picture, aspect="auto", origin="lower", interpolation="nearest")
    layers, columns = picture.shape[:2]
    if layers <= 12 and columns <= 26:
        for layer, column in np.ndindex(layers, columns):
            dark = picture[layer, column] @ [0.3, 0.6, 0.1] < 0.45
            ax.text(column, layer, placements[column][layer], ha="center", va="center", fontsize=7, color="white" if dark else "black")
    shown = np.unique(np.linspace(0, columns - 1, min(columns, 6)).round().astype(int))
    ax.set_xticks(shown, [labels[i] for i in shown])
    ticks = np.arange(layers) if layers <= 12 else np.unique(np.append(np.arange(0, layers, 5), layers - 1))
    ax.set_yticks(ticks, [str(t + 1) for t in ticks])
    ax.grid(False)
    ax.set_ylabel("layer (1 = first)")
    handles = [Patch(facecolor=colours[c], edgecolor="#606060", linewidth=0.4, label=c) for c in letters]
    title = "mixer" if certainty is None else "mixer (paler: fewer posterior draws agree)"
    _legend_below(ax, title, len(letters), handles=handles)


def preset_loss(ax: Axes, drift: pd.DataFrame, budgets: Sequence[float], level: float, unit: str) -> None:
    """Quality lost at T by freezing the presets of t, by budget. Rows of preset_drift.csv: tokens, budget, lost, lost_lo, lost_hi."""
    places = {value: n for n, value in enumerate(sorted(drift["tokens"].unique()))}
    for n, budget in enumerate(budgets):
        rows = drift[drift["budget"] == budget].sort_values("tokens")
        x = rows["tokens"].map(places) + 0.08 * (n - (len(budgets) - 1) / 2)
        errors = np.clip([rows["lost"] - rows["lost_lo"], rows["lost_hi"] - rows["lost"]], 0, None)
        style = {"color": BAND_COLOURS[n % 10], "marker": MARKERS[n % len(MARKERS)], "elinewidth": 0.6, "label": f"{budget:g}"}
        ax.errorbar(x, rows["lost"], yerr=errors, **style)
        ax.plot(x.iloc[-1:], rows["lost"].iloc[-1:], color=style["color"], marker=style["marker"], markerfacecolor="white", zorder=5)
    ax.axhline(0, color="black", linewidth=0.6)
    _token_places(ax, list(places))
    ax.set_ylabel(f"lost at the end by freezing\n({unit}, {level:.0%})")
    _legend_below(ax, "budget (FA-layer equivalents)", 6)


def coefficients_settle(ax: Axes, coefficients: pd.DataFrame) -> None:
    """Cosine of the coefficients of t with those of T per kind of cluster; hollow: T, 1 by construction.

    Rows of surrogate_coefficients.csv.
    """
    places = {value: n for n, value in enumerate(sorted(coefficients["tokens"].unique()))}
    for n, (kind, rows) in enumerate(coefficients.groupby("cluster", sort=False)):
        rows = rows.sort_values("tokens")
        label = f"{kind} ({rows['coefficients'].iloc[0]})"
        x = rows["tokens"].map(places)
        ax.plot(x, rows["cosine"], color=BAND_COLOURS[n], marker=MARKERS[n], label=label)
        ax.plot(x.iloc[-1:], rows["cosine"].iloc[-1:], color=BAND_COLOURS[n], marker=MARKERS[n], markerfacecolor="white")
    ax.axhline(1, color="black", linewidth=0.6, linestyle="--")
    _token_places(ax, list(places))
    ax.set_ylabel("cosine with the last\ncheckpoint's coefficients")
    _legend_below(ax, "kind of cluster (coefficients)", 2)


def search_by_step(ax: Axes, summary: pd.DataFrame, level: float, unit: str) -> None:
    """Mean regret over all budgets per search and checkpoint (rows of search.csv of one number of evaluations)."""
    places = {value: n for n, value in enumerate(sorted(summary["tokens"].unique()))}
    methods = list(summary["method"].unique())
    for n, method in enumerate(methods):
        rows = summary[summary["method"] == method].sort_values("tokens")
        x = rows["tokens"].map(places) + 0.08 * (n - (len(methods) - 1) / 2)
        errors = [rows["regret"] - rows["regret_lo"], rows["regret_hi"] - rows["regret"]]
        ax.errorbar(x, rows["regret"], yerr=errors, color=BAND_COLOURS[n], marker=MARKERS[n], elinewidth=0.6, label=method)
    _token_places(ax, list(places))
    _regret_scale(ax)
    ax.set_ylabel(f"regret, mean of all budgets\n({unit}, {level:.0%})")
    first = summary.iloc[0]
    _legend_below(ax, f"{first['evaluations']} evaluations, {first['repetitions']} repetitions", 3)


def search_by_budget(ax: Axes, by_budget: pd.DataFrame, level: float, unit: str) -> None:
    """Regret over the budget per search (rows of search_budgets.csv of one step and number of evaluations)."""
    for n, (method, rows) in enumerate(by_budget.groupby("method", sort=False)):
        rows = rows.sort_values("budget")
        ax.plot(rows["budget"], rows["regret"], color=BAND_COLOURS[n], label=method)
        ax.fill_between(rows["budget"], rows["regret_lo"], rows["regret_hi"], color=BAND_COLOURS[n], alpha=0.15, linewidth=0)
    _regret_scale(ax)
    ax.set_xlabel("budget (FA-layer equivalents)")
    ax.set_ylabel(f"regret at the last checkpoint\n({unit}, {level:.0%})")


def found_by_budget(ax: Axes, found: pd.DataFrame, level: float, full: str, unit: str) -> None:
    """Presets and the best of the random sample relative to all-FA on fresh items, over the budget (rows of found.csv)."""
    x = np.arange(len(found))
    for n, (name, label) in enumerate((("preset_ahead", "preset"), ("random_ahead", "best of the random sample"))):
        errors = [found[name] - found[f"{name}_lo"], found[f"{name}_hi"] - found[name]]
        style = {"color": BAND_COLOURS[n], "marker": MARKERS[n], "linestyle": "none", "elinewidth": 0.8, "label": label}
        ax.errorbar(x + 0.12 * (n - 0.5), found[name], yerr=errors, **style)
    ax.set_ylabel(f"quality less that of all-{full[0].replace('F', 'FA')}\n({unit}, {level:.0%})")
    _budget_places(ax, found)
    _legend_below(ax, f"judged on {found['items'].iloc[0]} fresh items", 2)


def found_difference(ax: Axes, found: pd.DataFrame, level: float, unit: str) -> None:
    """The preset's quality less that of the best of the random sample, paired by fresh item (rows of found.csv)."""
    errors = [found["difference"] - found["difference_lo"], found["difference_hi"] - found["difference"]]
    ax.errorbar(np.arange(len(found)), found["difference"], yerr=errors, color="black", marker="o", linestyle="none", elinewidth=0.8)
    ax.set_ylabel(f"preset less random best\n({unit}, {level:.0%})")
    _budget_places(ax, found)


def _budget_places(ax: Axes, found: pd.DataFrame) -> None:
    ax.axhline(0, color="black", linewidth=0.6, linestyle="--")
    ax.set_xticks(np.arange(len(found)), [f"{budget:g}" for budget in found["budget"]])
    ax.set_xlabel("budget (FA-layer equivalents)")


def _regret_scale(ax: Axes) -> None:
    """Linear up to 0.001 in quality, logarithmic above: good searches differ where bad ones set the range, and regret may be 0."""
    ax.set_yscale("symlog", linthresh=1e-3)
    ax.set_ylim(bottom=-1e-4)


def _token_places(ax: Axes, tokens: Sequence[float]) -> None:
    """Checkpoints at equal distances (they are spaced by powers), labelled by their tokens."""
    ax.set_xticks(range(len(tokens)), [count(value) for value in tokens])
    ax.set_xlabel("training tokens")


def _legend_below(ax: Axes, title: str, columns: int, **options: object) -> None:
    ax.legend(title=title, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=columns, columnspacing=1.0, **options)
