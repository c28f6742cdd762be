"""Every option has its range beside its field, and what is outside is refused in one line before anything is loaded."""

import dataclasses

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config import Config, check
from experiments.runs.entry import CONF, listed, one_line
from experiments.runs.ranges import check_ranges


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


def outside(admitted, value):
    """Values of every kind that a range does not admit."""
    if admitted.choices:
        return ["nonsense", ""]
    whole = isinstance(value, int) or (isinstance(value, list) and admitted.most is None)
    wrong = [admitted.largest + 1, 10**30] if whole and admitted.most is None else [float("nan"), float("inf"), -float("inf")]
    wrong += [admitted.least - 1] if admitted.least is not None else []
    wrong += [admitted.above, -1.0] if admitted.above is not None else []
    return wrong + ([admitted.most + 1] if admitted.most is not None else [])


def test_whatever_is_outside_a_range_is_one_line_with_option_value_and_remedy():
    """Every option, with values of every kind: too low, too high, huge, not a number, no such choice."""
    tried = 0
    for name, its, value in fields():
        for wrong in outside(its.metadata["range"], value) if "range" in its.metadata else []:
            config = Config(scale="tiny")
            section, _, last = name.rpartition(".")
            given = [wrong] if isinstance(value, list) else {"F": wrong} if isinstance(value, dict) else wrong
            setattr(getattr(config, section) if section else config, last, given)
            with pytest.raises(ValueError) as refused:
                check_ranges(config)
            line = str(refused.value)
            assert line.startswith(f"{name} is {given!r}: ") and "\n" not in line, line
            assert any(word in line.partition(": ")[2] for word in ("give", "choose from")), line
            tried += 1
    assert tried > 150


def test_a_value_of_another_type_is_one_line_with_option_value_and_range():
    plain = OmegaConf.structured(Config(scale="tiny"))
    for name, its, value in fields():
        wrongs = {bool: ["abc", 0.5], int: ["abc", 0.5, [1], None], float: ["abc", [1], None], str: [[1], None]}
        for wrong in wrongs.get(type(value), []) if name not in ("placements", "scale") else []:
            with pytest.raises(OmegaConfBaseException) as refused:
                OmegaConf.update(plain, name, wrong)
            line = one_line(refused.value)
            assert line.startswith(f"{name}: ") and "\n" not in line and (str(wrong) in line or "not Optional" in line), line
            if "range" in its.metadata:
                assert line.endswith(its.metadata["range"].words()), line


def test_shapes_have_their_ranges_too():
    for name, wrong in (("rope_theta", -1.0), ("norm_eps", float("nan")), ("delta_norm_eps", 0.0), ("hidden", 2**31), ("layers", 0)):
        with pytest.raises(ValueError, match=rf"model.{name} is {wrong}: give a"):
            checked(f"model.{name}={wrong}")


def test_the_largest_seed_is_a_seed():
    from experiments.runs.streams import stream, torch_seed

    config = checked(f"seed={2**63 - 1}", f"placement_seed={2**63 - 1}")
    assert np.array_equal(stream(config.seed, "draw", 1).random(3), stream(2**63 - 1, "draw", 1).random(3))
    assert torch.Generator().manual_seed(torch_seed(config.seed, "mixers")).initial_seed() < 2**63


@pytest.mark.parametrize("override, said", [
    ("seed=9223372036854775808", "seed is 9223372036854775808: give at most 9223372036854775807"),
    ("data.items=1000000000000", "data.items is 1000000000000: give at most 2147483647"),
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
    ("placements=5.5", "placements is 5.5: choose from exhaustive, mixed, local,"),
    ("placements=null", "placements is None: choose from exhaustive, mixed, local,"),
    ("placements=[]", "placements is '': choose from exhaustive, mixed, local,"),
    ("placements={a: 1}", "placements is {'a': 1}: choose from exhaustive, mixed, local,"),
    ("model=null", "model is None: give shapes such as model.layers=5, or leave it out"),
    ("model.mixers=FX", "model.mixers is 'FX': no mixer is called X: give letters of FSKG"),
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


def test_a_loss_without_terms_is_refused():
    none = [f"distill.{name}_weight=0" for name in ("activation", "forward_kl", "reverse_kl")]
    with pytest.raises(ValueError, match="are all 0, so that nothing is learned: give one of them a positive number"):
        checked(*none)
    assert checked(*none[:2]).distill.reverse_kl_weight > 0
