import pytest

from experiments.config import DistillConfig, SftConfig
from experiments.training.schedule import cooldown_steps, never_reached, rate_factor, total_steps
from experiments.training.strategy import checkpoint_steps


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_warm_up_rises_in_equal_parts_and_is_over_after_its_steps(schedule):
    options = DistillConfig(steps=100, warmup=4, schedule=schedule)
    assert [rate_factor(options, step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate_factor(options, 4) == 1.0


def test_cosine_ends_at_final_lr_and_is_halfway_in_the_middle():
    options = DistillConfig(steps=104, warmup=4, final_lr=0.2)
    assert rate_factor(options, 104) == pytest.approx(0.2)
    assert rate_factor(options, 54) == pytest.approx(0.6)
    assert rate_factor(SftConfig(steps=10, warmup=0, final_lr=0.5), 10) == pytest.approx(0.5)


def test_constant_stays_and_its_cooled_copy_falls_to_final_lr():
    options = DistillConfig(steps=80, warmup=0, schedule="constant", final_lr=0.1, cooldown=0.125)
    assert (cooldown_steps(options), total_steps(options)) == (10, 90)
    assert {rate_factor(options, step) for step in range(80)} == {1.0}
    assert [rate_factor(options, step) for step in range(80, 90)] == pytest.approx([1 - 0.09 * n for n in range(1, 11)])


def test_a_warm_up_longer_than_the_training_is_told_and_says_where_the_rate_ends():
    for stage, its in (("distill", DistillConfig), ("sft", SftConfig)):
        assert never_reached(its(steps=20, warmup=20)) == [] and rate_factor(its(steps=20, warmup=20), 19) == 1
        short = its(steps=5, warmup=20)
        (line,) = never_reached(short)
        assert line == (f"{stage}.warmup=20 is longer than {stage}.steps=5, so the rate ends at 0.25 of {stage}.lr. Lower {stage}.warmup.")
        assert rate_factor(short, 4) == 0.25


def test_checkpoints_at_shares_of_the_training():
    options = DistillConfig(steps=658, checkpoints_at=[0, 0.0625, 0.5, 0.96875, 0.984375, 1])
    assert checkpoint_steps(options) == [0, 41, 329, 637, 648, 658]
