"""Scores of other projects through the commands themselves: every format, letters and costs of their own, ties, and what is refused."""

import itertools
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import presets, report, search
from analysis.output import presets_report, style
from analysis.stability import load_endpoints, stability_table, time_to_stability
from analysis.table import load_runs, load_scores, write_part

OWN = {"A": 5.0, "B": 2.5, "C": 1.333, "D": 0.7}
"""Costs in another unit; 1.333 lies on no grid of 0.01."""

LARGE = {0: 0, 10: 2**63 - 1, 100: 2 - 2**63}
"""Tokens that fall, by a difference that an integer of 64 bits does not hold."""


@pytest.fixture
def quick(tmp_path):
    path = tmp_path / "quick.yaml"
    path.write_text("bands: [0.14, 0.48, 1.0]\nresamples: 20\nhalves: 2\ngroups: 4\n")
    return str(path)


@pytest.fixture
def frame(simulate, frame_of):
    return frame_of(simulate(np.random.default_rng(0), n_placements=60, n_items=8, steps=(0, 10, 100)))


@pytest.fixture
def write(tmp_path):
    def written(frame, name="scores.csv", folder="own"):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        if ".jsonl" in name:
            frame.to_json(path, orient="records", lines=True)
        elif ".parquet" in name:
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
        return path

    return written


def own_letters(frame):
    return frame.assign(placement=frame["placement"].str.translate(str.maketrans("FSKG", "ABCD")))


def cost_of(placement):
    return sum(OWN[letter] for letter in placement)


def one_line(capsys, *words):
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and all(word in said for word in words), said


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_scores(name, frame, write):
    whole, numbered = load_scores(write(frame)), frame.assign(item=frame["item"].str[-3:].astype(int))
    loaded = load_scores(write(numbered, name))
    np.testing.assert_allclose(loaded.quality, whole.quality, rtol=1e-9)  # pandas writes ten digits of JSON
    assert loaded.placements == whole.placements and loaded.tasks == whole.tasks
    assert loaded.items == sorted(map(str, range(8))) if "csv" not in name and "tsv" not in name else len(loaded.items) == 8


def test_files_of_one_folder_and_runs_of_one_file_keep_their_reports(frame, write, quick, tmp_path):
    both = pd.concat([frame, frame.assign(run="other/2", seed=1)])
    files = [write(both, "both.csv"), write(frame.assign(run="alone"), "alone.csv.gz")]
    assert [scores.run for scores in load_runs(files[0])] == ["other/2", "sim-0"]
    assert report.main([*map(str, files), "--endpoints", quick, "--out", str(tmp_path / "compared")]) == 0
    assert presets.main([*map(str, files), "--endpoints", quick]) == 0
    for folder in ("both/other_2", "both/sim-0", "alone"):
        assert (tmp_path / "own" / folder / "report.md").exists() and (tmp_path / "own" / folder / "presets.yaml").exists()
    assert (tmp_path / "compared" / "report.md").exists() and not (tmp_path / "own" / "report.md").exists()


def test_files_that_differ_in_format_alone_keep_their_reports(frame, write, quick, tmp_path):
    files = [write(frame, "a.csv"), write(frame.assign(run="second"), "a.tsv")]
    assert report.main([*map(str, files), "--endpoints", quick, "--out", str(tmp_path / "compared")]) == 0
    assert (tmp_path / "own" / "a-csv" / "report.md").exists() and (tmp_path / "own" / "a-tsv" / "report.md").exists()


