"""FSDP2: every mixer and every MLP is cut among the devices and put together only while it is used.

Each of them is a unit of its own, not the block: student and teacher call the same MLPs, and a mixer that was not drawn is not gathered.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from supernet.decoder import Supernet


class Sharded(ModelParallelStrategy):
    """Data-parallel over all devices. A state to resume from holds whole tensors, in the format of one process, so that any number of
    devices can continue it."""

    def __init__(self, devices: int):
        super().__init__(data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        return trained_tensors(self.lightning_module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        saved = optimizer.state_dict()
        state = {i: {name: whole(value) for name, value in its.items()} for i, its in saved["state"].items()}
        return {"state": state, "param_groups": saved["param_groups"]}

    def load_checkpoint(self, checkpoint_path: str, weights_only: bool | None = None) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only=weights_only)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        parameters = dict(self.lightning_module.named_parameters())
        for name, tensor in checkpoint["state_dict"].items():
            parameters[name].copy_(like(parameters[name], tensor))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                i: {name: value if name == "step" else like(parameters[i], value) for name, value in its.items()}
                for i, its in saved["state"].items()
            }
            optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def shard(models: Iterable[Supernet], mesh: DeviceMesh) -> None:
    """Cut mixers and MLPs of the models among the devices of ``mesh``; what the models share is cut once. Norms, embedding and head stay
    whole. The trained tensors are the first device's, should the others have initialised them a rounding error apart."""
    models = list(models)
    for p in [p for model in models for p in model.parameters() if p.requires_grad]:
        tensor = p.detach().to(mesh.device_type)
        dist.broadcast(tensor, src=0)
        p.data.copy_(tensor)
    units = {id(unit): unit for model in models for block in model.blocks for unit in (*block.mixers.values(), block.mlp)}
    for unit in units.values():
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """The tensor put together from all devices, on the CPU; every process has to ask for it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def like(sharded: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, which every process has, cut as ``sharded`` is."""
    if not isinstance(sharded, DTensor):
        return tensor
    return distribute_tensor(tensor.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None)


def trained_tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """Every tensor that is trained, whole, in the first process; {} in the others."""
    tensors = {name: whole(p.detach()) for name, p in module.named_parameters() if p.requires_grad}
    return tensors if dist.get_rank() == 0 else {}
