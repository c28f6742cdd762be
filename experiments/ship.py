"""``python -m experiments.ship scale=tiny``: make anew the teacher and the evaluation items that come with the suite.

Another CPU, or another version of torch, trains another teacher: then every run that is made with it has other numbers.
"""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from experiments.config import Config
from experiments.data.making import make_missing
from experiments.run import SHIPPED, Run
from experiments.runs.entry import run


def ship(config: Config, shipped: Path = SHIPPED) -> None:
    """Train the teacher, sample the items, and put both where ``experiments.teach`` looks for them."""
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        made = Run.of(replace(config, cache=folder))
        make_missing(made, config.device, shipped=Path(folder) / "nothing")
        for source in (made.teacher_dir, made.sequences("items")):
            target = shipped / source.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            shutil.move(source, target)
            print(f"shipped: {target}")


if __name__ == "__main__":
    run(ship)
