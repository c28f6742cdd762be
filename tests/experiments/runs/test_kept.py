"""A run whose cache is gone: its teacher and data come back from where it has kept them, and no other's are taken for them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments.config import check
from experiments.data.items import read_items, write_items
from experiments.data.synthetic import training_items
from experiments.distill import distill
from experiments.generate import main as generate
from experiments.run import Run
from experiments.runs.entry import CONF
from experiments.runs.kept import restore
from experiments.status import main as status
from experiments.sweep import sweep
from supernet.decoder import Supernet
from supernet.teacher import save_teacher


def make_cache(config, seed):
    torch.manual_seed(seed)
    save_teacher(Supernet(Run.of(config).model.replace(mixers="F")), Run.of(config).teacher_dir, "random")
    rng = np.random.default_rng(seed)
    for name, count in (("train", 48), ("items", 6)):
        write_items(training_items(config.data, rng)[:count], Run.of(config).data_dir / f"{name}.parquet")


@pytest.fixture
def run(small):
    """The options of a run that is trained, and whose cache has gone."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = check(compose("config", [*small, "placements=FF+GG", "kernels=torch"]))
    make_cache(config, 0)
    distill(config)
    shutil.rmtree(config.cache)
    return config


def test_a_run_without_its_cache_is_swept_told_and_answers(run, capsys):
    folder = Run.of(run).folder
    assert generate([str(folder), "--tokens", "1,2", "--new-tokens", "3"]) == 0
    assert status([str(folder)]) == 0
    sweep(run)
    assert len(list(folder.glob("scores/step-*"))) == 4 and Run.of(run).teacher_dir.is_dir()
    told = json.loads((folder / "checkpoints/step-000000/meta.json").read_text())["teacher"]
    assert told["folder"] == str(Run.of(run).teacher_dir) and "error" not in capsys.readouterr().err


def test_another_teacher_or_other_items_are_not_taken_for_those_of_the_run(run):
    shutil.rmtree(Run.of(run).folder / ".cache")
    make_cache(run, 1)
    with pytest.raises(ValueError, match=r"was made with teacher of sha256 .*: delete that and give .* teacher_folder=") as refused:
        sweep(run)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="was made with teacher"):
        distill_again(run)
    make_cache(run, 0)
    sweep(run)
    other = replace(run, steps=[], items=0, placements="FG")
    path = Run.of(run).data_dir / "items.parquet"
    write_items(read_items(path)[::-1], path)
    with pytest.raises(ValueError, match=r"was made with items of sha256 .*items.parquet has .*: delete that"):
        sweep(other)


def distill_again(config):
    """As if the last checkpoint had been lost, which is put back then."""
    last = Run.of(config).folder / "checkpoints" / "step-000008"
    last.rename(Run.of(config).folder / "aside")
    try:
        distill(config)
    finally:
        (Run.of(config).folder / "aside").rename(last)


def test_what_was_damaged_is_not_put_back(run):
    kept = next((Run.of(run).folder / ".cache" / "teachers").glob("*/model.safetensors"))
    kept.write_bytes(kept.read_bytes()[:-4])
    restore(Run.of(run))
    assert not Run.of(run).teacher_dir.exists() and (Run.of(run).data_dir / "items.parquet").exists()


def test_a_teacher_that_lies_elsewhere_is_named(run, tmp_path):
    elsewhere = tmp_path / "backup"
    shutil.move(next((Run.of(run).folder / ".cache" / "teachers").iterdir()), elsewhere)
    sweep(replace(run, teacher_folder=str(elsewhere)))
    assert Run.of(run).teacher_dir.is_dir()
    shutil.rmtree(run.cache)
    for folder, said in ((tmp_path, "holds no teacher of a run"), (elsewhere, "the run's teacher")):
        if folder == elsewhere:
            (elsewhere / "source.json").write_text(json.dumps({"sha256": "0" * 64}))
        with pytest.raises(ValueError, match=said):
            restore(Run.of(replace(run, teacher_folder=str(folder))))
    assert not Path(run.cache, "teachers").exists()
