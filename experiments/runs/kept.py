"""What a run was made from, its teacher and its data: kept beside it, so that an emptied cache orphans no checkpoint."""

import os
import shutil
from pathlib import Path

from analysis.output.files import replacing
from experiments.data.items import sha256
from experiments.run import Run
from experiments.runs.records import read_json
from experiments.runs.steps import state_path, whole_checkpoints
from supernet.checkpoint import new_folder
from supernet.shards import file_digest


def keep(run: Run) -> None:
    """Links to the run's teacher and sequences in its .cache, laid out as the cache is; they take no room on one disk."""
    for path in origins(run):
        if path.exists() and not (kept := run.folder / ".cache" / path.relative_to(run.cache)).exists():
            link(path, kept)


def restore(run: Run) -> None:
    """Put back what the cache lacks of them: the teacher from ``teacher_folder`` where that is given, all from the run itself.

    Raises ValueError where the folder that was given is not the run's teacher.
    """
    if run.supernet:
        return
    folders = [run.folder, run.distilled.folder]
    hashes = next((known for folder in folders if (known := recorded_hashes(folder))), {})
    if run.teacher_folder:
        given, known = Path(run.teacher_folder), hashes.get("teacher")
        if not (found := read_json(given / "source.json").get("sha256")):
            raise ValueError(f"teacher_folder={given} holds no teacher of a run (no source.json): give a folder like {run.teacher_dir}")
        if known and found != known:
            raise ValueError(f"teacher_folder={given} has sha256 {found[:12]}, the run's teacher {known[:12]}: give that one")
        if not run.teacher_dir.exists():
            link(given, run.teacher_dir)
    for path in origins(run):
        for folder in folders:
            kept = folder / ".cache" / path.relative_to(run.cache)
            if kept.exists() and not path.exists() and hash_of(kept) == hashes.get(what(path)):  # damage in place is in every link
                link(kept, path)


def check_origins(run: Run) -> None:
    """Raises ValueError where a run has checkpoints and the cache holds another teacher or other sequences than they were made with."""
    folder = run.folder
    if not (whole_checkpoints(folder) or state_path(folder).exists()):
        return
    hashes = recorded_hashes(folder)
    for path in origins(run):
        name = what(path)
        if name in hashes and path.exists() and (found := hash_of(path, read_again=False)) != hashes[name]:
            remedy = "give the right one's folder with teacher_folder=, " if name == "teacher" else "put the right file there, "
            raise ValueError(f"{folder} was made with {name} of sha256 {hashes[name][:12]}, {path} has {str(found)[:12]}: delete that and "
                             f"{remedy}or delete checkpoints/ and scores/ of the run to make it anew")  # fmt: skip


def origins(run: Run) -> list[Path]:
    """The files and folders of the cache that a run is made from."""
    return [run.teacher_dir, *(run.sequences(name) for name in ("items", "train"))]


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
    with replacing(target) as temporary:
        link_file(source, temporary)


def link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(source, target)
