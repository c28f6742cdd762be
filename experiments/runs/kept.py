"""What a run was made from, its teacher and its data: kept beside it, so that an emptied cache orphans no checkpoint."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from experiments.config import Config, data_dir, run_dir, teacher_dir
from experiments.data.items import sha256
from experiments.runs.records import read_json
from experiments.runs.steps import state_path, whole_checkpoints
from supernet.checkpoint import new_folder
from supernet.shards import file_digest


def keep(config: Config, folder: Path) -> None:
    """Links to the run's teacher and sequences in ``folder``/.cache, laid out as the cache is; they take no room on one disk."""
    for path in origins(config):
        if path.exists() and not (kept := folder / ".cache" / path.relative_to(config.cache)).exists():
            link(path, kept)


def restore(config: Config) -> None:
    """Put back what the cache lacks of them: the teacher from ``teacher_folder`` where that is given, all from the run itself.

    Raises ValueError where the folder that was given is not the run's teacher.
    """
    if config.supernet:
        return
    folders = [run_dir(config), run_dir(replace(config, stage="distill"))]
    hashes = next((known for folder in folders if (known := recorded_hashes(folder))), {})
    if config.teacher_folder:
        given, known = Path(config.teacher_folder), hashes.get("teacher")
        if not (found := read_json(given / "source.json").get("sha256")):
            raise ValueError(f"teacher_folder={given} holds no teacher of a run (no source.json): give a folder like {teacher_dir(config)}")
        if known and found != known:
            raise ValueError(f"teacher_folder={given} has sha256 {found[:12]}, the run's teacher {known[:12]}: give that one")
        if not teacher_dir(config).exists():
            link(given, teacher_dir(config))
    for path in origins(config):
        for folder in folders:
            kept = folder / ".cache" / path.relative_to(config.cache)
            if kept.exists() and not path.exists() and hash_of(kept) == hashes.get(what(path)):  # damage in place is in every link
                link(kept, path)


def check_origins(config: Config) -> None:
    """Raises ValueError where a run has checkpoints and the cache holds another teacher or other sequences than they were made with."""
    folder = run_dir(config)
    if not (whole_checkpoints(folder) or state_path(folder).exists()):
        return
    hashes = recorded_hashes(folder)
    for path in origins(config):
        name = what(path)
        if name in hashes and path.exists() and (found := hash_of(path, read_again=False)) != hashes[name]:
            remedy = "give the right one's folder with teacher_folder=, " if name == "teacher" else "put the right file there, "
            raise ValueError(f"{folder} was made with {name} of sha256 {hashes[name][:12]}, {path} has {str(found)[:12]}: delete that and "
                             f"{remedy}or delete checkpoints/ and scores/ of the run to make it anew")  # fmt: skip


def origins(config: Config) -> list[Path]:
    """The files and folders of the cache that a run is made from."""
    return [teacher_dir(config), *(data_dir(config) / f"{name}.parquet" for name in ("items", "train"))]


def what(path: Path) -> str:
    """``items``, ``train`` or ``teacher``."""
    return path.stem if path.suffix == ".parquet" else "teacher"


def recorded_hashes(folder: Path) -> dict[str, str]:
    """sha256 of teacher, items and train as the run's manifest has them; what it does not tell is left out."""
    manifest = read_json(folder / "manifest.json")
    found = {"teacher": (manifest.get("teacher") or {}).get("sha256"), **(manifest.get("data") or {})}
    return {name: value for name, value in found.items() if value}


def hash_of(path: Path, read_again: bool = True) -> str | None:
    """sha256 of what lies there; of a teacher, unless it is read again, as its source.json has it."""
    if path.is_file():
        return sha256(path)
    return file_digest(path) if read_again else read_json(path / "source.json").get("sha256")


def link(source: Path, target: Path) -> None:
    """``target`` as a second name of a file, or of every file in a folder; a copy on another disk. It appears whole or not at all."""
    if source.is_dir():
        with new_folder(target) as new:
            shutil.copytree(source, new, dirs_exist_ok=True, copy_function=link_file)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    link_file(source, temporary)
    temporary.replace(target)


def link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(source, target)
