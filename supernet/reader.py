"""Opening a checkpoint of any format: what it holds is checked from headers and config alone, tensors are read when asked for."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet import apriel2
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.shards import Entry, list_tensors, read_tensors, some

NAME = "placement-suite"  # of the native format, in config.json
ARCHITECTURE = "SupernetForCausalLM"  # what other programs, vLLM among them, know the native format by
FOR_OTHERS = ("format", "apriel2", "model_type", "architectures", "dtype", "eos_token_id")  # in a native config.json, beside the shapes
OURS = r"(?:embed|norm|head)\.weight$|blocks\.\d+\."  # how the names of a state dict begin
ROPE_SCALING = ("rope_type", "rope_factor", "rope_low", "rope_high", "rope_original")  # written where they differ from the plain embedding


@dataclass(frozen=True)
class LayerReader:
    """A checkpoint that was opened and checked; a tensor is read when it is asked for, in the dtype that it has on disk."""

    config: SupernetConfig
    format: str  # native | apriel2 | run
    tensors: dict[str, Entry]  # by their names in Supernet's state dict; a tied head is not among them
    left_out: dict[str, Entry] = field(default_factory=dict)  # a vision encoder's
    kept: dict[str, Any] = field(default_factory=dict)  # fields of an Apriel2 config that we do not compute with

    def shared(self) -> dict[str, Tensor]:
        """``embed.weight``, ``norm.weight`` and, unless it is tied, ``head.weight``."""
        return dict(read_tensors({name: entry for name, entry in self.tensors.items() if not name.startswith("blocks.")}))

    def layer(self, i: int) -> dict[str, Tensor]:
        """The tensors of layer ``i``, named as in ``Block.state_dict()``."""
        return dict(read_tensors(self._of_layer(i)))

    def bytes_of_layer(self, i: int) -> int:
        return sum(entry.bytes for entry in self._of_layer(i).values())

    def _of_layer(self, i: int) -> dict[str, Entry]:
        prefix = f"blocks.{i}."
        return {name.removeprefix(prefix): entry for name, entry in self.tensors.items() if name.startswith(prefix)}


def open_layers(folder: str | Path, teacher: str | Path | None = None) -> LayerReader:
    """Open a checkpoint without reading its tensors: native, Apriel2, or a run's ``checkpoints/step-*/``.

    ``teacher`` is the folder of a run's teacher; by default it is looked for in ``.cache/teachers`` here and above the checkpoint.
    Raises ValueError in one line that names the file, field or tensors that are not as they should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {folder}")
    if not (folder / "config.json").is_file() and (folder / "meta.json").is_file():
        return _open_run(folder, Path(teacher) if teacher else None)
    if not (folder / "config.json").is_file() and (steps := sorted(folder.glob("checkpoints/step-*"))):
        raise ValueError(f"{folder} is a run: give one of its checkpoints, such as {steps[-1]}")
    raw = read_json(folder / "config.json")
    try:
        foreign = apriel2.read_config(raw) if NAME not in (raw.get("format"), raw.get("model_type", NAME)) else None
        config = foreign.config if foreign else native_config(raw)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    given = list_tensors(folder)
    if foreign:
        return _open_apriel2(folder, raw, foreign, given)
    check_tensors(config, given, folder)
    return LayerReader(config, "native", given, kept=raw.get("apriel2", {}))


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError in one line when the file is missing or is no JSON object."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is no checkpoint: {path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is truncated or unreadable ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def native_config(raw: dict[str, Any]) -> SupernetConfig:
    """The shapes in a native config.json. Raises ValueError naming what is unknown or does not fit."""
    if not isinstance(raw, dict):
        raise ValueError(f"not the shapes of a supernet ({raw!r})")
    if raw.get("format", NAME) != NAME:
        raise ValueError(f"format is {raw['format']!r}: only {NAME} can be read")
    try:
        return SupernetConfig(**{name: value for name, value in raw.items() if name not in FOR_OTHERS})
    except TypeError as error:
        raise ValueError(f"not the shapes of a supernet ({error})") from None


def native_raw(config: SupernetConfig, dtype: str = "", kept: dict[str, Any] | None = None) -> dict[str, Any]:
    """The config.json of the native format. With ``dtype``, as in "bfloat16", vLLM knows the folder too (``supernet/serving``).

    ``kept``: fields of an Apriel2 config that we do not compute with.
    """
    later = {f.name: f.default for f in fields(SupernetConfig) if f.name == "fixed" or f.name in ROPE_SCALING}
    shapes = {name: value for name, value in asdict(config).items() if name not in later or value != later[name]}
    for_others = {"model_type": NAME, "architectures": [ARCHITECTURE], "dtype": dtype} if dtype else {}
    if kept and kept.get("eos_token_id") is not None:
        for_others["eos_token_id"] = kept["eos_token_id"]
    return {"format": NAME, **for_others, **shapes} | ({"apriel2": kept} if kept else {})


