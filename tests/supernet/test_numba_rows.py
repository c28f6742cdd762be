"""Norm, gated MLP, rotation and loss in one pass, against float64 and against the same in torch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.layers import RMSNorm, SwiGLU, rotate
from supernet.ops import kernels, numba_rows

TYPES = st.sampled_from([torch.float32, torch.bfloat16])
CONFIG = SupernetConfig(layers=3, hidden=24, ffn=40, heads=2, kv_heads=1, head_dim=12, vocab=50, window=4, qk_norm=True)
SIZES = st.sampled_from([1, 2, 7, 16, 33, 64, 130])


@pytest.fixture(autouse=True)
def numba_here():
    kernels.use("numba")
    with torch.inference_mode():
        yield
    kernels.use("torch")


def numbers(*shape, seed=0, spread=1.0, dtype=torch.float32):
    return (spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def assert_near(found, right):
    """To 1e-6 in float32, to half of the last bit in bfloat16."""
    error = {torch.float32: 2e-6, torch.bfloat16: 2**-8}[found.dtype]
    assert found.shape == right.shape
    assert ((found.double() - right).abs() <= error * right.abs() + 1e-7 * right.abs().max()).all()


@settings(max_examples=30, deadline=None)
@given(rows=SIZES, size=SIZES, spread=st.sampled_from([1e-3, 1.0, 1e4]), dtype=TYPES)
def test_norm(rows, size, spread, dtype):
    x, norm = numbers(2, rows, size, spread=spread, dtype=dtype), RMSNorm(size, 1e-5).to(dtype)
    norm.weight.data = numbers(size, seed=1, dtype=dtype)
    wide = x.double()
    assert_near(norm(x), wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.double())
    assert_near(norm(x.transpose(0, 1)), norm(x).transpose(0, 1).double())


@settings(max_examples=30, deadline=None)
@given(rows=SIZES, size=SIZES, spread=st.sampled_from([1e-3, 1.0, 30.0]), dtype=TYPES)
def test_swiglu(rows, size, spread, dtype):
    gate, up = numbers(rows, size, spread=spread, dtype=dtype), numbers(rows, size, seed=1, dtype=dtype)
    right = F.silu(gate.double()) * up.double()
    found = kernels.swiglu(gate, up)
    assert found.data_ptr() == gate.data_ptr()
    assert_near(found, right)


@settings(max_examples=30, deadline=None)
@given(rows=SIZES, vocab=SIZES, spread=st.sampled_from([0.1, 5.0, 300.0]), dtype=TYPES, block=st.sampled_from([5, 64, 4096]))
def test_loss(rows, vocab, spread, dtype, block):
    x, weight = numbers(rows, 8, spread=spread, dtype=dtype), numbers(vocab, 8, seed=1, dtype=dtype)
    targets = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba_rows, "BLOCK", block)
        found = numba_rows.head_loss(x, weight, targets)
    logits = torch.cat([F.linear(x, part) for part in weight.split(block)], 1).double()  # as rounded, which the whole's may not be
    right = F.cross_entropy(logits, targets, reduction="none")
    assert found.dtype == torch.float32
    assert ((found - right).abs() <= 2e-6 * logits.abs().max().clamp(min=1)).all()


@settings(max_examples=20, deadline=None)
@given(tokens=SIZES, heads=st.integers(1, 3), d=st.sampled_from([2, 6, 32]), start=st.integers(0, 99), dtype=TYPES, strided=st.booleans())
def test_rotation(tokens, heads, d, start, dtype, strided):
    x = numbers(2, tokens, heads, d, dtype=dtype).transpose(1, 2)
    x = x if strided else x.contiguous()
    found = rotate(x, CONFIG.rope, start)
    kernels.use("torch")
    right = rotate(x.float(), CONFIG.rope, start).double()
    kernels.use("numba")
    assert found.dtype == dtype
    assert_near(found, right)


def test_bits_are_rounded_as_torch_rounds_them():
    """Any number and every tie, by a rotation of 0 radians."""
    any_number = torch.randint(-(2**31), 2**31, (100_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    ties = torch.arange(-(2**16), 2**16, dtype=torch.int32) * 2**15
    x = torch.cat([any_number, ties]).view(torch.float32)
    x = x[x.isfinite()][None, None, None, : 2 * 10**5]
    cos, out = torch.ones(1, x.shape[-1] // 2), torch.empty(x.shape, dtype=torch.bfloat16)
    numba_rows._rotate_sequences(x.numpy(), cos.numpy(), (0 * cos).numpy(), out.view(torch.uint16).numpy(), 0, 1)
    assert torch.equal(out, x.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_in_its_row(dtype):
    x = numbers(4, 20, dtype=dtype)
    x[1, 3], x[2, 0] = torch.nan, torch.inf
    weight = torch.ones(20, dtype=dtype)
    for found in (kernels.rms_norm(x, weight, 1e-5), kernels.swiglu(x.clone(), x.clone())):
        assert found[[0, 3]].isfinite().all() and found[1, 3].isnan() and not found[2, 0].isfinite()
    loss = numba_rows.head_loss(x, torch.eye(20, dtype=dtype), torch.zeros(4, dtype=torch.int64))
    assert loss[[0, 3]].isfinite().all() and loss[1:3].isnan().all()


def test_the_loss_is_one_pass_where_rows_are_wide(monkeypatch):
    taken = []
    monkeypatch.setattr(numba_rows, "head_loss", lambda x, weight, _: taken.append((len(x), len(weight))) or torch.zeros(len(x)))
    for vocab in (kernels.WIDE - 1, kernels.WIDE):
        kernels.head_loss(numbers(3, 5), numbers(vocab, 5), torch.zeros(3, dtype=torch.int64), 2 * numba_rows.BLOCK // 3 + 1)
    assert taken == [(2, kernels.WIDE), (1, kernels.WIDE)]  # as many rows at once as may be held


def test_few_rows_at_once_change_nothing():
    x, weight, targets = numbers(7, 5), numbers(40, 5, seed=1), torch.arange(7)
    whole, parts = (kernels.head_loss(x, weight, targets, at_once) for at_once in (10**6, 1))
    assert torch.allclose(whole, parts, atol=1e-6)


def test_tokens_that_cannot_be_have_an_infinite_loss(monkeypatch):
    monkeypatch.setattr(numba_rows, "BLOCK", 2)  # the first block of a row may hold nothing but them
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf, 1.0, -torch.inf], [-torch.inf, -torch.inf, 3.0]])
    monkeypatch.setattr(numba_rows.F, "linear", lambda _, weight: logits[:, weight[:, 0].long()].contiguous())
    assert numba_rows.head_loss(torch.zeros(3, 1), torch.arange(3.0)[:, None], torch.tensor([1, 1, 2])).tolist() == [torch.inf, 0.0, 0.0]


def test_threads_change_no_bit(monkeypatch):
    from supernet.ops import numba_loops

    def all_of_them():
        x, logits = numbers(9, 70), numbers(300, 70, seed=2)
        return [
            kernels.rms_norm(x, torch.ones(70), 1e-5), kernels.swiglu(x.clone(), x), numba_rows.head_loss(x, logits, torch.arange(9)),
            rotate(numbers(9, 2, 5, 8), CONFIG.rope),
        ]  # fmt: skip

    one = all_of_them()
    monkeypatch.setattr(numba_loops, "SMALL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert all(map(torch.equal, all_of_them(), one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_of_parameters_can_be_freed_afterwards(dtype):
    """As sharded training (FSDP) does, which Tensor.numpy() forbids."""
    with torch.inference_mode(False), torch.no_grad():
        norm, mlp, x = RMSNorm(8, 1e-5).to(dtype), SwiGLU(8, 16).to(dtype), numbers(2, 3, 8, dtype=dtype)
        mlp(norm(x))
        assert all(p.untyped_storage().resizable() for p in [*norm.parameters(), *mlp.parameters()])


def test_a_whole_model_says_the_same():
    torch.manual_seed(0)
    model, tokens = Supernet(CONFIG), torch.randint(50, (2, 17), generator=torch.Generator().manual_seed(0))
    found = model(tokens, "FSF")
    kernels.use("torch")
    assert torch.allclose(found, model(tokens, "FSF"), atol=2e-6)
