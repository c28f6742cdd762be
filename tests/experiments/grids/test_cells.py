from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.faults.drill import ROOT, SMALL
from experiments.grids import cells
from experiments.grids.cells import make_grid, problem
from experiments.runs.records import read_json, status, write_json


def grid(tmp_path, command, *varied, options=(), launcher="local"):
    """The grid of a command line, without Hydra's launcher."""
    typed = [*SMALL, f"results={tmp_path}", f"cache={tmp_path}/cache", *varied, *options]
    overrides = [list(SMALL) + [f"results={tmp_path}", f"cache={tmp_path}/cache"]]
    for parsed in OverridesParser.create().parse_overrides(list(varied)):
        values = list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else [parsed.get_value_element_as_str()]
        overrides = [[*its, f"{parsed.get_key_element()}={value}"] for its in overrides for value in values]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return make_grid(command, typed, launcher, overrides, [compose("config", its) for its in overrides])


def test_the_record_names_every_cell_before_any_starts(tmp_path):
    made = grid(tmp_path, "sweep", "seed=1,2", "distill.sampler=local,counts")
    record = read_json(made.folder.with_suffix(".json"))
    assert record["command"] == "sweep" and record["launcher"] == "local" and "seed=1,2" in record["overrides"]
    assert [cell["run"] for cell in record["cells"]] == [f"tiny/{cell.folder.name}" for cell in made.cells]
    assert len({cell["run"] for cell in record["cells"]}) == 4
    assert made.folder.parent == tmp_path / "grids" and made.folder.is_dir()
    assert [cell.name for cell in made.cells[:2]] == ["seed=1 distill.sampler=local", "seed=1 distill.sampler=counts"]
    assert made.argv(made.cells[2])[1:3] == ["-m", "experiments.sweep"] and "seed=2" in made.argv(made.cells[2])


def test_the_same_grid_has_the_same_record_wherever_it_runs(tmp_path):
    one = grid(tmp_path, "sweep", "seed=1,2", "items=3")
    other = grid(tmp_path, "sweep", "items=3", "seed=1,2", options=["hydra.launcher.partition=night"], launcher="slurm")
    assert one.folder == other.folder
    assert read_json(other.folder.with_suffix(".json"))["overrides"][-1] == "hydra.launcher.partition=night"
    assert grid(tmp_path, "chain", "seed=1,2", "items=3").folder != one.folder


@pytest.mark.parametrize(
    ("command", "varied"),
    [("distill", "seed=1,1"), ("distill", "items=2,4"), ("chain", "steps=[0],[2]"), ("sweep", "memory_gib=1,2"), ("teach", "seed=1,2")],
)
def test_cells_that_do_the_same_thing_twice_are_refused(tmp_path, command, varied):
    with pytest.raises(ValueError, match=r"cells 0 \(.*\) and 1 \(.*\) both write .*: leave one out, or vary") as error:
        grid(tmp_path, command, varied)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "grids").exists()


def test_shards_run_at_once_and_checkpoints_of_one_run_follow_one_another(tmp_path):
    shards = grid(tmp_path, "sweep", "seed=1,2", "shards=2", "shard=0,1")
    assert [len(turn) for turn in shards.turns] == [1, 1, 1, 1]
    assert shards.cells[1].parts == ("sweep-1of2",)
    steps = grid(tmp_path, "sweep", "seed=1,2", "steps=[0],[2],[4]")
    assert [[cell.number for cell in turn] for turn in steps.turns] == [[0, 1, 2], [3, 4, 5]]
    assert steps.log(steps.cells[4]) == steps.folder / "3.log"


def test_options_that_no_command_takes_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="distill.sampler is 'lokal': choose from"):
        grid(tmp_path, "sweep", "distill.sampler=local,lokal")
    assert not (tmp_path / "grids").exists()


def test_a_cell_is_done_by_exit_code_and_status_together(tmp_path):
    made = grid(tmp_path, "sweep", "seed=1,2")
    cell, log = made.cells[0], made.folder / "0.log"
    before = cells.entries(cell)
    assert problem(cell, 0, before, log) == ""  # its work was done already
    log.write_text("sweep:  10%\rsweep:  20%error: no checkpoint\nslurmstepd: cancelled\n")
    assert problem(cell, 1, before, log) == f"cell 0 (seed=1): exit code 1: error: no checkpoint: see {log}"
    assert "vanished from the queue" in problem(cell, None, before, log)
    for killed in (-9, 137):
        assert "exit code 137 (SIGKILL)" in problem(cell, killed, before, log)
    with pytest.raises(KeyError), status(cell.folder, "sweep"):
        raise KeyError("lost")
    assert "exit code 0: KeyError: 'lost'" in problem(cell, 0, before, log)
    assert problem(cell, 0, cells.entries(cell), log) == "", "a failure from before this grid is history"
    with status(cell.folder, "sweep"):
        pass
    assert problem(cell, 0, before, log) == ""
    assert problem(replace(cell, parts=("sweep", "report")), 0, before, log) == ""


def test_a_status_that_cannot_be_read_is_a_problem_and_not_an_error(tmp_path):
    cell = grid(tmp_path, "sweep", "seed=1,2").cells[1]
    write_json(cell.folder / "status.json", {})
    (cell.folder / "status.json").write_text("{")
    assert "status.json is not valid JSON" in problem(cell, 0, {"sweep": {}}, tmp_path / "none.log")
