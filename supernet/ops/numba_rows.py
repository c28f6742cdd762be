"""What a block and the head do row by row, each in one compiled pass on a CPU (numba), without gradients.

torch goes through memory once per operation; here a row is read once and written once. Rows are float32 or bfloat16; the arithmetic is
float32 and the result is rounded once. The slow references, with gradients and on any device, are beside the dispatch in ``kernels.py``.

Shapes: R rows, C channels, V vocabulary.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.ops.numba_loops import LOWEST, ONE, UNSIGNED, ZERO, distinct, exp, in_threads, memory, parameter, rounded, wide

SIDE = 64
"""Maxima that are taken side by side."""

BLOCK = 4096
"""Tokens of the vocabulary whose logits are formed at once: they and their weights stay in the second cache."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last axis: [..., C], weight [C] -> [..., C]."""
    x = x.contiguous()
    out = torch.empty_like(x)
    arrays = _rows(x), parameter(weight), np.float32(eps), _rows(out)
    in_threads(lambda first, last: _norm_rows(*arrays, first, last), len(arrays[0]), x.numel())
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, written over ``gate``: both [..., C] and contiguous."""
    arrays = _rows(gate), _rows(up)
    in_threads(lambda first, last: _swiglu_rows(*arrays, first, last), len(arrays[0]), gate.numel())
    return gate


def head_loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Minus the log-probability of a target of each row, in nats, float32: hidden states [R, D], the head's weight [V, D], targets [R]
    int64 -> [R]. By blocks of the vocabulary, so that the weights are read once for all rows: the sum of e^logit goes along."""
    top, total, found = (torch.full((len(x),), start) for start in (float(LOWEST), 0.0, 0.0))
    for first in range(0, len(weight), BLOCK):
        block = F.linear(x, weight[first : first + BLOCK])
        arrays = memory(block), targets.numpy(), first, top.numpy(), total.numpy(), found.numpy()
        in_threads(lambda *rows, arrays=arrays: _add_to_loss(*arrays, np.empty(SIDE, np.float32), *rows), len(x), block.numel())
    return top + total.log() - found


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (j, j + d / 2) of each head turned by a token's angles: [B, H, T, d], float32 cosines and sines [T, d / 2] -> [B, H, T, d]."""
    out = torch.empty(x.shape, dtype=x.dtype)
    arrays = memory(x.transpose(1, 2).contiguous()), memory(cos), memory(sin), memory(out)  # as the projections left it
    in_threads(lambda first, last: _rotate_sequences(*arrays, first, last), len(x), x.numel())
    return out


def _rows(x: Tensor) -> np.ndarray:
    return memory(x.view(-1, x.shape[-1]))


@distinct
def _norm_rows(x, weight, eps, out, first, last):
    for r in range(first, last):
        total = ZERO
        for j in range(x.shape[1]):
            total += wide(x[r, j]) * wide(x[r, j])
        factor = ONE / np.sqrt(total / np.float32(x.shape[1]) + eps)
        for j in range(x.shape[1]):
            out[r, j] = rounded(wide(x[r, j]) * factor * weight[j], out)


@distinct
def _swiglu_rows(gate, up, first, last):
    for r in range(first, last):
        for j in range(gate.shape[1]):
            g = wide(gate[r, j])
            gate[r, j] = rounded(g / (ONE + exp(-g)) * wide(up[r, j]), gate)


@distinct
def _rotate_sequences(x, cos, sin, out, first, last):
    half = UNSIGNED(cos.shape[1])
    for i in range(first, last):
        for t in range(x.shape[1]):
            for h in range(x.shape[2]):
                for j in range(half):
                    a, b = wide(x[i, t, h, j]), wide(x[i, t, h, half + j])
                    out[i, h, t, j] = rounded(a * cos[t, j] - b * sin[t, j], out)
                    out[i, h, t, half + j] = rounded(b * cos[t, j] + a * sin[t, j], out)


@distinct
def _add_to_loss(logits, targets, start, top, total, found, tops, first, last):
    """Each row's largest logit so far, the sum of e^(logit - largest), and the target's logit where it is in this block.

    A NaN is no largest, and makes the sum NaN. The largest is that of several side by side, as vectors hold no order of NaNs.
    """
    width, side = UNSIGNED(logits.shape[1]), UNSIGNED(tops.shape[0])
    for r in range(first, last):
        for i in range(side):
            tops[i] = top[r]
        for n in range(width // side):
            for i in range(side):
                x = wide(logits[r, n * side + i])
                tops[i] = x if x > tops[i] else tops[i]
        for i in range(width % side):
            x = wide(logits[r, width - width % side + i])
            tops[i] = x if x > tops[i] else tops[i]
        highest, more = tops.max(), ZERO
        for j in range(width):
            more += exp(wide(logits[r, j]) - highest)
        total[r] = total[r] * exp(top[r] - highest) + more
        top[r] = highest
        if start <= targets[r] < start + logits.shape[1]:
            found[r] = wide(logits[r, targets[r] - start])
