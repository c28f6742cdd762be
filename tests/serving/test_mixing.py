"""Mixers over pages against the mixers' own forward pass. No vLLM is needed."""

import pytest
import torch

from supernet.config import SupernetConfig
from supernet.mixers import MIXERS
from supernet.serving.mixing import attend, attends, recur

CONFIG = SupernetConfig(
    layers=1, hidden=32, ffn=8, heads=4, kv_heads=2, head_dim=8, vocab=7, window=11, qkv_bias=True, kda_gate="sigmoid", gdn_key_heads=2
)
TOKENS = 4  # of a page


def pieces(rng, lengths):
    """Rows of these lengths, cut at random: at each step the rows that go on, all by the same number of tokens."""
    seen = [0] * len(lengths)
    while any(left := [n - s for n, s in zip(lengths, seen, strict=True)]):
        rows = [i for i, n in enumerate(left) if n and torch.rand((), generator=rng) < 0.7]
        if rows:
            T = min(int(torch.randint(1, 9, (), generator=rng)), *(left[i] for i in rows), 8)
            yield rows, [seen[i] for i in rows], T
            for i in rows:
                seen[i] += T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("letter", MIXERS)
@torch.inference_mode()
def test_pieces_of_rows_over_used_pages_are_the_whole_forward(letter, dtype):
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    mixer, lengths = MIXERS[letter](CONFIG).to(dtype), [29, 3, 17, 40]
    x = [torch.randn(1, n, CONFIG.hidden, generator=rng).to(dtype) for n in lengths]
    found, count = [torch.zeros_like(row) for row in x], 40 // TOKENS
    table = (1 + torch.randperm(count * 4, generator=rng)).view(4, count)
    # What others left in the pages is NaN.
    pages = torch.full((count * 4 + 1, CONFIG.kv_heads, TOKENS, 2 * CONFIG.head_dim), torch.nan, dtype=dtype)
    views = [torch.full((count * 4 + 1, *shape), torch.nan, dtype=of) for shape, of in mixer.state_shapes(CONFIG, 1, dtype)]
    for rows, starts, T in pieces(rng, lengths):
        new = torch.cat([x[i][:, s : s + T] for i, s in zip(rows, starts, strict=True)])
        over = (attend, pages) if attends(mixer) else (recur, views)
        out = over[0](mixer, new, starts, over[1], table[rows])
        for i, s, row in zip(rows, starts, out, strict=True):
            found[i][0, s : s + T] = row
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for row, got in zip(x, found, strict=True):
        torch.testing.assert_close(got, mixer(row), rtol=tolerance, atol=tolerance)
