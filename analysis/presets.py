"""Presets of a run: named placements per budget, how sure they are, and how they would have differed earlier in training.

``python -m analysis.presets [RUN ...]`` (default: every run under results/ with scores) writes into each run directory presets.yaml,
tables/preset_drift.csv, preset_layers.csv, surrogate.csv, surrogate_coefficients.csv and figures/presets, preset_drift,
surrogate_coefficients; where winners were scored on fresh items also tables/found.csv and figures/found. Quality is the mean log-likelihood
per token (objective ``loglik``); retention is exp(quality - quality of all-FA), the ratio of geometric mean token probabilities.

``python -m analysis.presets RUN --budget 26 --at-least F=4 --fix 0=F --forbid S --no-singletons`` answers for these budgets and
constraints (any of them) in the terminal, and writes nothing.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t as student

from analysis import figures, preset_figures
from analysis.cost import placement_costs
from analysis.found import best_random, found
from analysis.fresh import fresh_files, load_fresh, parts_beside
from analysis.optimise import Constraints, Gain, at_budget, best_at, frontier, meets, predicted_gain, propose, stability
from analysis.proposed import TABLE as PROPOSED
from analysis.proposed import with_proposed
from analysis.report import find_runs
from analysis.surrogate import CLUSTER_NAMES, REACHES, ClusterExpansion, cost_bands, cross_validate, evaluate, fit, judge
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


def surrogate(scores: Scores, checkpoint: int = -1, reaches: Sequence[float] = REACHES) -> ClusterExpansion:
    """The surrogate of one checkpoint. All placements are scored on the same items, whose noise is known from the scores of each."""
    quality = scores.quality[checkpoint]
    return fit(scores.placements, quality.mean(axis=1), 0.0, items=quality, reaches=reaches)


def expansions(scores: Scores, last: Scores) -> list[tuple[int, ClusterExpansion]]:
    """The surrogate of every checkpoint with its place, all learned from the run's own placements so that they differ in training alone.

    Where ``last`` has proposals beside these, one more of the last checkpoint that learned from all. All are bent as their last one is:
    their coefficients are compared.
    """
    final = surrogate(scores)
    reach = final.link.reach / scores.quality[-1].mean(axis=1).std()
    fitted = [*(surrogate(scores, s, (reach,)) for s in range(len(scores.steps) - 1)), final]
    more = [surrogate(last)] if len(last.placements) > len(scores.placements) else []
    return [*enumerate(fitted), *((len(fitted) - 1, expansion) for expansion in more)]


def next_placements(
    scores: Scores, n: int, rng: np.random.Generator, test: Sequence[str] = (), coefficients: Mapping[str, float] = COST
) -> tuple[pd.DataFrame, Gain, dict[str, float | None]]:
    """One round of active learning at the last checkpoint.

    What to score next (placement, source), what that may gain and so whether to stop instead, and the surrogate's R² and τ on ``test``
    (None where fewer than 3 of them are scored). ``test`` placements are neither learned from nor proposed. First of all come the predicted
    optima of the presets' budgets: the best of very many predictions is the one most overrated, and only its score puts that right.
    """
    out = np.isin(scores.placements, list(test))
    learned, unknown = _part(scores, ~out), _part(scores, out)
    expansion = surrogate(learned)
    gain = predicted_gain(expansion, rng, coefficients=coefficients)
    judged = {"r2": None, "tau": None}
    if out.sum() >= 3:
        truth, predicted = unknown.quality[-1].mean(axis=1), expansion.landscape.value(unknown.placements)
        whole = judge(truth, predicted, unknown.cost, cost_bands(unknown.cost)[:1]).iloc[0]
        judged = {name: float(whole[name]) if np.isfinite(whole[name]) else None for name in judged}
    taken = {*scores.placements, *test}
    optima = best_at(frontier(expansion, coefficients), _budgets(expansion, coefficients))
    now = [placement for placement in dict.fromkeys(optima) if placement not in taken][:n]
    rows = propose(expansion, n - len(now), rng, [*taken, *now], coefficients)
    return pd.concat([pd.DataFrame({"placement": now, "source": "frontier"}), rows], ignore_index=True), gain, judged


def _part(scores: Scores, chosen: np.ndarray) -> Scores:
    """The scores of some placements [P] alone, so that the others cannot be learned from by way of the items' means either."""
    names = [p for p, keep in zip(scores.placements, chosen, strict=True) if keep]
    return replace(scores, placements=names, cost=scores.cost[chosen], quality=scores.quality[:, chosen])


