"""The compiled delta rule: against the recurrence in float64, values and every gradient."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from supernet.ops import kernels, numba_delta
from supernet.ops.numba_delta import delta_rule_numba

NAMES = ("q", "k", "v", "g", "beta", "state")


def exact(q, k, v, g, beta, state):
    """The recurrence as it is defined, in the dtype of its inputs."""
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    S, outputs = state, []
    for t in range(q.shape[1]):
        S = S * g[:, t].exp()[..., None]
        u = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhkv,bhk->bhv", S, k[:, t]))
        S = S + k[:, t, :, :, None] * u[:, :, None, :]
        outputs.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(outputs, 1), S


def case(seed, tokens, per_channel, decay, K=6, V=5, H=4, group=2, B=2):
    random = torch.Generator().manual_seed(seed)
    q, k = (torch.nn.functional.normalize(torch.randn(B, tokens, H // group, K, generator=random), dim=-1) for _ in range(2))
    v, state = torch.randn(B, tokens, H, V, generator=random), torch.randn(B, H, K, V, generator=random)
    g = -decay * torch.rand(B, tokens, H, K if per_channel else 1, generator=random)
    return [q, k, v, g, torch.rand(B, tokens, H, generator=random), state]


def with_gradients(function, inputs, dtype=torch.float32):
    """Output, final state and the gradients of a fixed weighted sum of both."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    o, end = function(*inputs)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype) for x in (o, end)]
    ((o * weights[0]).sum() + (end * weights[1]).sum()).backward()
    return [o.detach(), end.detach(), *(x.grad for x in inputs)]


def assert_near(found: list[Tensor], right: list[Tensor], tolerance: float = 5e-6) -> None:
    for name, a, b in zip(("o", "end", *(f"d_{n}" for n in NAMES)), found, right, strict=True):
        assert a.shape == b.shape and torch.isfinite(a).all(), name
        assert float((a.double() - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max())), name


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 70),
    per_channel=st.booleans(),
    decay=st.sampled_from([0.0, 0.05, 1.0, 8.0, 200.0]),
    K=st.sampled_from([1, 4, 6, 19, 32]),
    V=st.sampled_from([1, 5, 16, 33]),
    group=st.sampled_from([1, 2, 4]),
)
def test_values_and_gradients_are_those_of_float64(seed, tokens, per_channel, decay, K, V, group):
    inputs = case(seed, tokens, per_channel, decay, K, V, group=group)
    assert_near(with_gradients(delta_rule_numba, inputs), with_gradients(exact, inputs, torch.float64))


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_token_that_forgets_everything(per_channel):
    inputs = case(0, 37, per_channel, 0.5)
    inputs[3][:, [0, 5, 16, 36]] = -torch.inf
    right = with_gradients(exact, inputs, torch.float64)
    assert_near(with_gradients(delta_rule_numba, inputs), right)
    assert right[-1].abs().max() == 0  # nothing of the given state is left


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_not_a_number_stays_one(name):
    inputs = case(0, 20, True, 0.5)
    where = inputs[NAMES.index(name)]
    where.view(where.shape[0], -1)[0, 3] = torch.nan
    o, end = delta_rule_numba(*inputs)
    assert torch.isnan(o[0]).any() and not torch.isnan(o[1]).any() and not torch.isnan(end[1]).any()


def test_the_numbers_do_not_depend_on_threads_or_on_what_else_is_in_the_batch(monkeypatch):
    from supernet.ops import numba_loops

    inputs = case(3, 45, True, 0.5)
    one = with_gradients(delta_rule_numba, inputs)
    monkeypatch.setattr(numba_loops, "SMALL", 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        three = with_gradients(delta_rule_numba, inputs)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
    alone = delta_rule_numba(*(x[1:] for x in inputs))
    assert torch.equal(alone[0], one[0][1:]) and torch.equal(alone[1], one[1][1:])


def test_a_sequence_may_be_cut_anywhere_down_to_single_tokens():
    *inputs, state = case(2, 41, True, 1.0)
    whole, end = delta_rule_numba(*inputs, state)
    parts = []
    for cut in (slice(0, 19), slice(19, 20), slice(20, 41)):
        o, state = delta_rule_numba(*(x[:, cut] for x in inputs), state)
        parts.append(o)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(state, end, atol=1e-6, rtol=1e-6)


def test_the_given_tensors_are_left_as_they_were_and_bfloat16_is_computed_in_float32():
    inputs = case(4, 33, False, 0.1)
    low = [x.bfloat16() for x in inputs[:3]] + inputs[3:]
    copies = [x.clone() for x in low]
    o, end = delta_rule_numba(*low)
    assert o.dtype == torch.bfloat16 and end.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(low, copies, strict=True))
    assert torch.equal(o, delta_rule_numba(*(x.float() for x in low))[0].bfloat16())
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in low]
    assert torch.equal(o, delta_rule_numba(*transposed)[0])


def test_the_self_test_passes_far_within_its_tolerance_and_the_dispatch_takes_it_on_a_cpu(monkeypatch):
    errors = kernels.self_test("numba", "float32", (64, 64, 64), "cpu")
    assert max(errors.values()) < 2e-6 and not kernels.failures(errors, "float32", "numba")
    assert not kernels.failures(kernels.self_test("numba", "bfloat16", (6, 5, 4), "cpu"), "bfloat16", "numba")
    assert kernels.failures({"a": 2e-5}, "float32", "numba") == ["a"] and kernels.failures({"a": 2e-5}, "float32", "fla") == []
    monkeypatch.setattr(kernels, "_way", "torch")
    kernels.use("numba")
    inputs = case(5, 30, True, 0.5)[:5]
    assert torch.equal(kernels.delta_rule(*inputs), delta_rule_numba(*inputs)[0])


def test_what_memory_held_before_does_not_reach_the_gradients(monkeypatch):
    inputs = [x.requires_grad_() for x in case(0, 20, True, 0.1)]
    expected = torch.autograd.grad(delta_rule_numba(*inputs)[0].square().sum(), inputs)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(float("nan")))
    found = torch.autograd.grad(delta_rule_numba(*inputs)[0].square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_change_in_one_file_of_loops_makes_those_that_call_it_anew(tmp_path):
    """Compiled code holds that of what it calls, and is kept for the next process."""
    package = tmp_path / "supernet"
    shutil.copytree(Path(numba_delta.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import torch
from supernet.ops import numba_rows
print(float(numba_rows.swiglu(torch.ones(1, 1), torch.ones(1, 1))))
"""

    def result():
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return float(subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=tmp_path, text=True))

    loops = package / "ops" / "numba_loops.py"
    assert result() == result() == pytest.approx(0.7310586)
    loops.write_text(loops.read_text(encoding="utf-8").replace("    x = LOW if x < LOW else x\n", "    x = ZERO\n"), encoding="utf-8")
    assert result() == pytest.approx(0.5)
