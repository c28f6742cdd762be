"""The interval of a chosen optimum, and the worlds that it comes from."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.optimise.choice import choose
from analysis.optimise.optimism import optimum
from analysis.surrogate.design import design
from analysis.surrogate.fitting import fit
from analysis.surrogate.redrawn import redrawn
from analysis.validation.chosen_optima import PLANTED, coverage_of_optima, planted


@pytest.fixture(scope="module")
def expansion():
    names, quality, _ = planted(PLANTED["pairs"], 8, 60, 24, np.random.default_rng(3))
    return fit(names, quality.mean(axis=1), 0.0, items=quality)


def test_fitting_a_world_again_is_what_fit_would_do(expansion):
    """The fast path against the whole fit of the same scores, with the prior variances and the link held."""
    world = next(redrawn(expansion, np.random.default_rng(0), 1, few=0))
    again = world.refitted
    features = design(again.placements, again.letters, again.layers, again.clusters)
    precision = again.root @ again.root.T  # of the posterior: data and prior
    weight = 1 / (again.noise + again.nugget)
    middle = again.scored.mean()
    weights = np.linalg.solve(precision, features.T @ (weight * (again.scored - middle)))
    weights[0] += middle
    np.testing.assert_allclose(again.weights, weights, atol=1e-9)
    np.testing.assert_allclose(again.item_weights.mean(axis=1), again.weights, atol=1e-9)  # linear in the items
    np.testing.assert_allclose(again.items.mean(axis=1), again.scored)


def test_with_few_placements_all_is_fitted_again(expansion):
    """The same scores by ``fit`` itself: clusters, link and variances are those of the world's own scores."""
    fast, whole = (next(redrawn(expansion, np.random.default_rng(0), 1, few=few)) for few in (0, 60))
    scored = fast.refitted
    quality, slope = scored.link.quality(scored.scored), scored.link.slope(scored.scored)
    items = quality[:, None] + slope[:, None] * (scored.items - scored.scored[:, None])
    again = fit(list(scored.placements), items.mean(axis=1), 0.0, items=items)
    assert whole.refitted.clusters == again.clusters and whole.refitted.nugget == pytest.approx(again.nugget)
    np.testing.assert_allclose(whole.refitted.weights, again.weights, atol=1e-9)
    assert np.array_equal(fast.weights, whole.weights)  # the truth is the same


def test_worlds_scatter_about_what_was_fitted(expansion):
    """Coefficients refitted in worlds lie about the true ones of those worlds, as far off as the posterior says."""
    worlds = list(redrawn(expansion, np.random.default_rng(1), 300, few=0))
    names = list(expansion.placements[:20])
    truth = np.array([world.quality(names) for world in worlds])
    sd = np.array([world.refitted.estimate(names)[1] for world in worlds])
    z = (truth - np.array([world.refitted.estimate(names)[0] for world in worlds])) / sd
    assert np.abs(z.mean(axis=0)).max() < 0.35 and 0.75 < z.std() < 1.3  # placements that nobody chose are predicted without bias
    assert worlds[0].quality(["FSKGFSKG"]) == worlds[0].quality(["FSKGFSKG"])  # asked again, it answers the same


def test_the_chosen_one_is_too_good_and_the_correction_says_so(expansion):
    """With much noise the choice is mostly luck: the corrected quality lies under the predicted one."""
    world = replace(PLANTED["additive"], noise=0.4, clusters=(0.004, 0.0, 0.0, 0.0))
    names, quality, _ = planted(world, 8, 60, 24, np.random.default_rng(5))
    table = optimum(fit(names, quality.mean(axis=1), 0.0, items=quality), [3.0, 5.0], worlds=40, rng=np.random.default_rng(0))
    assert (table["corrected"] < table["predicted"]).all()
    assert (table["corrected_lo"] < table["corrected"]).all() and (table["corrected"] < table["corrected_hi"]).all()


def test_it_is_the_choice_of_the_presets_and_seeded(expansion):
    a, b = (optimum(expansion, [2.0, 4.0, 8.0], worlds=5, rng=np.random.default_rng(7)) for _ in range(2))
    assert a.equals(b)
    chosen = choose(expansion, [2.0, 4.0, 8.0])
    assert list(a["placement"]) == list(chosen["placement"]) and a["predicted"].tolist() == chosen["predicted"].tolist()
    full = a[a["placement"] == "F" * 8]
    assert (full["difference_corrected_hi"] == full["difference_corrected_lo"]).all()  # all-FA against itself


def test_without_items_the_noise_is_drawn():
    names, quality, _ = planted(PLANTED["additive"], 8, 60, 24, np.random.default_rng(3))
    known = fit(names, quality.mean(axis=1), 0.02 / 24)
    table = optimum(known, [4.0], worlds=6, rng=np.random.default_rng(0))
    assert np.isfinite(table.drop(columns="placement").to_numpy(float)).all()


def test_coverage_counts():
    found = coverage_of_optima(PLANTED["additive"], 6, 40, 12, 2, 0, worlds=4).set_index("interval")
    assert list(found.index) == ["plain", "corrected"] and (found[["coverage", "below", "above"]].sum(axis=1) > 0.99).all()
