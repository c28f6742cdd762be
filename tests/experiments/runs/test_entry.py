"""The wrapper around every command: what it prints, its exit codes, cells of a multirun, signals."""

import argparse
import os
import signal

import pytest

from experiments.runs.entry import run
from experiments.runs.progress import progress
from experiments.runs.records import read_status, status


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run a task as ``python -m`` would, in this process; the exit code."""
    monkeypatch.chdir(tmp_path)

    def start(task, *overrides):
        monkeypatch.setattr("sys.argv", ["task", *overrides, "scale=tiny"])
        try:
            run(task)
        except SystemExit as ended:
            return ended.code
        return 0

    return start


def test_run_twice_does_no_harm(command):
    seen = []
    before = signal.getsignal(signal.SIGTERM)
    assert command(lambda config: seen.append(config.seed), "seed=1") == 0
    assert command(lambda config: seen.append(config.seed), "seed=2") == 0
    assert seen == [1, 2] and signal.getsignal(signal.SIGTERM) == before


def test_a_users_error_is_one_line(command, capsys):
    def task(_):
        raise ValueError("no teacher here:\nmake one")

    assert command(task) == 1
    assert capsys.readouterr().err == "error: no teacher here: make one\n"


def test_an_error_in_the_middle_of_a_progress_bar_has_a_line_of_its_own(command, capsys):
    def task(_):
        bar = progress(None, "sweep", total=3)
        bar.update()
        bar.refresh()
        raise ValueError("no more")

    assert command(task) == 1
    told = capsys.readouterr().err
    assert "1/3" in told and told.splitlines()[-1] == "error: no more"


def test_an_unexpected_error_shows_its_traceback_and_one_line(command, capsys, tmp_path):
    def task(_):
        with status(tmp_path, "distill"):
            raise RuntimeError("shapes differ")

    assert command(task) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and told.endswith("error: RuntimeError: shapes differ\n")
    entry = read_status(tmp_path)["distill"]
    assert entry["state"] == "failed" and entry["error"] == "RuntimeError: shapes differ" and "in task" in entry["traceback"]


def test_a_full_disk_names_the_way_on(command, capsys):
    def task(_):
        raise OSError(28, "No space left on device", "results/x")

    assert command(task) == 1
    assert capsys.readouterr().err.startswith("error: No space left on device at results/x: make room")


def test_a_full_disk_is_recognised_behind_a_librarys_error(command, capsys):
    def task(_):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    assert command(task) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: No space left on device: make room") and told.count("\n") == 1


def test_an_error_without_words_is_no_success(command, capsys):
    def task(_):
        raise ValueError

    assert command(task) == 1
    assert capsys.readouterr().err.startswith("error: ValueError")


def test_a_cell_that_fails_does_not_keep_the_others_from_running(command, capsys):
    seen = []

    def task(config):
        seen.append(config.seed)
        if config.seed == 1:
            raise ValueError("this seed is unlucky")
        if config.seed == 2:
            raise RuntimeError("so is this")

    assert command(task, "-m", "seed=1,2,3,4") == 1
    assert seen == [1, 2, 3, 4]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("cell", "error"))]
    assert told == [
        "cell 1 (seed=1 scale=tiny): this seed is unlucky",
        "cell 2 (seed=2 scale=tiny): RuntimeError: so is this",
        "error: 2 of 4 cells failed: the same command does what is missing",
    ]


def test_a_refused_option_of_one_cell_is_that_cells_failure(command, capsys):
    seen = []
    assert command(lambda config: seen.append(config.data.items), "-m", "data.items=4,-4,8", "items=0") == 1
    assert seen == [4, 8]
    assert "cell 2 (data.items=-4 items=0 scale=tiny): data.items is -4: give a positive number" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR2", 140), ("SIGINT", 130)])
def test_a_signal_is_recorded_and_is_the_exit_code(command, capsys, tmp_path, name, code):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored

    def task(_):
        with status(tmp_path, "sweep"):
            os.kill(os.getpid(), getattr(signal, name))
            pytest.fail("went on")

    try:
        assert command(task) == code
    finally:
        signal.signal(signal.SIGINT, before)
    said = f"stopped by {name}: the same command continues"
    assert capsys.readouterr().err == said + "\n"
    entry = read_status(tmp_path)["sweep"]
    assert entry["state"] == "failed" and entry["error"] == said


def test_no_further_cell_starts_once_a_stop_was_asked_for(command):
    from experiments.runs.stopping import raise_if_asked

    seen = []

    def task(config):
        raise_if_asked()
        os.kill(os.getpid(), signal.SIGUSR2)
        seen.append(config.seed)  # what a safe point does not interrupt is finished

    assert command(task, "-m", "seed=1,2") == 140
    assert seen == [1]


def test_lightnings_silent_end_on_sigterm_is_no_success(command):
    from experiments.runs.stopping import raise_if_asked

    def task(_):
        raise_if_asked()
        os.kill(os.getpid(), signal.SIGTERM)
        raise SystemExit

    assert command(task) == 143


def test_an_exit_code_of_the_work_itself_is_kept(command):
    def task(_):
        raise SystemExit(7)

    assert command(task) == 7


@pytest.mark.parametrize(("option", "said"), [
    ("shapes.layers=3", "unknown option shapes.layers: shapes are given as model.layers"),
    ("distill.lr_of.X=1", "unknown option distill.lr_of.X: a new key is given as +distill.lr_of.X=..."),
    ("seed=abc", "seed: Value 'abc' of type 'str' could not be converted to Integer: give a number of 0 or more"),
])  # fmt: skip
def test_options_that_are_not_there_or_of_another_type_are_one_line(command, capsys, option, said):
    assert command(lambda config: pytest.fail("ran"), option) == 1
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize("where", [argparse.ArgumentParser, argparse._ActionsContainer])
def test_commands_start_where_argparse_looks_into_help_as_python_3_14_does(command, monkeypatch, where):
    add, looked = argparse._ActionsContainer.add_argument, []

    def check(self, action):
        looked.append("%" in (action.help or ""))

    def checking(self, *names, **options):
        action = add(self, *names, **options)
        if hasattr(self, "_get_formatter"):
            self._check_help(action)
        return action

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", checking)
    monkeypatch.setattr(where, "_check_help", check, raising=False)
    assert command(lambda config: None) == 0 and not looked
    argparse.ArgumentParser().add_argument("--one", help="100%%")
    assert looked, "what others add is looked at again"
