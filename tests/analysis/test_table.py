import json
import time
import warnings

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from analysis.table import SCHEMA, WANTED, load_placements, load_scores, write_part
from supernet.placement import Placement


@pytest.fixture
def frame(scores, frame_of):
    return frame_of(scores)


@pytest.fixture
def load(tmp_path):
    """Write a table as one file and load it."""

    def write_and_load(table: pd.DataFrame):
        path = tmp_path / "alone" / "scores.parquet"
        path.parent.mkdir(exist_ok=True)
        table.to_parquet(path)
        return load_scores(path)

    return write_and_load


def equal(a, b) -> bool:
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("steps", "tokens", "cost", "quality"))
    return arrays and all(getattr(a, name) == getattr(b, name) for name in ("scale", "run", "seed", "placements", "items", "tasks"))


def test_round_trip_of_a_run_directory(run_dir, scores):
    loaded = load_scores(run_dir)
    np.testing.assert_allclose(loaded.quality, scores.quality, rtol=1e-14)
    assert loaded.placements == scores.placements and loaded.items == scores.items and loaded.tasks == scores.tasks
    assert (loaded.steps == scores.steps).all() and (loaded.tokens == scores.tokens).all() and (loaded.cost == scores.cost).all()
    assert (loaded.scale, loaded.run, loaded.seed) == (scores.scale, scores.run, scores.seed)


def test_order_of_rows_and_parts_is_of_no_consequence(frame, load, run_dir):
    assert equal(load(frame), load(frame.sample(frac=1, random_state=1)))
    assert equal(load(frame), load_scores(run_dir))


def test_csv_is_read_like_parquet(frame, load, tmp_path):
    frame["item"] = frame["item"].replace({"item-000": "NA"})  # a name, not a missing value
    frame.to_csv(tmp_path / "scores.csv", index=False)
    assert equal(load_scores(tmp_path / "scores.csv"), load(frame))


def test_cost_is_computed_from_the_letters_without_placement_table(frame, load, run_dir):
    assert (load(frame).cost == [Placement(p).cost() for p in load(frame).placements]).all()
    doubled = load_placements(run_dir)
    doubled["cost"] *= 2
    doubled.to_parquet(run_dir / "placements.parquet")
    assert (load_scores(run_dir).cost == 2 * load(frame).cost).all()


def test_letters_of_another_project_need_a_placement_table(frame, load, tmp_path):
    frame["placement"] = frame["placement"].str.replace("K", "M")
    with pytest.raises(ValueError, match=r"unknown mixer M.*placements\.parquet"):
        load(frame)
    names = sorted(frame["placement"].unique())
    pd.DataFrame({"placement": names, "source": "counts", "cost": np.arange(len(names)) + 1.0}).to_parquet(
        tmp_path / "alone" / "placements.parquet"
    )
    assert (load(frame).cost == np.arange(len(names)) + 1.0).all()


def drop_row(frame):
    return frame.drop(index=7)


def change(column, value, where=7):
    def changed(frame):
        frame = frame.astype({column: object}) if isinstance(value, str) else frame.copy()
        frame.loc[where, column] = value
        return frame

    return changed


