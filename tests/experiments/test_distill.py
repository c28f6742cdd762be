"""What one training step touches, on a two-layer supernet made in place."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from experiments.config import check
from experiments.data.items import collate, read_items, write_items
from experiments.data.synthetic import sequences, training_items
from experiments.distill import distill
from experiments.run import Run
from experiments.runs.entry import CONF
from experiments.training.build import empty_supernet, initialised_supernet
from experiments.training.distilling import Distillation
from experiments.training.loop import visits
from experiments.training.strategy import draw
from supernet.checkpoint import load_trained, save_trained
from supernet.decoder import Supernet
from supernet.teacher import load_teacher, save_teacher


@pytest.fixture
def config(small):
    """A run whose teacher and data are there; the teacher's weights are random."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = check(compose("config", small))
    torch.manual_seed(0)
    save_teacher(Supernet(Run.of(config).model.replace(mixers="F")), Run.of(config).teacher_dir, "random")
    write_items(training_items(config.data, np.random.default_rng(0)), Run.of(config).data_dir / "train.parquet")
    return config


@pytest.fixture
def module(config):
    run, teacher = Run.of(config), load_teacher(Run.of(config).teacher_dir)
    return Distillation(run, initialised_supernet(run, teacher), teacher)


def empty(run, **shapes):
    return empty_supernet(run.model.replace(**shapes), load_teacher(run.teacher_dir), run.seed, run.distill.train_mixers)


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
    batch = collate(read_items(Run.of(config).data_dir / "train.parquet", 4))
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
    batch = collate(read_items(Run.of(config).data_dir / "train.parquet", 4))
    options = config.distill
    options.activation_weight, options.forward_kl_weight, options.reverse_kl_weight = 0.5, 2.0, 3.0
    out = module.training_step(batch, 0)
    expected = 0.5 * out["activation"] + 2 * out["forward_kl"] + 3 * out["reverse_kl"]
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_visits_count_every_draw(module, config):
    table = visits(module)
    assert list(table.columns) == ["layer", "F", "S", "K", "G"]
    assert (table[["F", "S", "K", "G"]].sum(axis=1) == config.distill.steps).all()


def test_checkpoint_holds_the_trained_tensors_only_and_comes_back_exactly(module, config, tmp_path):
    save_trained(module.student, tmp_path / "step-000000", {"step": 0, "tokens": 0})
    other = empty(Run.of(config))
    meta = load_trained(other, tmp_path / "step-000000")
    assert meta["step"] == 0 and meta["tensors"] == sum(".mixers." in name for name, _ in other.named_parameters())
    for (name, a), b in zip(module.student.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_checkpoint_of_another_shape_is_refused(module, config, tmp_path):
    save_trained(module.student, tmp_path / "step-000000", {"step": 0, "tokens": 0})
    with pytest.raises(ValueError, match="does not fit the model: blocks.0.mixers.K"):
        load_trained(empty(Run.of(config), kda_dim=8), tmp_path / "step-000000")


def test_cast_keeps_decays_in_float32(module):
    module.student.cast(torch.bfloat16)
    for name, p in module.student.named_parameters():
        assert p.dtype == (torch.float32 if name.endswith(("A_log", "dt_bias")) else torch.bfloat16), name


def test_rates_have_a_factor_for_each_mixer(module, config):
    config.distill.lr_of = {"F": 0.03}
    optimizer = module.configure_optimizers()["optimizer"]
    factors = {group["name"]: group["initial_lr"] / config.distill.lr for group in optimizer.param_groups}
    assert factors == {"F": 0.03, "S": 1, "K": 1, "G": 1}
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert grouped == {id(p) for p in module.student.parameters() if p.requires_grad}


def test_the_first_step_is_that_of_the_warm_up_and_weights_decay_as_told(module, config):
    config.distill.warmup, config.distill.weight_decay, config.distill.lr_of = 5, 0.25, {"F": 0.5}
    made = module.configure_optimizers()
    groups = {group["name"]: group for group in made["optimizer"].param_groups}
    assert {group["weight_decay"] for group in groups.values()} == {0.25}
    assert groups["F"]["lr"] == pytest.approx(config.distill.lr * 0.5 / 5) and groups["K"]["lr"] == pytest.approx(config.distill.lr / 5)
    made["optimizer"].step()
    made["lr_scheduler"]["scheduler"].step()
    assert groups["K"]["lr"] == pytest.approx(config.distill.lr * 2 / 5)


def test_gradients_are_clipped_and_their_norm_is_told(module, config):
    config.distill.clip = 1e-3
    module.training_step(collate(read_items(Run.of(config).data_dir / "train.parquet", 4)), 0)["loss"].backward()
    before = torch.sqrt(sum(p.grad.square().sum() for p in module.parameters() if p.grad is not None))
    module.configure_gradient_clipping(module.configure_optimizers()["optimizer"])
    after = torch.sqrt(sum(p.grad.square().sum() for p in module.parameters() if p.grad is not None))
    assert module.told["gradient_norm"] == pytest.approx(float(before), rel=1e-5) and float(after) == pytest.approx(1e-3, rel=1e-2)


def test_tokens_seen_go_on_after_a_resumption(module):
    module.tokens_seen = 77
    saved = {"state_dict": {}}
    module.on_save_checkpoint(saved)
    module.tokens_seen = 0
    module.on_load_checkpoint(saved)
    assert module.tokens_seen == 77


def test_a_checkpoint_that_is_not_finite_is_refused(module, config, tmp_path):
    with torch.no_grad():
        module.student.blocks[1].mixers["K"].o_proj.weight[0, 0] = float("nan")
    save_trained(module.student, tmp_path / "step-000000", {"step": 0, "tokens": 0})
    with pytest.raises(ValueError, match="blocks.1.mixers.K.o_proj.weight .*finite"):
        load_trained(empty(Run.of(config)), tmp_path / "step-000000")


def test_a_diverging_training_stops_names_its_step_and_keeps_the_last_good_state(config, small):
    """In this process, as the commands would: the state is of before the step, no checkpoint follows, the status says failed."""
    write_items(training_items(config.data, np.random.default_rng(1))[:6], Run.of(config).data_dir / "items.parquet")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = check(compose("config", [*small, "distill.lr=1e30", "distill.warmup=0", "distill.clip=1e9"]))
    with pytest.raises(ValueError, match=r"step \d+ \(placement [FSKG]{2}\): .* training stopped"):
        distill(config)
    folder = Run.of(config).folder
    assert json.loads((folder / "status.json").read_text())["distill"]["state"] == "failed"
    for checkpoint in folder.glob("checkpoints/step-*"):
        assert all(torch.isfinite(t).all() for t in load_file(checkpoint / "model.safetensors").values())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) < config.distill.steps
    state = folder / "checkpoints/resume.ckpt"
    if state.exists():
        assert all(torch.isfinite(t).all() for t in torch.load(state, weights_only=False)["state_dict"].values())


