"""Run by vLLM's environment: ``supernet/serving/gpu.py``, with vLLM's Triton kernels in Triton's interpreter, on a CPU.

Rows with all mixers join, read prompts cut at random and decode in one batch, over pages in which others left NaN. Prints, as JSON, the
largest difference from the mixers' own forward pass by mixer, how many steps and parts there were, and the most
mixers of one step. ``interpreted.py DTYPE``
"""

import json
import sys
from copy import deepcopy
from types import SimpleNamespace

import interpreter  # before anything that imports vLLM
import torch

from supernet.config import SupernetConfig
from supernet.mixers import MIXERS
from supernet.serving import gpu
from supernet.serving.mixing import attends
from supernet.serving.pages import page_tokens, state_views

CONFIG = SupernetConfig(
    layers=1, hidden=32, ffn=8, heads=4, kv_heads=2, head_dim=16, vocab=7, window=11, qkv_bias=True, kda_gate="sigmoid", gdn_key_heads=2,
    gdn_value_dim=32,
)  # fmt: skip
LETTERS = "FSKGFSKG"
LENGTHS = (90, 75, 81, 70, 3, 20, 1, 34)


@torch.inference_mode()
def main(dtype):
    interpreter.name_again()
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    mixers = {letter: mixer(CONFIG).to(dtype) for letter, mixer in MIXERS.items()}
    for letter in "KG":
        for name, p in mixers[letter].named_parameters():
            p.data = p.float() if name.endswith(("A_log", "dt_bias")) else torch.randn(p.shape, generator=rng).mul(0.3).to(dtype)
    x = [torch.randn(n, CONFIG.hidden, generator=rng).to(dtype) for n in LENGTHS]
    found = [torch.zeros_like(row) for row in x]
    N = page_tokens(CONFIG, dtype)
    most = -(-max(LENGTHS) // N)
    count = 1 + most * len(x)
    pages = torch.full((count, CONFIG.kv_heads, N, 2 * CONFIG.head_dim), torch.nan, dtype=dtype)
    pages[0] = 0  # vLLM's null block
    views = {}
    for letter, mixer in MIXERS.items():
        shapes = [] if attends(mixer) else mixer.state_shapes(CONFIG, 1, dtype)
        views[letter] = state_views(pages, [(gpu.shape_of_state(s), of) for s, of in shapes]) if shapes else pages
    table = (1 + torch.randperm(count - 1, generator=rng)).view(len(x), most).int()
    seen, steps, parts, widest = [0] * len(x), 0, 0, 0
    while any(left := [n - s for n, s in zip(LENGTHS, seen, strict=True)]):
        rows = [i for i, n in enumerate(left) if n and torch.rand((), generator=rng) < 0.8]
        if not rows:
            continue
        new = [min(left[i], 1 if torch.rand((), generator=rng) < 0.4 else int(torch.randint(1, 70, (), generator=rng))) for i in rows]
        bounds = torch.tensor([0, *new]).cumsum(0).tolist()
        starts = [seen[i] for i in rows]
        held = table[rows].clone()
        for row, i in enumerate(rows):
            if LETTERS[i] == "S":
                held[row, : max(0, starts[row] - CONFIG.window + 1) // N] = 0  # given back
        positions = [torch.arange(s, s + n) for s, n in zip(starts, new, strict=True)]
        slots = [held[row, p // N] * N + p % N for row, p in enumerate(positions)]
        lengths = torch.tensor([s + n for s, n in zip(starts, new, strict=True)], dtype=torch.int32)
        metadata = SimpleNamespace(
            block_table_tensor=held, seq_lens=lengths, slot_mapping=torch.cat(slots).long(), max_seq_len=int(lengths.max())
        )
        batch = torch.cat([x[i][s : s + n] for i, s, n in zip(rows, starts, new, strict=True)])
        out = torch.zeros_like(batch)
        planned = gpu.plan([LETTERS[i] for i in rows], bounds, starts, batch.device)
        for part in planned:
            out[part.tokens] = gpu.mix(mixers[part.letter], batch[part.tokens], part, views[part.letter], metadata)
        for row, i in enumerate(rows):
            found[i][starts[row] : starts[row] + new[row]] = out[bounds[row] : bounds[row + 1]]
            seen[i] += new[row]
        steps, parts, widest = steps + 1, parts + len(planned), max(widest, len({part.letter for part in planned}))
    worst = dict.fromkeys(MIXERS, 0.0)
    for letter, row, got in zip(LETTERS, x, found, strict=True):
        right = deepcopy(mixers[letter]).float()(row.float()[None])[0]
        worst[letter] = max(worst[letter], float((got.float() - right).norm() / right.norm()))
    print(json.dumps({"worst": worst, "steps": steps, "parts": parts, "widest": widest}))


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
