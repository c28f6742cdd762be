"""Which checkpoint, model and tokenizer a path means that a user types: a run, results/SCALE, or a folder of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from experiments.runs.kernels import first_that_works
from experiments.runs.records import read_status
from experiments.runs.steps import whole_checkpoints
from supernet import checkpoint
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.ops import kernels
from supernet.teacher import smollm2_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """A checkpoint, and the run that it belongs to, if any."""

    folder: Path
    run: Path | None


def find(where: Path, step: int | None) -> Source:
    """The checkpoint that a path means. ValueError with a remedy where there is none."""
    if not where.is_dir():
        raise ValueError(f"no folder {where}: give a run such as results/135m/RUN, or a checkpoint folder")
    if any((where / name).is_file() for name in ("meta.json", "config.json")):
        if step is not None:
            raise ValueError(f"--step {step}: {where} is one checkpoint; give the run's folder instead")
        return Source(where, where.parents[1] if (where / "meta.json").is_file() and len(where.parents) > 1 else None)
    if not is_run(where):
        runs = sorted(filter(is_run, where.iterdir()))
        if not runs:
            raise ValueError(f"{where} is neither a run (no config.yaml) nor a checkpoint (no config.json)")
        where = max(runs, key=lambda run: (bool(whole_checkpoints(run)), (run / "presets.yaml").is_file()))
    found = whole_checkpoints(where)
    if not found:
        raise ValueError(f"{where} has its tables but no weights (checkpoints are not committed): {remedy(where)}")
    if step is not None and step not in found:
        raise ValueError(f"--step {step} is not in {where}: choose from {', '.join(map(str, found))}")
    return Source(found[max(found) if step is None else step], where)


def options_of(run: Path) -> dict[str, Any]:
    """What the run's config.yaml says. ValueError where it is not what a run leaves."""
    try:
        options = yaml.safe_load((run / "config.yaml").read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError):
        options = None
    if not isinstance(options, dict):
        raise ValueError(f"{run / 'config.yaml'} holds no options of a run: correct it, or delete it and train again")
    return options


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def remedy(run: Path) -> str:
    """How the checkpoints of a run are made."""
    scale = options_of(run).get("scale", "tiny")
    commands = [entry.get("command") or "" for entry in read_status(run).values()] if (run / "status.json").is_file() else []
    options = next((c.split(" ", 3)[3] for c in commands if c.startswith("python -m ") and len(c.split(" ", 3)) > 3), f"scale={scale}")
    kept = " ".join(o for o in options.split() if o.split("=")[0] in ("seed",) or o.startswith(("distill.", "data.", "teacher.")))
    return f"make sweep SCALE={scale}" + (f' ARGS="{kept}"' if kept else "") + " makes them"


def open_model(folder: Path, teacher: Path | None = None, dtype: str | None = None, device: str = "cpu") -> Supernet:
    """The whole supernet of a checkpoint, once, on the device, with the kernels that work there; ``dtype``: None is as it is stored."""
    return ready(checkpoint.load(folder, teacher), dtype, device)


def ready(model: Supernet, dtype: str | None, device: str) -> Supernet:
    """A loaded model, cast and moved; the process then uses the kernels that work for it."""
    dtype = dtype or str(model.embed.weight.dtype).removeprefix("torch.")
    model = model.requires_grad_(False).cast(getattr(torch, dtype)).to(device)
    use_kernels(model.config, dtype, device)
    return model


def use_kernels(model: SupernetConfig, dtype: str, device: str) -> None:
    """Of the delta rule, those that work for such a model here."""
    if set(model.mixers) & set("KG") and dtype in kernels.TOLERANCE:
        dims = (model.gdn_key_dim, model.gdn_value_dim, model.kda_dim)
        kernels.use(first_that_works("auto", device, dtype, dims, Path(".cache") / "kernels"))


def load_tokenizer(
    source: Source, given: Path | None, option: str = "--tokenizer", without: str = "--tokens 1,2,3"
) -> "PreTrainedTokenizerBase":
    """The tokenizer that was named, or that of the run, of the folder, or of the run's teacher. ValueError where there is none, which says
    the command's own ``option`` for it, and what does ``without`` one ("": nothing)."""
    places = [given] if given else [p for f in (source.run, source.folder) if f for p in (f / "tokenizer", f)]
    where: dict[str, Any] = next(({"path": str(p)} for p in places if p.is_dir() and any(p.glob("tokenizer*"))), {})
    if not where and source.run and is_run(source.run) and not given:
        where = of_teacher(options_of(source.run).get("teacher") or {})
    if not where:
        at = given or source.run or source.folder
        raise ValueError(f"no tokenizer in {at}: name its folder with {option}" + (f", or give {without}" if without else ""))
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ValueError("text needs transformers (pip install .[llm])" + (f"; {without} does without" if without else "")) from None
    try:
        gguf = {"gguf_file": where["gguf"]} if where.get("gguf") else {}
        return AutoTokenizer.from_pretrained(where["path"], **gguf)
    except Exception as error:  # of tokenizers, the hub and gguf, by version
        raise ValueError(f"the tokenizer of {where['path']} can't be loaded ({(str(error).strip() or 'no reason given').splitlines()[0]}): "
                         f"name another folder with {option}") from None  # fmt: skip


def of_teacher(teacher: dict[str, Any]) -> dict[str, Any]:
    """Where a run's teacher came from, if that has a tokenizer."""
    if teacher.get("source") == "smollm2":
        return dict(zip(("path", "gguf"), smollm2_gguf(), strict=True))
    return {"path": teacher["path"], "gguf": teacher.get("gguf")} if teacher.get("path") else {}
