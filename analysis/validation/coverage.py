"""Coverage, bias and false alarms of the statistics in worlds whose truth is known.

Letters: S steps, N placements of a world's population.
"""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.stability.bands_over_time import stability_table
from analysis.stability.endpoints import Endpoints
from analysis.stability.settling import by_ratio
from analysis.statistics import ranks, uncertainty
from analysis.validation.worlds import WORLDS, World, observed_tau, realised_tau, simulate, true_tau

SEED = 20260101


ENDPOINTS = Endpoints(resamples=200)


def repeat(world: World, repetitions: int, endpoints: Endpoints, seed: int = SEED) -> list[tuple[pd.DataFrame, pd.DataFrame, np.ndarray]]:
    """Tables of independent runs of the world, within its cost band, each with the true qualities of its population [S, N]."""
    endpoints = replace(endpoints, bands=world.band)
    runs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # repetitions that are too noisy count as such
        for repetition in range(repetitions):
            scores, population = simulate(world, np.random.default_rng([seed, repetition]))
            table = stability_table(scores, replace(endpoints, seed=repetition)).iloc[: len(scores.steps)]
            runs.append((table, by_ratio(table, endpoints), population))
    return runs


def truths(world: World, runs: list, seed: int = SEED) -> np.ndarray:
    """True τ at every step, [repetitions, S]: at equal cost over the population; of the very population where that is finite."""
    if world.layers <= 5:
        return np.array([realised_tau(population) for _, _, population in runs])
    return np.tile(true_tau(replace(world, cost_slope=0.0), np.random.default_rng(seed)), (len(runs), 1))


def intervals(world: World, runs: list, truth: np.ndarray) -> pd.DataFrame:
    """Bias and coverage of ratio and of tau at every step before the last."""

    def column(name: str) -> np.ndarray:
        return np.array([table[name] for table, _, _ in runs], dtype=float)[:, :-1]

    truth = truth[:, :-1]
    frames = [_coverage("ratio", truth, *(column(c) for c in ("ratio", "ratio_lo", "ratio_hi")))]
    lo, hi = column("ratio_band_lo"), column("ratio_band_hi")
    together = ((lo <= truth) & (truth <= hi)).all(axis=1).mean()
    frames[0]["coverage_all_steps"] = together
    if not (world.cost_slope or world.levels or world.skewed or world.layers <= 5):
        seen = np.tile(observed_tau(world)[:-1], (len(runs), 1))
        frames.append(_coverage("tau", seen, *(column(c) for c in ("tau", "tau_lo", "tau_hi"))))
    frame = pd.concat(frames, ignore_index=True)
    frame["mean_ceiling"] = np.tile(column("ceiling").mean(axis=0), len(frames))
    return frame


def bootstrap(world: World, repetitions: int, resamples: int = 100, seed: int = SEED) -> pd.DataFrame:
    """What the percentile bootstrap over items would have covered: of the tau that it resamples."""
    estimate, low, high = [], [], []
    for repetition in range(repetitions):
        scores, _ = simulate(world, np.random.default_rng([seed, repetition]))
        rng = np.random.default_rng(repetition)
        counts = rng.multinomial(world.items, np.full(world.items, 1 / world.items), size=resamples)
        means = np.einsum("ri,spi->rsp", uncertainty.item_weights(counts, scores.tasks), scores.quality, optimize=True)
        drawn = np.array([ranks.tau_matrix(m)[-1, :-1] for m in means])
        estimate.append(ranks.tau_matrix(scores.quality.mean(axis=2))[-1, :-1])
        low.append(np.quantile(drawn, 0.025, axis=0))
        high.append(np.quantile(drawn, 0.975, axis=0))
    truth = np.tile(observed_tau(world)[:-1], (repetitions, 1))
    return _coverage("tau, percentile bootstrap of items", truth, *(np.array(a) for a in (estimate, low, high)))


def _coverage(statistic: str, truth: np.ndarray, estimate: np.ndarray, low: np.ndarray, high: np.ndarray) -> pd.DataFrame:
    inside = (low <= truth) & (truth <= high)
    n, steps = inside.shape
    error = estimate - truth
    return pd.DataFrame({
        "statistic": statistic, "step": np.arange(steps), "truth": truth.mean(axis=0), "estimate": np.nanmean(estimate, axis=0),
        "bias": np.nanmean(error, axis=0), "median_bias": np.nanmedian(error, axis=0), "sd": np.nanstd(error, axis=0),
        "coverage": inside.mean(axis=0), "coverage_se": np.sqrt(inside.mean(axis=0) * (1 - inside.mean(axis=0)) / n),
        "width": np.nanmedian(high - low, axis=0), "unknown": np.isnan(estimate).mean(axis=0),
    })  # fmt: skip


