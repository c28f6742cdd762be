"""Delta rule and window attention: every way there is, forward and with the backward pass, against the plain way."""

import importlib.util
from collections.abc import Callable
from functools import cache

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.bench.timing import NO_GPU, pick, seconds
from supernet.ops import kernels
from supernet.ops.window import window_attention_blocks, window_attention_masked

DIM = 64  # of a head, as at 135m and 0.5b

SIZES = {"cuda": (4096, 14, torch.bfloat16), "cpu": (512, 2, torch.float32)}
"""Tokens, heads and type."""


def run(quick: bool = False) -> pd.DataFrame:
    """One row per operation, way and length: milliseconds forward and forward with backward, and how often as fast as the plain way.

    On a GPU bfloat16, 14 heads and 4096 tokens as at 0.5b; on a CPU float32 and less of everything.
    """
    device = pick()
    tokens, heads, dtype = SIZES[device]
    tokens = tokens // 4 if quick else tokens
    rows = []
    for name, channels in (("KDA", DIM), ("GDN", 1)):
        inputs = delta_inputs(1, tokens, heads, channels, dtype, device)
        ways = {way: delta_way(way) for way in kernels.WAYS if not (way == "fla-kda" and channels > 1)} | {"fla naive": naive(channels)}
        rows += compare(f"delta rule, {name}", ways, inputs, tokens, device)
    for window in (tokens // 32, tokens // 4):
        qkv = [torch.randn(1, heads, tokens, DIM, generator=torch.Generator().manual_seed(i)).to(device, dtype) for i in range(3)]
        ways = {"masked": window_attention_masked, "blocks": window_attention_blocks, "flex": flex}
        fixed = {way: (lambda *x, f=f, w=window: f(*x, w)) for way, f in ways.items()}
        rows += compare(f"window attention, w={window}", fixed | {"causal, no window": causal}, qkv, tokens, device)
    return pd.DataFrame(rows)


def compare(operation: str, ways: dict[str, Callable[..., Tensor]], inputs: list[Tensor], tokens: int, device: str) -> list[dict]:
    """Rows of one operation; the first way is what the others are compared with. A way that cannot run says why."""
    rows, plain = [], None
    inputs = [x.requires_grad_() for x in inputs]
    for way, function in ways.items():
        note = missing(way, device)
        row = {"operation": operation, "way": way, "tokens": tokens, "forward ms": None, "with backward ms": None, "speed-up": None}
        row["note"] = note
        rows.append(row)
        if note:
            continue
        with torch.no_grad():
            row["forward ms"] = 1e3 * seconds(lambda f=function: f(*inputs), device)

        def both(f: Callable[..., Tensor] = function) -> None:
            torch.autograd.grad(f(*inputs).float().sum(), inputs)

        row["with backward ms"] = 1e3 * seconds(both, device)
        plain = plain or row["with backward ms"]
        row["speed-up"] = plain / row["with backward ms"]
    return rows


def missing(way: str, device: str) -> str:
    """Why a way cannot run here, or nothing."""
    if way.startswith("fla") and importlib.util.find_spec("fla") is None:
        return "skipped: fla-core is not installed"
    if way == "numba" and device == "cuda":
        return "skipped: for a CPU"
    return NO_GPU if way in ("fla", "fla-kda", "flex") and device == "cpu" else ""


def delta_inputs(batch: int, tokens: int, heads: int, channels: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """q, k, v, g, beta as the mixers make them."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, tokens, heads, DIM, generator=generator) for _ in range(3))
    g, beta = -0.1 * torch.rand(batch, tokens, heads, channels, generator=generator), torch.rand(batch, tokens, heads, generator=generator)
    return [*(x.to(device, dtype) for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)), g.to(device), beta.to(device)]


def delta_way(way: str) -> Callable[..., Tensor]:
    return lambda *inputs: kernels.run(way, *inputs)[0]


def naive(channels: int) -> Callable[..., Tensor]:
    """fla's own chunked reference in plain torch."""

    def function(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule
        from fla.ops.kda.naive import naive_chunk_kda

        if channels == 1:
            return naive_chunk_gated_delta_rule(q=q, k=k, v=v, g=g.squeeze(-1), beta=beta, scale=1.0)[0]
        return naive_chunk_kda(q=q, k=k, v=v, g=g, beta=beta, scale=1.0)[0]

    return function


def flex(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """torch's flex_attention, compiled, with a block mask of the window."""
    return compiled_flex()(q, k, v, block_mask=window_mask(q.shape[2], window, str(q.device)))


@cache
def compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@cache
def window_mask(tokens: int, window: int, device: str) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < window), None, None, tokens, tokens, device=device)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)
