"""Decoding with states against the whole sequence without any: every mixer, mixed batches, any split, windows, rows that join and leave."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import init

from supernet.checkpoint import load
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.generate import extend, generate, pick, prefill, stream
from supernet.mixers import MIXERS
from supernet.mixers.delta import GatedDeltaNet
from supernet.state import States

ORACLE = Path(__file__).parents[3] / "shared" / "oracles" / "apriel2" / "tiny_bias_tied"
WINDOW = 8
SMALL = SupernetConfig(layers=4, hidden=32, ffn=48, heads=4, kv_heads=2, head_dim=16, vocab=41, window=WINDOW, qkv_bias=True, qk_norm=True)


def make_model(config: SupernetConfig = SMALL, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    model = Supernet(config).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            p.mul_(2.5)
        if "conv" in name:
            init.normal_(p, std=0.5)
        if "dt_bias" in name:
            init.normal_(p)
    return model


MODEL = make_model()


def without_states(model: Supernet, prompt: torch.Tensor, placement: str, new: int) -> list[int]:
    tokens = prompt.tolist()
    with torch.no_grad():
        for _ in range(new):
            tokens.append(int(model(torch.tensor([tokens]), placement)[0, -1].argmax()))
    return tokens[len(prompt) :]


def random_prompt(rng: np.random.Generator, length: int, vocab: int = SMALL.vocab) -> torch.Tensor:
    return torch.from_numpy(rng.integers(vocab, size=length))


placement_texts = st.text("FSKG", min_size=SMALL.layers, max_size=SMALL.layers)


@pytest.mark.parametrize("placement", ["FFFF", "SSSS", "KKKK", "GGGG", "FSKG", "GKSF"])
@pytest.mark.parametrize("length", [1, 3, WINDOW - 1, WINDOW, 3 * WINDOW + 1])
def test_greedy_tokens_are_those_of_the_whole_forward(placement, length):
    prompt = random_prompt(np.random.default_rng(length), length)
    assert generate(MODEL, [prompt], [placement], 20)[0].tolist() == without_states(MODEL, prompt, placement, 20)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(placement_texts, st.integers(1, 20)), min_size=1, max_size=6), st.integers(0, 2**32), st.integers(1, 3))
def test_rows_of_any_placement_and_length_join_and_leave_one_batch(requests, seed, at_a_time):
    rng = np.random.default_rng(seed)
    prompts = [random_prompt(rng, length) for _, length in requests]
    placements = [placement for placement, _ in requests]
    expected = [without_states(MODEL, p, placement, 12) for p, placement in zip(prompts, placements, strict=True)]
    stop = int(rng.integers(SMALL.vocab))
    expected = [tokens[: tokens.index(stop) + 1] if stop in tokens else tokens for tokens in expected]
    assert [t.tolist() for t in generate(MODEL, prompts, placements, 12, stop=[stop])] == expected
    found = [[] for _ in prompts]
    for i, token in stream(MODEL, prompts, placements, 12, stop=[stop], rows=at_a_time):
        found[i].append(token)
    assert found == expected


@settings(max_examples=40, deadline=None)
@given(placement_texts, st.lists(st.integers(1, 13), min_size=1, max_size=8), st.integers(0, 2**32))
def test_any_split_of_a_sequence_gives_the_logits_of_the_whole(placement, pieces, seed):
    tokens = random_prompt(np.random.default_rng(seed), sum(pieces))[None]
    states = States(MODEL)
    row = states.join(placement)  # no room asked for: it grows on the way
    logits = torch.cat([extend(MODEL, states, [row], part, every=True) for part in tokens.split(pieces, 1)], 1)
    torch.testing.assert_close(logits, MODEL(tokens, placement), atol=2e-4, rtol=1e-4)
    assert states.lengths[row] == sum(pieces)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(0, 2**32))
def test_rows_in_any_order_with_calls_of_any_subset(data, seed):
    """The pools move rows about; each row's logits stay those of its own sequence."""
    rng = np.random.default_rng(seed)
    states, sequences = States(MODEL), {}
    for _ in range(data.draw(st.integers(3, 14))):
        if sequences and data.draw(st.booleans()) and len(sequences) > 1:
            gone = data.draw(st.sampled_from(sorted(sequences)))
            states.leave(gone)
            del sequences[gone]
        else:
            sequences[states.join(data.draw(placement_texts))] = torch.empty(0, dtype=torch.int64)
        rows = data.draw(st.permutations(sorted(sequences)))[: data.draw(st.integers(1, len(sequences)))]
        tokens = torch.from_numpy(rng.integers(SMALL.vocab, size=(len(rows), data.draw(st.integers(1, 10)))))
        logits = extend(MODEL, states, rows, tokens)
        for row, new, found in zip(rows, tokens, logits, strict=True):
            sequences[row] = torch.cat([sequences[row], new])
            expected = MODEL(sequences[row][None], states.placements[row])[0, -1]
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    for row in list(sequences):
        states.leave(row)
    assert states.nbytes() == 0


