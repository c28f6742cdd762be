"""What a run leaves beside its numbers: status.json, manifest.json, metrics.jsonl, config.yaml. Files appear whole or not at all."""

import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from analysis.output.files import replacing

PACKAGES = ("torch", "lightning", "hydra-core", "numpy", "pandas", "scipy", "pyarrow", "transformers", "numba", "triton", "fla-core")


def write_text(path: Path, text: str) -> None:
    """Write beside the name, then rename into place: a kill or a full disk leaves the old file whole."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file, or {} where the file is missing. Raises ValueError naming a file that is there and holds none."""
    if not isinstance(found := parsed(path), dict):
        raise ValueError(f"{path} holds no JSON object: delete it and run the same command again")
    return found


def parsed(path: Path) -> object:
    """Whatever JSON the file holds, or {} where it is missing: for who says itself what it should have been."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is not valid JSON: delete it and run the same command again") from None


@contextmanager
def exclusive(folder: Path, part: str, shared: bool = False) -> Iterator[None]:
    """Hold the lock of one part of a run; the kernel releases it however the process ends. ValueError when another process holds it.

    ``shared`` keeps out only those who do not share.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder, part).open("w") as file:
        for patience in range(10):  # of a second in all: a reader that asks whether the lock is held has it for a moment
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if patience == 9:
                    raise ValueError(
                        f"another process is writing {part} in {folder}: wait for it or stop it, then run the same command"
                    ) from None
                time.sleep(0.1)
        yield


@contextmanager
def turns(folder: Path, what: str) -> Iterator[None]:
    """Wait until no other process of a run is at ``what``, a thing of moments."""
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder, what).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lock_file(folder: Path, part: str) -> Path:
    return folder / f".{part}.lock"


def is_held(folder: Path, part: str) -> bool:
    """Whether a living process holds the lock of a part, on any machine that shares the folder. Writes nothing."""
    try:
        with lock_file(folder, part).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def status(folder: Path, part: str, shared: bool = False, **fields: object) -> Iterator[None]:
    """Keep ``status.json`` true while one part of a run (distill, sweep) is written by this process alone.

    The file holds one entry per part: state (running, done or failed), attempt, started, ended, error, traceback, command, host, pid, job
    and restarts (of the scheduler; None and 0 where there is none), and ``fields``. A part that is ``running`` and whose lock nobody holds
    was killed. Shards, parts such as sweep-0of4, run side by side, but not beside the whole of what they share; ``shared`` parts run beside
    themselves.
    """
    whole, _, shard = part.partition("-")
    with exclusive(folder, whole, shared=shared or bool(shard)), exclusive(folder, part) if shard else nullcontext():
        with status_file(folder) as content:
            before = content.get(part, {})
            begun = {"state": "running", "attempt": before.get("attempt", 0) + 1, "started": now(), "ended": None}
            content[part] = before | begun | {"error": None, "traceback": None} | process() | fields
        try:
            yield
        except BaseException as error:
            ended = {"state": "failed", "ended": now(), "error": first_line(error), "traceback": traceback.format_exc()}
            with suppress(OSError), status_file(folder) as content:  # on a full disk the user should see the error that said so first
                content[part] = content.get(part, {}) | ended
            raise
        with status_file(folder) as content:
            content[part] = content.get(part, {}) | {"state": "done", "ended": now()}


def settled(folder: Path, part: str) -> bool:
    """Whether status.json has nothing to put right about a part: never begun, or done."""
    try:
        return read_status(folder).get(part, {"state": "done"}).get("state") == "done"
    except ValueError:
        return False


@contextmanager
def status_file(folder: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """The entries of ``status.json`` to change; the processes of a run take turns, each for milliseconds.

    A file that holds something else is set aside: what it said is not needed to continue.
    """
    path = folder / "status.json"
    with turns(folder, "status"):
        try:
            content = read_status(folder)
        except ValueError:
            aside = path.replace(path.with_name("status.json.broken"))
            print(f"{path} was not a record of parts: kept as {aside.name}, and begun anew", file=sys.stderr)
            content = {}
        yield content
        write_json(path, content)


def read_status(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of ``status.json`` by part. Raises ValueError where it is not a JSON object of objects."""
    content = parsed(folder / "status.json")
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise ValueError(f"{folder / 'status.json'} is not a record of parts: delete it and run the same command again")
    return content


def process() -> dict[str, object]:
    """Who writes: the command as it can be typed again, host, process, and the scheduler's job with how often it was restarted."""
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return {"command": command(), "host": socket.gethostname(), "pid": os.getpid(), "job": job, "restarts": restarts}


def command() -> str:
    """``python -m module overrides`` of this process; in a multirun, of this cell alone."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else sys.argv[1:]
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return shlex.join(["python", "-m", module.name if module else Path(sys.argv[0]).stem, *overrides])


def first_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def update_manifest(folder: Path, **fields: object) -> None:
    """Merge fields into ``manifest.json``; the environment of the last writer is always in it."""
    here = environment()
    with turns(folder, "manifest"):
        write_json(folder / "manifest.json", read_json(folder / "manifest.json") | here | fields)


def environment() -> dict[str, object]:
    """Git commit, package versions and hardware, as far as they can be known."""
    import torch  # takes seconds, which commands that only read records need not spend

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
    append_row(folder / "metrics.jsonl", row)


def append_row(path: Path, row: dict[str, object]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return read_rows(folder / "metrics.jsonl")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All complete rows; a half-written last line (a kill) is left out."""
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
    keep_rows_before(folder / "metrics.jsonl", step)


def keep_rows_before(path: Path, step: int) -> None:
    rows = [row for row in read_rows(path) if row["step"] < step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
