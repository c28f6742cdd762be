from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scipy.stats import multivariate_normal

from analysis.cost import placement_costs
from analysis.optimise import frontier
from analysis.surrogate import evidence, fit, fitting, judging
from analysis.surrogate.design import CLUSTERS, design, sum_to_zero
from analysis.surrogate.judging import cross_validate, evaluate, judge
from supernet.placement import exhaustive, sample_local


def world(layers, rng, count, sd=(1.0, 0.5, 0.3, 0.3), letters="FSKG"):
    """Distinct uniform placements and their qualities under a random expansion; and the function that gives any placement's."""
    widths = [max(layers - c[-1], 0) * (len(letters) - 1) ** len(c) for c in CLUSTERS]
    weights = np.concatenate([[2.0], *[s * rng.normal(size=w) / np.sqrt(max(w, 1)) for s, w in zip(sd, widths, strict=True)]])
    placements: set[str] = set()
    while len(placements) < count:
        placements.add(str(sample_local(layers, rng, letters)))

    def truth(names):
        return design(names, letters, layers) @ weights

    return sorted(placements), truth


def test_basis_sums_to_zero_and_is_orthonormal():
    for size in (2, 3, 4, 5):
        basis = sum_to_zero(size)
        assert np.allclose(basis.sum(0), 0)
        assert np.allclose(basis.T @ basis / size, np.eye(size - 1))


def test_number_of_coefficients():
    assert design(["F" * 48], "FSKG", 48).shape[1] - 1 == 2223
    assert design(["F" * 5], "FSKG", 5).shape[1] - 1 == 15 + 36 + 27 + 81
    assert design(["F"], "FSKG", 1).shape[1] == 4


def test_features_are_orthogonal_over_all_placements():
    features = design([str(p) for p in exhaustive(4, "FSK")], "FSK", 4)
    assert np.allclose(features.T @ features / 81, np.eye(features.shape[1]))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.sampled_from(["FSKG", "FG", "FSKGX"]), st.integers(0, 1000))
def test_landscape_equals_the_expansion(layers, letters, seed):
    rng = np.random.default_rng(seed)
    placements = [c * layers for c in letters] + [str(sample_local(layers, rng, letters)) for _ in range(30)]
    placements = sorted(set(placements))
    if len(placements) < 10:
        return
    expansion = fit(placements, rng.normal(size=len(placements)), 0.1, letters)
    others = [str(sample_local(layers, rng, letters)) for _ in range(20)]
    assert np.allclose(expansion.landscape.value(others), expansion.predict(others)[0])


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_evidence_is_the_gaussian_density_and_its_gradient(form):
    rng = np.random.default_rng(0)
    placements, truth = world(4, rng, 40)
    features, y, v = design(placements, "FSKG", 4), rng.normal(size=40), rng.uniform(0.05, 0.3, size=40)
    widths = np.array([12, 27, 18, 54])
    groups = np.repeat(np.arange(-1, 4), [1, *widths])
    blocks = [features[:, groups == g] for g in range(4)]
    kernels = [b @ b.T / b.shape[1] for b in blocks]
    log_shares = np.log([0.5, 0.2, 0.1, 0.3, 0.2])

    def value(x):
        if form == "dual":
            return evidence._evidence_dual(np.exp(x), kernels, y, v)
        return evidence._evidence_primal(np.exp(x), features, groups, widths, y, v)

    shares = np.exp(log_shares)
    covariance = evidence.CONSTANT_VARIANCE + sum(s * k for s, k in zip(shares, kernels, strict=False)) + np.diag(v + shares[-1])
    density = -multivariate_normal(np.zeros(40), covariance).logpdf(y) - 20 * np.log(2 * np.pi)
    assert value(log_shares)[0] == pytest.approx(density, rel=1e-8)
    assert check_grad(lambda x: value(x)[0], lambda x: value(x)[1], log_shares) < 1e-4


@pytest.mark.parametrize("count", [120, 400])  # fewer and more placements than the 217 coefficients: both forms of the evidence
def test_recovers_a_planted_world_and_knows_its_own_error(count):
    scores, r2 = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        placements, truth = world(6, rng, count)
        noise = rng.uniform(0.01, 0.05, size=count)
        expansion = fit(placements, truth(placements) + rng.normal(size=count) * np.sqrt(noise), noise)
        test = [str(sample_local(6, rng)) for _ in range(300)]
        mean, sd = expansion.predict(test)
        unseen = ~np.isin(test, placements)
        scores.append((truth(test) - mean)[unseen] / sd[unseen])
        r2.append(1 - np.mean((truth(test) - mean) ** 2) / truth(test).var())
    assert np.mean(r2) > (0.85 if count == 400 else 0.65)
    assert 0.8 < np.concatenate(scores).std() < 1.25
    assert 0.9 < np.mean(np.abs(np.concatenate(scores)) < 1.96) < 0.99


