"""What the status command says of run folders made in place, and which commands it gives to finish them."""

import json
import shlex
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from analysis.table import write_part
from experiments import status as command
from experiments.chain import Failed
from experiments.config import check
from experiments.faults.drill import ROOT
from experiments.run import Run
from experiments.runs.entry import CONF
from experiments.runs.records import exclusive, status, write_json, write_text
from experiments.runs.steps import whole_checkpoints
from experiments.runs.stopping import Stopped
from experiments.training.strategy import checkpoint_steps

OPTIONS = [
    "scale=tiny", "seed=3", "model={layers: 2, hidden: 32, ffn: 64, heads: 2, kv_heads: 1, head_dim: 16, vocab: 64, window: 8}",
    "data.items=4", "items=0", "distill.steps=8", "distill.checkpoints=3", "distill.first_checkpoint=2",
    "distill.checkpoints_at=[]",
]  # fmt: skip
PLACEMENTS, ITEMS = [a + b for a in "FSKG" for b in "FSKG"], [f"item-{i}" for i in range(4)]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


@pytest.fixture
def run(results):
    """A run's folder after its distillation."""
    folder = Run.of(options_of(OPTIONS)).folder
    distilled(folder)
    return folder


def options_of(overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("config", overrides))


def distilled(folder):
    config = options_of(OPTIONS)
    with typed("distill"), status(folder, "distill"):
        write_text(folder / "config.yaml", Run.of(config).options(config.stage))
        for step in checkpoint_steps(config.distill):
            write_json(folder / "checkpoints" / f"step-{step:06d}" / "meta.json", {"step": step})


