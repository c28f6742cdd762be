"""The best draft per budget and k, from tables whose truth is known."""

import itertools

import numpy as np
import pandas as pd
import pytest

from analysis.drafts import expected_tokens, main, speedup
from analysis.table import write_part

COST = {"F": 1.0, "S": 0.48, "K": 0.21, "G": 0.14}
LOSS = {"F": 0.0, "S": 0.06, "K": 0.11, "G": 0.18}  # of acceptance, for each layer


def write_run(folder, per_layer=LOSS):
    placements = ["".join(p) for p in itertools.product("FSKG", repeat=4)]
    rng = np.random.default_rng(0)
    item = rng.normal(0, 0.01, size=12)
    rows = [
        {"scale": "s", "run": "r", "seed": 1, "step": step, "tokens": 100 * step, "placement": p, "item": f"i{i}", "task": "t",
         "score": float(np.clip(1 - sum(per_layer[x] for x in p) + (item[i] if set(p) != {"F"} else 0), 0, 1))}
        for step in (1, 2) for p in placements for i in range(12)
    ]  # fmt: skip
    for step, part in pd.DataFrame(rows).groupby("step"):
        write_part(part, folder / "acceptance" / "scores" / f"step-{step:06d}" / "part-0.parquet")
    costs = [sum(COST[x] for x in p) for p in placements]
    table = pd.DataFrame({"placement": placements, "source": "exhaustive", "cost": costs})
    table.to_parquet(folder / "acceptance" / "placements.parquet", index=False)
    return placements


def test_the_best_draft_of_a_known_world(tmp_path, capsys):
    placements = write_run(tmp_path)
    assert main([str(tmp_path), "--k", "1", "3", "--budgets", "1", "2", "4"]) == 0
    assert "predicted from costs, not measured" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "tables" / "drafts.csv")
    assert len(table) == 6
    for row in table.itertuples():
        within = [p for p in placements if sum(COST[x] for x in p) <= row.budget + 1e-9]
        truth = {p: float(speedup(1 - sum(LOSS[x] for x in p), sum(COST[x] for x in p) / 4, row.k)) for p in within}
        assert truth[row.placement] > max(truth.values()) - 0.01
        assert row.speedup == pytest.approx(truth[row.placement], abs=0.03)
        assert row.loses == (row.speedup < 1)
        assert truth[row.measured] > max(truth.values()) - 0.01


def test_a_world_in_which_every_draft_loses(tmp_path, capsys):
    write_run(tmp_path, {"F": 0.0, "S": 0.24, "K": 0.245, "G": 0.249})
    assert main([str(tmp_path), "--budgets", "1", "--k", "2"]) == 0
    assert "every draft loses" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "tables" / "drafts.csv")["loses"].all()


def test_tokens_of_a_round_by_drawing():
    rng = np.random.default_rng(0)
    accepted = (rng.random((20000, 4)) < 0.7).cumprod(1).sum(1)
    assert (accepted + 1).mean() == pytest.approx(float(expected_tokens(0.7, 4)), abs=0.05)
    assert expected_tokens(1.0, 3) == 4
    assert float(speedup(np.array(0.8), 0.1, 2)) == pytest.approx((1 + 0.8 + 0.64) / 1.2)


def test_what_is_missing_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "score=acceptance" in capsys.readouterr().err
    write_run(tmp_path)
    assert main([str(tmp_path), "--budgets", "0.1"]) == 1
    assert "no placement costs 0.1 or less: the cheapest costs 0.56" in capsys.readouterr().err
    assert main([str(tmp_path), "--k", "0"]) == 1
    assert "--k is 0" in capsys.readouterr().err
    assert main([str(tmp_path), "--k", "2", "1000000000"]) == 1
    assert "--k is 1000000000: give at most 1000 drafts a round" in capsys.readouterr().err


@pytest.mark.parametrize("change", [
    lambda f: f.assign(score=f["score"] * 7), lambda f: f.assign(score=-f["score"]),
    lambda f: f.assign(logp=-f["score"], num_tokens=1).drop(columns="score"),
])  # fmt: skip
def test_values_that_are_no_acceptances_are_refused(tmp_path, capsys, change):
    write_run(tmp_path)
    for path in tmp_path.glob("acceptance/scores/*/*.parquet"):
        write_part(change(pd.read_parquet(path)), path)
    assert main([str(tmp_path), "--k", "2"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "and acceptances are scores from 0 to 1" in error
    assert not (tmp_path / "tables").exists()
