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
    assert end(stopped).returncode in (0, 143, -15)  # 0 where it came too late to stop anything, -15 where it was not listening yet
    call("chain", again)
    assert (table(other) == table(folder)).all(axis=None)
    assert (other / "report.md").exists()
    assert {read_json(other / "status.json")[part]["state"] for part in ("distill", "sweep", "report")} == {"done"}


@pytest.mark.slow
def test_checkpoints_that_were_swept_one_by_one_give_the_numbers_of_a_sweep_of_all(small, tmp_path):
    for part in ("teach", "distill", "sweep", "report"):
        call(part, small)
    again = elsewhere(small, tmp_path / "again")
    call("distill", again)
    call("sweep", [*again, "steps=[0]"])
    call("chain", again)
    folder, other = run_folder(small), tmp_path / "again/tiny" / run_folder(small).name
    assert (table(other) == table(folder)).all(axis=None)
    entries = read_json(other / "status.json")
    assert entries["sweep"]["attempt"] == 2 and {entries[part]["state"] for part in ("distill", "sweep", "report")} == {"done"}
    before = (other / "status.json").read_bytes()
    assert "chain: complete" in call("chain", again).stdout
    assert (other / "status.json").read_bytes() == before  # nothing was begun again


class Pretended:
    """A process that ends with 0 after so many looks at it, and says what was done to it."""

    def __init__(self, looks, at_look=lambda look: None):
        self.looks, self.at_look, self.seen, self.signals, self.returncode = looks, at_look, 0, [], None

    def poll(self):
        self.seen += 1
        self.at_look(self.seen)
        if self.seen > self.looks:
            self.returncode = 0
        return self.returncode

    def send_signal(self, number):
        self.signals.append(number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def wait(self):
        return self.returncode


@pytest.mark.parametrize("ends", ["in time", "late", "failed"])
def test_finished_checkpoints_are_swept_on_one_core_while_training_goes_on(ends, monkeypatch):
    there, begun = [], []

    def begin(name, overrides, lock, more=None):
        if name == "distill":
            process = Pretended(30, lambda look: there.append(look) if look in (3, 5, 20) else None)
        else:
            process = Pretended({"in time": 4, "late": 10**6, "failed": 4}[ends])
            if ends == "failed":
                process.poll = lambda: 1
        begun.append((name, overrides, more, process))
        return process

    monkeypatch.setattr(command, "begin", begin)
    monkeypatch.setattr(command, "ready", lambda *_: list(there))
    monkeypatch.setattr(command, "can_overlap", lambda *_: True)
    monkeypatch.setattr(command, "POLL", 0)
    command.train(["scale=tiny"], None, None, None)
    sweeps = [(overrides[-1], more) for name, overrides, more, _ in begun if name == "sweep"]
    one_core = {"OMP_NUM_THREADS": "1"}
    if ends == "in time":
        assert sweeps == [("steps=[3]", one_core), ("steps=[5]", one_core), ("steps=[20]", one_core)]
    else:  # one that failed is not tried again here: the sweep that follows says why
        assert sweeps == [("steps=[3]", one_core)]
    assert begun[-1][-1].signals == ([signal.SIGTERM] if ends == "late" else [])


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
