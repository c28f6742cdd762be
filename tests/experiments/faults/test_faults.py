"""The fault table's own functions: a kill -9 in every command of a chain, a truncated part; and its verdict on harm that was done."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from experiments.faults.drill import ENVIRONMENT, ROOT, score_rows
from experiments.faults.judge import Undisturbed, compare, judged, last_line

WAIT = 1200  # seconds; a loaded machine may take its time

SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
import numpy as np
from experiments.faults.drill import Forked, warm_up
from experiments.faults.inflict import kill_chain, truncated_part
from experiments.faults.judge import undisturbed
home = Path(sys.argv[1])
warm_up()
base = undisturbed(home, Forked)
rows = [*kill_chain(base, home / "killed", np.random.default_rng(0), (1, 1, 1)), *truncated_part(base, base.copy("truncated"))]
print(json.dumps({"rows": [dataclasses.asdict(row) for row in rows], "folder": str(base.folder)}))
"""


@pytest.mark.slow
def test_kills_and_a_truncated_part_lose_and_double_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for row in found["rows"]:
        assert row["rows_lost"] == row["rows_doubled"] == 0, row
        assert row["outcome"].endswith("same rows, checkpoints, metrics, tables"), row
    truncated = [row for row in found["rows"] if row["fault"] == "truncated part of scores"]
    assert [row["command"] for row in truncated] == ["sweep", "report"]
    assert all(row["line"].startswith("error: ") and "part-" in row["line"] for row in truncated)
    whole = score_rows(next((tmp_path / "undisturbed").glob("*/*")))
    assert len(whole) == 5 * 16 * 12  # checkpoints x placements x items
    pd.testing.assert_frame_equal(score_rows(next((tmp_path / "killed").glob("*/*"))), whole)


@pytest.fixture
def base(tmp_path):
    """A run of a few rows that counts as undisturbed."""
    folder = tmp_path / "undisturbed/tiny/run"
    for step in (0, 2):
        rows = [{"step": step, "placement": p, "item": i, "logp": -1.0} for p in ("FF", "GG") for i in ("a", "b")]
        frame = pd.DataFrame(rows).assign(scale="tiny", run="run", task="t")
        (folder / f"scores/step-{step}").mkdir(parents=True)
        frame.to_parquet(folder / f"scores/step-{step}/part-0.parquet")
    (folder / "metrics.jsonl").write_text("{}\n")
    return Undisturbed(tmp_path, folder, {}, None)


def damaged(base, change):
    """A copy of the run in which a function has changed the rows of step 2."""
    results = base.copy("damaged")
    path = base.run(results) / "scores/step-2/part-0.parquet"
    change(pd.read_parquet(path)).to_parquet(path)
    return results


def test_the_same_run_is_judged_the_same(base):
    assert compare(base, base.copy("same")) == ("", 0, 0)


def test_lost_doubled_and_changed_rows_are_seen(base):
    assert compare(base, damaged(base, lambda rows: rows[1:])) == ("", 1, 0)
    shutil.rmtree(base.home / "damaged")
    assert compare(base, damaged(base, lambda rows: pd.concat([rows, rows[:2]]))) == ("", 0, 2)
    shutil.rmtree(base.home / "damaged")
    results = damaged(base, lambda rows: rows.assign(logp=-2.0))
    assert compare(base, results) == ("score rows", 0, 0)
    assert "differs from the undisturbed run: score rows" in judged(base, results, "f", "sweep", "", "", "", "").outcome


def test_what_the_user_saw_is_the_last_line_that_is_no_progress_bar():
    assert last_line("error: no\n\rscores: 10%|# | 1/2 [00:01<00:01, 1.5it/s]\n") == "error: no"
    assert last_line("") == ""
