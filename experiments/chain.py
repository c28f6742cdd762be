"""``python -m experiments.chain scale=...``: teacher, data, training, sweep and report of one run.

Checkpoints are swept while training goes on.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hydra.core.hydra_config import HydraConfig

from experiments.config import Config
from experiments.run import Run, Sweep
from experiments.runs.entry import run
from experiments.runs.records import read_status, status
from experiments.runs.steps import whole_checkpoints
from experiments.runs.stopping import Stopped, raise_if_asked
from experiments.sweeping.placements import select
from experiments.sweeping.tables import all_scored

POLL = 0.05  # seconds


class Failed(SystemExit):
    """A command of the chain ended with an exit code that is not 0, which becomes the chain's."""

    def __init__(self, command: str, code: int):
        super().__init__(code)
        self.command = command

    def __str__(self) -> str:
        return f"{self.command} ended with exit code {self.code}"


def chain(config: Config) -> None:
    """Run what is missing of the chain. Stopped or killed anywhere, the same command continues.

    Cells that share a teacher, or a distillation that each tunes in its own way (stage=sft), make it once: the others wait for it.
    """
    overrides = list(HydraConfig.get().overrides.task)
    run, sweep = Run.of(config), Sweep.of(config)
    if complete(run, sweep):
        print(f"chain: complete: {run.folder / 'report.md'}")
        return
    with status(run.folder, "chain", shared=True):  # so that what it has not begun is known to be wanted
        with waiting_for(run.teacher_dir.with_name(f".{run.teacher_dir.name}.lock")) as lock:
            if not taught(run):
                step("teach", overrides, lock)
        with waiting_for(run.distilled.folder / ".distilled.lock") as lock:
            train([*overrides, "stage=distill"] if run.stage == "sft" else overrides, run, sweep, lock)
        for command in [*(["sft"] if run.stage == "sft" else []), "sweep", "report"]:
            step(command, overrides)


def complete(run: Run, sweep: Sweep) -> bool:
    """Whether there is nothing to do: everything is scored that these options ask for, and the report was made after it."""
    folder = run.folder
    ended = {part: its.get("ended") or "" for part, its in read_status(folder).items() if its.get("state") == "done"}
    made = "report" in ended and (folder / "report.md").exists() and ended["report"] >= ended.get("sweep", "~")
    plain = sweep.score == "loglik" and sweep.shards == 1 and sweep.placements not in ("proposed", "winners")
    if not (made and plain and run.stage in ended and taught(run)):
        return False
    return all_scored(run, sweep, select(sweep, run.model))


def taught(run: Run) -> bool:
    """Whether teacher and data are there; both appear whole or not at all."""
    return run.teacher_dir.exists() and all(run.sequences(name).exists() for name in ("items", "train"))


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


def train(overrides: Sequence[str], run: Run, sweep: Sweep, lock: IO[str]) -> None:
    """The distillation, and beside it, on one core, the sweep of the checkpoints that it has finished: they do not wait for the last one.

    What is scored is what a sweep after it would score, part by part, so the numbers are the same. A sweep that fails here is left to the
    one that follows, which does what is missing or says why it cannot.
    """
    process, beside, tried = begin("distill", overrides, lock), None, []
    apart = not can_overlap(run, sweep)
    try:
        while process.poll() is None:
            raise_if_asked()
            if beside is None or beside.poll() == 0:
                finished = [] if apart else [step for step in ready(run, sweep) if step not in tried]
                if finished:
                    tried += finished
                    beside = begin("sweep", [*overrides, f"steps=[{','.join(map(str, finished))}]"], lock, {"OMP_NUM_THREADS": "1"})
            time.sleep(POLL)
    except Stopped as stopped:
        for each in (process, beside):
            pass_on(stopped, each)
        raise
    if beside and beside.poll() is None:
        print("training is over: the sweep beside it stops between two parts, and goes on with all cores", flush=True)
        beside.terminate()
        beside.wait()
    end("distill", process)


def can_overlap(run: Run, sweep: Sweep) -> bool:
    """Whether checkpoints can be swept one by one as they come, beside the training: not on its GPU."""
    if run.stage == "sft" or run.supernet or sweep.stream or sweep.shards > 1 or sweep.placements in ("proposed", "winners"):
        return False
    if os.environ.get("SLURM_CPUS_PER_TASK", os.environ.get("SLURM_CPUS_ON_NODE")) == "1":
        return False  # a job of one core trains first
    import torch  # takes seconds, which the training needs as well

    return not torch.cuda.is_available()


def ready(run: Run, sweep: Sweep) -> list[int]:
    """Complete checkpoints among those that the sweep asks for."""
    steps = list(whole_checkpoints(run.folder))
    return [step for step in steps if step in (sweep.steps or steps)]


def step(command: str, overrides: Sequence[str], lock: IO[str] | None = None) -> None:
    """One command of the chain as a process; ends this one with its exit code if it fails. A request to stop is passed on to it.

    ``lock`` stays locked until the process has ended, should this one be killed before.
    """
    raise_if_asked()
    process = begin(command, overrides, lock)
    try:
        while process.poll() is None:
            raise_if_asked()
            time.sleep(POLL)
    except Stopped as stopped:
        pass_on(stopped, process)
        raise
    end(command, process)


def begin(command: str, overrides: Sequence[str], lock: IO[str] | None, more: dict[str, str] | None = None) -> subprocess.Popen:
    handed = [lock.fileno()] if lock else []
    return subprocess.Popen([sys.executable, "-m", f"experiments.{command}", *overrides], pass_fds=handed, env=os.environ | (more or {}))


def pass_on(stopped: Stopped, process: subprocess.Popen | None) -> None:
    """Hand a request to stop on to a process and wait until it has."""
    if process:
        process.send_signal(signal.SIGUSR2 if stopped.code == 128 + signal.SIGUSR2 else signal.SIGTERM)
        process.wait()


def end(command: str, process: subprocess.Popen) -> None:
    """End this process with the exit code of one that failed."""
    if process.returncode < 0:
        print(f"error: {command} was killed by {signal.Signals(-process.returncode).name}: the same command continues", file=sys.stderr)
    if process.returncode:
        raise Failed(command, process.returncode if process.returncode > 0 else 128 - process.returncode)


if __name__ == "__main__":
    run(chain)
