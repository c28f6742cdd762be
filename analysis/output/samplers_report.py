"""Tables, figures and strategies.md of the training strategies of one scale."""

from pathlib import Path

import pandas as pd

from analysis.comparison.samplers import EVERY, FRESH, PLACES, PRESETS, REFERENCE, Grid, final_quality, stability_by_strategy
from analysis.output import comparison_figures, style
from analysis.output.write import bullets, markdown, write_csv, write_text
from analysis.stability.endpoints import Endpoints


def paragraph(quality: pd.DataFrame) -> list[str]:
    """What the numbers say about the paper's order, in plain words."""
    reference = quality["against"].iloc[0]
    others = [s for s in quality["strategy"].unique() if s != reference]
    said = []
    for group, where in PLACES.items():
        rows = quality[quality["group"] == group]
        if rows.empty:
            continue
        order = " > ".join(f"{row.strategy} ({row.quality:.3f})" for row in rows.sort_values("quality", ascending=False).itertuples())
        compared = "; ".join(sentence(row) for _, row in rows[rows["strategy"] != reference].iterrows())
        said.append(f"{where} ({rows['n_placements'].iloc[0]}), best first: {order} nats/token. Against {reference}: {compared}.")
    rows = quality[quality["group"] == EVERY].set_index("strategy")
    claimed = [s for s in others if s.partition("-")[0] in ("targeted", "hybrid")]
    if reference.partition("-")[0] != REFERENCE or not claimed or rows.empty:
        return said
    verdicts = {s: rows.loc[s, "verdict"] for s in claimed}
    if all(v == "worse" for v in verdicts.values()):
        answer = "**is seen here**"
    elif any(v == "better" for v in verdicts.values()):
        answer = f"**is not seen here**: {', '.join(s for s, v in verdicts.items() if v == 'better')} trained better placements"
    else:
        answer = f"**stays open here**: {', '.join(s for s, v in verdicts.items() if v == 'undecided')} could not be told from {reference}"
    group = FRESH if (quality["group"] == FRESH).any() else PRESETS
    same = quality[quality["strategy"].isin(claimed) & (quality["group"] == group)].set_index("strategy")["verdict"]
    narrow = f" On the presets themselves they are: {', '.join(f'{s} {v}' for s, v in same.items())}." if len(same) else ""
    said.append(f"The paper's order at 0.5B in the first stage, stochastic ({reference}) before targeted and hybrid, {answer}, over "
                f"uniformly drawn placements.{narrow}")  # fmt: skip
    return said


def sentence(row: pd.Series) -> str:
    """One strategy against the reference."""
    seeds = f"seeds {row['seeds_lo']:+.3f} to {row['seeds_hi']:+.3f}" if row["n_seeds"] > 1 else "one seed"
    return (f"{row['strategy']} {row['difference']:+.3f} ({row['level']:.0%}: items {row['items_lo']:+.3f} to {row['items_hi']:+.3f}, "
            f"{seeds}), {row['verdict']}")  # fmt: skip


def write(grid: Grid, endpoints: Endpoints, out: Path) -> list[str]:
    """Tables, figures and strategies.md of one grid into ``out``; returns what is said."""
    quality, stability = final_quality(grid, endpoints.level), stability_by_strategy(grid, endpoints)
    write_csv(quality, out / "tables" / "strategies.csv")
    write_csv(stability, out / "tables" / "stability.csv")
    rows = quality["group"].nunique()
    with style.figure(height=0.7 + 0.27 * rows) as (fig, (ax,)):
        comparison_figures.strategy_differences(ax, quality)
        style.save(fig, out / "figures" / "strategies")
    with style.figure(height=2.4) as (fig, (ax,)):
        comparison_figures.strategy_stability(ax, stability, endpoints.threshold)
        style.save(fig, out / "figures" / "strategies_stability")
    said, seeds = paragraph(quality), ", ".join(map(str, grid.seeds))
    n = f"{len(grid.any.placements)} placements, {len(grid.any.items)} items, seeds {seeds}"
    text = [
        f"# Training strategies at {grid.scale}",
        bullets(said),
        f"All strategies have the same teacher, data, steps and seeds ({seeds}), and are scored on the same placements and items ({n}). "
        "Differences are paired by seed, placement and item. A strategy is called better or worse where the intervals over items and over "
        "training seeds both exclude 0; they are not adjusted for the number of comparisons, and with few seeds the second is wide. The "
        "presets are those of distill.presets: how they were chosen is not part of the uncertainty.",
        "## Final quality per group of placements",
        markdown(quality.drop(columns=["scale", "against", "level"])),
        "![strategies](figures/strategies.png)\n\nDifference of final quality to " + grid.strategies[0] + " per group of placements "
        f"(number of placements); bars: {endpoints.level:.0%} t intervals over {'training seeds' if len(grid.seeds) > 1 else 'items'}.",
        "## Stability at the last checkpoint before the end",
        markdown(stability.drop(columns=["scale"])),
        "![strategies_stability](figures/strategies_stability.png)\n\nτ/ceiling at the last checkpoint before the end per cost band; bars: "
        f"{endpoints.level:.0%} t intervals over training seeds.",
    ]  # fmt: skip
    write_text("\n\n".join(text) + "\n", out / "strategies.md")
    return said
