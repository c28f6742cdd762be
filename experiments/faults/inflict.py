"""The faults, one function each: kill, signal, starve, damage; then the same command must make it good."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from experiments.faults.drill import end
from experiments.faults.judge import CHAIN, Row, Undisturbed, at_work, code, expect, judged, last_line, strike
from experiments.overview.state import lines_of
from experiments.runs.records import write_text

LEFT = 24 * 1024
"""Bytes left on the full disk: enough for the records, too little for a checkpoint, a part of scores or a figure."""


def kill_chain(base: Undisturbed, results: Path, rng: np.random.Generator, times: Sequence[int] = (3, 3, 2)) -> list[Row]:
    """kill -9 of each command of a chain, so many times, at random shares of what is left of its work; then the same command again.

    A kill that came too late has no row.
    """
    killed = []
    for command, count in zip(CHAIN, times, strict=True):
        for share in rng.random(count):
            if struck := strike(base, results, command, signal.SIGKILL, share):
                seen = next(line for line in lines_of(base.run(results), {command}) if line.part == command)
                killed.append((command, struck[0], f"experiments.status: {seen.state} {seen.note}".strip()))
            else:
                break
        expect(base.finish(command, results))
    return [judged(base, results, "kill -9", command, moment, "", line, "the same command") for command, moment, line in killed]


def signal_chain(base: Undisturbed, results: Path, number: signal.Signals, share: float) -> list[Row]:
    """A signal that asks distillation and sweep to stop; each then continues."""
    stopped = []
    for command in CHAIN[:2]:
        if struck := strike(base, results, command, number, share):
            moment, said = struck
            stopped.append((command, moment, f"exit code {said.returncode}", last_line(said.stderr)))
        expect(base.finish(command, results))
    return [judged(base, results, number.name, *row, "the same command") for row in stopped]


def two_at_once(base: Undisturbed, results: Path) -> list[Row]:
    """A second process of the same command while the first is at work; the first is held still so that it cannot end meanwhile."""
    refused = []
    for command in CHAIN[:2]:
        process = base.start(command, results)
        at_work(process, results, command)
        process.send_signal(signal.SIGSTOP)
        second = base.finish(command, results)
        process.send_signal(signal.SIGCONT)
        expect(end(process))
        refused.append((command, f"second refused with exit code {second.returncode}", last_line(second.stderr)))
    return [judged(base, results, "two processes at once", c, "the first is at work", how, line, "nothing: the first finishes")
            for c, how, line in refused]  # fmt: skip


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_checkpoint(base: Undisturbed, results: Path) -> list[Row]:
    """Half a checkpoint whose scores are missing: named; deleted, distillation makes it again."""
    checkpoint = sorted(base.run(results).glob("checkpoints/step-*"))[2]
    shutil.rmtree(base.run(results) / "scores" / checkpoint.name)
    truncate(checkpoint / "model.safetensors")
    said = base.finish("sweep", results)
    shutil.rmtree(checkpoint)
    for command in CHAIN[:2]:
        expect(base.finish(command, results))
    recovered = "delete that folder, distill again, then the same command"
    return [judged(base, results, "truncated checkpoint", "sweep", "before the sweep", code(said), last_line(said.stderr), recovered)]


def truncated_part(base: Undisturbed, results: Path) -> list[Row]:
    """Half a part of the scores: sweep and report name it; deleted, the sweep makes it again."""
    part = sorted(base.run(results).glob("scores/*/*.parquet"))[3]
    truncate(part)
    said = {command: base.finish(command, results) for command in ("sweep", "report")}
    part.unlink()
    for command in ("sweep", "report"):
        expect(base.finish(command, results))
    recovered = "delete that file, sweep again"
    return [judged(base, results, "truncated part of scores", command, "after the sweep", code(done), last_line(done.stderr), recovered)
            for command, done in said.items()]  # fmt: skip


def truncated_state(base: Undisturbed, results: Path) -> list[Row]:
    """Half a state to resume from, as a machine that lost power might leave it."""
    struck = strike(base, results, "distill", signal.SIGKILL, 0.5)
    states = sorted(base.run(results).glob("checkpoints/resume*"))
    if struck is None or not states:
        return []
    truncate(states[0])
    said = base.finish("distill", results)
    recovered = "the same command"
    if said.returncode:
        states[0].unlink()
        recovered = "delete that file, then the same command"
    for command in CHAIN[:2]:
        expect(base.finish(command, results))
    return [judged(base, results, "truncated state to resume from", "distill", struck[0], code(said), last_line(said.stderr), recovered)]


def corrupted_status(base: Undisturbed, results: Path) -> list[Row]:
    """A status.json that is no JSON, and scores that are missing."""
    next(base.run(results).glob("scores/*/*.parquet")).unlink()
    write_text(base.run(results) / "status.json", '{"sweep": {"state": "do')
    said = base.finish("sweep", results)
    line = next((line for line in said.stderr.splitlines() if "status.json" in line), "")
    return [judged(base, results, "corrupted status.json", "sweep", "before the sweep", code(said), line, "the same command, by itself")]


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """A disk of 64 MiB at ``folder``; yields '' or why there is none."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True)
    try:
        yield "" if mounted.returncode == 0 else f"not run: needs root to mount a small disk ({last_line(mounted.stderr)})"
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(base: Undisturbed, results: Path) -> list[Row]:
    """Each command on a disk that is full but for a little, then again with room."""
    rows, filler = [], results / "filler"
    for command in CHAIN:
        with filler.open("wb") as file:
            file.truncate(0)
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(results).free - LEFT))
        said = base.finish(command, results)
        filler.unlink()
        expect(base.finish(command, results))
        rows.append((command, code(said), last_line(said.stderr)))
    return [judged(base, results, "full disk", command, f"{LEFT // 1024} KiB left", how, line, "room, then the same command")
            for command, how, line in rows]  # fmt: skip


def read_only(base: Undisturbed, results: Path) -> list[Row]:
    """Each command on a disk that cannot be written, then again where it can."""
    rows = []
    for command in CHAIN:
        subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
        said = base.finish(command, results)
        subprocess.run(["mount", "-o", "remount,rw", str(results)], check=True)
        expect(base.finish(command, results))
        rows.append((command, code(said), last_line(said.stderr)))
    return [judged(base, results, "read-only folder", command, "at the start", how, line, "write access, then the same command")
            for command, how, line in rows]  # fmt: skip


def on_small_disk(base: Undisturbed, fault: Callable[[Undisturbed, Path], list[Row]]) -> list[Row]:
    """A fault that needs a disk of its own; a row that says so where this user may not mount one."""
    results = base.home / fault.__name__
    with small_disk(results) as reason:
        return [Row(fault.__name__.replace("_", " "), "", "", reason, 0, 0, "", "")] if reason else fault(base, results)
