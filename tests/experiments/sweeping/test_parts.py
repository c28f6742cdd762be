"""Shares of a sweep, who may write when, and budgets: in this process, on a random supernet of two layers."""

import itertools
import json
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from analysis import drafts
from analysis.table import WANTED, load_scores
from experiments import random_supernet
from experiments.config import check
from experiments.faults.drill import SMALL
from experiments.faults.drill import score_rows as table
from experiments.run import Run, Sweep
from experiments.runs import stopping
from experiments.sweep import sweep
from experiments.sweeping import parts, weights
from experiments.sweeping.parts import ask, claim, score_missing
from experiments.sweeping.placements import select
from experiments.sweeping.tables import all_scored

CONF = Path(__file__).resolve().parents[3] / "conf"


def configure(root, *overrides):
    options = [*SMALL, f"supernet={root / 'net'}", f"items_file={root / 'items.parquet'}", f"results={root / 'results'}",
               f"cache={root / 'cache'}", "items=7", "workers=1", *overrides]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("config", options))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A random supernet and seven items."""
    folder = tmp_path_factory.mktemp("net")
    random_supernet.make(configure(folder))
    return folder


def resolved(root, tmp_path, *overrides):
    """The run, the sweep and what it wants."""
    config = weights.of_folder(configure(root, f"results={tmp_path / 'results'}", *overrides))
    run, sweep = Run.of(config), Sweep.of(config)
    return run, sweep, select(sweep, run.model)


def scored_in_shards(root, tmp_path, shards, order):
    for shard in order:
        sweep(configure(root, f"results={tmp_path / 'results'}", f"shards={shards}", f"shard={shard}"))
    return resolved(root, tmp_path)[0].folder


@pytest.mark.parametrize(("shards", "order"), [(3, [2, 0, 2, 1]), (10, range(10))])  # repeated; more shards than items
def test_shards_in_any_order_share_out_the_rows(root, tmp_path, shards, order):
    folder = scored_in_shards(root, tmp_path / "shards", shards, order)
    sweep(configure(root, f"results={tmp_path / 'whole'}"))
    whole = Run.of(configure(root, f"results={tmp_path / 'whole'}")).folder
    assert len(table(folder)) == 16 * 7
    pd.testing.assert_frame_equal(table(folder), table(whole), atol=1e-4)  # other items beside them in a call: other rounding
    states = json.loads((folder / "status.json").read_text())
    assert {part: entry["state"] for part, entry in states.items()} == {f"sweep-{i}of{shards}": "done" for i in set(order)}


def test_what_a_shard_scores_does_not_depend_on_what_is_there(root, tmp_path):
    first = resolved(root, tmp_path, "shards=3", "shard=1")
    names = {item.name for part in ask(*first).parts for item in part.items}
    assert len(names) == 2
    sweep(configure(root, f"results={tmp_path / 'results'}", "shards=3", "shard=0"))
    assert names == {item.name for part in ask(*first).parts for item in part.items}


def test_a_missing_shard_is_noticed_and_the_plain_sweep_fills_in(root, tmp_path):
    folder = scored_in_shards(root, tmp_path, 3, [0, 1])
    with pytest.raises(ValueError, match=r"lacks 2 of 7 items altogether, item random-0002 first: run the sweep again"):
        load_scores(folder)
    before = {p: p.read_bytes() for p in folder.rglob("part-*.parquet")}
    sweep(configure(root, f"results={tmp_path / 'results'}"))
    assert load_scores(folder).quality.shape == (1, 16, 7)
    assert before == {p: p.read_bytes() for p in before}


def test_who_may_write_at_once(root, tmp_path):
    folder = tmp_path / "run"

    def held(*overrides):
        sweep = Sweep.of(configure(root, *overrides))
        return claim(folder, sweep.part, sweep.shards)

    with held("shards=3", "shard=0"), held("shards=3", "shard=1"):
        for overrides in ([], ["shards=3", "shard=1"], ["shards=2", "shard=0"]):
            with pytest.raises(ValueError, match="another process is writing sweep") as error, held(*overrides):
                pass
            assert "\n" not in str(error.value)
    with held("shards=2", "shard=0"):  # the others are gone
        pass
    with held(), pytest.raises(ValueError, match="another process is writing sweep"), held("shards=3", "shard=0"):
        pass


def test_what_another_process_scored_meanwhile_is_not_scored_again(root, tmp_path, monkeypatch):
    """Between the look at the tables and the lock, another sweep with other chunks of items comes and goes."""
    config = resolved(root, tmp_path)
    folder, real = config[0].folder, parts.claim

    def late(*arguments):
        monkeypatch.setattr(parts, "claim", real)
        sweep(configure(root, f"results={tmp_path / 'results'}", "workers=3", "memory_gib=1"))
        return real(*arguments)

    monkeypatch.setattr(parts, "claim", late)
    score_missing(*config)
    assert load_scores(folder).quality.shape == (1, 16, 7)  # which refuses doubled rows


def test_a_stopped_sweep_keeps_its_finished_parts(root, tmp_path, monkeypatch):
    config = resolved(root, tmp_path, "workers=3", "memory_gib=1")
    assert len(ask(*config).parts) == 3
    call = itertools.count(1)

    def stop_at_the_third():
        if next(call) == 3:
            raise stopping.Stopped(15)

    monkeypatch.setattr(parts, "raise_if_asked", stop_at_the_third)
    with pytest.raises(stopping.Stopped):
        score_missing(*config)
    folder = config[0].folder
    assert len(list(folder.rglob("part-*.parquet"))) == 2
    assert json.loads((folder / "status.json").read_text())["sweep"]["state"] == "failed"
    monkeypatch.undo()
    score_missing(*config)
    assert load_scores(folder).quality.shape == (1, 16, 7)


def test_a_finished_sweep_is_left_alone(root, tmp_path, capsys):
    sweep(configure(root, f"results={tmp_path / 'results'}"))
    folder = resolved(root, tmp_path)[0].folder
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    sweep(configure(root, f"results={tmp_path / 'results'}"))
    assert "sweep: complete, 16 placements x 7 items x 1 checkpoints" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_fewer_items_after_a_sweep_that_never_began_are_no_debt(root, tmp_path):
    config = resolved(root, tmp_path)
    with ExitStack() as stack:  # killed before its first part
        stack.enter_context(pytest.raises(KeyboardInterrupt))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(parts, "score_parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        score_missing(*config)
    assert len(json.loads((config[0].folder / WANTED).read_text())["items"]) == 7
    sweep(configure(root, f"results={tmp_path / 'results'}", "items=3"))
    assert load_scores(config[0].folder).quality.shape == (1, 16, 3)


def test_memory_from_what_is_free(root, tmp_path, monkeypatch):
    config = resolved(root, tmp_path, "memory_gib=0")
    monkeypatch.setattr(weights, "free_memory", lambda: 3 << 30)
    assert weights.memory_bytes(config[1].memory_gib, "cpu") == 3 << 29
    monkeypatch.undo()
    assert 0 < weights.free_memory() < 1 << 50
    score_missing(*config)
    assert load_scores(config[0].folder).quality.shape == (1, 16, 7)
    assert config[1].part == "sweep"


def test_a_sweep_reads_each_table_once_on_its_way(root, tmp_path, monkeypatch):
    """Part files, items and checkpoints: what was read to see what is missing is not read again to score it."""
    sweep(configure(root, f"results={tmp_path / 'results'}", "items=3"))
    read = []
    for name in ("scored_pairs", "checkpoints", "items_to_score"):
        real = getattr(parts, name)
        monkeypatch.setattr(parts, name, lambda *given, name=name, real=real: read.append(name) or real(*given))
    score_missing(*resolved(root, tmp_path))
    assert sorted(read) == ["checkpoints", "items_to_score", "scored_pairs"]
    assert load_scores(resolved(root, tmp_path)[0].folder).quality.shape == (1, 16, 7)


def test_that_all_is_scored_is_known_as_the_sweep_knows_it(root, tmp_path):
    """A smaller request than an earlier one is met only where the earlier one is."""
    small, whole = (resolved(root, tmp_path, f"items={n}", "placements=FF+SS+KG" if n < 7 else "placements=exhaustive") for n in (3, 7))
    seen = []
    for done in (None, small, whole):
        if done:
            score_missing(*done)
        seen.append([all_scored(*asked) for asked in (small, whole)])
        assert seen[-1] == [not ask(*asked).parts for asked in (small, whole)]
    assert seen == [[False, False], [True, False], [True, True]]
    next(whole[0].folder.glob("scores/*/*.parquet")).unlink()
    assert not all_scored(*whole) and all_scored(*small) == (not ask(*small).parts)
    assert not all_scored(*resolved(root, tmp_path, "items=8"))  # more than there are: the sweep says so


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shard=1"], "shard is 1: give 0 to 0 with shards=1"),
        (["shards=0"], "shards is 0: give a positive number"),
        (["memory_gib=-1"], "memory_gib is -1"),
        (["shards=2", "placements=proposed"], "cannot be shared among shards=2"),
        (["supernet="], "items_file=.* is for supernet=FOLDER"),
    ],
)
def test_bad_options(root, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        configure(root, *overrides)
    assert "\n" not in str(error.value)


def test_acceptances_have_tables_of_their_own_that_the_analysis_reads(root, tmp_path, capsys):
    options = [f"results={tmp_path / 'results'}", "score=acceptance"]
    sweep(configure(root, *options, "items=5"))
    sweep(configure(root, *options))  # more items extend it
    folder = Run.of(configure(root, *options)).folder
    scores = load_scores(folder / "acceptance")
    assert scores.quality.shape == (1, 16, 7)
    assert (scores.quality >= 0).all() and (scores.quality <= 1 + 1e-6).all()
    full = scores.placements.index("FF")
    assert scores.quality[0, full] == pytest.approx(1, abs=1e-5)
    assert scores.quality[0].mean(-1).argmax() == full
    assert not (folder / "scores").exists()
    sweep(configure(root, f"results={tmp_path / 'results'}"))
    assert load_scores(folder).quality.max() < 0  # log-likelihoods, beside them
    capsys.readouterr()
    sweep(configure(root, *options))
    assert "complete, 16 placements x 7 items" in capsys.readouterr().out
    assert drafts.main([str(folder), "--k", "2"]) == 0
    table = pd.read_csv(folder / "tables" / "drafts.csv")
    assert (table["acceptance"] <= 1).all() and (table["cost"] <= table["budget"] + 1e-9).all()
    with pytest.raises(ValueError, match="score is 'likes': choose from loglik, acceptance"):
        configure(root, "score=likes")
    with pytest.raises(ValueError, match="score=acceptance cannot be had with placements=winners"):
        configure(root, "score=acceptance", "placements=winners")
