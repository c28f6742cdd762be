"""Rankings over training time: when is the ranking of placements at the last step already there, and what does choosing earlier cost?

The endpoints are declared in conf/stability.yaml before any score is seen. The primary ones are ``resolution``, the difference from
which on the order is final, and ``regret_share``, what choosing early loses, both within cost bands.
"""

import itertools
import warnings

import numpy as np
import pandas as pd
from scipy import stats

from analysis.bands import inside
from analysis.cost import full_cost
from analysis.stability.endpoints import Endpoints
from analysis.stability.margin_columns import margin_columns
from analysis.stability.settling import FEWEST, MIN_ITEMS
from analysis.statistics import intervals, ranks, uncertainty
from analysis.table import Scores


def stability_table(scores: Scores, endpoints: Endpoints) -> pd.DataFrame:
    """One row per step and cost band, and per step for the whole cost range; every column compares step t with the last step T.

    - band_lo, band_hi: cost in FA-layer equivalents, lower edge included; n_placements, n_items.
    - order, order_lo, order_hi: 2a - 1, a the share of the pairs that differ by more than delta_settled at T that t orders the same way,
      of qualities freed of item noise (margins.noise_free, within clusters where placements cluster: clustered_curves); order_band_lo,
      order_band_hi for all steps at once. NaN, with the interval [-1, 1], where no two placements differ by so much.
    - resolution, resolution_lo, resolution_hi: the smallest difference (nats/token at T) from which on order stays at or above
      order_threshold; inf where none does; the interval inverts the bounds of order.
    - linear, linear_lo, linear_hi: Pearson correlation with T without item noise, from covariances of disjoint items.
    - regret_share, regret_share_lo, regret_share_hi (and _band_): regret over regret_random; 0 nothing lost, 1 no better than chance.
    - spearman: of mean qualities with T. ``*_start``: the value at step 0; NaN where the first checkpoint is a later one.
    - varies: what the intervals resample, and what they hold fixed.
    - tau, tau_lo, tau_hi: τ-b of mean qualities over all items, as observed: lowered by item noise, raised by shared items and by cost.
    - tau_cross: t on one half of the items, T on the other; ceiling: (2/π) asin √(r_t r_T), reliabilities of all items from random halves
      (Spearman-Brown on Pearson's r); ceiling_half: the same for half the items, from cross-half τ, the one that belongs to tau_cross.
    - ratio: τ relative to its ceiling on the scale of correlations, (2/π) asin[sin(π tau_cross / 2) / sin(π ceiling_half / 2)]. 1: all
      disagreement is item noise; it estimates τ of the true qualities, whatever the noise, and may exceed 1 by chance. (The plain quotient,
      ratio_plain, agrees with it at 0 and 1 only: at ceiling 0.6 it says 0.9 where the true τ is 0.76.)
      Within a band these four compare at equal cost (endpoints.equal_cost); over the whole range they do not: the effect of cost shows.
    - ratio_lo, ratio_hi pointwise, ratio_band_lo, ratio_band_hi for all steps at once.
    - regret: quality at T of the best at T less that of the one chosen at t, both chosen on one half of the items and scored on the other,
      in nats per token; regret_random: of choosing at random. Expected over which items choose; conditional on the scored placements.
    - decision_accuracy (ties: see ranks.decision_accuracy; a coin has decision_random), decisive_accuracy over the pairs that T decides and
      decisive_share of them, topk_overlap of the top_k best (by chance: topk_chance), weighted_tau, rbo (persistence 0.9).
    - sampled: share of all possible placements that was scored; 1 leaves only items as a source of error in the intervals.

    A band with fewer than 8 placements, or scores with fewer than 4 items, have NaN where nothing can be said, and warn.
    """
    layers = len(scores.placements[0])
    edges = np.array(endpoints.bands) * full_cost(scores.placements, scores.cost)
    cost = np.asarray(scores.cost)
    bands = [(lo, hi, inside(cost, lo, hi, edges[-1])) for lo, hi in itertools.pairwise(edges)]
    bands.append((min(edges[0], cost.min()), max(edges[-1], cost.max()), np.ones(len(cost), dtype=bool)))
    if len(scores.items) < MIN_ITEMS:
        _warn(scores, f"{len(scores.items)} items, {MIN_ITEMS} are needed to know their noise: ceilings and intervals are missing")
    sampled = min(1.0, len(cost) / float(len(set("".join(scores.placements)))) ** layers)
    enough = [member.sum() >= FEWEST for _, _, member in bands]
    members = [member for (_, _, member), e in zip(bands, enough, strict=True) if e]
    regret = iter(regret_by_set(scores, endpoints, members) if members and len(scores.items) >= MIN_ITEMS else [])
    frames = []
    for number, (lo, hi, member) in enumerate(bands):
        rng = np.random.default_rng([endpoints.seed, number])
        everything = number == len(bands) - 1
        if everything and len(bands) == 2 and bands[0][2].all():  # one band that holds all placements is the whole range
            frames.append(frames[0].assign(band_lo=round(lo, 9), band_hi=round(hi, 9)))
            continue
        trend = endpoints.equal_cost and not everything
        chosen = next(regret, {}) if enough[number] else {}
        frames.append(_band_rows(scores, endpoints, lo, hi, np.flatnonzero(member), sampled, chosen, trend, rng))
    return pd.concat(frames, ignore_index=True)


