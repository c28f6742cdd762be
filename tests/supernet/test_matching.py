"""Exact match and likelihood of answers in one pass, against decoding and a plain forward."""

import numpy as np
import pytest
import torch

from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.generate import generate
from supernet.matching import match_chunk
from supernet.scoring import Item, build_trie, score

SMALL = SupernetConfig(layers=3, hidden=32, ffn=48, heads=4, kv_heads=2, head_dim=16, vocab=41, window=8)
PLACEMENTS = ["FFF", "SSS", "KKK", "GGG", "FSK", "GKF", "SGS"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Supernet(SMALL).eval().requires_grad_(False)
    for p in model.parameters():
        if p.ndim == 2:
            p.mul_(2.5)
    return model


def items_of(model, rng):
    """Prompts with what some placement says, half of them with one token changed."""
    items = []
    for n, placement in enumerate(PLACEMENTS * 2):
        prompt = torch.from_numpy(rng.integers(SMALL.vocab, size=int(rng.integers(3, 20))))
        answer = generate(model, [prompt], [placement], int(rng.integers(1, 5)))[0]
        if n >= len(PLACEMENTS):
            answer[int(rng.integers(len(answer)))] += 1
        items.append(Item(f"{placement}-{n}", "any", torch.cat([prompt, answer % SMALL.vocab]), len(prompt)))
    return items


def test_a_match_is_what_greedy_decoding_says(model):
    items = items_of(model, np.random.default_rng(0))
    trie = build_trie(SMALL, PLACEMENTS)
    logp, right, _ = match_chunk(model, trie, items)
    for row, placement in enumerate(PLACEMENTS):
        for column, item in enumerate(items):
            answer = item.tokens[item.prompt :]
            said = generate(model, [item.tokens[: item.prompt]], [placement], len(answer))[0]
            assert right[row, column] == torch.equal(said, answer)
    assert 0 < right.mean() < 1
    assert all(right[PLACEMENTS.index(item.name[:3]), n] == (n < len(PLACEMENTS)) for n, item in enumerate(items))
    np.testing.assert_array_equal(logp, score(model, PLACEMENTS, items, 1 << 26)[0])
