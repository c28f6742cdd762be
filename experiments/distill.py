"""``python -m experiments.distill scale=...``: stochastic distillation of the supernet from its frozen teacher."""

import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from experiments.build import initialised_supernet, load_frozen, supernet_to_load
from experiments.callbacks import Bar, Metrics, ResumeState, StudyCheckpoints
from experiments.config import Config, data_dir, model_config, run_dir, teacher_dir
from experiments.data import batch_of_step, collate, read_items, sha256
from experiments.entry import run
from experiments.records import read_json, status, update_manifest, write_config, write_text
from experiments.strategy import checkpoint_steps, draw
from supernet.decoder import Supernet
from supernet.ops.losses import activation_error, kl_losses
from supernet.scoring import Item
from supernet.size import count_parameters, count_trainable


class Distillation(L.LightningModule):
    """One step: draw a placement, match the teacher's mixer outputs and its next-token distribution in both directions.

    A mixer that was not drawn has gradient None, so AdamW leaves it and its moments alone.
    """

    def __init__(self, config: Config, student: Supernet, teacher: Supernet):
        super().__init__()
        self.strict_loading = False  # the state to resume from holds the trained tensors only
        self.config, self.student, self.teacher = config, student, teacher
        self.tokens_seen = 0

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> dict[str, Tensor]:
        options, (tokens, mask) = self.config.distill, batch
        placement = draw(options, self.student.config, self.config.seed, self.global_step)
        with torch.no_grad():
            teacher_hidden, teacher_mixed = self.teacher.features(tokens, "F" * self.student.config.layers)
        hidden, mixed = self.student.features(tokens, placement)
        forward_kl, reverse_kl = kl_losses(hidden, teacher_hidden, self.student.head, self.teacher.head, mask)
        errors = [activation_error(s, t, mask, options.activation) for s, t in zip(mixed, teacher_mixed, strict=True)]
        activation = torch.stack(errors).mean()
        loss = options.activation_weight * activation + options.forward_kl_weight * forward_kl + options.reverse_kl_weight * reverse_kl
        self.tokens_seen += int(mask.sum())
        return {"loss": loss, "activation": activation.detach(), "forward_kl": forward_kl.detach(), "reverse_kl": reverse_kl.detach()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        o = self.config.distill
        optimizer = torch.optim.AdamW([p for p in self.student.parameters() if p.requires_grad], lr=o.lr, weight_decay=o.weight_decay)

        def factor(step: int) -> float:
            if step < o.warmup:
                return (step + 1) / o.warmup
            progress = (step - o.warmup) / max(1, o.steps - o.warmup)
            return o.final_lr + (1 - o.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in trained}
        checkpoint["tokens_seen"] = self.tokens_seen

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.tokens_seen = checkpoint["tokens_seen"]


class StepBatches(IterableDataset):
    """The batches from the module's current step on: what a step trains on depends on (seed, step) alone, so nothing need be saved."""

    def __init__(self, module: Distillation, items: list[Item]):
        self.module, self.items = module, items

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        config = self.module.config
        for step in range(self.module.global_step, config.distill.steps):
            yield collate([self.items[i] for i in batch_of_step(len(self.items), config.distill.batch, config.seed, step)])


def visits(config: Config) -> pd.DataFrame:
    """How many training steps drew each mixer at each layer: columns layer and the mixer letters."""
    model = model_config(config)
    drawn = [draw(config.distill, model, config.seed, step) for step in range(config.distill.steps)]
    rows = [{"layer": layer} | {m: sum(p[layer] == m for p in drawn) for m in model.mixers} for layer in range(model.layers)]
    return pd.DataFrame(rows)


def checkpoint_dir(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:06d}"


def quiet_lightning() -> None:
    """Its banners, and its surprise that a frozen teacher is in eval mode, say nothing about this run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(eval mode at the start of training|LeafSpec|does not have many workers).*")


def distill(config: Config) -> None:
    """Train what is missing of a run's checkpoints. Killed at any moment, the same command continues to the same numbers."""
    folder, steps = run_dir(config), checkpoint_steps(config.distill)
    if all((checkpoint_dir(folder, step) / "meta.json").exists() for step in steps):
        print(f"distill: all {len(steps)} checkpoints are in {folder}")
        return
    teacher_folder, train_path = teacher_dir(config), data_dir(config) / "train.parquet"
    frozen_dtype = torch.bfloat16 if config.distill.precision == "bf16-mixed" else torch.float32
    teacher = load_frozen(config, torch.float32)
    items = read_items(train_path, config.data.train)
    quiet_lightning()
    with status(folder, "distill"):
        write_config(folder, config)
        model = model_config(config)
        identity = {"scale": config.scale, "run": folder.name, "seed": config.seed, "teacher": read_json(teacher_folder / "source.json")}
        update_manifest(
            folder,
            **identity,
            data={"train": sha256(train_path), "items": sha256(data_dir(config) / "items.parquet")},
            parameters=count_parameters(model),
            trained_parameters=count_trainable(model, config.distill.train_mixers),
            delta_rule="chunked torch",
        )
        state = folder / "checkpoints" / "resume.ckpt"
        student = (supernet_to_load if state.exists() else initialised_supernet)(config, teacher)
        teacher.cast(frozen_dtype)  # the student's frozen modules are the same tensors
        module = Distillation(config, student, teacher)
        write_text(folder / "tables" / "visits.csv", visits(config).to_csv(index=False))
        trainer = L.Trainer(
            accelerator=config.trainer.accelerator,
            devices=config.trainer.devices,
            precision=config.distill.precision,
            max_steps=config.distill.steps,
            gradient_clip_val=config.distill.clip,
            callbacks=[
                Metrics(folder),
                StudyCheckpoints(folder, steps, identity),
                ResumeState(state, config.trainer.save_seconds),
                Bar(),
            ],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        loader = DataLoader(StepBatches(module, items), batch_size=None)
        trainer.fit(module, loader, ckpt_path=str(state) if state.exists() else None, weights_only=False)
        state.unlink(missing_ok=True)
    print(f"distill: {len(steps)} checkpoints in {folder}")


if __name__ == "__main__":
    run(distill)
