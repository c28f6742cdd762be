"""Signals: what is heeded when, in this process and in real commands."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments.runs.stopping import SIGNALS, Stopped, begin, listening, raise_if_asked, requests

WAIT = 300  # seconds; a loaded machine may take its time


@pytest.fixture(autouse=True)
def forget():
    """Each test leaves no request behind."""
    yield
    requests.first, requests.terminated, requests.safe_points = 0, 0.0, False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR2, 140)])
def test_a_signal_waits_for_the_next_safe_point(number, code):
    done = []
    with listening():
        raise_if_asked()
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), number)
            done.append("what was begun before the next safe point")
            raise_if_asked()
            done.append("what comes after it")
    assert done == ["what was begun before the next safe point"]
    assert stopped.value.code == code
    assert str(stopped.value) == f"stopped by {number.name}: the same command continues"


def test_work_without_safe_points_ends_where_it_stands():
    with listening(), pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")


def test_sigint_ends_where_it_stands_even_between_safe_points():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored
    try:
        with listening():
            raise_if_asked()
            with pytest.raises(Stopped) as stopped:
                os.kill(os.getpid(), signal.SIGINT)
                pytest.fail("went on")
        assert stopped.value.code == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_next_cell_does_not_start_after_a_request():
    with listening():
        raise_if_asked()
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(Stopped):
            begin()


def test_handlers_are_put_back_and_requests_forgotten():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Stopped), listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with listening():
        raise_if_asked()


def test_an_ignored_sigint_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening():
            os.kill(os.getpid(), signal.SIGINT)
            raise_if_asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_changed():
    seen = []

    def work():
        with listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(WAIT)
    assert seen == [before]


STUBBORN = """
import time
from experiments.runs.stopping import listening, raise_if_asked
with listening():
    raise_if_asked()
    print("ready", flush=True)
    while True:  # never reaches another safe point
        time.sleep(0.01)
"""


def test_a_second_sigterm_ends_at_once():
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < deadline:  # those that come soon after the first are its echo
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    stderr = process.communicate(timeout=WAIT)[1]
    assert process.returncode == 143 and stderr == "stopped at once by a second SIGTERM: the same command continues\n"
