from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments.config import DistillConfig, check, model_config, not_default, run_id
from supernet.size import count_parameters

CONF = Path(__file__).resolve().parents[2] / "conf"


def config(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("config", list(overrides)))


@pytest.mark.parametrize("scale", sorted(p.stem for p in (CONF / "scale").glob("*.yaml")))
def test_every_shipped_scale_composes_and_its_model_counts(scale):
    shipped = config(f"scale={scale}")
    assert scale.startswith(shipped.scale)
    teacher = {"135m": 134_515_008, "0.5b": 494_032_768, "15b": 14_428_902_400}
    if shipped.scale in teacher:
        assert count_parameters(model_config(shipped), "F") == teacher[shipped.scale]


def test_run_id_depends_on_what_determines_the_checkpoints_alone():
    base = run_id(config())
    for same in ("placements=local", "memory_gib=1", "results=/x", "items=5", "trainer.save_seconds=1"):
        assert run_id(config(same, "num_placements=5")) == base
    for other in ("seed=1", "distill.lr=1e-3", "data.items=65", "teacher.steps=10", "model.window=8"):
        assert run_id(config(other)) != base


def test_options_at_their_defaults_are_not_part_of_an_id():
    """Or every option that is ever added would rename every run there is."""
    assert not_default(DistillConfig()) == {}
    assert not_default(DistillConfig(lr=1.0, presets=["FF"])) == {"lr": 1.0, "presets": ["FF"]}
    shapes = not_default(model_config(config()))
    assert shapes["layers"] == 5 and "gdn_key_heads" not in shapes and "tied" not in shapes
