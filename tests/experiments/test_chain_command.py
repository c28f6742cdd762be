"""The chain command: stopped and killed anywhere, the same command continues; cells that share a teacher make it once."""

import fcntl
import signal
import threading

import pytest
from chain import call, elsewhere, kill_when, run_folder, table

from experiments import chain as command
from experiments.chain import step, waiting_for
from experiments.faults.drill import end, start, wait_until
from experiments.runs.records import read_json
from experiments.runs.stopping import Stopped


@pytest.mark.slow
def test_a_chain_goes_on_where_it_was_stopped_or_killed(small, tmp_path):
    call("chain", small)
    folder = run_folder(small)
    again = elsewhere(small, tmp_path / "again")
    other = tmp_path / "again/tiny" / folder.name
    kill_when("chain", again, lambda: (other / "checkpoints/resume.ckpt").exists())
    stopped = start("chain", again)
    wait_until(lambda: any(other.glob("scores/*/*.parquet")), stopped)
    stopped.send_signal(signal.SIGTERM)
    assert end(stopped).returncode in (0, 143)  # 0 where it came too late to stop anything
    call("chain", again)
    assert (table(other) == table(folder)).all(axis=None)
    assert (other / "report.md").exists()
    assert {read_json(other / "status.json")[part]["state"] for part in ("distill", "sweep", "report")} == {"done"}


def test_a_step_that_fails_ends_the_chain_with_its_exit_code(small, capfd):
    with pytest.raises(SystemExit) as ended:
        step("report", small)
    assert ended.value.code == 1 and capfd.readouterr().err.startswith("error: no run in")


def test_a_request_to_stop_is_passed_on_to_the_step(monkeypatch):
    class Process:
        returncode, signals = None, []

        def poll(self):
            return None

        def send_signal(self, number):
            self.signals.append(number)

        def wait(self):
            self.waited = True

    process, calls = Process(), []

    def asked():
        calls.append(1)
        if len(calls) > 2:
            raise Stopped(signal.SIGUSR2)

    monkeypatch.setattr(command, "raise_if_asked", asked)
    monkeypatch.setattr(command.subprocess, "Popen", lambda *_, **__: process)
    with pytest.raises(Stopped):
        step("distill", [])
    assert process.signals == [signal.SIGUSR2] and process.waited


def test_who_comes_second_waits_for_the_first(tmp_path):
    path, order = tmp_path / "teachers/.lock", []

    def second():
        with waiting_for(path) as file:
            order.append("second")
            assert not file.closed

    with waiting_for(path) as held:
        other = threading.Thread(target=second)
        other.start()
        with path.open("w") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        order.append("first")
    assert held.closed
    other.join(300)
    assert order == ["first", "second"]
