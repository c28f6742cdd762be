"""What the mixers of a layer do over pages: the project's own modules, between them the keys, values and states that vLLM's pages hold.

Shapes: R rows, T new tokens of each, D hidden, H heads, d head dimension, P pages of a layer, n pages of a row, N tokens in them.
Imports without vLLM.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from supernet.ops.cache import grouped


def attends(mixer: nn.Module | type[nn.Module]) -> bool:
    """Whether a mixer keeps keys and values of tokens; the others keep a state of one size."""
    return hasattr(mixer, "qkv")


def attend(mixer: nn.Module, x: Tensor, starts: Sequence[int], pages: Tensor, table: Tensor) -> Tensor:
    """The next tokens x [R, T, D] of rows that have seen ``starts``: [R, T, D]; their keys and values are written.

    ``pages`` [P, kv_heads, tokens, 2 d]: keys, then values. ``table`` [R, n]: the pages of each row, in order.
    """
    R, T, _ = x.shape
    tokens, window, table = pages.shape[2], mixer.config.window, table.long()
    start = torch.tensor(starts)
    q, k, v = mixer.qkv(x, start)
    own = (start[:, None] + torch.arange(T)).to(x.device)
    pages[table.gather(1, own // tokens), :, own % tokens] = torch.cat([k, v], -1).transpose(1, 2)
    first = (start - window + 1).clamp(min=0) // tokens if mixer.windowed else torch.zeros_like(start)
    count = int(((start + T - 1) // tokens - first).max()) + 1
    which = (first[:, None] + torch.arange(count)).to(x.device)
    held = pages[table.gather(1, which.clamp(max=table.shape[1] - 1))].transpose(1, 2).flatten(2, 3)  # [R, kv_heads, N, 2 d]
    position = (which[:, :, None] * tokens + torch.arange(tokens, device=x.device)).flatten(1)
    distance = own[:, :, None] - position[:, None, :]
    seen = distance >= 0
    if mixer.windowed:
        seen &= distance < window
    # A slot that no token sees may hold what another request left, as NaN in this dtype, and 0 * NaN is NaN.
    k, v = held.masked_fill(~seen.any(1)[:, None, :, None], 0).chunk(2, -1)
    return mixer.out(grouped(q, k, v, seen[:, None]))


def recur(mixer: nn.Module, x: Tensor, starts: Sequence[int], views: Sequence[Tensor], table: Tensor) -> Tensor:
    """The same for a delta rule. ``views``: the tensors of its ``state_shapes``, with P in front; a row's are in its first page."""
    at = table[:, 0].long()
    state = [view[at] for view in views]
    for row in (row for row, start in enumerate(starts) if start == 0):
        for tensor in state:
            tensor[row] = 0
    mixed = mixer.extend(x, state, torch.tensor(starts))
    for view, new in zip(views, state, strict=True):
        view[at] = new
    return mixed
