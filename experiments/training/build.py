"""A run's teacher and supernet, put together: frozen parts are the same tensors in both, held once."""

import torch
from torch import nn

from experiments.data.items import read_items
from experiments.run import Run
from experiments.runs.progress import progress
from experiments.runs.streams import torch_seed
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.initialise import calibrate, initialise
from supernet.mixers import MIXERS
from supernet.scoring import Item


def empty_supernet(model: SupernetConfig, teacher: Supernet, seed: int, trained: str) -> Supernet:
    """A supernet whose norms, MLPs, embedding and head *are* the teacher's modules; its mixers are random, some ``trained``."""
    with torch.random.fork_rng(devices=[]):  # module constructors know no generator
        torch.manual_seed(torch_seed(seed, "mixers"))
        with torch.device("meta"):
            student = Supernet(model)
        for block in student.blocks:
            block.mixers = nn.ModuleDict({letter: MIXERS[letter](model) for letter in model.mixers})
    student.embed, student.norm, student.head = teacher.embed, teacher.norm, teacher.head
    for block, frozen in zip(student.blocks, teacher.blocks, strict=True):
        block.mixer_norm, block.mlp_norm, block.mlp = frozen.mixer_norm, frozen.mlp_norm, frozen.mlp
    for name, p in student.named_parameters():
        p.requires_grad_(".mixers." in name and name.split(".mixers.")[1][0] in trained)
    return student


def initialised_supernet(run: Run, teacher: Supernet) -> Supernet:
    """The supernet of step 0."""
    student = empty_supernet(run.model, teacher, run.seed, run.distill.train_mixers)
    initialise(student, teacher)
    if count := run.distill.calibrate:
        tokens = calibration_tokens(read_items(run.sequences("train"), min(4 * count, run.data.train)), count)
        calibrate(student, teacher, tokens, progress=lambda layers: progress(layers, "calibrate"))
    return student


def supernet_to_load(run: Run, teacher: Supernet) -> Supernet:
    """A supernet for a checkpoint's tensors: initialised only where training leaves a mixer as it started."""
    trained = run.distill.train_mixers
    if set(trained) == set(run.model.mixers):
        return empty_supernet(run.model, teacher, run.seed, trained)
    return initialised_supernet(run, teacher)


def calibration_tokens(items: list[Item], count: int) -> torch.Tensor:
    """The ``count`` longest sequences, cut to one length so that none is padded: [count, T]."""
    tokens = sorted((item.tokens for item in items), key=len, reverse=True)[:count]
    return torch.stack([t[: len(tokens[-1])] for t in tokens])
