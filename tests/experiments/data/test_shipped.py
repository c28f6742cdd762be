"""The teacher and the items that come with the suite, and the command that made them."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments.config import check
from experiments.data import making
from experiments.data.items import read_items
from experiments.data.making import make_missing
from experiments.data.synthetic import known_losses, sequences, unlearned
from experiments.run import SHIPPED, Run
from experiments.runs.entry import CONF
from experiments.runs.streams import stream
from experiments.ship import ship
from supernet.teacher import load_teacher


def composed(options):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("config", options))


def test_tiny_takes_the_shipped_teacher_and_items(tmp_path, monkeypatch):
    """No teacher is trained for it; its items are the shipped ones, token by token."""
    config = composed(["scale=tiny", f"cache={tmp_path}"])
    monkeypatch.setattr(making, "make_teacher", lambda *_: pytest.fail("a teacher was trained"))
    made = making.make_items
    monkeypatch.setattr(
        making, "make_items", lambda run, device, name: made(run, device, name) if name == "train" else pytest.fail("items were sampled")
    )
    run, shipped = Run.of(config), next(SHIPPED.glob("teachers/tiny-*/model.safetensors"))
    make_missing(run, "cpu")
    assert (run.teacher_dir / "model.safetensors").read_bytes() == shipped.read_bytes()
    items = read_items(run.items)
    assert len(items) == config.data.items and {item.task for item in items} == {"recall", "local", "state"}
    assert len(read_items(run.sequences("train"))) == config.data.train
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 2e6


def test_the_shipped_teacher_gives_the_traces_that_are_shipped():
    """Sampled anew with the same stream: on another CPU a near tie may fall the other way, so all but a few tokens are the same."""
    config = composed(["scale=tiny"])
    teacher = load_teacher(next(SHIPPED.glob("teachers/tiny-*")))
    items = read_items(next(SHIPPED.glob("data/tiny-*/items.parquet")))
    with torch.no_grad():
        tokens = torch.stack([item.tokens for item in items])
        logp = teacher(tokens[:, :-1], "F" * config.model["layers"]).log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    assert -1.4 < float(logp[:, config.data.prompt :].mean()) < -0.9  # a teacher that has learned: an untrained one is at -4.2
    prompts = sequences(len(items), config.data.prompt, stream(config.data.seed, "items"))[0]
    assert torch.equal(tokens[:, : config.data.prompt], torch.from_numpy(prompts))


def test_what_a_teacher_knows_is_told_beside_it():
    folder = next(SHIPPED.glob("teachers/tiny-*"))
    teacher = load_teacher(folder)
    its = known_losses(teacher, 64, stream(0, "what the teacher knows"))
    assert json.loads((folder / "source.json").read_text())["loss"] == pytest.approx(its, abs=1e-3) and unlearned(its) == []
    torch.manual_seed(0)
    for p in teacher.parameters():
        torch.nn.init.normal_(p, std=0.1)
    (line,) = unlearned(known_losses(teacher, 64, stream(0, "what the teacher knows")))
    assert line.startswith("The teacher has not learned recall (") and all(task in line for task in ("local (", "state ("))


def test_the_maker_makes_what_teaching_then_takes(small, tmp_path):
    config = composed(small)
    ship(config, tmp_path / "shipped")
    run = Run.of(config)
    make_missing(run, "cpu", tmp_path / "shipped")
    alone = Run.of(composed([o if not o.startswith("cache=") else f"cache={tmp_path / 'alone'}" for o in small]))
    make_missing(alone, "cpu", tmp_path / "nothing")
    for there, made in ((run.teacher_dir, alone.teacher_dir), (run.data_dir, alone.data_dir)):
        for path in sorted(Path(made).glob("*")):
            assert path.read_bytes() == (Path(there) / path.name).read_bytes(), path.name
