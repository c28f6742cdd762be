import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.cost import placement_costs
from analysis.optimise import Constraints, at_budget, best_at, frontier
from analysis.optimise.next_round import predicted_gain, propose
from analysis.optimise.over_training import stability
from analysis.surrogate import Landscape, fit
from supernet.placement import COST, exhaustive


def random_landscape(layers, rng, letters="FSKG"):
    """Random potentials that, like a cluster expansion's, do not look before the first layer."""
    potentials = rng.normal(size=(layers, *[len(letters)] * 3))
    potentials[0] = potentials[0, 0, 0]
    if layers > 1:
        potentials[1] = potentials[1, 0]
    return Landscape(letters, rng.normal(), potentials)


def allowed(placement, c):
    layers = len(placement)
    runs = [len(list(run)) for _, run in itertools.groupby(placement)]
    return (
        all(placement.count(m) >= n for m, n in c.at_least.items())
        and all(placement[i] == m for i, m in c.fixed.items())
        and not set(placement) & set(c.forbidden)
        and not any(placement[i] in m for i, m in c.forbidden_at.items())
        and not (c.no_singletons and any(placement.count(m) == 1 for m in set(placement)))
        and not (c.no_isolated and (layers == 1 or min(runs) == 1))
    )


def brute_force(landscape, coefficients, k, constraints):
    """{budget in cents: the k best (value, placement), best first} at every budget, from all placements."""
    placements = [p for p in exhaustive(len(landscape.potentials), landscape.letters) if allowed(p, constraints)]
    if not placements:
        return {}
    value = landscape.value(placements)
    cents = np.round(placement_costs(placements, coefficients) * 100).astype(int)
    answer, best = {}, []
    order = np.lexsort((-value, cents))
    for cost, group in itertools.groupby(order, key=lambda i: cents[i]):
        best = sorted(best + [(-value[i], placements[i]) for i in group])[:k]
        answer[int(cost)] = [(-v, p) for v, p in best]
    return answer


def assert_equal_to_brute_force(landscape, coefficients, k, constraints):
    truth = brute_force(landscape, coefficients, k, constraints)
    if not truth:
        with pytest.raises(ValueError, match="infeasible|loosen"):
            frontier(landscape, coefficients, k, constraints)
        return
    table = frontier(landscape, coefficients, k, constraints)
    assert np.allclose(landscape.value(list(table["placement"])), table["predicted"], atol=1e-9)
    assert np.allclose(placement_costs(list(table["placement"]), coefficients), table["cost"])
    assert (table["cost"] <= table["budget"] + 1e-9).all()
    listed: dict[int, list] = {}
    for row in table.itertuples():
        listed.setdefault(round(row.budget * 100), []).append(row)
    now, previous = None, None
    for cents, expected in truth.items():  # every cost that occurs; at budgets between them nothing can change
        assert (cents in listed) == (expected != previous)
        now = listed.get(cents, now)
        assert [row.rank for row in now] == list(range(1, len(expected) + 1))
        assert [row.placement for row in now] == [p for _, p in expected]
        previous = expected
    assert set(listed) <= set(truth)


@st.composite
def constraint_sets(draw, layers, letters):
    some = st.dictionaries(st.integers(0, layers - 1), st.sampled_from(letters), max_size=2)
    return Constraints(
        at_least=draw(st.dictionaries(st.sampled_from(letters), st.integers(0, min(3, layers)), max_size=2)),
        fixed=draw(some),
        forbidden=draw(st.sampled_from(["", "", letters[0], letters[-1]])),
        forbidden_at=draw(some),
        no_singletons=draw(st.booleans()),
        no_isolated=draw(st.booleans()),
    )


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7]), st.sampled_from(["FSKG", "FSK", "FG", "FSKGX"]))
def test_equals_brute_force_under_any_constraints(data, layers, seed, k, letters):
    rng = np.random.default_rng(seed)
    layers = min(layers, 4) if len(letters) == 5 else layers
    coefficients = dict(zip(letters, np.round(rng.integers(1, 130, size=len(letters)) * 0.01, 2), strict=True))
    constraints = data.draw(constraint_sets(layers, letters))
    assert_equal_to_brute_force(random_landscape(layers, rng, letters), coefficients, k, constraints)


@pytest.mark.parametrize("constraints", [Constraints(), Constraints(at_least={"F": 2}, forbidden_at={3: "K"}, no_singletons=True)])
def test_equals_brute_force_at_seven_layers(constraints):
    assert_equal_to_brute_force(random_landscape(7, np.random.default_rng(1)), COST, 4, constraints)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("constraints", [Constraints(), Constraints(no_isolated=True), Constraints({"F": 3}, {0: "S"})])
def test_equals_brute_force_at_eight_layers(seed, constraints):
    assert_equal_to_brute_force(random_landscape(8, np.random.default_rng(seed)), COST, 10, constraints)


def test_equal_values_give_distinct_placements_and_the_cheapest_first():
    table = frontier(Landscape("FG", 1.0, np.zeros((4, 2, 2, 2))), {"F": 1.0, "G": 0.1}, k=16)
    last = at_budget(table, 4.0)
    assert set(last["placement"]) == set(exhaustive(4, "FG"))
    assert last["cost"].is_monotonic_increasing
    assert len(frontier(Landscape("FG", 1.0, np.zeros((4, 2, 2, 2))), {"F": 1.0, "G": 0.1})) == 1


