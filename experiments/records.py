"""What a run leaves beside its numbers: status.json, manifest.json, metrics.jsonl, config.yaml. Files appear whole or not at all."""

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from experiments.config import Config

PACKAGES = ("torch", "lightning", "hydra-core", "numpy", "pandas", "scipy", "pyarrow", "transformers", "triton", "fla-core")


def write_text(path: Path, text: str) -> None:
    """Write beside the name, then rename into place: a kill or a full disk leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The content, or {} where the file is missing. Raises ValueError naming a file that is there and is not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is not valid JSON: delete it and run the same command again") from None


@contextmanager
def exclusive(folder: Path, part: str) -> Iterator[None]:
    """Hold the lock of one part of a run; the kernel releases it however the process ends. ValueError when another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{part}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing {part} in {folder}: wait for it or stop it, then run the same command") from None
        yield


@contextmanager
def status(folder: Path, part: str) -> Iterator[None]:
    """Keep ``status.json`` true while one part of a run (distill, sweep) is written by this process alone.

    The file holds one entry per part: state (running, done or failed), attempt, started, ended, error, traceback.
    """

    def update(**fields: object) -> None:
        content = read_json(folder / "status.json")
        content[part] = {**content.get(part, {}), **fields}
        write_json(folder / "status.json", content)

    def now() -> str:
        return datetime.now(UTC).isoformat(timespec="seconds")

    with exclusive(folder, part):
        attempt = read_json(folder / "status.json").get(part, {}).get("attempt", 0) + 1
        update(state="running", attempt=attempt, started=now(), ended=None, error=None, traceback=None)
        try:
            yield
        except BaseException as error:
            first_line = f"{type(error).__name__}: {error}".splitlines()[0]
            update(state="failed", ended=now(), error=first_line, traceback=traceback.format_exc())
            raise
        update(state="done", ended=now(), error=None, traceback=None)


def write_config(folder: Path, config: Config) -> None:
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))


def update_manifest(folder: Path, **fields: object) -> None:
    """Merge fields into ``manifest.json``; the environment of the last writer is always in it."""
    content = read_json(folder / "manifest.json") | environment() | fields
    write_json(folder / "manifest.json", content)


def environment() -> dict[str, object]:
    """Git commit, package versions and hardware, as far as they can be known."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    git = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "git": git.stdout.strip() or "unknown",
        "packages": packages,
        "python": platform.python_version(),
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus},
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def append_metrics(folder: Path, row: dict[str, object]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All complete rows; a half-written last line (a kill) is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def drop_metrics_from(folder: Path, step: int) -> None:
    """Forget the rows from ``step`` on: training continues there and will write them again."""
    rows = [row for row in read_metrics(folder) if row["step"] < step]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