def _warn(scores: Scores, text: str) -> None:
    warnings.warn(f"{scores.scale}/{scores.run}: {text}", stacklevel=3)


def regret_by_set(scores: Scores, endpoints: Endpoints, members: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Per set of placements: regret of choosing at each step [S], its interval, and that of a random choice.

    The mean over random halves of the items, one to choose and one to score, is smooth in the items, so leaving out groups of them gives
    its error; the spread between halves would be that of a single half.
    """
    rng = np.random.default_rng([endpoints.seed, 1 << 20])
    masks = uncertainty.split_halves(scores.tasks, endpoints.resamples, rng)
    group = uncertainty.item_groups(scores.tasks, endpoints.groups, rng)
    S, P, I = scores.quality.shape
    order = np.argsort(scores.cost, kind="stable")  # bands become slices, which need no copies
    starts = [int(np.flatnonzero(member[order])[0]) for member in members]
    slices = [slice(start, start + int(member.sum())) for start, member in zip(starts, members, strict=True)]
    quality = scores.quality[:, order]
    flat = np.ascontiguousarray((quality - quality.mean(axis=1, keepdims=True)).reshape(S * P, I).T, dtype=np.float32)
    kept = [np.ones(I, dtype=bool)] + [group != g for g in range(group.max() + 1)]
    tied = [[s for s, row in enumerate(ranked(quality[:, member])) if row.max() < len(row) - 1] for member in slices]
    near = 1e-6 * np.abs(quality).max()  # of what is tied in float32
    found = np.empty((len(kept), len(members), S + 1))
    for number, keep in enumerate(kept):
        chooses, scoring = (uncertainty.item_weights(m & keep, scores.tasks).astype(np.float32) for m in (masks, ~masks))
        seen, scored = (chooses @ flat).reshape(-1, S, P), scoring @ flat[:, -P:]
        for band, member in enumerate(slices):
            picked = np.take_along_axis(scored[:, member], seen[:, :, member].argmax(axis=2), axis=1)  # [resamples, S]
            for s in tied[band]:  # among equally good ones the choice is free: their mean
                best = seen[:, s, member] >= seen[:, s, member].max(axis=1, keepdims=True) - near
                picked[:, s] = (best * scored[:, member]).sum(axis=1) / best.sum(axis=1)
            found[number, band, :S] = (picked[:, -1:] - picked).mean(axis=0)
            found[number, band, S] = (picked[:, -1] - scored[:, member].mean(axis=1)).mean()
    estimate, left = found[0], found[1:]
    error = np.sqrt((len(left) - 1) * left.var(axis=0))
    q = intervals.quantile(endpoints.level, len(left) - 1)
    rows = []
    for e, w, without in zip(estimate, q * error, left.transpose(1, 0, 2), strict=True):
        rows.append({"regret": e[:S], "regret_lo": (e - w)[:S], "regret_hi": (e + w)[:S], "regret_random": np.full(S, e[S])})
        rows[-1] |= _regret_share(e, without, q, endpoints, I, rng)
    return rows


def _regret_share(
    estimate: np.ndarray, without: np.ndarray, q: float, endpoints: Endpoints, items: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Regret over that of a random choice, from both [S + 1] and their values without each group of items [G, S + 1].

    Jackknife of the quotient, with a floor on the half-width of one item: no sample of items excludes that one of them decides.
    Unknown, with the interval [-1, 1 + 1], where the items do not tell the best from a random one.
    """
    S = len(estimate) - 1
    G = len(without)
    chance = estimate[S]
    sure = chance > 2 * np.sqrt((G - 1) * without[:, S].var())
    if not sure or not chance > 0:
        return {
            f"regret_share{part}": np.full(S, value)
            for part, value in (("", np.nan), ("_lo", -1.0), ("_hi", 2.0), ("_band_lo", -1.0), ("_band_hi", 2.0))
        }
    share = estimate[:S] / chance
    left = without[:, :S] / without[:, S:]
    centred = left - left.mean(axis=0)
    covariance = (G - 1) / G * centred.T @ centred
    together = max(
        1.0, uncertainty.max_t_quantile(covariance, endpoints.level, endpoints.resamples, rng) / stats.norm.ppf((1 + endpoints.level) / 2)
    )
    wide = np.maximum(q * np.sqrt(np.diag(covariance)), 1 / items)
    wide[-1] = 0.0
    return {
        "regret_share": share, "regret_share_lo": share - wide, "regret_share_hi": share + wide,
        "regret_share_band_lo": share - together * wide, "regret_share_band_hi": share + together * wide,
    }  # fmt: skip


def _band_rows(
    scores: Scores,
    endpoints: Endpoints,
    lo: float,
    hi: float,
    member: np.ndarray,
    sampled: float,
    regret: dict[str, np.ndarray],
    equal_cost: bool,
    rng: np.random.Generator,
) -> pd.DataFrame:
    S, P, I = len(scores.steps), len(member), len(scores.items)
    nothing = np.full(S, np.nan)
    columns: dict[str, object] = {
        "run": scores.run, "step": scores.steps, "tokens": scores.tokens, "band_lo": round(lo, 9), "band_hi": round(hi, 9),
        "n_placements": P, "n_items": I,
    }  # fmt: skip
    columns |= dict.fromkeys(COLUMNS[len(columns) :], nothing)
    columns |= {"level": endpoints.level, "sampled": sampled, "varies": VARIES[sampled == 1]}
    if 0 < P < endpoints.min_placements:
        _warn(scores, f"cost {lo:.4g} to {hi:.4g} holds {P} placements, {endpoints.min_placements} are needed: no verdict there")
    if P < FEWEST:
        return pd.DataFrame(columns, index=range(S))
    quality = scores.quality[:, member]
    columns |= _point_statistics(quality, endpoints)
    columns |= regret
    tied = ranked(quality).max(axis=1) == 0
    fair = tied
    if equal_cost:
        at_equal = uncertainty.at_equal_cost(quality.mean(axis=2)[:, :, None], np.asarray(scores.cost)[member])
        fair = ranks.with_ties(at_equal[:, :, 0], np.abs(quality).max()).max(axis=1) == 0
    if fair.any():
        steps, what = ", ".join(str(step) for step in scores.steps[fair]), "the same" if tied.any() else "what their cost says"
        _warn(scores, f"cost {lo:.4g} to {hi:.4g}: all placements score {what} at step {steps}, there is no ranking")
    if I >= MIN_ITEMS:
        if endpoints.max_placements < P:
            thinned = np.sort(rng.choice(P, endpoints.max_placements, replace=False))
            quality, member = quality[:, thinned], member[thinned]
        cost = np.asarray(scores.cost)[member] if equal_cost else None
        fraction = sampled * len(member) / P
        columns |= _agreement(scores, endpoints, quality, cost, fraction, (lo, hi), rng)
        columns |= margin_columns(quality, scores.tasks, endpoints, rng, fraction, cost)
    frame = pd.DataFrame(columns, index=range(S))
    frame.loc[tied | tied[-1], list(OF_ORDER)] = np.nan
    frame.loc[fair | fair[-1], list(AT_EQUAL_COST)] = np.nan
    if tied[-1]:
        frame[OF_REGRET] = np.nan
    if scores.steps[0] == 0:
        for name in STARTS:
            frame[f"{name}_start"] = frame[name].iloc[0]
    return frame


STARTS = ("resolution", "order", "regret_share", "linear", "spearman", "tau", "ratio")
"""Statistics whose value before training stands beside them."""

VARIES = {
    False: "items, placements (regret: items); fixed: teacher, data, training seed",
    True: "items; fixed: placements (all were scored), teacher, data, training seed",
}
OF_REGRET = [
    "regret", "regret_lo", "regret_hi", "regret_random", "regret_share", "regret_share_lo", "regret_share_hi", "regret_share_band_lo",
    "regret_share_band_hi",
]  # fmt: skip


OF_ORDER = ("tau", "tau_lo", "tau_hi", "decision_accuracy", "decisive_accuracy", "topk_overlap", "weighted_tau", "rbo", "spearman")
AT_EQUAL_COST = (
    "tau_cross", "ceiling", "ratio", "ratio_lo", "ratio_hi", "ratio_band_lo", "ratio_band_hi", "ceiling_half", "ratio_plain", "reliability",
    "resolution", "resolution_lo", "resolution_hi", "order", "order_lo", "order_hi", "order_band_lo", "order_band_hi", "linear",
    "linear_lo",
    "linear_hi",
)  # fmt: skip
"""Columns of which nothing is known at a step where all placements score the same (at equal cost); at none, where T is such a step."""


def ranked(quality: np.ndarray) -> np.ndarray:
    """Dense ranks of the mean qualities [S, P, I] -> integers [S, P], see ``ranks.with_ties``."""
    return ranks.with_ties(quality.mean(axis=2), np.abs(quality).max())


def _point_statistics(quality: np.ndarray, endpoints: Endpoints) -> dict[str, object]:
    """Statistics of mean qualities without an interval: quality [S, P, I] -> columns [S]."""
    means = quality.mean(axis=2)
    P = means.shape[1]
    k = max(1, min(endpoints.top_k, P // 2))
    rank = ranked(quality).astype(float)  # all of these look at the order alone, but for the errors of decisive pairs
    last = rank[-1]
    decisive = _decisive(means, quality[-1], endpoints.decisive_z)
    return {
        "tau": ranks.tau_matrix(rank)[-1],
        "decision_accuracy": [ranks.decision_accuracy(row, last) for row in rank],
        "decision_random": 0.5,
        "decisive_accuracy": [accuracy for accuracy, _ in decisive],
        "decisive_share": [share for _, share in decisive],
        "top_k": k,
        "topk_overlap": [ranks.topk_overlap(row, last, k) for row in rank],
        "topk_chance": ranks.topk_chance(P, k),
        "weighted_tau": [ranks.weighted_tau(row, last) for row in rank],
        "spearman": [ranks.spearman(row, last) for row in rank],
        "rbo": [ranks.rank_biased_overlap(row, last) for row in rank],
    }


def _decisive(means: np.ndarray, final: np.ndarray, z: float) -> list[tuple[float, float]]:
    if final.shape[1] < 2 or len(final) > 4096:  # the matrix of errors grows with the square of placements
        return [(np.nan, np.nan)] * len(means)
    error = uncertainty.difference_error(final)
    return [ranks.decisive_accuracy(row, means[-1], error, z) for row in means]


def _agreement(
    scores: Scores,
    endpoints: Endpoints,
    quality: np.ndarray,
    cost: np.ndarray | None,
    fraction: float,
    band: tuple[float, float],
    rng: np.random.Generator,
) -> dict[str, object]:
    """Columns of the primary endpoint with their intervals."""
    a = uncertainty.agreement(quality, scores.tasks, rng, endpoints.halves, endpoints.groups, fraction, cost)
    pointwise = intervals.quantile(endpoints.level, a.degrees)
    widen = pointwise / stats.norm.ppf((1 + endpoints.level) / 2)
    together = widen * uncertainty.max_t_quantile(a.rho_cov, endpoints.level, endpoints.resamples, rng)
    tau_lo, tau_hi = uncertainty.fisher_interval(a.tau, np.diag(a.tau_cov), pointwise)
    variance = np.diag(a.rho_cov)
    ratio_lo, ratio_hi = _ratio_interval(a, variance, pointwise)
    band_lo, band_hi = _ratio_interval(a, variance, together)
    if np.isnan(a.rho).any():
        noisy = ", ".join(str(s) for s in scores.steps[np.isnan(a.rho)])
        _warn(
            scores,
            f"cost {band[0]:.4g} to {band[1]:.4g}: item noise hides the ranking at step {noisy}, the ratio to the ceiling is unknown",
        )
    reliability = uncertainty.spearman_brown(a.r_half)
    ceiling_half = 2 / np.pi * np.arcsin(np.minimum(a.attenuation, 1))
    return {
        "tau_lo": tau_lo, "tau_hi": tau_hi, "tau_cross": a.tau_cross, "ceiling": uncertainty.ceiling_tau(reliability, reliability[-1]),
        "ratio": uncertainty.tau_of(a.rho), "ratio_lo": ratio_lo, "ratio_hi": ratio_hi, "ratio_band_lo": band_lo, "ratio_band_hi": band_hi,
        "ceiling_half": ceiling_half, "ratio_plain": a.tau_cross / ceiling_half, "reliability": reliability,
    }  # fmt: skip


def _ratio_interval(a: uncertainty.Agreement, variance: np.ndarray, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    low, high = (uncertainty.tau_of(bound) for bound in uncertainty.fisher_interval(a.rho, variance, quantile, a.attenuation))
    unknown = np.isnan(a.rho)
    return np.where(unknown, -1.0, low), np.where(unknown, 1.0, high)


COLUMNS = (
    "run", "step", "tokens", "band_lo", "band_hi", "n_placements", "n_items", "tau", "tau_lo", "tau_hi", "tau_cross", "ceiling", "ratio",
    "ratio_lo", "ratio_hi", "regret", "regret_lo", "regret_hi", "decision_accuracy", "topk_overlap", "regret_random", "topk_chance",
    "decision_random", "ratio_band_lo", "ratio_band_hi", "ceiling_half", "ratio_plain", "reliability", "decisive_accuracy",
    "decisive_share", "weighted_tau", "rbo", "top_k", "level", "sampled",
    "resolution", "resolution_lo", "resolution_hi", "order", "order_lo", "order_hi", "order_band_lo", "order_band_hi", "regret_share",
    "regret_share_lo", "regret_share_hi", "regret_share_band_lo", "regret_share_band_hi", "linear", "linear_lo", "linear_hi", "spearman",
    "resolution_start", "order_start", "regret_share_start", "linear_start", "spearman_start", "tau_start", "ratio_start", "varies",
)  # fmt: skip
"""Columns of stability.csv, in order."""
