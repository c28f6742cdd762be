"""Grids on one machine: the launcher with cheap cells, and Hydra's multirun with real ones."""

import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from test_cells import grid

from experiments.faults.drill import ENVIRONMENT, PATIENCE, ROOT, SMALL
from experiments.grids import cells, local, slurm
from experiments.grids.local import run_local
from experiments.runs.stopping import Stopped

OPTIONS = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/hydra/launcher/slurm.yaml"))
del OPTIONS["_target_"]


@pytest.fixture
def cell_runs(monkeypatch):
    """Let every cell run a piece of Python, which is given the cell's number, instead of a command."""

    def use(code):
        monkeypatch.setattr(cells.Grid, "argv", lambda _, cell: [sys.executable, "-c", code, str(cell.number)])

    return use


def test_a_failed_cell_does_not_stop_the_others(tmp_path, cell_runs, capsys):
    made = grid(tmp_path, "sweep", "seed=1,2,3,4")
    cell_runs("import sys; print('cell', sys.argv[1]); sys.exit('error: no luck' if sys.argv[1] == '1' else 0)")
    log = made.folder / "1.log"
    assert run_local(made, parallel=2) == [f"cell 1 (seed=2): exit code 1: error: no luck: see {log}"]
    assert [f"cell {n}\n" in (made.folder / f"{n}.log").read_text() for n in range(4)] == [True] * 4
    assert capsys.readouterr().out.count("done") == 3


def test_no_more_than_so_many_cells_run_at_once(tmp_path, cell_runs):
    made = grid(tmp_path, "sweep", "seed=1,2,3,4,5")
    # Each cell counts those that are in when it comes.
    cell_runs(
        f"import os, sys, time; d = {str(tmp_path)!r}; me = sys.argv[1]; open(f'{{d}}/in{{me}}', 'w').close();"
        "n = sum(x.startswith('in') for x in os.listdir(d)); open(f'{d}/seen{me}', 'w').write(str(n)); time.sleep(0.3);"
        "os.remove(f'{d}/in{me}')"
    )
    assert run_local(made, parallel=2) == []
    assert max(int((tmp_path / f"seen{n}").read_text()) for n in range(5)) <= 2


def test_checkpoints_of_one_run_follow_one_another(tmp_path, cell_runs):
    made = grid(tmp_path, "sweep", "steps=[0],[2],[4]")
    cell_runs("import sys; print('cell', sys.argv[1])")
    assert run_local(made, parallel=3) == []
    said = [line for line in (made.folder / "0.log").read_text().splitlines() if line.startswith("cell")]
    assert said == ["cell 0", "cell 1", "cell 2"]


def test_asked_to_stop_it_stops_its_cells_and_waits_for_them(tmp_path, cell_runs, monkeypatch):
    made = grid(tmp_path, "sweep", "seed=1,2,3")
    cell_runs(
        "import signal, sys, time; from pathlib import Path\n"
        f"folder, me = Path({str(tmp_path)!r}), sys.argv[1]\n"
        "def stop(*_): (folder / f'stopped{me}').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); (folder / f'up{me}').touch()\n"
        "while True: time.sleep(0.05)"
    )

    def asked():
        if all((tmp_path / f"up{n}").exists() for n in (0, 1)):
            raise Stopped(15)

    monkeypatch.setattr(local, "raise_if_asked", asked)
    with pytest.raises(Stopped):
        run_local(made, parallel=2)
    assert sorted(p.name for p in tmp_path.glob("stopped*")) == ["stopped0", "stopped1"] and not (tmp_path / "up2").exists()


@pytest.mark.parametrize("parallel", [0, "two", 1.5])
def test_parallel_is_checked(tmp_path, parallel):
    with pytest.raises(ValueError, match="hydra.launcher.parallel is .*: give how many cells"):
        run_local(grid(tmp_path, "sweep", "seed=1,2"), parallel)


def test_the_script_of_a_slurm_grid(tmp_path):
    made = grid(tmp_path, "sweep", "seed=1,2", "steps=[0],[2]")
    given = {"partition": "gpu", "gpus": 2, "array_parallelism": 3, "after": "17", "setup": ["module load x"], "sbatch": {"comment": "a b"}}
    text = slurm.script(made, slurm.check_options(OPTIONS | given))
    for line in ("partition=gpu", "gpus=2", "array=0,2%3", "dependency=afterok:17", "comment='a b'", "signal=B:USR2@120", "requeue"):
        assert f"#SBATCH --{line}\n" in text
    assert "account" not in text and "module load x\ncase" in text
    assert text.count(f"{sys.executable} -m experiments.sweep") == 4
    assert "#SBATCH --signal=USR2@60\n" in slurm.script(made, slurm.check_options(OPTIONS | {"prefix": "srun", "signal_before_end": 60}))
    bash = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert bash.returncode == 0, bash.stderr
    with pytest.raises(ValueError, match="hydra.launcher.gpus: .*'many'") as error:
        slurm.check_options(OPTIONS | {"gpus": "many"})
    assert "\n" not in str(error.value)


def test_without_slurm_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="sbatch is not on this machine's PATH.*use hydra/launcher=local"):
        slurm.run_slurm(grid(tmp_path, "sweep", "seed=1,2"), slurm.check_options(OPTIONS))


def multirun(command, *options):
    argv = [sys.executable, "-m", f"experiments.{command}", "-m", *options]
    return subprocess.run(argv, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)


def test_a_multirun_names_its_failed_cells_and_leaves_no_stray_files(tmp_path):
    before = {name for name in os.listdir(ROOT) if name.endswith(".log")}
    done = multirun("report", "hydra/launcher=local", "seed=1,2", *SMALL, f"results={tmp_path}", f"cache={tmp_path}/cache")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and lines[2] == "error: 2 of 2 cells are not done: the same command continues", done.stderr
    assert all("exit code 1: error: no run in" in line and str(tmp_path) in line for line in lines[:2])
    assert {name for name in os.listdir(ROOT) if name.endswith(".log")} <= before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["hydra/launcher=local", "seed=1,1"], "both write report of"),
        (["hydra/launcher=local", "seed=1,2", "hydra.launcher.parallel=0"], "hydra.launcher.parallel is 0"),
        (["hydra/launcher=lokal", "seed=1,2"], "lokal"),
    ],
)
def test_bad_input_is_one_line(tmp_path, options, says):
    done = multirun("report", *options, *SMALL, f"results={tmp_path}", f"cache={tmp_path}/cache")
    assert done.returncode == 1 and says in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
