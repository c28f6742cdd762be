"""Checkpoints of a supernet: a folder with the trained tensors (safetensors) and a meta file that names everything else."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from supernet.decoder import Supernet


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


def save_trained(model: Supernet, folder: Path, meta: dict[str, Any]) -> None:
    """Write the tensors that require gradients, and ``meta``. The folder appears whole or not at all."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors")
        (temporary / "meta.json").write_text(json.dumps(meta | {"tensors": len(tensors)}, indent=1) + "\n")


def load_trained(model: Supernet, folder: Path) -> dict[str, Any]:
    """Copy a checkpoint's tensors into the model (whatever its dtype) and return its meta.

    Raises ValueError naming a missing, truncated or foreign file and the tensor that does not fit.
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
        parameters[name].data.copy_(tensor)
    return meta
