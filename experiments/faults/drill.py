"""The whole chain at a size that takes seconds, as real processes that can be killed: for the tests and the fault table."""

import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
PATIENCE = 600  # seconds for one command; a loaded machine may take its time

SMALL = [
    "model={layers: 2, hidden: 32, ffn: 64, heads: 2, kv_heads: 1, head_dim: 16, vocab: 64, window: 8}",
    "teacher.steps=12", "teacher.batch=8",
    "data.train=48", "data.items=6", "items=0", "data.length=24", "data.prompt=12",
    "distill.steps=8", "distill.batch=4", "distill.checkpoints=4", "distill.first_checkpoint=2", "distill.calibrate=8",
    "distill.checkpoints_at=[]",
    "trainer.accelerator=cpu", "trainer.save_seconds=0", "device=cpu", "memory_gib=0.05",
]  # fmt: skip
"""Overrides of a run with all 4^2 placements of a two-layer supernet."""


def argv(command: str, options: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", f"experiments.{command}", *options]


def start(command: str, options: Sequence[str]) -> subprocess.Popen:
    """The command as a process of its own; its output can be read at its end."""
    return subprocess.Popen(argv(command, options), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Forked:
    """A command in a process that is forked from this one, so that it need not import torch again (see ``warm_up``): seconds saved for
    each of many. The part of subprocess.Popen that is needed here."""

    def __init__(self, command: str, options: Sequence[str]):
        self.args = argv(command, options)
        self.files = [tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")]  # noqa: SIM115
        self.process = multiprocessing.get_context("fork").Process(target=self.work)
        self.process.start()

    def work(self) -> None:
        for number, file in enumerate(self.files, start=1):
            os.dup2(file.fileno(), number)
        os.chdir(ROOT)
        sys.argv = self.args[2:]
        runpy.run_module(self.args[2], run_name="__main__", alter_sys=True)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        for file in self.files:
            file.seek(0)
        return self.files[0].read(), self.files[1].read()


def warm_up() -> None:
    """Import what the commands need; before anything of it is used, so that no threads are there to be lost in a fork."""
    os.environ.update(ENVIRONMENT)
    for name in ("torch", "lightning", "hydra", "scipy.stats", "matplotlib.pyplot", "seaborn", "pyarrow.dataset", "analysis.report"):
        importlib.import_module(name)


def end(process: subprocess.Popen | Forked) -> subprocess.CompletedProcess:
    """Wait for the end of a started command; one that takes too long is stopped, and what it has started with it."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_until(seen: Callable[[], bool], process: subprocess.Popen | Forked) -> bool:
    """Whether ``seen()`` became true before the process ended. Raises TimeoutError when neither happens."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        if seen():
            return True
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f"{process.args} did nothing of what was waited for in {PATIENCE} s")
        time.sleep(0.002)
    return False


def run_folder(results: Path) -> Path:
    """The one run in a results folder."""
    return next(path for path in sorted(results.glob("*/*")) if (path / "config.yaml").exists())


def score_rows(folder: Path, table: str = "scores") -> pd.DataFrame:
    """All rows of a run's score tables in one order: what must not depend on how the run came about."""
    paths = sorted(folder.glob(f"{table}/*/*.parquet"))
    frame = pd.concat([pq.ParquetFile(path).read(use_threads=False).to_pandas(use_threads=False) for path in paths])
    frame = frame.astype(dict.fromkeys(("scale", "run", "placement", "item", "task"), str))
    return frame.sort_values(["step", "placement", "item"], ignore_index=True)
