"""A run with a fault against the undisturbed one: what was done, what is lost, doubled or different."""

import dataclasses
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.faults.drill import SMALL, Forked, end, run_folder, score_rows, start, wait_until
from experiments.runs.records import is_held, read_metrics

CHAIN = ("distill", "sweep", "report")
# More steps and parts than the tests need, so that there is a middle to be killed in.
OPTIONS = [*SMALL, "distill.steps=24", "distill.checkpoints=5", "data.items=12", "workers=4", "memory_gib=0.08"]


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


def code(done: subprocess.CompletedProcess) -> str:
    return f"exit code {done.returncode}"
