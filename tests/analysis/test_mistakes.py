"""What people mistype in the commands that other files do not try: one line, and an exit code that is not 0."""

from pathlib import Path

import pandas as pd
import pytest

from analysis import evaluation, power, scales, strategies
from analysis.input.evaluations import load_evaluation, named_presets

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
    (strategies, ["nowhere"], "no run at nowhere"),
    (scales, [TINY, "nowhere"], "no run at "),
])  # fmt: skip
def test_mistakes_are_one_line(command, typed, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([str(word) for word in typed]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["presets: [3", "presets: [3]", "hello", "presets: {a: 5}", "presets: {a: {}}", "- a"])
def test_presets_that_are_none_are_named(text, tmp_path):
    assert named_presets(tmp_path) == {}
    (tmp_path / "presets.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"presets.yaml does not hold presets: delete it and run make presets$"):
        named_presets(tmp_path)


def test_questions_that_were_scored_and_are_gone_are_named(tmp_path):
    for name in ("scores", "placements.parquet"):
        (tmp_path / name).symlink_to(TINY / "evaluation" / "synthetic" / name)
    asked = pd.read_parquet(TINY / "evaluation" / "synthetic" / "questions.parquet")
    asked.iloc[1:].to_parquet(tmp_path / "questions.parquet")
    with pytest.raises(ValueError, match=f"questions.parquet lacks the question {asked['item'][0]}, which was scored"):
        load_evaluation(tmp_path)
