import numpy as np
import pytest
from scipy import stats

from analysis.statistics import intervals


def test_of_mean_is_the_t_interval():
    values = np.random.default_rng(0).normal(size=(4, 3))
    mean, low, high = intervals.of_mean(values, 0.9, axis=0)
    expected = stats.t.interval(0.9, 3, loc=values[:, 1].mean(), scale=stats.sem(values[:, 1]))
    assert (low[1], high[1]) == pytest.approx(expected) and mean[1] == pytest.approx(values[:, 1].mean())
    assert np.isnan(intervals.of_mean(values[:1], 0.95, axis=0)[1]).all()


@pytest.mark.parametrize("degrees", [1, 5, 200, np.inf])
def test_quantile_holds_the_level(degrees):
    wide = intervals.quantile(0.9, degrees)
    assert stats.t.cdf(wide, degrees) - stats.t.cdf(-wide, degrees) == pytest.approx(0.9)
