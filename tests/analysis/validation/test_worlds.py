from dataclasses import replace

import numpy as np
import pytest

from analysis.statistics.ranks import kendall_tau_b, tau_matrix
from analysis.validation.worlds import WORLDS, World, observed_tau, realised_tau, simulate, true_tau
from supernet.placement import Placement


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_is_a_complete_run(name):
    world = WORLDS[name]
    scores, population = simulate(world, np.random.default_rng(0))
    assert scores.quality.shape == (len(world.correlation), world.placements, world.items) and np.isfinite(scores.quality).all()
    assert len(set(scores.placements)) == world.placements and len(set(scores.tasks)) == world.tasks
    assert [Placement(p).cost() for p in scores.placements] == pytest.approx(list(scores.cost))
    low, high = (edge * world.layers for edge in world.band)
    assert (scores.cost >= low).all() and (scores.cost <= high).all()
    assert population.shape[1] == (4**world.layers if world.layers <= 5 else world.placements)
    again, _ = simulate(world, np.random.default_rng(0))
    assert (again.quality == scores.quality).all() and again.placements == scores.placements


@pytest.mark.parametrize("world", [World("w", placements=4000), World("slope", placements=4000, cost_slope=2.0)], ids=lambda w: w.name)
def test_the_planted_tau_is_there(world):
    _, population = simulate(world, np.random.default_rng(1))
    assert realised_tau(population) == pytest.approx(true_tau(world, np.random.default_rng(2)), abs=0.035)


def test_observed_tau_is_what_many_placements_show():
    world = World("w", placements=4000, items=20, noise=3.0, shared=2.0)
    scores, _ = simulate(world, np.random.default_rng(3))
    assert tau_matrix(scores.quality.mean(axis=2))[-1] == pytest.approx(observed_tau(world), abs=0.03)


def test_levels_plant_ties_and_all_is_the_population():
    _, coarse = simulate(replace(WORLDS["ties"], levels=0.5), np.random.default_rng(0))
    assert len(np.unique(coarse[-1])) < 20
    scores, population = simulate(replace(WORLDS["all"], noise=0, shared=0), np.random.default_rng(0))
    assert kendall_tau_b(scores.quality[-1].mean(axis=1), population[-1]) == pytest.approx(1)
