"""Attention that goes on after kept keys and values. Shapes: B batch, H heads, T new tokens, R kept ones, N both, d head dimension.

The token at position p is kept in slot p % R: a ring where only a window of R tokens is ever seen, otherwise a list with room for every
token. Keys are rotated before they are kept, so their order does not matter.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 16
"""New tokens up to which query heads of one key-value head are put side by side, instead of copying all kept keys and values for each."""


def write(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, start: int | Tensor) -> None:
    """Keep k and v [B, kv_heads, T, d] of the tokens from ``start`` (a number, or [B]) on in keys and values [B, kv_heads, R, d]."""
    B, _, T, _ = k.shape
    R = keys.shape[2]
    dropped = max(0, T - R)  # what the ring would overwrite at once
    if isinstance(start, int) and dropped == 0 and start % R + T <= R:
        slots = slice(start % R, start % R + T)
        keys[:, :, slots], values[:, :, slots] = k, v
        return
    first = start[:, None] if isinstance(start, Tensor) else start
    slots = (first + torch.arange(dropped, T, device=k.device)).expand(B, -1) % R
    rows = torch.arange(B, device=k.device)[:, None]
    keys[rows, :, slots], values[rows, :, slots] = k[:, :, dropped:].transpose(1, 2), v[:, :, dropped:].transpose(1, 2)


def attend_after(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, start: int | Tensor, window: int | None) -> Tensor:
    """q [B, H, T, d] from position ``start`` on over the kept tokens and the new k and v [B, kv_heads, T, d], which are kept: [B, H, T, d].

    ``start``: a number, or [B] on the CPU. ``window`` None: R holds every token. Otherwise token i attends j with 0 <= i - j < window, and
    R is the window or holds every token.
    """
    T, R = q.shape[2], keys.shape[2]
    longest = start if isinstance(start, int) else int(start.max())
    fits = T == 1 or longest + T <= R
    if fits:
        write(k, v, keys, values, start)
        k, v = keys[:, :, : longest + T], values[:, :, : longest + T]
        if T == 1 and isinstance(start, int):
            return grouped(q, k, v, None)
    first = torch.as_tensor(start, device=q.device).view(-1, 1)  # [B] or [1], 1
    own = first + torch.arange(T, device=q.device)
    slot = torch.arange(min(longest + T * fits, R), device=q.device)
    last = first + T * fits - 1
    positions = last - (last - slot) % R  # of what each slot holds; below 0 where it is empty
    if not fits:  # the first of the new tokens still see what the last of them push out of the ring
        old_k, old_v = keys[:, :, : len(slot)].clone(), values[:, :, : len(slot)].clone()
        write(k, v, keys, values, start)
        k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
        positions = torch.cat([positions, own], 1)
    distance = own[:, :, None] - positions[:, None, :]
    seen = (distance >= 0) & (positions >= 0)[:, None, :]
    if window is not None:
        seen &= distance < window
    return grouped(q, k, v, seen[:, None])


def grouped(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """q [B, H, T, d] over k, v [B, kv_heads, N, d] where ``seen`` [B or 1, 1, T, N] (None: everywhere): [B, H, T, d]."""
    B, H, T, d = q.shape
    group = H // k.shape[1]
    if T > FEW:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    if seen is not None:
        seen = seen.repeat(1, 1, group, 1)
    return F.scaled_dot_product_attention(q.reshape(B, -1, group * T, d), k, v, attn_mask=seen).view(B, H, T, d)
