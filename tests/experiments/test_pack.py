"""One file of scores per checkpoint: rows and numbers stay, whatever happened before."""

import numpy as np
import pandas as pd
import pytest

from analysis.table import write_part
from experiments.faults.drill import score_rows
from experiments.pack import PACKED, main
from experiments.runs.records import exclusive

STEPS = (0, 10)


def rows(placements, step):
    rng = np.random.default_rng([step, len(placements)])
    pairs = [(placement, item) for placement in placements for item in ("a", "b", "c")]
    same = {"scale": "l2", "run": "one", "seed": 0, "step": step, "tokens": 8 * step, "task": "recall", "num_tokens": 4}
    frame = pd.DataFrame(pairs, columns=["placement", "item"]).assign(**same)
    return frame.assign(logp=-rng.random(len(frame)).astype(np.float32).astype(float))


@pytest.fixture
def run(tmp_path):
    for step in STEPS:
        for n, placements in enumerate((["SS", "FF"], ["FS", "SF", "KS"])):
            write_part(rows(placements, step), part(tmp_path, step, n))
    return tmp_path


def part(run, step, n):
    return run / f"scores/step-{step:06d}/part-{n}.parquet"


def packed(run):
    assert [path.name for path in sorted(run.glob("scores/*/*.parquet"))] == [PACKED] * len(STEPS)
    return score_rows(run)


def test_rows_stay_and_each_step_is_one_file(run, capsys):
    before = score_rows(run)
    assert main([str(run)]) == 0 and "MB of scores" in capsys.readouterr().out
    pd.testing.assert_frame_equal(packed(run), before)
    assert main([str(run)]) == 0
    pd.testing.assert_frame_equal(packed(run), before)


def test_killed_between_the_one_file_and_the_parts_it_goes_on(run):
    before, left = score_rows(run), part(run, 10, 1).read_bytes()
    main([str(run)])
    part(run, 10, 1).write_bytes(left)
    assert main([str(run)]) == 0
    pd.testing.assert_frame_equal(packed(run), before)


def test_later_parts_join_the_one_file(run):
    main([str(run)])
    for step in STEPS:
        write_part(rows(["GG"], step), part(run, step, 2))
    before = score_rows(run)
    assert main([str(run)]) == 0
    pd.testing.assert_frame_equal(packed(run), before)


def test_two_scores_of_one_pair_are_refused_and_nothing_is_deleted(run, capsys):
    write_part(rows(["FF"], 10), part(run, 10, 2))
    before = score_rows(run)
    assert main([str(run)]) == 1
    assert "two scores of placement FF, item a: delete the wrong part" in capsys.readouterr().err
    pd.testing.assert_frame_equal(score_rows(run), before)


def test_a_folder_without_scores_and_a_sweep_at_work_are_refused(run, capsys):
    assert main([str(run / "nowhere")]) == 1 and "no score tables" in capsys.readouterr().err
    with exclusive(run, "sweep"):
        assert main([str(run)]) == 1 and "another process is writing sweep" in capsys.readouterr().err
