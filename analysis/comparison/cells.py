"""Cells of the scales study: endpoints of drift per run, and their slopes over depth and width with the teacher as a random effect.

Letters: S steps (the last is T), P placements, I items, G groups of items, R random halves of the items, N runs, K coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from analysis.bands import inside
from analysis.cost import full_cost
from analysis.input.runs import manifest, options, training_steps
from analysis.stability.endpoints import Endpoints
from analysis.statistics.intervals import quantile
from analysis.statistics.linear import linear
from analysis.statistics.margins import DELTAS, noise_free, order_curve, resolution
from analysis.statistics.ranks import kendall_tau_b, spearman
from analysis.statistics.uncertainty import item_groups, item_weights, split_halves
from analysis.table import Scores, load_scores

DRIFTS = ("order", "choice", "landscape", "tau", "whole_range")
"""Endpoints, 0 where nothing drifts: 1 - order at the declared margin; regret share; 1 - linear correlation; 1 - τ-b in the bands;
1 - Spearman over the whole range."""

SHARES = (0.25, 0.5, 0.75, 63 / 64)
"""Of the training: when the slopes are taken. 1/2 is the primary one; the last is the neighbour of the end, which shows training noise."""

REFERENCE = (5, 64)
"""Layers and width at which the intercept is read."""

IN_A_BAND = 100
"""Placements of a band that enter, so that the best of a band is the best of as many in every cell."""

RECALL_LOST = 1.0
"""Nats: a teacher with a larger loss on the values of recall is excluded (docs/study.md), as its manifest tells it."""

CONTROL = "-control"
"""How the scale of a run ends that is no cell, but repeats one with a single thing changed."""

HALVES = 64
"""Random halves of the items over which regret is averaged."""


class Cell(NamedTuple):
    """One run of the study."""

    path: Path
    layers: int
    width: int
    tokens_per_parameter: float
    teacher: int  # the replicate: teacher, data, initialisation and order
    scores: Scores

    @property
    def control(self) -> bool:
        """Whether it stands beside the cell of its name, and is no part of the slopes."""
        return self.path.parent.name.endswith(CONTROL)

    @property
    def name(self) -> str:
        return f"l{self.layers}-h{self.width}"


def load_cells(paths: Sequence[Path], costs: str | Path | None = None, strict: bool = True) -> tuple[list[Cell], list[str]]:
    """The runs among ``paths`` that are cells (a constant rate, tokens per trained parameter, no cooled copy) by cell and teacher; and a
    line for each that is left out: its teacher is excluded, or it is not swept to the end of its training.

    ``costs`` as in ``load_scores``. ValueError where a path is no folder, and with ``strict`` where a cell is not whole.
    """
    cells, left_out = [], []
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"no run at {path}: give run directories results/<scale>/<run-id>")
        its = options(path)
        distill = its.get("distill", {})
        if not distill.get("tokens_per_parameter") or distill.get("schedule") != "constant" or its.get("stage") == "cooled":
            continue
        name = f"{path.parent.name}/{path.name}"  # the report is to say the same wherever results/ lies
        lost = manifest(path).get("teacher", {}).get("loss", {}).get("recall", 0.0)
        if lost > RECALL_LOST:
            left_out.append(f"{name}, excluded: its teacher's loss on the values of recall is {lost:.2f} nats, above {RECALL_LOST:g}")
            continue
        try:
            scores = load_scores(path, costs)
            if (last := scores.steps[-1]) < (steps := training_steps(path)):  # swept while training goes on
                raise ValueError(f"the scores of {path} end at step {last} of {steps}: run its chain again, it goes on")
        except ValueError as error:
            if strict:
                raise
            left_out.append(str(error).replace(str(path), name))
            continue
        model = its["model"]
        cells.append(Cell(path, model["layers"], model["hidden"], distill["tokens_per_parameter"], its["teacher"]["seed"], scores))
    return sorted(cells, key=lambda c: (c.width, c.layers, c.teacher)), left_out


def cooled(cells: Sequence[Cell], costs: str | Path | None = None) -> tuple[list[Cell], list[str]]:
    """The cells that have a cooled copy, with this as their last step: one more checkpoint, whose rate fell to 0 after the end. A single
    checkpoint at a constant rate is noisy; this one is less so. And a line for each copy that is not swept as its run is."""
    found, left_out = [], []
    for cell in cells:
        path = cell.path.with_name(f"{cell.path.name}-cooled")
        if not path.is_dir():
            continue
        name, own = f"{path.parent.name}/{path.name}", cell.scores
        try:
            its = load_scores(path, costs)
            if (its.placements, its.items) != (own.placements, own.items):
                raise ValueError(f"{path} has other placements or items than its run: run its chain again, it goes on")
        except ValueError as error:
            left_out.append(str(error).replace(str(path), name))
            continue
        steps, tokens = (np.append(a, b[-1]) for a, b in ((own.steps, its.steps), (own.tokens, its.tokens)))
        quality = np.concatenate([own.quality, its.quality[-1:]])
        found.append(cell._replace(scores=replace(own, steps=steps, tokens=tokens, quality=quality)))
    return found, left_out


def members_of(scores: Scores, endpoints: Endpoints) -> list[tuple[float, np.ndarray]]:
    """(lower edge as a share of all-FA's cost, indices of at most IN_A_BAND placements) of every band; drawn once, from the seed."""
    edges = np.array(endpoints.bands) * full_cost(scores.placements, scores.cost)
    rng = np.random.default_rng(endpoints.seed)
    found = []
    for share, lo, hi in zip(endpoints.bands, edges, edges[1:], strict=False):
        rows = np.flatnonzero(inside(scores.cost, lo, hi, edges[-1]))
        found.append((share, np.sort(rng.permutation(rows)[:IN_A_BAND])))
    return [(share, rows) for share, rows in found if len(rows) >= endpoints.min_placements]


def drifts(scores: Scores, endpoints: Endpoints, keep: np.ndarray | None = None) -> pd.DataFrame:
    """Endpoints of one run from the items ``keep`` (bool [I]; all): columns step, share, DRIFTS and resolution, means over the bands."""
    some = scores if keep is None else scores.part(items=[i for i, k in zip(scores.items, keep, strict=True) if k])
    means = some.quality.mean(axis=2)
    frames = []
    for _, rows in members_of(scores, endpoints):
        cost, quality = np.asarray(scores.cost)[rows], some.quality[:, rows]
        found = linear(quality, some.tasks, 2, np.random.default_rng(endpoints.seed), cost=cost)
        order, finest = zip(*(_order(found, s, endpoints) for s in range(len(scores.steps))), strict=True)
        tau = [kendall_tau_b(row, found.means[-1]) for row in found.means]
        columns = {"order": 1 - np.array(order), "resolution": finest, "choice": _regret_share(quality, some.tasks, endpoints.seed)}
        frames.append(pd.DataFrame(columns | {"landscape": 1 - found.rho, "tau": 1 - np.array(tau)}))
    table = sum(frames) / len(frames)
    whole = [1 - spearman(row, means[-1]) for row in means]
    return table.assign(whole_range=whole, step=scores.steps, share=scores.tokens / scores.tokens[-1])


def _order(found: object, s: int, endpoints: Endpoints) -> tuple[float, float]:
    """(order at the declared margin, resolution in nats/token) of step s, as registered: from one map for all placements."""
    if not np.isfinite(found.rho[s]):
        return np.nan, np.nan
    t, last = found.signal[s, 0, 0], found.signal[s, 1, 1]
    cross = np.clip(found.rho[s], -1, 1) * np.sqrt(t * last)
    curve, pairs, _ = order_curve(noise_free(found.means[[s, -1]], np.array([[t, cross], [cross, last]])))
    at = int(np.flatnonzero(endpoints.delta_settled + 1e-9 >= DELTAS)[-1])
    return float(curve[at]), resolution(curve, pairs, endpoints.order_threshold)


def _regret_share(quality: np.ndarray, tasks: list[str], seed: int) -> np.ndarray:
    """Regret of the choice of every step over that of a random one [S]: quality [S, P, I], chosen on one half of the items, scored on
    the other."""
    masks = split_halves(tasks, HALVES, np.random.default_rng(seed))
    masks = np.concatenate([masks, ~masks])
    chosen = np.einsum("ri,spi->rsp", item_weights(masks, tasks), quality).argmax(axis=2)  # [R, S]
    scored = item_weights(~masks, tasks) @ quality[-1].T  # [R, P]
    picked = np.take_along_axis(scored, chosen, axis=1)
    chance = (picked[:, -1] - scored.mean(axis=1)).mean()
    return (picked[:, -1:] - picked).mean(axis=0) / chance if chance > 0 else np.full(len(quality), np.nan)


def table_of(cells: Sequence[Cell], endpoints: Endpoints) -> pd.DataFrame:
    """``drifts`` of every run with its cell: columns cell, layers, width, tokens_per_parameter, teacher, run besides."""
    return pd.concat([_of_cell(drifts(c.scores, endpoints), c) for c in cells], ignore_index=True)


def _of_cell(table: pd.DataFrame, c: Cell) -> pd.DataFrame:
    same = {"layers": c.layers, "width": c.width, "tokens_per_parameter": c.tokens_per_parameter, "teacher": c.teacher}
    return table.assign(cell=c.name, **same, run=f"{c.scores.scale}/{c.scores.run}")


def beside_controls(controls: Sequence[Cell], drift: pd.DataFrame, endpoints: Endpoints, shares: Sequence[float]) -> pd.DataFrame:
    """The drift of every control at shares of the training, of the run that it repeats (the same cell and seed) and the difference,
    averaged over the pairs: a row per control scale, share and endpoint, with the number of pairs and the least and largest difference."""
    if not controls or drift.empty:
        return pd.DataFrame()
    own = table_of(controls, endpoints)
    scale_of = {f"{c.scores.scale}/{c.scores.run}": c.path.parent.name for c in controls}
    frames = []
    for share in shares:
        both = at_share(own, share).merge(at_share(drift, share), on=["cell", "teacher"], suffixes=("", "_plain"))
        for name in DRIFTS:
            its = {"control": both[name], "plain": both[f"{name}_plain"], "difference": both[name] - both[f"{name}_plain"]}
            frames.append(pd.DataFrame(its).assign(scale=both["run"].map(scale_of), share=share, endpoint=name))
    grouped = pd.concat(frames).groupby(["scale", "share", "endpoint"], sort=False)
    spread = grouped["difference"].agg(pairs="size", least="min", most="max")
    return grouped.mean().join(spread).reset_index()


def at_share(table: pd.DataFrame, share: float) -> pd.DataFrame:
    """The row of every run that is nearest to a share of the training."""
    near = (table["share"] - share).abs()
    return table.loc[near.groupby(table["run"]).idxmin()]


@dataclass(frozen=True)
class Fit:
    """Coefficients of one endpoint. K: intercept, then those of ``names``."""

    names: tuple[str, ...]
    values: np.ndarray  # [K]
    errors: np.ndarray  # [K] standard errors
    degrees: int
    teacher_sd: float
    residual_sd: float


def design(layers: np.ndarray, width: np.ndarray, r: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """(names, X [N, K]): doublings of depth, of width and of tokens per parameter; what does not vary is left out."""
    columns = {"depth": np.log2(layers / REFERENCE[0]), "width": np.log2(width / REFERENCE[1]), "tokens": np.log2(r / r.max())}
    varied = {name: x for name, x in columns.items() if np.ptp(x) > 0}
    return ("intercept", *varied), np.stack([np.ones(len(layers)), *varied.values()], axis=1)


def fit(y: np.ndarray, X: np.ndarray, names: tuple[str, ...], teacher: np.ndarray) -> Fit:
    """y = X b + teacher + error by restricted maximum likelihood (Patterson & Thompson 1971): y [N], X [N, K], teacher [N].

    Cells that drift more are noisier, so the standard errors are HC3 (MacKinnon & White 1985), on what V makes uncorrelated: in planted
    studies the model's own cover the slope of depth down to 88%. Degrees of freedom: runs less coefficients less the other teachers, what
    is left within teachers (containment). Raises ValueError where no run is left over.
    """
    Z = (teacher[:, None] == np.unique(teacher)).astype(float)
    degrees = len(y) - X.shape[1] - (Z.shape[1] - 1)
    if degrees < 1 or np.linalg.matrix_rank(X) < X.shape[1]:
        raise ValueError(f"{len(y)} runs of {Z.shape[1]} teachers do not determine {X.shape[1]} coefficients: run more of the cells")

    def solve(ratio: float) -> tuple[float, np.ndarray, np.ndarray, float]:
        V = np.eye(len(y)) + ratio * Z @ Z.T
        inverse = np.linalg.inv(V)
        gram = X.T @ inverse @ X
        b = np.linalg.solve(gram, X.T @ inverse @ y)
        rest = y - X @ b
        free = len(y) - X.shape[1]
        variance = rest @ inverse @ rest / free
        loss = free * np.log(max(variance, 1e-300)) + np.linalg.slogdet(V)[1] + np.linalg.slogdet(gram)[1]
        return loss, b, np.linalg.inv(gram), variance

    best = optimize.minimize_scalar(lambda x: solve(np.exp(x))[0], bounds=(-12, 6), method="bounded")
    ratio = float(np.exp(best.x)) if solve(float(np.exp(best.x)))[0] < solve(0.0)[0] else 0.0
    _, b, _, variance = solve(ratio)
    errors = _errors(y - X @ b, X, np.eye(len(y)) + ratio * Z @ Z.T, variance)
    return Fit(names, b, errors, degrees, float(np.sqrt(ratio * variance)), float(np.sqrt(variance)))


def _errors(rest: np.ndarray, X: np.ndarray, V: np.ndarray, variance: float) -> np.ndarray:
    """Standard errors [K] of generalised least squares: residuals [N], X [N, K], V [N, N]: HC3. Where a run is the only one of
    its depth or width the fit goes through it and its residual says nothing of its noise: there the model's own, where they are larger."""
    alone = (np.einsum("ij,ji->i", X, np.linalg.pinv(X)) > 1 - 1e-6).any()
    whiten = np.linalg.inv(np.linalg.cholesky(V))
    X, rest = whiten @ X, whiten @ rest
    bread = np.linalg.inv(X.T @ X)
    leverage = np.einsum("ij,jk,ik->i", X, bread, X)
    scaled = X * (rest / np.maximum(1 - leverage, 1e-9))[:, None]
    robust, own = np.diag(bread @ scaled.T @ scaled @ bread), variance * np.diag(bread)
    return np.sqrt(np.maximum(robust, own) if alone else robust)


def slopes(cells: Sequence[Cell], table: pd.DataFrame, endpoints: Endpoints, shares: Sequence[float] = SHARES) -> pd.DataFrame:
    """One row per endpoint, share of the training and coefficient.

    Columns: value, lo, hi (level of the endpoints), error, of which items (standard error from groups of items left out in all runs at
    once), degrees, runs, cells, teachers, teacher_sd, residual_sd, detectable (the slope that is found with 80% power), start (the same
    coefficient of the endpoint at step 0; NaN where that is not known). An endpoint that too few runs have is left out; ValueError where
    all are.
    """
    left = [_without(cells, endpoints, g) for g in range(endpoints.groups)]
    rows, why = [], ""
    for share in shares:
        for name in DRIFTS:
            try:
                found = _fit_at(table, name, share)
            except ValueError as error:
                why = str(error)
                continue
            start = _values_at(table, name, 0.0)
            jack = np.array([[_values_at(some, name, share).get(k, np.nan) for k in found.names] for some in left])
            items = np.sqrt((len(jack) - 1) * jack.var(axis=0))
            q = quantile(endpoints.level, found.degrees)
            power = q + stats.t.ppf(0.8, found.degrees)
            for k, coefficient in enumerate(found.names):
                value, error = found.values[k], found.errors[k]
                rows.append({
                    "endpoint": name, "share": share, "coefficient": coefficient, "value": value, "lo": value - q * error,
                    "hi": value + q * error, "error": error, "items": items[k], "degrees": found.degrees,
                    "runs": int(at_share(table, share)[name].notna().sum()),
                    "cells": len({c.name for c in cells}), "teachers": len({c.teacher for c in cells}), "teacher_sd": found.teacher_sd,
                    "residual_sd": found.residual_sd, "detectable": power * error, "start": start.get(coefficient, np.nan),
                })  # fmt: skip
    if not rows:
        raise ValueError(why)
    return pd.DataFrame(rows)


def _without(cells: Sequence[Cell], endpoints: Endpoints, group: int) -> pd.DataFrame:
    """The table without one group of items: the same places in the file for all runs of a teacher, which share their prompts."""
    frames = []
    for c in cells:
        groups = item_groups(c.scores.tasks, endpoints.groups, np.random.default_rng([endpoints.seed, c.teacher]))
        frames.append(_of_cell(drifts(c.scores, endpoints, groups != group), c))
    return pd.concat(frames, ignore_index=True)


def _fit_at(table: pd.DataFrame, endpoint: str, share: float) -> Fit:
    here = at_share(table, share).dropna(subset=[endpoint])
    names, X = design(*(here[c].to_numpy(float) for c in ("layers", "width", "tokens_per_parameter")))
    return fit(here[endpoint].to_numpy(float), X, names, here["teacher"].to_numpy())


def _values_at(table: pd.DataFrame, endpoint: str, share: float) -> dict[str, float]:
    """Coefficients by name; none where too few runs have the endpoint, as where noise hides all ranking before training."""
    try:
        found = _fit_at(table, endpoint, share)
    except ValueError:
        return {}
    return dict(zip(found.names, found.values, strict=True))
