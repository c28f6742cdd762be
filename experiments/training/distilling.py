"""The distillation: its losses around the common step, and its start."""

import torch
from torch import Tensor

from experiments.data.items import read_items
from experiments.run import Run
from experiments.runs.kept import restore
from experiments.runs.steps import state_path
from experiments.training.build import initialised_supernet, supernet_to_load
from experiments.training.loop import Batch, Training, fit, frozen_dtype, recorded
from experiments.training.parallel import share_of_mean
from supernet.decoder import Supernet
from supernet.ops.losses import activation_error, activation_power, kl_losses
from supernet.placement import Placement
from supernet.teacher import load_teacher


class Distillation(Training):
    """Match the teacher's mixer outputs and its next-token distribution in both directions."""

    def __init__(self, run: Run, student: Supernet, teacher: Supernet):
        super().__init__(run, run.training, student)
        self.teacher = teacher

    def losses(self, batch: Batch, placement: Placement) -> dict[str, Tensor]:
        options, (tokens, mask, _) = self.options, batch
        with torch.no_grad():
            teacher_hidden, teacher_mixed = self.teacher.features(tokens, "F" * self.student.config.layers)
        hidden, mixed = self.student.features(tokens, placement, self.run.trainer.recompute)
        forward_kl, reverse_kl = kl_losses(hidden, teacher_hidden, self.student.head, self.teacher.head, mask)
        errors = torch.stack([activation_error(s, t, mask, options.activation) for s, t in zip(mixed, teacher_mixed, strict=True)])
        if self.ranks() > 1:  # a process sees its own tokens: weight its means by how much they count among all
            share = share_of_mean(mask.sum().float())
            powers = torch.stack([activation_power(t, mask, options.activation) for t in teacher_mixed])
            forward_kl, reverse_kl, errors = forward_kl * share, reverse_kl * share, errors * share_of_mean(powers)
        activation = errors.mean()
        loss = options.activation_weight * activation + options.forward_kl_weight * forward_kl + options.reverse_kl_weight * reverse_kl
        return {"loss": loss, "activation": activation, "forward_kl": forward_kl, "reverse_kl": reverse_kl}


def train(run: Run) -> None:
    """From the state to resume from, or from the teacher, to the last checkpoint."""
    restore(run)
    teacher = load_teacher(run.teacher_dir, torch.float32)
    items = read_items(run.sequences("train"), run.data.train)
    with recorded(run):
        student = (supernet_to_load if state_path(run.folder).exists() else initialised_supernet)(run, teacher)
        teacher.cast(frozen_dtype(run.distill.precision))  # the student's frozen modules are the same tensors
        fit(Distillation(run, student, teacher), items)
