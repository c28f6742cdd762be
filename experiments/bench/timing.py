"""Time and peak memory of a call, as the benchmarks of kernels, losses and training measure them."""

import time
from collections.abc import Callable

import torch

NO_GPU = "skipped: no GPU"


def pick() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def seconds(function: Callable[[], object], device: str, repeats: int = 3) -> float:
    """The median wall clock of a call after one to warm up (kernels compile then); on a GPU until its work is done."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def peak_mib(function: Callable[[], object], device: str) -> float:
    """MiB that a call allocates at its peak beyond what was there before; not-a-number on a CPU, where torch does not count."""
    if device == "cpu":
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
