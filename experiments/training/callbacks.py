"""What happens beside the training step: metrics, study checkpoints, the progress bar. Only the first process writes."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from experiments.machine import peak_memory
from experiments.runs.progress import progress
from experiments.runs.records import append_metrics, append_row, drop_metrics_from, keep_rows_before
from experiments.runs.steps import checkpoint_dir
from experiments.training.finite import NotFinite, first_not_finite
from experiments.training.parallel import mean_over_ranks, on_any_rank
from experiments.training.sharded import Sharded, trained_tensors
from supernet.checkpoint import save_trained
from supernet.placement import Placement


class Metrics(L.Callback):
    """One row of metrics.jsonl per step; rows that a resumed run will write again are dropped first."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            drop_metrics_from(self.folder, module.global_step)
        self.clock, self.tokens = time.perf_counter(), module.tokens_seen

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = module.global_step - 1
        row = {"step": step, "tokens": module.tokens_seen, "placement": str(module.placement_of(step))}
        values = dict(zip(outputs, mean_over_ranks(torch.stack(list(outputs.values()))).tolist(), strict=True))
        if trainer.is_global_zero:
            append_metrics(self.folder, row | values | {"gradient_norm": module.told["gradient_norm"]})
        if trainer.loggers:
            self.tell(trainer, module, step, values | module.told)

    def tell(self, trainer: L.Trainer, module: L.LightningModule, step: int, values: dict[str, float]) -> None:
        """The step's values, and those that differ from run to run, to Lightning's loggers."""
        now, tokens = time.perf_counter(), module.tokens_seen
        speed = {
            "tokens": tokens,
            "tokens_per_second": (tokens - self.tokens) / (now - self.clock),
            "memory_gib": memory(module.device) / 2**30,
        }
        self.clock, self.tokens = now, tokens
        for logger in trainer.loggers:
            logger.log_metrics(values | speed, step)


def memory(device: torch.device) -> int:
    """Most bytes that the process has held, on the device where the training runs."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


class StudyCheckpoints(L.Callback):
    """``checkpoints/step-000100/`` at the declared steps, step 0 included."""

    def __init__(self, folder: Path, steps: list[int], identity: dict[str, Any]):
        self.folder, self.steps, self.identity = folder, set(steps), identity

    def save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if module.global_step not in self.steps:
            return
        folder = checkpoint_dir(self.folder, module.global_step)
        (missing,) = on_any_rank([trainer.is_global_zero and not folder.exists()], module.device)
        tensors = trained_tensors(module.student) if missing and isinstance(trainer.strategy, Sharded) else None
        bad = first_not_finite(module.student) if missing else ""
        if any(on_any_rank([bool(bad)], module.device)):
            step = max(0, module.global_step - 1)
            raise NotFinite(step, module.placement_of(step), f"{bad or 'a trained tensor'} is not finite after it")
        if missing and trainer.is_global_zero:
            save_trained(module.student, folder, self.identity | {"step": module.global_step, "tokens": module.tokens_seen}, tensors)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.save(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.save(trainer, module)


class Validation(L.Callback):
    """The losses on held-out sequences at every checkpoint, for each mixer in all layers: a row each of ``validation.jsonl``, and their
    mean to Lightning's loggers."""

    def __init__(self, folder: Path, steps: list[int], batch: tuple[Tensor, Tensor, Tensor]):
        self.path, self.steps, self.batch = folder / "validation.jsonl", set(steps), batch

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero and self.path.exists():
            keep_rows_before(self.path, module.global_step)
        self.validate(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.validate(trainer, module)

    @torch.no_grad()
    def validate(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        step, model = module.global_step, module.student.config
        if step not in self.steps:
            return
        batch = tuple(part.to(module.device) for part in self.batch)
        total: dict[str, float] = {}
        for letter in model.mixers:
            with trainer.precision_plugin.forward_context():
                terms = module.losses(batch, Placement(letter * model.layers))
            values = {name: float(mean_over_ranks(value)) for name, value in terms.items()}
            total = {name: total.get(name, 0.0) + value / len(model.mixers) for name, value in values.items()}
            if trainer.is_global_zero:
                append_row(self.path, {"step": step, "tokens": module.tokens_seen, "placement": letter * model.layers} | values)
        for logger in trainer.loggers:
            logger.log_metrics({f"validation_{name}": value for name, value in total.items()}, max(step - 1, 0))


class Bar(L.Callback):
    """One progress bar over all optimizer steps, whatever the epochs."""

    def __init__(self, name: str):
        self.name = name

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar = progress(None, self.name if trainer.is_global_zero else None, total=trainer.max_steps, initial=module.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.bar.set_postfix(loss=f"{float(outputs['loss']):.3f}", refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar.close()
