import json

import pytest

from experiments.records import append_metrics, drop_metrics_from, exclusive, read_json, read_metrics, status, write_text


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


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
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
