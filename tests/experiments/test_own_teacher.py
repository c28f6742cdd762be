"""The README's recipe for one's own teacher and prompts, run as it is written, with small budgets and no other option."""

import json
import os

import pytest
from chain import call
from language import SYMBOLS, write_folder

from analysis.table import load_scores

pytest.importorskip("transformers", reason="needs pip install .[llm]")
BUDGETS = ["data.train=16", "data.items=8", "items=6", "data.length=64", "data.prompt=32", "distill.steps=4", "distill.batch=4",
           "distill.warmup=1", "distill.checkpoints=2", "distill.first_checkpoint=2", "num_placements=8", "memory_gib=0.1",
           "trainer.accelerator=cpu", "device=cpu"]  # fmt: skip
FAMILIES = os.environ.get("FAMILIES", "qwen2").split(",")  # all: FAMILIES=llama,mistral,qwen2,qwen3


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_own_teacher_and_prompts_go_through_the_whole_chain(tmp_path, family):
    prompts = tmp_path / "x.jsonl"
    prompts.write_text("".join(json.dumps({"question": f"What is {i} and {i + 1}?"}) + "\n" for i in range(300)))
    own = ["scale=0.5b", f"teacher.path={write_folder(tmp_path / family, family)}", "data.kind=prompts", f"data.path={prompts}",
           "data.column=question", f"results={tmp_path / 'results'}", f"cache={tmp_path / 'cache'}"]  # fmt: skip
    planned = call("chain", [*own, *BUDGETS, "--dry-run"]).stdout
    assert "2 layers of FSKG" in planned and not (tmp_path / "results").exists()
    call("chain", [*own, *BUDGETS])
    (run,) = (tmp_path / "results" / "0.5b").glob("*")
    scores = load_scores(run)
    assert len(scores.placements) == 8 and len(scores.items) == 6 and scores.steps[-1] == 4
    assert (run / "report.md").is_file()
    vocabulary = json.loads((run / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == len(SYMBOLS)
