"""The real commands, for tests: start them, kill them, read what they left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(name, options):
    return [sys.executable, "-m", f"experiments.{name}", *options]


def call(name, options, expect=0):
    done = subprocess.run(command(name, options), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def run_folder(options):
    results = next(o for o in options if o.startswith("results=")).removeprefix("results=")
    return next((Path(results) / "tiny").iterdir())


def table(folder, name="scores"):
    """All score rows in one order: what must not depend on how the run came about."""
    frame = pd.concat([pd.read_parquet(p) for p in sorted(folder.glob(f"{name}/*/*.parquet"))])
    frame = frame.astype(dict.fromkeys(("scale", "run", "placement", "item", "task"), str))
    return frame.sort_values(["step", "placement", "item"], ignore_index=True)


def elsewhere(options, folder):
    return [f"results={folder}" if o.startswith("results=") else o for o in options]


def kill_when(name, options, seen, times=1):
    """Start the command and kill -9 it as soon as ``seen()`` is true; again, ``times`` times."""
    for _ in range(times):
        process = subprocess.Popen(command(name, options), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not seen():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
