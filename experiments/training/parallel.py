"""Training on several devices: where this process stands among the others, how Lightning is told, and means over all of them."""

import os
from typing import Any

import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from experiments.config import TrainerConfig
from experiments.training.sharded import Sharded


def device_count(trainer: TrainerConfig) -> int:
    """Devices, and processes, of one training."""
    return trainer.devices * trainer.nodes


def environment(trainer: TrainerConfig) -> ClusterEnvironment:
    """torchrun's or srun's ranks where one of them started several processes; else Lightning starts the other ones of this machine.

    Raises ValueError where as many processes as there are devices were not, or cannot be, started.
    """
    devices = device_count(trainer)
    if devices == 1:
        return LightningEnvironment()
    if TorchElasticEnvironment.detect():
        found: ClusterEnvironment = TorchElasticEnvironment()
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        found = SLURMEnvironment(auto_requeue=False)
    elif trainer.nodes > 1:
        raise ValueError(f"trainer.nodes={trainer.nodes}: start {devices} processes of this command with srun or torchrun")
    elif HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ValueError(f"trainer.devices={devices} in a grid needs a process per cell: add hydra/launcher=local or hydra/launcher=slurm")
    else:
        return LightningEnvironment()
    if found.world_size() != devices:
        raise ValueError(f"{found.world_size()} processes were started for trainer.devices={trainer.devices} x "
                         f"trainer.nodes={trainer.nodes}: start {devices}, or change these options")  # fmt: skip
    return found


def is_first(trainer: TrainerConfig) -> bool:
    """Whether this process is the one that writes the run's files; known before the processes have found each other."""
    if device_count(trainer) == 1:
        return True
    its = environment(trainer)
    return its.local_rank() == its.node_rank() == 0


def trainer_options(options: TrainerConfig) -> dict[str, Any]:
    """The Trainer's arguments that say where and how to train."""
    its = environment(options)
    on_gpus = options.accelerator in ("gpu", "cuda") or options.accelerator == "auto" and torch.cuda.is_available()
    if on_gpus and options.devices > torch.cuda.device_count():
        raise ValueError(f"trainer.devices={options.devices} and torch sees {torch.cuda.device_count()} GPUs: lower it")
    strategy: Any = "auto"
    if device_count(options) > 1:
        # every step leaves the mixers that it did not draw unused
        strategy = Sharded(device_count(options)) if options.strategy == "fsdp" else DDPStrategy(find_unused_parameters=True)
    return {
        "accelerator": options.accelerator,
        "devices": options.devices,
        "num_nodes": options.nodes,
        "strategy": strategy,
        "plugins": [its],
    }


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of ``values`` over all processes, in each of them; ``values`` itself where there is one."""
    if not dist.is_initialized():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def share_of_mean(weight: Tensor) -> Tensor:
    """What a process multiplies its own weighted mean by, so that the mean over processes is the weighted mean over everything: exactly 1
    where there is one. ``weight`` is the sum of the weights in this process."""
    return weight / mean_over_ranks(weight)


def on_any_rank(flags: list[bool], device: torch.device) -> list[bool]:
    """Whether each flag is set in any of the processes, so that all of them do the same."""
    if not dist.is_initialized():
        return flags
    return (mean_over_ranks(torch.tensor(flags, dtype=torch.float32, device=device)) > 0).tolist()
