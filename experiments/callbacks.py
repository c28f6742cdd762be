"""What happens beside the training step: metrics, study checkpoints, the state to resume from, the progress bar."""

import time
from pathlib import Path
from typing import Any

import lightning as L

from experiments.progress import progress
from experiments.records import append_metrics, drop_metrics_from
from experiments.strategy import draw
from supernet.checkpoint import save_trained


class Metrics(L.Callback):
    """One row of metrics.jsonl per step; rows that a resumed run will write again are dropped first."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        drop_metrics_from(self.folder, module.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = module.global_step - 1
        placement = draw(module.config.distill, module.student.config, module.config.seed, step)
        row = {"step": step, "tokens": module.tokens_seen, "placement": str(placement)}
        append_metrics(self.folder, row | {name: float(value) for name, value in outputs.items()})


class StudyCheckpoints(L.Callback):
    """``checkpoints/step-000100/`` at the declared steps, step 0 included."""

    def __init__(self, folder: Path, steps: list[int], identity: dict[str, Any]):
        self.folder, self.steps, self.identity = folder, set(steps), identity

    def save(self, module: L.LightningModule) -> None:
        folder = self.folder / "checkpoints" / f"step-{module.global_step:06d}"
        if module.global_step in self.steps and not folder.exists():
            save_trained(module.student, folder, self.identity | {"step": module.global_step, "tokens": module.tokens_seen})

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.save(module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.save(module)


class ResumeState(L.Callback):
    """Everything needed to continue (trained tensors, optimizer, schedule, step), every ``seconds``; renamed into place."""

    def __init__(self, path: Path, seconds: float):
        self.path, self.seconds, self.last = path, seconds, time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() - self.last >= self.seconds:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".tmp")
            try:
                trainer.save_checkpoint(temporary)
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)  # on a full disk its space is needed to say so in status.json
            self.last = time.monotonic()


class Bar(L.Callback):
    """One progress bar over all optimizer steps, whatever the epochs."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar = progress(None, "distill", total=trainer.max_steps, initial=module.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.bar.set_postfix(loss=f"{float(outputs['loss']):.3f}", refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar.close()
