"""Retention and the proxy where the truth is known, and the command on an evaluation that is written here."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import presets, report
from analysis.accuracy.proxy import proxy_table, side_by_side
from analysis.accuracy.retention import fieller, retention
from analysis.cost import placement_costs
from analysis.evaluation import main
from analysis.input.evaluations import Evaluation, load_evaluations
from analysis.stability import ENDPOINTS, load_endpoints
from analysis.table import Scores, load_scores, write_part
from supernet.placement import exhaustive

PLACEMENTS = sorted(str(p) for p in exhaustive(4, "FSKG"))
ENDPOINT = load_endpoints(ENDPOINTS)


def scores(quality, tasks, steps=(10,), placements=PLACEMENTS, prefix="q"):
    return Scores("made", "run", 1, np.array(steps), np.array(steps) * 100, list(placements), placement_costs(placements),
                  [f"{prefix}{n:03d}" for n in range(quality.shape[2])], list(tasks), quality)  # fmt: skip


def test_a_copy_keeps_everything_and_a_guesser_says_nothing():
    rng = np.random.default_rng(0)
    full = (rng.random(60) < 0.7).astype(float)
    tasks = ["a"] * 30 + ["b"] * 30
    same = retention(full, full, tasks, np.zeros(60), 0.95)
    assert (same["difference"], same["difference_lo"], same["retention"]) == (0, 0, 1)
    assert same["retention_lo"] == pytest.approx(1) and same["retention_hi"] == pytest.approx(1)
    guess = (rng.random(60) < 0.25).astype(float)
    assert np.isnan(retention(full, guess, tasks, np.full(60, 0.25), 0.95)["retention"])
    assert np.isnan(retention(full, np.zeros(60), tasks, np.zeros(60), 0.95)["retention"])


def test_intervals_of_retention_cover():
    rng = np.random.default_rng(1)
    hits = {"difference": 0, "retention": 0}
    for _ in range(400):
        hard = np.repeat([0.9, 0.5], 40)
        reference = (rng.random(80) < hard).astype(float)
        own = reference * (rng.random(80) < 0.6)  # keeps 0.6 of it
        found = retention(own, reference, ["a"] * 40 + ["b"] * 40, np.zeros(80), 0.9)
        hits["difference"] += found["difference_lo"] <= -0.4 * 0.7 <= found["difference_hi"]
        hits["retention"] += found["retention_lo"] <= 0.6 <= found["retention_hi"]
    assert all(0.84 <= count / 400 <= 0.95 for count in hits.values()), hits


def test_fieller_is_the_set_of_ratios_that_are_not_rejected():
    a, b, va, vb, cab, q = 0.4, 0.7, 0.003, 0.002, 0.001, 2.0
    for ratio in fieller(a, b, va, vb, cab, q):
        assert abs(a - ratio * b) == pytest.approx(q * np.sqrt(va - 2 * ratio * cab + ratio**2 * vb))
    assert np.isnan(fieller(0.1, 0.05, 0.003, 0.002, 0.0, 2.0)).all()


def world(rng, agree):
    """256 placements whose accuracy follows their likelihood to a share; right answers are coins of that accuracy."""
    cost = np.array([sum({"F": 1, "S": 0.48, "K": 0.21, "G": 0.14}[c] for c in p) for p in PLACEMENTS])
    own = rng.normal(size=len(PLACEMENTS))
    quality = 0.3 * cost + 0.3 * own
    other = rng.normal(size=len(PLACEMENTS))
    accuracy = 1 / (1 + np.exp(-(0.8 * (cost - 2) + 1.2 * (agree * own + np.sqrt(1 - agree**2) * other))))
    traces = scores((quality[None, :, None] + 0.2 * rng.normal(size=(1, len(PLACEMENTS), 40))), ["t"] * 40, prefix="t")
    right = (rng.random((1, len(PLACEMENTS), 120)) < accuracy[None, :, None]).astype(float)
    return traces, scores(right, ["needle"] * 60 + ["repeat"] * 60), accuracy


@pytest.mark.parametrize("agree", [1.0, 0.5, 0.0])
def test_the_proxy_finds_the_correlation_that_is_there(agree):
    traces, accuracy, truth = world(np.random.default_rng(3), agree)
    asked = pd.DataFrame({"item": accuracy.items, "task": accuracy.tasks, "chance": 0.0, "length": 0, "depth": np.nan})
    evaluation = Evaluation("made", None, accuracy, None, None, asked)
    table = proxy_table(traces, evaluation, ENDPOINT)
    assert set(table["target"]) == {"all", "needle", "repeat"} and set(table["likelihood"]) == {"traces"}
    bands = table[(table["target"] == "all") & ~table["whole"]]
    assert (bands["n_placements"] >= 8).all() and len(bands) >= 3
    weighted = np.average(bands["linear"], weights=bands["n_placements"])
    assert abs(weighted - agree) < 0.17, bands[["band_lo", "linear", "linear_lo", "linear_hi"]]
    if agree == 1:
        assert (bands["regret_share"].dropna() < 0.3).all()
    if agree == 0:
        assert np.nanmean(bands["regret_share"]) > 0.5


def test_other_items_are_dealt_into_groups_that_keep_the_means():
    rng = np.random.default_rng(0)
    x = scores(rng.normal(size=(1, 256, 12)), ["a"] * 6 + ["b"] * 6, prefix="x")
    y = scores(rng.normal(size=(1, 256, 24)), ["a"] * 12 + ["b"] * 12)
    pair = side_by_side(x, y, rng)
    assert pair.tasks == ["a"] * 6 + ["b"] * 6
    np.testing.assert_allclose(pair.quality[0].mean(axis=1), x.quality[0].mean(axis=1))
    np.testing.assert_allclose(pair.quality[1].mean(axis=1), y.quality[0].mean(axis=1))
    assert side_by_side(x, y.part(placements=PLACEMENTS[:5]), rng) is None


@pytest.fixture
def run(tmp_path):
    """A run whose evaluation has lengths and depths, two checkpoints and a teacher."""
    rng = np.random.default_rng(5)
    run = tmp_path / "results" / "made" / "local-s1-x"
    traces, accuracy, _ = world(rng, 0.8)
    folder = run / "evaluation" / "retrieval"

    def write(path, made, step, score):
        n = len(made.items)
        frame = pd.DataFrame({"scale": "made", "run": "local-s1-x", "seed": 1, "step": step, "tokens": 100 * step,
                              "placement": np.repeat(made.placements, n), "item": made.items * len(made.placements),
                              "task": made.tasks * len(made.placements)})  # fmt: skip
        values = made.quality[0].ravel()
        frame = frame.assign(score=values) if score else frame.assign(logp=np.minimum(values - 3, 0), num_tokens=1)
        write_part(frame, path / "scores" / f"step-{step:06d}" / "part-0.parquet")

    for step in (0, 10):
        write(run, traces, step, False)
        write(folder, accuracy, step, True)
    write(folder / "teacher", accuracy.part(placements=PLACEMENTS[:1]), 0, True)
    n = np.arange(120)
    pd.DataFrame({"item": accuracy.items, "task": accuracy.tasks, "prompt": [[1]] * 120, "answer": [[2]] * 120, "chance": 0.0,
                  "length": np.where(n % 2, 128, 256), "depth": (n % 3) / 2}).to_parquet(folder / "questions.parquet")  # fmt: skip
    (folder / "wanted.json").write_text(json.dumps({"steps": [0, 10], "items": accuracy.items}))
    (run / "presets.yaml").write_text(yaml.safe_dump({"presets": {"loglik-2": {"placement": "FSKG"}}}))
    return run


def test_the_command_writes_tables_figures_and_the_paragraph(run, capsys):
    assert main([str(run)]) == 0
    folder = run / "evaluation" / "retrieval"
    said = capsys.readouterr().out
    assert "Within cost bands" in said and "Choosing by likelihood there loses, against" in said
    for name in ("accuracy", "length_and_depth", "proxy"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 10_000
    kept = pd.read_csv(folder / "tables" / "retention.csv")
    assert set(kept["name"]) == {"all-FA", "loglik-2", "all-S", "all-K", "all-G"} and set(kept["against"]) == {"all-FA", "teacher"}
    assert (kept[(kept["name"] == "all-FA") & (kept["against"] == "all-FA")]["retention"] == 1).all()
    assert set(pd.read_csv(folder / "tables" / "proxy.csv")["step"]) == {0, 10}
    text = (folder / "evaluation.md").read_text()
    assert not re.search(r"\bnan\b", text)
    (evaluation,) = load_evaluations(run)
    assert len(evaluation.teacher) == 120


def test_presets_and_reports_by_accuracy(run, capsys):
    assert presets.main([str(run), "--objective", "retrieval"]) == 0
    out = capsys.readouterr().out
    assert "retrieval-2" in out and "by likelihood" in out
    folder = run / "evaluation" / "retrieval"
    document = yaml.safe_load((folder / "presets.yaml").read_text())
    assert "questions of retrieval" in document["provenance"]["objective"]
    scored = load_scores(folder)
    means = dict(zip(scored.placements, scored.quality[-1].mean(axis=1), strict=True))
    for entry in document["presets"].values():
        assert entry["retention"]["value"] == pytest.approx(means[entry["placement"]] / means["FFFF"], abs=1e-5)
    assert presets.main([str(run), "--objective", "recall"]) == 1
    assert "has no such evaluation (retrieval)" in capsys.readouterr().err
    assert report.main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "in score" in text and "nats/token" not in text and (folder / "tables" / "stability.csv").is_file()


def test_a_run_without_an_evaluation_is_one_line(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert main([str(tmp_path / "run")]) == 1
    assert "has no evaluation: run python -m experiments.evaluate" in capsys.readouterr().err
