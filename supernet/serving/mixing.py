"""What the mixers of a layer do over pages: the project's own modules, between them the keys, values and states that vLLM's pages hold.

This is for a CPU, in torch; ``gpu.py`` has the same ``plan``, ``shape_of_state`` and ``mix`` for vLLM's kernels. Imports without vLLM.
Shapes: R rows, T new tokens of each, D hidden, H heads, d head dimension, P pages of a layer, n pages of a row, N tokens in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from supernet.ops.cache import grouped


@dataclass
class Part:
    """Rows of a step that take one mixer in a layer and have the same number of new tokens: all that decode are one part."""

    letter: str
    rows: list[int]
    starts: list[int]  # tokens that each has seen before
    tokens: Tensor  # [R, T]: where its new ones are in the batch


def plan(column: Sequence[str], bounds: Sequence[int], starts: Sequence[int], device: torch.device) -> list[Part]:
    """A layer's parts. ``column``: the mixer of each row; row i has the tokens from ``bounds[i]`` on and has seen ``starts[i]`` before."""
    found: dict[tuple[str, int], list[int]] = {}
    for row, letter in enumerate(column):
        if (new := bounds[row + 1] - bounds[row]) > 0:
            found.setdefault((letter, new), []).append(row)
    parts = []
    for (letter, new), rows in found.items():
        tokens = torch.tensor([bounds[row] for row in rows])[:, None] + torch.arange(new)
        parts.append(Part(letter, rows, [starts[row] for row in rows], tokens.to(device)))
    return parts


def shape_of_state(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How a page lays out what a mixer keeps: as the mixer says."""
    return shape


def mix(mixer: nn.Module, x: Tensor, part: Part, pages: Any, metadata: Any) -> Tensor:
    """The part's new tokens x [R, T, D] -> [R, T, D]; what is kept of them is written to the layer's pages.

    ``pages``: [P, kv_heads, N, 2 d] of an attention, or the tensors of a delta rule's ``state_shapes`` with P in front. ``metadata``:
    vLLM's CommonAttentionMetadata of the layer.
    """
    return (attend if attends(mixer) else recur)(mixer, x, part.starts, pages, metadata.block_table_tensor[part.rows])


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
