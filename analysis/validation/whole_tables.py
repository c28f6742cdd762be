"""Worlds that only whole tables can be judged by: two cost bands in one run, and training seeds that share their items.

Letters: S steps, P placements of one band, I items, K seeds. Truths are those of the world, without item noise.
"""

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.stability.bands_over_time import stability_table
from analysis.stability.endpoints import Endpoints
from analysis.stability.seeds import seeds_table
from analysis.stability.settling import time_to_stability
from analysis.statistics.margins import DELTAS, order_curve
from analysis.table import Scores
from analysis.validation.landscape_coverage import truth_of
from analysis.validation.landscapes import LANDSCAPES, SPREAD, Landscape, landscape_scores
from analysis.validation.worlds import World, draw_placements

EDGES = (0.31, 0.48, 0.65)
"""Of the two bands, as shares of all-FA."""

HALVES = 400
"""Halves of the items that true regret is averaged over."""


def two_bands(
    worlds: tuple[Landscape, Landscape], placements: int, items: int, rng: np.random.Generator
) -> tuple[Scores, list[np.ndarray]]:
    """One run whose cheaper band of P placements is of the first world and whose dearer one of the second, and the true qualities
    [S, P] of each. The landscapes have equally many steps; items are shared, and the dearer band is better by 0.3 nats/token."""
    runs, true = zip(*(landscape_scores(world, placements, items, rng) for world in worlds), strict=True)
    drawn = [draw_placements(World("band", band=edges), rng, placements) for edges in itertools.pairwise(EDGES)]
    item = 0.3 * rng.standard_normal(items)
    scores = replace(
        runs[0], run="two bands", placements=[*drawn[0][0], *drawn[1][0]], cost=np.concatenate([cost for _, cost in drawn]),
        quality=np.concatenate([run.quality + 0.3 * n for n, run in enumerate(runs)], axis=1) + item,
    )  # fmt: skip
    return scores, list(true)


