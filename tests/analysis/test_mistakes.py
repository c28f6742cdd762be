"""What people mistype in the commands that other files do not try: one line, and an exit code that is not 0."""

from pathlib import Path

import pytest

from analysis import evaluation, power, scales

TINY = Path(__file__).parents[2] / "results" / "tiny" / "local-s1-38b26400"
BAND = ["--placements", "30", "--items", "24"]


@pytest.mark.parametrize(("command", "typed", "said"), [
    (power, [*BAND, "--noise", "inf"], "--noise is inf: give nats/token above 0"),
    (power, [*BAND, "--noise", "nan"], "--noise is nan"),
    (power, [*BAND, "--repetitions", "1"], "--repetitions is 1: give 2 or more"),
    (power, BAND[:2], "give both --placements and --items"),
    (evaluation, [TINY, "--endpoints", "nowhere.yaml"], "nowhere.yaml"),
    (evaluation, ["nowhere"], "nowhere has no evaluation"),
    (scales, ["nowhere"], "no run at "),
    (scales, [TINY, "nowhere"], "no run at "),
])  # fmt: skip
def test_mistakes_are_one_line(command, typed, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([str(word) for word in typed]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not list(tmp_path.iterdir())
