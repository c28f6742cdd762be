import json
import subprocess
import sys

import pytest

from experiments.runs.records import (
    append_metrics,
    drop_metrics_from,
    exclusive,
    is_held,
    read_json,
    read_metrics,
    read_status,
    settled,
    status,
    write_text,
)
from experiments.runs.stopping import Stopped

WAIT = 300  # seconds; a loaded machine may take its time


def test_status_tells_running_done_and_failed_with_the_error(tmp_path):
    with status(tmp_path, "sweep"):
        assert read_json(tmp_path / "status.json")["sweep"]["state"] == "running"
    with pytest.raises(KeyError), status(tmp_path, "distill"):
        raise KeyError("lost")
    content = read_json(tmp_path / "status.json")
    assert content["sweep"]["state"] == "done" and content["sweep"]["attempt"] == 1
    assert content["distill"]["state"] == "failed" and "lost" in content["distill"]["error"]
    assert "test_records.py" in content["distill"]["traceback"]
    with status(tmp_path, "distill"):
        pass
    again = read_json(tmp_path / "status.json")["distill"]
    assert again["attempt"] == 2 and again["state"] == "done" and again["error"] is None


def test_two_processes_never_write_one_part(tmp_path):
    with exclusive(tmp_path, "sweep"):
        with pytest.raises(ValueError, match="another process is writing sweep"), status(tmp_path, "sweep"):
            pytest.fail("entered twice")
        with status(tmp_path, "distill"):
            pass
    with status(tmp_path, "sweep"):
        pass


def test_status_says_who_writes(tmp_path, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "71", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["sweep", "seed=1", "placements=FF GG"])
    with status(tmp_path, "sweep", rows=12):
        entry = read_status(tmp_path)["sweep"]
    assert (entry["job"], entry["restarts"], entry["rows"]) == ("70_3", 2, 12)
    assert entry["command"].endswith(" seed=1 'placements=FF GG'") and entry["command"].startswith("python -m ")
    assert entry["host"] and entry["pid"]


def test_a_stop_is_told_in_its_own_words(tmp_path):
    with pytest.raises(Stopped), status(tmp_path, "distill"):
        raise Stopped(15)
    entry = read_status(tmp_path)["distill"]
    assert entry["state"] == "failed" and entry["error"] == "stopped by SIGTERM: the same command continues"


def test_shards_run_side_by_side_but_not_beside_the_whole(tmp_path):
    with status(tmp_path, "sweep-0of2"), status(tmp_path, "sweep-1of2"):
        with pytest.raises(ValueError, match="another process is writing sweep in"), status(tmp_path, "sweep"):
            pytest.fail("entered beside the shards")
        with pytest.raises(ValueError, match="another process is writing sweep-1of2"), status(tmp_path, "sweep-1of2"):
            pytest.fail("entered twice")
    with status(tmp_path, "sweep"), pytest.raises(ValueError, match="is writing sweep in"), status(tmp_path, "sweep-0of2"):
        pytest.fail("entered beside the whole")
    assert {part: entry["state"] for part, entry in read_status(tmp_path).items()} == dict.fromkeys(
        ("sweep-0of2", "sweep-1of2", "sweep"), "done"
    )


def test_a_corrupted_status_is_set_aside_and_the_work_goes_on(tmp_path, capsys):
    with status(tmp_path, "distill"):
        pass
    half = (tmp_path / "status.json").read_text()[:40]
    (tmp_path / "status.json").write_text(half)
    with status(tmp_path, "sweep"):
        pass
    assert "status.json was not a record of parts: kept as status.json.broken" in capsys.readouterr().err
    assert (tmp_path / "status.json.broken").read_text() == half
    assert {part: entry["state"] for part, entry in read_status(tmp_path).items()} == {"sweep": "done"}


WRITER = """
import sys
from pathlib import Path
from experiments.runs.records import status
for i in range(20):
    with status(Path(sys.argv[1]), f"sweep-{sys.argv[2]}x{i}of99"):
        pass
"""


def test_processes_that_write_at_once_lose_no_entry(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(i)]) for i in range(3)]
    assert [process.wait(WAIT) for process in processes] == [0, 0, 0]
    entries = read_status(tmp_path)
    assert set(entries) == {f"sweep-{i}x{k}of99" for i in range(3) for k in range(20)}
    assert all(entry["state"] == "done" and entry["attempt"] == 1 for entry in entries.values())


HOLDER = """
import sys, time
from pathlib import Path
from experiments.runs.records import status
with status(Path(sys.argv[1]), "sweep"):
    print("at work", flush=True)
    time.sleep(3600)
"""


def test_a_killed_process_leaves_running_without_a_lock(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at work\n"
    assert is_held(tmp_path, "sweep")
    process.kill()
    process.wait(WAIT)
    assert read_status(tmp_path)["sweep"]["state"] == "running" and not is_held(tmp_path, "sweep")
    with status(tmp_path, "sweep"):
        assert read_status(tmp_path)["sweep"]["attempt"] == 2


def test_settled_is_what_status_json_need_not_be_put_right_about(tmp_path):
    assert settled(tmp_path, "winners")
    with status(tmp_path, "winners"):
        assert not settled(tmp_path, "winners")
    assert settled(tmp_path, "winners") and settled(tmp_path, "propose")
    (tmp_path / "status.json").write_text("{")
    assert not settled(tmp_path, "winners")


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_metrics_forget_what_will_be_written_again_and_half_lines(tmp_path):
    for step in range(5):
        append_metrics(tmp_path, {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(5))
    drop_metrics_from(tmp_path, 3)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]
