"""A run's teacher and supernet, put together: frozen parts are the same tensors in both, held once."""

import torch
from torch import nn

from experiments.config import Config, data_dir, model_config, teacher_dir
from experiments.data.items import read_items
from experiments.runs.progress import progress
from experiments.runs.streams import torch_seed
from supernet.decoder import Supernet
from supernet.initialise import calibrate, initialise
from supernet.mixers import MIXERS
from supernet.teacher import load_teacher


def load_frozen(config: Config, dtype: torch.dtype) -> Supernet:
    """The frozen teacher, an all-FA supernet. Raises ValueError when it has not been made."""
    return load_teacher(teacher_dir(config), dtype)


def empty_supernet(config: Config, teacher: Supernet) -> Supernet:
    """A supernet whose norms, MLPs, embedding and head *are* the teacher's modules; its mixers are random, trainable per the config."""
    model = model_config(config)
    with torch.random.fork_rng(devices=[]):  # module constructors know no generator
        torch.manual_seed(torch_seed(config.seed, "mixers"))
        with torch.device("meta"):
            student = Supernet(model)
        for block in student.blocks:
            block.mixers = nn.ModuleDict({letter: MIXERS[letter](model) for letter in model.mixers})
    student.embed, student.norm, student.head = teacher.embed, teacher.norm, teacher.head
    for block, frozen in zip(student.blocks, teacher.blocks, strict=True):
        block.mixer_norm, block.mlp_norm, block.mlp = frozen.mixer_norm, frozen.mlp_norm, frozen.mlp
    for name, p in student.named_parameters():
        p.requires_grad_(".mixers." in name and name.split(".mixers.")[1][0] in config.distill.train_mixers)
    return student


def initialised_supernet(config: Config, teacher: Supernet) -> Supernet:
    """The supernet of step 0."""
    student = empty_supernet(config, teacher)
    initialise(student, teacher)
    if config.distill.calibrate:
        calibrate(student, teacher, calibration_tokens(config), progress=lambda layers: progress(layers, "calibrate"))
    return student


def supernet_to_load(config: Config, teacher: Supernet) -> Supernet:
    """A supernet for a checkpoint's tensors: initialised only where training leaves a mixer as it started."""
    trains_all = set(config.distill.train_mixers) == set(model_config(config).mixers)
    return (empty_supernet if trains_all else initialised_supernet)(config, teacher)


def calibration_tokens(config: Config) -> torch.Tensor:
    """The longest of the first training sequences, cut to one length so that none is padded: [distill.calibrate, T]."""
    items = read_items(data_dir(config) / "train.parquet", min(4 * config.distill.calibrate, config.data.train))
    tokens = sorted((item.tokens for item in items), key=len, reverse=True)[: config.distill.calibrate]
    return torch.stack([t[: len(tokens[-1])] for t in tokens])
