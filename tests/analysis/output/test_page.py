"""report.html: what it holds, and what a real browser makes of it."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.input.provenance import about, losses
from analysis.output.page import MOST, page_data, write_page
from analysis.stability.pareto import nondominated

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VERDICT = pd.DataFrame({"cost": ["1–2"], "verdict": ["🟢 settled"]})


def held(path):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)[1])


@pytest.fixture
def page(scores, tmp_path):
    path = tmp_path / "report.html"
    write_page(page_data(scores, {}, "Title </script><b>&", ["Teacher: a."], VERDICT, ["In words."], 0.95), path)
    return path


def test_the_page_holds_the_scores(scores, page):
    data = held(page)
    mean = scores.quality.mean(axis=2)
    S, P, I = scores.quality.shape
    assert data["placements"] == scores.placements and data["steps"] == scores.steps.tolist() and data["title"] == "Title </script><b>&"
    np.testing.assert_allclose(data["quality"], mean, atol=6e-5)
    low, high = stats.ttest_1samp(scores.quality[2, 5], 0).confidence_interval(0.95)
    assert data["half"][2][5] == pytest.approx((high - low) / 2, abs=6e-5)
    front = nondominated(scores.cost, mean)
    for s in range(S):
        assert sorted(data["frontier"][s]) == np.flatnonzero(front[s]).tolist()
        assert np.all(np.diff(np.array(data["cost"])[data["frontier"][s]]) >= 0)
    assert [t["name"] for t in data["tasks"]] == ["task recall", "task local", "task state"]
    np.testing.assert_allclose(np.average([t["quality"] for t in data["tasks"]], axis=0, weights=[I / 3] * 3), mean, atol=1e-3)


def test_differences_are_paired_with_all_attention(scores):
    full = len(scores.placements[0]) * "F"
    data = page_data(scores, {}, "t", [], VERDICT, [], 0.95)
    assert (data["ahead"] is not None) == (full in scores.placements)
    if data["ahead"]:
        gap = scores.quality - scores.quality[:, [scores.placements.index(full)]]
        np.testing.assert_allclose(data["ahead"], gap.mean(axis=2), atol=6e-5)


def test_a_large_run_is_thinned_but_keeps_its_frontiers(simulate):
    large = simulate(np.random.default_rng(0), layers=6, n_placements=MOST + 500, n_items=4, steps=(0, 10))
    data = page_data(large, {}, "t", [], VERDICT, [], 0.95)
    assert MOST <= len(data["placements"]) < MOST + 500 and "random sample" in data["note"]
    front = nondominated(large.cost, large.quality.mean(axis=2))
    assert [len(members) for members in data["frontier"]] == front.sum(axis=1).tolist()
    assert {large.placements[p] for p in np.flatnonzero(front[-1])} == {data["placements"][p] for p in data["frontier"][-1]}


def test_the_page_asks_no_network(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe)[^>]*\s(src|href)=", text) and "/*PLOTLY*/" not in text and "/*DATA*/" not in text


def browsed(path, script, tmp_path):
    """A function that gives the text of an element by its id, after the script ran in the page."""
    tried = tmp_path / "tried.html"
    caught = "<script>window.onerror = message => { document.documentElement.dataset.failed = message; };</script>"
    text = path.read_text(encoding="utf-8").replace("<head>", "<head>" + caught, 1)
    tried.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--window-size=1280,1000", "--dump-dom"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    dom = subprocess.run([CHROMIUM, *options, tried.as_uri()], capture_output=True, text=True, timeout=240).stdout
    assert (failed := re.search(r'data-failed="([^"]*)"', dom)) is None, failed[1]
    body = dom[dom.rindex("<h1 id=") :]

    def text_of(key):
        inside = re.search(rf'id="{key}"[^>]*>(.*?)</(?:h1|div|output|p)>', body, re.S)[1]
        return html.unescape(re.sub(r"<[^>]+>", "", inside))

    return text_of


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH: the page cannot be tried in a browser")
def test_a_reader_moves_over_the_frontier_and_through_training(scores, page, tmp_path):
    data = held(page)
    pointed, step = data["frontier"][2][0], 2
    seen = browsed(page, f"""
        at("slider").value = {step}; at("slider").dispatchEvent(new Event("input"));
        at("frontier").emit("plotly_hover", {{points: [{{customdata: {pointed}}}]}});
    """, tmp_path)  # fmt: skip
    letters = data["placements"][pointed]
    assert seen("title") == "Title </script><b>&" and "settled" in seen("verdict")
    assert seen("strip") == "".join(f"{letter}{layer + 1}" for layer, letter in enumerate(letters))
    value, half = data["quality"][step][pointed], data["half"][step][pointed]
    assert f"{value:.3f} ({value - half:.3f} to {value + half:.3f})" in seen("scores") and f"step {data['steps'][step]}" in seen("when")
    moved = browsed(page, f"""
        at("frontier").emit("plotly_click", {{points: [{{customdata: {data["frontier"][-1][0]}}}]}});
        at("frontier").emit("plotly_hover", {{points: [{{customdata: {data["frontier"][-1][-1]}}}]}});
        at("dearer").click();
    """, tmp_path)  # fmt: skip
    nearest = next(p for p in data["frontier"][-1] if data["cost"][p] > data["cost"][data["frontier"][-1][0]])
    assert data["placements"][nearest] in moved("name")  # a kept placement ignores the mouse, the buttons walk on from it


def test_first_lines_say_what_the_folder_says(scores, run_dir, tmp_path):
    path = run_dir / "manifest.json"
    path.write_text(json.dumps({"trained_parameters": 2_000_000, "teacher": {"source": "made up", "sha256": "0123456789abcdef"},
                                "data": {"train": "fedcba9876543210"}}))  # fmt: skip
    (run_dir / "config.yaml").write_text("distill: {sampler: local}\ndata: {kind: synthetic, train: 64, length: 8, tasks: [recall]}\n")
    lines = about(run_dir, scores)
    assert lines == [
        "Teacher: made up (sha256 0123456789ab).", "Data: synthetic (recall) (sha256 fedcba987654), 64 training sequences of 8 tokens.",
        "Sampler: local.",
        f"Training: {scores.tokens[-1]:,} tokens, {scores.tokens[-1] / 2e6:.3g} per trained parameter (there are 2,000,000).",
    ]  # fmt: skip
    assert about(tmp_path / "scores.csv", scores) == []


def test_losses_survive_a_kill_and_name_a_bad_line(run_dir):
    path = run_dir / "metrics.jsonl"
    rows = [{"step": s, "tokens": 10 * s + 10, "loss": 3.0 - s} for s in (0, 1, 2, 1, 2)]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 3, "tok')
    assert losses(run_dir)["step"].tolist() == [0, 1, 2] and losses(run_dir)["loss"].tolist() == [3.0, 2.0, 1.0]
    path.write_text('{"step": 0}\n' + json.dumps(rows[0]) + "\n")
    with pytest.raises(ValueError, match="line 1 holds no step, tokens and loss"):
        losses(run_dir)
    path.unlink()
    assert losses(run_dir).empty
