"""Whole reports, and reading their scores: time and peak memory of the real code, each in a process of its own."""

import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.table import write_part
from supernet.placement import exhaustive

# A process reports its own peak: a child's ru_maxrss starts from its parent's.
PEAK = """
import sys
{work}
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", peak.split()[1])
"""
WORK = {
    "report": "from analysis.report import main\nassert main(sys.argv[1:]) == 0",
    "load_scores": "from analysis.table import load_scores\nload_scores(sys.argv[1])",
    "pandas, unstacked": """
import pandas as pd
from pathlib import Path
frame = pd.concat([pd.read_parquet(part) for part in sorted(Path(sys.argv[1]).glob("scores/*/*.parquet"))], ignore_index=True)
frame.set_index(["step", "placement", "item"])["logp"].unstack().to_numpy()
""",
}


def run(quick: bool = False) -> pd.DataFrame:
    """1,024 placements x 8 checkpoints x 200 items (targets: 60 s on two cores, 2 GiB) and 5,000 x 20 x 200 (10 min, 3 GiB; its scores:
    1 GiB); the declared 1,000 resamples; Linux only. ``seconds`` include starting Python."""
    rows = []
    for layers, count, steps, items in [(4, 256, 8, 40)] if quick else [(5, 1024, 8, 200), (7, 5000, 20, 200)]:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder) / "bench", [str(p) for p in islice(exhaustive(layers), count)], steps, items)
            for what, work in WORK.items():
                command = [sys.executable, "-c", PEAK.format(work=work), f"{folder}/bench"]
                started = time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, peak = time.perf_counter() - started, int(done.stdout.rpartition("peak ")[2]) / 2**20
                rows.append((what, count, steps, items, seconds, peak))
    return pd.DataFrame(rows, columns=["what", "placements", "checkpoints", "items", "seconds", "peak GiB"])


def _write(run: Path, placements: list[str], steps: int, items: int) -> None:
    """A run whose ranking settles."""
    rng = np.random.default_rng(0)
    final = rng.normal(size=(len(placements), 1)) * 0.1
    index = pd.MultiIndex.from_product([placements, [f"item-{i}" for i in range(items)]], names=["placement", "item"])
    for step in range(steps):
        mean = final * step / (steps - 1) + rng.normal(size=final.shape) * 0.1 * (1 - step / (steps - 1))
        logp = 20 * np.minimum(mean + rng.normal(scale=0.2, size=(len(placements), items)) - 3, 0)
        frame = index.to_frame(index=False).assign(
            scale="bench", run="bench", seed=0, step=step * 100, tokens=step * 10_000, task="t", logp=logp.ravel(), num_tokens=20
        )
        write_part(frame, run / f"scores/step-{step:06d}/part.parquet")