def test_evidence_finds_which_interactions_matter():
    rng = np.random.default_rng(3)
    placements, truth = world(8, rng, 500, sd=(1.0, 0.0, 0.7, 0.0))
    expansion = fit(placements, truth(placements) + 0.1 * rng.normal(size=500), 0.01)
    assert expansion.clusters == CLUSTERS[:3]
    points, lag1, lag2 = expansion.explained
    assert points > 0.3 and lag2 > 0.15
    assert lag1 < 0.02 and expansion.nugget < 0.02


@pytest.mark.parametrize(
    ("sd", "count", "kinds"),
    [((1.0, 0.0, 0.0, 0.0), 48, 1), ((1.0, 0.0, 0.0, 0.0), 300, 1), ((1.0, 0.8, 0.0, 0.0), 200, 2), ((1.0, 0.6, 0.5, 0.7), 400, 4)],
)
def test_the_evidence_chooses_how_many_kinds_of_cluster_there_are(sd, count, kinds):
    chosen, ours, best = [], [], []
    for seed in range(3):
        rng = np.random.default_rng([5, seed])
        placements, truth = world(6, rng, count, sd)
        quality = truth(placements) + 0.1 * rng.normal(size=count)
        test = [str(sample_local(6, rng)) for _ in range(300)]
        errors = {
            n: np.mean((fit(placements, quality, 0.01, clusters=CLUSTERS[:n]).landscape.value(test) - truth(test)) ** 2)
            for n in (1, 2, 3, 4)
        }
        expansion = fit(placements, quality, 0.01)
        chosen.append(len(expansion.clusters))
        ours.append(errors[chosen[-1]])
        best.append(min(errors.values()))
    assert sorted(chosen)[1] == kinds  # the median of three
    assert np.mean(ours) < 1.2 * np.mean(best)


def test_noisy_scores_count_less():
    rng = np.random.default_rng(0)
    placements, truth = world(5, rng, 200)
    noise = np.where(np.arange(200) % 2, 1e-4, 4.0)
    quality = truth(placements) + np.sqrt(noise) * rng.normal(size=200)
    test = [str(sample_local(5, rng)) for _ in range(300)]
    told = fit(placements, quality, noise).landscape.value(test)
    not_told = fit(placements, quality, noise.mean()).landscape.value(test)
    assert np.mean((told - truth(test)) ** 2) < 0.5 * np.mean((not_told - truth(test)) ** 2)


def test_draws_have_the_posterior_mean_and_sd():
    rng = np.random.default_rng(0)
    placements, truth = world(5, rng, 80)
    expansion = fit(placements, truth(placements) + 0.1 * rng.normal(size=80), 0.01)
    test = [str(sample_local(5, rng)) for _ in range(30)]
    draws = np.array([d.value(test) for d in expansion.draw(np.random.default_rng(1), 3000)])
    mean, sd = expansion.predict(test)
    expected = np.sqrt(sd**2 - expansion.nugget)
    assert np.allclose(draws.mean(0), mean, atol=5 * expected.max() / np.sqrt(3000))
    assert np.allclose(draws.std(0), expected, rtol=0.08)


def test_scored_placements_keep_what_the_expansion_cannot_say():
    rng = np.random.default_rng(0)
    placements, truth = world(5, rng, 300)
    odd = 0.7 * rng.normal(size=300)  # an effect of the whole placement
    quality = truth(placements) + odd + 0.05 * rng.normal(size=300)
    expansion = fit(placements, quality, 0.05**2)
    smoothed, sd = expansion.estimate(placements)
    assert np.mean((smoothed - truth(placements) - odd) ** 2) < 0.05**2 * 1.2
    assert 0.03 < sd.mean() < 0.07
    assert expansion.predict(placements)[1].mean() > 0.5


