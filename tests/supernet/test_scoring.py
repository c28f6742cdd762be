import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet import scoring
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.ops import kernels
from supernet.placement import exhaustive, sample_local
from supernet.scoring import Item, build_trie, plan_chunks, score, score_chunk
from supernet.size import forward_flops

CONFIG = SupernetConfig(layers=3, hidden=24, ffn=40, heads=2, kv_heads=1, head_dim=8, vocab=32, window=4)
AMPLE = 1 << 30


def make_model(config=CONFIG, dtype=torch.float32):
    torch.manual_seed(0)
    model = Supernet(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.to(dtype)


def make_items(lengths, seed=0, vocab=32):
    rng = np.random.default_rng(seed)
    return [
        Item(f"item-{i}", "task", torch.from_numpy(rng.integers(vocab, size=n)), int(rng.integers(1, n))) for i, n in enumerate(lengths)
    ]


def with_prompts(items, least=6):
    return [dataclasses.replace(i, prompt=min(max(i.prompt, least), len(i.tokens) - 1)) for i in items]


@torch.no_grad()
def one_by_one(model, placements, items):
    """The definition: each placement and item alone, all logits."""
    logp = np.empty((len(placements), len(items)))
    for i, p in enumerate(placements):
        for j, item in enumerate(items):
            logits = model(item.tokens[None], p)[0].float().log_softmax(-1).double()
            logp[i, j] = logits[torch.arange(item.prompt - 1, len(item.tokens) - 1), item.tokens[item.prompt :]].sum()
    return logp


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])  # from one item and prefix a call to everything in one call
def test_equals_placement_by_placement_scoring(model, batch_tokens, monkeypatch):
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", batch_tokens)
    placements, items = list(exhaustive(3)), make_items([17, 2, 9, 30, 18, 18])
    logp, _ = score(model, placements, items, AMPLE)
    assert logp.dtype == np.float64
    targets = np.array([len(i.tokens) - i.prompt for i in items])
    np.testing.assert_allclose(logp / targets, one_by_one(model, placements, items) / targets, atol=1e-5)
    assert np.ptp(logp, axis=0).min() > 1e-2  # the placements do differ


def test_compiled_mixers_score_as_the_reference_does(model):
    """Prompts of different lengths in one tile, so that the last layer begins before the first target of most items."""
    placements, items = list(exhaustive(3)), with_prompts(make_items([17, 18, 18, 19, 20, 2, 30], seed=5))
    targets = np.array([len(i.tokens) - i.prompt for i in items])
    kernels.use("numba")
    try:
        logp, counts = score(model, placements, items, AMPLE)
    finally:
        kernels.use("torch")
    np.testing.assert_allclose(logp / targets, one_by_one(model, placements, items) / targets, atol=1e-5)
    assert counts.layer_evaluations == counts.prefixes * len(items)


def test_the_last_layer_is_evaluated_from_the_first_target_on(model, monkeypatch):
    placements, items = list(exhaustive(3)), with_prompts(make_items([17, 18, 18, 19, 20], seed=5))
    seen, mixed = [], scoring._mixed
    monkeypatch.setattr(scoring, "_mixed", lambda mixer, x, first: seen.append((x.shape[1], first)) or mixed(mixer, x, first))
    score(model, placements, items, AMPLE)
    first = min(i.prompt for i in items) - 1
    assert first >= 5 and {f for _, f in seen} == {0, first} and {T for T, _ in seen} == {19}
    monkeypatch.setattr(scoring, "_first", lambda *_: 0)
    np.testing.assert_allclose(score(model, placements, items, AMPLE)[0], one_by_one(model, placements, items), atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 12))
def test_any_placements_in_any_order(model, seed, count):
    rng = np.random.default_rng(seed)
    placements = list(dict.fromkeys(sample_local(3, rng) for _ in range(count)))
    items = make_items(rng.integers(2, 25, size=3), seed)
    logp, counts = score(model, placements, items, AMPLE)
    np.testing.assert_allclose(logp, one_by_one(model, placements, items), atol=1e-4)
    assert counts.prefixes == len({p[:n] for p in placements for n in (1, 2, 3)})


def test_one_layer_and_tied_head():
    model = make_model(dataclasses.replace(CONFIG, layers=1, tied=True, qkv_bias=True))
    items = make_items([8, 5])
    np.testing.assert_allclose(score(model, ["G", "F"], items, AMPLE)[0], one_by_one(model, ["G", "F"], items), atol=1e-4)


def test_every_distinct_prefix_is_evaluated_once_and_each_block_fetched_once(model):
    seen = dict.fromkeys("FSKG", 0)
    hooks = [
        mixer.register_forward_hook(lambda _, args, __, c=letter: seen.__setitem__(c, seen[c] + len(args[0])))
        for block in model.blocks
        for letter, mixer in block.mixers.items()
    ]
    fetched = []
    trie = build_trie(CONFIG, list(exhaustive(3)))
    _, counts = score_chunk(model, trie, make_items([9, 9, 12, 30]), lambda layer: fetched.append(layer) or model.blocks[layer])
    for hook in hooks:
        hook.remove()
    assert counts.prefixes == 4 + 16 + 64
    assert sum(seen.values()) == counts.layer_evaluations == counts.prefixes * 4
    assert set(seen.values()) == {21 * 4}
    assert fetched == [0, 1, 2]


