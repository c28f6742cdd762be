"""Active learning: on a planted landscape without a model, and the real command, killed in the middle."""

import json
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from chain import call, elsewhere, kill_when, run_folder, table
from hydra import compose, initialize_config_dir

from analysis import presets
from analysis.optimise import next_round
from analysis.optimise.choice import winners
from analysis.optimise.next_round import Gain
from analysis.optimise.proposals import with_proposed
from analysis.table import SCHEMA, load_placements, load_scores, write_part
from analysis.validation.known_truth import best_within
from experiments.config import check
from experiments.run import Run, Sweep
from experiments.sweeping import active
from experiments.sweeping.placements import select
from experiments.sweeping.tables import merge, write_placements
from supernet.placement import Placement, exhaustive

CONF = Path(__file__).resolve().parents[3] / "conf"
EVERYTHING = [str(p) for p in exhaustive(5)]
SOURCES = {"local", "counts", "band", "exhaustive", "frontier", "preset", "neighbour"}


def configure(tmp_path, *overrides):
    """The run and the sweep."""
    folders = [f"results={tmp_path / 'results'}", f"cache={tmp_path / 'cache'}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = check(compose("config", ["placements=proposed", "num_placements=40", "proposals=8", "rounds=3", *folders, *overrides]))
    return Run.of(config), Sweep.of(config)


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


def scored(patch, quality, noise, parts=10_000):
    """Put in the place of the engine: a part per placement (and checkpoint), killed when it has written so many ``parts``."""
    left, items = iter(range(parts)), [SimpleNamespace(name=f"i{i}") for i in range(16)]

    def write(folder, step, name):
        path = folder / f"step-{step:06d}" / f"part-{name}.parquet"
        if path.exists():
            return
        if next(left, None) is None:
            raise Killed
        wobble = noise * np.random.default_rng([step, zlib.crc32(name.encode())]).normal(size=16)
        rows = pd.DataFrame({"item": [f"i{i}" for i in range(16)], "logp": -20 + quality(name) + np.linspace(-1, 1, 16) + wobble})
        rows = rows.assign(scale="tiny", run=folder.parent.name, seed=0, step=step, tokens=step, placement=name, task="t", num_tokens=1)
        write_part(rows[list(SCHEMA)], path)

    def score_missing(run, sweep, wanted):
        folder = run.folder
        placements = merge(folder / "placements.parquet", wanted)
        folder.mkdir(parents=True, exist_ok=True)
        write_placements(placements, folder / "placements.parquet")
        for step, name in ((step, name) for step in (0, 700) for name in placements["placement"]):
            write(folder / "scores", step, name)

    def plan(run, sweep, there, have, placements, items):
        assert [item.name for item in items] == [f"i{i}" for i in range(16)]
        return [(step, name) for step, pairs in have.items() for name in placements if (name, "i0") not in pairs]

    def score_parts(run, sweep, parts, table):
        for step, name in parts:
            write(table, step, name)

    patch.setattr(active, "score_missing", score_missing)
    patch.setattr(active, "plan", plan)
    patch.setattr(active, "score_parts", score_parts)
    patch.setattr(active, "read_items", lambda path: items)
    return score_missing


def drawn(tmp_path, count):
    run, sweep = configure(tmp_path, "placements=local", f"num_placements={count}")
    return select(sweep, run.model)


def of_letters(placements):
    return pd.DataFrame({"placement": placements, "source": "preset", "cost": [Placement(p).cost() for p in placements]})


def state(config):
    """All that a run decided and scored."""
    folder = config[0].folder
    scores = load_scores(folder)
    both = with_proposed(folder, scores)
    listed = [load_placements(at).to_dict() for at in (folder, folder / "proposed")]
    return (folder / "active.json").read_text(), listed, scores.placements, scores.quality.tolist(), both.placements, both.quality.tolist()


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """An undisturbed run on a steep landscape, whose gain is worth all three rounds."""
    config = configure(tmp_path_factory.mktemp("learned"))
    with pytest.MonkeyPatch.context() as patch:
        scored(patch, planted(0.1), 0.05)
        active.learn(*config)
    return config


def test_the_placement_seed_decides_the_test_set_and_what_is_proposed(tmp_path, monkeypatch):
    scored(monkeypatch, planted(0.1), 0.05)
    seen = []

    def stop(last, proposals, rng, test):
        seen.append((test, rng.random(3).tolist()))
        return pd.DataFrame(columns=["placement", "source"]), Gain(0.0, 1.0), {"r2": None, "tau": None}

    monkeypatch.setattr(active, "next_placements", stop)
    monkeypatch.setattr(active, "select", lambda *_: of_letters([m * 5 for m in "FSKG"] + EVERYTHING[1:60]).assign(source="local"))
    for n, seed in enumerate((0, 0, 1)):
        active.learn(*configure(tmp_path / str(n), f"placement_seed={seed}"))
    first, again, other = seen
    assert first == again and first[0] != other[0] and first[1] != other[1]


def test_rounds_find_a_better_frontier_than_they_start_with(learned):
    folder, quality = learned[0].folder, planted(0.1)
    record, placements = json.loads((folder / "active.json").read_text()), load_placements(folder)
    proposed = load_placements(folder / "proposed")
    rounds = record["rounds"]
    assert [row["scored"] for row in rounds] == [40, 48, 56, 64] and [row["proposed"] for row in rounds] == [8, 8, 8, 0]
    assert rounds[-1]["stopped"] == "rounds=3" and len(placements) == 40 and len(proposed) == 24
    assert all(row["learned"] == row["scored"] - len(record["test"]) and row["r2"] > 0.5 for row in rounds)
    assert load_scores(folder).quality.shape == (2, 40, 16)  # what was drawn at random, at every checkpoint
    assert with_proposed(folder, load_scores(folder)).quality.shape == (1, 64, 16)  # and the proposals at the last
    assert sorted(p.name for p in (folder / "proposed").glob("step-*")) == ["step-000700"]
    sources = pd.concat([placements, proposed]).set_index("placement")["source"]
    assert set(sources) <= SOURCES and "frontier" not in set(sources.iloc[:40])
    assert 3 * 6 <= (sources.iloc[40:] == "frontier").sum() < 3 * 8  # the optima, and three quarters of the rest
    assert len(record["test"]) == round(0.2 * (40 - 4)) and set(sources[record["test"]]) <= {"local", "counts", "band"}
    assert set(record["test"]) <= set(sources.index[:40])

    cost, truth = (np.array([f(p) for p in EVERYTHING]) for f in (lambda p: Placement(p).cost(), quality))
    budgets = np.arange(1, 5, 0.1)

    def regret(names):
        rows = np.array([EVERYTHING.index(p) for p in names])
        return (truth[best_within(cost, truth, budgets)] - truth[rows[best_within(cost[rows], truth[rows], budgets)]]).mean()

    assert regret(sources.index) < 0.4 * regret(sources.index[:40])


@pytest.mark.parametrize("parts", [0, 30, 80, 87, 88, 100])
def test_killed_anywhere_it_ends_the_same(learned, tmp_path, monkeypatch, parts):
    config = configure(tmp_path)
    scored(monkeypatch, planted(0.1), 0.05, parts)
    with pytest.raises(Killed):
        active.learn(*config)
    scored(monkeypatch, planted(0.1), 0.05)
    active.learn(*config)
    assert state(config) == state(learned)


def test_a_finished_run_is_left_alone_and_more_rounds_extend_it(learned, tmp_path, monkeypatch):
    scored(monkeypatch, planted(0.1), 0.05)
    config = configure(tmp_path, "rounds=1")
    active.learn(*config)
    kept = {p: p.read_bytes() for p in config[0].folder.rglob("*") if p.is_file() and p.name != "placements.parquet"}
    active.learn(*config)
    assert kept == {p: p.read_bytes() for p in kept} and len(load_placements(config[0].folder / "proposed")) == 8
    active.learn(*configure(tmp_path))
    assert state(config) == state(learned)


def test_it_stops_where_two_fits_in_a_row_see_nothing_to_gain(tmp_path, monkeypatch, capsys):
    scored(monkeypatch, lambda placement: 0.0, 1.0)
    gains = iter([Gain(3.0, 1.0), Gain(1.0, 2.0), Gain(3.0, 1.0), Gain(1.0, 2.0), Gain(1.0, 1.0)])

    def next_placements(scores, *options):
        rows, _, judged = next_round.next_placements(scores, *options)
        return rows, next(gains), judged

    monkeypatch.setattr(active, "next_placements", next_placements)
    config = configure(tmp_path, "rounds=20")
    active.learn(*config)
    rounds = json.loads((config[0].folder / "active.json").read_text())["rounds"]
    assert [row["proposed"] for row in rounds] == [8, 8, 8, 8, 0] and not any(row["stopped"] for row in rounds[:-1])
    assert rounds[-1]["stopped"] == "predicted gain under its uncertainty twice in a row"
    assert "stop: predicted gain under its uncertainty twice" in capsys.readouterr().out


def test_a_larger_random_sample_leaves_proposals_beside_it(tmp_path, monkeypatch):
    score = scored(monkeypatch, planted(0.1), 0.05)
    config = configure(tmp_path, "rounds=1")
    active.learn(*config)
    folder = config[0].folder
    test, proposed = json.loads((folder / "active.json").read_text())["test"], list(load_placements(folder / "proposed")["placement"])
    score(*config, pd.concat([drawn(tmp_path, 60), of_letters(proposed[:2])]))
    taken = len(load_placements(folder))
    active.learn(*config)
    assert len(load_placements(folder)) == taken  # nothing but other modes adds to the run's own tables
    record = json.loads((folder / "active.json").read_text())
    assert record["test"] == test and record["rounds"][-1]["scored"] == len(with_proposed(folder, load_scores(folder)).placements)
    beside = set(proposed) - set(load_placements(folder)["placement"])  # those that the larger sample does not happen to hold
    assert 4 <= len(beside) <= 6 and beside <= set(with_proposed(folder, load_scores(folder)).placements[taken:])


def test_what_is_scored_already_is_the_start(tmp_path, monkeypatch):
    score = scored(monkeypatch, planted(0.1), 0.05)
    config = configure(tmp_path, "rounds=1", "test_share=0.5", "num_placements=0")
    with pytest.raises(ValueError, match="num_placements is 0: give 1 to 512 for placements=proposed"):
        active.learn(*config)
    score(*config, drawn(tmp_path, 30))
    active.learn(*config)
    record = json.loads((config[0].folder / "active.json").read_text())
    assert record["rounds"][0]["scored"] == 30 and len(record["test"]) == 15


def test_options():
    base = configure(Path())
    other = configure(Path(), "proposals=5", "rounds=2", "test_share=0.1", "placements=winners")
    assert base[0].id == other[0].id
    for option, says in (("proposals=0", "proposals is 0"), ("rounds=-1", "rounds is -1"), ("test_share=0.9", "test_share is 0.9")):
        with pytest.raises(ValueError, match=says):
            configure(Path(), option)


LARGER = ["model.layers=3", "data.items=10", "items=6"]
PROPOSED = [*LARGER, "placements=proposed", "num_placements=14", "proposals=5", "rounds=2"]


@pytest.mark.slow
def test_the_command_survives_kills_and_judges_winners_on_fresh_items(small, tmp_path):
    small = [*small, *PROPOSED, "distill.presets=[GKF]"]
    call("teach", small)
    call("distill", small)
    said = call("sweep", small).stdout
    folder = run_folder(small)
    record = json.loads((folder / "active.json").read_text())
    assert f"proposed: {record['rounds'][-1]['scored']} scored, of these {len(record['test'])} held out" in said
    scores = load_scores(folder)
    last = with_proposed(folder, scores)
    assert scores.quality.shape == (4, 14, 6) and last.quality.shape == (1, record["rounds"][-1]["scored"], 6)
    assert set(table(folder, "proposed")["step"]) == {8}
    fresh = table(folder, "fresh")
    assert set(fresh["step"]) == {8} and fresh["item"].nunique() == 4 and not set(fresh["item"]) & set(scores.items)
    assert set(fresh["placement"]) == {*winners(folder, scores, last), "GKF"} and "FFF" in set(fresh["placement"])
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
    kill_when("sweep", again, lambda: any(there.glob("proposed/*/*.parquet")))
    kill_when("sweep", again, lambda: (there / "fresh").exists())
    call("sweep", again)
    for name in ("scores", "proposed", "fresh"):
        pd.testing.assert_frame_equal(table(there, name), table(folder, name), check_exact=True)
    assert (there / "active.json").read_text() == (folder / "active.json").read_text()
    for name in (".", "proposed"):
        assert load_placements(there / name).equals(load_placements(folder / name))


@pytest.mark.slow
def test_without_fresh_items_it_says_so(small):
    small = [*small, *PROPOSED, "rounds=1", "items=0"]
    call("teach", small)
    call("distill", small)
    done = call("sweep", small)
    assert "winners: no fresh items" in done.stdout and "use 10 of data.items=10" in done.stdout
    assert "no fresh items" in call("sweep", [*small, "placements=winners"], expect=1).stderr
