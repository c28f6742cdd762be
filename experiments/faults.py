"""``python -m experiments.faults``: the fault table. Real commands are killed, starved and lied to; the same command must make it good."""

import argparse
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.drill import SMALL, Forked, end, run_folder, score_rows, start, wait_until, warm_up
from experiments.runs.records import is_held, read_metrics, write_text
from experiments.state import lines_of

CHAIN = ("distill", "sweep", "report")
# More steps and parts than the tests need, so that there is a middle to be killed in.
OPTIONS = [*SMALL, "distill.steps=24", "distill.checkpoints=5", "data.items=12", "workers=4", "memory_gib=0.08"]
LEFT = 24 * 1024
"""Bytes left on the full disk: enough for the records, too little for a checkpoint, a part of scores or a figure."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fault: str
    command: str
    moment: str  # when it happened
    outcome: str
    rows_lost: int  # of the score table at the end, against the undisturbed run
    rows_doubled: int
    line: str  # what the user saw
    recovered_by: str


@dataclass(frozen=True)
class Undisturbed:
    """The run that the others are compared with."""

    home: Path  # everything happens in it
    folder: Path  # of the run
    seconds: dict[str, float]  # that each command was at work, without its start
    begin: Callable[[str, Sequence[str]], subprocess.Popen | Forked]  # starts a command

    def start(self, command: str, results: Path) -> subprocess.Popen | Forked:
        return self.begin(command, self.options(results))

    def finish(self, command: str, results: Path) -> subprocess.CompletedProcess:
        return end(self.start(command, results))

    def options(self, results: Path) -> list[str]:
        return [*OPTIONS, f"cache={self.home / 'cache'}", f"results={results}"]

    def run(self, results: Path) -> Path:
        return results / self.folder.parent.name / self.folder.name

    def copy(self, name: str) -> Path:
        """Its results again, to be damaged; the new results folder."""
        return shutil.copytree(self.folder.parents[1], self.home / name)


def undisturbed(home: Path, begin: Callable[[str, Sequence[str]], subprocess.Popen | Forked] = start) -> Undisturbed:
    """Run the chain and see how long each command is at work."""
    results, seconds = home / "undisturbed", {}
    base = Undisturbed(home, results, seconds, begin)
    expect(base.finish("teach", results))
    for command in CHAIN:
        process = base.start(command, results)
        at_work(process, results, command)
        began = time.monotonic()
        expect(end(process))
        seconds[command] = time.monotonic() - began
    return dataclasses.replace(base, folder=run_folder(results))


def at_work(process: subprocess.Popen | Forked, results: Path, command: str) -> None:
    """Wait until a command holds the lock of its part. Raises RuntimeError with what it said if it ended before."""
    if not wait_until(lambda: any(is_held(path.parent, command) for path in results.glob("*/*/status.json")), process):
        raise RuntimeError(f"{command} ended before it was seen at work: {end(process).stderr}")


def expect(done: subprocess.CompletedProcess, code: int = 0) -> subprocess.CompletedProcess:
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(done.args)} ended with {done.returncode}, not {code}: {done.stdout}{done.stderr}")
    return done


def last_line(text: str) -> str:
    """The last line that is no progress bar."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "it/s" not in line and "s/it" not in line]
    return lines[-1] if lines else ""


def compare(base: Undisturbed, results: Path) -> tuple[str, int, int]:
    """('' or what differs from the undisturbed run, rows lost, rows doubled)."""
    folder, keys = base.run(results), ["step", "placement", "item"]
    rows, whole = score_rows(folder), score_rows(base.folder)
    doubled = int(rows.duplicated(keys).sum())
    lost = len(whole) - len(whole[keys].merge(rows[keys].drop_duplicates()))
    differs = [] if doubled or lost or rows.equals(whole) else ["score rows"]
    patterns = ["checkpoints/*/*", *(["tables/*.csv"] if (folder / "report.md").exists() else [])]
    names = [path.relative_to(base.folder) for pattern in patterns for path in base.folder.glob(pattern)]
    for name in [*sorted(names), Path("metrics.jsonl")]:
        if not (folder / name).exists() or (folder / name).read_bytes() != (base.folder / name).read_bytes():
            differs.append(str(name))
    return ", ".join(differs[:3]), lost, doubled


