"""What is measured of a machine."""

import itertools

import pytest
import torch

from experiments import machine


@pytest.mark.parametrize(("tick", "products"), [(0.01, 10), (0.3, 4), (5.0, 1)])
def test_the_matmul_rate_of_a_slow_machine_takes_no_longer_than_one_product_more(monkeypatch, tick, products):
    """A clock that moves by ``tick`` whenever it is looked at: at the start, before each product but the first, and at the end."""
    clock = itertools.count()
    monkeypatch.setattr(machine.time, "perf_counter", lambda: tick * next(clock))
    assert machine.matmul_rate("cpu", torch.float32) == pytest.approx(products * 2 * 1024**3 / (tick * next(clock) - tick), rel=1e-9)
