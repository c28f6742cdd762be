"""What a block and the head do row by row, each in one compiled pass on a CPU (numba), without gradients.

torch goes through memory once per operation; here a row is read once and written once. Rows are float32 or bfloat16; the arithmetic is
float32 and the result is rounded once. The slow references, with gradients and on any device, are beside the dispatch in ``kernels.py``.

Shapes: R rows, C channels, V vocabulary.
"""

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from supernet.ops.numba_delta import _compile, _distinct, in_threads
from supernet.ops.numba_mixing import ONE, ZERO, _exp, parameter

HALF_BITS, ODD = np.uint32(16), np.uint32(1)
NEAREST = np.uint32(0x7FFF)

SIDE = 16
"""Maxima that are taken side by side."""


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


def target_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the log-probability of a target of each row, in nats, float32: logits [R, V], targets [R] int64 -> [R]."""
    out = torch.empty(len(targets))
    arrays = _rows(logits.contiguous()), targets.numpy(), out.numpy()
    in_threads(lambda first, last: _loss_rows(*arrays, first, last), len(targets), logits.numel())
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (j, j + d / 2) of each head turned by a token's angles: [B, H, T, d], float32 cosines and sines [T, d / 2] -> [B, H, T, d]."""
    out = torch.empty(x.shape, dtype=x.dtype)
    arrays = _memory(x.transpose(1, 2).contiguous()), _memory(cos), _memory(sin), _memory(out)  # as the projections left it
    in_threads(lambda first, last: _rotate_sequences(*arrays, first, last), len(x), x.numel())
    return out


def _rows(x: Tensor) -> np.ndarray:
    return _memory(x.view(-1, x.shape[-1]))


def _memory(x: Tensor) -> np.ndarray:
    """What another operation made, no parameter; bfloat16, which numpy lacks, as its bits."""
    x = x.detach()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def _copy(x, out):  # noqa: ANN001, ANN202
    for j in range(x.size):
        out[j] = x[j]


def _widen(x, out):  # noqa: ANN001, ANN202
    """A row of float32 or of bfloat16's bits -> float32."""


def _narrow(x, out):  # noqa: ANN001, ANN202
    """Back again, to the nearest, of two to the even one."""


@overload(_widen)
def _widen_of(x, out):  # noqa: ANN001, ANN202, ARG001
    def bits(x, out):  # noqa: ANN001, ANN202
        for j in range(x.size):
            out[j] = np.uint32(np.uint32(x[j]) << HALF_BITS).view(np.float32)  # numba widens a shift to 64 bits

    return bits if x.dtype == types.uint16 else _copy


@overload(_narrow)
def _narrow_of(x, out):  # noqa: ANN001, ANN202, ARG001
    def bits(x, out):  # noqa: ANN001, ANN202
        for j in range(x.size):
            whole = np.float32(x[j]).view(np.uint32)
            odd = np.uint32(np.uint32(whole >> HALF_BITS) & ODD)
            out[j] = np.uint16(np.uint32(whole + np.uint32(NEAREST + odd)) >> HALF_BITS)

    return bits if out.dtype == types.uint16 else _copy


@_distinct
def _norm_row(x, weight, eps):  # noqa: ANN001, ANN202
    total = ZERO
    for j in range(x.size):
        total += x[j] * x[j]
    factor = ONE / np.sqrt(total / np.float32(x.size) + eps)
    for j in range(x.size):
        x[j] = x[j] * factor * weight[j]


@_distinct
def _swiglu_row(gate, up):  # noqa: ANN001, ANN202
    for j in range(gate.size):
        gate[j] = gate[j] / (ONE + _exp(-gate[j])) * up[j]


@_distinct
def _larger(top, x):  # noqa: ANN001, ANN202
    for j in range(top.size):
        top[j] = x[j] if x[j] > top[j] else top[j]


@_compile
def _log_sum(x, tops):  # noqa: ANN001, ANN202
    """log(sum of e^x), the largest taken out first: of several runs side by side, as vectors hold no order of NaNs. These are no largest,
    and make the sum NaN."""
    tops[:] = x[0]
    whole = x.size - x.size % tops.size
    for j in range(0, whole, tops.size):
        _larger(tops, x[j : j + tops.size])
    _larger(tops[: x.size - whole], x[whole:])
    top, total = tops.max(), ZERO
    for j in range(x.size):
        total += _exp(x[j] - top)
    return top + np.log(total)


@_distinct
def _turn(x, cos, sin, out):  # noqa: ANN001, ANN202
    half = cos.size
    for j in range(half):
        out[j] = x[j] * cos[j] - x[half + j] * sin[j]
        out[half + j] = x[half + j] * cos[j] + x[j] * sin[j]


@_compile
def _rotate_sequences(x, cos, sin, out, first, last):  # noqa: ANN001, ANN202
    a, b = np.empty(x.shape[3], np.float32), np.empty(x.shape[3], np.float32)
    for i in range(first, last):
        for t in range(x.shape[1]):
            for h in range(x.shape[2]):
                _widen(x[i, t, h], a)
                _turn(a, cos[t], sin[t], b)
                _narrow(b, out[i, h, t])


@_compile
def _norm_rows(x, weight, eps, out, first, last):  # noqa: ANN001, ANN202
    row = np.empty(x.shape[1], np.float32)
    for r in range(first, last):
        _widen(x[r], row)
        _norm_row(row, weight, eps)
        _narrow(row, out[r])


@_compile
def _swiglu_rows(gate, up, first, last):  # noqa: ANN001, ANN202
    a, b = np.empty(gate.shape[1], np.float32), np.empty(gate.shape[1], np.float32)
    for r in range(first, last):
        _widen(gate[r], a)
        _widen(up[r], b)
        _swiglu_row(a, b)
        _narrow(a, gate[r])


@_compile
def _loss_rows(logits, targets, out, first, last):  # noqa: ANN001, ANN202
    row, tops = np.empty(logits.shape[1], np.float32), np.empty(SIDE, np.float32)
    for r in range(first, last):
        _widen(logits[r], row)
        out[r] = _log_sum(row, tops) - row[targets[r]]
