"""What docs/python.md says runs as written; the README stays short."""

import re
from pathlib import Path

import torch

from supernet.checkpoint import save
from supernet.config import SupernetConfig
from supernet.decoder import Supernet

ROOT = Path(__file__).parents[1]


def test_the_python_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    torch.manual_seed(0)
    folder = tmp_path / "FOLDER"
    save(Supernet(SupernetConfig(layers=4, hidden=32, ffn=48, heads=2, kv_heads=1, head_dim=16, vocab=41, window=8)), folder)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace('"FOLDER"', repr(str(folder))), names)  # noqa: S102
    assert names["logits"].shape == (1, 4, 41)
    assert [len(tokens) for tokens in names["new"]] == [5, 5]
    assert names["logp"].shape == (256, 1)
    assert set(names["verdicts"]["endpoint"]) == {"resolution", "regret"}
    assert names["best"]["placement"].str.len().eq(len(names["scores"].placements[0])).all()


def test_the_readme_can_be_read_in_one_go():
    assert len((ROOT / "README.md").read_text().split()) <= 1300
