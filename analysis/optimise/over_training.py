"""How presets, their layers and the surrogate would have differed earlier in training."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.cost import on_grid
from analysis.optimise.choice import choose, mean_and_error, surrogate
from analysis.optimise.exact import best_at, frontier
from analysis.surrogate.design import CLUSTER_NAMES, encode
from analysis.surrogate.expansion import ClusterExpansion
from analysis.surrogate.fitting import spread
from analysis.surrogate.judging import cross_validate, evaluate
from analysis.table import Scores
from supernet.placement import COST

ENOUGH = 512  # scored placements from which on a test set can be spared
TRAIN = 256  # placements the surrogate is judged with where the rest is the test set


def expansions(scores: Scores, last: Scores) -> list[tuple[int, ClusterExpansion]]:
    """The surrogate of every checkpoint with its place, all learned from the run's own placements so that they differ in training alone.

    Where ``last`` has proposals beside these, one more of the last checkpoint that learned from all. All have the clusters of the last one
    and are bent as it is: their coefficients are compared.
    """
    final = surrogate(scores)
    reach = final.link.reach / spread(scores.quality[-1].mean(axis=1))
    fitted = [*(surrogate(scores, s, (reach,), final.clusters) for s in range(len(scores.steps) - 1)), final]
    more = [surrogate(last)] if len(last.placements) > len(scores.placements) else []
    return [*enumerate(fitted), *((len(fitted) - 1, expansion) for expansion in more)]


def lost(last: Scores, expansion: ClusterExpansion, final: str, early: str) -> tuple[float, float, bool]:
    """Quality at T of the final preset minus that of an earlier one, its standard error, whether both were measured (paired by item)."""
    measured = {final, early} <= set(last.placements)
    if final == early:
        return 0.0, 0.0, measured
    if measured:
        a, b = (last.quality[-1, last.placements.index(name)] for name in (final, early))
        return *mean_and_error(a - b), True
    (mean,), (sd,) = expansion.estimate([final], against=early)
    return float(mean), float(sd), False


def drift(
    scores: Scores, last: Scores, fitted: list[tuple[int, ClusterExpansion]], budgets: Sequence[float],
    coefficients: Mapping[str, float] = COST, level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """The presets of every checkpoint against those of the last one, a row per surrogate of ``expansions`` and budget.

    ``learned``: from how many placements; those of the last checkpoint that learned from proposals too are further rows. ``hamming``: share
    of layers with another mixer. ``lost``, ``lost_lo``, ``lost_hi``: what freezing the preset of t costs at T, nats per token, with its
    interval (over items where both were scored, ``lost_measured``; else of the prediction and over items). Chosen and judged on the same
    items, which favours the final preset: the loss is rather over- than underestimated.
    """
    chosen = [choose(expansion, budgets, coefficients, level=level) for _, expansion in fitted]
    finals, judge_of = chosen[len(scores.steps) - 1]["placement"], fitted[-1][1]
    for table in chosen:
        gone = [lost(last, judge_of, final, early) for final, early in zip(finals, table["placement"], strict=True)]
        table["hamming"] = [
            np.mean([a != b for a, b in zip(final, early, strict=True)]) for final, early in zip(finals, table["placement"], strict=True)
        ]
        value, error, measured = (np.array(column) for column in zip(*gone, strict=True))
        half = judge_of.quantile(level) * error
        table["lost"], table["lost_lo"], table["lost_hi"] = value, value - half, value + half
        table["lost_measured"] = measured.astype(bool)
    return pd.concat(_of_training(scores, fitted, chosen), ignore_index=True)


def layer_stability(
    scores: Scores, fitted: list[tuple[int, ClusterExpansion]], budgets: Sequence[float], rng: np.random.Generator, draws: int = 50,
    coefficients: Mapping[str, float] = COST,
) -> pd.DataFrame:  # fmt: skip
    """``stability`` of every surrogate: run, step, tokens, learned, budget, layer, mixer, one share per mixer letter."""
    tables = [stability(expansion, budgets, rng, draws, coefficients) for _, expansion in fitted]
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


def stability(
    expansion: ClusterExpansion,
    budgets: Sequence[float],
    rng: np.random.Generator,
    draws: int = 100,
    coefficients: Mapping[str, float] = COST,
) -> pd.DataFrame:
    """How often each layer of the best placement changes under posterior draws, as if scored on other items of the same kind.

    Columns budget, layer, mixer (of the best placement under the posterior mean) and one share per mixer letter: of the draws, how many
    have an optimum at this budget that takes it there (they sum to 1; the share of ``mixer`` is how sure that choice is).
    """
    grid = on_grid(coefficients)
    names = best_at(frontier(expansion, grid), budgets)
    shares = np.zeros((len(budgets), expansion.layers, len(expansion.letters)))
    for landscape in expansion.draw(rng, draws, other_items=True):
        drawn = best_at(frontier(landscape, grid), budgets)
        shares += np.eye(len(expansion.letters))[encode(drawn, expansion.letters)]
    index = pd.MultiIndex.from_product([budgets, range(expansion.layers)], names=["budget", "layer"])
    table = pd.DataFrame(shares.reshape(len(index), -1) / draws, index, list(expansion.letters)).reset_index()
    table.insert(2, "mixer", [letter for name in names for letter in name])
    return table