BAD = {
    "columns": (lambda f: f.drop(columns=["logp", "task"]), r"lacks the columns task, logp"),
    "type": (lambda f: f.assign(logp="low"), r"column logp of type \w*string, it must be float64"),
    "integer logp": (lambda f: f.assign(logp=-1), r"column logp of type int64, it must be float64"),
    "float step": (lambda f: f.assign(step=f["step"] + 0.5), r"column step of type double, it must be int64"),
    "null": (change("item", None), r"1 empty values in column item, the first in row 7"),
    "duplicate": (lambda f: pd.concat([f, f.iloc[[5]]]), r"1 duplicate rows, the first for placement \w+, item item-005, step 0"),
    "missing": (drop_row, r"lacks 1 of 5760 scores, the first for placement \w+, item item-007, step 0: add the rows that are missing"),
    "NaN": (change("logp", np.nan), r"1 logp values that are NaN or infinite, the first for placement \w+, item item-007, step 0"),
    "inf": (change("logp", -np.inf), r"1 logp values that are NaN or infinite"),
    "sign": (lambda f: f.assign(logp=-f["logp"]), r"5760 positive logp values.*negate losses"),
    "two runs": (change("run", "other"), r"mixes 2 runs \(other, sim-0\)"),
    "two scales": (change("scale", "135m"), r"mixes 2 scales"),
    "two seeds": (change("seed", 3), r"mixes the seeds 0, 3"),
    "one item": (lambda f: f[f["item"] == "item-000"], r"one item \(item-000\)"),
    "one placement": (lambda f: f[f["placement"] == f["placement"][0]], r"one placement"),
    "lengths": (lambda f: f.replace({"placement": {f["placement"].iloc[-1]: "F"}}), r"placements of different lengths \(F, "),
    "no rows": (lambda f: f.iloc[:0], r"no rows"),
    "no tokens": (change("num_tokens", 0), r"num_tokens below 1"),
    "two tasks": (change("task", "state"), r"gives one item several values of task"),
    "two lengths": (change("num_tokens", 33), r"gives one item several values of num_tokens"),
    "two token counts": (change("tokens", 1), r"gives one step several values of tokens"),
    "falling tokens": (lambda f: f.assign(tokens=f["tokens"].max() - f["tokens"]), r"fewer tokens at step 10"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_end_in_one_line(case, frame, load):
    spoil, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        load(spoil(frame))
    assert "\n" not in str(error.value)


def test_what_was_asked_for_and_has_no_row_at_all_is_named(run_dir, scores):
    """A shard that never ran, or a kill after the first chunk of items, leaves tables that look complete."""
    asked = {"steps": scores.steps.tolist(), "items": [*scores.items, "x-0", "x-1"]}
    for record, message in (
        (asked, r"lacks 2 of 26 items altogether, item x-0 first: run the sweep again, it continues what is missing$"),
        (asked | {"items": scores.items, "steps": [0, 2000]}, r"lacks 1 of 2 steps altogether, step 2000 first"),
        ({}, rf"{WANTED} is not what a sweep writes"),
    ):
        (run_dir / WANTED).write_text(json.dumps(record))
        with pytest.raises(ValueError, match=message) as error:
            load_scores(run_dir)
        assert "\n" not in str(error.value)
    (run_dir / WANTED).write_text(json.dumps(asked | {"items": scores.items}))
    load_scores(run_dir)
    table = load_placements(run_dir)
    pd.concat([table, pd.DataFrame([{"placement": "GGGX", "source": "local", "cost": 1.0}])]).to_parquet(run_dir / "placements.parquet")
    command = "python -m experiments.sweep scale=tiny shards=4 'model={layers: 2}' shard=1"
    (run_dir / "status.json").write_text(json.dumps({"distill": {}, "sweep-1of4": {"command": command}}))
    with pytest.raises(ValueError, match="lacks 1 of 41 placements altogether, placement GGGX first") as error:
        load_scores(run_dir)
    assert str(error.value).endswith("missing: python -m experiments.sweep scale=tiny 'model={layers: 2}'")


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_truncated_parquet_is_named(keep, run_dir):
    part = sorted(run_dir.glob("scores/*/*.parquet"))[3]
    part.write_bytes(part.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{part.name} cannot be read.*delete it and run the sweep again") as error:
        load_scores(run_dir)
    assert "\n" not in str(error.value)


def test_folders_without_scores(tmp_path, run_dir):
    with pytest.raises(ValueError, match="no run at"):
        load_scores(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no scores"):
        load_scores(tmp_path)
    (tmp_path / "scores.txt").touch()
    with pytest.raises(ValueError, match="neither a run directory nor"):
        load_scores(tmp_path / "scores.txt")
    (tmp_path / "broken.csv").write_text("scale,run\n1\n")
    with pytest.raises(ValueError, match="correct the file"):
        load_scores(tmp_path / "broken.csv")


def test_bad_placement_tables(run_dir):
    table = load_placements(run_dir)
    for spoiled, message in [
        (pd.concat([table, table.iloc[[0]]]), "twice"),
        (table.iloc[1:], "lacks the scored placement"),
        (table.assign(cost=0.0), "costs must be positive"),
        (table.drop(columns="cost"), "lacks the column cost"),
    ]:
        spoiled.to_parquet(run_dir / "placements.parquet")
        with pytest.raises(ValueError, match=message):
            load_scores(run_dir)


def test_write_part_is_atomic_compressed_and_checked(frame, tmp_path, monkeypatch):
    path = tmp_path / "step-000000" / "part.parquet"
    write_part(frame, path)
    assert [p.name for p in path.parent.iterdir()] == ["part.parquet"]
    column = pq.ParquetFile(path).metadata.row_group(0).column(list(SCHEMA).index("logp"))
    assert column.compression == "ZSTD" and "BYTE_STREAM_SPLIT" in column.encodings
    before = path.read_bytes()
    write_part(frame, path)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="lacks the column item"):
        write_part(frame.drop(columns="item"), path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_part(frame.iloc[:10], path)
    assert path.read_bytes() == before  # a kill before the renaming leaves the old part


def test_a_temporary_file_of_a_killed_sweep_is_not_read(run_dir):
    before = load_scores(run_dir)
    part = sorted(run_dir.glob("scores/*/*.parquet"))[0]
    (part.parent / f".{part.name}.123.tmp").write_bytes(part.read_bytes()[:100])
    assert equal(load_scores(run_dir), before)


def test_the_example_is_what_its_function_makes(example, example_file):
    loaded = load_scores(example_file)
    np.testing.assert_allclose(loaded.quality, example().quality, rtol=1e-14)
    assert example_file.stat().st_size < 300_000


@pytest.mark.slow
def test_speed_and_memory(simulate, write_run, tmp_path):
    import tracemalloc

    steps = (0, 3, 10, 30, 100, 300, 1000, 2000)
    run = write_run(simulate(np.random.default_rng(0), layers=5, n_placements=1024, n_items=200, steps=steps), tmp_path, parts=10)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_scores(run)
    assert loaded.quality.shape == (8, 1024, 200) and time.perf_counter() - start < 10
    tracemalloc.start()
    load_scores(run)
    assert tracemalloc.get_traced_memory()[1] < 1.0e9  # numpy's part of the 1.5 GiB
    tracemalloc.stop()
