"""Two real processes on a CPU, DDP and FSDP2, against one process: same losses, same weights, each continues the other's state."""

import json
import signal
from pathlib import Path

import pytest
import torch
from chain import call
from safetensors.torch import load_file

from experiments.data.items import read_items, write_items
from experiments.faults.drill import SMALL, end, start, wait_until
from supernet.scoring import Item

# Decay moves every weight whose mixer has a gradient, be it zero: a mixer that was never drawn must not move.
OPTIONS = [*SMALL, "distill.steps=4", "distill.checkpoints=3", "distill.weight_decay=0.1", "distill.calibrate=0"]
STRATEGIES = pytest.mark.parametrize("strategy", ["ddp", "fsdp"])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """(options, folder) of a run by one process; its training sequences are of different lengths, so ranks see different masks."""
    cache = tmp_path_factory.mktemp("cache")
    call("teach", [*OPTIONS, f"results={cache / 'results'}", f"cache={cache}"])
    path = next(cache.glob("data/*/train.parquet"))
    items = [Item(i.name, i.task, i.tokens[: 13 + 5 * n % 12], i.prompt) for n, i in enumerate(read_items(path))]
    write_items(items, path)
    options = [*OPTIONS, f"cache={cache}"]
    return options, distilled(options, cache / "one")


def distilled(options: list[str], results: Path) -> Path:
    call("distill", [*options, f"results={results}"])
    return next((results / "tiny").iterdir())


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoints/step-{step:06d}/model.safetensors")


def assert_same(folder: Path, reference: Path) -> None:
    for ours, its in zip(rows(folder), rows(reference), strict=True):
        assert ours["placement"] == its["placement"] and ours["tokens"] == its["tokens"]
        assert {k: v for k, v in ours.items() if isinstance(v, float)} == pytest.approx(
            {k: v for k, v in its.items() if isinstance(v, float)}, rel=1e-5, abs=1e-6
        )
    for step in (0, 2, 4):
        ours, its = weights(folder, step), weights(reference, step)
        assert ours.keys() == its.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], its[name], rtol=0, atol=1e-5)


@pytest.mark.slow
@STRATEGIES
def test_two_processes_equal_one(one, tmp_path, strategy):
    options, reference = one
    folder = distilled([*options, "trainer.devices=2", f"trainer.strategy={strategy}"], tmp_path)
    assert_same(folder, reference)
    status = json.loads((folder / "status.json").read_text())["distill"]
    assert status["state"] == "done" and status["attempt"] == 1
    drawn = {(layer, letter) for row in rows(folder) for layer, letter in enumerate(row["placement"])}
    first, last = weights(folder, 0), weights(folder, 4)
    for name in first:
        layer, letter = int(name.split(".")[1]), name.split(".mixers.")[1][0]
        if (layer, letter) not in drawn:
            assert torch.equal(first[name], last[name]), name


@pytest.mark.slow
@STRATEGIES
def test_a_stopped_training_is_continued_by_another_number_of_devices(one, tmp_path, strategy):
    options, reference = one
    options = [*options, f"results={tmp_path}"]
    two = [*options, "trainer.devices=2", f"trainer.strategy={strategy}"]
    process = start("distill", two)
    wait_until(lambda: any(tmp_path.glob("tiny/*/checkpoints/resume.ckpt")), process)
    process.send_signal(signal.SIGTERM)
    assert end(process).returncode in (128 + signal.SIGTERM, 0)  # 0: the last step was done before the signal came
    call("distill", options)
    folder = next((tmp_path / "tiny").iterdir())
    assert_same(folder, reference)
    assert not (folder / "checkpoints/resume.ckpt").exists()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("distill.batch=3 trainer.devices=2", "distill.batch=3 does not divide among 2 devices: give a multiple of 2"),
        ("trainer.strategy=fsdp", "trainer.strategy is 'fsdp' on one device"),
        ("trainer.strategy=zero trainer.devices=2", "choose from auto, ddp, fsdp"),
    ],
)
def test_bad_input_is_one_line(small, option, says):
    done = call("distill", [*small, *option.split()], expect=1)
    assert says in done.stderr and done.stderr.strip().count("\n") == 0
