"""Distillation losses. Shapes: B batch, T tokens, D hidden, V vocabulary. Masks [B, T] are true on tokens that count."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Tokens whose logits exist at once."""


def activation_error(student: Tensor, teacher: Tensor, mask: Tensor, kind: str = "relative") -> Tensor:
    """Distance of mixer outputs [B, T, D], a scalar.

    ``relative``: squared error over the teacher's power, both summed over the tokens that count; smooth at zero.
    ``l2``: mean over tokens of the unsquared norm of the difference (Fast-LLM's activation distillation).
    """
    difference = (student.float() - teacher.float()).square().sum(-1)[mask]
    if kind == "relative":
        return difference.sum() / teacher.float().square().sum(-1)[mask].sum().clamp_min(1e-12)
    # A tiny floor keeps the square root differentiable where a copied mixer is exactly right.
    return (difference + 1e-12).sqrt().mean()


def kl_losses(
    student: Tensor, teacher: Tensor, student_head: Callable[[Tensor], Tensor], teacher_head: Callable[[Tensor], Tensor], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """(KL(teacher || student), KL(student || teacher)) in nats per token, means over the mask.

    Takes final hidden states [B, T, D] and the heads, so that only CHUNK tokens' logits exist at once, forward and backward.
    """
    student, teacher = student[mask], teacher[mask]

    def chunk_sums(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_q, log_p = F.log_softmax(student_head(s).float(), -1), F.log_softmax(teacher_head(t).float(), -1)
        gap = log_p - log_q
        return (log_p.exp() * gap).sum(), -(log_q.exp() * gap).sum()

    forward = reverse = torch.zeros((), device=student.device)
    for s, t in zip(student.split(CHUNK), teacher.split(CHUNK), strict=True):
        f, r = checkpoint(chunk_sums, s, t, use_reentrant=False) if len(student) > CHUNK else chunk_sums(s, t)
        forward, reverse = forward + f, reverse + r
    return forward / len(student), reverse / len(student)
