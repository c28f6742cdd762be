"""Presets of a run: named placements per budget, how sure they are, and how they would have differed earlier in training.

``python -m analysis.presets [RUN ...]`` (default: every run under results/ with scores) writes into each run directory presets.yaml,
tables/preset_drift.csv, preset_layers.csv, surrogate.csv, surrogate_coefficients.csv and figures/presets, preset_drift,
surrogate_coefficients. Quality is the mean log-likelihood per token (objective ``loglik``); retention is exp(quality - quality of all-FA),
the ratio of geometric mean token probabilities.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t as student

from analysis import figures, preset_figures
from analysis.cost import placement_costs
from analysis.fresh import fresh_files, load_fresh
from analysis.optimise import Constraints, Gain, at_budget, frontier, predicted_gain, propose, stability
from analysis.report import find_runs
from analysis.surrogate import CLUSTER_NAMES, ClusterExpansion, cost_bands, cross_validate, evaluate, fit, judge
from analysis.table import Scores, load_scores, score_files
from supernet.placement import COST

OBJECTIVE = "loglik"
SHARES = np.array([10, 13, 18, 26, 36, 48]) / 48
"""Budgets of the published presets (10, 13, 18, 26 of 48) and two above, as shares of all-FA."""

ENOUGH = 512  # scored placements from which on a test set can be spared
TRAIN = 256  # placements the surrogate is judged with where the rest is the test set


def default_budgets(layers: int, cheapest: float = 0.0) -> list[float]:
    """The published budgets at another depth: whole FA layers from 20 layers on, tenths below; none under the cheapest placement's cost."""
    rounded = {round(float(share * layers), 0 if layers >= 20 else 1) for share in SHARES}
    return sorted(budget for budget in rounded if budget >= cheapest - 1e-9)


def quality_and_noise(scores: Scores, checkpoint: int) -> tuple[np.ndarray, np.ndarray]:
    """Quality [P] and its item noise [P] at one checkpoint.

    What an item adds to all placements alike does not disturb their comparison: the noise is the variance over items of q_pi - q̄_i,
    over the number of items (and times P / (P - 1), as a placement is part of the mean it is compared with).
    """
    quality = scores.quality[checkpoint]
    placements, items = quality.shape
    deviation = quality - quality.mean(axis=0)
    return quality.mean(axis=1), deviation.var(axis=1, ddof=1) / items * placements / (placements - 1)


def expansions(scores: Scores) -> list[ClusterExpansion]:
    """The surrogate of every checkpoint."""
    return [fit(scores.placements, *quality_and_noise(scores, s)) for s in range(len(scores.steps))]


def next_placements(
    scores: Scores, n: int, rng: np.random.Generator, test: Sequence[str] = (), coefficients: Mapping[str, float] = COST
) -> tuple[pd.DataFrame, Gain, dict[str, float | None]]:
    """One round of active learning at the last checkpoint.

    What to score next (placement, source), what that may gain and so whether to stop instead, and the surrogate's R² and τ on ``test``
    (None where fewer than 3 of them are scored). ``test`` placements are neither learned from nor proposed.
    """
    out = np.isin(scores.placements, list(test))
    learned, unknown = _part(scores, ~out), _part(scores, out)
    expansion = fit(learned.placements, *quality_and_noise(learned, -1))
    gain = predicted_gain(expansion, rng, coefficients=coefficients)
    judged = {"r2": None, "tau": None}
    if out.sum() >= 3:
        truth, predicted = unknown.quality[-1].mean(axis=1), expansion.landscape.value(unknown.placements)
        whole = judge(truth, predicted, unknown.cost, cost_bands(unknown.cost)[:1]).iloc[0]
        judged = {name: float(whole[name]) if np.isfinite(whole[name]) else None for name in judged}
    return propose(expansion, n, rng, [*scores.placements, *test], coefficients), gain, judged


def _part(scores: Scores, chosen: np.ndarray) -> Scores:
    """The scores of some placements [P] alone, so that the others cannot be learned from by way of the items' means either."""
    names = [p for p, keep in zip(scores.placements, chosen, strict=True) if keep]
    return replace(scores, placements=names, cost=scores.cost[chosen], quality=scores.quality[:, chosen])


