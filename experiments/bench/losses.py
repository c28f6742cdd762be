"""The two KL divergences from hidden states: one Triton kernel against eager torch, chunked torch and Liger's fused JSD."""

import importlib.util
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.bench.timing import NO_GPU, peak_mib, pick, seconds
from experiments.machine import matmul_rate
from supernet.ops import losses

TARGET = ">= 3 x eager, a quarter of its memory"

SIZES = {"cuda": (4096, 896, 131072, torch.bfloat16), "cpu": (512, 64, 8192, torch.float32)}
"""Tokens, hidden size, vocabulary and type."""

COLUMNS = ["way", "tokens", "vocab", "ms", "peak MiB", "speed-up", "memory", "of matmul", "target", "note"]


def run(quick: bool = False) -> pd.DataFrame:
    """One row per way: milliseconds of values and gradient, peak memory, both over eager's, and how fast the same FLOPs of the heads are.

    On a GPU bfloat16, 4096 tokens, hidden 896 and a vocabulary of 131,072; on a CPU float32 and less of everything, without memory.
    """
    device = pick()
    tokens, hidden, vocab, dtype = SIZES[device]
    tokens = tokens // 4 if quick else tokens
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, tokens, hidden, generator=generator).to(device, dtype) for _ in range(2))
    heads = [nn.Linear(hidden, vocab, bias=False, device=device, dtype=dtype).requires_grad_(False) for _ in range(2)]
    for head in heads:
        head.weight.copy_(torch.randn(vocab, hidden, generator=generator) * hidden**-0.5)
    mask = torch.ones(1, tokens, dtype=torch.bool, device=device)
    student.requires_grad_()
    ways = {"eager": eager, "chunked torch": chunked, "fused (Triton)": fused, "Liger JSD": liger}
    flops, peak = 3 * 2.0 * tokens * hidden * vocab, matmul_rate(device, dtype)  # two heads forward, one backward
    rows, first = [], None
    for way, function in ways.items():
        about = {"way": way, "tokens": tokens, "vocab": vocab, "note": missing(way, device), "target": TARGET if function is fused else ""}
        rows.append(about)
        if about["note"]:
            continue

        def step(f: Callable[..., Tensor] = function) -> None:
            torch.autograd.grad(f(student, teacher, *heads, mask), student)

        took = seconds(step, device)
        row = about | {"ms": 1e3 * took, "peak MiB": peak_mib(step, device), "of matmul": flops / took / peak}
        first = first or row
        rows[-1] = row | {"speed-up": first["ms"] / row["ms"], "memory": row["peak MiB"] / first["peak MiB"]}
    return pd.DataFrame(rows, columns=COLUMNS)


def missing(way: str, device: str) -> str:
    """Why a way cannot run here, or nothing."""
    if way.startswith("Liger") and importlib.util.find_spec("liger_kernel") is None:
        return "skipped: liger-kernel is not installed"
    return NO_GPU if way.startswith(("fused", "Liger")) and device == "cpu" else ""


def eager(student: Tensor, teacher: Tensor, student_head: nn.Module, teacher_head: nn.Module, mask: Tensor) -> Tensor:
    """All logits at once."""
    log_q, log_p = (F.log_softmax(head(x[mask]).float(), -1) for head, x in ((student_head, student), (teacher_head, teacher)))
    gap = log_p - log_q
    return (log_p.exp() * gap - log_q.exp() * gap).sum() / mask.sum()


def chunked(*arguments: object) -> Tensor:
    """``kl_losses`` as it is without Triton."""
    kept, losses.fused = losses.fused, lambda *_: False
    try:
        return sum(losses.kl_losses(*arguments))
    finally:
        losses.fused = kept


def fused(*arguments: object) -> Tensor:
    """``kl_losses`` as it is on CUDA."""
    return sum(losses.kl_losses(*arguments))


def liger(student: Tensor, teacher: Tensor, student_head: nn.Module, teacher_head: nn.Module, mask: Tensor) -> Tensor:
    """Another divergence, of the same work: generalised Jensen-Shannon, half of each direction."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    return LigerFusedLinearJSD(jsd_beta=0.5)(student[mask], student_head.weight, teacher[mask], teacher_head.weight)
