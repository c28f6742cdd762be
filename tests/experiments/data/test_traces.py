import pytest
import torch
from language import END, SYMBOLS, small_model, write_folder
from scipy.stats import chisquare

from experiments.config import DataConfig
from experiments.data.traces import SHORTEST, make_items, sample_traces, split_of

pytest.importorskip("transformers", reason="needs pip install .[llm]")
pytest.importorskip("reasoning_gym", reason="needs pip install .[llm]")
TASKS = ["chain_sum", "gcd", "spell_backward"]
PROMPT, LENGTH = 120, 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("teacher"))


def items_of(folder, seed=0, split="train", count=16, tasks=TASKS, prompt=PROMPT, length=LENGTH):
    data = DataConfig(kind="reasoning", tasks=tasks, train=count, items=count, length=length, prompt=prompt, seed=seed)
    return make_items(folder, "", data, split, 8, False, torch.float32)


def test_items_keep_their_promises(folder):
    items = items_of(folder)
    assert [i.task for i in items] == [*TASKS * 5, TASKS[0]]
    assert len({i.name for i in items}) == len({tuple(i.tokens[: i.prompt].tolist()) for i in items}) == 16
    for i in items:
        trace = i.tokens[i.prompt :].tolist()
        assert i.tokens.dtype == torch.int64 and i.prompt <= PROMPT and i.name.startswith(i.task + "-")
        assert i.tokens[0] == 1 and i.tokens[i.prompt - 1] == END  # the chat template's marks
        assert len(trace) >= SHORTEST and END not in trace[:-1]
        assert trace[-1] == END or len(i.tokens) == LENGTH
    assert {i.tokens[-1].item() == END for i in items} == {True, False}  # both ways to end were met


def test_items_follow_the_seed(folder):
    a, b, c = items_of(folder), items_of(folder), items_of(folder, seed=1)
    assert all(x.name == y.name and torch.equal(x.tokens, y.tokens) for x, y in zip(a, b, strict=True))
    assert not {tuple(x.tokens.tolist()) for x in a} & {tuple(x.tokens.tolist()) for x in c}


def test_splits_share_no_prompt_even_across_seeds(folder):
    def texts(**given):
        return {"".join(SYMBOLS[t] for t in i.tokens[1 : i.prompt - 1]) for i in items_of(folder, **given)}

    # coin_flip has a few dozen prompts in all: without the rule they would surely meet
    train, items = (texts(split=s, seed=seed, tasks=["coin_flip"], count=8) for s, seed in (("train", 0), ("items", 1)))
    assert len(train) == len(items) == 8 and not train & items
    assert {split_of(t) for t in train} == {"train"} and {split_of(t) for t in items} == {"items"}


@pytest.mark.parametrize(
    "given, words",
    [
        ({"tasks": ["chain_sums"]}, "'chain_sums'"),
        ({"split": "test"}, "'test'"),
        ({"tasks": []}, "at least one task"),
        ({"length": PROMPT}, f"data.length={PROMPT}"),
        ({"prompt": 10}, "data.prompt"),
    ],
)
def test_bad_requests_are_one_line(folder, given, words):
    with pytest.raises(ValueError) as caught:
        items_of(folder, **given)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_batched_sampling_equals_one_by_one_without_cache_or_padding():
    """Padding, positions, the cache and rows that leave it must not change what is sampled."""
    model, length = small_model(sharpness=1e4), 40
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, len(SYMBOLS), (n,), generator=generator).tolist() for n in (3, 20, 11, 30, 7)]

    def greedy(prompt, end):
        tokens = list(prompt)
        while len(tokens) < length:
            tokens.append(model(torch.tensor([tokens])).logits[0, -1].argmax().item())
            if tokens[-1] == end:
                break
        return tokens[len(prompt) :]

    with torch.no_grad():
        end = greedy(prompts[1], None)[5]  # so that some rows end early
        expected = [greedy(p, end) for p in prompts]
    assert len({len(t) + len(p) for t, p in zip(expected, prompts, strict=True)}) > 2
    assert sample_traces(model, prompts, length, end, generator) == expected


def test_samples_follow_the_models_distribution():
    model, prompt, n = small_model(sharpness=0.6), [5, 9, 40], 5000
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    first = sample_traces(model, [prompt] * n, len(prompt) + 1, END, torch.Generator().manual_seed(0))
    counts = torch.tensor(first)[:, 0].bincount(minlength=len(SYMBOLS))
    assert probabilities.max() > 5 * probabilities.min() and probabilities.min() * n > 1
    assert chisquare(counts.numpy(), (probabilities.double() / probabilities.double().sum() * n).numpy()).pvalue > 1e-3
