"""What distillation and fine-tuning share: the step around their losses, the Trainer, the records of a run."""

import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from experiments.config import DistillConfig, SftConfig
from experiments.data.items import batch_of_step, collate, read_items, sha256
from experiments.data.synthetic import unlearned
from experiments.data.tokens import copy_tokenizer
from experiments.run import Run
from experiments.runs.kept import check_origins, keep
from experiments.runs.kernels import choose_kernels, compile_shared
from experiments.runs.records import read_json, status, update_manifest, write_text
from experiments.runs.steps import state_path
from experiments.training.callbacks import Bar, Metrics, StudyCheckpoints, Validation
from experiments.training.finite import NotFinite, finite
from experiments.training.loggers import make_logger
from experiments.training.parallel import is_first, mean_over_ranks, trainer_options
from experiments.training.resume import ResumeState
from experiments.training.schedule import never_reached, rate_factor, total_steps
from experiments.training.sharded import Sharded, shard, whole
from experiments.training.strategy import checkpoint_steps, draw
from supernet.decoder import Supernet
from supernet.placement import Placement
from supernet.scoring import Item
from supernet.size import count_parameters, count_trainable

Batch = tuple[Tensor, Tensor, Tensor]
"""Of ``experiments.data.items.collate``."""


class Training(L.LightningModule):
    """One step: draw a placement, form the losses of a subclass.

    A mixer that was not drawn has gradient None, so AdamW leaves it and its moments alone.
    """

    def __init__(self, run: Run, options: DistillConfig | SftConfig, student: Supernet):
        super().__init__()
        self.strict_loading = False  # the state to resume from holds the trained tensors only
        self.run, self.options, self.student = run, options, student
        self.tokens_seen = 0
        self.told: dict[str, float] = {}  # of the last step: gradient norm and learning rates

    def losses(self, batch: Batch, placement: Placement) -> dict[str, Tensor]:
        """``loss`` and its terms, scaled so that their mean over all processes is that of the whole batch."""
        raise NotImplementedError

    def placement_of(self, step: int) -> Placement:
        return draw(self.options, self.student.config, self.run.seed, step, self.run.distill.train_mixers)

    def training_step(self, batch: Batch, _: int) -> dict[str, Tensor]:
        terms = self.losses(batch, self.placement_of(self.global_step))
        self.loss = terms["loss"].detach()
        self.tokens_seen += round(float(mean_over_ranks(batch[1].sum().float())) * self.ranks())
        return {name: value if name == "loss" else value.detach() for name, value in terms.items()}

    def ranks(self) -> int:
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, Sharded):
            shard([m for m in self.children() if isinstance(m, Supernet)], self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a group, and a factor of the rate, for each mixer letter that is trained."""
        o, of = self.options, self.run.distill.lr_of
        named = [(name.split(".mixers.")[1][0], p) for name, p in self.student.named_parameters() if p.requires_grad]
        groups = [
            {"name": letter, "lr": o.lr * of.get(letter, 1.0), "params": [p for its, p in named if its == letter]}
            for letter in dict.fromkeys(letter for letter, _ in named)
        ]
        optimizer = torch.optim.AdamW(groups, lr=o.lr, weight_decay=o.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(o, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: object, **__: object) -> None:
        """Clip by the norm of all gradients, in all processes; a step with a loss or a norm that is not finite is not taken."""
        norm = whole(torch.nn.utils.clip_grad_norm_([p for p in self.student.parameters() if p.requires_grad], self.options.clip))
        self.told = {"gradient_norm": float(norm)} | {f"lr_{group['name']}": group["lr"] for group in optimizer.param_groups}
        for what, value in (("loss", mean_over_ranks(self.loss)), ("gradient norm", norm)):
            if not finite(value):
                step = self.global_step
                raise NotFinite(step, self.placement_of(step), f"the {what} is {float(value)}")

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in trained}
        checkpoint["tokens_seen"] = self.tokens_seen

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.tokens_seen = checkpoint["tokens_seen"]


class StepBatches(IterableDataset):
    """The batches from the module's current step on, each process its share of the sequences.

    What a step trains on depends on (seed, step) alone, so nothing need be saved.
    """

    def __init__(self, module: Training, items: list[Item]):
        self.module, self.items = module, items

    def __iter__(self) -> Iterator[Batch]:
        module, trainer = self.module, self.module.trainer
        for step in range(module.global_step, total_steps(module.options)):
            chosen = batch_of_step(len(self.items), module.options.batch, module.run.seed, step)
            yield collate([self.items[i] for i in chosen[trainer.global_rank :: trainer.world_size]])


def visits(module: Training) -> pd.DataFrame:
    """How many training steps draw each mixer at each layer: columns layer and the mixer letters."""
    model, drawn = module.student.config, [module.placement_of(step) for step in range(module.options.steps)]
    rows = [{"layer": layer} | {m: sum(p[layer] == m for p in drawn) for m in model.mixers} for layer in range(model.layers)]
    return pd.DataFrame(rows)


def frozen_dtype(precision: str) -> torch.dtype:
    """Of the tensors that are not trained."""
    return torch.bfloat16 if precision == "bf16-mixed" else torch.float32


def device(accelerator: str) -> str:
    """Where the training runs: cuda or cpu."""
    return "cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu"


@contextmanager
def recorded(run: Run, **fields: object) -> Iterator[None]:
    """status.json, config.yaml and manifest.json (with ``fields``) of a training, and of its cooled copy: written by its first process."""
    dtype = str(frozen_dtype(run.distill.precision)).removeprefix("torch.")
    choose = partial(choose_kernels, run.kernels, run.model, device(run.trainer.accelerator), dtype, run.cache)
    torch.set_num_threads(run.threads)  # recorded in the manifest with the rest of the hardware
    if not is_first(run.trainer):
        choose()
        yield
        return
    with status(run.folder, run.stage):
        check_origins(run)
        write_text(run.folder / "config.yaml", run.options(run.stage))
        copy_tokenizer(run.teacher_dir / "tokenizer", run.folder / "tokenizer")
        known = dict(
            data={name: sha256(run.sequences(name)) for name in ("train", "items")},
            parameters=count_parameters(run.model),
            trained_parameters=count_trainable(run.model, run.distill.train_mixers),
            delta_rule=choose(),
            **fields,
        )
        own = identity(run)
        warned = [*never_reached(run.training), *unlearned(own["teacher"].get("loss", {}))]
        print("".join(f"warning: {line}\n" for line in warned), end="", flush=True)
        if warned:
            known["warnings"] = warned
        update_manifest(run.folder, **own, **known)
        keep(run)
        if cooled := run.cooled:
            write_text(cooled.folder / "config.yaml", cooled.options(cooled.stage))
            update_manifest(cooled.folder, **identity(cooled), **known)
            keep(cooled)
        yield


def identity(run: Run) -> dict[str, Any]:
    """What names a checkpoint: run, seed and teacher, with where that lay."""
    source = read_json(run.teacher_dir / "source.json") | {"folder": str(run.teacher_dir)}
    return {"scale": run.scale, "run": run.id, "seed": run.seed, "teacher": source}


def fit(module: Training, items: list[Item]) -> None:
    """Train from the state to resume from, if there is one, to the last step, into the run's folder.

    Asked to stop, it saves that state and raises Stopped.
    """
    run, options, folder = module.run, module.options, module.run.folder
    steps, state = checkpoint_steps(options), state_path(folder)
    if is_first(run.trainer):
        write_text(folder / "tables" / "visits.csv", visits(module).to_csv(index=False))
    quiet_lightning()
    if state.exists() and not zipfile.is_zipfile(state):
        raise ValueError(f"{state} is truncated: delete it and run the same command again, which trains from the start")
    resume = ResumeState(state, run.trainer.save_seconds)
    logger = make_logger(run.trainer.logger, folder)
    kept = [StudyCheckpoints(folder, steps, identity(run))]
    if cooled := run.cooled:
        kept += [StudyCheckpoints(cooled.folder, [total_steps(options)], identity(cooled))]
    held_out = read_items(run.items, min(options.batch, run.data.items))
    trainer = L.Trainer(
        **trainer_options(run.trainer),
        precision=run.distill.precision,
        max_steps=total_steps(options),
        callbacks=[Metrics(folder), *kept, Validation(folder, steps, collate(held_out)), resume, Bar(run.stage)],
        logger=logger or False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    if run.trainer.compile:
        compile_shared(module.student)
    # Pinned batches are copied to a GPU while it computes.
    loader = DataLoader(StepBatches(module, items), batch_size=None, pin_memory=device(run.trainer.accelerator) == "cuda")
    trainer.fit(module, loader, ckpt_path=str(state) if state.exists() else None, weights_only=False)
    if trainer.is_global_zero:
        if module.global_step < total_steps(options):
            resume.raise_if_stopped()
        state.unlink(missing_ok=True)
        print(f"{run.stage}: {len(steps)} checkpoints in {folder}")


def quiet_lightning() -> None:
    """Its banners, and its surprise that a frozen teacher is in eval mode, say nothing about this run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(eval mode at the start of training|LeafSpec|does not have many workers).*")
