"""A grid as one Slurm job array, a task per cell. What became of a cell is told by the exit code that it leaves in a file and by
status.json, never by Slurm's state."""

import os
import re
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.grids.cells import Grid, entries, problem
from experiments.runs.records import write_text
from experiments.runs.stopping import raise_if_asked


@dataclass
class SlurmOptions:
    """The types of the options; what they mean and their defaults: conf/hydra/launcher/slurm.yaml."""

    partition: str
    account: str
    qos: str
    gpus: int
    cpus: int
    memory: str
    time: str
    array_parallelism: int
    signal_before_end: int
    requeue: bool
    after: str
    setup: list[str]
    prefix: str
    sbatch: dict[str, Any]
    wait: bool
    poll: float


def check_options(options: dict[str, Any]) -> SlurmOptions:
    """Typed options. Raises ValueError in one line for a value of another type."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SlurmOptions), options))
    except OmegaConfBaseException as error:
        raise ValueError(f"hydra.launcher.{error.full_key}: {str(error).splitlines()[0]}") from None


SCRIPT = """#!/usr/bin/env bash
{directives}
# Written by python -m experiments.{command}; submitted again by the same command.
cd {folder} || exit 1
export PYTHONUNBUFFERED=1
task=${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}

# cell NUMBER COMMAND...: its exit code goes to a file; asked to stop before the end of its time (140) it goes back into the queue.
# Slurm sends SIGTERM to every process of a job but this warning, SIGUSR2, to this shell alone, so only that is passed on.
cell() {{
    local exit_file={exits}/$1.exit
    shift
    rm -f "$exit_file"
    "$@" &
    child=$!
    while again=; wait "$child"; code=$?; [ -n "$again" ]; do :; done
    if [ "$code" = 140 ] && {requeue} && scontrol requeue "$task"; then exit 140; fi
    echo "$code" > "$exit_file.new" && mv "$exit_file.new" "$exit_file"
    if [ "$code" != 0 ]; then worst=$code; fi
    case $code in 140 | 143) exit "$code" ;; esac
}}
child=
worst=0
trap 'again=yes; [ -z "$child" ] || kill -USR2 "$child" 2>/dev/null' USR2
trap 'again=yes' TERM

{setup}
case $SLURM_ARRAY_TASK_ID in
{cells}
esac
exit "$worst"
"""


def run_slurm(grid: Grid, options: SlurmOptions) -> list[str]:
    """Submit the grid, unless it is in the queue already, and wait for its cells. Returns a line for each that is not done.

    Raises ValueError where Slurm cannot be asked or refuses the job.
    """
    job_file = grid.folder / "job"
    job = job_file.read_text().strip() if job_file.exists() else ""
    if job and in_queue(job):
        print(f"slurm: this grid is in the queue already, as job {job}", flush=True)
    else:
        job = submit(grid, options)
        write_text(job_file, job + "\n")
        print(f"slurm: job {job}, {len(grid.turns)} tasks, logs in {grid.folder}", flush=True)
    if not options.wait:
        print("slurm: not waiting; python -m experiments.status says how it went, the same command finishes what is not done")
        return []
    before = {cell.number: entries(cell) for cell in grid.cells}
    wait(grid, job, options.poll)
    codes = {cell.number: read_code(grid.folder / f"{cell.number}.exit") for cell in grid.cells}
    found = [problem(cell, codes[cell.number], before[cell.number], grid.log(cell)) for cell in grid.cells]
    return [line for line in found if line]


def directives(grid: Grid, options: SlurmOptions) -> str:
    """The #SBATCH lines."""
    array = ",".join(str(turn[0].number) for turn in grid.turns)
    warning = f"{'' if options.prefix else 'B:'}USR2@{options.signal_before_end}"
    values = {
        "job-name": f"{grid.command}-{grid.folder.name}",
        "array": array + (f"%{options.array_parallelism}" if options.array_parallelism else ""),
        "output": str(grid.folder / "%a.log"),
        "open-mode": "append",
        "requeue" if options.requeue else "no-requeue": True,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "gpus": options.gpus,
        "cpus-per-task": options.cpus,
        "mem": options.memory,
        "time": options.time,
        "signal": warning if options.signal_before_end else "",
        "dependency": f"afterok:{options.after}" if options.after else "",
        "kill-on-invalid-dep": "yes" if options.after else "",
    }
    given = {name: value for name, value in (values | options.sbatch).items() if value not in ("", 0, False, None)}
    return "\n".join(f"#SBATCH --{name}" + ("" if value is True else f"={shlex.quote(str(value))}") for name, value in given.items())


def script(grid: Grid, options: SlurmOptions) -> str:
    def calls(turn: list) -> str:
        return "\n".join(f"    cell {cell.number} {options.prefix} {shlex.join(grid.argv(cell))}" for cell in turn)

    return SCRIPT.format(
        directives=directives(grid, options),
        command=grid.command,
        folder=shlex.quote(os.getcwd()),
        exits=shlex.quote(str(grid.folder)),
        requeue="true" if options.requeue else "false",
        setup="\n".join(options.setup),
        cells="\n".join(f"{turn[0].number})\n{calls(turn)}\n    ;;" for turn in grid.turns),
    )


def submit(grid: Grid, options: SlurmOptions) -> str:
    """Write the script beside the record and submit it; the job's id."""
    for path in grid.folder.glob("*.exit"):
        path.unlink()
    path = grid.folder.with_suffix(".sh")
    write_text(path, script(grid, options))
    done = slurm("sbatch", "--parsable", str(path))
    if done.returncode:
        raise ValueError(f"sbatch refused {path}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def wait(grid: Grid, job: str, seconds: float) -> None:
    """Until no task is in the queue any more, seen twice: a shared file system may show the last exit code a little late."""
    absent = 0
    try:
        while absent < 2:
            raise_if_asked()
            time.sleep(seconds)
            absent = 0 if in_queue(job) else absent + 1
    except BaseException:
        print(f"slurm: job {job} goes on without this process: the same command waits for it again, scancel {job} ends it", flush=True)
        raise


def in_queue(job: str) -> bool:
    """Whether a task of the job is waiting, running or ending. A controller that does not answer counts as yes: it will."""
    done = slurm("squeue", "--noheader", "--array", "--format=%K %T", f"--jobs={job}")
    if done.returncode:
        return not re.search("Invalid job id", done.stderr)
    return bool(done.stdout.strip())


def slurm(*argv: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(argv, capture_output=True, text=True)
    except FileNotFoundError:
        remedy = "use hydra/launcher=local, or start it on a login node"
        raise ValueError(f"{argv[0]} is not on this machine's PATH, so there is no Slurm to run the grid: {remedy}") from None


def read_code(path: Path) -> int | None:
    return int(path.read_text()) if path.exists() else None