def items_world(seed, count=150, items=40, taste=0.5, noise=0.3, layers=5):
    """Placements, quality per item, and the true quality of any placement on all items there could be.

    Items differ in level and in their taste for each layer's mixer, which all placements that have it share; ``noise`` is one score's own.
    """
    rng = np.random.default_rng(seed)
    placements, truth = world(layers, rng, count, sd=(0.6, 0.3, 0.2, 0.1))
    weights = taste * rng.normal(size=(3 * layers, items))

    def own(names):
        return design(names, "FSKG", layers, ((0,),))[:, 1:] @ weights / np.sqrt(3 * layers)

    quality = truth(placements)[:, None] + rng.normal(size=items) + own(placements) + noise * rng.normal(size=(count, items))
    return placements, quality, truth


def test_an_item_lifts_all_placements_alike_or_by_their_layers():
    placements, quality, _ = items_world(0)
    shifted = fit(placements, quality.mean(1), 0.0, items=quality)
    tilted = quality + 3 * np.linspace(-1, 1, 40)  # levels of items: no difference between placements knows of them
    again = fit(placements, tilted.mean(1), 0.0, items=tilted)
    for against in (None, placements[0]):
        assert np.allclose(shifted.estimate(placements, against), again.estimate(placements, against), atol=1e-8)
    same = fit(placements, quality.mean(1), 0.0)
    assert np.allclose(same.weights, shifted.weights) and same.nugget == shifted.nugget  # the items say nothing about the mean
    assert np.allclose(shifted.item_weights.mean(axis=1), shifted.weights, atol=1e-8)


def test_shared_items_make_differences_uncertain_as_other_items_show():
    """95% intervals of differences, fitted on 40 items, against the truth over all items; with and without taste of the items."""
    for taste in (0.0, 0.6):
        inside, naive = [], []
        for seed in range(12):
            placements, quality, truth = items_world(seed, taste=taste)
            expansion = fit(placements, quality.mean(1), 0.0, items=quality)
            others = [str(sample_local(5, np.random.default_rng(seed + 100 + i))) for i in range(60)]
            names = [name for name in dict.fromkeys([*placements[1:31], *others]) if name != placements[0]]
            mean, sd = expansion.estimate(names, against=placements[0])
            error = np.abs(mean - (truth(names) - truth(placements[:1])))
            inside.append(np.mean(error < expansion.quantile(0.95) * sd))
            without = fit(placements, quality.mean(1), 0.3**2 / 40).estimate(names, against=placements[0])[1]
            naive.append(np.mean(error < 1.96 * without))
        assert 0.9 < np.mean(inside) <= 1.0
        assert taste == 0 or np.mean(naive) < np.mean(inside) - 0.15


def test_estimates_of_differences():
    placements, quality, _ = items_world(1)
    expansion = fit(placements, quality.mean(1), 0.0, items=quality)
    mean, sd = expansion.estimate(placements[:20], against=placements[3])
    level, _ = expansion.estimate(placements[:20])
    assert np.allclose(mean, level - level[3], atol=1e-8)
    assert mean[3] == sd[3] == 0 and (np.delete(sd, 3) > 0).all()
    assert 0 < expansion.item_share <= 1
    quiet = fit(*(lambda p, q, _: (p, q.mean(1), 0.0, None, CLUSTERS, q))(*items_world(1, noise=1e-3)))
    assert quiet.item_share < 0.5 * expansion.item_share  # what the expansion misses is then the placements', not the items'


def test_a_measurement_counts_for_as_much_as_is_the_placements_own():
    """What the expansion misses: noise of the items alone (the prediction stands), the placement's own alone (the measurement), half."""
    placements, quality, _ = items_world(1)
    expansion = fit(placements, quality.mean(1), 0.0, items=quality)
    assert (expansion.noise == 0).all() and expansion.nugget > 0
    latent = design(placements, "FSKG", 5, expansion.clusters) @ expansion.weights
    for share, weight in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)):
        mean = replace(expansion, item_share=share).estimate(placements)[0]
        assert np.allclose(mean, expansion.link.quality(latent + weight * (expansion.scored - latent)))
    assert np.abs(latent - expansion.scored).max() > 1e-3


def test_draws_for_other_items_spread_as_the_items_do():
    placements, quality, _ = items_world(2)
    expansion = fit(placements, quality.mean(1), 0.0, items=quality)
    names = placements[:10]
    spread = {
        other: np.array([d.value(names) for d in expansion.draw(np.random.default_rng(1), 2000, other_items=other)]).var(axis=0)
        for other in (False, True)
    }
    item_landscapes = design(names, "FSKG", 5) @ expansion.item_weights
    assert np.allclose(spread[True] - spread[False], item_landscapes.var(axis=1, ddof=1) / 40, rtol=0.2)


