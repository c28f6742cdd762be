"""Runs as the suite leaves them, made without training: one on synthetic sequences, one of a language model with a tokenizer."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from language import write_folder

from supernet.checkpoint import save_trained
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.initialise import initialise
from supernet.teacher import from_hugging_face, load_teacher, save_teacher

TINY = SupernetConfig(layers=2, hidden=32, ffn=48, heads=2, kv_heads=1, head_dim=16, vocab=64, window=8)


def write_run(root: Path, name: str, config: dict, teacher: Supernet, model: SupernetConfig, steps: tuple[int, ...]) -> Path:
    """Checkpoints of a supernet that starts as the teacher's and is moved at random, but for its attention F, which stays."""
    save_teacher(teacher, root / ".cache" / "teachers" / name, "made here")
    sha256 = json.loads((root / ".cache" / "teachers" / name / "source.json").read_text())["sha256"]
    run = root / "results" / name / "local-s1-00000000"
    torch.manual_seed(1)
    student = Supernet(model)
    initialise(student, load_teacher(root / ".cache" / "teachers" / name))
    for parameter_name, p in student.named_parameters():
        p.requires_grad_(".mixers." in parameter_name)
    for step in steps:
        for parameter_name, p in student.named_parameters():
            if any(f".mixers.{letter}." in parameter_name for letter in "SKG"):
                p.data += 0.02 * torch.randn_like(p)
        save_trained(student, run / "checkpoints" / f"step-{step:06d}", {"tokens": 100 * step, "teacher": {"sha256": sha256}})
    (run / "config.yaml").write_text(yaml.safe_dump({"scale": name, "seed": 1, **config}))
    (run / "presets.yaml").write_text(yaml.safe_dump({"presets": {"loglik-1": {"placement": "F" + "K" * (model.layers - 1)}}}))
    return run


@pytest.fixture
def synthetic(tmp_path) -> Path:
    torch.manual_seed(0)
    teacher = Supernet(TINY.replace(mixers="F")).eval()
    torch.nn.init.normal_(teacher.embed.weight, std=0.5)
    return write_run(tmp_path, "small", {"data": {"kind": "synthetic", "length": 48}}, teacher, TINY, (0, 5, 20))


@pytest.fixture
def language(tmp_path) -> Path:
    """With the Hugging Face folder of its teacher, tokenizer included, at tmp_path / "hf"."""
    folder = write_folder(tmp_path / "hf")
    teacher = from_hugging_face(folder, "", window=16)
    config = {"teacher": {"path": folder}, "data": {"kind": "reasoning", "tasks": ["gcd"]}}
    mixers = teacher.config.replace(mixers="FSKG", window=16)
    return write_run(tmp_path, "words", config, teacher, mixers, (10,))