def test_a_fifth_mixer_decodes_by_its_line_in_the_dict(monkeypatch):
    class Twice(GatedDeltaNet):
        def out(self, o, gate):
            return 2 * super().out(o, gate)

    monkeypatch.setitem(MIXERS, "T", Twice)
    model = make_model(SMALL.replace(mixers="FSKGT"))
    monkeypatch.setattr(model, "parse", lambda placement: placement)  # placements have the letters of the suite's tables
    prompt = random_prompt(np.random.default_rng(1), 11)
    assert generate(model, [prompt], ["TFTS"], 12)[0].tolist() == without_states(model, prompt, "TFTS", 12)


def test_bf16_decoding_gives_the_logits_of_the_bf16_forward():
    model = make_model().cast(torch.bfloat16)
    tokens = random_prompt(np.random.default_rng(2), 30)[None]
    for placement in ("FFFF", "SSSS", "KKKK", "GGGG", "FSKG"):
        states = States(model)
        row = states.join(placement)
        found = torch.cat([extend(model, states, [row], part, every=True) for part in tokens.split([9] + [1] * 21, 1)], 1)
        whole = model(tokens, placement).float()
        exact = MODEL(tokens, placement)
        # bf16 itself is off by this much: decoding may not be much further from the exact logits than the whole forward is.
        assert (found - exact).norm() < 1.5 * (whole - exact).norm() + 1e-3 * exact.norm()


@pytest.mark.skipif(not ORACLE.is_dir(), reason=f"no reference checkpoint at {ORACLE}")
def test_the_apriel2_reference_decodes():
    model = load(ORACLE)
    placements = list(json.loads((ORACLE / "placements.json").read_text()).values())
    letters = {"attention": "F", "sliding_window": "S", "kda": "K", "gdn": "G"}
    placements = ["".join(letters.get(m, m) for m in p) for p in placements]
    with np.load(ORACLE / "oracle.npz") as oracle:
        prompt = torch.from_numpy(oracle["input_ids_long"][0]).long()
    found = generate(model, [prompt] * len(placements), placements, 12)
    assert [t.tolist() for t in found] == [without_states(model, prompt, p, 12) for p in placements]


def test_prompts_of_equal_length_share_calls_and_long_ones_are_cut():
    rng = np.random.default_rng(3)
    prompts = [random_prompt(rng, n) for n in (5, 30, 5, 7, 30)]
    placements = ["FSKG", "SSSS", "KFGS", "FFFF", "GGGG"]
    states = States(MODEL)
    logits = prefill(MODEL, states, [states.join(p) for p in placements], prompts, piece=9)
    for found, prompt, placement in zip(logits, prompts, placements, strict=True):
        torch.testing.assert_close(found, MODEL(prompt[None], placement)[0, -1], atol=2e-4, rtol=1e-4)


def test_sampling_follows_the_distribution_and_its_generator_alone():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf, 0.5]])
    rng = np.random.default_rng(0)
    counts = np.bincount([pick(logits, 0.7, [rng])[0] for _ in range(4000)], minlength=5)
    expected = 4000 * (logits[0].double() / 0.7).softmax(-1).numpy()
    assert counts[3] == 0
    assert (np.square(counts - expected)[[0, 1, 2, 4]] / expected[[0, 1, 2, 4]]).sum() < 21.1  # chi-square, 3 df, p = 1e-4
    prompts = [random_prompt(rng, n) for n in (4, 9)]
    several = generate(MODEL, prompts, ["FSKG", "GGGG"], 10, 1.0, np.random.default_rng(5))
    again = generate(MODEL, [prompts[0], prompts[1][:3]], ["FSKG", "FFFF"], 10, 1.0, np.random.default_rng(5))
    assert several[0].tolist() == again[0].tolist()
    by_torch = [generate(MODEL, prompts[:1], ["FSKG"], 10, 1.0, torch.Generator().manual_seed(seed))[0].tolist() for seed in (1, 1, 2)]
    assert by_torch[0] == by_torch[1] != by_torch[2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"placements": ["FFF"]}, "has 3 layers, the model has 4"),
        ({"placements": ["FFFX"]}, "unknown mixer X"),
        ({"placements": ["FFFF", "SSSS"]}, "1 prompts and 2 placements"),
        ({"placements": "FFFF"}, "one string"),
        ({"prompts": [torch.tensor([41])]}, "vocabulary of 41"),
        ({"prompts": [torch.tensor([], dtype=torch.int64)]}, "at least one"),
        ({"new_tokens": -1}, "new_tokens is -1"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": 1.0}, "rng is missing"),
    ],
)
def test_what_does_not_fit_is_named(change, says):
    arguments = {"prompts": [torch.tensor([1, 2])], "placements": ["FFFF"], "new_tokens": 3} | change
    with pytest.raises(ValueError, match=says):
        generate(MODEL, **arguments)


def test_no_new_tokens_are_none():
    assert [t.tolist() for t in generate(MODEL, [torch.tensor([1, 2])], ["FFFF"], 0)] == [[]]