def test_intervals_hold_for_held_out_placements():
    """The landscape of all 1,024 placements of five layers, with effects of range beyond the expansion's: few, some and many scored."""
    everything = [str(p) for p in exhaustive(5)]
    for count in (64, 128, 256):
        inside = []
        for seed in range(10):
            rng = np.random.default_rng(seed)
            _, truth = world(5, rng, 20, sd=(0.6, 0.3, 0.1, 0.1))
            quality = truth(everything) + 0.05 * rng.normal(size=1024)
            order = rng.permutation(1024)
            scored, rest = ([everything[i] for i in part] for part in (order[:count], order[count:]))
            mean, sd = fit(scored, quality[order[:count]], 0.0, "FSKG").predict(rest)
            inside.append(np.mean(np.abs(quality[order[count:]] - mean) < 1.96 * sd))
        assert 0.9 < np.mean(inside) < 0.98


def compounding(seed, count, layers=8, items=0):
    """Placements, their qualities (per item, where asked for) and every placement's: a layer multiplies what the others have lost."""
    rng = np.random.default_rng(seed)
    placements, exponent = world(layers, rng, count, sd=(0.7, 0.2, 0.1, 0.1))

    def truth(names):
        return -np.exp(exponent(names) - 2)

    if not items:
        return placements, truth(placements), truth
    levels, own = rng.normal(size=items), 0.1 * rng.normal(size=(count, items))
    return placements, truth(placements)[:, None] * (1 + own) + levels, truth


def test_losses_that_compound_are_found_and_others_are_not_bent():
    errors = {}
    for seed in range(4):
        placements, quality, truth = compounding(seed, 80)
        test = [str(sample_local(8, np.random.default_rng(seed + 50 + i))) for i in range(200)]
        for reaches in (fitting.REACHES, fitting.REACHES[:1]):
            expansion = fit(placements, quality, 0.0, reaches=reaches)
            mean, sd = expansion.predict(test)
            errors.setdefault(len(reaches), []).append(np.mean((mean - truth(test)) ** 2) / truth(test).var())
            if len(reaches) > 1:
                assert np.isfinite(expansion.link.reach)
                assert np.mean(np.abs(truth(test) - mean) < 1.96 * sd) > 0.85
        placements, straight = world(8, np.random.default_rng(seed), 80)
        assert np.isinf(fit(placements, straight(placements), 0.0).link.reach)
    assert np.mean(errors[len(fitting.REACHES)]) < 0.7 * np.mean(errors[1])


def test_a_bent_landscape_is_optimised_and_drawn_as_it_is_predicted():
    placements, quality, _ = compounding(0, 80, layers=5)
    expansion = fit(placements, quality, 0.0)
    assert np.isfinite(expansion.link.reach)
    everything = [str(p) for p in exhaustive(5)]
    cost, (mean, sd) = placement_costs(everything), expansion.predict(everything)
    for row in frontier(expansion).itertuples():
        assert row.predicted == pytest.approx(mean[cost <= row.budget + 1e-9].max())
    draws = np.array([d.value(everything) for d in expansion.draw(np.random.default_rng(0), 2000)])
    assert np.allclose(np.median(draws, axis=0), mean, atol=0.2 * sd.max())
    assert expansion.link.latent(expansion.link.quality(np.array([-3.0, 0.1]))) == pytest.approx([-3.0, 0.1])


def test_differences_in_a_bent_world():
    """An item's level does not count though the scale is bent, and intervals hold the truth."""
    inside = []
    for seed in range(8):
        placements, quality, truth = compounding(seed, 120, items=30)
        expansion = fit(placements, quality.mean(1), 0.0, items=quality)
        assert np.isfinite(expansion.link.reach)
        names = [str(sample_local(8, np.random.default_rng(seed + 100 + i))) for i in range(60)]
        mean, sd = expansion.estimate(names, against=placements[0])
        inside.append(np.mean(np.abs(mean - (truth(names) - truth(placements[:1]))) < expansion.quantile(0.95) * sd))
        tilted = quality + 3 * np.linspace(-1, 1, 30)
        again = fit(placements, tilted.mean(1), 0.0, items=tilted)
        assert np.allclose(expansion.estimate(names, placements[0]), again.estimate(names, placements[0]), atol=1e-8)
    assert np.mean(inside) > 0.85


