import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supernet.placement import COST, LETTERS, Placement, exhaustive, sample_band, sample_counts, sample_local

placements = st.text(alphabet=LETTERS, min_size=1, max_size=48)


@given(placements)
def test_text_survives_and_counts_add_up(text):
    placement = Placement(text)
    assert str(placement) == text and Placement(str(placement)) == placement
    assert sum(placement.counts().values()) == len(text)
    assert placement.cost() == pytest.approx(sum(COST[letter] for letter in text))


@given(placements, st.randoms(use_true_random=False))
def test_cost_depends_on_counts_alone(text, random):
    shuffled = list(text)
    random.shuffle(shuffled)
    assert Placement("".join(shuffled)).cost() == Placement(text).cost()  # exactly: bands and ties rely on it


def test_presets_of_the_paper_cost_what_their_names_say():
    for counts, cost in {(12, 26, 6, 4): 26.3, (3, 25, 4, 16): 18.1, (0, 16, 13, 19): 13.1, (0, 10, 5, 33): 10.5}.items():
        assert Placement("".join(c * n for c, n in zip(LETTERS, counts, strict=True))).cost() == pytest.approx(cost, abs=0.06)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Placement(""), "non-empty"),
        (lambda: Placement("FXG"), "unknown mixer X: choose from F, S, K, G"),
        (lambda: Placement("FFF", layers=5), "has 3 layers, the model has 5"),
        (lambda: Placement("FQ", letters="FQ").cost(), "no cost coefficient for mixer Q"),
        (lambda: sample_band(5, 6.0, 7.0, np.random.default_rng(0)), "no placement of 5 layers costs between 6.0 and 7.0"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_exhaustive_gives_every_placement_once_in_order(layers):
    found = list(exhaustive(layers))
    assert found == ["".join(p) for p in itertools.product(LETTERS, repeat=layers)]


@pytest.mark.parametrize("sampler", [sample_local, sample_counts, lambda n, rng: sample_band(n, 1.5, 2.5, rng)])
def test_samplers_are_functions_of_the_generator(sampler):
    draws = [[sampler(5, rng) for _ in range(50)] for rng in (np.random.default_rng(3), np.random.default_rng(3))]
    assert draws[0] == draws[1]
    assert all(isinstance(p, Placement) and len(p) == 5 for p in draws[0])


def test_counts_sampler_is_uniform_over_compositions_and_then_shuffles():
    rng, n = np.random.default_rng(0), 20_000
    drawn = Counter(sample_counts(3, rng) for _ in range(n))
    compositions = Counter()
    for placement, count in drawn.items():
        compositions["".join(sorted(placement))] += count
    assert len(compositions) == 20  # C(3 + 3, 3)
    expected = n / 20
    assert sum((c - expected) ** 2 / expected for c in compositions.values()) < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    orders = [drawn["".join(p)] for p in itertools.permutations("FSK")]
    assert min(orders) > 0.6 * expected / 6


def test_band_sampler_is_uniform_over_the_band_and_keeps_its_borders():
    inside = [p for p in exhaustive(4) if 1.00 <= p.cost() <= 1.50]
    rng, n = np.random.default_rng(0), 200 * len([*exhaustive(4)])
    drawn = Counter(sample_band(4, 1.00, 1.50, rng) for _ in range(n))
    assert set(drawn) == set(inside)
    expected = n / len(inside)
    statistic = sum((drawn[p] - expected) ** 2 / expected for p in inside)
    freedom = len(inside) - 1
    assert statistic < freedom + 3.3 * np.sqrt(2 * freedom)
