import shutil

import pytest

from experiments.runs import fingerprint as module
from experiments.runs.fingerprint import fingerprint


def test_the_content_counts_and_the_place_does_not(tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    (folder / "notes.txt").write_text("of no consequence")
    first = fingerprint(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "notes.txt").unlink()
    assert fingerprint(copy) == first
    for name, content in (("config.json", b"[]"), ("model.safetensors", bytes(999) + b"1")):
        other = shutil.copytree(folder, tmp_path / f"other-{name}")
        (other / name).write_bytes(content)
        assert fingerprint(other) != first


def test_of_large_files_samples_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 4)
    monkeypatch.setattr(module, "BLOCK", 10)
    plain = bytes(1000)
    names = set()
    for i, spoiled in enumerate((None, 0, 335, 999)):  # blocks start at 0, 330, 660, 990
        path = tmp_path / f"{i}.parquet"
        path.write_bytes(plain if spoiled is None else plain[:spoiled] + b"x" + plain[spoiled + 1 :])
        names.add(fingerprint(path))
    assert len(names) == 4


def test_nothing_to_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing at .*absent: give a file, or a checkpoint folder"):
        fingerprint(tmp_path / "absent")
