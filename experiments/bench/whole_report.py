"""The whole report of a run of tiny's size: time and peak memory of the real command in a process of its own."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.table import write_part
from supernet.placement import exhaustive

# The command reports its own peak: a child's ru_maxrss starts from its parent's.
COMMAND = """
import sys
from analysis.report import main
code = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", peak.split()[1])
sys.exit(code)
"""


def run(quick: bool = False) -> pd.DataFrame:
    """1,024 placements x 8 checkpoints x 200 items, the declared 1,000 resamples (targets: 60 s on two cores, 2 GiB); Linux only."""
    placements, steps, items = [str(p) for p in exhaustive(4 if quick else 5)], 8, 40 if quick else 200
    rng = np.random.default_rng(0)
    final = rng.normal(size=(len(placements), 1)) * 0.1
    with tempfile.TemporaryDirectory() as folder:
        for step in range(steps):
            mean = final * step / (steps - 1) + rng.normal(size=final.shape) * 0.1 * (1 - step / (steps - 1))
            logp = 20 * np.minimum(mean + rng.normal(scale=0.2, size=(len(placements), items)) - 3, 0)
            rows = pd.MultiIndex.from_product([placements, [f"item-{i}" for i in range(items)]], names=["placement", "item"])
            frame = rows.to_frame(index=False).assign(
                scale="bench", run="bench", seed=0, step=step * 100, tokens=step * 10_000, task="t", logp=logp.ravel(), num_tokens=20
            )
            write_part(frame, Path(folder) / f"bench/scores/step-{step:06d}/part.parquet")
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", COMMAND, f"{folder}/bench"], capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
    peak = int(done.stdout.rpartition("peak ")[2]) / 2**20
    return pd.DataFrame([{"placements": len(placements), "checkpoints": steps, "items": items, "seconds": seconds, "peak GiB": peak}])
