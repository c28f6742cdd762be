"""The decode benchmark at a small size: its columns, its batches, and costs that come back from planted speeds."""

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import roofline
from experiments.bench.decode import costs, filled, measure, sample, sequence_bytes, write
from supernet.config import SupernetConfig
from supernet.decoder import Supernet

SMALL = SupernetConfig(layers=3, hidden=16, ffn=24, heads=2, kv_heads=1, head_dim=8, vocab=20, window=8)


def test_the_table(tmp_path):
    table = measure(SMALL, "cpu", (12, 24), 2**-14, count=20, repeats=2, steps=2, dtype=torch.float32)
    assert list(table) == [
        "placement",
        "context",
        "batch",
        "tokens_per_s",
        "ratio",
        "ratio_lo",
        "ratio_hi",
        "roofline",
        "device",
        "kernels",
    ]
    assert table.groupby("context").size().tolist() == [20, 20]
    assert ((table["ratio_lo"] <= table["ratio"]) & (table["ratio"] <= table["ratio_hi"])).all()
    for row in table.itertuples():
        needs = sequence_bytes(SMALL, row.placement, row.context, torch.float32)
        assert row.batch == max(1, 2**16 // needs)
    assert (table.loc[table["placement"] == "FFF", "roofline"] == 1).all()
    write(table.assign(ratio=1.0), tmp_path / "it")
    assert len(pd.read_csv(tmp_path / "it.csv")) == 40
    assert (pd.read_csv(tmp_path / "it-costs.csv")["cost"] == 1).all()


def test_bytes_are_those_that_decoding_takes_and_the_roofline_counts():
    shapes = roofline.Shapes.of(vars(SMALL))
    for placement in ("FFF", "SKG"):
        states = filled(Supernet(SMALL), placement, 12, 1)
        assert states.nbytes() == sequence_bytes(SMALL, placement, 12, torch.float32)
        assert states.nbytes() == sum(roofline.kept(shapes, letter, 12, size=4) for letter in placement)


def test_planted_costs_come_back():
    placements = sample(6, 24, np.random.default_rng(0))
    planted = {"F": 1.0, "S": 0.5, "K": 0.3, "G": 1.4}
    ratio = [6 / sum(planted[letter] for letter in p) for p in placements]
    found = costs(pd.DataFrame({"placement": placements, "context": 64, "tokens_per_s": 100.0, "ratio": ratio}))
    assert dict(zip(found["mixer"], found["cost"], strict=True)) == pytest.approx(planted)
    assert found["error"].max() < 1e-9
