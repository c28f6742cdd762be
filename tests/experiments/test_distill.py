"""What one training step touches, on a two-layer supernet made in place."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments.config import check, data_dir, model_config, teacher_dir
from experiments.data.items import collate, read_items, write_items
from experiments.data.synthetic import sequences, training_items
from experiments.distill import Distillation
from experiments.runs.entry import CONF
from experiments.training.build import empty_supernet, initialised_supernet, load_frozen
from experiments.training.loop import visits
from experiments.training.strategy import draw
from supernet.checkpoint import load_trained, save_trained
from supernet.decoder import Supernet
from supernet.teacher import save_teacher


@pytest.fixture
def config(small):
    """A run whose teacher and data are there; the teacher's weights are random."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = check(compose("config", small))
    torch.manual_seed(0)
    save_teacher(Supernet(model_config(config).replace(mixers="F")), teacher_dir(config), "random")
    write_items(training_items(config.data, np.random.default_rng(0)), data_dir(config) / "train.parquet")
    return config


@pytest.fixture
def module(config):
    teacher = load_frozen(config, torch.float32)
    return Distillation(config, initialised_supernet(config, teacher), teacher)


def test_all_fa_equals_the_teacher_exactly_at_step_0(module):
    tokens = torch.from_numpy(sequences(3, 24, np.random.default_rng(1))[0])
    assert torch.equal(module.student(tokens, "FF"), module.teacher(tokens, "FF"))
    assert not torch.equal(module.student(tokens, "FS"), module.teacher(tokens, "FF"))


def test_frozen_tensors_are_held_once_and_only_mixers_train(module):
    student, teacher = dict(module.student.named_parameters()), dict(module.teacher.named_parameters())
    for name, p in student.items():
        assert p.requires_grad == (".mixers." in name), name
        if ".mixers." not in name:
            assert p is teacher[name], name
    assert student["blocks.0.mixers.F.q_proj.weight"] is not teacher["blocks.0.mixers.F.q_proj.weight"]
    assert not any(p.requires_grad for p in teacher.values())


def test_a_step_gives_gradients_to_the_drawn_mixers_and_none_to_the_others(module, config):
    batch = collate(read_items(data_dir(config) / "train.parquet", 4))
    before = {name: p.clone() for name, p in module.named_parameters()}
    optimizer = module.configure_optimizers()["optimizer"]
    module.training_step(batch, 0)["loss"].backward()
    drawn = draw(config.distill, module.student.config, config.seed, 0)
    for name, p in module.student.named_parameters():
        if ".mixers." in name:
            layer, letter = int(name.split(".")[1]), name.split(".mixers.")[1][0]
            assert (p.grad is not None) == (drawn[layer] == letter), name
    optimizer.step()
    for name, p in module.named_parameters():
        if p.grad is None:
            assert torch.equal(p, before[name]), name
    assert {id(p) for p in optimizer.state} == {id(p) for p in module.parameters() if p.grad is not None}


def test_loss_is_the_weighted_sum_of_its_terms(module, config):
    batch = collate(read_items(data_dir(config) / "train.parquet", 4))
    options = config.distill
    options.activation_weight, options.forward_kl_weight, options.reverse_kl_weight = 0.5, 2.0, 3.0
    out = module.training_step(batch, 0)
    expected = 0.5 * out["activation"] + 2 * out["forward_kl"] + 3 * out["reverse_kl"]
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_visits_count_every_draw(config):
    table = visits(config)
    assert list(table.columns) == ["layer", "F", "S", "K", "G"]
    assert (table[["F", "S", "K", "G"]].sum(axis=1) == config.distill.steps).all()


def test_checkpoint_holds_the_trained_tensors_only_and_comes_back_exactly(module, config, tmp_path):
    save_trained(module.student, tmp_path / "step-000000", {"step": 0, "tokens": 0})
    other = empty_supernet(config, load_frozen(config, torch.float32))
    meta = load_trained(other, tmp_path / "step-000000")
    assert meta["step"] == 0 and meta["tensors"] == sum(".mixers." in name for name, _ in other.named_parameters())
    for (name, a), b in zip(module.student.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_checkpoint_of_another_shape_is_refused(module, config, tmp_path):
    save_trained(module.student, tmp_path / "step-000000", {"step": 0, "tokens": 0})
    teacher = load_frozen(config, torch.float32)
    config.model["kda_dim"] = 8
    with pytest.raises(ValueError, match="does not fit the model: blocks.0.mixers.K"):
        load_trained(empty_supernet(config, teacher), tmp_path / "step-000000")


def test_cast_keeps_decays_in_float32(module):
    module.student.cast(torch.bfloat16)
    for name, p in module.student.named_parameters():
        assert p.dtype == (torch.float32 if name.endswith(("A_log", "dt_bias")) else torch.bfloat16), name