def check_tensors(
    config: SupernetConfig, given: dict[str, Entry] | dict[str, Tensor], where: str | Path, called: Callable[[str], str] = str
) -> None:
    """Raises ValueError naming the first few tensors that are missing, unknown or of another shape than ``config`` asks for.

    ``called``: the name of one of our tensors in the folder.
    """
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in Supernet(config).state_dict().items()}
    if config.tied:
        del expected["head.weight"]
    wrong = [n for n in expected if n in given and given[n].shape != expected[n]]
    unknown = [called(name) if re.match(OURS, name) else name for name in sorted(given.keys() - expected.keys())]
    for kind, names in (
        ("lacks the tensors", [called(name) for name in sorted(expected.keys() - given.keys())]),
        ("has the unknown tensors", unknown),
        ("has misshapen tensors:", [f"{called(name)} {tuple(given[name].shape)} instead of {expected[name]}" for name in wrong]),
    ):
        if names:
            raise ValueError(f"{where} {kind} {some(names)}: its config.json and its weights do not belong together, or it is incomplete")


def _open_apriel2(folder: Path, raw: dict[str, Any], layout: apriel2.Layout, found: dict[str, Entry]) -> LayerReader:
    given: dict[str, Entry] = {}
    left_out: dict[str, Entry] = {}
    for name, entry in found.items():
        if apriel2.is_vision(name):
            left_out[name] = entry
        elif (ours := layout.ours(name)) in given:
            raise ValueError(f"{folder}: {name} and {given[ours].name} are both the tensor {ours}")
        else:
            given[ours] = entry
    if layout.config.tied and (copy := given.pop("head.weight", None)) and "embed.weight" in given:
        pair = dict(read_tensors({"head": copy, "embed": given["embed.weight"]}))
        if not torch.equal(pair["head"], pair["embed"]):
            raise ValueError(f"{folder}: tie_word_embeddings is true, yet {copy.name} differs from the embedding")
    check_tensors(layout.config, given, folder)
    return LayerReader(layout.config, "apriel2", given, left_out, {key: raw[key] for key in apriel2.KEPT if key in raw})


def _open_run(folder: Path, teacher: Path | None) -> LayerReader:
    """The trained tensors of a run's checkpoint, the others from its teacher; untrained attention is as the teacher's."""
    meta = read_json(folder / "meta.json")
    if "model" not in meta:
        raise ValueError(f"{folder / 'meta.json'} does not tell the model's shapes: run python -m experiments.distill anew")
    config = native_config(meta["model"])
    frozen = open_layers(teacher or _find_teacher(folder, meta))
    sha256, its = meta.get("teacher", {}).get("sha256"), _source(frozen).get("sha256")
    if sha256 and its and sha256 != its:
        raise ValueError(f"{folder} was trained from a teacher with sha256 {sha256[:12]}, {teacher} has {its[:12]}: give that one")
    given = {name: entry for name, entry in frozen.tensors.items() if ".mixers." not in name}
    for name, entry in frozen.tensors.items():
        if ".mixers.F." in name:
            given |= {name.replace(".mixers.F.", f".mixers.{letter}."): entry for letter in "FS" if letter in config.mixers}
    given |= list_tensors(folder)
    check_tensors(config, given, folder)
    return LayerReader(config, "run", given)


def _find_teacher(folder: Path, meta: dict[str, Any]) -> Path:
    """The teacher with the sha256 that ``meta`` names: where that says it lay, or in ``.cache/teachers`` (a run keeps its own there), of
    this folder or of one above the checkpoint."""
    its = meta.get("teacher", {})
    wanted, lay = its.get("sha256"), its.get("folder")
    for above in (Path.cwd(), *folder.resolve().parents):
        there = [above / lay / "source.json"] if lay and (above / lay / "source.json").is_file() else []
        for source in [*there, *sorted((above / ".cache" / "teachers").glob("*/source.json"))]:
            if wanted and read_json(source).get("sha256") == wanted:
                return source.parent
    raise ValueError(f"{folder} holds trained tensors only, and its teacher (sha256 {str(wanted)[:12]}) is in no .cache/teachers here or "
                     "above it: name the teacher's folder with --teacher (teacher=)")  # fmt: skip


def _source(reader: LayerReader) -> dict[str, Any]:
    path = reader.tensors["embed.weight"].file.with_name("source.json")
    return read_json(path) if path.is_file() else {}
