"""The house style of figures: sizes, colours, markers, axes over tokens, legends; and how a figure is saved.

Made for one column (3.3 inches), 7 pt and larger.
Of seaborn only palettes are used. Its plots would compute means and intervals of their own, and ours come from the tables.
Its heat maps draw a path a cell, which makes a large PDF of a map of placements.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter, NullLocator

from analysis.output.files import replacing

WIDTH = 3.3
"""Inches, one column."""


BAND_COLOURS = sns.color_palette("colorblind").as_hex()


GREY = "#6f6f6f"


MARKERS = "osD^vP*X"


MIXER_COLOURS = {"F": "#0173b2", "S": "#56b4e9", "K": "#de8f05", "G": "#fbe5a0"}
"""Attention blue, delta rule orange, the cheaper of each lighter: they differ in lightness, too. Other letters take spare colours."""


SPARE_COLOURS = ("#029e73", "#cc78bc", "#ca9161", "#949494", "#ece133")


def mixer_colours(letters: str) -> dict[str, str]:
    """A colour for each of these mixers, in their order."""
    spare = itertools.cycle(SPARE_COLOURS)
    return {letter: MIXER_COLOURS.get(letter) or next(spare) for letter in letters}


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on it (relative luminance, WCAG 2.2)."""
    channels = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "#000" if linear @ [0.2126, 0.7152, 0.0722] > 0.179 else "#fff"


STYLE = {
    "font.size": 7, "axes.labelsize": 7.5, "axes.titlesize": 7.5, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7,
    "legend.title_fontsize": 7, "lines.linewidth": 1.1, "lines.markersize": 3.2, "axes.linewidth": 0.6, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.linewidth": 0.4, "grid.color": "#e4e4e4", "axes.axisbelow": True,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "legend.frameon": False, "legend.handlelength": 1.8, "pdf.fonttype": 42,
    "figure.dpi": 100, "savefig.dpi": 400, "mathtext.default": "regular",
}  # fmt: skip


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
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # laid out once, not again for every format
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        with replacing(path.with_name(f"{path.name}.{suffix}")) as temporary:
            fig.savefig(temporary, format=suffix, metadata=metadata)


def token_axis(ax: Axes, tokens: pd.Series) -> None:
    symlog(ax, tokens)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlabel("training tokens")


def symlog(ax: Axes, values: pd.Series) -> None:
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


def legend_below(ax: Axes, title: str | None, columns: int) -> None:
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
