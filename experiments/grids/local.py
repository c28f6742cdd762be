"""Cells of a grid side by side on one machine, each a fresh process with its output in a log file."""

import os
import subprocess
import time

from experiments.grids.cells import Cell, Grid, entries, problem
from experiments.runs.stopping import raise_if_asked


def run_local(grid: Grid, parallel: int) -> list[str]:
    """Run all cells, at most ``parallel`` at a time; a failed cell does not stop the others. Returns a line for each that is not done.

    Asked to stop (Ctrl-C, SIGTERM, SIGUSR2), it passes SIGTERM on to the cells that run and waits until they have saved their state.
    """
    if not isinstance(parallel, int) or parallel < 1:
        raise ValueError(f"hydra.launcher.parallel is {parallel!r}: give how many cells may run at once, 1 or more")
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))} | os.environ
    waiting, problems = [list(turn) for turn in grid.turns], []
    running: dict[subprocess.Popen, list[Cell]] = {}
    before = {}
    raise_if_asked()
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                turn = waiting.pop(0)
                before[turn[0].number] = entries(turn[0])
                running[start(grid, turn[0], environment)] = turn
            for process in [process for process in running if process.poll() is not None]:
                turn = running.pop(process)
                cell = turn[0]
                found = problem(cell, process.returncode, before[cell.number], grid.log(cell))
                print(f"{grid.command}: cell {cell.number} ({cell.name}) {'failed' if found else 'done'}", flush=True)
                problems += [found] if found else []
                waiting = [turn[1:], *waiting] if turn[1:] else waiting
            raise_if_asked()
            time.sleep(0.05)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return problems


def start(grid: Grid, cell: Cell, environment: dict[str, str]) -> subprocess.Popen:
    """One cell's process, in a process group of its own: a Ctrl-C at the terminal reaches it once, through ``run_local``."""
    with grid.log(cell).open("a") as log:
        print(f"== {grid.command} {cell.name}", file=log, flush=True)
        return subprocess.Popen(
            grid.argv(cell), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, process_group=0
        )
