"""Speculation: greedy tokens and the sampled law are the verifier's, for any drafts."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_generate import MODEL, SMALL, make_model, placement_texts, random_prompt

from supernet import speculative
from supernet.config import SupernetConfig
from supernet.generate import distribution, generate
from supernet.speculative import acceptance, rounds, speculate

FIVE = SupernetConfig(layers=3, hidden=32, ffn=48, heads=2, kv_heads=1, head_dim=16, vocab=5, window=4)


@settings(max_examples=40, deadline=None)
@given(placement_texts, st.one_of(st.just("FFFF"), placement_texts), st.integers(1, 20), st.integers(1, 5), st.integers(0, 25))
def test_greedy_tokens_are_the_verifiers(draft, verify, length, k, new):
    prompt = random_prompt(np.random.default_rng(length), length)
    tokens, drafted, accepted = speculate(MODEL, prompt, draft, verify, new, k)
    assert tokens.tolist() == generate(MODEL, [prompt], [verify], new)[0].tolist()
    assert 0 <= accepted <= drafted
    if draft == verify:
        assert accepted == drafted


@settings(max_examples=30, deadline=None)
@given(placement_texts, placement_texts, st.integers(1, 4), st.integers(0, 2**32))
def test_greedy_tokens_for_any_pattern_of_acceptance(draft, verify, k, seed):
    """Drafts are replaced by the verifier's own token or by another at random, so that every pattern of acceptance comes up."""
    rng = np.random.default_rng(seed)
    prompt = random_prompt(rng, 9)
    expected = generate(MODEL, [prompt], [verify], 24)[0].tolist()
    pick, said = speculative._pick, []

    def draft_at_random(model, states, row, unseen, count, temperature, stream):
        at = states.lengths[row] + len(unseen) - len(prompt)
        right = [*expected, 0, 0, 0, 0, 0][at : at + count]
        said.extend(wrong := [t if rng.random() < 0.6 else int(rng.integers(SMALL.vocab)) for t in right])
        planned = iter(wrong)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(speculative, "_pick", lambda law, stream: next(planned))
            return draft_as_it_is(model, states, row, unseen, count, temperature, stream)

    draft_as_it_is = speculative._draft
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculative, "_draft", draft_at_random)
        patch.setattr(speculative, "_pick", pick)
        done = list(rounds(MODEL, prompt, draft, verify, 24, k))
    assert [t for r in done for t in r.tokens] == expected
    assert said


def law_of_three(model, prompt, placement) -> np.ndarray:
    """The joint distribution of three tokens by enumeration, [5, 5, 5]."""
    law = np.zeros((5, 5, 5))
    with torch.no_grad():
        for a, b in itertools.product(range(5), repeat=2):
            logits = model(torch.tensor([[*prompt.tolist(), a, b]]), placement)[0]
            first, second, third = distribution(logits[-3:], 1.0).numpy()
            law[a, b] = first[a] * second[b] * third
    return law


def chi_square_p(counts: np.ndarray, law: np.ndarray) -> float:
    expected, found = law.ravel() * counts.sum(), counts.ravel()
    common = expected >= 5
    expected = np.append(expected[common], expected[~common].sum())
    found = np.append(found[common], found[~common].sum())
    return float(stats.chi2.sf(((found - expected) ** 2 / expected).sum(), len(found) - 1))


@pytest.mark.parametrize(("draft", "verify"), [("GKG", "FFF"), ("SGK", "FSF")])
def test_sampled_tokens_have_the_verifiers_joint_law_and_a_planted_error_is_seen(draft, verify, monkeypatch):
    model, prompt, rng = make_model(FIVE, seed=3), torch.tensor([1, 2, 3, 0, 4, 4, 2]), np.random.default_rng(0)
    law = law_of_three(model, prompt, verify)
    assert law.sum() == pytest.approx(1)

    def draw(times: int) -> tuple[np.ndarray, int, int]:
        counts, drafted, accepted = np.zeros((5, 5, 5)), 0, 0
        for _ in range(times):
            tokens, d, a = speculate(model, prompt, draft, verify, 3, 2, 1.0, rng)
            counts[tuple(tokens.tolist())] += 1
            drafted, accepted = drafted + d, accepted + a
        return counts, drafted, accepted

    counts, drafted, accepted = draw(500)
    assert 0.1 < accepted / drafted < 0.95  # both branches were taken
    assert chi_square_p(counts, law) > 1e-4
    right = speculative.judge
    monkeypatch.setattr(speculative, "judge", lambda guesses, laws, truths, stream: right(guesses, [q / 2 for q in laws], truths, stream))
    assert chi_square_p(draw(500)[0], law) < 1e-4


def test_acceptance_by_position():
    done = list(rounds(MODEL, torch.tensor([5, 6, 7]), "FSKG", "FFFF", 60, 3, 1.0, np.random.default_rng(2)))
    by_position = acceptance(done)
    assert len(by_position) == 3
    assert sum(a for a, _ in by_position) == sum(r.accepted for r in done)
    assert by_position[0][1] == len(done) - 1  # every round but the prompt's has a first draft
    assert all(after[1] <= before[0] for before, after in itertools.pairwise(by_position))
    again = speculate(MODEL, torch.tensor([5, 6, 7]), "FSKG", "FFFF", 60, 3, 1.0, np.random.default_rng(2))
    assert again[0].tolist() == [t for r in done for t in r.tokens]


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="k is 0"):
        speculate(MODEL, torch.tensor([1]), "GGGG", "FFFF", 4, 0)
    with pytest.raises(ValueError, match="has 3 layers"):
        speculate(MODEL, torch.tensor([1]), "GGG", "FFFF", 4, 2)
