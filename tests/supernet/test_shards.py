import hashlib
import json
import weakref

import pytest
import torch
from safetensors.torch import save_file

from supernet.shards import INDEX, ONE, file_digest, list_tensors, read_tensors, write_tensors


def some_tensors(n=7):
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return {f"t{i}": torch.randn(3, 10 + i, generator=generator).to(dtypes[i % 3]) for i in range(n)}


def folder_of(path, shard_bytes, tensors=None):
    path.mkdir()
    write_tensors(path, (tensors or some_tensors()).items(), shard_bytes)
    return path


@pytest.mark.parametrize("shard_bytes", [1, 300, 10**9])
def test_what_is_written_is_read_in_its_dtype(tmp_path, shard_bytes):
    tensors, folder = some_tensors(), folder_of(tmp_path / "x", shard_bytes)
    entries = list_tensors(folder)
    assert entries.keys() == tensors.keys()
    for name, tensor in read_tensors(entries):
        assert torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype == entries[name].dtype
        assert entries[name].shape == tuple(tensor.shape) and entries[name].bytes == tensor.nbytes
    names = {p.name for p in folder.iterdir()}
    if shard_bytes == 10**9:
        assert names == {ONE}
    else:
        index = json.loads((folder / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        assert names == {INDEX, *index["weight_map"].values()} and len(names) == {1: 8, 300: 4}[shard_bytes]


def test_no_more_than_a_shard_is_held_while_writing(tmp_path):
    alive, most = weakref.WeakSet(), []

    def made():
        for i in range(20):
            tensor = torch.zeros(25)  # 100 bytes
            alive.add(tensor)
            most.append(len(alive))
            yield f"t{i}", tensor
            del tensor

    write_tensors(tmp_path, made(), 300)
    assert len(list_tensors(tmp_path)) == 20
    assert max(most) <= 5  # a shard of three, the one that no longer fitted, the new one


def test_the_digest_of_one_file_is_that_files(tmp_path):
    folder = folder_of(tmp_path / "x", 10**9)
    assert file_digest(folder) == hashlib.sha256((folder / ONE).read_bytes()).hexdigest()
    sharded = folder_of(tmp_path / "y", 300)
    parts = b"".join(p.read_bytes() for p in sorted(sharded.glob("*.safetensors")))
    assert file_digest(sharded) == hashlib.sha256(parts).hexdigest()


def refused(folder, *words):
    with pytest.raises(ValueError) as caught:
        list_tensors(folder)
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message, message


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_a_damaged_folder_is_one_line_naming_file_and_tensor(tmp_path):
    folder = folder_of(tmp_path / "x", 300)
    first, second, third = sorted(folder.glob("*.safetensors"))
    whole, index = second.read_bytes(), (folder / INDEX).read_text()
    for size in (len(whole) - 1, 100, 5, 0):
        second.write_bytes(whole[:size])
        refused(folder, second.name, "truncated")
    second.unlink()
    refused(folder, second.name, "lacks")
    second.write_bytes(whole)

    change_index(folder, lambda where: where.pop("t3"))
    refused(folder, INDEX, "t3", "lacks it")
    (folder / INDEX).write_text(index)
    change_index(folder, lambda where: where.update(t3=third.name))
    refused(folder, "t3", third.name)
    (folder / INDEX).write_text(index)
    change_index(folder, lambda where: where.update({f"ghost{i}": first.name for i in range(5)}))
    refused(folder, "ghost0, ghost1, ghost2 and 2 more", first.name)
    for broken in (index[: len(index) // 2], "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        (folder / INDEX).write_text(broken)
        refused(folder, INDEX, "no index")
    (folder / INDEX).write_text(index)
    save_file({"t": torch.zeros(1)}, folder / ONE)
    refused(folder, ONE, INDEX, "both")
    refused(tmp_path, ONE, INDEX, "neither")


def test_a_dtype_that_is_no_float_is_named(tmp_path):
    save_file({"fine": torch.zeros(2), "codes": torch.zeros(2, dtype=torch.int8)}, tmp_path / ONE)
    refused(tmp_path, "codes is I8", "BF16")


def test_a_file_that_changed_after_it_was_listed_is_named(tmp_path):
    folder = folder_of(tmp_path / "x", 10**9)
    entries = list_tensors(folder)
    (folder / ONE).write_bytes((folder / ONE).read_bytes()[:-50])
    with pytest.raises(ValueError, match=ONE):
        list(read_tensors(entries))
