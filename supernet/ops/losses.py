"""Distillation losses. Shapes: B batch, T tokens, D hidden, V vocabulary. Masks [B, T] are true on tokens that count."""

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from supernet.ops.blocked_kl import kl_rows, kl_sums

CHUNK = 512
"""Tokens whose logits exist at once."""

CPU_BLOCK = 64
"""The same on a CPU, where one pass forms values and gradients while the logits are in the cache: of 16 to 512 the fastest at 135m."""


def activation_error(student: Tensor, teacher: Tensor, mask: Tensor, kind: str = "relative") -> Tensor:
    """Distance of mixer outputs [B, T, D], a scalar.

    ``relative``: squared error over the teacher's power, both summed over the tokens that count; smooth at zero.
    ``l2``: mean over tokens of the unsquared norm of the difference (Fast-LLM's activation distillation).
    """
    difference = (student.float() - teacher.float()).square().sum(-1)[mask]
    if kind == "relative":
        return difference.sum() / activation_power(teacher, mask, kind)
    # A tiny floor keeps the square root differentiable where a copied mixer is exactly right.
    return (difference + 1e-12).sqrt().mean()


def activation_power(teacher: Tensor, mask: Tensor, kind: str = "relative") -> Tensor:
    """What ``activation_error`` of that kind divides by, a scalar: the teacher's power, or the number of tokens that count."""
    if kind == "relative":
        return teacher.float().square().sum(-1)[mask].sum().clamp_min(1e-12)
    return mask.sum().float()


def frozen(*heads: Callable[[Tensor], Tensor]) -> bool:
    """Whether heads need no gradient: one pass that forms values and gradients gives them none."""
    return all(isinstance(head, nn.Module) and not any(p.requires_grad for p in head.parameters()) for head in heads)


def fused(hidden: Tensor, *heads: Callable[[Tensor], Tensor]) -> bool:
    """Whether the Triton kernel may be used: on CUDA, with Triton there, and heads that are frozen."""
    return hidden.is_cuda and frozen(*heads) and importlib.util.find_spec("triton") is not None


def kl_losses(
    student: Tensor, teacher: Tensor, student_head: Callable[[Tensor], Tensor], teacher_head: Callable[[Tensor], Tensor], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """(KL(teacher || student), KL(student || teacher)) in nats per token, means over the mask.

    Takes final hidden states [B, T, D] and the heads, so that only CHUNK tokens' logits exist at once, forward and backward.
    With frozen heads values and gradients are formed in one pass, on CUDA by a Triton kernel (``triton_kl``). Terms of probability 0
    count 0. A token that the teacher rules out (-inf) and the student does not makes the second infinite, with a gradient of 0.
    """
    student, teacher = student[mask], teacher[mask]
    if fused(student, student_head, teacher_head):
        from supernet.ops.triton_kl import fused_kl_sums

        forward, reverse = fused_kl_sums(student, teacher, student_head, teacher_head, CHUNK)
        return forward / len(student), reverse / len(student)
    if not student.is_cuda and not teacher.requires_grad and frozen(student_head, teacher_head):
        forward, reverse = kl_sums(kl_rows, student, teacher, student_head, teacher_head, min(CHUNK, CPU_BLOCK))
        return forward / len(student), reverse / len(student)

    def chunk_sums(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_q, log_p = F.log_softmax(student_head(s).float(), -1), F.log_softmax(teacher_head(t).float(), -1)
        p, q, gap = log_p.exp(), log_q.exp(), log_p - log_q
        lost = (log_p.isneginf() & (q > 0)).any(-1, keepdim=True)
        # Where a factor is infinite it is taken out before the product: the gradient of 0 * inf is NaN.
        forward = (p * gap.masked_fill(p == 0, 0.0)).sum()
        reverse = -(q * gap.masked_fill((q == 0) | lost, 0.0)).sum(-1, keepdim=True)
        return forward, reverse.masked_fill(lost, torch.inf).sum()

    forward = reverse = torch.zeros((), device=student.device)
    for s, t in zip(student.split(CHUNK), teacher.split(CHUNK), strict=True):
        f, r = checkpoint(chunk_sums, s, t, use_reentrant=False) if len(student) > CHUNK else chunk_sums(s, t)
        forward, reverse = forward + f, reverse + r
    return forward / len(student), reverse / len(student)


def next_token_sum(hidden: Tensor, head: Callable[[Tensor], Tensor], tokens: Tensor, answer: Tensor) -> Tensor:
    """Summed -log p (nats) of the tokens [B, T] where ``answer`` is true, given all before them; a sequence's first token has none.

    Takes final hidden states [B, T, D] and the head, so that only CHUNK tokens' logits exist at once, forward and backward.
    """
    known = answer[:, 1:]
    hidden, targets = hidden[:, :-1][known], tokens[:, 1:][known]

    def chunk_sum(h: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(head(h).float(), target, reduction="sum")

    total = torch.zeros((), device=hidden.device)
    for h, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        total = total + (checkpoint(chunk_sum, h, target, use_reentrant=False) if len(targets) > CHUNK else chunk_sum(h, target))
    return total