def test_chunks_change_neither_the_scores_nor_the_work(model):
    placements, items = list(exhaustive(3))[::5], make_items([20, 7, 13, 13, 25, 4, 11, 19])
    trie = build_trie(CONFIG, placements)
    scratch = scoring.scratch_bytes(CONFIG, 24, "cpu")
    budget = scratch + trie.slots * 40 * CONFIG.hidden * 4
    chunks = plan_chunks(CONFIG, trie, items, budget, torch.float32)
    assert len(chunks) > 2
    assert sorted(i for chunk in chunks for i in chunk) == list(range(8))
    small, large = score(model, placements, items, budget), score(model, placements, items, AMPLE)
    np.testing.assert_allclose(small[0], large[0], atol=1e-4)
    assert small[1] == dataclasses.replace(large[1], flops=small[1].flops)
    assert small[1].flops == pytest.approx(large[1].flops)


def test_states_kept_at_once_are_within_the_plan(model, monkeypatch):
    """The tiles of a chunk allocate what the plan promised: slots x padded tokens x hidden."""
    placements, items = list(exhaustive(3)), make_items([20, 7, 13, 13, 25, 4, 11, 19])
    trie = build_trie(CONFIG, placements)
    assert trie.slots == 16
    scratch = scoring.scratch_bytes(CONFIG, 24, "cpu")
    budget = scratch + trie.slots * 70 * CONFIG.hidden * 4
    start, held = scoring._start, []
    monkeypatch.setattr(scoring, "_start", lambda *args: held.append(start(*args)) or held[-1])
    for chunk in plan_chunks(CONFIG, trie, items, budget, torch.float32):
        held.clear()
        score_chunk(model, trie, [items[i] for i in chunk])
        assert sum(tile.states.nbytes for tile in held) + scratch <= budget


def test_smallest_budget_is_named_and_works(model):
    placements, items = list(exhaustive(3)), make_items([20, 9])
    trie = build_trie(CONFIG, placements)
    with pytest.raises(ValueError, match="does not hold one item of 20 tokens for 64 placements: give at least") as error:
        plan_chunks(CONFIG, trie, items, 1000, torch.float32)
    assert "\n" not in str(error.value)
    smallest = int(str(error.value).split()[-2])
    assert plan_chunks(CONFIG, trie, items, smallest, torch.float32)
    with pytest.raises(ValueError, match="give at least"):
        plan_chunks(CONFIG, trie, items, smallest - 1, torch.float32)


def test_flops_are_those_of_the_forward_passes_that_are_left(model):
    """One placement, and targets everywhere: exactly one forward pass of the tokens that are read."""
    item = Item("a", "t", torch.arange(20), 1)
    _, counts = score(model, ["FSK"], [item], AMPLE)
    assert counts.flops == pytest.approx(forward_flops(CONFIG, "FSK", 19))
    _, shorter = score(model, ["FSK"], [dataclasses.replace(item, prompt=11)], AMPLE)
    assert counts.flops - shorter.flops == pytest.approx(10 * (6 * CONFIG.hidden * CONFIG.ffn + 2 * CONFIG.vocab * CONFIG.hidden))


def test_bfloat16_is_near_float32():
    items = make_items([24, 30])
    low = score(make_model(dtype=torch.bfloat16), ["FSK", "GGG"], items, AMPLE)[0]
    high = score(make_model(), ["FSK", "GGG"], items, AMPLE)[0]
    np.testing.assert_allclose(low, high, rtol=0.05)
    assert not np.array_equal(low, high)


def test_head_in_parts_gives_the_same(model, monkeypatch):
    items = make_items([20, 12])
    whole = score(model, ["FSK", "GGF"], items, AMPLE)[0]
    monkeypatch.setattr(scoring, "LOGITS", 3 * CONFIG.vocab)
    np.testing.assert_allclose(score(model, ["FSK", "GGF"], items, AMPLE)[0], whole, atol=1e-5)


@pytest.mark.parametrize(
    ("placements", "change", "message"),
    [
        ([], {}, "no placements"),
        (["FFF", "FFF"], {}, "placement FFF is listed more than once"),
        (["FF"], {}, "has 2 layers, the model has 3"),
        (["FFX"], {}, "unknown mixer X"),
        (["FFF"], {"prompt": 0}, "item a has 9 tokens and a prompt of 0"),
        (["FFF"], {"prompt": 9}, "item a has 9 tokens and a prompt of 9"),
        (["FFF"], {"tokens": torch.full((9,), 32)}, "outside the model's vocabulary of 32"),
    ],
)
def test_what_cannot_be_scored_is_named(model, placements, change, message):
    item = dataclasses.replace(Item("a", "t", torch.arange(9), 3), **change)
    with pytest.raises(ValueError, match=message) as error:
        score(model, placements, [item], AMPLE)
    assert "\n" not in str(error.value)


def test_items_are_sorted_by_length_whatever_order_they_come_in(model, monkeypatch):
    """Chunks begin with the shortest items, and items that come unsorted are swept with those of about their length: little is padding."""
    placements, items = list(exhaustive(3))[:5], make_items([30, 3, 29, 4, 28, 3, 30, 24])
    lengths = [len(item.tokens) for item in items]
    trie = build_trie(CONFIG, placements)
    (chunk,) = plan_chunks(CONFIG, trie, items, AMPLE, torch.float32)
    assert [lengths[i] for i in chunk] == sorted(lengths)
    start, tiles = scoring._start, []
    monkeypatch.setattr(scoring, "_start", lambda m, t, those: tiles.append(those) or start(m, t, those))
    logp, _ = score_chunk(model, trie, items)
    read = [[len(item.tokens) - 1 for item in tile] for tile in tiles]
    assert all(max(tile) <= scoring.PADDING * min(tile) for tile in read) and sum(map(len, read)) == len(items)
    np.testing.assert_allclose(logp, one_by_one(model, placements, items), atol=1e-4)
