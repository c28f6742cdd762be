"""Numbers that are not finite end a training: nothing that follows from them is kept."""

import torch
from torch import Tensor, nn


class NotFinite(ValueError):
    """A loss, a gradient or a weight became infinite or not a number."""

    def __init__(self, step: int, placement: str, what: str):
        remedy = "lower distill.lr or distill.clip (which makes another run)"
        super().__init__(f"step {step} (placement {placement}): {what}: training stopped, the last good state is kept: {remedy}")


def first_not_finite(model: nn.Module) -> str:
    """The name of the first trained tensor that holds a number that is not finite, or ''. Of a shard, where the model is cut."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return next((name for name, p in trained.items() if not finite(p)), "")


def finite(tensor: Tensor) -> bool:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return bool(torch.isfinite(local).all())
