"""The roofline against hand counts, against the torch modules' own sizes, and against the table of the published presets."""

import numpy as np
import pytest

from analysis.cost import UNIT, placement_costs
from analysis.roofline import (
    APRIEL_15B,
    DEVICES,
    Device,
    Shapes,
    coefficients,
    device,
    kept,
    largest_batch,
    mixer_weights,
    moved,
    ratio,
    read,
    resident,
    step,
    token_flops,
)
from analysis.roofline.model_card import PRESETS, published
from supernet.placement import sample_counts

SMALL = Shapes(layers=2, hidden=8, ffn=16, heads=2, kv_heads=1, head_dim=4, vocab=10, window=6)


def test_hand_counts():
    assert mixer_weights(SMALL, "F") == 8 * 8 + 2 * 8 * 4 + 8 * 8  # q, k and v, o
    assert [kept(SMALL, letter, 10) for letter in "FS"] == [2 * 4 * 10 * 2, 2 * 4 * 6 * 2]
    assert kept(SMALL, "K", 10) == 2 * 4 * 4 * 4 + 3 * 3 * 8 * 2
    assert kept(SMALL, "G", 10) == 2 * 4 * 4 * 4 + 3 * (4 + 4 + 8) * 2
    assert [moved(SMALL, letter, 10) for letter in "FSKG"] == [160, 96, 2 * 272, 2 * 224]
    layer = 192 + 3 * 8 * 16 + 2 * 8
    assert token_flops(SMALL, "F", 10) == 2 * layer + 4 * 8 * 10
    assert read(SMALL, "FS") == 2 * (2 * layer + 8 + 80)
    assert resident(SMALL, "FS") == 2 * (2 * layer + 8 + 160)
    card = Device(bandwidth=1e6, flops=1e12, memory=1e4)
    batch = int((0.9 * 1e4 - resident(SMALL, "FF")) // (2 * 160))
    found = step(SMALL, "FF", card, 10, whole=False)
    assert found.batch == batch == largest_batch(SMALL, "FF", card, 10, whole=False)
    assert found.seconds == (read(SMALL, "FF") + batch * 2 * 160) / 1e6
    assert step(SMALL, "FF", Device(1e12, 1e3, 1e4), 10, batch=3).seconds == 3 * (2 * token_flops(SMALL, "F", 10) + 2 * 80) / 1e3


def test_sizes_are_those_of_the_modules():
    torch = pytest.importorskip("torch")
    from supernet.config import SupernetConfig
    from supernet.mixers import MIXERS
    from supernet.size import count_parameters, layer_parameters

    options = {"layers": 3, "hidden": 48, "ffn": 64, "heads": 6, "kv_heads": 2, "head_dim": 8, "vocab": 50, "window": 7}
    for more in (
        {},
        {"tied": True, "qkv_bias": True, "qk_norm": True},
        {"gdn_key_heads": 3, "gdn_key_dim": 4, "kda_heads": 5, "kda_dim": 6},
    ):
        config, shapes = SupernetConfig(**options, **more), Shapes.of({**options, **more})
        assert [mixer_weights(shapes, m) for m in "FSKG"] == [layer_parameters(config, m) for m in "FSKG"]
        assert resident(shapes) == 2 * count_parameters(config)
        for letter in "FSKG":
            for context in (3, 20):
                states = MIXERS[letter].state_shapes(config, context, torch.bfloat16)
                assert kept(shapes, letter, context) == sum(np.prod(shape) * dtype.itemsize for shape, dtype in states)


def test_the_published_presets():
    """The table that was worked out by hand from these formulas: batches beside the whole supernet, ratios to all-FA."""
    expected = {
        "all-FA": (3, 1.0, 7, 1.0), "26": (10, 3.2, 17, 2.4), "Idealized-18": (9, 2.9, 16, 2.3), "18": (26, 7.8, 34, 4.6),
        "Idealized-6": (41, 12.3, 41, 5.6), "13": (67, 18.6, 67, 8.5), "10": (91, 24.0, 91, 11.0),
    }  # fmt: skip
    table = published().set_index(["preset", "context"])
    for name, (long, fast, short, slower) in expected.items():
        for context, batch, speed in ((32768, long, fast), (16384, short, slower)):
            row = table.loc[name, context]
            assert row["batch"] == batch
            assert row["roofline"] == pytest.approx(speed, abs=0.06)
    assert set(expected) == set(PRESETS)


def test_costs_are_on_the_grid_and_order_placements_as_the_roofline_does():
    rng, card = np.random.default_rng(0), DEVICES["h100"]
    placements = [str(sample_counts(48, rng)) for _ in range(40)]
    for context in (4096, 16384, 32768):
        price = coefficients(APRIEL_15B, card, context)
        assert all(abs(value / UNIT - round(value / UNIT)) < 1e-9 for value in price.values())
        assert price["F"] == 1 and min(price.values()) >= UNIT
        exact = coefficients(APRIEL_15B, card, context, unit=0)
        predicted = 48 / placement_costs(placements, exact)
        true = [ratio(APRIEL_15B, p, card, context) for p in placements]
        assert np.abs(np.log(predicted / true)).max() < 0.35  # whole sequences only: 3 of all-FA fit at 32k where 3.5 would
        assert np.corrcoef(np.log(predicted), np.log(true))[0, 1] > 0.99


def test_devices():
    assert device("h100") == DEVICES["h100"]
    assert device("cpu,20,0.2,8") == Device(20e9, 0.2e12, 8e9)
    for text in ("h1000", "cpu", "cpu,1,2", "cpu,1,2,-3", "cpu,a,b,c"):
        with pytest.raises(ValueError, match="NAME,GB/s,TFLOP/s,GB"):
            device(text)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="not one sequence of 1000000 tokens fits"):
        coefficients(APRIEL_15B, DEVICES["h100"], 1_000_000)
    with pytest.raises(ValueError, match="lack ffn, vocab"):
        Shapes.of({"layers": 1, "hidden": 8, "heads": 1, "kv_heads": 1, "head_dim": 8, "window": 4})
