"""Lightning's own loggers, by name: curves of a training beside the run's metrics.jsonl."""

import importlib.util
import os
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb"}


def make_logger(name: str, folder: Path) -> Logger | None:
    """The logger of a run, which writes into its ``logs/``; None for ``none``. ValueError where its package is not installed.

    Weights & Biases stays offline where it has no key, and says so in a line.
    """
    if name == "none":
        return None
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        raise ValueError(f"trainer.logger={name} needs a package: pip install {NEEDS[name]}, or choose none or csv")
    logs = folder / "logs"
    if name == "csv":
        return CSVLogger(logs, name="")
    if name == "tensorboard":
        return TensorBoardLogger(logs, name="")
    from lightning.pytorch.loggers import WandbLogger

    logs.mkdir(parents=True, exist_ok=True)
    offline = "WANDB_API_KEY" not in os.environ and not (Path.home() / ".netrc").exists()
    if offline:
        print(f"wandb: no key, so the curves stay in {logs}: wandb sync uploads them")
    return WandbLogger(name=folder.name, project="placement-suite", save_dir=logs, offline=offline)
