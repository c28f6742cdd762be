"""Tables, figures and presets.yaml of one run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from analysis.optimise.against_random import best_random, found
from analysis.optimise.choice import all_attention, budgets_of, presets
from analysis.optimise.fresh_items import fresh_files, load_fresh, parts_beside
from analysis.optimise.over_training import coefficients_over_training, drift, expansions, layer_stability, surrogate_quality
from analysis.optimise.proposals import TABLE as PROPOSED
from analysis.optimise.proposals import with_proposed
from analysis.output import preset_figures, style
from analysis.table import Scores, load_scores, score_files
from supernet.placement import COST


def provenance(run: Path, scores: Scores, last: Scores, coefficients: Mapping[str, float] = COST) -> dict:
    """Where presets come from: run, step, hash of the score tables, cost coefficients."""
    again, beside = fresh_files(run, scores), parts_beside(run, PROPOSED, scores)
    return {
        "run": scores.run, "scale": scores.scale, "seed": scores.seed, "step": int(scores.steps[-1]), "tokens": int(scores.tokens[-1]),
        "objective": "mean log-likelihood per target token of the teacher's traces, nats, higher is better",
        "scores_sha256": _sha256(score_files(run)), "placements": len(scores.placements), "items": len(scores.items),
        "proposed_sha256": _sha256(beside) if beside else None, "proposed": len(last.placements) - len(scores.placements),
        "fresh_sha256": _sha256(again) if again else None,
        "cost_coefficients": {mixer: float(value) for mixer, value in coefficients.items()},
    }  # fmt: skip


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def write_presets(run: Path, budgets: Sequence[float] | None = None, seed: int = 0) -> dict:
    """Everything that ``python -m analysis.presets`` writes; returns what presets.yaml holds."""
    scores, rng = load_scores(run), np.random.default_rng(seed)
    folder = run if run.is_dir() else run.parent
    last, fresh = with_proposed(folder, scores), load_fresh(folder, scores)
    fitted = expansions(scores, last)
    final = fitted[-1][1]
    budgets = list(budgets or budgets_of(final))
    document = {"provenance": provenance(run, scores, last), "presets": presets(last, final, budgets, fresh=fresh)}
    layers = final.layers
    lowest = layers * min(COST[mixer] for mixer in final.letters)
    grid = np.unique(np.append(np.ceil(np.linspace(lowest, layers, 24) * 100 - 1e-6) / 100, budgets))
    tables = {
        "preset_drift": drift(scores, last, fitted, grid),
        "preset_layers": layer_stability(scores, fitted, grid, rng),
        "surrogate": surrogate_quality(scores, rng, held_out(folder)),
        "surrogate_coefficients": coefficients_over_training(scores, fitted),
    }
    chosen = {entry["budget"]: entry["placement"] for entry in document["presets"].values()}
    against = found(chosen, best_random(run, scores, budgets), fresh, all_attention(final))
    if len(against):
        against.insert(0, "run", scores.run)
        against.insert(1, "step", scores.steps[-1])
        tables["found"] = against
    else:  # of an earlier time, when there were fresh items
        for stale in (folder / "tables" / "found.csv", folder / "figures" / "found.png", folder / "figures" / "found.pdf"):
            stale.unlink(missing_ok=True)
    for name, table in tables.items():
        _write(folder / "tables" / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    _write(folder / "presets.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    draw_figures(folder / "figures", tables, budgets)
    return document


def held_out(folder: Path) -> list[str]:
    """The test set that active learning keeps in ``active.json``; none where there was no active learning."""
    try:
        return json.loads((folder / "active.json").read_text())["test"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / 'active.json'} is not a record of active learning: delete it, or restore it") from None


def draw_figures(folder: Path, tables: dict[str, pd.DataFrame], budgets: Sequence[float]) -> None:
    """The figures from the tables of ``write_presets`` alone."""
    drifted, layer_table = tables["preset_drift"], tables["preset_layers"]
    sure = _certainty(layer_table)
    with style.figure(rows=2, height=2.4) as (fig, axes):
        preset_figures.frontier_by_step(axes[0], drifted)
        final = sure[(sure["step"] == sure["step"].max()) & (sure["learned"] == sure["learned"].max())]
        labels = [f"{budget:.3g}" for budget in final["budget"]]
        preset_figures.mixer_map(axes[1], list(final["placement"]), labels, np.array(final["certainty"].tolist()))
        axes[1].set_xlabel("budget (FA-layer equivalents), last checkpoint")
        style.save(fig, folder / "presets")
    middle = sorted(budgets)[len(budgets) // 2]
    drifted, sure = (table[table["learned"] == table["learned"].min()] for table in (drifted, sure))  # without proposals at any step
    with style.figure(rows=2, height=2.4) as (fig, axes):
        preset_figures.preset_loss(axes[0], drifted, budgets)
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
            preset_figures.found_by_budget(axes[0], tables["found"])
            preset_figures.found_difference(axes[1], tables["found"])
            style.save(fig, folder / "found")


def _certainty(layer_table: pd.DataFrame) -> pd.DataFrame:
    """From rows per layer to rows per placement: step, tokens, learned, budget, placement, certainty (a list over layers)."""
    rows, keys = [], ["step", "tokens", "learned", "budget"]
    for key, part in layer_table.groupby(keys, sort=True):
        part = part.sort_values("layer")
        shares = [row[row["mixer"]] for _, row in part.iterrows()]
        rows.append(dict(zip(keys, key, strict=True)) | {"placement": "".join(part["mixer"]), "certainty": shares})
    return pd.DataFrame(rows)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
