"""Mixers in one compiled pass, against their own ways in torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.config import SupernetConfig
from supernet.decoder import stored
from supernet.mixers import MIXERS
from supernet.ops import kernels

WIDE = SupernetConfig(layers=1, hidden=24, ffn=8, heads=2, kv_heads=1, head_dim=8, vocab=8, window=4)


@pytest.fixture(autouse=True)
def torch_afterwards():
    yield
    kernels.use("torch")


def mixer_of(letter, config, spread=1.0):
    torch.manual_seed(0)
    mixer = MIXERS[letter](config)
    for p in mixer.parameters():
        torch.nn.init.normal_(p, std=spread * (p.shape[-1] ** -0.5 if p.ndim > 1 else 1.0))
    return mixer


def both(mixer, x, first=0):
    """The reference in torch, and the one pass."""
    found = []
    with torch.inference_mode():
        for way in ("torch", "numba"):
            kernels.use(way)
            assert kernels.fused(x) == (way == "numba")
            found.append(mixer(x, first))
    return found


def assert_near(found, right):
    assert found.shape == right.shape and found.dtype == right.dtype
    assert float((found - right).abs().max()) <= 5e-6 * max(1.0, float(right.abs().max()))


@settings(max_examples=25, deadline=None)
@given(
    letter=st.sampled_from("KG"),
    tokens=st.integers(1, 40),
    dims=st.sampled_from([(1, 2, 8, 8, 8), (2, 4, 5, 33, 7), (3, 3, 32, 64, 32)]),
    gate=st.sampled_from(["silu", "sigmoid"]),
    width=st.sampled_from([1, 2, 4]),
    spread=st.sampled_from([0.1, 1.0, 6.0]),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_one_pass_is_what_torch_computes(letter, tokens, dims, gate, width, spread, share):
    key_heads, heads, K, V, d = dims
    config = WIDE.replace(
        gdn_key_heads=key_heads, gdn_value_heads=heads, gdn_key_dim=K, gdn_value_dim=V, kda_heads=heads, kda_dim=d, kda_gate=gate,
        conv_width=width,
    )  # fmt: skip
    x = torch.randn(3, tokens, config.hidden, generator=torch.Generator().manual_seed(tokens))
    assert_near(*reversed(both(mixer_of(letter, config, spread), x, int(share * (tokens - 1)))))


@settings(max_examples=40, deadline=None)
@given(
    letter=st.sampled_from("FS"),
    tokens=st.one_of(st.integers(1, 12), st.integers(30, 100)),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2)]),
    d=st.sampled_from([2, 8, 32, 40, 64]),
    window=st.sampled_from([1, 2, 7, 32, 33, 64, 200]),
    norms=st.booleans(),
    spread=st.sampled_from([0.1, 1.0, 6.0]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_attention_in_one_pass_is_what_torch_computes(letter, tokens, heads, d, window, norms, spread, share):
    """Whole and parted blocks of queries, keys and channels; scores up to hundreds, so that one weight is nearly all."""
    config = WIDE.replace(heads=heads[0], kv_heads=heads[1], head_dim=d, window=window, qk_norm=norms)
    x = torch.randn(3, tokens, config.hidden, generator=torch.Generator().manual_seed(tokens))
    right, found = both(mixer_of(letter, config, spread), x, int(share * (tokens - 1)))
    scale = max(1.0, float(right.abs().max()))
    assert found.shape == right.shape and float((found - right).abs().max()) <= (5e-6 if spread <= 1 else 1e-3) * scale


@settings(max_examples=25, deadline=None)
@given(letter=st.sampled_from("FSKG"), tokens=st.integers(1, 30), share=st.floats(0, 1), way=st.sampled_from(["torch", "numba"]))
def test_the_last_tokens_alone_are_the_end_of_all(letter, tokens, share, way):
    config = WIDE.replace(qk_norm=True)
    mixer, first = mixer_of(letter, config), int(share * (tokens - 1))
    x = torch.randn(2, tokens, config.hidden, generator=torch.Generator().manual_seed(tokens))
    kernels.use(way)
    with torch.inference_mode():
        assert_near(mixer(x, first), mixer(x)[:, first:])


@pytest.mark.parametrize("letter", "FSKG")
def test_in_bfloat16_it_is_nearer_to_what_float64_computes(letter):
    """Which rounds once where torch rounds after every operation."""
    mixer, x = mixer_of(letter, WIDE).bfloat16(), torch.randn(3, 40, WIDE.hidden, generator=torch.Generator().manual_seed(0)).bfloat16()
    for name, p in mixer.named_parameters():
        p.data = p.data.to(stored(name, torch.bfloat16))
    torch_way, one_pass = both(mixer, x)
    right = mixer.float()(x.float()).detach()
    assert one_pass.dtype == torch.bfloat16
    assert (one_pass.float() - right).norm() < (torch_way.float() - right).norm() < 0.02 * right.norm()


@pytest.mark.parametrize("letter", "KG")
def test_decays_that_forget_all_and_nothing(letter):
    mixer, x = mixer_of(letter, WIDE), torch.randn(2, 20, WIDE.hidden, generator=torch.Generator().manual_seed(0))
    for bias in (-1e30, -200.0, 200.0, 1e30):
        torch.nn.init.constant_(mixer.dt_bias, bias)
        right, found = both(mixer, x)
        assert torch.isfinite(found).all()
        assert_near(found, right)


@pytest.mark.parametrize("letter", "FSKG")
def test_a_sequence_does_not_depend_on_the_others_and_a_nan_stays_in_its_own(letter):
    mixer, x = mixer_of(letter, WIDE), torch.randn(3, 20, WIDE.hidden, generator=torch.Generator().manual_seed(0))
    x[1, 7] = torch.nan
    found = both(mixer, x)[1]
    assert torch.isfinite(found[::2]).all() and torch.isnan(found[1, 7]).all()
    if letter != "S":
        assert torch.isnan(found[1, 7:]).all()  # a window forgets
    if letter in "KG":
        assert torch.isfinite(found[1, :7]).all()  # attention's queries go together, torch's too, and 0 times no number is none
    assert torch.equal(found[2], both(mixer, x[2:])[1][0])


@pytest.mark.parametrize("letter", "FSKG")
def test_gradients_other_types_and_other_kernels_take_the_other_path(letter):
    mixer, x = mixer_of(letter, WIDE), torch.randn(1, 5, WIDE.hidden)
    kernels.use("numba")
    assert not kernels.fused(x)
    mixer(x).sum().backward()
    assert all(p.grad is not None for p in mixer.parameters())
    with torch.no_grad():
        assert kernels.fused(x) and kernels.fused(x.bfloat16()) and not kernels.fused(x.half()) and not kernels.fused(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not kernels.fused(x)


@pytest.mark.parametrize("letter", "FSKG")
def test_threads_change_no_bit(letter, monkeypatch):
    from supernet.ops import numba_loops

    mixer, x = mixer_of(letter, WIDE), torch.randn(5, 9, WIDE.hidden, generator=torch.Generator().manual_seed(0))
    one = both(mixer, x)[1]
    monkeypatch.setattr(numba_loops, "SMALL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(both(mixer, x)[1], one)


@pytest.mark.parametrize("letter", "FSKG")
def test_memory_of_parameters_can_be_freed_afterwards(letter):
    """As sharded training (FSDP) does, which Tensor.numpy() forbids."""
    mixer = mixer_of(letter, WIDE)
    both(mixer, torch.zeros(2, 5, WIDE.hidden))
    assert all(p.untyped_storage().resizable() for p in mixer.parameters())
