"""Presets by the costs that they are chosen by: layers of each mixer, a panel for each kind of cost."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.output.style import MIXER_COLOURS


def layers_by_cost(axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """One panel for each value of the column ``costs``; bars are presets by their budget as a share of all-FA's cost."""
    letters = [letter for letter in MIXER_COLOURS if letter in table]
    for ax, (costs, part) in zip(axes, table.groupby("costs", sort=False), strict=True):
        place, below = np.arange(len(part)), np.zeros(len(part))
        for letter in letters:
            ax.bar(place, part[letter], 0.8, bottom=below, color=MIXER_COLOURS[letter], edgecolor="white", linewidth=0.3, label=letter)
            below += part[letter].to_numpy()
        ax.set_xticks(place, [f"{share:.0%}" for share in part["share"]])
        ax.tick_params(labelbottom=True)
        ax.grid(visible=False, axis="x")
        predicted = "" if costs == "published" or costs.startswith("measured") else " (predicted)"
        ax.set_title(costs.rpartition("/")[2] + predicted, loc="left")
        ax.set_ylabel("layers")
    axes[0].legend(ncols=len(letters), loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1, handlelength=0.9, columnspacing=0.8)
    axes[-1].set_xlabel("budget, share of all-FA's cost")
