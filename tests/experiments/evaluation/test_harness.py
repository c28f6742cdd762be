"""lm-eval on placements: its numbers against a plain forward, and an offline RULER task through the command."""

import pandas as pd
import pytest
import torch

pytest.importorskip("lm_eval")

from analysis.table import load_scores
from experiments.evaluate import main
from experiments.evaluation.harness import Placements, load_tasks
from supernet.checkpoint import load

LETTERS = ["FF", "SS", "KG"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def lm(language, tmp_path):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    return Placements(load(language / "checkpoints" / "step-000010").requires_grad_(False), tokenizer, LETTERS, most=6)


class Request:
    def __init__(self, *args):
        self.args = args


def test_likelihoods_are_those_of_a_plain_forward(lm):
    pairs = [("The grass is", " green"), ("a b", "c"), ("", "xyz"), ("1 + 1 =", " 2"), ("1 + 1 =", " 3")]
    for placement in LETTERS[::-1]:
        lm.placement = placement
        found = lm.loglikelihood([Request(*pair) for pair in pairs], disable_tqdm=True)
        for (context, continuation), (logp, greedy) in zip(pairs, found, strict=True):
            before, after = lm.tok_encode(context) or [lm.eot_token_id], lm.tok_encode(continuation)
            own = lm.model(torch.tensor([before + after]), placement)[0, len(before) - 1 : -1].log_softmax(-1)
            targets = torch.tensor(after)
            assert logp == pytest.approx(float(own.gather(1, targets[:, None]).sum()), abs=1e-4)
            assert greedy == bool((own.argmax(1) == targets).all())
        (whole,) = lm.loglikelihood_rolling([Request("abc")])
        assert whole == pytest.approx(lm.loglikelihood([Request("", "abc")], disable_tqdm=True)[0][0], abs=1e-4)
    assert len(lm.known) == 6  # one sweep for all placements


def test_text_is_greedy_and_ends_at_the_stop_string(lm):
    ((full,), text) = ([lm.generate_until([Request("One two", {"max_gen_toks": 5})])[0]], "One two")
    tokens = lm.tok_encode(text)
    with torch.no_grad():
        for _ in range(5):
            tokens.append(int(lm.model(torch.tensor([tokens]), "FF")[0, -1].argmax()))
    said = tokens[len(lm.tok_encode(text)) :]
    said = said[: said.index(lm.eot_token_id)] if lm.eot_token_id in said else said
    assert full == lm.tokenizer.decode(said, skip_special_tokens=True)
    if len(full) > 2:
        assert lm.generate_until([Request(text, {"max_gen_toks": 5, "until": [full[2]]})]) == [full.split(full[2])[0]]
    with pytest.raises(ValueError, match="samples its answers"):
        lm.generate_until([Request(text, {"do_sample": True, "temperature": 0.7})])


@pytest.mark.slow
def test_a_task_of_ruler_offline_through_the_command(language, capsys):
    options = ["tasks=lm_eval:niah_single_1", "placements=SS", "items=2", "lengths=600", "new_tokens=3"]
    assert main([str(language), *options]) == 0, capsys.readouterr().err
    folder = language / "evaluation" / "lm_eval-niah_single_1"
    scores = load_scores(folder)
    assert (scores.placements, set(scores.tasks), scores.quality.shape) == (["FF", "SS"], {"niah_single_1-600"}, (1, 2, 2))
    assert set(scores.quality.ravel()) <= {0.0, 1.0}
    teacher = pd.concat([pd.read_parquet(p) for p in folder.glob("teacher/scores/*/*.parquet")])
    assert len(teacher) == 2
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert main([str(language), *options]) == 0
    assert "complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


@pytest.mark.slow
def test_a_task_without_data_or_name_is_one_line(lm):
    with pytest.raises(ValueError, match="lm-eval cannot load 'no_such_task'"):
        load_tasks("no_such_task", [128], lm.tokenizer, 0)
