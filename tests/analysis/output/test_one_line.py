"""Mistakes of a command line, and a reader that goes away, in one line or none."""

import os
import subprocess
import sys

import pytest

from analysis.output.one_line import Parser


@pytest.mark.parametrize(
    ("words", "named"), [(["--cout", "3"], "--cout"), (["--count", "x"], "'x'"), ([], "RUN"), (["a", "--count", "3", "b"], "b")]
)
def test_a_mistake_is_one_line(words, named, capsys):
    parser = Parser(prog="python -m some.command")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--count", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert named in said and "see python -m some.command --help" in said


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(unbuffered):
    """Whether it is missed at the first line or when all that was held is written at last."""
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    words = [sys.executable, "-m", "analysis.power"]
    command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    command.stdout.close()
    assert command.wait(timeout=60) == 141 and command.stderr.read() == ""
