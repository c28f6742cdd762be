"""What happens beside the training step: metrics, study checkpoints, the progress bar. Only the first process writes."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from experiments.runs.progress import progress
from experiments.runs.records import append_metrics, drop_metrics_from
from experiments.training.parallel import mean_over_ranks, on_any_rank
from experiments.training.sharded import Sharded, trained_tensors
from experiments.training.strategy import draw
from supernet.checkpoint import save_trained


class Metrics(L.Callback):
    """One row of metrics.jsonl per step; rows that a resumed run will write again are dropped first."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            drop_metrics_from(self.folder, module.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = module.global_step - 1
        placement = draw(module.options, module.student.config, module.config.seed, step)
        row = {"step": step, "tokens": module.tokens_seen, "placement": str(placement)}
        values = mean_over_ranks(torch.stack(list(outputs.values()))).tolist()
        if trainer.is_global_zero:
            append_metrics(self.folder, row | dict(zip(outputs, values, strict=True)))


class StudyCheckpoints(L.Callback):
    """``checkpoints/step-000100/`` at the declared steps, step 0 included."""

    def __init__(self, folder: Path, steps: list[int], identity: dict[str, Any]):
        self.folder, self.steps, self.identity = folder, set(steps), identity

    def save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if module.global_step not in self.steps:
            return
        folder = self.folder / "checkpoints" / f"step-{module.global_step:06d}"
        (missing,) = on_any_rank([trainer.is_global_zero and not folder.exists()], module.device)
        tensors = trained_tensors(module.student) if missing and isinstance(trainer.strategy, Sharded) else None
        if missing and trainer.is_global_zero:
            save_trained(module.student, folder, self.identity | {"step": module.global_step, "tokens": module.tokens_seen}, tensors)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.save(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.save(trainer, module)


class Bar(L.Callback):
    """One progress bar over all optimizer steps, whatever the epochs."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        label = module.config.stage if trainer.is_global_zero else None
        self.bar = progress(None, label, total=trainer.max_steps, initial=module.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.bar.set_postfix(loss=f"{float(outputs['loss']):.3f}", refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar.close()
