"""Folders of safetensors, one file or shards with an index: read tensor by tensor, written shard by shard."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
REMEDY = "copy or download the folder again"


@dataclass(frozen=True)
class Entry:
    """Where a tensor is; nothing of it is in memory."""

    file: Path
    name: str  # in the file
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def list_tensors(folder: Path, ignored: Callable[[str], bool] = lambda name: False) -> dict[str, Entry]:
    """All tensors of a folder by name, from the headers alone, but those that are ``ignored``.

    Raises ValueError naming the file that is missing, truncated or in no index, a tensor that the index lacks or puts in another file than
    one that holds it, or a dtype that is none of DTYPES.
    """
    folder = Path(folder)
    files, index = _files(folder)
    found = {}
    for path in files:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (a safe_open is no dict)
                if index and index.get(name) != path.name:
                    place = f"puts it in {index[name]}" if name in index else "lacks it"
                    raise ValueError(f"{path} holds the tensor {name}, but {INDEX} {place}: {REMEDY}")
                if ignored(name):
                    continue
                header = file.get_slice(name)
                if header.get_dtype() not in DTYPES:
                    raise ValueError(f"{path}: tensor {name} is {header.get_dtype()}: give a checkpoint in {', '.join(DTYPES)}")
                found[name] = Entry(path, name, tuple(header.get_shape()), DTYPES[header.get_dtype()])
    if absent := sorted(name for name in index.keys() - found.keys() if not ignored(name)):
        raise ValueError(f"{folder / INDEX} names {some(absent)}, which {index[absent[0]]} does not hold: {REMEDY}")
    return found


def read_tensors(entries: dict[str, Entry]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) one after the other, each read into memory of its own.

    Raises ValueError naming a file that cannot be read, or a tensor with a number that is not finite.
    """
    for path, group in groupby(entries.items(), lambda item: item[1].file):
        with _opened(path) as file:
            for name, entry in group:
                yield name, finite(file.get_tensor(entry.name), f"{path}: tensor {entry.name}")


def finite(tensor: Tensor, what: str) -> Tensor:
    """The tensor itself. Raises ValueError where it holds NaN or infinity: one such weight makes every score of its layer worthless."""
    if tensor.numel() and not all(bool(x.isfinite()) for x in torch.aminmax(tensor)):
        bad = int((~tensor.isfinite()).sum())
        raise ValueError(f"{what} holds {bad} of {tensor.numel()} numbers that are not finite: {REMEDY}, or train it again")
    return tensor


def file_digest(folder: Path) -> str:
    """sha256 of the safetensors files of a folder, one after the other."""
    digest = hashlib.sha256()
    for path in _files(Path(folder))[0]:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as they come, holding at most ``shard_bytes`` of them (or one larger tensor): one file, or shards with an index."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        nonlocal size
        save_file(held, folder / f"{len(shards)}.part", metadata)
        shards.append(list(held))
        held.clear()
        size = 0

    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            flush()
        held[name] = tensor.detach().cpu().contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)] if len(shards) > 1 else [ONE]
    for i, name in enumerate(names):
        (folder / f"{i}.part").rename(folder / name)
    if len(shards) > 1:
        where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1) + "\n")


def some(names: list[str]) -> str:
    """The first few names, and how many there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """(the safetensors files, the index's tensor -> file name; empty without an index)."""
    if not (folder / INDEX).is_file():
        if not (folder / ONE).is_file():
            raise ValueError(f"{folder} holds neither {ONE} nor {INDEX}: {REMEDY}, or save it anew as safetensors")
        _no_stray(folder, set())
        return [folder / ONE], {}
    try:
        index = json.loads((folder / INDEX).read_text())["weight_map"]
        files = [folder / name for name in sorted(set(index.values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is no index of shards ({type(error).__name__}: {error}): {REMEDY}") from None
    if (folder / ONE).is_file() and folder / ONE not in files:
        raise ValueError(f"{folder} holds both {ONE} and {INDEX}: delete the one that is out of date")
    if absent := [path.name for path in files if not path.is_file()]:
        raise ValueError(f"{folder} lacks {some(absent)}, which {INDEX} names: {REMEDY}")
    _no_stray(folder, {path.name for path in files})
    return files, index


def _no_stray(folder: Path, named: set[str]) -> None:
    """Raises ValueError where there is a shard that no index names: whose weights are these?"""
    if stray := sorted(path.name for path in folder.glob("model-*.safetensors") if path.name not in named):
        raise ValueError(f"{folder} holds {some(stray)}, which no {INDEX} names: delete what is out of date")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file whose tensors are read, not mapped: what is read is what memory is used, and speed is the disk's."""
    try:
        with safe_open(path, "pt", backend="pread") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or unreadable ({error}): {REMEDY}") from None
