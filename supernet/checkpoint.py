"""Checkpoints of a supernet, in and out: our native format, the Apriel2 format, and a run's folders of trained tensors.

A folder holds ``config.json`` and safetensors (one file, or shards with an index) and appears whole or not at all. Native: SupernetConfig's
fields, ``"format": "placement-suite"``, and the names of Supernet's state dict. A run's ``checkpoints/step-*/`` holds ``meta.json`` and the
trained tensors; the frozen ones are its teacher's.

``python -m supernet.checkpoint describe FOLDER`` and ``python -m supernet.checkpoint convert FOLDER NEW --to apriel2|native``; with
``--placement P`` the new folder holds that placement's mixers alone, all-FA as a Hugging Face model of the teacher's family.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from supernet import apriel2, hugging_face
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.presets import read_presets, resolve
from supernet.reader import NAME, LayerReader, native_raw, open_layers, read_json
from supernet.shards import finite, read_tensors, write_tensors

FORMATS = ("native", "apriel2")
SHARD_BYTES = 5 * 10**9
BESIDE = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*", "generation_config.json")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill beside ``folder``, renamed into place when the block ends well and removed when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = (folder.with_name(f"{folder.name}.{os.getpid()}.{what}.tmp") for what in ("new", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def load(folder: str | Path, teacher: str | Path | None = None) -> Supernet:
    """The Supernet of a checkpoint that ``open_layers`` reads, in its own dtypes. Raises ValueError as that does."""
    reader = open_layers(folder, teacher)
    return assemble(reader.config, dict(read_tensors(reader.tensors)))


def assemble(config: SupernetConfig, tensors: dict[str, Tensor]) -> Supernet:
    """A Supernet in evaluation mode that takes ``tensors``, checked before, as its parameters: no copy, so 15B are held once."""
    with torch.device("meta"):
        model = Supernet(config)
    model.load_state_dict(tensors, assign=True, strict=not config.tied)  # strict asks for the tied head too
    if config.tied:
        model.head.weight = model.embed.weight
    return model.eval()


def save(model: Supernet, folder: str | Path, format: str = "native", shard_bytes: int = SHARD_BYTES) -> None:
    """Write the whole supernet, in its dtypes, as ``format`` (one of FORMATS). The folder appears whole or not at all.

    An older checkpoint of that name is replaced. Raises ValueError when something else has the name, or Apriel2 cannot hold the model.
    """
    folder = Path(folder)
    if folder.exists() and not _is_supernet(folder):
        raise ValueError(f"{folder} exists and is no supernet's checkpoint: give another name")
    tensors = model.state_dict()
    if model.config.tied:
        del tensors["head.weight"]
    with new_folder(folder) as new:
        _write(new, format, model.config, {}, tensors["embed.weight"].dtype, tensors.items(), shard_bytes)


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    teacher: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    placement: str = "",
) -> LayerReader:
    """Write the checkpoint ``source`` as ``target`` in the format ``to``, holding one shard of tensors at a time; returns what was written.

    With a ``placement`` only its mixers are kept; ``to`` may be "huggingface" then, for all-FA. Tokenizer files go along. Raises
    ValueError when the source cannot be read, the target exists, or the format cannot hold the model.
    """
    source, target = Path(source), Path(target)
    reader = open_layers(source, teacher)
    if target.exists():
        raise ValueError(f"{target} exists: give another name, or delete it first")
    if placement:
        reader = with_placement(reader, placement)
    with new_folder(target) as new:
        _write(new, to, reader.config, reader.kept, reader.tensors["embed.weight"].dtype, read_tensors(reader.tensors), shard_bytes)
        for path in _beside(source, reader):
            shutil.copyfile(path, new / path.name)
    return reader


def with_placement(reader: LayerReader, placement: str) -> LayerReader:
    """What ``reader`` holds of one placement: the mixer of each layer that it names. ValueError where it does not fit."""
    chosen = reader.config.placement(placement)
    unused = [f"blocks.{i}.mixers.{letter}." for i, its in enumerate(chosen) for letter in reader.config.letters(i) if letter != its]
    tensors = {name: entry for name, entry in reader.tensors.items() if not name.startswith(tuple(unused))}
    letters = "".join(letter for letter in reader.config.mixers if letter in chosen)
    config = reader.config.replace(mixers=letters, fixed=str(chosen) if len(letters) > 1 else "")
    return dataclasses.replace(reader, config=config, tensors=tensors)


def _beside(source: Path, reader: LayerReader) -> list[Path]:
    """Tokenizer files: of the checkpoint, else of its run, else of the run's teacher; in the folder or in ``tokenizer/`` there."""
    of_teacher = reader.tensors["embed.weight"].file.parent
    for folder in (
        source,
        source / "tokenizer",
        *(above / "tokenizer" for above in source.resolve().parents[:2]),
        of_teacher,
        of_teacher / "tokenizer",
    ):
        found = [path for path in sorted(folder.glob("*")) if path.is_file() and any(fnmatch(path.name, pattern) for pattern in BESIDE)]
        if found:
            return found
    return []


