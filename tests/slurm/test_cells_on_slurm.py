"""What Slurm does to cells, and what the launcher makes of it, with cells that import nothing and end when they are told."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster import wait_for
from omegaconf import OmegaConf

from experiments.faults.drill import ROOT
from experiments.grids import cells
from experiments.grids.cells import Cell, Grid
from experiments.grids.slurm import check_options, run_slurm

CELL = """
import os, signal, sys, time
from pathlib import Path
folder, me = Path(sys.argv[1]), sys.argv[2]
got = []
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda number, _: got.append(number))
(folder / f"up{me}.new").write_text(str(os.getpid()))
(folder / f"up{me}.new").rename(folder / f"up{me}-{os.environ.get('SLURM_RESTART_COUNT', '0')}")
if me == "3":
    sys.exit("error: no luck")
while not got and not (folder / f"go{me}").exists():
    time.sleep(0.05)
sys.exit(128 + got[0] if got else 0)
"""


@pytest.mark.slow
def test_preempted_cells_go_on_and_lost_ones_are_named(slurm, tmp_path, monkeypatch):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cells.Grid, "argv", lambda _, cell: [sys.executable, "-S", "-c", CELL, str(tmp_path), str(cell.number)])
    made = [Cell(n, (), f"n={n}", tmp_path / f"run{n}", ("sweep",)) for n in range(6)]
    grid = Grid("sweep", made, tmp_path / "grids/abc", [[made[0]], [made[1]], [made[2]], [made[3], made[4]], [made[5]]])
    grid.folder.mkdir(parents=True)
    options = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/hydra/launcher/slurm.yaml")) | {"poll": 0.2, "setup": ["export A='b c'"]}
    del options["_target_"]

    def up(cell, restarts=0):
        path = tmp_path / f"up{cell}-{restarts}"
        return int(wait_for(lambda: path.exists() and path.read_text(), f"start {restarts} of cell {cell}"))

    def slurm_says(*argv):
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def run():
        return run_slurm(grid, check_options(options))

    with ThreadPoolExecutor() as pool:
        first = pool.submit(run)
        up(0), up(1), up(2)
        job = wait_for(lambda: (grid.folder / "job").exists() and (grid.folder / "job").read_text().strip(), "the job's id")
        slurm_says("scontrol", "requeue", f"{job}_0")
        slurm_says("scancel", "--signal=USR2", "--batch", f"{job}_1")
        slurm_says("scancel", f"{job}_2")
        up(3), up(4)
        os.kill(up(5), signal.SIGKILL)
        (tmp_path / "go4").touch()
        up(0, restarts=1), up(1, restarts=1)
        second = pool.submit(run)  # finds the grid in the queue and waits for it
        wait_for(lambda: len(list(tmp_path.glob("grids/abc/*.exit"))) >= 4, "the cells that were not preempted")
        (tmp_path / "go0").touch()
        (tmp_path / "go1").touch()
        lines = first.result()
        assert second.result() == lines
    assert [line.partition(": ")[0] for line in lines] == ["cell 2 (n=2)", "cell 3 (n=3)", "cell 5 (n=5)"]
    assert "exit code 143 (SIGTERM)" in lines[0] and "exit code 1: error: no luck" in lines[1] and "exit code 137 (SIGKILL)" in lines[2]
    assert (grid.folder / "job").read_text().strip() == job, "submitted twice"
    for path in [*tmp_path.glob("go*"), *tmp_path.glob("up*")]:
        path.unlink()
    with ThreadPoolExecutor() as pool:
        again = pool.submit(run)
        up(0)
        job = wait_for(lambda: (text := (grid.folder / "job").read_text().strip()) != job and text, "another job")
        shell = subprocess.run(["ps", "-o", "ppid=", "-p", str(up(0))], capture_output=True, text=True).stdout.strip()
        os.kill(int(shell), signal.SIGKILL)  # the whole job, as a memory guard kills it
        for cell in range(1, 6):
            (tmp_path / f"go{cell}").touch()
        lines = again.result()
        (tmp_path / "go0").touch()  # for the orphan, should Slurm have missed it
    assert [line.partition(": ")[0] for line in lines] == ["cell 0 (n=0)", "cell 3 (n=3)"]
    assert "vanished from the queue without an exit code" in lines[0]