def test_mixers_that_are_not_trained_keep_their_weights_and_curves_are_logged(config, small, monkeypatch, capsys):
    write_items(training_items(config.data, np.random.default_rng(1))[:6], Run.of(config).data_dir / "items.parquet")
    options = [*small, "distill.train_mixers=SKG", "trainer.logger=csv", "distill.schedule=constant", "distill.cooldown=0.25"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = check(compose("config", [*options, "distill.checkpoints_at=[0,0.5,1]"]))
    distill(config)
    folder = Run.of(config).folder
    (warned,) = json.loads((folder / "manifest.json").read_text())["warnings"]
    assert warned.startswith("distill.warmup=20 is longer than distill.steps=8") and f"warning: {warned}\n" in capsys.readouterr().out
    steps = sorted(p.name for p in folder.glob("checkpoints/*"))
    assert steps == ["step-000000", "step-000004", "step-000008"]
    assert [p.name for p in folder.with_name(folder.name + "-cooled").glob("checkpoints/*")] == ["step-000010"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 10 and all(set(row["placement"]) - {"F"} and row["gradient_norm"] > 0 for row in rows)
    held_out = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [(row["step"], row["placement"]) for row in held_out] == [(step, m * 2) for step in (0, 4, 8) for m in "FSKG"]
    assert held_out[0]["loss"] == pytest.approx(0, abs=1e-6)
    curves = pd.read_csv(next(folder.glob("logs/version_0/metrics.csv")))
    assert {"lr_S", "gradient_norm", "tokens_per_second", "memory_gib", "validation_loss"} <= set(curves)


def test_weights_and_biases_offline(config, small, monkeypatch):
    pytest.importorskip("wandb", reason="needs pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_items(training_items(config.data, np.random.default_rng(1))[:6], Run.of(config).items)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = check(compose("config", [*small, "trainer.logger=wandb"]))
    distill(config)
    (curves,) = (Run.of(config).folder / "logs").glob("wandb/offline-run-*/run-*.wandb")
    content = curves.read_bytes()
    assert all(name in content for name in (b"gradient_norm", b"lr_K", b"tokens_per_second", b"validation_loss"))
