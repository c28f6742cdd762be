import pandas as pd
import pytest
import torch
from language import SYMBOLS, write_folder

from experiments.config import DataConfig
from experiments.data.text import make_items, read_documents

pytest.importorskip("transformers", reason="needs pip install .[llm]")
LINES = [f"Line {i} says {i * i}." for i in range(400)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("teacher"), template=False)


def data(path, **given):
    return DataConfig(**{"kind": "text", "path": str(path), "train": 12, "items": 5, "length": 40, "prompt": 16} | given)


def written(tmp_path, suffix):
    """The same text as one long document, or as documents of 20 lines."""
    path = tmp_path / f"book{suffix}"
    if suffix == ".txt":
        path.write_text(" ".join(LINES))
        return path
    table = pd.DataFrame({"text": [" ".join(LINES[i : i + 20]) for i in range(0, 400, 20)], "id": range(20)})
    {".jsonl": lambda p: table.to_json(p, orient="records", lines=True), ".parquet": table.to_parquet, ".csv": table.to_csv}[suffix](path)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet", ".csv"])
def test_documents_are_cut_into_sequences_behind_a_prefix(folder, tmp_path, suffix):
    options = data(written(tmp_path, suffix))
    train, items = (make_items(folder, "", options, split) for split in ("train", "items"))
    again = make_items(folder, "", options, "train")
    assert [len(train), len(items)] == [12, 5] and all(torch.equal(a.tokens, b.tokens) for a, b in zip(train, again, strict=True))
    texts = ["".join(SYMBOLS[t] for t in item.tokens) for item in train + items]
    assert len(set(texts)) == len({item.name for item in train + items}) == 17
    whole = " ".join(LINES)
    for item, piece in zip(train + items, texts, strict=True):
        assert piece in whole and item.prompt == 16 and 24 <= len(item.tokens) <= 40 and item.tokens.dtype == torch.int64
    assert [i.name for i in make_items(folder, "", data(options.path, seed=1), "train")] != [i.name for i in train]


def test_too_little_text_says_how_much_there_is(folder, tmp_path):
    with pytest.raises(ValueError, match=r"book.txt gives \d+ sequences of 24 to 40 tokens for train, 9999 are needed: lower data.train"):
        make_items(folder, "", data(written(tmp_path, ".txt"), train=9999), "train")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("absent.txt", None, "no file .*absent.txt"), ("x.txt", b"\xff\xfe\xff", "no text in UTF-8"),
     ("x.csv", b"body\nhello\n", "data.column is 'prompt', no column"), ("x.pdf", b"", "of a type that is not known")],
)  # fmt: skip
def test_text_that_cannot_be_read_is_named(folder, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        make_items(folder, "", data(tmp_path / name), "items")
    assert "\n" not in str(caught.value)


def test_a_mark_of_byte_order_is_no_text(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert read_documents(DataConfig(kind="text", path=str(tmp_path / "x.txt"))) == ["abc"]