def describe(folder: str | Path, teacher: str | Path | None = None) -> dict[str, Any]:
    """What a checkpoint holds; ``sha256`` is of the content (names, shapes, dtypes, values), the same in every format and sharding."""
    reader = open_layers(folder, teacher)
    config, entries = reader.config, reader.tensors
    unused = [f".mixers.{letter}." for letter in config.mixers if letter != "F"]
    numbers = {name: torch.Size(entry.shape).numel() for name, entry in entries.items()}
    digest = hashlib.sha256()
    for name, tensor in read_tensors(dict(sorted(entries.items()))):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    left_out = {"left out (vision)": f"{len(reader.left_out)} tensors"} if reader.left_out else {}
    return {
        "format": reader.format,
        "layers": config.layers,
        "mixers": config.mixers,
        "parameters": sum(numbers.values()),
        "parameters of all-FA": sum(n for name, n in numbers.items() if not any(part in name for part in unused)),
        "dtype": ", ".join(sorted({str(entry.dtype).removeprefix("torch.") for entry in entries.values()})),
        "bytes": sum(entry.bytes for entry in entries.values()),
        "files": len({entry.file for entry in entries.values()}),
        "tied": config.tied,
        "window": config.window,
        **left_out,
        "sha256": digest.hexdigest(),
    }


def _is_supernet(folder: Path) -> bool:
    raw = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return raw.get("format") == NAME or raw.get("model_type") in apriel2.FAMILIES


def _write(
    folder: Path,
    format: str,
    config: SupernetConfig,
    kept: dict[str, Any],
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int,
) -> None:
    if format not in (*FORMATS, "huggingface"):
        raise ValueError(f"format is {format!r}: choose from {', '.join(FORMATS)}, huggingface")
    if format == "native":
        raw = native_raw(config, str(dtype).removeprefix("torch."), kept)
    elif format == "huggingface":
        raw = hugging_face.write_config(config, str(dtype).removeprefix("torch."), kept)
        tensors = ((hugging_face.their_name(name), tensor.to(dtype)) for name, tensor in tensors)
    else:
        raw = apriel2.write_config(config, str(dtype).removeprefix("torch."), kept)
        tensors = ((apriel2.their_name(name), tensor) for name, tensor in tensors)
    write_tensors(folder, tensors, shard_bytes, None if format == "native" else {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def save_trained(model: Supernet, folder: Path, meta: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
    """Write the tensors that require gradients, the model's shapes, and ``meta``. The folder appears whole or not at all.

    ``tensors`` gives them where the model holds a shard of each only.
    """
    if tensors is None:
        tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    meta = meta | {"tensors": len(tensors), "model": dataclasses.asdict(model.config)}
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors")
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def load_trained(model: Supernet, folder: Path) -> dict[str, Any]:
    """Copy a checkpoint's tensors into the model (whatever its dtype) and return its meta.

    Raises ValueError naming a missing, truncated or foreign file and the tensor that does not fit or is not finite.
    """
    remedy = "delete the folder and run python -m experiments.distill with the same options"
    try:
        meta = json.loads((folder / "meta.json").read_text())
        tensors = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise ValueError(f"no checkpoint in {folder} ({Path(error.filename).name} is missing): run python -m experiments.distill") from None
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"checkpoint {folder} is truncated or unreadable ({error}): {remedy}") from None
    if len(tensors) != meta["tensors"]:
        raise ValueError(f"checkpoint {folder} holds {len(tensors)} tensors, its meta.json says {meta['tensors']}: {remedy}")
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            here = tuple(parameters[name].shape) if name in parameters else "absent"
            raise ValueError(f"checkpoint {folder} does not fit the model: {name} is {tuple(tensor.shape)}, in the model {here}: {remedy}")
        parameters[name].data.copy_(finite(tensor, f"checkpoint {folder}: tensor {name}"))
    return meta


def _asked(given: argparse.Namespace) -> tuple[str, str]:
    """(placement or "", format): by default all-FA goes to Hugging Face's format where that has its shapes, other placements to ours."""
    if not given.placement:
        if given.to in (None, "huggingface"):
            raise ValueError(f"--to is {given.to or 'missing'}: choose from {', '.join(FORMATS)}, or give --placement for one layout alone")
        return "", given.to
    config = open_layers(given.folder, given.teacher).config
    placement = resolve(given.placement, read_presets(Path(given.folder)), config)
    if given.to:
        return placement, given.to
    return placement, "huggingface" if set(placement) == {"F"} and hugging_face.family(config) else "native"


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code; errors are one line."""
    parser = argparse.ArgumentParser(prog="python -m supernet.checkpoint", description="what a checkpoint holds; other formats of it")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("describe", "what is in a checkpoint"), ("convert", "write a checkpoint in another format")):
        command = commands.add_parser(name, help=what)
        command.add_argument("folder", help="native, Apriel2, or a run's checkpoints/step-*")
        command.add_argument("--teacher", help="the teacher's folder, for a run's checkpoint")
    command.add_argument("target", help="a folder that does not exist yet")
    command.add_argument("--to", choices=(*FORMATS, "huggingface"), help="format of the new folder")
    command.add_argument("--placement", default="", help="keep this placement's mixers alone: letters, all-FA, or a name in presets.yaml")
    command.add_argument("--shard-bytes", type=int, default=SHARD_BYTES, help="largest file, and what is held in memory (default: 5e9)")
    given = parser.parse_args(arguments)
    try:
        if given.command == "describe":
            for key, value in describe(given.folder, given.teacher).items():
                print(f"{key}: {value:,}" if type(value) is int else f"{key}: {value}")
        else:
            placement, to = _asked(given)
            reader = convert(given.folder, given.target, to, given.teacher, given.shard_bytes, placement)
            left = f", {len(reader.left_out)} vision tensors left out" if reader.left_out else ""
            print(f"{given.target}: {len(reader.tensors)} tensors as {to}{left}")
    except (ValueError, OSError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
