"""The command on small runs: its tables, both engines, what continues, what is refused; retrieval against transformers."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.table import SCORED, load_scores
from experiments.data.synthetic import READ, WRITE
from experiments.data.traces import open_task
from experiments.evaluate import main
from experiments.evaluation import asking, opening, probes, verifiers
from experiments.evaluation.asking import PART
from experiments.evaluation.opening import whole
from experiments.evaluation.options import parse
from experiments.evaluation.questions import Question, read_questions
from experiments.evaluation.retrieval import questions
from experiments.faults.drill import ENVIRONMENT, ROOT
from experiments.overview import plan
from experiments.sweeping.placements import table
from supernet.checkpoint import load
from supernet.decoder import Supernet
from supernet.generate import generate
from supernet.initialise import initialise
from supernet.placement import Placement
from supernet.size import count_bytes
from supernet.teacher import load_teacher

EVERYTHING = ["".join(p) for p in itertools.product("FSKG", repeat=2)]


def call(*arguments, expect=0):
    assert main([str(a) for a in arguments]) == expect


def rows(folder):
    frame = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("scores/step-*/*.parquet"))])
    return frame.astype({"placement": str, "item": str, "task": str}).sort_values(["step", "placement", "item"], ignore_index=True)


def test_synthetic_tasks_of_all_placements_by_both_engines(synthetic, tmp_path, capsys):
    call(synthetic, "tasks=synthetic", "placements=exhaustive", "items=4", "steps=all")
    folder = synthetic / "evaluation" / "synthetic"
    accuracy, loglik = load_scores(folder), load_scores(folder / "loglik")
    assert accuracy.placements == loglik.placements == sorted(EVERYTHING)
    assert (list(accuracy.steps), list(accuracy.tokens)) == ([0, 5, 20], [0, 500, 2000])
    assert list(rows(folder).columns) == list(SCORED)
    assert set(np.unique(accuracy.quality)) <= {0.0, 1.0}
    call(synthetic, "tasks=synthetic", "placements=exhaustive", "items=4", "steps=all", "match=generate", f"out={tmp_path / 'decoded'}")
    pd.testing.assert_frame_equal(rows(folder), rows(tmp_path / "decoded" / "synthetic"))
    asked = {q.name: q for q in read_questions(folder / "questions.parquet")}
    model = load(synthetic / "checkpoints" / "step-000020").requires_grad_(False)
    for placement in ("FF", "SK"):
        for item in accuracy.items:
            q = asked[item]
            logits = model(q.prompt[None], placement)[0, -1]
            at = accuracy.placements.index(placement), accuracy.items.index(item)
            assert accuracy.quality[(-1, *at)] == (int(logits.argmax()) == int(q.answer))
            assert loglik.quality[(-1, *at)] == pytest.approx(float(logits.log_softmax(-1)[q.answer]), abs=1e-4)
    frozen = rows(folder / "teacher")  # F of this run never moved
    last = rows(folder).query("step == 20 and placement == 'FF'")
    assert frozen["score"].tolist() == last["score"].tolist()


def test_a_larger_request_extends_and_the_same_one_does_nothing(synthetic, capsys):
    call(synthetic, "tasks=synthetic", "placements=uniform", "items=3")
    folder = synthetic / "evaluation" / "synthetic"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    call(synthetic, "tasks=synthetic", "placements=uniform", "items=3")
    assert "complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    call(synthetic, "tasks=synthetic", "placements=presets,GS", "items=5")
    found = load_scores(folder)
    assert (found.placements, len(found.items)) == (["FF", "FK", "GG", "GS", "KK", "SS"], 15)
    assert len(rows(folder)) == 6 * 15 and not rows(folder).duplicated(["placement", "item"]).any()


def test_shards_and_a_kill_give_the_same_table(synthetic, tmp_path):
    options = ["tasks=synthetic", "placements=exhaustive", f"items={PART}", "memory_gib=0.05"]
    call(synthetic, *options, f"out={tmp_path / 'whole'}")
    for shard in (0, 1):
        call(synthetic, *options, f"out={tmp_path / 'shards'}", "shards=2", f"shard={shard}")
    command = [sys.executable, "-m", "experiments.evaluate", str(synthetic), *options, f"out={tmp_path / 'killed'}"]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "killed" / "synthetic"
    while process.poll() is None and not any(folder.glob("scores/*/*.parquet")):
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    call(synthetic, *options, f"out={tmp_path / 'killed'}")
    whole = rows(tmp_path / "whole" / "synthetic")
    for other in ("shards", "killed"):
        pd.testing.assert_frame_equal(whole, rows(tmp_path / other / "synthetic"))
        load_scores(tmp_path / other / "synthetic" / "loglik")


def test_all_fa_on_retrieval_says_what_transformers_says_of_the_teacher(language, tmp_path):
    import transformers

    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    asked = questions(tokenizer, [440, 520], [0.0, 0.5], ["repeat", "needle"], 1, seed=0)
    model = load(language / "checkpoints" / "step-000010")
    greedy = {}
    for q in asked:
        with torch.no_grad():
            out = hf.generate(q.prompt[None], attention_mask=torch.ones(1, len(q.prompt)), max_new_tokens=len(q.answer), do_sample=False,
                              eos_token_id=None, pad_token_id=0)  # fmt: skip
        greedy[q.name] = out[0, len(q.prompt) :]
    ours = generate(model.requires_grad_(False), [q.prompt for q in asked], ["FF"] * len(asked), 8)
    for q, tokens in zip(asked, ours, strict=True):
        assert tokens[: len(q.answer)].tolist() == greedy[q.name].tolist()
    # a random model never finds the value: the command is asked for what transformers says in half of the questions
    changed = [Question(q.name, q.task, q.prompt, greedy[q.name] if n % 2 else q.answer) for n, q in enumerate(asked)]
    expected = {q.name: float(n % 2) for n, q in enumerate(asked)}
    for match in ("engine", "generate"):
        frame = ask(language, changed, tmp_path / match, match)
        assert dict(zip(frame["item"], frame["score"], strict=True)) == expected


def test_streamed_and_whole_weights_give_the_same_tables(synthetic, tmp_path):
    options = ["tasks=synthetic", "placements=exhaustive", "items=3", "steps=5,20", "memory_gib=0.05"]
    call(synthetic, *options, f"out={tmp_path / 'whole'}")
    call(synthetic, *options, f"out={tmp_path / 'streamed'}", "stream=true")
    for below in (".", "loglik", "teacher", "teacher/loglik"):
        one, other = (rows(tmp_path / name / "synthetic" / below) for name in ("whole", "streamed"))
        assert len(one) == 9 * (1 if "teacher" in below else 2 * 16)
        pd.testing.assert_frame_equal(one, other, rtol=1e-6)


def test_weights_that_do_not_fit_are_told_before_they_are_read(synthetic, capsys, monkeypatch):
    taken = count_bytes(load(synthetic / "checkpoints" / "step-000020").config, torch.float32)
    monkeypatch.setattr(opening, "free_memory", lambda: taken - 1)
    monkeypatch.setattr(plan, "free_memory", lambda: taken - 1)
    call(synthetic, "tasks=synthetic", "placements=FF", "items=2", "--dry-run")
    assert re.search(r"memory: .* of weights, .* does not fit the 0.0 GiB", capsys.readouterr().out)
    call(synthetic, "tasks=synthetic", "placements=FF", "items=2", expect=1)
    error = capsys.readouterr().err.splitlines()[-1]  # behind the bars of progress
    assert re.search("error: the weights take .* of memory are free: stream=true holds one layer", error)
    monkeypatch.setattr(opening, "free_memory", lambda: taken + 1)
    call(synthetic, "tasks=synthetic", "placements=FF", "items=2")
    assert rows(synthetic / "evaluation" / "synthetic")["item"].nunique() == 6


def ask(run, asked, folder, match):
    told = asking.Asked("words", "run", 1, {10: 0}, lambda step: whole(load(run / "checkpoints" / "step-000010")))
    asking.ask(folder, told, table([(Placement("FF"), "preset")]), asked, parse([f"match={match}"]))
    return rows(folder)


@pytest.mark.parametrize("match", ["engine", "generate"])
def test_a_window_longer_than_the_text_gets_the_scores_of_all_fa(synthetic, tmp_path, match):
    teacher = load_teacher(next((tmp_path / ".cache" / "teachers").iterdir()))
    model = Supernet(teacher.config.replace(mixers="FSKG", window=64)).eval().requires_grad_(False)
    initialise(model, teacher)  # S starts as a copy of the teacher's attention, as F does
    told = asking.Asked("words", "run", 1, {0: 0}, lambda step: whole(model))
    folder, wanted = tmp_path / match, table([(Placement(p), "preset") for p in ("FF", "SS", "FS", "KK")])
    asking.ask(folder, told, wanted, probes.questions(48, 8, seed=0), parse([f"match={match}"]))
    for found, tolerance in ((load_scores(folder), 0.0), (load_scores(folder / "loglik"), 1e-5)):
        own = dict(zip(found.placements, found.quality[0], strict=True))
        np.testing.assert_allclose(own["SS"], own["FF"], atol=tolerance)
        np.testing.assert_allclose(own["FS"], own["FF"], atol=tolerance)
    assert not np.allclose(own["KK"], own["FF"], atol=1e-3)


def test_retrieval_prompts_hold_the_value_once_at_the_depth_and_fill_the_length(tmp_path, language):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    found = questions(tokenizer, [500, 900], [0.0, 0.5, 1.0], ["repeat", "needle"], 2, seed=3)
    more = questions(tokenizer, [900, 500], [1.0, 0.0, 0.5], ["needle", "repeat"], 3, seed=3)
    other = questions(tokenizer, [500], [0.5], ["repeat"], 1, seed=4)
    by_name = {q.name: q for q in more}
    assert all(torch.equal(q.prompt, by_name[q.name].prompt) for q in found)
    assert not torch.equal(other[0].answer, next(q for q in found if q.task == "repeat-500" and q.depth == 0.5).answer)
    for q in found:
        text, value = "".join(tokenizer.convert_ids_to_tokens(q.prompt)), "".join(tokenizer.convert_ids_to_tokens(q.answer)).strip()
        assert len(value) == 7 and text.count(value) == 1 and text.endswith("text is")
        assert q.length - 80 < len(q.prompt) <= q.length
        between = text.split("Memorize it.")[1].split("What is the")[0]
        assert abs(between.index(value) / len(between) - q.depth) < 0.35
        assert ("magic numbers for" in between.replace(value, "", 1).split(".")[0]) or q.task.startswith("repeat") or q.depth < 1


def test_lengths_beyond_the_model_are_left_out_and_nothing_but_such_is_refused(language, capsys):
    (path,) = (language.parents[2] / "hf").glob("tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 500}))
    ask = ["tasks=retrieval", "placements=FF", "items=1", "depths=0.5", "haystacks=repeat", "--dry-run"]
    call(language, *ask, "lengths=440,600")
    told = capsys.readouterr().out
    assert "lengths above the tokenizer's 500 are left out" in told and "x 1 questions" in told
    call(language, *ask, "lengths=600", expect=1)
    assert capsys.readouterr().err == "error: lengths is [600]: the tokenizer goes up to 500, give shorter ones\n"


def test_every_probe_has_the_answer_that_its_task_says():
    for q in probes.questions(96, 20, seed=1):
        tokens, answer = q.prompt.tolist(), int(q.answer)
        if q.task == "recall":
            assert answer == tokens[1 + tokens[1:].index(tokens[-1]) + 1]
        elif q.task == "state":
            written = [t for t in range(1, len(tokens) - 1, 2) if tokens[t] - WRITE[0] == tokens[-1] - READ[0]]
            assert answer == tokens[written[-1] + 1]
        else:
            assert answer in tokens


def test_reasoning_is_judged_by_its_verifier(language, tmp_path):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokenizer.decode = lambda tokens, **_: "".join(tokenizer.convert_ids_to_tokens(tokens))  # its own puts a blank behind every character
    found, judge = verifiers.questions(tokenizer, ["gcd"], 3, seed=0)
    again, _ = verifiers.questions(tokenizer, ["gcd"], 2, seed=0)
    assert [q.name for q in again] == [q.name for q in found[:2]]
    dataset = open_task("gcd", 300, 0)
    right = dataset[int(found[0].name.split("-")[-1])]["answer"]

    def say(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    assert judge(found[0], say(f"it is <answer>{right}</answer> surely")) == 1
    assert judge(found[0], say(f"first a guess\n{right}")) == 1
    assert judge(found[0], say("<answer>-1</answer>")) < 0.5
    call(language, "tasks=reasoning", "placements=uniform", "items=2", "new_tokens=4")
    assert load_scores(language / "evaluation" / "reasoning").quality.shape == (1, 4, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["tasks=retrieval"], "no tokenizer in .*: name its folder with tokenizer=FOLDER$"),
        (["tasks=synthetic", "match=generate", "stream=true"], "match=generate is decoded, which needs all of them .*: leave stream out"),
        (["tasks=synthetic,reasoning:gcd", "stream=true"], "tasks=reasoning:gcd is decoded"),
        (["tasks=needles"], "tasks has 'needles': choose from retrieval"),
        (["itms=3"], "unknown option itms: choose from tasks"),
        (["items=0"], "items is 0: give a positive number"),
        (["depths=2"], r"depths is \[2.0\]: give 0 to 1"),
        (["steps=7"], "steps has '7': choose from last, all, 0, 5, 20"),
        (["placements=FFZ"], "no preset 'FFZ'"),
        (["shards=2", "shard=2"], "shard is 2: give 0 to 1"),
        (["tasks=lm_eval"], "lm_eval:NAME"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(synthetic, capsys, options, says):
    call(synthetic, *options, expect=1)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(says, error), error


@pytest.mark.parametrize("name", ["wanted.json", "status.json"])
@pytest.mark.parametrize("content", ["[]", "{", "3"])
def test_records_that_hold_something_else_are_named_and_nothing_is_lost(synthetic, capsys, name, content):
    ask = ["tasks=synthetic", "placements=FF", "items=2"]
    call(synthetic, *ask)
    folder = synthetic / "evaluation" / "synthetic"
    before = rows(folder)
    (folder / name).write_text(content)
    call(synthetic, *ask, expect=1)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and f"{name} " in error and "delete it and run the same command again" in error
    (folder / name).unlink()
    call(synthetic, *ask)
    pd.testing.assert_frame_equal(rows(folder), before)


def test_a_dry_run_tells_and_writes_nothing(synthetic, capsys):
    call(synthetic, "tasks=synthetic", "placements=uniform", "items=2", "--dry-run")
    assert "4 placements x 6 questions" in capsys.readouterr().out
    assert not (synthetic / "evaluation").exists()