def true_regret_share(true: np.ndarray, world: Landscape, items: int, rng: np.random.Generator) -> np.ndarray:
    """Regret share of every step, of qualities [S, P] chosen on half of the items -> [S], mean over HALVES draws of the noise."""
    error = world.noise * np.sqrt(0.5 / (items // 2))
    shared, own = rng.standard_normal((HALVES, 1, true.shape[1])), rng.standard_normal((HALVES, *true.shape))
    picked = true[-1][(true + error * (shared + own)).argmax(axis=2)]  # [HALVES, S]
    return (picked[:, -1:] - picked).mean(axis=0) / (picked[:, -1].mean() - true[-1].mean())


def two_band_coverage(
    names: tuple[str, str], placements: int, items: int, repetitions: int, endpoints: Endpoints, seed: int
) -> pd.DataFrame:
    """One row per band and statistic: coverage at the step before T by ``stability_table``; rates of the verdicts of its endpoint.

    ``settled_wrongly``: how often "settled" is said of a band that is not. Regret is that of the very placements that were drawn, so its
    truth differs from one repetition to the next, and its mean over them says little of how many are settled.
    """
    worlds = (LANDSCAPES[names[0]], LANDSCAPES[names[1]])
    truth = [truth_of(world, endpoints, seed) for world in worlds]
    found = []
    for repetition in range(repetitions):
        rng = np.random.default_rng([seed, repetition])
        scores, true = two_bands(worlds, placements, items, rng)
        declared = replace(endpoints, bands=EDGES, seed=repetition)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = stability_table(scores, declared)
        times = time_to_stability(table, declared).groupby(["band_lo", "band_hi"], sort=False)
        bands = table.groupby(["band_lo", "band_hi"], sort=False)
        for n, ((key, rows), world) in enumerate(zip(itertools.islice(bands, 2), worlds, strict=True)):
            row, said = rows.iloc[-2], times.get_group(key).set_index("endpoint")["verdict"]
            values = truth[n] | {"regret_share": true_regret_share(true[n], world, items, rng)[-2]}
            truly = {
                "regret": values["regret_share"] <= declared.regret_threshold,
                "resolution": values["order"] >= declared.order_threshold,
            }
            for name, value in values.items():
                endpoint = "regret" if name == "regret_share" else "resolution"
                wrongly = said[endpoint].startswith("settled") and not truly[endpoint]
                found.append(_judged(row, name, value, said[endpoint]) | {"band": n, "settled_wrongly": wrongly})
    rows = _rates(pd.DataFrame(found), ["band", "statistic"])
    return rows.assign(of=rows["band"].map(dict(enumerate(names))))


def _judged(row: pd.Series, name: str, truth: float, verdict: str) -> Mapping[str, object]:
    lo, hi, estimate = row[f"{name}_lo"], row[f"{name}_hi"], row[name]
    above, below = lo > truth + 1e-9, hi < truth - 1e-9
    found = {
        "statistic": name,
        "truth": truth,
        "estimate": estimate,
        "coverage": not (above or below),
        "lo_above": above,
        "hi_below": below,
    }
    return found | {f"declared_{word.replace(' ', '_')}": verdict.startswith(word) for word in ("settled", "not settled", "undecided")}


def _rates(found: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Means over repetitions, a row per key; resolution may be inf, so its estimate is a median."""
    found = found.astype({column: float for column in found.columns if column not in keys})
    rows = found.groupby(keys, sort=False).mean().reset_index()
    middle = found.groupby(keys, sort=False)["estimate"].median().reset_index(drop=True)
    rows["estimate"] = np.where(rows["statistic"] == "resolution", middle, rows["estimate"])
    share, n = rows["coverage"], len(found) / len(rows)
    rows.insert(list(rows.columns).index("coverage") + 1, "coverage_se", np.sqrt(share * (1 - share) / n))
    return rows


def seed_paths(common: np.ndarray, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """True qualities [K, 2, P] before T and at T of trainings of one landscape, common [P]: 90% of the variance at T is common, the
    correlation with T is drawn anew for every seed, about 0.95."""
    own, other = rng.standard_normal((2, seeds, len(common)))
    last = np.sqrt(0.9) * common + np.sqrt(0.1) * own
    rho = np.clip(0.95 + 0.02 * rng.standard_normal((seeds, 1)), 0.8, 0.999)
    return SPREAD * np.stack([rho * last + np.sqrt(1 - rho**2) * other, last], axis=1)


def seeds_coverage(seeds: int, items: int, repetitions: int, endpoints: Endpoints, seed: int) -> pd.DataFrame:
    """One row per statistic: coverage of the mean over seeds by ``seeds_table``, all 64 placements of three layers scored on the
    same items in every seed. Half of the noise is what an item does to a placement in all seeds alike. Truth: the mean over seeds of this
    landscape, by 200 other seeds. ``shared`` is the mean correlation between seeds that the table reports."""
    names = ["".join(letters) for letters in itertools.product("FSKG", repeat=3)]
    cost = np.zeros(64) + 3.0  # at equal cost: what is judged is the joint resampling
    declared = replace(endpoints, bands=(0.0, 1.0), equal_cost=False)
    at = int(np.flatnonzero(endpoints.delta_settled + 1e-9 >= DELTAS)[-1])
    found = []
    for repetition in range(repetitions):
        rng = np.random.default_rng([seed, repetition])
        common = rng.standard_normal(64)
        paths, others = seed_paths(common, seeds, rng), seed_paths(common, 200, rng)
        alike = rng.standard_normal((64, items))
        runs = []
        for k in range(seeds):
            noise = 0.1 * np.sqrt(0.5) * (alike + rng.standard_normal((2, 64, items)))
            runs.append(Scores(
                scale="simulated", run=f"seed-{k}", seed=k, steps=np.array([100, 200]), tokens=np.array([100, 200]), placements=names,
                cost=cost, items=[f"item-{i:04d}" for i in range(items)], tasks=[f"task-{i % 2}" for i in range(items)],
                quality=paths[k][:, :, None] + noise - 2,
            ))  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = seeds_table(runs, replace(declared, seed=repetition)).iloc[0]
        truth = {
            "order": np.mean([order_curve(path)[0][at] for path in others]),
            "linear": np.mean([np.corrcoef(path)[0, 1] for path in others]),
        }
        found += [_judged(row, name, value, "") | {"shared": row["shared"]} for name, value in truth.items()]
    rows = _rates(pd.DataFrame(found), ["statistic"])
    return rows.drop(columns=[column for column in rows if column.startswith("declared_")])