def judged(base: Undisturbed, results: Path, fault: str, command: str, moment: str, how: str, line: str, recovered_by: str) -> Row:
    """The row of a fault after which the chain was brought to its end."""
    differs, lost, doubled = compare(base, results)
    tables = ", tables" if (base.run(results) / "report.md").exists() else ""
    same = f"differs from the undisturbed run: {differs}" if differs else f"same rows, checkpoints, metrics{tables}"
    line = line.replace(str(base.home) + "/", "")
    return Row(fault, command, moment, f"{how}; {same}" if how else same, lost, doubled, line, recovered_by)


def progress_of(folder: Path, command: str) -> int:
    """How far a command is, in what it writes one by one: training steps, parts of scores, tables and figures."""
    if command == "distill":
        return len(read_metrics(folder))
    patterns = {"sweep": ["scores/*/*.parquet"], "report": ["tables/*", "figures/*"]}[command]
    return sum(1 for pattern in patterns for _ in folder.glob(pattern))


UNITS = {"distill": "steps", "sweep": "parts of scores", "report": "tables and figures"}


def strike(base: Undisturbed, results: Path, command: str, number: int, share: float) -> tuple[str, subprocess.CompletedProcess] | None:
    """Send a signal when a share of a command's work is done: (the moment, what it said); None where it had ended before.

    Whole pieces of work are counted on disk, so that a machine that is slow now or was before does not matter; the rest is waited for.
    """
    folder, process = base.run(results), base.start(command, results)
    at_work(process, results, command)
    total, before = progress_of(base.folder, command), progress_of(folder, command)
    pieces, rest = divmod(share * (total - before), 1)
    wait_until(lambda: progress_of(folder, command) >= before + pieces, process)
    began, wait = time.monotonic(), rest * base.seconds[command] / total
    wait_until(lambda: time.monotonic() - began >= wait, process)
    process.send_signal(number)
    done = end(process)
    return None if done.returncode == 0 else (f"{progress_of(folder, command)} of {total} {UNITS[command]}", done)


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


def code(done: subprocess.CompletedProcess) -> str:
    return f"exit code {done.returncode}"


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


def everything(home: Path, kills: int, seed: int) -> Iterator[list[Row]]:
    """All faults, one after another, each in a results folder of its own under ``home``."""
    warm_up()
    base = undisturbed(home, Forked)
    rng = np.random.default_rng(seed)
    for fault in (truncated_checkpoint, truncated_part, corrupted_status):
        yield tried(fault, base, base.copy(fault.__name__))
    for number in (signal.SIGTERM, signal.SIGUSR2):
        yield tried(signal_chain, base, home / number.name, number, rng.random())
    for fault in (two_at_once, truncated_state):
        yield tried(fault, base, home / fault.__name__)
    for fault in (full_disk, read_only):
        yield tried(on_small_disk, base, fault)
    killed = chains = 0
    while killed < kills and chains < kills:  # a kill that comes too late is made up for by another chain
        chains += 1
        rows = tried(kill_chain, base, home / f"killed-{chains}", rng)
        killed += len(rows)
        yield rows


def tried(fault: Callable[..., list[Row]], *arguments: object) -> list[Row]:
    """The rows of a fault; one that says so where even the repeated command did not end well."""
    try:
        return fault(*arguments)
    except (RuntimeError, TimeoutError, OSError, subprocess.SubprocessError) as error:
        return [Row(fault.__name__.replace("_", " "), "", "", "not recovered from", 0, 0, " ".join(str(error).split())[-300:], "")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0 if no row was lost or doubled and all ended as without the fault."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=24, help="kill -9 at so many random moments at least (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("results/validation/faults.csv"), help="default: results/validation/faults.csv")
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as home:
        for found in everything(Path(home), given.kills, given.seed):
            rows += found
            print(*(" | ".join([row.fault, row.command, row.moment, row.outcome, row.line]) for row in found), sep="\n", flush=True)
            write_text(given.out, pd.DataFrame(rows).to_csv(index=False))
    bad = [row for row in rows if row.rows_lost or row.rows_doubled or "differs" in row.outcome or row.outcome.startswith("not ")]
    print(f"{given.out}: {len(rows)} faults, {len(bad)} of them did harm or were not run")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
