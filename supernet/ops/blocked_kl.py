"""Forward and reverse KL between teacher and student, values and gradients in one pass over blocks of tokens. Shapes: N tokens, D hidden,
V vocabulary.

With ``q = softmax(s)`` of the student's logits and ``p = softmax(t)`` of the teacher's, per token in nats:
``F = sum p (log p - log q)``, ``dF/ds = q - p``;  ``R = sum q (log q - log p)``, ``dR/ds = q (log q - log p - R)``.
Autograd would keep or compute again what each block made; here the gradient is formed while its logits are in the cache.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Head = Callable[[Tensor], Tensor]

Rows = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor, Tensor]]
"""Logits [n, V] of student and teacher -> (F [n], R [n], dF/ds [n, V], dR/ds [n, V]); the flag allows to write over the logits."""


def kl_rows(student: Tensor, teacher: Tensor, inplace: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``Rows`` in torch, in float32. Terms of probability 0 count 0; where the teacher alone rules a token out, R is infinite and its
    gradient is given as 0. The logits are never written over."""
    log_q, log_p = F.log_softmax(student.float(), -1), F.log_softmax(teacher.float(), -1)
    p, q, gap = log_p.exp(), log_q.exp(), log_q.sub_(log_p)
    forward, d_reverse = (p * gap).sum(-1).neg_(), q * gap
    reverse = d_reverse.sum(-1)
    lost = None
    if not bool((forward + reverse).isfinite().all()):  # rare: 0 * inf among the products
        lost = ((p == 0) & (q > 0) & gap.isposinf()).any(-1)
        forward = -torch.where(p > 0, p * gap, 0.0).sum(-1)
        d_reverse = torch.where(q > 0, q * gap, 0.0)
        reverse = d_reverse.sum(-1)
    d_reverse = d_reverse.sub_(q * reverse[:, None])
    if lost is not None:
        d_reverse[lost] = 0.0
    return forward, reverse, q.sub_(p), d_reverse


class _KLSums(torch.autograd.Function):
    """Sums of F and R over tokens, from hidden states. Both gradients are formed with the values: no logits outlive their block."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, student_head: Head, teacher_head: Head, chunk: int, rows_of: Rows
    ) -> tuple[Tensor, Tensor]:
        forward, reverse = torch.zeros((2,), device=student.device).unbind()
        gradients = [torch.empty_like(student) for _ in range(2)] if ctx.needs_input_grad[0] else []
        for start in range(0, len(student), chunk):
            rows = slice(start, start + chunk)
            with torch.enable_grad():  # so that any head will do, not only a matrix
                hidden = student[rows].detach().requires_grad_()
                logits = student_head(hidden)
            teacher_logits = teacher_head(teacher[rows])
            # A head that hands its input through must not have it overwritten.
            ours = all(x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()
                       for x, y in ((logits, student), (teacher_logits, teacher)))  # fmt: skip
            f, r, *d_logits = rows_of(logits.detach(), teacher_logits, ours)
            forward, reverse = forward + f.sum(), reverse + r.sum()
            for gradient, d in zip(gradients, d_logits, strict=False):
                gradient[rows] = torch.autograd.grad(logits, hidden, d.to(logits.dtype), retain_graph=True)[0]
        ctx.save_for_backward(*gradients)
        return forward, reverse

    @staticmethod
    def backward(ctx: Any, d_forward: Tensor, d_reverse: Tensor) -> tuple[Tensor | None, ...]:
        by_forward, by_reverse = ctx.saved_tensors
        return d_forward * by_forward + d_reverse * by_reverse, None, None, None, None, None


def kl_sums(rows_of: Rows, student: Tensor, teacher: Tensor, student_head: Head, teacher_head: Head, chunk: int) -> tuple[Tensor, Tensor]:
    """(sum of KL(teacher || student), sum of KL(student || teacher)) in nats over N tokens, from hidden states [N, D] and the heads.

    Only ``chunk`` tokens' logits exist at once. The gradient reaches ``student`` alone: the heads are taken as frozen.
    """
    return _KLSums.apply(student, teacher, student_head, teacher_head, chunk, rows_of)
