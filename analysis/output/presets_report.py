"""Tables, figures and presets.yaml of one run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from analysis.cost import coefficients_of, on_grid, unit_of
from analysis.input.runs import Run
from analysis.optimise.against_random import best_random, found
from analysis.optimise.choice import OBJECTIVE, SCORE, all_attention, budgets_of, presets, surrogate
from analysis.optimise.fresh_items import fresh_files, load_fresh, parts_beside
from analysis.optimise.optimism import optimum
from analysis.optimise.over_training import coefficients_over_training, drift, expansions, layer_stability, surrogate_quality
from analysis.optimise.proposals import TABLE as PROPOSED
from analysis.optimise.proposals import with_proposed
from analysis.output import preset_figures, style
from analysis.output.write import write_csv, write_text
from analysis.surrogate import ClusterExpansion
from analysis.surrogate.design import CLUSTERS
from analysis.surrogate.fitting import spread
from analysis.table import Scores, score_files

QUALITY = {
    OBJECTIVE: "mean log-likelihood per target token of the teacher's traces, nats, higher is better",
    SCORE: "mean score over items, higher is better",
}


def provenance(run: Run, last: Scores, coefficients: Mapping[str, float], objective: str = OBJECTIVE) -> dict:
    """Where presets come from: run, step, hash of the score tables, cost coefficients."""
    scores = run.scores
    again, beside = fresh_files(run.beside, scores), parts_beside(run.beside, PROPOSED, scores)
    return {
        "run": scores.run, "scale": scores.scale, "seed": scores.seed, "step": int(scores.steps[-1]), "tokens": int(scores.tokens[-1]),
        "objective": QUALITY.get(objective, f"mean score on the questions of {objective}, 0 to 1, higher is better"),
        "scores_sha256": _sha256(score_files(run.path)), "placements": len(scores.placements), "items": len(scores.items),
        "proposed_sha256": _sha256(beside) if beside else None, "proposed": len(last.placements) - len(scores.placements),
        "fresh_sha256": _sha256(again) if again else None,
        "cost_coefficients": {mixer: float(value) for mixer, value in coefficients.items()},
    }  # fmt: skip


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def write_presets(run: Run, budgets: Sequence[float] | None = None, seed: int = 0, level: float = 0.95, objective: str = OBJECTIVE) -> dict:
    """Everything that ``python -m analysis.presets`` writes; returns what presets.yaml holds. ``level`` of all intervals. ``objective``:
    what quality is, likelihood or accuracy on a task; a table of scores has no likelihood, so there it is the score."""
    scores, folder, rng = run.scores, run.folder, np.random.default_rng(seed)
    if scores.scored and objective == OBJECTIVE:
        objective = SCORE
    last, fresh = with_proposed(run.beside, scores), load_fresh(run.beside, scores)
    coefficients = coefficients_of(scores.placements, scores.cost)
    fitted = expansions(scores, last)
    final = fitted[-1][1]
    budgets = list(budgets or budgets_of(final, coefficients))
    full = all_attention(final, coefficients)
    reach = final.link.reach / spread(last.quality[-1].mean(axis=1))
    believed = surrogate(last, reaches=(reach,), clusters=CLUSTERS)  # the truth may hold interactions that the scores do not prove
    corrected = optimum(final, budgets, coefficients, level, rng=np.random.default_rng([seed, *b"optimum"]), believed=believed)
    corrected.insert(0, "run", scores.run)
    named = presets(last, final, budgets, coefficients, fresh, level, corrected, objective)
    document = {"provenance": provenance(run, last, coefficients, objective), "presets": named}
    grid = np.unique(np.append(grid_of_budgets(final, coefficients), budgets))
    tables = {
        "preset_drift": drift(scores, last, fitted, grid, coefficients, level),
        "preset_layers": layer_stability(scores, fitted, grid, rng, coefficients=coefficients),
        "surrogate": surrogate_quality(scores, rng, held_out(run.beside)),
        "surrogate_coefficients": coefficients_over_training(scores, fitted),
        "optimum": corrected,
    }
    chosen = {entry["budget"]: entry["placement"] for entry in document["presets"].values()}
    against = found(chosen, best_random(run.path, scores, budgets), fresh, full, coefficients, level)
    if len(against):
        against.insert(0, "run", scores.run)
        against.insert(1, "step", scores.steps[-1])
        tables["found"] = against
    else:  # of an earlier time, when there were fresh items
        for stale in (folder / "tables" / "found.csv", folder / "figures" / "found.png", folder / "figures" / "found.pdf"):
            stale.unlink(missing_ok=True)
    for name, table in tables.items():
        write_csv(table, folder / "tables" / f"{name}.csv", digits=6)
    write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), folder / "presets.yaml")
    draw_figures(folder / "figures", tables, budgets, level, full, scores.unit)
    return document


def grid_of_budgets(expansion: ClusterExpansion, coefficients: Mapping[str, float], n: int = 24) -> np.ndarray:
    """``n`` budgets on the grid of costs, from that of the cheapest placement to that of the dearest."""
    price, unit = [on_grid(coefficients)[mixer] for mixer in expansion.letters], unit_of(coefficients)
    top = max(price) if "F" not in expansion.letters else on_grid(coefficients)["F"]
    return np.round(np.ceil(np.linspace(expansion.layers * min(price), expansion.layers * top, n) / unit - 1e-6) * unit, 9)


def held_out(folder: Path) -> list[str]:
    """The test set that active learning keeps in ``active.json``; none where there was no active learning."""
    try:
        return json.loads((folder / "active.json").read_text())["test"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / 'active.json'} is not a record of active learning: delete it, or restore it") from None


def draw_figures(
    folder: Path, tables: dict[str, pd.DataFrame], budgets: Sequence[float], level: float, full: str, unit: str = "nats/token"
) -> None:
    """The figures from the tables of ``write_presets`` alone; ``unit`` of quality."""
    drifted, layer_table = tables["preset_drift"], tables["preset_layers"]
    sure = _certainty(layer_table)
    with style.figure(rows=2, height=2.4) as (fig, axes):
        preset_figures.frontier_by_step(axes[0], drifted, level, unit)
        preset_figures.chosen_optima(axes[0], tables["optimum"])
        final = sure[(sure["step"] == sure["step"].max()) & (sure["learned"] == sure["learned"].max())]
        labels = [f"{budget:.3g}" for budget in final["budget"]]
        preset_figures.mixer_map(axes[1], list(final["placement"]), labels, np.array(final["certainty"].tolist()))
        axes[1].set_xlabel("budget (FA-layer equivalents), last checkpoint")
        style.save(fig, folder / "presets")
    middle = sorted(budgets)[len(budgets) // 2]
    drifted, sure = (table[table["learned"] == table["learned"].min()] for table in (drifted, sure))  # without proposals at any step
    with style.figure(rows=2, height=2.4) as (fig, axes):
        preset_figures.preset_loss(axes[0], drifted, budgets, level, unit)
        column = sure[np.isclose(sure["budget"], middle)].sort_values("step")
        labels = [style.count(value) for value in column["tokens"]]
        preset_figures.mixer_map(axes[1], list(column["placement"]), labels, np.array(column["certainty"].tolist()))
        axes[1].set_xlabel(f"training tokens; best placement within {middle:g} FA layers")
        style.save(fig, folder / "preset_drift")
    with style.figure(height=2.4) as (fig, axes):
        preset_figures.coefficients_settle(axes[0], tables["surrogate_coefficients"])
        style.save(fig, folder / "surrogate_coefficients")
    if "found" in tables:
        with style.figure(rows=2, height=2.2) as (fig, axes):
            preset_figures.found_by_budget(axes[0], tables["found"], level, full, unit)
            preset_figures.found_difference(axes[1], tables["found"], level, unit)
            style.save(fig, folder / "found")


def _certainty(layer_table: pd.DataFrame) -> pd.DataFrame:
    """From rows per layer to rows per placement: step, tokens, learned, budget, placement, certainty (a list over layers)."""
    rows, keys = [], ["step", "tokens", "learned", "budget"]
    for key, part in layer_table.groupby(keys, sort=True):
        part = part.sort_values("layer")
        shares = [row[row["mixer"]] for _, row in part.iterrows()]
        rows.append(dict(zip(keys, key, strict=True)) | {"placement": "".join(part["mixer"]), "certainty": shares})
    return pd.DataFrame(rows)
