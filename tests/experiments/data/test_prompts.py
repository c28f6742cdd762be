import json
import shutil
import sys
import types

import pandas as pd
import pytest
import torch
from language import END, SYMBOLS, write_folder
from test_config import config

from experiments.config import DataConfig, sha256_of
from experiments.data.prompts import make_items, read_prompts
from experiments.data.traces import split_of
from experiments.run import Run

pytest.importorskip("transformers", reason="needs pip install .[llm]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("teacher"))


def frame(n=80):
    """Every prompt twice: the second must not be taken."""
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}, of course.", "kind": ("sum", "word")[i % 2]} for i in range(n)]
    return pd.DataFrame(rows + rows)


def write(path, table):
    writers = {".parquet": table.to_parquet, ".jsonl": lambda p: table.to_json(p, orient="records", lines=True)}
    writers.get(path.suffix, lambda p: table.to_csv(p, index=False))(path)
    return str(path)


def data(path, **given):
    return DataConfig(**{"kind": "prompts", "path": path, "column": "question", "train": 6, "items": 4, "length": 40, "prompt": 24} | given)


def items_of(folder, options, split="items"):
    return make_items(folder, "", options, split, 4, False, torch.float32)


def text(tokens):
    return "".join(SYMBOLS[t] for t in tokens)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_given_answers_of_every_file_type(folder, tmp_path, suffix):
    options = data(write(tmp_path / f"questions{suffix}", frame()), answer="answer", task="kind")
    both = {split: items_of(folder, options, split) for split in ("train", "items")}
    assert [i.task for i in both["train"]] == ["sum", "word"] * 3 and len(both["items"]) == 4
    questions = {split: [text(i.tokens[1 : i.prompt - 1]) for i in found] for split, found in both.items()}
    assert not set(questions["train"]) & set(questions["items"])
    for split, found in both.items():
        assert len(set(questions[split])) == len(found)
        for item, question in zip(found, questions[split], strict=True):
            assert split_of(question) == split
            number = question.removeprefix("What is ").removesuffix("?")
            answer = f"It is {number}, of course.<end>"
            assert answer.startswith(text(item.tokens[item.prompt :])) and len(item.tokens) <= 40
            assert text(item.tokens[item.prompt :]) == answer or len(item.tokens) == 40


