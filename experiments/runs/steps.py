"""Folders of steps, ``step-000100``: six digits or more, in the order of their numbers."""

import re
from pathlib import Path


def step_dirs(folder: Path) -> dict[int, Path]:
    """The folders of steps inside ``folder`` by step, ascending; {} where there is no such folder."""
    named = ((re.fullmatch(r"step-(\d{6,})", path.name), path) for path in folder.glob("step-*"))
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def whole_checkpoints(run: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by step, ascending: meta.json is written last."""
    return {step: path for step, path in step_dirs(run / "checkpoints").items() if (path / "meta.json").exists()}


def step_dir(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def checkpoint_dir(run: Path, step: int) -> Path:
    return step_dir(run / "checkpoints", step)


def state_path(folder: Path) -> Path:
    """The state to resume from; it is there while a training is unfinished."""
    return folder / "checkpoints" / "resume.ckpt"
