"""Sliding-window attention by blocks: O(T w) work and memory instead of O(T^2). Shapes: B batch, H heads, T tokens, d head dimension."""

import torch
import torch.nn.functional as F
from torch import Tensor


def window_attention_masked(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The definition, over all pairs: token i attends j with 0 <= i - j < window. k, v [B, H, T, d]; q may be of the last tokens only,
    [B, H, T or fewer, d] -> the same."""
    T = k.shape[2]
    distance = torch.arange(T - q.shape[2], T, device=q.device)[:, None] - torch.arange(T, device=q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance < window))


def window_attention_blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The same: in blocks of ``window`` tokens a query reaches its own block and the one before, under one mask for all of them.

    The first block has nothing before it and is plain causal attention. The last is padded: nobody looks ahead at what is added.
    """
    (_, H, T, _), w = q.shape, window
    first = F.scaled_dot_product_attention(q[:, :, :w], k[:, :, :w], v[:, :, :w], is_causal=True)
    if w >= T:
        return first
    blocks = -(-T // w)
    q, k, v = (F.pad(x, (0, 0, 0, blocks * w - T)).unflatten(2, (blocks, w)) for x in (q, k, v))
    k, v = (torch.cat([x[:, :, :-1], x[:, :, 1:]], 3).flatten(1, 2) for x in (k, v))  # [B, H * (blocks - 1), 2 w, d]
    distance = torch.arange(w, device=q.device)[:, None] + w - torch.arange(2 * w, device=q.device)
    rest = F.scaled_dot_product_attention(q[:, :, 1:].flatten(1, 2), k, v, attn_mask=(distance >= 0) & (distance < w))
    return torch.cat([first, rest.unflatten(1, (H, blocks - 1)).flatten(2, 3)[:, :, : T - w]], 2)


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The path that models call, for ``window`` < T: by blocks on CUDA; on a CPU, where sequences are short, masked."""
    return (window_attention_blocks if q.is_cuda else window_attention_masked)(q, k, v, window)
