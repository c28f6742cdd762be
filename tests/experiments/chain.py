"""The real commands, for tests: start them, kill them, read what they left."""

import signal
from pathlib import Path

from experiments.faults.drill import end, score_rows, start, wait_until


def call(name, options, expect=0):
    done = end(start(name, options))
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def results_of(options):
    return Path(next(o for o in options if o.startswith("results=")).removeprefix("results="))


def run_folder(options):
    return next((results_of(options) / "tiny").iterdir())


table = score_rows


def elsewhere(options, folder):
    return [f"results={folder}" if o.startswith("results=") else o for o in options]


def kill_when(name, options, seen, times=1):
    """Start the command and kill -9 it as soon as ``seen()`` is true; again, ``times`` times."""
    for _ in range(times):
        process = start(name, options)
        wait_until(seen, process)
        process.send_signal(signal.SIGKILL)
        end(process)
