"""Causal attention of grouped queries, over all tokens before or a window of them, in one compiled pass on a CPU (numba), no gradients.

From the projections to what the output projection takes: rotation, scores, softmax, weighted sums. QUERIES of one head go together
against blocks of COLUMNS keys, and then of value channels, in one small matrix product whose sums stay in registers. Only what the window
lets a query see is computed. Inputs are float32 or bfloat16; the arithmetic is float32 and the result is rounded once; a head is computed
alone, in one order. The slow reference is the mixers' own ``qkv`` and ``attend``.

Shapes: B batch, T tokens, H heads of queries, d head dimension.
"""

import numpy as np
import torch
from torch import Tensor

from supernet.ops.numba_loops import LOWEST, ONE, UNSIGNED, ZERO, compiled, distinct, exp, in_threads, memory, rounded, wide

QUERIES, COLUMNS = 8, 32
"""Their sums fill half of AVX-512's registers: additions wait neither for each other nor for keys from the second cache."""

NOTHING, LAST = np.float32(-60), UNSIGNED(1)
"""The logarithm below which a weight is 0, as a CPU takes a hundred times as long over the smallest numbers; one."""


def attend(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, window: int) -> Tensor:
    """Outputs [B, T or fewer, H d] of q [B, T or fewer (the last ones), H, d], k and v [B, T, fewer heads, d], not yet rotated.

    ``cos``, ``sin`` [T, d / 2], float32: of the angles by which tokens are rotated. Token i sees j with 0 <= i - j < ``window``.
    """
    (B, asked, H, d), (_, T, groups, _) = q.shape, k.shape
    out = q.new_empty(B, asked, H * d)
    arrays = [memory(x.contiguous()) for x in (q, k, v, cos, sin)]
    of_keys, of_values = -(-T // COLUMNS), -(-d // COLUMNS)

    def work(first: int, last: int) -> None:  # scratch from torch lies at 64 bytes
        keys, values = torch.zeros(of_keys, d, COLUMNS), torch.zeros(of_values, T, COLUMNS)
        rows, weights, sums = torch.zeros(QUERIES, d), torch.zeros(QUERIES, of_keys * COLUMNS), torch.zeros(QUERIES, of_values * COLUMNS)
        scratch = (x.numpy() for x in (keys, values, rows, weights, sums, torch.empty(QUERIES, COLUMNS)))
        _attend(*arrays, memory(out), window, np.float32(d**-0.5), *scratch, first, last)

    in_threads(work, B * groups, B * T * H * d)
    return out


@distinct
def _keys(k, cos, sin, b, g, out):
    """Rotated keys of one head, [blocks, d, COLUMNS]: a block's keys are its columns."""
    half = UNSIGNED(cos.shape[1])
    for t in range(k.shape[1]):
        c, j = t // COLUMNS, t % COLUMNS
        for i in range(half):
            x, y = wide(k[b, t, g, i]), wide(k[b, t, g, half + i])
            out[c, i, j] = x * cos[t, i] - y * sin[t, i]
            out[c, half + i, j] = y * cos[t, i] + x * sin[t, i]


@distinct
def _values(v, b, g, out):
    """Values of one head by blocks of channels: [blocks, T, COLUMNS]."""
    d = v.shape[3]
    for t in range(v.shape[1]):
        for c in range(out.shape[0]):
            for j in range(min(COLUMNS, d - c * COLUMNS)):
                out[c, t, j] = wide(v[b, t, g, UNSIGNED(c) * UNSIGNED(COLUMNS) + UNSIGNED(j)])


@distinct
def _queries(q, cos, sin, b, t, h, unasked, some, scale, out):
    """[QUERIES, d]: queries from t on, rotated and scaled."""
    half = UNSIGNED(cos.shape[1])
    for r in range(some):
        at = unasked + t + r
        for i in range(half):
            x, y = wide(q[b, t + r, h, i]), wide(q[b, t + r, h, half + i])
            out[r, i] = (x * cos[at, i] - y * sin[at, i]) * scale
            out[r, half + i] = (y * cos[at, i] + x * sin[at, i]) * scale


@distinct
def _product(a, blocks, start, stop, first, last, s0, s1, s2, s3, s4, s5, s6, s7, out):
    """Blocks ``start`` to ``stop`` of ``a`` [QUERIES, n] times ``blocks`` [any, n, COLUMNS], summed from ``first`` to ``last``.

    One array per row, as the compiler holds those in registers, and no rows of one array.
    """
    for c in range(UNSIGNED(start), UNSIGNED(stop)):
        for j in range(COLUMNS):
            s0[j], s1[j], s2[j], s3[j], s4[j], s5[j], s6[j], s7[j] = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
        for i in range(UNSIGNED(first), UNSIGNED(last)):
            a0, a1, a2, a3, a4, a5, a6, a7 = a[0, i], a[1, i], a[2, i], a[3, i], a[4, i], a[5, i], a[6, i], a[7, i]
            for j in range(COLUMNS):
                x = blocks[c, i, j]
                s0[j] += a0 * x
                s1[j] += a1 * x
                s2[j] += a2 * x
                s3[j] += a3 * x
                s4[j] += a4 * x
                s5[j] += a5 * x
                s6[j] += a6 * x
                s7[j] += a7 * x
        at = c * UNSIGNED(COLUMNS)
        for j in range(UNSIGNED(COLUMNS)):
            out[0, at + j], out[1, at + j], out[2, at + j], out[3, at + j] = s0[j], s1[j], s2[j], s3[j]
            out[4, at + j], out[5, at + j], out[6, at + j], out[7, at + j] = s4[j], s5[j], s6[j], s7[j]


@distinct
def _softmax(scores, some, first, before, window, tops):
    """Rows of weights in place of the rows of scores, over whole blocks of keys from that of key ``first`` on: row r sees the last
    ``window`` keys up to ``before + r``; all others weigh 0, and so does what would be nothing beside a rounding error.

    The largest score is that of several side by side, as vectors hold no order of NaNs; a NaN is none, and makes all weights NaN.
    """
    side = UNSIGNED(COLUMNS)
    start = UNSIGNED(first) // side * side
    blocks = UNSIGNED(before + some - 1) // side - UNSIGNED(first) // side + LAST
    for r in range(some):
        low, high = UNSIGNED(max(first, before + r - window + 1)), UNSIGNED(before + r + 1)
        for i in range(start, low):
            scores[r, i] = LOWEST
        for i in range(high, start + blocks * side):
            scores[r, i] = LOWEST
        for i in range(side):
            tops[i] = LOWEST
        for n in range(blocks):
            for i in range(side):
                x = scores[r, start + n * side + i]
                tops[i] = x if x > tops[i] else tops[i]
        for half in (16, 8, 4, 2, 1):
            for i in range(half):
                tops[i] = tops[half + i] if tops[half + i] > tops[i] else tops[i]
        highest, total = tops[0], ZERO
        for i in range(blocks * side):
            x = scores[r, start + i] - highest
            weight = ZERO if x < NOTHING else exp(x)
            scores[r, start + i] = weight
            total += weight
        share = ONE / total
        for i in range(blocks * side):
            scores[r, start + i] *= share


@distinct
def _write(sums, some, b, t, h, d, out):
    first = UNSIGNED(h) * UNSIGNED(d)
    for r in range(some):
        for j in range(UNSIGNED(d)):
            out[b, t + r, first + j] = rounded(sums[r, j], out)


@compiled
def _attend(q, k, v, cos, sin, out, window, scale, keys, values, rows, weights, sums, aside, first, last):
    (_, asked, H, d), (_, T, groups, _) = q.shape, k.shape
    s0, s1, s2, s3, s4, s5, s6, s7 = aside[0], aside[1], aside[2], aside[3], aside[4], aside[5], aside[6], aside[7]
    unasked = T - asked
    for n in range(first, last):
        b, g = n // groups, n % groups
        _keys(k, cos, sin, b, g, keys)
        _values(v, b, g, values)
        for h in range(g * (H // groups), (g + 1) * (H // groups)):
            for t in range(0, asked, QUERIES):
                some = min(QUERIES, asked - t)
                low, high = max(0, unasked + t - window + 1), unasked + t + some  # of the keys that any of these queries sees
                _queries(q, cos, sin, b, t, h, unasked, some, scale, rows)
                _product(rows, keys, low // COLUMNS, (high - 1) // COLUMNS + 1, 0, d, s0, s1, s2, s3, s4, s5, s6, s7, weights)
                _softmax(weights, some, low, unasked + t, window, s0)
                _product(weights, values, 0, len(values), low, high, s0, s1, s2, s3, s4, s5, s6, s7, sums)
                _write(sums, some, b, t, h, d, out)