@contextmanager
def typed(module):
    """As if the process were ``python -m experiments.module`` with the options of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.runs.records.command", lambda: shlex.join(["python", "-m", f"experiments.{module}", *OPTIONS]))
        yield


def score(folder, step, placements=PLACEMENTS, items=ITEMS, name="part-0"):
    rows = [(p, i) for p in placements for i in items]
    frame = pd.DataFrame({
        "scale": "tiny", "run": folder.name, "seed": 3, "step": step, "tokens": step, "placement": [p for p, _ in rows],
        "item": [i for _, i in rows], "task": "t", "logp": -np.ones(len(rows)), "num_tokens": 1,
    })  # fmt: skip
    path = folder / "scores" / f"step-{step:06d}" / f"{name}.parquet"
    write_part(frame, path)
    return path


def score_all(folder):
    return [score(folder, step) for step in (0, 2, 8)]


def fail(folder, part, error):
    with pytest.raises(type(error)), typed("sweep"), status(folder, part):
        raise error


def ask(capsys, *arguments):
    """(exit code, {part: (state, have/want, rest of the line)}) of the command."""
    code = command.main(list(map(str, arguments)))
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]
    fields = [line.split(maxsplit=5) for line in table]
    return code, {its[1]: (its[2], its[3], its[5] if len(its) > 5 else "") for its in fields}


def test_all_rows_there_is_done_whatever_a_shard_said_before(run, results, capsys):
    fail(run, "sweep-1of2", RuntimeError("a node went away"))
    score_all(run)
    code, parts = ask(capsys, results)
    assert code == 0
    assert parts == {"distill": ("done", "3/3", ""), "sweep": ("done", "192/192", "")}


def test_evaluations_are_listed_and_finished_by_what_was_typed(run, results, capsys):
    score_all(run)
    tables = run / "evaluation/retrieval"
    write_json(tables / "wanted.json", {"steps": [8], "items": ITEMS})
    pd.DataFrame({"placement": PLACEMENTS, "source": "x", "cost": 1.0}).to_parquet(tables / "placements.parquet")
    said = ["python", "-m", "experiments.evaluate", "elsewhere/run", "tasks=retrieval", "items=4", "shard=1", "shards=2"]
    with pytest.raises(Stopped), pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.runs.records.command", lambda: shlex.join(said))
        with status(tables, "evaluate-1of2"):
            raise Stopped(15)
    score(tables, 8, items=ITEMS[:2])
    code, parts = ask(capsys, results)
    assert code == 1 and parts["evaluation/retrieval"][:2] == ("stopped", "32/64")
    assert command.main([str(results), "--rerun"]) == 1
    again = shlex.join([*said[:3], f"results/tiny/{run.name}", *said[4:6]])
    assert capsys.readouterr().out.splitlines() == [again]
    score(tables, 8, items=ITEMS[2:], name="part-1")
    code, parts = ask(capsys, results)
    assert code == 0 and parts["evaluation/retrieval"] == ("done", "64/64", "")


def test_rows_are_enough_where_checkpoints_were_not_kept(run, results, capsys):
    score_all(run)
    for path in run.glob("checkpoints/*/meta.json"):
        path.unlink()
    assert ask(capsys, results)[0] == 0


def test_a_sweep_that_says_done_and_lacks_rows_is_incomplete(run, results, capsys):
    with typed("sweep"), status(run, "sweep"):
        score(run, 0)
    code, parts = ask(capsys, results)
    assert code == 1 and parts["sweep"] == ("incomplete", "64/192", "")


def test_a_failure_shows_its_first_line(run, results, capsys):
    score(run, 0)
    fail(run, "sweep", RuntimeError("out of memory\nat line 2"))
    code, parts = ask(capsys, results)
    assert code == 1 and parts["sweep"] == ("failed", "64/192", "RuntimeError: out of memory")


def test_a_failed_shard_is_named(run, results, capsys):
    fail(run, "sweep-1of2", RuntimeError("a node went away"))
    assert ask(capsys, results)[1]["sweep"] == ("failed", "0/192", "RuntimeError: a node went away")
    with status(run, "sweep-0of2"):
        pass
    assert ask(capsys, results)[1]["sweep"] == ("failed", "0/192", "sweep-1of2: RuntimeError: a node went away")


def test_a_stop_is_no_failure_but_is_not_done(run, results, capsys):
    fail(run, "sweep", Stopped(12))
    code, parts = ask(capsys, results)
    assert code == 1 and parts["sweep"] == ("stopped", "0/192", "stopped by SIGUSR2: the same command continues")


def test_running_is_running_only_while_its_lock_is_held(run, results, capsys):
    with status(run, "sweep"):
        code, parts = ask(capsys, results)
        assert code == 0 and parts["sweep"][0] == "running"
        kept = (run / "status.json").read_text()
    (run / "status.json").write_text(kept)  # as a kill -9 leaves it
    code, parts = ask(capsys, results)
    assert code == 1 and parts["sweep"] == ("stopped", "0/192", "killed: its process is gone and left no word")
    with exclusive(run, "sweep"):
        assert ask(capsys, results)[1]["sweep"][0] == "running"


def test_a_truncated_part_is_named_with_its_remedy(run, results, capsys):
    path = score_all(run)[1]
    path.write_bytes(path.read_bytes()[:200])
    code, parts = ask(capsys, results)
    assert code == 1 and parts["sweep"][0] == "failed"
    assert "part-0.parquet is truncated" in parts["sweep"][2] and "delete it and run the sweep again" in parts["sweep"][2]


def test_doubled_rows_are_seen(run, results, capsys):
    score_all(run)
    score(run, 8, PLACEMENTS[:2], name="part-1")
    code, parts = ask(capsys, results)
    assert code == 1 and parts["sweep"][0] == "failed" and "8 rows are there twice" in parts["sweep"][2]


def test_a_corrupted_status_is_named_unless_the_rows_are_there(run, results, capsys):
    (run / "status.json").write_text("{")
    code, parts = ask(capsys, results)
    assert code == 1 and "status.json is not valid JSON" in parts["status.json"][2]
    score_all(run)
    assert ask(capsys, results)[0] == 0


def test_more_placements_asked_for_are_wanted(run, results, capsys):
    score_all(run)
    listed = pd.DataFrame({"placement": [*PLACEMENTS, "FX"], "source": "local", "cost": 1.0})
    listed.to_parquet(run / "placements.parquet", index=False)
    code, parts = ask(capsys, results)
    assert code == 1 and parts["sweep"][:2] == ("incomplete", "192/204")


def test_the_folder_of_a_scale_or_a_run_can_be_asked_about(run, capsys):
    score_all(run)
    assert ask(capsys, run.parent)[0] == ask(capsys, run)[0] == 0


def record(results, launcher="local", module="sweep"):
    """The record of a grid over two seeds; the run of the first is the one of these tests."""
    cells = []
    for seed in (3, 4):
        overrides = [*OPTIONS[:1], f"seed={seed}", *OPTIONS[2:]]
        cells.append({"overrides": overrides, "run": f"tiny/{Run.of(options_of(overrides)).folder.name}"})
    overrides = [*OPTIONS[:1], "seed=3,4", *OPTIONS[2:]]
    write_json(results / "grids" / "ab12.json", {"command": module, "overrides": overrides, "launcher": launcher, "cells": cells})
    return cells


def test_cells_of_a_grid_that_never_began_are_missing_and_its_command_finishes_them(run, results, capsys):
    cells = record(results)
    score_all(run)
    assert command.main([str(results)]) == 1
    missing = [line.split() for line in capsys.readouterr().out.splitlines() if "missing" in line]
    assert missing[0][:4] == [cells[1]["run"], "sweep", "missing", "0/192"]
    assert command.main([str(results), "--rerun"]) == 1
    printed = capsys.readouterr().out.splitlines()
    expected = ["python", "-m", "experiments.sweep", "-m", "scale=tiny", "seed=3,4", *OPTIONS[2:], "hydra/launcher=local"]
    assert [shlex.split(line) for line in printed] == [expected]


def test_a_grid_that_asks_for_more_than_a_run_has_is_not_done(run, results, capsys):
    cells = record(results)
    listed = pd.DataFrame({"placement": PLACEMENTS[:3], "source": "local", "cost": 1.0})
    listed.to_parquet(run / "placements.parquet", index=False)  # an earlier sweep asked for three placements, and is complete
    for step in (0, 2, 8):
        score(run, step, PLACEMENTS[:3])
    assert ask(capsys, run)[0] == 0
    assert command.main([str(results)]) == 1
    shown = [line.split()[:4] for line in capsys.readouterr().out.splitlines() if line.startswith(cells[0]["run"])]
    assert shown[1] == [cells[0]["run"], "sweep", "incomplete", "36/192"]


def test_a_chain_cell_that_never_began_misses_all_its_parts(results, capsys):
    cells = record(results, "basic", "chain")
    assert command.main([str(results)]) == 1
    missing = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if " missing " in line]
    assert sorted(missing) == sorted([cell["run"], part] for cell in cells for part in ("distill", "sweep", "report"))


def test_commands_of_a_run_are_those_that_were_typed(run, results, capsys):
    fail(run, "sweep-1of2", RuntimeError("a node went away"))
    (run / "checkpoints/step-000002/meta.json").unlink()
    assert command.main([str(results), "--rerun"]) == 1
    printed = capsys.readouterr().out.strip().split(" && ")
    assert [shlex.split(line) for line in printed] == [["python", "-m", f"experiments.{name}", *OPTIONS] for name in ("distill", "sweep")]


def test_commands_of_a_run_without_a_record_of_them_name_the_same_run(run, results, capsys):
    (run / "status.json").unlink()
    (run / "checkpoints/step-000002/meta.json").unlink()
    command.main([str(results), "--rerun"])
    typed = shlex.split(capsys.readouterr().out)
    assert typed[:3] == ["python", "-m", "experiments.distill"]
    assert Run.of(options_of(typed[3:])).folder == Run.of(options_of(OPTIONS)).folder


def test_a_moved_folder_is_finished_where_it_is(run, results, tmp_path, capsys):
    fail(run, "sweep", RuntimeError("no"))
    results.rename(tmp_path / "moved")
    command.main([str(tmp_path / "moved"), "--rerun"])
    assert "results=moved" in shlex.split(capsys.readouterr().out)


def test_submit_runs_what_rerun_prints(run, results, capsys, monkeypatch):
    fail(run, "sweep", RuntimeError("no"))
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda argv: ran.append(argv) or subprocess.CompletedProcess(argv, 0))
    assert command.main([str(results), "--rerun", "--submit"]) == 0
    assert ran == [[sys.executable, "-m", "experiments.sweep", *OPTIONS]]


def test_the_results_that_are_shipped_are_done(capsys):
    assert command.main([str(ROOT / "results")]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "says"), [(["nowhere"], "no folder nowhere"), (["."], "no run and no grid in .")])
def test_a_wrong_path_is_one_line(results, capsys, arguments, says):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {says}") and told.count("\n") == 1


def test_a_foreign_grid_record_is_one_line(run, results, capsys):
    (results / "grids").mkdir()
    (results / "grids" / "ab12.json").write_text(json.dumps({"command": "sweep"})[:5])
    with pytest.raises(SystemExit):
        command.main([str(results)])
    assert "ab12.json is not valid JSON" in capsys.readouterr().err


def test_a_chain_that_failed_before_its_sweep_is_not_done(run, results, capsys):
    with pytest.raises(Failed), typed("chain"), status(run, "chain", shared=True):
        raise Failed("sweep", 1)
    code, parts = ask(capsys, results)
    assert code == 1 and parts["chain"] == ("failed", "-", "sweep ended with exit code 1")
    assert parts["distill"][0] == "done" and parts["sweep"][0] == parts["report"][0] == "missing"
    assert command.main(["results", "--rerun"]) == 1
    assert capsys.readouterr().out.splitlines() == [shlex.join(["python", "-m", "experiments.chain", *OPTIONS])]
    score_all(run)
    with status(run, "report"):
        pass
    code, parts = ask(capsys, results)
    assert code == 0 and "chain" not in parts


def test_a_chain_that_failed_at_its_teacher_is_known(results, capsys):
    folder = Run.of(options_of(OPTIONS)).folder
    with pytest.raises(Failed), typed("chain"), status(folder, "chain", shared=True):
        raise Failed("teach", 1)
    code, parts = ask(capsys, results)
    assert code == 1 and parts == {"chain": ("failed", "-", "teach ended with exit code 1")}


@pytest.mark.parametrize(
    "name", ["lr=0.1", "a b", "a,b", 'a"b', "a'b", "back\\slash", "end\\", "ünï", "{x}", "[x]", "(x)", "123", "true", "1e3", "a:b", "~x"]
)
def test_an_override_for_any_folder_is_one_that_hydra_reads(name, tmp_path):
    results = tmp_path / name
    parsed = OverridesParser.create().parse_overrides(command.placed(["scale=tiny", 'results="elsewhere"'], results))
    assert [override.key_or_group for override in parsed] == ["scale", "results"]
    value = parsed[-1].value()
    assert (value.text if isinstance(value, QuotedString) else value) == str(results.resolve())


def test_steps_of_any_number_of_digits_are_in_order(tmp_path):
    for step in (1_000_000, 20, 999_999):
        write_json(tmp_path / "checkpoints" / f"step-{step:06d}" / "meta.json", {})
    (tmp_path / "checkpoints/step-000030").mkdir()  # not finished
    (tmp_path / "checkpoints/step-x").mkdir()
    assert list(whole_checkpoints(tmp_path)) == [20, 999_999, 1_000_000]


@pytest.mark.parametrize("record", ["{}", "[1]", '{"command": "chain", "overrides": [], "launcher": "basic", "cells": [1]}'])
def test_a_grid_record_that_is_none_is_one_line(run, results, capsys, record):
    (results / "grids").mkdir()
    (results / "grids" / "a.json").write_text(record)
    with pytest.raises(SystemExit):
        command.main([str(results)])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a.json is no record of a grid: delete it and start the grid again" in said


@pytest.mark.parametrize("typed_before", ["python -m experiments.distill 'seed=1", 5, None])
def test_a_command_that_was_recorded_wrongly_is_told_from_the_options(run, results, capsys, typed_before):
    write_json(run / "status.json", {"distill": {"state": "failed", "command": typed_before}})
    (run / "checkpoints" / "step-000008" / "meta.json").unlink()
    assert command.main([str(results), "--rerun"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("python -m experiments.distill scale=tiny") and "seed=3" in said


@pytest.mark.parametrize("text", ["- a", "abc", "a: [1"])
def test_a_config_that_holds_no_options_is_named(run, results, capsys, text):
    (run / "config.yaml").write_text(text)
    assert command.main([str(results)]) == 1
    assert "config.yaml cannot be read: " in capsys.readouterr().out
