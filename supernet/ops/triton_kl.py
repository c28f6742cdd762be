"""Forward and reverse KL between teacher and student logits, values and gradients, in one Triton kernel. Shapes: N tokens, V vocabulary.

With ``q = softmax(s)`` of the student and ``p = softmax(t)`` of the teacher, per token in nats:
``F = sum p (log p - log q)``, ``dF/ds = q - p``;  ``R = sum q (log q - log p)``, ``dR/ds = q (log q - log p - R)``.
All in float32 whatever the logits are stored in; no float32 tensor of [N, V] exists. Terms of probability 0 count 0, so F is finite where
the teacher rules tokens out (-inf), and R is infinite where the student does not: its gradient is then given as 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from supernet.ops.blocked_kl import Head, kl_sums

BLOCK = 4096
"""Logits of a row that are in registers at once, with 8 warps."""


@triton.jit
def _row(s_ptr, t_ptr, f_ptr, r_ptr, df_ptr, dr_ptr, stride, V, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202
    """One row per program. Three passes: normalisers, the two sums, the gradients; what is written last may overwrite what was read."""
    row = tl.program_id(0)
    start = row.to(tl.int64) * stride  # rows times vocabulary exceeds int32
    at = tl.arange(0, BLOCK)
    s_max, t_max = -1e30, -1e30  # not -inf: inf - inf
    s_sum, t_sum = 0.0, 0.0
    for i in range(0, V, BLOCK):
        s = tl.load(s_ptr + start + i + at, mask=i + at < V, other=float("-inf")).to(tl.float32)
        t = tl.load(t_ptr + start + i + at, mask=i + at < V, other=float("-inf")).to(tl.float32)
        s_new, t_new = tl.maximum(s_max, tl.max(s, 0)), tl.maximum(t_max, tl.max(t, 0))
        s_sum = s_sum * tl.exp(s_max - s_new) + tl.sum(tl.exp(s - s_new), 0)
        t_sum = t_sum * tl.exp(t_max - t_new) + tl.sum(tl.exp(t - t_new), 0)
        s_max, t_max = s_new, t_new
    s_log, t_log = tl.log(s_sum), tl.log(t_sum)

    forward, reverse = 0.0, 0.0
    for i in range(0, V, BLOCK):
        s = tl.load(s_ptr + start + i + at, mask=i + at < V, other=float("-inf")).to(tl.float32)
        t = tl.load(t_ptr + start + i + at, mask=i + at < V, other=float("-inf")).to(tl.float32)
        log_q, log_p = s - s_max - s_log, t - t_max - t_log  # the large numbers are subtracted from each other first
        p, q = tl.exp(log_p), tl.exp(log_q)
        forward += tl.sum(tl.where(p > 0, p * (log_p - log_q), 0.0), 0)
        reverse += tl.sum(tl.where(q > 0, q * (log_q - log_p), 0.0), 0)
    tl.store(f_ptr + row, forward)
    tl.store(r_ptr + row, reverse)

    for i in range(0, V, BLOCK):
        s = tl.load(s_ptr + start + i + at, mask=i + at < V, other=float("-inf")).to(tl.float32)
        t = tl.load(t_ptr + start + i + at, mask=i + at < V, other=float("-inf")).to(tl.float32)
        log_q, log_p = s - s_max - s_log, t - t_max - t_log
        p, q = tl.exp(log_p), tl.exp(log_q)
        d_reverse = tl.where(q > 0, tl.where(reverse < float("inf"), q * (log_q - log_p - reverse), 0.0), 0.0)
        tl.store(df_ptr + start + i + at, (q - p).to(df_ptr.dtype.element_ty), mask=i + at < V)
        tl.store(dr_ptr + start + i + at, d_reverse.to(dr_ptr.dtype.element_ty), mask=i + at < V)


def kl_rows(student: Tensor, teacher: Tensor, inplace: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(F [N], R [N], dF/ds [N, V], dR/ds [N, V]) of logits [N, V]: sums in float32, gradients in the logits' type.

    ``inplace`` writes dF/ds over the student's logits and dR/ds over the teacher's, so that nothing of [N, V] is allocated.
    """
    if student.shape != teacher.shape or student.dim() != 2:
        raise ValueError(f"logits of {tuple(student.shape)} and {tuple(teacher.shape)}: give two of one shape [tokens, vocabulary]")
    student, teacher = student.contiguous(), teacher.contiguous()
    forward, reverse = (torch.empty(len(student), dtype=torch.float32, device=student.device) for _ in range(2))
    d_forward, d_reverse = (student, teacher) if inplace else (torch.empty_like(student), torch.empty_like(teacher))
    block = min(BLOCK, triton.next_power_of_2(student.shape[1]))
    if len(student):
        arguments = (student, teacher, forward, reverse, d_forward, d_reverse, student.stride(0), student.shape[1])
        _row[(len(student),)](*arguments, BLOCK=block, num_warps=8)
    return forward, reverse, d_forward, d_reverse


def fused_kl_sums(student: Tensor, teacher: Tensor, student_head: Head, teacher_head: Head, chunk: int) -> tuple[Tensor, Tensor]:
    """(sum of KL(teacher || student), sum of KL(student || teacher)) in nats over N tokens, from hidden states [N, D] and the heads.

    Only ``chunk`` tokens' logits exist at once, in the heads' type. The gradient reaches ``student`` alone: the heads are taken as frozen.
    """
    return kl_sums(kl_rows, student, teacher, student_head, teacher_head, chunk)