def test_scale_and_shift_do_not_matter():
    rng = np.random.default_rng(0)
    placements, truth = world(5, rng, 100)
    y = truth(placements) + 0.1 * rng.normal(size=100)
    a, b = fit(placements, y, 0.01), fit(placements, 1e-3 * y - 7, 1e-8)
    test = [str(sample_local(5, rng)) for _ in range(10)]
    assert np.allclose(a.predict(test)[0] * 1e-3 - 7, b.predict(test)[0], atol=1e-8)
    assert np.allclose(a.predict(test)[1] * 1e-3, b.predict(test)[1], rtol=1e-4)


def test_items_of_other_scores_are_refused():
    placements, quality, _ = items_world(0, items=4)
    for items, line in (
        (quality[1:], "items of shape .149, 4. for 150 placements"),
        (quality[:, :1], "two items or more"),
        (quality + 1, "not the mean over items"),
    ):
        with pytest.raises(ValueError, match=line):
            fit(placements, quality.mean(1), 0.0, items=items)


@pytest.mark.parametrize(
    ("placements", "quality", "variance", "line"),
    [
        (["FS"] * 1 + ["SF"] * 1, [1, 2], 0.1, "2 placements are too few"),
        ([p + "F" for p in map(str, exhaustive(2))], np.arange(16), 0.1, "mixer S is never seen at layer 2"),
        (["FF"] * 12, np.arange(12), 0.1, "FF is given twice"),
        ([*map(str, exhaustive(2))], np.arange(15), 0.1, "16 placements but quality of shape"),
        ([*map(str, exhaustive(2))], np.full(16, np.nan), 0.1, "finite"),
        ([*map(str, exhaustive(2))], np.arange(16), -0.1, "not negative"),
        ([*map(str, exhaustive(2))][:-1] + ["FFF"], np.arange(16), 0.1, "FFF has 3 layers where 2"),
    ],
)
def test_bad_input_is_named(placements, quality, variance, line):
    with pytest.raises(ValueError, match=line):
        fit(placements, np.asarray(quality, float), variance)


def test_judge_within_bands():
    cost = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 10])
    truth = np.arange(10.0)
    table = judge(truth, truth[::-1], cost, judging.cost_bands(cost, 2))
    assert list(table["n"]) == [10, 5, 5]
    assert np.allclose(table["tau"], -1)
    assert np.allclose(table["regret"], [9, 4, 4])
    assert np.allclose(judge(truth, truth, cost, judging.cost_bands(cost, 2))[["r2", "tau", "regret"]], [[1, 1, 0]] * 3)
    assert judge(truth, truth, cost, [(0.0, 1.5)])["r2"].isna().all()


def test_expansion_beats_the_baselines_where_there_are_interactions():
    rng = np.random.default_rng(0)
    placements, truth = world(6, rng, 500, sd=(0.6, 0.6, 0.3, 0.3))
    y, cost = truth(placements), np.array([p.count("F") + 0.5 * p.count("S") for p in placements])
    noisy = y + 0.1 * rng.normal(size=500)
    noise = np.full(500, 0.01)
    held = evaluate(placements[::2], noisy[::2], noise[::2], placements[1::2], y[1::2], cost[1::2], rng)
    nested = cross_validate(placements, noisy, noise, cost, rng)
    for table in (held, nested):
        whole = table.groupby("model")["r2"].first()
        assert whole["cluster expansion"] > whole.drop(["cluster expansion", "all clusters"]).max() + 0.1
        assert whole.drop(["cluster expansion", "all clusters"]).min() > 0.1  # the baselines are given a fair chance
        assert set(table["model"]) == set(judging.MODELS)


def test_baselines_are_not_worse_without_interactions():
    rng = np.random.default_rng(0)
    placements, truth = world(6, rng, 200, sd=(1, 0, 0, 0))
    y = truth(placements) + 0.3 * rng.normal(size=200)
    whole = cross_validate(placements, y, np.full(200, 0.09), np.ones(200), rng).groupby("model")["r2"].first()
    assert abs(whole["cluster expansion"] - whole["additive"]) < 0.03
    assert abs(whole["ridge one-hot"] - whole["additive"]) < 0.03
