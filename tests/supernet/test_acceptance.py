"""Acceptance of drafts from the sweep: by the definition, and against what speculating counts."""

import numpy as np
import pytest
import torch

from supernet import speculative
from supernet.acceptance import acceptance_chunk
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.placement import exhaustive
from supernet.scoring import Item, build_trie
from supernet.speculative import rounds

SMALL = SupernetConfig(layers=3, hidden=32, ffn=48, heads=2, kv_heads=1, head_dim=16, vocab=23, window=6)


def make_model(config: SupernetConfig = SMALL) -> Supernet:
    torch.manual_seed(4)
    model = Supernet(config).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            p.mul_(2.5)
        if "conv" in name:
            torch.nn.init.normal_(p, std=0.5)
    return model


MODEL = make_model()


def make_items(count: int) -> list[Item]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 40, size=count)
    return [Item(f"i{i}", "t", torch.from_numpy(rng.integers(23, size=n)), int(rng.integers(1, n))) for i, n in enumerate(lengths)]


def test_the_sum_of_overlaps_by_the_definition():
    items, placements = make_items(9), [str(p) for p in exhaustive(3)]
    found, counts = acceptance_chunk(MODEL, build_trie(SMALL, placements), items)
    expected = np.zeros_like(found)
    for j, item in enumerate(items):
        p = MODEL(item.tokens[None, :-1], "FFF")[0, item.prompt - 1 :].double().softmax(-1)
        for i, placement in enumerate(placements):
            q = MODEL(item.tokens[None, :-1], placement)[0, item.prompt - 1 :].double().softmax(-1)
            expected[i, j] = float(torch.minimum(p, q).sum())
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found[placements.index("FFF")], [len(i.tokens) - i.prompt for i in items], rtol=1e-5)
    assert counts.layer_evaluations == counts.prefixes * len(items)


def test_a_model_without_full_attention_has_no_verifier():
    config = SMALL.replace(mixers="SKG")
    with pytest.raises(ValueError, match="unknown mixer F"):
        acceptance_chunk(make_model(config), build_trie(config, ["SKG"]), make_items(2))


@pytest.mark.parametrize("draft", ["GKS", "SSF", "KKG"])
def test_the_sweep_predicts_what_speculating_counts(draft, monkeypatch):
    """Wherever speculation drew a draft, the sweep gives the probability that it is accepted; the counts agree with the sum of these."""
    contexts, accepted = [], []
    right = speculative.judge

    def watched(guesses, laws, truths, stream):
        found = right(guesses, laws, truths, stream)
        for i in range(min(found[0] + 1, len(guesses))):  # those that were judged
            contexts.append([*prompt, *said, *guesses[:i]])
            accepted.append(i < found[0])
        return found

    monkeypatch.setattr(speculative, "judge", watched)
    rng, texts = np.random.default_rng(1), 12
    for _ in range(texts):
        prompt, said = rng.integers(23, size=5).tolist(), []
        for round_ in rounds(MODEL, torch.tensor(prompt), draft, "FFF", 40, 3, 1.0, rng):
            said += round_.tokens
    items = [Item(f"{i}", "t", torch.tensor([*tokens, 0]), len(tokens)) for i, tokens in enumerate(contexts)]
    probability = acceptance_chunk(MODEL, build_trie(SMALL, [draft]), items)[0][0]
    assert len(items) > 200
    error = np.sqrt((probability * (1 - probability)).sum())
    assert abs(sum(accepted) - probability.sum()) < 3.9 * error  # p = 1e-4
    assert abs(len(items) - probability.sum()) > 3.9 * error  # the test could fail: not everything is accepted