def test_the_teacher_answers_where_no_answers_are_given(folder, tmp_path):
    options = data(write(tmp_path / "questions.csv", frame()))
    found, again = items_of(folder, options), items_of(folder, options)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(found, again, strict=True))
    assert {i.task for i in found} == {"questions"}
    assert all(i.tokens[-1] == END or len(i.tokens) == options.length for i in found)
    other = items_of(folder, data(options.path, seed=1))
    assert [i.name for i in other] != [i.name for i in found]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"column": "prompt"}, "data.column is 'prompt', no column of"),
        ({"answer": "reply"}, "choose from question, answer, kind"),
        ({"path": "nowhere.jsonl"}, "no file nowhere.jsonl"),
        ({"train": 5000}, "lower data.train"),
        ({"task": "kind", "tasks": ["sums"]}, "'sums', which no prompt of"),
        ({"prompt": 5}, "raise data.prompt"),
    ],
)
def test_bad_requests_are_one_line(folder, tmp_path, given, words):
    options = data(**({"path": write(tmp_path / "questions.csv", frame())} | given))
    with pytest.raises(ValueError) as caught:
        items_of(folder, options, "train")
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "words"), [("notes.txt", "of a type that is not known"), ("broken.parquet", "not a readable .parquet")])
def test_files_that_cannot_be_read_are_named(tmp_path, name, words):
    (tmp_path / name).write_text("What is 1?\n")
    with pytest.raises(ValueError, match=words) as caught:
        read_prompts(data(str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_columns_of_lists_are_refused_and_empty_rows_left_out(tmp_path):
    table = frame(4).assign(messages=[[{"role": "user"}]] * 8)
    path = write(tmp_path / "questions.jsonl", table)
    with pytest.raises(ValueError, match="'messages' of .* holds a list"):
        read_prompts(data(path, column="messages"))
    table.loc[0, "question"], table.loc[1, "question"] = " ", None
    assert len(read_prompts(data(write(tmp_path / "holes.jsonl", table)))) == 6


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_whole_numbers_stay_whole_beside_missing_ones(tmp_path, suffix):
    big = 2**53 + 1
    table = pd.DataFrame({"question": list("abcd"), "answer": pd.array([18, None, big, -3], dtype="Int64"), "half": [0.5, 2.0, 3.0, 1.0]})
    path = write(tmp_path / f"numbers{suffix}", table)
    assert read_prompts(data(path, answer="answer"))["answer"].tolist() == ["18", str(big), "-3"]
    assert read_prompts(data(path, answer="half"))["answer"].tolist() == ["0.5", "2.0", "3.0", "1.0"]


def test_whole_numbers_that_pandas_had_made_floats(tmp_path):
    table = pd.DataFrame({"question": list("abc"), "answer": [18.0, None, 3.0], "measured": [18.0, None, 2.5]})
    path = write(tmp_path / "numbers.parquet", table)
    assert read_prompts(data(path, answer="answer"))["answer"].tolist() == ["18", "3"]
    assert read_prompts(data(path, answer="measured"))["answer"].tolist() == ["18.0", "2.5"]
    assert read_prompts(data(path, task="answer"))["task"].tolist() == ["18", "3"]


def test_base_models_take_the_prompt_as_it_is(tmp_path):
    folder = write_folder(tmp_path / "base", template=False)
    options = data(write(tmp_path / "questions.csv", frame()), answer="answer")
    for item in items_of(folder, options):
        assert text(item.tokens[: item.prompt]).startswith("What is ") and text(item.tokens[item.prompt :]).startswith("It is ")
    assert all(len(i.tokens) <= 40 for i in items_of(folder, data(options.path)))  # traces of its own


def test_messages_say_what_is_short(folder, tmp_path):
    options = data(write(tmp_path / "questions.csv", frame()), answer="answer", train=500)
    with pytest.raises(
        ValueError, match=r"has \d\d distinct prompts of at most 24 tokens for train \(160 read, 0 are longer\), and 500 seq"
    ):
        items_of(folder, options, "train")


@pytest.mark.parametrize("added", [False, True])
def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path, added):
    """Words that the model does not have, or only marks of a chat that it does not have."""
    from transformers import AutoTokenizer

    other = shutil.copytree(folder, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if added:
        tokenizer.add_tokens([f"<new{i}>" for i in range(10)])
        tokenizer.chat_template = "<new9>{{ messages[0]['content'] }}<end>"
    tokenizer.save_pretrained(other)
    if not added:
        raw = json.loads((other / "tokenizer.json").read_text())
        raw["model"]["vocab"] |= {f"new{i}": len(SYMBOLS) + i for i in range(10)}
        (other / "tokenizer.json").write_text(json.dumps(raw))
    options = data(write(tmp_path / "questions.csv", frame()), answer="answer")
    with pytest.raises(ValueError, match=rf"has {len(SYMBOLS) + 10} tokens, the model {len(SYMBOLS)}: they do not belong together"):
        items_of(str(other), options)


def test_the_tasks_of_a_scale_do_not_reach_own_prompts():
    own = ["scale=135m", "data.kind=prompts", "data.path=x.jsonl"]
    assert config("scale=135m").data.tasks[0] == "gsm_symbolic" and config(*own).data.tasks == []
    assert config(*own, "data.task=kind", "data.tasks=[sum]").data.tasks == ["sum"]
    with pytest.raises(ValueError, match="not used with data.kind=prompts, which names no data.task"):
        config(*own, "data.tasks=[sum]")


def test_hugging_face_data_sets(folder, monkeypatch):
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        if name == "someone/absent":
            raise FileNotFoundError("Couldn't find it\non the hub")
        return types.SimpleNamespace(to_pandas=frame)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert len(items_of(folder, data("openai/gsm8k", subset="main", part="test", answer="answer"))) == 4
    assert asked == [("openai/gsm8k", "main", "test")]
    with pytest.raises(ValueError, match="Couldn't find it") as caught:
        read_prompts(data("someone/absent"))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        read_prompts(data("openai/gsm8k"))


def test_another_content_under_the_same_name_is_other_data(tmp_path):
    path = tmp_path / "questions.csv"

    def names():
        sha256_of.cache_clear()  # a command reads the file once
        chosen = config("data.kind=prompts", f"data.path={path}", "teacher.source=smollm2")
        return Run.of(chosen).data_dir, Run.of(chosen).id

    path.write_text("prompt\na\n")
    first = names()
    assert names() == first
    path.write_text("prompt\nb\n")
    assert names()[0] != first[0] and names()[1] != first[1]


def test_prompts_need_a_path():
    with pytest.raises(ValueError, match="data.kind=prompts needs data.path"):
        config("data.kind=prompts")


@pytest.mark.parametrize(("content", "said"), [
    (b'"a"\n', "line 1 is no object such as"),
    (b'\n{"question": "a"}\n[1]\n', "line 3 is no object such as"),
    (b'{"question": "x\\ud800y"}\n', "holds text that is no Unicode"),
    ('{"question": "a"}\n'.encode("utf-16"), "is not a readable .jsonl file"),
])  # fmt: skip
def test_lines_that_hold_no_prompt_are_named(tmp_path, content, said):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(ValueError) as refused:
        read_prompts(data(str(tmp_path / "x.jsonl")))
    assert said in str(refused.value) and "x.jsonl" in str(refused.value) and "\n" not in str(refused.value)


def test_marks_of_byte_order_other_spellings_and_rows_without_a_prompt(tmp_path, capsys):
    path = tmp_path / "x.JSONL"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a\\u2028b"}\r\n\r\n{"question": " "}\r\n{"other": 1}\r\n')
    assert read_prompts(data(str(path)))["prompt"].tolist() == ["a\u2028b"]
    assert "x.JSONL: 2 of 3 rows have no question and are left out" in capsys.readouterr().out
