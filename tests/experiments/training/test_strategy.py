import numpy as np
import pytest

from experiments.config import DistillConfig
from experiments.data.items import batch_of_step
from experiments.training.strategy import checkpoint_steps, draw
from supernet.config import SupernetConfig

MODEL = SupernetConfig(layers=6, hidden=32, ffn=64, heads=2, kv_heads=1, head_dim=16, vocab=64, window=8)


@pytest.mark.parametrize("sampler", ["local", "counts", "targeted", "hybrid"])
def test_placement_is_a_function_of_seed_and_step(sampler):
    options = DistillConfig(sampler=sampler, presets=["FFFFFF", "GGGGGG"])
    forwards = [draw(options, MODEL, 3, step) for step in range(50)]
    backwards = [draw(options, MODEL, 3, step) for step in reversed(range(50))]
    assert forwards == backwards[::-1]
    if sampler != "targeted":
        assert forwards != [draw(options, MODEL, 4, step) for step in range(50)]


def test_counts_visits_the_cheap_extreme_and_local_does_not():
    def homogeneous(sampler):
        return sum(len(set(draw(DistillConfig(sampler=sampler), MODEL, 0, step))) == 1 for step in range(3000)) / 3000

    # 4 of the 84 compositions of 6 layers are homogeneous, and 4 of the 4^6 placements
    assert homogeneous("counts") == pytest.approx(4 / 84, abs=0.012)
    assert homogeneous("local") < 0.005


def test_targeted_cycles_over_the_presets():
    options = DistillConfig(sampler="targeted", presets=["FFFFFF", "GGGGGG", "SSSSSS"])
    assert [draw(options, MODEL, 0, step)[0] for step in range(6)] == list("FGSFGS")


def test_checkpoints_start_at_zero_are_log_spaced_and_end_with_the_last_step():
    steps = checkpoint_steps(DistillConfig(steps=1000, checkpoints=7, first_checkpoint=10))
    assert steps[0] == 0 and steps[1] == 10 and steps[-1] == 1000 and len(steps) == 7
    assert np.ptp(np.diff(np.log(steps[1:]))) < 0.1
    assert checkpoint_steps(DistillConfig(steps=3, checkpoints=9, first_checkpoint=10)) == [0, 3]


def test_placements_without_a_trained_mixer_are_passed_over():
    options = DistillConfig(sampler="counts", presets=["FFFFFF", "GGGGGG"])
    drawn = [draw(options, MODEL, 0, step, "SK") for step in range(300)]
    assert all(set(p) & set("SK") for p in drawn) and any(set(p) <= set("FG") for p in (draw(options, MODEL, 0, s) for s in range(300)))
    assert drawn == [draw(options, MODEL, 0, step, "SK") for step in range(300)]
    targeted = DistillConfig(sampler="targeted", presets=["FFFFFF", "GGGGGG"])
    assert {draw(targeted, MODEL, 0, step, "SKG") for step in range(4)} == {"GGGGGG"}


def test_the_seed_decides_the_order_of_the_data():
    assert batch_of_step(100, 8, seed=1, step=3) != batch_of_step(100, 8, seed=2, step=3)
    assert batch_of_step(100, 8, seed=1, step=3) == batch_of_step(100, 8, seed=1, step=3)


def test_every_epoch_visits_every_sequence_once():
    seen = [i for step in range(15) for i in batch_of_step(10, 4, seed=1, step=step)]
    for epoch in range(6):
        assert sorted(seen[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]
