"""Every option has its range beside its field, and what is outside is refused in one line before anything is loaded."""

import dataclasses

import pytest
from hydra import compose, initialize_config_dir

from experiments.config import Config, check
from experiments.runs.entry import CONF, listed


def checked(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("config", ["scale=tiny", "data.train=4096", "data.items=64", "items=0", *overrides]))


def fields(options=None, section=""):
    for its in dataclasses.fields(options or Config(scale="tiny")):
        value = getattr(options or Config(scale="tiny"), its.name)
        if dataclasses.is_dataclass(value) and its.name != "model":
            yield from fields(value, f"{section}{its.name}.")
        else:
            yield f"{section}{its.name}", its, value


def test_every_number_has_a_range_and_every_default_is_in_it():
    for name, its, value in fields():
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert "range" in its.metadata, name
        if "range" in its.metadata and not isinstance(value, list | dict):
            assert its.metadata["range"].admits(value), name


@pytest.mark.parametrize("override, said", [
    ("distill.final_lr=-2", "distill.final_lr is -2.0: give 0 to 1"),
    ("sft.final_lr=2", "sft.final_lr is 2.0: give 0 to 1"),
    ("distill.warmup=-5", "distill.warmup is -5: give a number of 0 or more"),
    ("seed=-1", "seed is -1: give a number of 0 or more"),
    ("teacher.seed=-1", "teacher.seed is -1: give a number of 0 or more"),
    ("distill.lr=nan", "distill.lr is nan: give a positive number"),
    ("distill.clip=inf", "distill.clip is inf: give a positive number"),
    ("trainer.accelerator=tpus", "trainer.accelerator is 'tpus': choose from auto, cpu, gpu, cuda"),
    ("threads=0", "threads is 0: give a positive number"),
    ("workers=-1", "workers is -1: give a number of 0 or more"),
    ("distill.checkpoints=1", "distill.checkpoints is 1: give at least 2, the first and the last"),
    ("steps=[0,-4]", "steps is [0, -4]: give a number of 0 or more"),
    ("distill.lr_of.F=0", "distill.lr_of is {"),
    ("memory_gib=-1", "memory_gib is -1.0: give a positive number, or 0 for a share of what is free"),
    ("distill.batch=5000", "distill.batch=5000 is more than data.train=4096 sequences: lower the first or raise the second"),
    ("distill.presets=[FFF]", "distill.presets has 'FFF': give placements of 5 letters of model.mixers='FSKG'"),
    ("sft.presets=[FFFFX]", "sft.presets has 'FFFFX': give placements of 5 letters of model.mixers='FSKG'"),
    ("placements=[FFFFF,GGG]", "placements has 'GGG': give placements of 5 letters of model.mixers='FSKG'"),
    ("placements=mixd", "placements is 'mixd': choose from exhaustive, mixed, local,"),
    ("data.prompt=64", "data.prompt=64 leaves no room for a trace in data.length=64: lower it"),
])  # fmt: skip
def test_what_is_out_of_range_is_refused_in_one_line(override, said):
    with pytest.raises(ValueError) as refused:
        checked(override)
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


@pytest.mark.parametrize("written", ["[FFFFF,GGGGG]", "FFFFF+GGGGG"])
def test_placements_are_listed_as_documented(written):
    assert checked(f"placements={written}").placements == "FFFFF+GGGGG"


def test_a_comma_is_a_list_in_a_plain_run_and_a_grid_behind_m():
    assert listed(["x", "placements=FFFFF,GGGGG", "seed=1"]) == ["x", "placements=[FFFFF,GGGGG]", "seed=1"]
    assert listed(["x", "-m", "placements=FFFFF,GGGGG"]) == ["x", "-m", "placements=FFFFF,GGGGG"]
    assert listed(["x", "placements=mixed"]) == ["x", "placements=mixed"]


def test_any_shape_can_be_given_without_a_plus():
    assert checked("model.qk_norm=true").model["qk_norm"] is True