def test_budgets_between_the_rows_and_below_the_cheapest():
    table = frontier(random_landscape(4, np.random.default_rng(0)), k=3)
    budgets = table["budget"].unique()
    between = (budgets[0] + budgets[1]) / 2
    assert (at_budget(table, between)["budget"] == budgets[0]).all()
    with pytest.raises(ValueError, match="budget 0.5 is infeasible: the cheapest placement costs 0.56"):
        at_budget(table, 0.5)


@pytest.mark.parametrize(
    ("constraints", "coefficients", "k", "line"),
    [
        (Constraints(at_least={"X": 1}), COST, 1, "unknown mixer X"),
        (Constraints(fixed={9: "F"}), COST, 1, "layer 9: layers run from 0 to 3"),
        (Constraints(at_least={"F": 5}), COST, 1, "at least 5 layers of F is infeasible"),
        (Constraints(at_least={"F": 3, "S": 2}), COST, 1, "loosen"),
        (Constraints(fixed={1: "F"}, forbidden="F"), COST, 1, "no mixer is left for layer 1"),
        (Constraints(), {**COST, "S": 0.4837}, 1, "0.4837 of mixer S"),
        (Constraints(), {"F": 1.0}, 1, "no cost coefficient for mixer S"),
        (Constraints(), COST, 0, "k = 0"),
    ],
)
def test_bad_input_is_named(constraints, coefficients, k, line):
    with pytest.raises(ValueError, match=line):
        frontier(random_landscape(4, np.random.default_rng(0)), coefficients, k, constraints)


def test_memory_is_bounded():
    with pytest.raises(ValueError, match="smaller k"):
        frontier(random_landscape(48, np.random.default_rng(0)), COST, 50, Constraints(at_least={"F": 20, "S": 20}))


@pytest.fixture(scope="module")
def scored():
    """A six-layer world of which 150 placements were scored with noise."""
    rng = np.random.default_rng(5)
    truth = random_landscape(6, rng)
    everything = list(exhaustive(6))
    some = [str(everything[i]) for i in rng.choice(len(everything), size=150, replace=False)]
    return truth, fit(some, truth.value(some) + 0.1 * rng.normal(size=150), 0.01)


def test_stability_is_a_distribution_over_mixers(scored):
    _, expansion = scored
    table = stability(expansion, [2.0, 4.0], np.random.default_rng(0), draws=20)
    assert len(table) == 2 * 6
    assert np.allclose(table[list("FSKG")].sum(axis=1), 1)
    best = at_budget(frontier(expansion), 4.0)["placement"].iloc[0]
    assert "".join(table[table["budget"] == 4.0]["mixer"]) == best
    sure = np.mean([row[row["mixer"]] for _, row in table.iterrows()])
    assert sure > 0.4  # by chance 0.25


def test_proposals_are_new_and_better_than_random(scored):
    truth, expansion = scored
    test_set = [str(p) for p in exhaustive(6)][::7]
    table = propose(expansion, 40, np.random.default_rng(0), exclude=[*expansion.placements, *test_set])
    assert len(table) == 40 and table["placement"].is_unique
    assert not set(table["placement"]) & {*expansion.placements, *test_set}
    assert (table["source"] == "frontier").sum() >= 25
    drawn = table[table["source"] == "frontier"]["placement"].tolist()
    other = table[table["source"] != "frontier"]["placement"].tolist()
    assert len(other) == 40 - len(drawn)
    assert truth.value(drawn).mean() > truth.value(other).mean() + 1
    again = propose(expansion, 40, np.random.default_rng(0), exclude=[*expansion.placements, *test_set])
    assert table.equals(again)


def test_proposals_include_the_best_at_any_cost():
    rng = np.random.default_rng(0)
    everything = [str(p) for p in exhaustive(5)]
    prized = "FGFGS"  # far better than anything, at a cost of 2.76 of 5: the frontier does not change beyond it
    value = np.array([-float(sum(a != b for a, b in zip(p, prized, strict=True))) for p in everything])
    some = [i for i in rng.choice(len(everything), 200, replace=False) if everything[i] != prized]
    expansion = fit([everything[i] for i in some], value[some], 1e-4)
    assert prized in set(propose(expansion, 8, rng, exclude=expansion.placements)["placement"])


def test_proposals_stop_when_the_placements_run_out():
    everything = [str(p) for p in exhaustive(3)]
    expansion = fit(everything, np.random.default_rng(0).normal(size=64), 0.0)
    assert len(propose(expansion, 10, np.random.default_rng(0), exclude=everything[:-2])) <= 2


def test_search_goes_on_while_there_is_gain_and_stops_once_the_frontier_is_scored(scored):
    truth, expansion = scored
    before = predicted_gain(expansion, np.random.default_rng(0))
    assert before.gain > 0 and not before.stop
    more = sorted({*expansion.placements, *frontier(expansion)["placement"]})
    for _ in range(5):  # score what is predicted to be best until that is known
        expansion = fit(more, truth.value(more), 1e-4)
        after = predicted_gain(expansion, np.random.default_rng(0))
        if after.stop:
            break
        more = sorted({*more, *frontier(expansion)["placement"]})
    assert after.stop and after.gain < before.gain / 5


def test_a_budget_that_is_a_cost_but_for_rounding_admits_it():
    table = pd.DataFrame({"rank": 1, "budget": [0.1, 0.3, 0.5], "placement": ["A", "B", "C"]})
    assert list(best_at(table, [0.3, 0.3 - 1e-12, 0.3 - 1e-6, 0.1 + 0.2])) == ["B", "B", "A", "B"]