def test_a_file_alone_has_its_report_beside_it(frame, write, quick, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.csv").write_text("day,mood\n1,good\n")
    assert report.main([str(write(frame)), "--endpoints", quick]) == 0
    assert (tmp_path / "own" / "report.md").exists()


@pytest.mark.parametrize("how", ["column", "placements.parquet", "by mixer", "by placement"])
def test_own_costs_hold_in_report_presets_and_optimiser(how, frame, write, quick, tmp_path, capsys):
    frame = own_letters(frame)
    names = sorted(frame["placement"].unique())
    table = pd.DataFrame({"placement": names, "source": "own", "cost": list(map(cost_of, names))})
    costs = []
    if how == "column":
        frame["cost"] = frame["placement"].map(cost_of)
    path = write(frame)
    if how == "placements.parquet":
        table.to_parquet(path.parent / "placements.parquet")
    elif how == "by mixer":
        pd.DataFrame({"mixer": list(OWN), "cost": list(OWN.values())}).to_csv(tmp_path / "costs.csv", index=False)
        costs = ["--costs", str(tmp_path / "costs.csv")]
    elif how == "by placement":
        table.to_json(tmp_path / "costs.jsonl", orient="records", lines=True)
        costs = ["--costs", str(tmp_path / "costs.jsonl")]
    assert report.main([str(path), "--endpoints", quick, *costs]) == 0
    stability = pd.read_csv(path.parent / "tables" / "stability.csv")
    assert stability["band_hi"].max() == pytest.approx(4 * 5.0) and stability["n_placements"].max() == 60
    assert presets.main([str(path), "--endpoints", quick, "--budgets", "4", "6", "12", *costs]) == 0
    document = yaml.safe_load((path.parent / "presets.yaml").read_text())
    assert document["provenance"]["cost_coefficients"] == pytest.approx(OWN)
    for entry in document["presets"].values():
        assert entry["cost"] == pytest.approx(cost_of(entry["placement"])) and entry["cost"] <= entry["budget"] + 1e-9
    assert presets.main([str(path), "--endpoints", quick, "--budget", "6", *costs]) == 0
    assert float(capsys.readouterr().out.splitlines()[-1].split()[2]) <= 6


def test_searches_take_own_costs(write, quick, tmp_path):
    names = ["".join(p) for p in itertools.product("ABC", repeat=4)]
    rng = np.random.default_rng(0)
    quality = {n: -3 + 0.1 * cost_of(n) + rng.normal(0, 0.05) for n in names}
    rows = [("x", "r", 0, 0, 0, n, i, "t", quality[n] * 9, 9, cost_of(n)) for n in names for i in ("a", "b")]
    columns = ["scale", "run", "seed", "step", "tokens", "placement", "item", "task", "logp", "num_tokens", "cost"]
    path = write(pd.DataFrame(rows, columns=columns))
    assert search.main([str(path), "--evaluations", "30", "--repetitions", "2", "--endpoints", quick]) == 0
    table = pd.read_csv(path.parent / "tables" / "search_budgets.csv")
    assert table["budget"].between(4 * 1.333 - 1e-9, 20.05).all() and (table["regret"] >= 0).all()


def test_costs_that_cannot_be_used_are_one_line(frame, write, quick, tmp_path, capsys):
    path = write(own_letters(frame))
    assert report.main([str(path), "--endpoints", quick]) == presets.main([str(path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and said.count("unknown mixer A") == 2 and "--costs" in said
    (tmp_path / "costs.csv").write_text("mixer,cost\nA,1\nB,2\n")
    assert presets.main([str(path), "--costs", str(tmp_path / "costs.csv")]) == 1
    one_line(capsys, "costs.csv lacks mixer C")
    path = write(frame.assign(cost=1.0 + frame["placement"].str.count("F") ** 2))
    assert presets.main([str(path)]) == 1
    one_line(capsys, "no sum over mixers")
    assert report.main([str(path), "--endpoints", quick]) == 0  # ranking needs no more than the costs themselves
    for cost, line in ((-1.0, "costs must be positive"), (np.nan, "costs must be positive"), (np.arange(len(frame)) + 1, "several values")):
        capsys.readouterr()
        assert report.main([str(write(frame.assign(cost=cost))), "--endpoints", quick]) == 1
        one_line(capsys, line)


CHEAP = 1.92
TIES = {
    "all, always": lambda f: pd.Series(True, f.index),
    "all, at T": lambda f: f["step"] == 100,
    "all, before T": lambda f: f["step"] == 10,
    "a band": lambda f: f["cost"] < CHEAP - 1e-9,
}


@pytest.mark.parametrize("which", TIES)
def test_ties_are_no_ranking(which, frame, write, quick):
    """Neither settled nor undecided: where all placements score the same there is nothing to settle."""
    frame["cost"] = frame["placement"].map(lambda p: sum({"F": 1, "S": 0.48, "K": 0.21, "G": 0.14}[c] for c in p))
    tied = TIES[which](frame)
    path = write(frame.assign(logp=np.where(tied, -2.0 * frame["num_tokens"], frame["logp"])).drop(columns="cost"))
    endpoints = load_endpoints(quick)
    with pytest.warns(UserWarning, match="score the same at step"):
        table = stability_table(load_scores(path), endpoints)
    verdicts = time_to_stability(table, endpoints).set_index("band_lo")["verdict"]
    assert set(verdicts[verdicts.index < 1]) == {"no data"} if which != "a band" else verdicts.iloc[0] == "no data"
    assert report.main([str(path), "--endpoints", quick]) == presets.main([str(path)]) == 0
    assert "nan" not in (path.parent / "report.md").read_text().replace("dominant", "")


def test_what_cost_alone_says_is_no_ranking_within_a_band(frame, write, quick):
    cost = frame["placement"].map(lambda p: sum({"F": 1, "S": 0.48, "K": 0.21, "G": 0.14}[c] for c in p))
    path = write(frame.assign(logp=(-5 + 0.3 * cost) * frame["num_tokens"]))
    with pytest.warns(UserWarning, match="what their cost says"):
        table = stability_table(load_scores(path), load_endpoints(quick))
    verdicts = time_to_stability(table, load_endpoints(quick))["verdict"]
    assert list(verdicts[:2]) == ["no data"] * 2


def test_right_and_wrong_answers(frame, write, quick):
    scored = frame.drop(columns=["logp", "num_tokens"]).assign(score=(np.arange(len(frame)) % 3 == 0))
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        loaded = load_scores(write(scored if "parquet" in name else scored.astype({"score": int}), name))
        assert set(np.unique(loaded.quality)) == {0.0, 1.0}
    path = write(scored.astype({"score": int}), folder="alone")
    assert report.main([str(path), "--endpoints", quick]) == presets.main([str(path)]) == 0


@pytest.fixture
def fewer_worlds(monkeypatch):
    """The intervals of chosen optima, which nothing is asked of here, from 4 worlds in place of 48."""
    monkeypatch.setattr(presets_report, "optimum", partial(presets_report.optimum, worlds=4))


@pytest.fixture
def few(simulate, frame_of):
    """All 16 placements of F and G in four layers: presets of them take a second."""
    whole = frame_of(simulate(np.random.default_rng(0), n_placements=256, n_items=6, steps=(0, 10, 100)))
    return whole[~whole["placement"].str.contains("S|K")].reset_index(drop=True)


def shares(frame):
    """A score from 0 to 1 in place of the likelihood."""
    return frame.drop(columns=["logp", "num_tokens"]).assign(score=np.exp(frame["logp"] / frame["num_tokens"]))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_table_with_two_kinds_of_quality_is_asked_which_one_is_meant(name, frame, write, quick, capsys):
    path = write(frame.assign(score=0.5), name)
    assert report.main([str(path), "--endpoints", quick]) == presets.main([str(path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == said.count("has both columns score and logp, and quality is one of them: drop score, or drop logp") == 2
    assert load_scores(write(frame.assign(score=0.5).drop(columns=["logp", "num_tokens"]), name)).unit == "in score"


def test_a_run_of_two_kinds_of_quality_is_refused(frame, tmp_path):
    whole = frame[frame["step"] < 100], shares(frame[frame["step"] == 100])
    for part, rows in zip("ab", whole, strict=True):
        write_part(rows, tmp_path / "scores" / "step-0" / f"{part}.parquet")
    with pytest.raises(ValueError, match="rows with logp and rows with score: give each kind its own run"):
        load_scores(tmp_path)
    with pytest.raises(ValueError, match="both columns score and logp"):
        write_part(frame.assign(score=0.5), tmp_path / "c.parquet")


def test_searches_of_scores_speak_of_scores(write, quick, monkeypatch):
    rows = [("x", "r", 0, 0, 0, "".join(p), i, "t", p.count("F") / 2) for p in itertools.product("FG", repeat=2) for i in ("a", "b")]
    path = write(pd.DataFrame(rows, columns=["scale", "run", "seed", "step", "tokens", "placement", "item", "task", "score"]))
    regret = {"method": ["random"], "evaluations": [2], "repetitions": [1], "regret": [0.1], "regret_lo": [0.0], "regret_hi": [0.2]}
    found = [pd.DataFrame({"checkpoint": [0], **more, **regret}) for more in ({}, {"budget": [1.0]})]
    monkeypatch.setattr(search, "truth_experiment", lambda *_: found)  # a real one takes a minute
    labels = []
    monkeypatch.setattr(style, "save", lambda fig, path: labels.extend(ax.get_ylabel() for ax in fig.axes))
    assert search.main([str(path), "--evaluations", "2", "--endpoints", quick]) == 0
    assert len(labels) == 2 and all("in score" in label for label in labels)


def test_presets_of_scores_speak_of_scores(few, write, quick, fewer_worlds, monkeypatch):
    labels = {}
    monkeypatch.setattr(style, "save", lambda fig, path: labels.setdefault(path.name, [ax.get_ylabel() for ax in fig.axes]))
    for table, unit, other in ((few, "nats/token", "in score"), (shares(few), "in score", "nats/token")):
        labels.clear()
        path = write(table, folder=unit[:2])
        assert presets.main([str(path), "--endpoints", quick, "--budgets", "1", "2"]) == 0
        told = {name: sum(unit in label for label in its) for name, its in labels.items()}
        assert told == {"presets": 1, "preset_drift": 1, "surrogate_coefficients": 0}
        assert not any(other in label for its in labels.values() for label in its)


def test_presets_of_scores_are_called_so_and_keep_a_share_of_the_score(few, write, quick, fewer_worlds):
    path = write(shares(few))
    assert presets.main([str(path), "--endpoints", quick, "--budgets", "2"]) == 0
    document = yaml.safe_load((path.parent / "presets.yaml").read_text())
    assert document["provenance"]["objective"] == "mean score over items, higher is better"
    ((name, entry),) = document["presets"].items()
    scores = load_scores(path)
    quality = dict(zip(scores.placements, scores.quality[-1].mean(axis=1), strict=True))
    assert name == "score-2" and entry["measured"]
    assert entry["retention"]["value"] == pytest.approx(quality[entry["placement"]] / quality["FFFF"], abs=1e-5)


def test_scores_and_likelihoods_are_not_compared(few, write, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "save", lambda fig, path: None)  # the texts are looked at

    def named(table, run):
        return table.assign(run=run, seed=int(run[-1]))

    files = [write(pd.concat([named(few, "a1"), named(few, "a2")]), "likely.csv"),
             write(pd.concat([named(shares(few), "b1"), named(shares(few), "b2")]), "scored.csv")]  # fmt: skip
    assert report.main([*map(str, files), "--endpoints", quick, "--out", str(tmp_path / "compared")]) == 0
    likely, scored = ((tmp_path / "compared" / kind / "report.md").read_text() for kind in (".", "-score"))
    assert "a1" in likely and "b1" not in likely and "in score" not in likely
    assert "b1" in scored and "a1" not in scored and "in score" in scored and "nats/token" not in scored


@pytest.mark.parametrize("tokens", [0, -1])
def test_tokens_grow(tokens, frame, write, quick, capsys):
    assert report.main([str(write(frame.assign(tokens=tokens * frame["step"]))), "--endpoints", quick]) == 1
    one_line(capsys, "tokens at step 10")


def test_one_run_name_has_one_seed(frame, write, quick, capsys):
    assert report.main([str(write(pd.concat([frame, frame.assign(seed=5)]))), "--endpoints", quick]) == 1
    one_line(capsys, "mixes the seeds 0, 5", "own name in column run")


def test_mixed_types_are_one_line(frame, write, quick, capsys, tmp_path):
    for name in ("a.csv", "a.jsonl"):
        mixed = frame.astype({"logp": object})
        mixed.loc[3, "logp"] = "low"
        assert report.main([str(write(mixed, name, folder=name)), "--endpoints", quick]) == 1
        one_line(capsys, "cannot be read", "correct the file")
    (tmp_path / "broken.jsonl").write_text(json.dumps({"run": 1}) + "\n{")
    assert report.main([str(tmp_path / "broken.jsonl"), "--endpoints", quick]) == 1
    one_line(capsys, "broken.jsonl")


@pytest.mark.parametrize(("written", "name", "said"), [
    (lambda f, p: f.to_csv(p, index=False, sep=";"), "a.csv", "it has 'scale;run;"),
    (lambda f, p: f.to_csv(p, index=False, sep=";"), "a.csv", "separate columns by commas in a .csv"),
    (lambda f, p: f.rename(columns=str.upper).to_csv(p, index=False), "a.csv", "lacks the columns scale, run,"),
    (lambda f, p: f.rename(columns=str.upper).to_csv(p, index=False), "a.csv", "it has 'SCALE', 'RUN'"),
    (lambda f, p: f.to_csv(p, index=False, encoding="utf-16"), "a.csv", "is no text in UTF-8: save it as UTF-8"),
    (lambda f, p: pd.concat([f, f[["logp"]]], axis=1).to_csv(p, index=False), "a.csv", "has the column logp twice: keep one"),
    (lambda f, p: f.to_csv(p, index=False, compression="gzip"), "a.csv", "is gzipped: call it a.csv.gz"),
    (lambda f, p: f.to_parquet(p) or p.write_bytes(p.read_bytes()[:-20]), "a.parquet", "write it again"),
    (lambda f, p: f.assign(logp=f["logp"] * 1e120).to_csv(p, index=False), "a.csv", "values beyond 1e+100"),
    (lambda f, p: f.assign(step=f["step"] - 10).to_csv(p, index=False), "a.csv", "has step -10: steps are counted from 0"),
    (lambda f, p: f.assign(tokens=f["step"].map(LARGE)).to_csv(p, index=False), "a.csv", "fewer tokens at step 100"),
    (lambda f, p: f.assign(placement=f["placement"] + " ").to_csv(p, index=False), "a.csv", "has unknown mixer ' ', whose cost"),
])  # fmt: skip
def test_tables_as_people_write_them_are_told_what_to_mend(frame, tmp_path, written, name, said):
    written(frame, tmp_path / name)
    with pytest.raises(ValueError) as refused:
        load_runs(tmp_path / name)
    assert said in str(refused.value) and name in str(refused.value) or "whose cost" in said
    assert "\n" not in str(refused.value) and "sweep" not in str(refused.value)


def test_a_folder_of_tables_is_told_from_a_run(frame, write):
    file = write(frame, "mine.csv", "tables")
    with pytest.raises(ValueError, match=r"is no run directory, .*: give a file in it, such as .*mine.csv"):
        load_runs(file.parent)


def test_a_mark_of_byte_order_and_an_index_column_do_no_harm(frame, tmp_path):
    frame.to_csv(tmp_path / "a.csv", encoding="utf-8-sig")
    assert load_runs(tmp_path / "a.csv")[0].placements == sorted(set(frame["placement"]))