def choose(
    expansion: ClusterExpansion, budgets: Sequence[float], coefficients: Mapping[str, float] = COST, k: int = 10,
    constraints: Constraints | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The preset of every budget: budget, placement, cost, predicted, sd, difference, error.

    Of the surrogate's k best placements within each budget and all scored ones, that whose quality is highest at the *lower* end of its 95%
    interval, so that nothing wins by optimism alone. The interval is that of the difference to the dearest mixer in all layers (all-FA),
    the columns difference and error: all-FA itself, once measured, is only replaced by what is surely better. Raises ValueError for
    a budget below the cheapest placement.
    """
    table = frontier(expansion, coefficients, k, constraints)
    listed = [name for budget in budgets for name in at_budget(table, budget)["placement"]]
    known = [name for name in expansion.placements if constraints is None or meets(name, constraints)]
    names = list(dict.fromkeys([*known, *listed]))
    cost, (mean, sd) = placement_costs(names, coefficients), expansion.estimate(names)
    difference, error = expansion.estimate(names, against=max(expansion.letters, key=coefficients.get) * expansion.layers)
    lower = difference - expansion.quantile * error
    best = [int(np.argmax(np.where(cost <= budget + 1e-9, lower, -np.inf))) for budget in budgets]
    columns = ["placement", "cost", "predicted", "sd", "difference", "error"]
    chosen = pd.DataFrame(dict(zip(columns, (names, cost, mean, sd, difference, error), strict=True))).iloc[best].reset_index(drop=True)
    chosen.insert(0, "budget", np.asarray(budgets, float))
    return chosen


def lost(last: Scores, expansion: ClusterExpansion, final: str, early: str) -> tuple[float, float, bool]:
    """Quality at T of the final preset minus that of an earlier one, its standard error, whether both were measured (paired by item)."""
    measured = {final, early} <= set(last.placements)
    if final == early:
        return 0.0, 0.0, measured
    if measured:
        a, b = (last.quality[-1, last.placements.index(name)] for name in (final, early))
        return *_mean_and_error(a - b), True
    (mean,), (sd,) = expansion.estimate([final], against=early)
    return float(mean), float(sd), False


def drift(
    scores: Scores, last: Scores, fitted: list[tuple[int, ClusterExpansion]], budgets: Sequence[float],
    coefficients: Mapping[str, float] = COST,
) -> pd.DataFrame:  # fmt: skip
    """The presets of every checkpoint against those of the last one, a row per surrogate of ``expansions`` and budget.

    ``learned``: from how many placements; those of the last checkpoint that learned from proposals too are further rows. ``hamming``: share
    of layers with another mixer. ``lost``, ``lost_lo``, ``lost_hi``: what freezing the preset of t costs at T, nats per token, with its 95%
    interval (over items where both were scored, ``lost_measured``; else of the prediction and over items). Chosen and judged on the same
    items, which favours the final preset: the loss is rather over- than underestimated.
    """
    chosen = [choose(expansion, budgets, coefficients) for _, expansion in fitted]
    finals, judge_of = chosen[len(scores.steps) - 1]["placement"], fitted[-1][1]
    for table in chosen:
        gone = [lost(last, judge_of, final, early) for final, early in zip(finals, table["placement"], strict=True)]
        table["hamming"] = [
            np.mean([a != b for a, b in zip(final, early, strict=True)]) for final, early in zip(finals, table["placement"], strict=True)
        ]
        value, error, measured = (np.array(column) for column in zip(*gone, strict=True))
        half = judge_of.quantile * error
        table["lost"], table["lost_lo"], table["lost_hi"] = value, value - half, value + half
        table["lost_measured"] = measured.astype(bool)
    return pd.concat(_of_training(scores, fitted, chosen), ignore_index=True)


def layer_stability(
    scores: Scores, fitted: list[tuple[int, ClusterExpansion]], budgets: Sequence[float], rng: np.random.Generator, draws: int = 50
) -> pd.DataFrame:
    """``stability`` of every surrogate: run, step, tokens, learned, budget, layer, mixer, one share per mixer letter."""
    tables = [stability(expansion, budgets, rng, draws) for _, expansion in fitted]
    return pd.concat(_of_training(scores, fitted, tables), ignore_index=True)


def _of_training(scores: Scores, fitted: list[tuple[int, ClusterExpansion]], tables: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """The tables with where in training they are and what they learned from."""
    for table, (s, expansion) in zip(tables, fitted, strict=True):
        columns = {"run": scores.run, "step": scores.steps[s], "tokens": scores.tokens[s], "learned": len(expansion.placements)}
        for place, (name, value) in enumerate(columns.items()):
            table.insert(place, name, value)
    return tables


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
        quality, noise = scores.quality[s].mean(axis=1), np.zeros(len(order))
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


def coefficients_over_training(scores: Scores, fitted: list[tuple[int, ClusterExpansion]]) -> pd.DataFrame:
    """Which interactions settle first: a row per step and kind of cluster, from the run's own placements.

    ``explained``: variance over uniform placements that the kind is believed to explain (its prior, set by evidence); ``found``: that of
    the posterior mean, Σ w²; ``cosine``: w_t · w_T / (|w_t| |w_T|), whatever the sum-to-zero basis; NaN where a kind is shrunk
    to nothing (under a millionth of what is found in all). ``nugget``: variance that the expansion cannot express, of which ``item_share``
    is noise of the finite items. All on the latent scale: ``reach`` says how it is bent, nats per token (inf: it is quality itself).
    """
    rows = []
    own = [expansion for _, expansion in fitted[: len(scores.steps)]]
    for expansion, step, tokens in zip(own, scores.steps, scores.tokens, strict=True):
        for kind, offsets in enumerate(expansion.clusters):
            now, final = (e.weights[e.groups == kind] for e in (expansion, own[-1]))
            there = all(w @ w > 1e-6 * (e.weights[1:] @ e.weights[1:]) for w, e in ((now, expansion), (final, own[-1])))
            rows.append({
                "run": scores.run, "step": step, "tokens": tokens, "cluster": CLUSTER_NAMES[offsets], "coefficients": len(now),
                "explained": expansion.explained[kind], "found": now @ now, "nugget": expansion.nugget, "item_share": expansion.item_share,
                "reach": expansion.link.reach, "cosine": now @ final / np.sqrt((now @ now) * (final @ final)) if there else np.nan,
            })  # fmt: skip
    return pd.DataFrame(rows)


def winners(run: Path, scores: Scores, last: Scores, coefficients: Mapping[str, float] = COST) -> list[str]:
    """What to judge on fresh items: the presets of the default budgets at the last checkpoint, the best of the random sample at the same
    budgets, and all-FA that both are held against."""
    expansion = surrogate(last)
    budgets = _budgets(expansion, coefficients)
    chosen = choose(expansion, budgets, coefficients)["placement"]
    return list(dict.fromkeys([*chosen, *best_random(run, scores, budgets, coefficients).values(), _all_attention(expansion)]))


def presets(
    last: Scores, expansion: ClusterExpansion, budgets: Sequence[float], coefficients: Mapping[str, float] = COST,
    fresh: pd.DataFrame | None = None,
) -> dict:  # fmt: skip
    """The presets of the last checkpoint as plain data for presets.yaml, by name ``loglik-<budget>``.

    Intervals are 95%. ``fresh`` (from ``load_fresh``) has the qualities of winners on items that did not choose them. ``measured`` and
    ``retention`` come from there where both the preset and all-FA have them (``fresh_items`` true), else from the items that also helped to
    choose, which favours the preset, and are null and a prediction where the preset was not scored at all. ``difference`` is quality minus
    that of all-FA, its interval from differences paired by item (predicted where all-FA was not scored); retention is its exponential.
    """
    full = _all_attention(expansion)
    same = {p: last.quality[-1, i] for i, p in enumerate(last.placements)}
    new = {} if fresh is None else {str(p): own.to_numpy() for p, own in fresh.iterrows()}
    named = {}
    for row in choose(expansion, budgets, coefficients).itertuples():
        (ahead,), (error,) = expansion.estimate([row.placement], against=full)
        difference = _interval(ahead, error, expansion.quantile)
        entry = {
            "budget": float(row.budget), "placement": row.placement, "cost": float(row.cost),
            "layers": {mixer: row.placement.count(mixer) for mixer in expansion.letters},
            "predicted": _interval(row.predicted, row.sd, expansion.quantile, "quality") | {"difference": difference}, "measured": None,
        }  # fmt: skip
        table = new if row.placement in new and full in new else same
        if row.placement in table:
            own = table[row.placement]
            quantile = student.ppf(0.975, len(own) - 1)
            if full in table:
                difference = _interval(*_mean_and_error(own - table[full]), quantile)
            entry["measured"] = _interval(*_mean_and_error(own), quantile, "quality")
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


def _interval(mean: float, error: float, quantile: float, name: str = "value") -> dict[str, float]:
    """95%: ``quantile`` standard errors to either side."""
    return {key: round(float(value), 6) for key, value in ((name, mean), ("lo", mean - quantile * error), ("hi", mean + quantile * error))}


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: every run, even after one that fails; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.presets", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directory, or a file of scores; default: all under results/")
    parser.add_argument("--budgets", type=float, nargs="+", help="in FA-layer equivalents; default: the published ones at this depth")
    parser.add_argument("--seed", type=int, default=0, help="of posterior draws and held-out splits")
    asked = parser.add_argument_group("to ask without writing anything")
    asked.add_argument("--budget", type=float, nargs="+", help="the best placements within these budgets; default: as --budgets")
    asked.add_argument("--at-least", nargs="+", default=[], metavar="MIXER=N", help="so many layers of a mixer or more: F=4")
    asked.add_argument("--fix", nargs="+", default=[], metavar="LAYER=MIXER", help="the mixer of a layer, the first is 0: 0=F")
    asked.add_argument("--forbid", default="", metavar="MIXERS", help="mixers that no layer may take: KG")
    asked.add_argument("--no-singletons", action="store_true", help="a mixer that is used is used in two layers or more")
    asked.add_argument("--no-isolated", action="store_true", help="every layer has a neighbour with the same mixer")
    options = parser.parse_args(arguments)
    failed = False
    try:
        constraints = parse_constraints(options.at_least, options.fix, options.forbid, options.no_singletons, options.no_isolated)
        runs = options.runs or find_runs(Path("results"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for run in runs:
        try:
            if options.budget or constraints != Constraints():
                print(ask(run, options.budget or options.budgets, constraints).to_string(index=False, float_format="%.4g"))
            else:
                print(summary(run, write_presets(run, options.budgets, options.seed)))
        except (ValueError, OSError) as error:
            print(f"error: {run}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def parse_constraints(at_least: Sequence[str], fix: Sequence[str], forbid: str, no_singletons: bool, no_isolated: bool) -> Constraints:
    """From what was typed. Raises ValueError for what is not MIXER=N or LAYER=MIXER, or says two things of one mixer or layer."""

    def pairs(typed: Sequence[str], option: str, form: str) -> dict[str, str]:
        said: dict[str, str] = {}
        for text in typed:
            key, equals, value = text.partition("=")
            number, letter = (key, value) if option == "--fix" else (value, key)
            if not equals or not number.isdecimal() or len(letter) != 1:
                raise ValueError(f"{option} is {text!r}: give {form}")
            if said.setdefault(key, value) != value:
                raise ValueError(f"{option} says {key}={said[key]} and {text}: give one of them")
        return said

    return Constraints(
        at_least={mixer: int(count) for mixer, count in pairs(at_least, "--at-least", "MIXER=N, as in F=4").items()},
        fixed={int(layer): mixer for layer, mixer in pairs(fix, "--fix", "LAYER=MIXER, as in 0=F (the first layer is 0)").items()},
        forbidden=forbid, no_singletons=no_singletons, no_isolated=no_isolated,
    )  # fmt: skip


def ask(run: Path, budgets: Sequence[float] | None, constraints: Constraints) -> pd.DataFrame:
    """What ``choose`` says under constraints: budget, placement, cost, predicted, lo, hi (95%, nats per token), scored (yes or no)."""
    last = with_proposed(run if run.is_dir() else run.parent, load_scores(run))
    expansion = surrogate(last)
    table = choose(expansion, budgets or _budgets(expansion), constraints=constraints)
    half = expansion.quantile * table["sd"]
    table = table[["budget", "placement", "cost", "predicted"]].assign(lo=table["predicted"] - half, hi=table["predicted"] + half)
    return table.assign(scored=np.where(table["placement"].isin(last.placements), "yes", "no"))


def summary(run: Path, document: dict) -> str:
    """The presets for the terminal."""
    source = document["provenance"]
    lines = [f"{run}: {source['placements']} placements and {source['proposed']} proposals, step {source['step']}"]
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
    last, fresh = with_proposed(folder, scores), load_fresh(folder, scores)
    fitted = expansions(scores, last)
    final = fitted[-1][1]
    budgets = list(budgets or _budgets(final))
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
    against = found(chosen, best_random(run, scores, budgets), fresh, _all_attention(final))
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
    with figures.figure(rows=2, height=2.4) as (fig, axes):
        preset_figures.frontier_by_step(axes[0], drifted)
        final = sure[(sure["step"] == sure["step"].max()) & (sure["learned"] == sure["learned"].max())]
        labels = [f"{budget:.3g}" for budget in final["budget"]]
        preset_figures.mixer_map(axes[1], list(final["placement"]), labels, np.array(final["certainty"].tolist()))
        axes[1].set_xlabel("budget (FA-layer equivalents), last checkpoint")
        figures.save(fig, folder / "presets")
    middle = sorted(budgets)[len(budgets) // 2]
    drifted, sure = (table[table["learned"] == table["learned"].min()] for table in (drifted, sure))  # without proposals at any step
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
    if "found" in tables:
        with figures.figure(rows=2, height=2.2) as (fig, axes):
            preset_figures.found_by_budget(axes[0], tables["found"])
            preset_figures.found_difference(axes[1], tables["found"])
            figures.save(fig, folder / "found")


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


if __name__ == "__main__":
    sys.exit(main())