@dataclass(frozen=True)
class Estimates:
    """The best estimate of any placement's quality at one checkpoint: prediction and, where it was scored, measurement together."""

    expansion: ClusterExpansion
    scored: dict[str, tuple[float, float]]

    @staticmethod
    def of(expansion: ClusterExpansion) -> "Estimates":
        mean, sd = expansion.smoothed()
        return Estimates(expansion, dict(zip(expansion.placements, zip(mean.tolist(), sd.tolist(), strict=True), strict=True)))

    def __call__(self, placements: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Mean [P] and sd [P]."""
        values = np.array(self.expansion.predict(placements))
        for column, placement in enumerate(placements):
            if placement in self.scored:
                values[:, column] = self.scored[placement]
        return values[0], values[1]


def choose(
    estimates: Estimates, budgets: Sequence[float], coefficients: Mapping[str, float] = COST, k: int = 10,
    constraints: Constraints | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The preset of every budget: budget, placement, cost, predicted, sd.

    The best estimate among the surrogate's k best placements of the budget and, without constraints, all scored ones. Raises ValueError for
    a budget below the cheapest placement.
    """
    table = frontier(estimates.expansion, coefficients, k, constraints)
    names = list(dict.fromkeys([*table["placement"], *(estimates.scored if constraints is None else ())]))
    cost, (mean, sd) = placement_costs(names, coefficients), estimates(names)
    rows = []
    for budget in budgets:
        at_budget(table, budget)
        best = int(np.argmax(np.where(cost <= budget + 1e-9, mean, -np.inf)))
        rows.append((budget, names[best], cost[best], mean[best], sd[best]))
    return pd.DataFrame(rows, columns=["budget", "placement", "cost", "predicted", "sd"])


def lost(scores: Scores, estimates: Estimates, final: str, early: str) -> tuple[float, float, bool]:
    """Quality at T of the final preset minus that of an earlier one, its standard error, whether both were measured (paired by item)."""
    if final == early:
        return 0.0, 0.0, all(p in estimates.scored for p in (final, early))
    if final in estimates.scored and early in estimates.scored:
        a, b = (scores.quality[-1, scores.placements.index(p)] for p in (final, early))
        return float((a - b).mean()), float((a - b).std(ddof=1) / np.sqrt(len(a))), True
    mean, sd = estimates([final, early])
    return float(mean[0] - mean[1]), float(np.hypot(*sd)), False


def drift(
    scores: Scores, fitted: list[ClusterExpansion], budgets: Sequence[float], coefficients: Mapping[str, float] = COST
) -> pd.DataFrame:
    """The presets of every checkpoint against the final ones, a row per step and budget.

    ``hamming``: share of layers with another mixer than in the final preset. ``lost``, ``lost_lo``, ``lost_hi``: what freezing the preset
    of t costs at T, nats per token, with its 95% interval (over items where both were scored, ``lost_measured``; else of the prediction).
    Chosen and judged on the same items, which favours the final preset: the loss is rather over- than underestimated.
    """
    estimates = [Estimates.of(expansion) for expansion in fitted]
    chosen = [choose(e, budgets, coefficients) for e in estimates]
    for step, table in enumerate(chosen):
        finals = chosen[-1]["placement"]
        gone = [lost(scores, estimates[-1], final, early) for final, early in zip(finals, table["placement"], strict=True)]
        table["hamming"] = [
            np.mean([a != b for a, b in zip(final, early, strict=True)]) for final, early in zip(finals, table["placement"], strict=True)
        ]
        value, error, measured = (np.array(column) for column in zip(*gone, strict=True))
        table["lost"], table["lost_lo"], table["lost_hi"] = value, value - 1.96 * error, value + 1.96 * error
        table["lost_measured"] = measured.astype(bool)
        table.insert(0, "run", scores.run)
        table.insert(1, "step", scores.steps[step])
        table.insert(2, "tokens", scores.tokens[step])
    return pd.concat(chosen, ignore_index=True)


def layer_stability(
    scores: Scores, fitted: list[ClusterExpansion], budgets: Sequence[float], rng: np.random.Generator, draws: int = 50
) -> pd.DataFrame:
    """``stability`` at every checkpoint: run, step, tokens, budget, layer, mixer, one share per mixer letter."""
    tables = [stability(expansion, budgets, rng, draws) for expansion in fitted]
    for table, step, tokens in zip(tables, scores.steps, scores.tokens, strict=True):
        table.insert(0, "run", scores.run)
        table.insert(1, "step", step)
        table.insert(2, "tokens", tokens)
    return pd.concat(tables, ignore_index=True)


def surrogate_quality(scores: Scores, rng: np.random.Generator, test: Sequence[str] = ()) -> pd.DataFrame:
    """How well the surrogate and its baselines predict at every checkpoint, by cost band: run, step, tokens, judged_on, model, ….

    Judged on ``test`` where that holds enough (10), trained on the others: proposals are no uniform sample to be judged on. Else, with 512
    placements or more: trained on 256 drawn at random, judged on the rest; with fewer: nested five-fold cross-validation.
    """
    order = rng.permutation(len(scores.placements))
    train, held_out = order[:TRAIN], order[TRAIN:]
    spare = len(order) >= ENOUGH
    out = np.isin(scores.placements, list(test))
    if out.sum() >= 10:
        spare, train, held_out = True, np.flatnonzero(~out), np.flatnonzero(out)
    tables = []
    for s in range(len(scores.steps)):
        quality, noise = quality_and_noise(scores, s)
        if spare:
            known, unknown = ([scores.placements[i] for i in part] for part in (train, held_out))
            table = evaluate(known, quality[train], noise[train], unknown, quality[held_out], scores.cost[held_out], rng)
        else:
            table = cross_validate(scores.placements, quality, noise, scores.cost, rng)
        table.insert(0, "run", scores.run)
        table.insert(1, "step", scores.steps[s])
        table.insert(2, "tokens", scores.tokens[s])
        table.insert(3, "judged_on", f"{len(held_out)} held out, {len(train)} scored" if spare else "nested 5-fold")
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def coefficients_over_training(scores: Scores, fitted: list[ClusterExpansion]) -> pd.DataFrame:
    """Which interactions settle first: a row per step and kind of cluster.

    ``explained``: variance over uniform placements that the kind is believed to explain (its prior, set by evidence); ``found``: that of
    the posterior mean, Σ w²; ``cosine``: w_t · w_T / (|w_t| |w_T|), whatever the sum-to-zero basis; NaN where a kind is shrunk
    to nothing (under a millionth of what is found in all).
    """
    rows = []
    for expansion, step, tokens in zip(fitted, scores.steps, scores.tokens, strict=True):
        for kind, offsets in enumerate(expansion.clusters):
            now, final = (e.weights[e.groups == kind] for e in (expansion, fitted[-1]))
            there = all(w @ w > 1e-6 * (e.weights[1:] @ e.weights[1:]) for w, e in ((now, expansion), (final, fitted[-1])))
            rows.append({
                "run": scores.run, "step": step, "tokens": tokens, "cluster": CLUSTER_NAMES[offsets], "coefficients": len(now),
                "explained": expansion.explained[kind], "found": now @ now, "nugget": expansion.nugget,
                "cosine": now @ final / np.sqrt((now @ now) * (final @ final)) if there else np.nan,
            })  # fmt: skip
    return pd.DataFrame(rows)


def winners(scores: Scores, coefficients: Mapping[str, float] = COST) -> list[str]:
    """The presets of the default budgets at the last checkpoint, and all-FA that they are held against."""
    expansion = fit(scores.placements, *quality_and_noise(scores, -1))
    budgets = _budgets(expansion, coefficients)
    chosen = choose(Estimates.of(expansion), budgets, coefficients)["placement"]
    return list(dict.fromkeys([*chosen, _all_attention(expansion)]))


def presets(
    scores: Scores, expansion: ClusterExpansion, budgets: Sequence[float], coefficients: Mapping[str, float] = COST,
    fresh: pd.DataFrame | None = None,
) -> dict:  # fmt: skip
    """The presets of the last checkpoint as plain data for presets.yaml, by name ``loglik-<budget>``.

    Intervals are 95%. ``fresh`` (from ``load_fresh``) has the qualities of winners on items that did not choose them. ``measured`` and
    ``retention`` come from there where both the preset and all-FA have them (``fresh_items`` true), else from the items that also helped to
    choose, which favours the preset, and are null and a prediction where the preset was not scored at all. ``difference`` is quality minus
    that of all-FA, its interval from differences paired by item (predicted where all-FA was not scored); retention is its exponential.
    """
    estimates = Estimates.of(expansion)
    full = _all_attention(expansion)
    (reference,), (reference_sd,) = estimates([full])
    same = {p: scores.quality[-1, i] for i, p in enumerate(scores.placements)}
    new = {} if fresh is None else {str(p): own.to_numpy() for p, own in fresh.iterrows()}
    named = {}
    for row in choose(estimates, budgets, coefficients).itertuples():
        ahead, error = row.predicted - reference, np.hypot(row.sd, reference_sd) * (row.placement != full)
        difference = _interval(ahead, error)
        entry = {
            "budget": float(row.budget), "placement": row.placement, "cost": float(row.cost),
            "layers": {mixer: row.placement.count(mixer) for mixer in expansion.letters},
            "predicted": _interval(row.predicted, row.sd, "quality") | {"difference": difference}, "measured": None,
        }  # fmt: skip
        table = new if row.placement in new and full in new else same
        if row.placement in table:
            own = table[row.placement]
            if full in table:
                difference = _interval(*_mean_and_error(own - table[full]), n=len(own))
            entry["measured"] = _interval(*_mean_and_error(own), "quality", len(own))
            entry["measured"] |= {"difference": difference, "items": len(own), "fresh_items": table is new}
        entry["retention"] = {key: round(float(np.exp(value)), 6) for key, value in difference.items()}
        named[f"{OBJECTIVE}-{row.budget:g}"] = entry
    return named


def _all_attention(expansion: ClusterExpansion) -> str:
    if "F" not in expansion.letters:
        raise ValueError("no placement with F was scored: retention needs all-FA, score it too")
    return "F" * expansion.layers


def _budgets(expansion: ClusterExpansion, coefficients: Mapping[str, float] = COST) -> list[float]:
    return default_budgets(expansion.layers, expansion.layers * min(coefficients[mixer] for mixer in expansion.letters))


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _interval(mean: float, error: float, name: str = "value", n: int = 0) -> dict[str, float]:
    """95%: Student's t of the mean of ``n`` items, normal for a prediction (n = 0)."""
    half = (student.ppf(0.975, n - 1) if n else 1.96) * error
    return {key: round(float(value), 6) for key, value in ((name, mean), ("lo", mean - half), ("hi", mean + half))}


def provenance(run: Path, scores: Scores, coefficients: Mapping[str, float] = COST) -> dict:
    """Where presets come from: run, step, hash of the score table, cost coefficients."""
    again = fresh_files(run, scores)
    return {
        "run": scores.run, "scale": scores.scale, "seed": scores.seed, "step": int(scores.steps[-1]), "tokens": int(scores.tokens[-1]),
        "objective": "mean log-likelihood per target token of the teacher's traces, nats, higher is better",
        "scores_sha256": _sha256(score_files(run)), "placements": len(scores.placements), "items": len(scores.items),
        "fresh_sha256": _sha256(again) if again else None,
        "cost_coefficients": {mixer: float(value) for mixer, value in coefficients.items()},
    }  # fmt: skip


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: every run, even after one that fails; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.presets", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directory, or a file of scores; default: all under results/")
    parser.add_argument("--budgets", type=float, nargs="+", help="in FA-layer equivalents; default: the published ones at this depth")
    parser.add_argument("--seed", type=int, default=0, help="of posterior draws and held-out splits")
    options = parser.parse_args(arguments)
    failed = False
    try:
        runs = options.runs or find_runs(Path("results"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for run in runs:
        try:
            print(summary(run, write_presets(run, options.budgets, options.seed)))
        except (ValueError, OSError) as error:
            print(f"error: {run}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def summary(run: Path, document: dict) -> str:
    """The presets for the terminal."""
    lines = [f"{run}: {document['provenance']['placements']} placements, step {document['provenance']['step']}"]
    stale = 0
    for name, entry in document["presets"].items():
        kept, measured = entry["retention"], entry["measured"]
        fresh = measured is not None and measured["fresh_items"]
        how = "predicted" if measured is None else f"{measured['items']} {'fresh items' if fresh else 'items that chose it'}"
        stale += not fresh
        lines.append(f"  {name:<12} {entry['placement']}  cost {entry['cost']:g}, retention {kept['value']:.3f} "
                     f"[{kept['lo']:.3f}, {kept['hi']:.3f}] ({how})")  # fmt: skip
    if stale:
        lines.append(f"  {stale} of these not judged on fresh items, which favours them: run python -m experiments.sweep with the run's "
                     "options and placements=winners")  # fmt: skip
    return "\n".join(lines)


def write_presets(run: Path, budgets: Sequence[float] | None = None, seed: int = 0) -> dict:
    """Everything that ``python -m analysis.presets`` writes; returns what presets.yaml holds."""
    scores, rng = load_scores(run), np.random.default_rng(seed)
    folder = run if run.is_dir() else run.parent
    fitted = expansions(scores)
    budgets = list(budgets or _budgets(fitted[-1]))
    document = {"provenance": provenance(run, scores), "presets": presets(scores, fitted[-1], budgets, fresh=load_fresh(folder, scores))}
    layers = fitted[-1].layers
    lowest = layers * min(COST[mixer] for mixer in fitted[-1].letters)
    grid = np.unique(np.append(np.ceil(np.linspace(lowest, layers, 24) * 100 - 1e-6) / 100, budgets))
    tables = {
        "preset_drift": drift(scores, fitted, grid),
        "preset_layers": layer_stability(scores, fitted, grid, rng),
        "surrogate": surrogate_quality(scores, rng, held_out(folder)),
        "surrogate_coefficients": coefficients_over_training(scores, fitted),
    }
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
    with figures.figure(rows=2, height=2.4) as (fig, axes):
        preset_figures.frontier_by_step(axes[0], drifted)
        final = sure[sure["step"] == sure["step"].max()]
        labels = [f"{budget:.3g}" for budget in final["budget"]]
        preset_figures.mixer_map(axes[1], list(final["placement"]), labels, np.array(final["certainty"].tolist()))
        axes[1].set_xlabel("budget (FA-layer equivalents), last checkpoint")
        figures.save(fig, folder / "presets")
    middle = sorted(budgets)[len(budgets) // 2]
    with figures.figure(rows=2, height=2.4) as (fig, axes):
        preset_figures.preset_loss(axes[0], drifted, budgets)
        column = sure[np.isclose(sure["budget"], middle)].sort_values("step")
        labels = [figures.count(value) for value in column["tokens"]]
        preset_figures.mixer_map(axes[1], list(column["placement"]), labels, np.array(column["certainty"].tolist()))
        axes[1].set_xlabel(f"training tokens; best placement within {middle:g} FA layers")
        figures.save(fig, folder / "preset_drift")
    with figures.figure(height=2.4) as (fig, axes):
        preset_figures.coefficients_settle(axes[0], tables["surrogate_coefficients"])
        figures.save(fig, folder / "surrogate_coefficients")


def _certainty(layer_table: pd.DataFrame) -> pd.DataFrame:
    """From rows per layer to rows per placement: step, tokens, budget, placement, certainty (a list over layers)."""
    rows = []
    for (step, tokens, budget), part in layer_table.groupby(["step", "tokens", "budget"], sort=True):
        part = part.sort_values("layer")
        shares = [row[row["mixer"]] for _, row in part.iterrows()]
        rows.append({"step": step, "tokens": tokens, "budget": budget, "placement": "".join(part["mixer"]), "certainty": shares})
    return pd.DataFrame(rows)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
