import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from supernet.ops.delta_rule import delta_rule_chunked, delta_rule_recurrent
from supernet.ops.kernels import delta_rule

NAMES = ("q", "k", "v", "g", "beta", "state")


def case(seed, tokens, per_channel, decay, K=6, V=5, same_keys=False):
    """Random inputs with unit keys; ``decay`` is the strongest log decay per step."""
    rng = np.random.default_rng(seed)
    B, H = 2, 3

    def tensor(*shape):
        return torch.tensor(rng.normal(size=shape), dtype=torch.float32)

    unit = torch.nn.functional.normalize
    q, k = unit(tensor(B, tokens, H, K), dim=-1), unit(tensor(B, tokens, H, K), dim=-1)
    if same_keys:
        k = k[:, :1].expand_as(k).clone()
    g = -decay * torch.tensor(rng.random((B, tokens, H, K if per_channel else 1)), dtype=torch.float32)
    beta = torch.tensor(rng.random((B, tokens, H)), dtype=torch.float32)
    return [q, k, tensor(B, tokens, H, V), g, beta, 0.5 * tensor(B, H, K, V)]


def run(function, inputs, weight, **options):
    """Output, final state and the gradients of a weighted sum of both."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    output, state = function(*inputs, **options)
    ((output * weight).sum() + state.square().sum()).backward()
    return output.detach(), state.detach(), [x.grad for x in inputs]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 70),
    per_channel=st.booleans(),
    decay=st.sampled_from([0.0, 0.05, 1.0, 3.9, 8.0, 20.0]),
    chunk=st.sampled_from([4, 16, 32]),
    same_keys=st.booleans(),
)
@example(seed=0, tokens=9, per_channel=False, decay=8.0, chunk=16, same_keys=False)  # mild enough for e^{-G}, not for its square
def test_chunked_equals_recurrent_forward_and_backward(seed, tokens, per_channel, decay, chunk, same_keys):
    inputs = case(seed, tokens, per_channel, decay, same_keys=same_keys)
    weight = torch.tensor(np.random.default_rng(seed + 1).normal(size=inputs[2].shape), dtype=torch.float32)
    expected, found = run(delta_rule_recurrent, inputs, weight), run(delta_rule_chunked, inputs, weight, chunk=chunk)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)
    for name, a, b in zip(NAMES, found[2], expected[2], strict=True):
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a / scale, b / scale, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"gradient of {name}: {m}")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    per_channel=st.booleans(),
    chunk=st.sampled_from([4, 16, 32]),
    reset=st.sampled_from([-30.0, -61.0, -90.0, -110.0, -1e4, -1e6, -3e38, -torch.inf]),
    share=st.sampled_from([0.01, 0.1, 0.5]),
)
@example(seed=0, per_channel=True, chunk=16, reset=-torch.inf, share=1.0)
def test_tokens_that_forget_everything_leave_the_others_exact(seed, per_channel, chunk, reset, share):
    """A reset among mild decays: what follows in its chunk is the recurrence's, values and gradients, however strong it is."""
    inputs = case(seed, 50, per_channel, 0.05)
    inputs[3][torch.rand(inputs[3].shape, generator=torch.Generator().manual_seed(seed)) < share] = reset
    weight = torch.tensor(np.random.default_rng(seed + 1).normal(size=inputs[2].shape), dtype=torch.float32)
    expected, found = run(delta_rule_recurrent, inputs, weight), run(delta_rule_chunked, inputs, weight, chunk=chunk)
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    for name, a, b in zip(NAMES, found[2], expected[2], strict=True):
        assert (a - b).norm() <= 1e-5 * max(1.0, float(b.norm())), name


@pytest.mark.parametrize("per_channel", [True, False])
def test_both_ways_of_pair_products_are_taken_and_agree(per_channel, monkeypatch):
    """Mild decays take the factored products, strong ones the masked pairs; forced to the other way, mild ones give the same."""
    from supernet.ops import delta_rule as module

    calls = []
    pairs = module._pair_products
    monkeypatch.setattr(module, "_pair_products", lambda *args: calls.append(1) or pairs(*args))
    mild, strong = case(0, 40, per_channel, 0.5), case(0, 40, per_channel, 20.0)
    factored = delta_rule_chunked(*mild)
    assert not calls
    delta_rule_chunked(*strong)
    assert len(calls) == 1
    monkeypatch.setattr(module, "STRONG", 0.0)
    for a, b in zip(factored, delta_rule_chunked(*mild), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert len(calls) == 2


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("decay", [2.0, 20.0, 200.0])
def test_gradients_stay_finite_under_strong_decay(decay, per_channel):
    inputs = case(1, 50, per_channel, decay)
    inputs[3] = torch.full_like(inputs[3], -decay)
    _, _, gradients = run(delta_rule_chunked, inputs, torch.ones_like(inputs[2]))
    assert all(torch.isfinite(g).all() for g in gradients)


def test_sequence_may_be_cut_anywhere_when_the_state_is_handed_on():
    *inputs, state = case(2, 45, True, 1.0)
    whole, end = delta_rule_chunked(*inputs, state)
    first, middle = delta_rule_chunked(*(x[:, :19] for x in inputs), state)
    second, last = delta_rule_chunked(*(x[:, 19:] for x in inputs), middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(last, end, atol=1e-6, rtol=1e-5)


def test_padding_at_the_right_end_changes_nothing_before_it():
    inputs = case(3, 40, True, 1.0)[:5]
    garbage = [x.clone() for x in inputs]
    for x in garbage:
        x[:, 23:] = 7.0 if x is not garbage[3] else -7.0
    torch.testing.assert_close(delta_rule(*garbage)[:, :23], delta_rule(*inputs)[:, :23], atol=1e-6, rtol=0)


def test_decay_per_head_is_a_constant_decay_per_channel():
    q, k, v, g, beta, state = case(4, 37, False, 2.0)
    a = delta_rule_chunked(q, k, v, g, beta, state)
    b = delta_rule_chunked(q, k, v, g.expand_as(k), beta, state)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


def test_recurrent_step_by_hand():
    """One head, K = V = 1: S1 = b v k, then S2 = e^g S1 + b k (v - e^g S1 k), o = S q."""
    q, k, v = (torch.tensor([[[[a]], [[b]]]]) for a, b in ((2.0, 3.0), (1.0, 0.5), (4.0, 6.0)))
    g, beta = torch.log(torch.tensor([[[[1.0]], [[0.5]]]])), torch.tensor([[[0.5], [1.0]]])
    output, state = delta_rule_recurrent(q, k, v, g, beta)
    first = 0.5 * 4.0 * 1.0
    second = 0.5 * first + 1.0 * 0.5 * (6.0 - 0.5 * first * 0.5)
    torch.testing.assert_close(output.flatten(), torch.tensor([2.0 * first, 3.0 * second]))
    torch.testing.assert_close(state.flatten(), torch.tensor([second]))


def test_bfloat16_in_bfloat16_out_but_float32_inside():
    inputs = case(5, 60, True, 0.01)[:5]
    low = [x.bfloat16() for x in inputs[:3]] + inputs[3:]  # decays stay float32: 1 - 0.001 is 1 in bfloat16
    output = delta_rule(*low)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), delta_rule(*[x.float() for x in low]), atol=2e-2, rtol=1e-2)
