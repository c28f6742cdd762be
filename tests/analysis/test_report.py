import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import bootstrap

from analysis import report
from analysis.bands import bands_in
from analysis.input.runs import describe, noted
from analysis.output import comparison_report, words
from analysis.stability import checkpoints, load_endpoints

FILES = {
    "tables": ["frontier", "pareto_drift", "published", "stability", "stability_tasks", "tau_matrix", "time_to_stability", "top_ranks"],
    "figures": ["frontier_kept", "frontier_layers", "pareto_drift", "regret", "resolution", "stability", "tau_matrix", "top_ranks"],
}
CONTRACT = [
    "run",
    "step",
    "tokens",
    "band_lo",
    "band_hi",
    "n_placements",
    "n_items",
    "tau",
    "tau_lo",
    "tau_hi",
    "tau_cross",
    "ceiling",
    "ratio",
    "ratio_lo",
    "ratio_hi",
    "regret",
    "regret_lo",
    "regret_hi",
    "decision_accuracy",
    "topk_overlap",
]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Endpoints with two bands and few resamples."""
    path = tmp_path_factory.mktemp("conf") / "quick.yaml"
    path.write_text(yaml.safe_dump({"bands": [0.14, 0.4, 1.0], "resamples": 50, "halves": 2, "groups": 8}))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick, write_run, simulate):
    """Two runs of different depth, reported and compared by the command itself."""
    root = tmp_path_factory.mktemp("work")
    small = simulate(np.random.default_rng(0), n_placements=60, n_items=16, steps=(0, 10, 100, 1000), scale="small", run="run-s")
    deep = simulate(np.random.default_rng(1), layers=5, n_placements=80, n_items=16, steps=(0, 30, 300), scale="deep", run="run-d", seed=1)
    write_run(small, root / "results")
    write_run(deep, root / "results", trained_parameters=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert report.main(["--endpoints", str(quick)]) == 0
    return root / "results"


def test_every_file_is_there(finished):
    for run in ("small/run-s", "deep/run-d"):
        assert sorted(p.stem for p in (finished / run / "tables").iterdir()) == FILES["tables"]
        names = sorted(p.name for p in (finished / run / "figures").iterdir())
        assert names == sorted(f"{name}.{suffix}" for name in FILES["figures"] for suffix in ("pdf", "png"))
        text = (finished / run / "report.md").read_text()
        assert all(f"figures/{name}.png" in text for name in FILES["figures"])
        assert max(line.count("|") for line in text.splitlines()) <= 11, "a table that no one can read"
    assert not list(finished.rglob("*.tmp"))


def test_tables_keep_the_contract(finished):
    tables = finished / "small" / "run-s" / "tables"
    stability = pd.read_csv(tables / "stability.csv")
    assert list(stability.columns[: len(CONTRACT)]) == CONTRACT and len(stability) == 4 * 3
    times = pd.read_csv(tables / "time_to_stability.csv")
    assert list(times.columns[:8]) == ["run", "band_lo", "band_hi", "threshold", "tokens", "tokens_lo", "tokens_hi", "reached"]
    tau = pd.read_csv(tables / "tau_matrix.csv")
    whole = tau[tau["n_placements"] == 60].query("step_b == 1000")
    np.testing.assert_allclose(whole["tau"], stability[stability["n_placements"] == 60]["tau"], atol=1e-8)
    inside = tau.query("n_placements < 60").groupby(["band_lo"])["n_placements"].first()
    assert inside.sum() == 60  # the bands share out all placements, none twice
    ranks = pd.read_csv(tables / "top_ranks.csv")
    final = ranks[ranks["step"] == 1000]
    assert (final["rank"] == final["final_rank"]).all() and (ranks["rank"] <= ranks["n_placements"]).all()


def test_report_starts_with_the_verdict(finished):
    for run, bands in (("small/run-s", ("0.56–1.6", "1.6–4")), ("deep/run-d", ("0.7–2", "2–5"))):
        lines = (finished / run / "report.md").read_text().splitlines()
        assert lines[0].startswith("# Is the ranking settled?")
        if run == "small/run-s":  # only this one has a manifest
            assert lines[2] == "Training: 4,096,000 tokens, 41 per trained parameter (there are 100,000)."
            del lines[2:4]
        assert lines[2].startswith("| cost | placements | endpoint | verdict |") and lines[4].startswith(f"| {bands[0]} |")
        lines = lines[[line.startswith("- ") for line in lines].index(True) :]
        for line, band in zip(lines[:2], bands, strict=True):
            assert line.startswith(f"- In cost band {band} ")
        assert lines[2].startswith("- Over the whole cost range") and lines[3].startswith("- Frontier: freezing it at 0 tokens")
        assert "## Warnings" in lines[5] and "One training seed" in lines[7] and any("Only 16 items" in line for line in lines)


def test_scores_that_end_before_the_training_are_told(tmp_path):
    its = {"distill": {"sampler": "local", "steps": 100}, "sft": {"steps": 200}}
    for stage, last, told in (("distill", 50, True), ("distill", 100, False), ("cooled", 112, False), ("sft", 100, True)):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(its | {"stage": stage}))
        assert [f"end at step {last}" in line for line in noted(tmp_path, last)] == [True] * told


def test_comparison(finished):
    tables = finished / "comparison" / "tables"
    side = pd.read_csv(tables / "comparison.csv")
    assert set(side["run"]) == {"run-s", "run-d"} and side.groupby("run")["share_of_training"].max().eq(1).all()
    assert side.groupby("run")["tokens_per_parameter"].max().loc["run-s"] == pytest.approx(1000 * 4096 / 100_000)
    assert side[side["run"] == "run-d"]["tokens_per_parameter"].isna().all()
    transfer = pd.read_csv(tables / "transfer.csv")
    assert set(zip(transfer["source"], transfer["target"], strict=True)) == {("run-s", "run-d"), ("run-d", "run-s")}
    text = (finished / "comparison" / "report.md").read_text()
    lines = text.splitlines()
    assert lines[2].startswith("| scale | run |")
    assert sorted(line.split(" | ")[1] for line in lines[4:6]) == ["run-d", "run-s"] and all(
        "not enough data" in line for line in lines[4:6]
    )
    last = transfer.groupby(["source", "target"]).last().loc[("run-s", "run-d")]
    row = next(line for line in lines if line.startswith("| small run-s |"))
    assert f"| {last['n_matched']:.0f} | {last['accuracy']:.0%} ({last['lo']:.0%} to {last['hi']:.0%}) |" in row
    for name in ("scales_share_of_training", "scales_tokens_per_parameter"):
        assert (finished / "comparison" / "figures" / f"{name}.png").exists() and f"figures/{name}.png" in text


def test_again_gives_the_same_bytes(finished, quick, tmp_path):
    run = finished / "small" / "run-s"
    assert report.main([str(run), "--endpoints", str(quick), "--out", str(tmp_path)]) == 0
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(made) == 8 + 16 + 2
    for path in made:
        assert (tmp_path / path).read_bytes() == (run / path).read_bytes(), path


def test_one_checkpoint_has_a_frontier_and_no_stability(quick, write_run, simulate, tmp_path, capsys):
    alone = simulate(np.random.default_rng(2), n_placements=50, n_items=12, steps=(7,), scale="alone", run="run-a")
    run = write_run(alone, tmp_path)
    assert report.main([str(run), "--endpoints", str(quick)]) == 0
    assert sorted(p.name for p in (run / "tables").iterdir()) == ["behind.csv", "frontier.csv"]
    assert sorted(p.name for p in (run / "figures").iterdir()) == [
        "frontier.pdf",
        "frontier.png",
        "frontier_layers.pdf",
        "frontier_layers.png",
    ]
    text = (run / "report.md").read_text()
    assert text.startswith("# The frontier at one checkpoint") and "nothing can be said about stability" in text and "τ" not in text
    behind = pd.read_csv(run / "tables" / "behind.csv")
    mean = dict(zip(alone.placements, alone.quality[0].mean(axis=1), strict=True))
    np.testing.assert_allclose(behind["behind"], max(mean.values()) - behind["placement"].map(mean), atol=1e-8)
    best = behind.loc[behind["behind"].idxmin()]
    assert best["behind"] == best["behind_lo"] == best["behind_hi"] == 0
    assert (behind["behind_lo"] <= behind["behind"]).all() and (behind["behind"] >= 0).all()
    gap = alone.quality[0, alone.placements.index(best["placement"])] - alone.quality[0, alone.placements.index(behind["placement"][0])]
    interval = bootstrap((gap,), np.mean, method="percentile", random_state=0).confidence_interval
    np.testing.assert_allclose(
        behind.loc[0, ["behind_lo", "behind_hi"]].astype(float), interval, atol=0.35 * (interval.high - interval.low)
    )

    others = [
        write_run(simulate(np.random.default_rng(i), n_placements=30, n_items=12, steps=(0, 9), run=f"run-{i}"), tmp_path) for i in (3, 4)
    ]
    capsys.readouterr()
    assert report.main([str(run), *map(str, others), "--endpoints", str(quick), "--out", str(tmp_path / "both")]) == 0
    assert set(pd.read_csv(tmp_path / "both" / "tables" / "runs.csv")["run"]) == {"run-3", "run-4"}  # it has nothing to compare


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verdict": "settled", "reached": True, "tokens": 40960.0, "tokens_lo": 20000.0, "tokens_hi": np.inf},
         "In cost band 10–20 the ranking is **settled from 41k tokens** (95%: 20k to beyond the last checkpoint): at 41k tokens "
         "(10% of the training), differences above 0.01 nats/token are final (95%: 0.005 to 0.015); choosing then loses 0.02 (0.00 to "
         "0.04) of what choosing can gain (0.010 (0.000 to 0.020) nats/token); n = 50 placements, 30 items."),
        ({"verdict": "not settled"}, "In cost band 10–20 the ranking is **not settled** (resolution not settled, regret not settled): at "
         "123k tokens (30% of the training), differences above 0.01 nats/token are final (95%: 0.005 to 0.015)"),
        ({"verdict": "undecided"}, "**undecided** (resolution undecided, regret undecided)"),
        ({"verdict": "no data"}, "In cost band 10–20 **nothing can be said** (n = 50 placements, 30 items)."),
        ({"verdict": "not enough data"}, "there is **not enough data** for a verdict: n = 50 placements, 30 items, at least"),
        ({"verdict": "as settled as a rerun"}, "**as settled as a rerun**"),
        ({"verdict": "settled before training", "reached": True, "tokens": 0.0}, "**settled before training**, which is no evidence"),
    ],
)  # fmt: skip
def test_verdict_in_plain_words(quick, changes, said):
    time = {
        "band_lo": 10.0,
        "band_hi": 20.0,
        "threshold": 0.9,
        "tokens": np.nan,
        "tokens_lo": np.nan,
        "tokens_hi": np.inf,
        "reached": False,
    }
    rows = pd.DataFrame({
        "step": [0, 10, 30, 100], "tokens": [0, 40960, 122880, 409600], "band_lo": 10.0, "band_hi": 20.0, "n_placements": 50, "n_items": 30,
        "regret": 0.01, "regret_lo": 0.0, "regret_hi": 0.02, "resolution": 0.01, "resolution_lo": 0.005, "resolution_hi": 0.015,
        "regret_share": 0.02, "regret_share_lo": 0.0, "regret_share_hi": 0.04, "order": 0.9, "order_start": 0.5,
    })  # fmt: skip
    drift = pd.DataFrame({"tokens": [0, 1, 2], "loss": 0.1, "loss_lo": 0.0, "loss_hi": 0.2, "loss_random": 0.5, "shared_cross": 0.5,
                          "shared_ceiling": 0.8, "shared_random": 0.1})  # fmt: skip
    times = pd.DataFrame([time | changes | {"endpoint": endpoint} for endpoint in ("resolution", "regret")])
    lines = words.verdict({"stability": rows, "time_to_stability": times, "pareto_drift": drift}, load_endpoints(quick))
    assert said in lines[0] and len(lines) == 2
    assert (
        "costs 0.100 (0.000 to 0.200) nats/token" in lines[1] and "found on other items (noise ceiling 80%, random choice 10%)" in lines[1]
    )


def one_line_error(capsys, argv, message):
    assert report.main([str(a) for a in argv]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and message in captured.err, captured.err


def test_user_errors_are_one_line(capsys, tmp_path, monkeypatch, quick, simulate, frame_of, write_run, run_dir):
    monkeypatch.chdir(tmp_path / "results" / "simulated")
    one_line_error(capsys, [], "no run directory with scores under")
    one_line_error(capsys, ["absent"], "no run at")
    one_line_error(capsys, [run_dir, "--endpoints", "absent.yaml"], "no endpoints at absent.yaml")
    (tmp_path / "typo.yaml").write_text("treshold: 0.9\n")
    one_line_error(capsys, [run_dir, "--endpoints", tmp_path / "typo.yaml"], "treshold")
    single = frame_of(simulate(np.random.default_rng(0), n_items=1))
    single.to_parquet(tmp_path / "single.parquet")
    one_line_error(capsys, [tmp_path / "single.parquet"], "has one item")
    part = next(run_dir.glob("scores/*/*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    one_line_error(capsys, [run_dir], "delete it and run the sweep again")
    assert not (run_dir / "report.md").exists()


def test_two_runs_of_one_name_cannot_be_compared(capsys, tmp_path, quick, write_run, simulate):
    steps = (0, 100)
    runs = [write_run(simulate(np.random.default_rng(s), n_placements=20, n_items=6, steps=steps, scale=f"scale{s}"), tmp_path)
            for s in range(2)]  # fmt: skip
    one_line_error(capsys, [*runs, "--endpoints", quick, "--out", tmp_path / "comparison"], "two of the runs are called sim-0")


def test_bands_without_placements_are_left_out(quick, simulate):
    scores = simulate(np.random.default_rng(0), n_placements=60, n_items=8, steps=(0, 100))
    cheap = scores.cost < 1.5
    scores = type(scores)(**{**vars(scores), "placements": [p for p, c in zip(scores.placements, cheap, strict=True) if c],
                             "cost": scores.cost[cheap], "quality": scores.quality[:, cheap]})  # fmt: skip
    tables = checkpoints.analyse(scores, load_endpoints(quick))
    assert sorted(tables["stability"]["n_placements"].unique()) == [0, cheap.sum()]
    bands = bands_in(tables["stability"])
    matrices = checkpoints.mean_tau(tables["tau_matrix"], bands)
    assert [n for _, n in matrices.values()] == [cheap.sum()] * 2
    np.testing.assert_allclose(matrices["within cost bands"][0], matrices["whole cost range"][0])
    assert words.verdict(tables, load_endpoints(quick))[1].endswith("**nothing can be said** (n = 0 placements, 8 items).")


def test_seeds_are_summarised(quick, simulate):
    steps = (0, 100)
    runs = [simulate(np.random.default_rng(0), n_placements=40, n_items=8, steps=steps, run=f"sim-{s}", seed=s) for s in range(2)]
    described = pd.concat([describe(r, "absent") for r in runs], ignore_index=True)
    table, notes = comparison_report.seeds_of_scales(described, runs, load_endpoints(quick))
    assert notes == [] and table["kendall_w"].dropna().tolist() == pytest.approx([1.0] * table["kendall_w"].notna().sum())
    other = simulate(np.random.default_rng(0), n_placements=40, n_items=8, steps=(0, 50), run="sim-1", seed=1)
    table, notes = comparison_report.seeds_of_scales(described, [runs[0], other], load_endpoints(quick))
    assert table is None and "different steps" in notes[0]
    assert comparison_report.seeds_of_scales(described.iloc[:1], runs[:1], load_endpoints(quick)) == (None, [])
