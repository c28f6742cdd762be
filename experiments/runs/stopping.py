"""Asked to stop: SIGTERM, SIGUSR2 (a scheduler's warning) and SIGINT end a command at its next safe point.

A safe point is a call of ``raise_if_asked``. Work that has passed one is stopped at the next. Work that has none yet is stopped where it
stands, which loses nothing either: files appear whole or not at all. SIGINT stops where it stands; so does a second SIGTERM, by force.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
ECHO = 2.0
"""Seconds in which another SIGTERM is the same request: a scheduler may signal a process directly and through its parent as well."""


class Stopped(SystemExit):
    """The command was asked to stop and did; ``code``, its exit code, is 128 + the signal's number."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.name = signal.Signals(number).name

    def __str__(self) -> str:
        return f"stopped by {self.name}: the same command continues"


requests = SimpleNamespace(first=0, terminated=0.0, safe_points=False)
"""What has arrived in this process: the number of the first signal (0: none), ``time.monotonic()`` of the first SIGTERM, and whether the
work at hand has passed a safe point."""


def raise_if_asked() -> None:
    """A safe point: everything that is worth keeping is saved here. Raises Stopped if a signal has asked for it."""
    requests.safe_points = True
    if requests.first:
        raise Stopped(requests.first)


def begin() -> None:
    """Other work starts, a cell of a grid: it has no safe point yet. Raises Stopped if a signal came during the one before."""
    requests.safe_points = False
    if requests.first:
        raise Stopped(requests.first)


def asked() -> bool:
    """Whether a signal has asked this process to stop."""
    return bool(requests.first)


def note(number: int, _: FrameType | None = None) -> None:
    """The signal handler."""
    now = time.monotonic()
    if number == signal.SIGTERM:
        if requests.terminated and now - requests.terminated > ECHO:
            os.write(2, b"stopped at once by a second SIGTERM: the same command continues\n")  # print may be what was interrupted
            os._exit(128 + number)
        requests.terminated = requests.terminated or now
    requests.first = requests.first or number
    if number == signal.SIGINT or not requests.safe_points:
        raise Stopped(requests.first)


@contextmanager
def listening() -> Iterator[None]:
    """Heed the signals inside the block. What a parent had ignored stays ignored for SIGINT (nohup, background jobs), not for the others.

    Outside the main thread, where Python cannot handle signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    requests.first, requests.terminated, requests.safe_points = 0, 0.0, False
    heeded = [s for s in SIGNALS if not (s == signal.SIGINT and signal.getsignal(s) == signal.SIG_IGN)]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
