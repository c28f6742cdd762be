"""This machine: which device computes, what memory is free and was taken, and how fast matrices are multiplied."""

import resource
import time
from pathlib import Path

import torch

ENOUGH = 1.0
"""Seconds in which a rate is measured."""


def pick_device(asked: str) -> str:
    """cpu or cuda, where ``auto`` takes a GPU if there is one. ValueError where cuda was asked for and there is none."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda' and torch sees no GPU: set device=cpu, or install a CUDA build of torch")
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control groups (version 2), as a scheduler sets them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    except OSError:
        raise ValueError("memory_gib=0 needs Linux, which tells what memory is free: give memory_gib a number") from None
    free = [1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))]
    group = Path("/sys/fs/cgroup") / own.lstrip("/")
    for folder in (group, *group.parents):
        limit = folder / "memory.max"
        if limit.is_file() and (most := limit.read_text().strip()) != "max":
            free.append(int(most) - int((folder / "memory.current").read_text()))
    return max(min(free), 0)


def peak_memory() -> int:
    """Most bytes that this process has held in memory. Not ru_maxrss where it can be helped: on Linux a child starts with its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def matmul_rate(device: str | torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """FLOP/s of a square matmul, large enough to fill the device. Of random numbers: a GPU multiplies constant ones faster.

    On a CPU it ends after ENOUGH: without instructions for bfloat16 one product takes seconds.
    """
    on_gpu = torch.device(device).type == "cuda"
    size = 8192 if on_gpu else 1024
    x = torch.randn(size, size, generator=torch.Generator(device).manual_seed(0), device=device).to(dtype)
    x @ x
    synchronise = torch.cuda.synchronize if on_gpu else lambda: None
    synchronise()
    started, done = time.perf_counter(), 0
    while done < repeats and (on_gpu or done == 0 or time.perf_counter() - started < ENOUGH):
        x @ x
        done += 1
    synchronise()
    return done * 2 * size**3 / (time.perf_counter() - started)