def verdicts(world: World, runs: list, truth: np.ndarray, threshold: float) -> pd.DataFrame:
    """Rates of the three verdicts, and coverage of the time to stability; the true time is read off the same checkpoints."""
    times = pd.concat([time for _, time, _ in runs], ignore_index=True)
    tokens = runs[0][0]["tokens"].to_numpy()[:-1]
    true_time = []
    for row in truth[:, :-1]:
        below = np.flatnonzero(row < threshold - 1e-12)
        first = below[-1] + 1 if len(below) else 0
        true_time.append(tokens[first] if first < len(tokens) else np.inf)
    true_time = np.array(true_time, dtype=float)
    covered = (times["tokens_lo"] <= true_time) & (true_time <= times["tokens_hi"])
    rate = {f"declared_{v.replace(' ', '_')}": float((times["verdict"] == v).mean()) for v in ("settled", "not settled", "undecided")}
    return pd.DataFrame([{
        "threshold": threshold, "truly_settled": float(np.isfinite(true_time).mean()), **rate, "time_coverage": float(covered.mean()),
        "declared_too_early": float((times["reached"] & (times["tokens"] < true_time)).mean()),
    }])  # fmt: skip


def regrets(world: World, runs: list, seed: int = SEED) -> pd.DataFrame:
    """Regret of a fixed set of placements: the interval is about which items, so placements and truth stay and only items are redrawn."""
    fixed = np.random.default_rng(seed)
    scores, _ = simulate(replace(world, items=4, noise=0.0, shared=0.0, structured=0.0), fixed)
    true = scores.quality.mean(axis=2)
    endpoints = replace(ENDPOINTS, bands=world.band, groups=4, halves=1)
    found, expected = [], []
    S, P = true.shape
    for repetition in range(len(runs)):
        rng = np.random.default_rng([seed, repetition])
        noise = world.shared * rng.standard_normal((P, world.items)) + world.noise * rng.standard_normal((S, P, world.items))
        drawn = replace(
            scores, quality=true[:, :, None] + noise, items=[f"i{i}" for i in range(world.items)],
            tasks=[f"task-{i % world.tasks}" for i in range(world.items)],
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(stability_table(drawn, replace(endpoints, seed=repetition)).iloc[:S])
        half = drawn.quality[:, :, : world.items // 2].mean(axis=2)
        expected.append(true[-1, half[-1].argmax()] - true[-1, half.argmax(axis=1)])
    truth = np.tile(np.mean(expected, axis=0)[:-1], (len(found), 1))
    return _coverage("regret", truth, *(np.array([t[c] for t in found])[:, :-1] for c in ("regret", "regret_lo", "regret_hi")))


def slopes(repetitions: int, seed: int = SEED) -> pd.DataFrame:
    """The same world under growing cost slopes: mean over bands and repetitions of τ relative to its ceiling."""
    rows = []
    for slope in (0.0, 1.0, 2.0, 4.0):
        world = replace(WORLDS["planted"], placements=240, cost_slope=slope, noise=1.0, shared=1.0)
        flat = 2 / np.pi * np.arcsin(np.array(world.correlation))
        found = {"whole range": [], "bands": [], "bands at equal cost": []}
        for repetition in range(repetitions):
            scores, _ = simulate(world, np.random.default_rng([seed, repetition]))
            for name, equal in (("bands", False), ("bands at equal cost", True)):
                endpoints = replace(ENDPOINTS, equal_cost=equal, groups=4, halves=4, seed=repetition, resamples=2)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    table = stability_table(scores, endpoints)
                S = len(scores.steps)
                found[name].append(np.nanmean(table["ratio"].to_numpy()[:-S].reshape(-1, S), axis=0))
            found["whole range"].append(table["ratio"].to_numpy()[-S:])
        for name, values in found.items():
            mean, low, high = intervals.of_mean(np.array(values), ENDPOINTS.level, axis=0)
            rows += [
                {"slope": slope, "compared": name, "step": s, "truth": flat[s], "ratio": mean[s], "ratio_lo": low[s], "ratio_hi": high[s]}
                for s in range(len(flat) - 1)
            ]  # fmt: skip
    return pd.DataFrame(rows)
