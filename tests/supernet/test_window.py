import pytest
import torch

from supernet.ops.window import window_attention, window_attention_blocks, window_attention_masked


def inputs(tokens, dtype=torch.float64):
    g = torch.Generator().manual_seed(tokens)
    return [torch.randn(2, 3, tokens, 4, generator=g, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize(
    "tokens, window", [(12, 4), (13, 4), (15, 4), (8, 4), (5, 4), (9, 1), (2, 1), (1, 1), (7, 7), (7, 9), (70, 16), (33, 32)]
)
def test_blocks_equal_the_mask_forward_and_backward(tokens, window):
    results = []
    for function in (window_attention_masked, window_attention_blocks):
        qkv = inputs(tokens)
        weight = torch.randn(2, 3, tokens, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        o = function(*qkv, window)
        (o * weight).sum().backward()
        results.append([o.detach(), *(x.grad for x in qkv)])
    for masked, blocks in zip(*results, strict=True):
        torch.testing.assert_close(blocks, masked, atol=1e-12, rtol=1e-12)


def test_a_token_sees_itself_and_window_minus_one_before_it():
    q, k, v = (x.detach() for x in inputs(20))
    before = window_attention_blocks(q, k, v, 6)
    v[:, :, 7] += 1.0
    changed = (window_attention_blocks(q, k, v, 6) != before).any(-1)[0, 0].nonzero().flatten().tolist()
    assert changed == list(range(7, 13))


def test_a_window_of_one_returns_the_values():
    q, k, v = (x.detach() for x in inputs(11))
    torch.testing.assert_close(window_attention_blocks(q, k, v, 1), v)


def test_a_cpu_takes_the_mask_bit_for_bit():
    qkv = [x.detach() for x in inputs(40, torch.float32)]
    assert torch.equal(window_attention(*qkv, 8), window_attention_masked(*qkv, 8))
