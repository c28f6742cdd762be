"""Active learning: on a planted landscape without a model, and the real command, killed in the middle."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from chain import call, elsewhere, kill_when, run_folder, table
from hydra import compose, initialize_config_dir

from analysis import presets
from analysis.search import best_within
from analysis.table import SCHEMA, load_placements, load_scores, write_part
from experiments import active
from experiments.config import check, run_dir, run_id
from experiments.parts import merge, write_placements
from experiments.placements import select
from supernet.placement import Placement, exhaustive

CONF = Path(__file__).resolve().parents[2] / "conf"
EVERYTHING = [str(p) for p in exhaustive(5)]
SOURCES = {"local", "counts", "band", "exhaustive", "frontier", "preset", "neighbour"}


def configure(tmp_path, *overrides):
    folders = [f"results={tmp_path / 'results'}", f"cache={tmp_path / 'cache'}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("config", ["placements=proposed", "num_placements=40", "proposals=8", "rounds=3", *folders, *overrides]))


def planted(slope, seed=2):
    """Quality of a placement: layers, neighbours, and ``slope`` per cost; known to nobody but the scorer."""
    rng = np.random.default_rng(seed)
    points, pairs = 0.2 * rng.normal(size=(5, 4)), 0.1 * rng.normal(size=(4, 4, 4))

    def quality(placement):
        codes = ["FSKG".index(c) for c in placement]
        own = sum(points[i, c] for i, c in enumerate(codes))
        both = sum(pairs[i, a, b] for i, (a, b) in enumerate(zip(codes[:-1], codes[1:], strict=True)))
        return own + both + slope * Placement(placement).cost()

    return quality


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it."""


def scorer(quality, noise, parts=10_000):
    """In the place of ``score_missing``: a part per placement and checkpoint; killed when it has written so many ``parts``."""
    left = iter(range(parts))

    def score_missing(config, wanted):
        folder = run_dir(config)
        placements = merge(folder / "placements.parquet", wanted)
        folder.mkdir(parents=True, exist_ok=True)
        write_placements(placements, folder / "placements.parquet")
        for step, name in ((step, name) for step in (0, 700) for name in placements["placement"]):
            path = folder / "scores" / f"step-{step:06d}" / f"part-{name}.parquet"
            if path.exists():
                continue
            if next(left, None) is None:
                raise Killed
            wobble = noise * np.random.default_rng([step, zlib.crc32(name.encode())]).normal(size=16)
            rows = pd.DataFrame({"item": [f"i{i}" for i in range(16)], "logp": -20 + quality(name) + np.linspace(-1, 1, 16) + wobble})
            rows = rows.assign(scale="tiny", run=folder.name, seed=0, step=step, tokens=step, placement=name, task="t", num_tokens=1)
            write_part(rows[list(SCHEMA)], path)

    return score_missing


