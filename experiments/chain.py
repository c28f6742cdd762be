"""``python -m experiments.chain scale=...``: teacher, data, training, sweep and report of one run, one after another."""

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from hydra.core.hydra_config import HydraConfig

from experiments.config import Config, data_dir, run_dir, teacher_dir
from experiments.runs.entry import run
from experiments.runs.stopping import Stopped, raise_if_asked

POLL = 0.05  # seconds


def chain(config: Config) -> None:
    """Run what is missing of the chain. Stopped or killed anywhere, the same command continues.

    Cells that share a teacher, or a distillation that each tunes in its own way (stage=sft), make it once: the others wait for it.
    """
    overrides = list(HydraConfig.get().overrides.task)
    teacher = teacher_dir(config)
    with waiting_for(teacher.with_name(f".{teacher.name}.lock")) as lock:
        if not taught(config):
            step("teach", overrides, lock)
    with waiting_for(run_dir(replace(config, stage="distill")) / ".chain.lock") as lock:
        step("distill", [*overrides, "stage=distill"] if config.stage == "sft" else overrides, lock)
    for command in [*(["sft"] if config.stage == "sft" else []), "sweep", "report"]:
        step(command, overrides)


def taught(config: Config) -> bool:
    """Whether teacher and data are there; both appear whole or not at all."""
    return teacher_dir(config).exists() and all((data_dir(config) / f"{name}.parquet").exists() for name in ("items", "train"))


@contextmanager
def waiting_for(path: Path) -> Iterator[IO[str]]:
    """Hold the lock at ``path``, once whoever has it lets it go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        while True:
            raise_if_asked()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL)
        yield file


def step(command: str, overrides: Sequence[str], lock: IO[str] | None = None) -> None:
    """One command of the chain as a process; ends this one with its exit code if it fails. A request to stop is passed on to it.

    ``lock`` stays locked until the process has ended, should this one be killed before.
    """
    raise_if_asked()
    process = subprocess.Popen([sys.executable, "-m", f"experiments.{command}", *overrides], pass_fds=[lock.fileno()] if lock else [])
    try:
        while process.poll() is None:
            raise_if_asked()
            time.sleep(POLL)
    except Stopped as stopped:
        process.send_signal(signal.SIGUSR2 if stopped.code == 128 + signal.SIGUSR2 else signal.SIGTERM)
        process.wait()
        raise
    if process.returncode < 0:
        print(f"error: {command} was killed by {signal.Signals(-process.returncode).name}: the same command continues", file=sys.stderr)
    if process.returncode:
        sys.exit(process.returncode if process.returncode > 0 else 128 - process.returncode)


if __name__ == "__main__":
    run(chain)
