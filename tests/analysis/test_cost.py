import numpy as np
import pandas as pd
import pytest

from analysis.cost import placement_costs, regress
from supernet.placement import COST, Placement, sample_counts


def bench(rng, rows=40, layers=24, noise=0.02):
    seconds = {"F": 4e-4, "S": 2e-4, "K": 1e-4, "G": 6e-5}
    placements = [str(sample_counts(layers, rng)) for _ in range(rows)]
    time = np.array([sum(seconds[c] for c in p) for p in placements]) * np.exp(noise * rng.normal(size=rows))
    return pd.DataFrame({"placement": placements, "tokens_per_second": 1 / time})


def test_published_costs():
    assert placement_costs(["F" * 48])[0] == 48
    preset = "F" * 12 + "S" * 26 + "K" * 6 + "G" * 4
    assert round(placement_costs([preset])[0], 1) == 26.3
    some = [str(sample_counts(7, np.random.default_rng(i))) for i in range(20)]
    assert np.array_equal(placement_costs(some), [Placement(p).cost() for p in some])
    with pytest.raises(ValueError, match="mixer X"):
        placement_costs(["FX"])


def test_regression_finds_the_planted_speeds():
    model = regress(bench(np.random.default_rng(0)), np.random.default_rng(1))
    assert model.coefficients["F"] == 1
    for mixer, planted in {"S": 0.5, "K": 0.25, "G": 0.15}.items():
        assert model.coefficients[mixer] == pytest.approx(planted, abs=0.03)
        assert round(model.coefficients[mixer] * 100) == pytest.approx(model.coefficients[mixer] * 100)
    assert model.r2 > 0.95 and 0.005 < model.error < 0.04 and model.rows == 40
    assert model.speedup(["F" * 24, "G" * 24]) == pytest.approx([1, 6.7], rel=0.1)


def test_error_is_held_out():
    rng = np.random.default_rng(0)
    table = bench(rng)
    table["tokens_per_second"] = rng.permutation(table["tokens_per_second"])  # nothing to learn
    assert regress(table, np.random.default_rng(1)).r2 < 0.2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t.drop(columns="tokens_per_second"), "lacks column tokens_per_second"),
        (lambda t: t.assign(tokens_per_second=0.0), "must be positive"),
        (lambda t: t.assign(placement=["F" * 5, *t["placement"][1:]]), r"\[5, 24\] layers"),
        (lambda t: t.head(4), "measure more placements"),
        (lambda t: t.assign(placement=["FG" * 12] * len(t)), "do not determine 2 mixers"),
        (lambda t: t.assign(placement=[p.replace("F", "S") for p in t["placement"]]), "never uses F"),
    ],
)
def test_bad_tables_are_named(change, line):
    with pytest.raises(ValueError, match=line):
        regress(change(bench(np.random.default_rng(0))), np.random.default_rng(1))


def test_default_costs_are_the_published_ones():
    assert COST == {"F": 1.0, "S": 0.48, "K": 0.21, "G": 0.14}