def state(config):
    """All that a run decided and scored."""
    folder = run_dir(config)
    scores = load_scores(folder)
    return (folder / "active.json").read_text(), load_placements(folder).to_dict(), scores.placements, scores.quality.tolist()


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """An undisturbed run on a steep landscape, whose gain is worth all three rounds."""
    config = configure(tmp_path_factory.mktemp("learned"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(active, "score_missing", scorer(planted(0.1), 0.05))
        active.learn(config)
    return config


def test_rounds_find_a_better_frontier_than_they_start_with(learned):
    folder, quality = run_dir(learned), planted(0.1)
    record, placements = json.loads((folder / "active.json").read_text()), load_placements(folder)
    rounds = record["rounds"]
    assert [row["scored"] for row in rounds] == [40, 48, 56, 64] and [row["proposed"] for row in rounds] == [8, 8, 8, 0]
    assert rounds[-1]["stopped"] == "rounds=3" and len(placements) == 64
    assert all(row["learned"] == row["scored"] - len(record["test"]) and row["r2"] > 0.5 for row in rounds)
    assert load_scores(folder).quality.shape == (2, 64, 16)  # every placement, at every checkpoint
    sources = placements.set_index("placement")["source"]
    assert set(sources) <= SOURCES and (sources.iloc[40:] == "frontier").sum() == 3 * 6
    assert len(record["test"]) == round(0.2 * (40 - 4)) and set(sources[record["test"]]) <= {"local", "counts", "band"}
    assert set(record["test"]) <= set(sources.index[:40])

    cost, truth = (np.array([f(p) for p in EVERYTHING]) for f in (lambda p: Placement(p).cost(), quality))
    budgets = np.arange(1, 5, 0.1)

    def regret(names):
        rows = np.array([EVERYTHING.index(p) for p in names])
        return (truth[best_within(cost, truth, budgets)] - truth[rows[best_within(cost[rows], truth[rows], budgets)]]).mean()

    assert regret(sources.index) < 0.4 * regret(sources.index[:40])


@pytest.mark.parametrize("parts", [0, 30, 80, 95, 96, 120])
def test_killed_anywhere_it_ends_the_same(learned, tmp_path, monkeypatch, parts):
    config = configure(tmp_path)
    monkeypatch.setattr(active, "score_missing", scorer(planted(0.1), 0.05, parts))
    with pytest.raises(Killed):
        active.learn(config)
    monkeypatch.setattr(active, "score_missing", scorer(planted(0.1), 0.05))
    active.learn(config)
    assert state(config) == state(learned)


def test_a_finished_run_is_left_alone_and_more_rounds_extend_it(learned, tmp_path, monkeypatch):
    monkeypatch.setattr(active, "score_missing", scorer(planted(0.1), 0.05))
    config = configure(tmp_path, "rounds=1")
    active.learn(config)
    kept = {p: p.read_bytes() for p in run_dir(config).rglob("*") if p.is_file() and p.name != "placements.parquet"}
    active.learn(config)
    assert kept == {p: p.read_bytes() for p in kept} and len(load_placements(run_dir(config))) == 48
    active.learn(configure(tmp_path))
    assert state(config) == state(learned)


def test_it_stops_where_nothing_is_to_be_gained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(active, "score_missing", scorer(lambda placement: 0.0, 1.0))
    config = configure(tmp_path)
    active.learn(config)
    (row,) = json.loads((run_dir(config) / "active.json").read_text())["rounds"]
    assert row["gain"] <= row["uncertainty"] and row["proposed"] == 0 and len(load_placements(run_dir(config))) == 40
    assert "stop: predicted gain under its uncertainty" in capsys.readouterr().out


def test_what_is_scored_already_is_the_start(tmp_path, monkeypatch):
    score = scorer(planted(0.1), 0.05)
    monkeypatch.setattr(active, "score_missing", score)
    config = configure(tmp_path, "rounds=1", "test_share=0.5", "num_placements=0")
    with pytest.raises(ValueError, match="num_placements is 0: give 1 to 512 for placements=proposed"):
        active.learn(config)
    score(config, select(configure(tmp_path, "placements=local", "num_placements=30")))
    active.learn(config)
    record = json.loads((run_dir(config) / "active.json").read_text())
    assert record["rounds"][0]["scored"] == 30 and len(record["test"]) == 15


def test_options():
    base = configure(Path())
    other = configure(Path(), "proposals=5", "rounds=2", "test_share=0.1", "placements=winners")
    assert run_id(base) == run_id(other)
    for option, says in (("proposals=0", "proposals is 0"), ("rounds=-1", "rounds is -1"), ("test_share=0.9", "test_share is 0.9")):
        with pytest.raises(ValueError, match=says):
            configure(Path(), option)


LARGER = ["model.layers=3", "data.items=10", "items=6"]
PROPOSED = [*LARGER, "placements=proposed", "num_placements=14", "proposals=5", "rounds=2"]


@pytest.mark.slow
def test_the_command_survives_kills_and_judges_winners_on_fresh_items(small, tmp_path):
    small = [*small, *PROPOSED]
    call("teach", small)
    call("distill", small)
    said = call("sweep", small).stdout
    folder = run_folder(small)
    record = json.loads((folder / "active.json").read_text())
    assert f"proposed: {record['rounds'][-1]['scored']} scored, of these {len(record['test'])} held out" in said
    scores = load_scores(folder)
    assert scores.quality.shape == (4, record["rounds"][-1]["scored"], 6)
    fresh = table(folder, "fresh")
    assert set(fresh["step"]) == {8} and fresh["item"].nunique() == 4 and not set(fresh["item"]) & set(scores.items)
    assert set(fresh["placement"]) == set(presets.winners(scores)) and "FFF" in set(fresh["placement"])
    assert presets.main([str(folder)]) == 0
    named = yaml.safe_load((folder / "presets.yaml").read_text())["presets"]
    assert all(entry["measured"]["fresh_items"] and entry["measured"]["items"] == 4 for entry in named.values())

    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    call("sweep", small)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}, "a finished run was touched"

    again = elsewhere(small, tmp_path / "again")
    there = tmp_path / "again/tiny" / folder.name
    shutil.copytree(folder / "checkpoints", there / "checkpoints")
    kill_when("sweep", again, lambda: len(list(there.glob("scores/*/*.parquet"))) > 1)
    kill_when("sweep", again, lambda: (there / "active.json").exists())
    kill_when("sweep", again, lambda: (there / "fresh").exists())
    call("sweep", again)
    for name in ("scores", "fresh"):
        pd.testing.assert_frame_equal(table(there, name), table(folder, name), check_exact=True)
    assert (there / "active.json").read_text() == (folder / "active.json").read_text()
    assert load_placements(there).equals(load_placements(folder))


@pytest.mark.slow
def test_without_fresh_items_it_says_so(small):
    small = [*small, *PROPOSED, "rounds=1", "items=0"]
    call("teach", small)
    call("distill", small)
    done = call("sweep", small)
    assert "winners: no fresh items" in done.stdout and "use 10 of data.items=10" in done.stdout
    assert "no fresh items" in call("sweep", [*small, "placements=winners"], expect=1).stderr
