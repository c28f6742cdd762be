"""Grids on a real Slurm of one node: cells that are preempted, killed, cancelled or raise, and the same command again."""

import contextlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from cluster import LIMIT, wait_for
from hydra import compose, initialize_config_dir

from experiments.config import check
from experiments.faults.drill import ENVIRONMENT, ROOT, SMALL, score_rows
from experiments.run import Run
from experiments.runs.records import read_json

# Cells that are long enough to be caught in the middle: the state to resume from is written at every step.
OPTIONS = [*SMALL, "distill.steps=30", "data.items=24", "memory_gib=0.04"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.poll=0.5", "hydra.launcher.partition=cells"]
LOCAL = ["hydra/launcher=local", "hydra.launcher.parallel=4"]
GRID = ["seed=1,2", "distill.sampler=local,counts"]


def start(command, options, environment):
    argv = [sys.executable, "-m", f"experiments.{command}", "-m", *options]
    environment = ENVIRONMENT | environment | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process, expect):
    out, err = process.communicate(timeout=2 * LIMIT)
    assert process.returncode == expect, out + err
    return err


def folder_of(options):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return Run.of(check(compose("config", options))).folder


def freeze(folder, part, attempt=1):
    """Stop the process that writes a part (SIGSTOP) when it has begun to leave something; its pid."""
    left = {"distill": "checkpoints/resume.ckpt", "sweep": "scores/*/*.parquet"}[part]

    def in_the_middle():
        its = read_json(folder / "status.json").get(part, {})
        return its.get("state") == "running" and its["attempt"] == attempt and any(folder.glob(left)) and its["pid"]

    pid = wait_for(in_the_middle, f"attempt {attempt} of {part} in {folder}")
    os.kill(pid, signal.SIGSTOP)
    assert read_json(folder / "status.json")[part]["state"] == "running", f"{part} was over before it could be disturbed"
    return pid


def disturb(pid, environment, *argv):
    """Give Slurm a command about the cell of a frozen process, then let the process go on."""
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    with contextlib.suppress(ProcessLookupError):  # where Slurm was faster
        os.kill(pid, signal.SIGCONT)
    assert done.returncode == 0, done.stderr


def usr2(job):
    return ("scancel", "--signal=USR2", "--batch", job)


@pytest.mark.slow
def test_a_disturbed_grid_is_finished_by_the_same_command(slurm, tmp_path):
    cache = f"cache={tmp_path / 'cache'}"
    local = [*OPTIONS, cache, f"results={tmp_path / 'local'}"]
    options = [*OPTIONS, cache, f"results={tmp_path / 'slurm'}"]
    reference = start("chain", [*LOCAL, *GRID, *local], {})
    cells = [(seed, sampler) for seed in (1, 2) for sampler in ("local", "counts")]
    folders = [folder_of([*options, f"seed={seed}", f"distill.sampler={sampler}"]) for seed, sampler in cells]
    (folders[3] / "config.yaml").mkdir(parents=True)  # so that this cell raises

    def job(cell):
        path = wait_for(lambda: next((tmp_path / "slurm/grids").glob("*/job"), None), "the job's id")
        return f"{path.read_text().strip()}_{cell}"

    def preempt():
        disturb(freeze(folders[0], "distill"), slurm, "scontrol", "requeue", job(0))
        disturb(freeze(folders[0], "sweep"), slurm, *usr2(job(0)))

    def kill():
        os.kill(freeze(folders[1], "distill"), signal.SIGKILL)

    def cancel():
        disturb(freeze(folders[2], "sweep"), slurm, "scancel", job(2))

    grid = start("chain", [*SLURM, *GRID, *options], slurm)
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(what) for what in (preempt, kill, cancel)]:
            done.result()
    said = end(grid, expect=1)
    assert "cell 0" not in said and "error: 3 of 4 cells are not done: the same command continues" in said, said
    assert "cell 1 (seed=1 distill.sampler=counts): exit code 137 (SIGKILL): error: distill was killed by SIGKILL" in said
    assert "cell 2 (seed=2 distill.sampler=local): exit code 143 (SIGTERM): stopped by SIGTERM" in said
    assert "cell 3 (seed=2 distill.sampler=counts): exit code 1: IsADirectoryError" in said
    record = read_json(next((tmp_path / "slurm/grids").glob("*.json")))
    assert [cell["run"] for cell in record["cells"]] == [f"tiny/{folder.name}" for folder in folders]
    assert record["command"] == "chain" and record["launcher"] == "slurm" and set(GRID) <= set(record["overrides"])
    first = read_json(folders[0] / "status.json")
    assert [first[part]["attempt"] for part in ("distill", "sweep")] == [2, 2] and first["sweep"]["state"] == "done"

    def preempt_again():
        disturb(freeze(folders[1], "distill", attempt=2), slurm, *usr2(job(1)))
        disturb(freeze(folders[1], "sweep"), slurm, "scontrol", "requeue", job(1))

    (folders[3] / "config.yaml").rmdir()
    (next((tmp_path / "slurm/grids").glob("*/job"))).unlink()
    grid = start("chain", [*SLURM, *GRID, *options], slurm)
    preempt_again()
    end(grid, expect=0)
    assert [read_json(folders[1] / "status.json")[part]["attempt"] for part in ("distill", "sweep")] == [3, 2]
    end(reference, expect=0)
    for folder in folders:
        undisturbed = Path(tmp_path / "local/tiny" / folder.name)
        assert len(score_rows(folder)) == 4 * 16 * 24
        pd.testing.assert_frame_equal(score_rows(folder), score_rows(undisturbed))
        assert (folder / "metrics.jsonl").read_text() == (undisturbed / "metrics.jsonl").read_text()
        assert (folder / "report.md").exists()
