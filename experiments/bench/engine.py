"""The sweep engine against scoring placement by placement, at the tiny shape: speed, work done, arithmetic rate, memory."""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from experiments.machine import matmul_rate, peak_memory
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.placement import exhaustive
from supernet.scoring import BATCH_TOKENS, Item, build_trie, plan_chunks, score

CONFIG = SupernetConfig(layers=5, hidden=96, ffn=256, heads=3, kv_heads=1, head_dim=32, vocab=64, window=16)
TOKENS, PROMPT = 96, 48


def run(quick: bool = False) -> pd.DataFrame:
    """Measures one by one (columns: measure, value, unit, target): every placement of 5 layers on some items of 96 tokens.

    ``quick`` takes fewer items, and every 16th placement for the slow way, whose time is then scaled up.
    """
    model, placements, items = _model(), list(exhaustive(CONFIG.layers)), _items(4 if quick else 16)
    every = 16 if quick else 1
    score(model, placements[:8], items, 1 << 30)  # warm up
    fast, fast_cpu, (logp, counts) = _timed(lambda: score(model, placements, items, 1 << 30))
    slow, slow_cpu, reference = _timed(lambda: score_one_by_one(model, placements[::every], items))
    rate = matmul_rate("cpu", torch.float32)
    # Budgets that the items fill more than once.
    budget, count = (128 << 20, 12) if quick else (256 << 20, 40)
    memory = _memory(budget, count)
    per_token = np.abs(logp[::every] - reference).max() / (TOKENS - PROMPT)
    rows = [
        ("layer-major, wall clock", fast, "s", ""),
        ("placement by placement, wall clock", slow * every, "s", ""),
        ("speed-up, wall clock", slow * every / fast, "x", ">= 3"),
        ("speed-up, CPU time", slow_cpu * every / fast_cpu, "x", ">= 3"),
        ("largest difference", per_token, "nats/token", "<= 1e-5"),
        ("distinct prefixes", counts.prefixes, "", ""),
        ("layer evaluations per item", counts.layer_evaluations / counts.items, "", f"= {counts.prefixes}"),
        ("placement by placement, layer evaluations per item", len(placements) * CONFIG.layers, "", ""),
        ("arithmetic", counts.flops / fast / 1e9, "GFLOP/s", ""),
        ("matrix product of 1024, float32", rate / 1e9, "GFLOP/s", ""),
        ("arithmetic over matrix product", counts.flops / fast / rate, "", ""),
        ("memory budget", budget / 2**20, "MiB", ""),
        ("peak memory over budget", memory["share"], "", "<= 1.2"),
        ("chunks of items within the budget", memory["chunks"], "", ""),
        ("threads", torch.get_num_threads(), "", ""),
    ]
    return pd.DataFrame(rows, columns=["measure", "value", "unit", "target"])


@torch.inference_mode()
def score_one_by_one(model: Supernet, placements: list[str], items: list[Item]) -> np.ndarray:
    """The same scores with the same model code and equally large batches, each placement from the start: float64 [P, n]."""
    size = BATCH_TOKENS["cpu"] // TOKENS
    logp = np.empty((len(placements), len(items)))
    for row, placement in enumerate(placements):
        for start in range(0, len(items), size):
            tokens = torch.stack([item.tokens for item in items[start : start + size]])
            hidden = model.features(tokens[:, :-1], placement)[0][:, PROMPT - 1 :]
            loss = F.cross_entropy(model.head(hidden).float().mT, tokens[:, PROMPT:], reduction="none")
            logp[row, start : start + size] = -loss.double().sum(1)
    return logp


def memory_growth(budget: int, count: int) -> dict[str, float]:
    """Peak memory of a sweep of ``count`` items beyond what the process needed before, over ``budget`` bytes. For a process of its own."""
    model, items, placements = _model(), _items(count), list(exhaustive(CONFIG.layers))
    score(model, placements[::64], items[:2], budget)  # libraries allocate on their first use
    before = peak_memory()
    score(model, placements, items, budget)
    chunks = plan_chunks(CONFIG, build_trie(CONFIG, placements), items, budget, torch.float32)
    return {"share": (peak_memory() - before) / budget, "chunks": len(chunks)}


def _memory(budget: int, count: int) -> dict[str, float]:
    code = f"import json; from experiments.bench.engine import memory_growth; print(json.dumps(memory_growth({budget}, {count})))"
    return json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def _model() -> Supernet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Supernet(CONFIG).eval()


def _items(count: int) -> list[Item]:
    rng = np.random.default_rng(0)
    return [Item(f"item-{i}", "random", torch.from_numpy(rng.integers(CONFIG.vocab, size=TOKENS)), PROMPT) for i in range(count)]


def _timed(function: Callable[[], object]) -> tuple[float, float, object]:
    """Wall clock and CPU seconds, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - wall, time.process_time() - cpu, result
