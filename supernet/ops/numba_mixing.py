"""What lies between the projections of a delta mixer and its output projection, in one compiled pass on a CPU (numba), without gradients.

Convolutions and SiLU, unit keys and queries, decays and betas, the recurrence of ``numba_delta.py``, norm and gate: a head's numbers
stay in the cache, where torch goes through memory some thirty times. Inputs are float32 or bfloat16; the arithmetic is float32 and the
result is rounded once; a head is computed alone, in one order. The slow reference is the mixers' own ``inputs`` and ``out``, which
compute the same with gradients, in any dtype, on any device.

Shapes: B batch, T tokens, H heads, K key dimension, V value dimension, C channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from supernet.ops.numba_delta import forward_heads, forward_scratch
from supernet.ops.numba_loops import ONE, UNSIGNED, ZERO, compiled, distinct, exp, in_threads, memory, parameter, rounded, softplus, wide


@dataclass(frozen=True)
class Part:
    """Channels of a projection's output to be convolved: ``x`` [B, T, any] and ``taps`` [width, any], of both those from ``first`` on."""

    x: Tensor
    taps: Tensor
    first: int = 0


def mix(
    q: Part, k: Part, v: Part, gate: Tensor, decay: Tensor, beta: Tensor, A_log: Tensor, dt_bias: Tensor, norm: Tensor,
    eps: tuple[float, float], key_heads: int, key_dim: int, silu_gate: bool,
) -> Tensor:  # fmt: skip
    """The normed and gated output of a delta mixer, from its projections of whole sequences: [B, T, H V], or only of the last tokens, as
    many as ``gate`` has.

    ``decay`` [B, T, H * (K or 1)] and ``beta`` [B, T, H] are raw: before softplus and sigmoid. ``A_log`` [H], ``dt_bias`` as ``decay``,
    ``norm`` [V] the weight of the norm over a head. ``eps``: of unit length and of the norm. The gate is SiLU or the sigmoid.
    """
    (B, T, H), V = beta.shape, len(norm)
    out, A = gate.new_empty(B, gate.shape[1], H * V), A_log.exp().repeat_interleave(len(dt_bias) // H)
    x, weights = (q.x, k.x, v.x, gate, decay, beta), (q.taps, k.taps, v.taps, A, dt_bias, norm)
    at = np.array([q.first, k.first, v.first])
    sizes = np.array([key_heads, key_dim, H, V])
    arrays = [*(memory(y.contiguous()) for y in x), *map(parameter, weights), memory(out)]
    options = np.array([key_dim**-0.5, *eps], dtype=np.float32)
    of_state, of_head = forward_scratch(key_dim, V), (T, 3 * key_dim + 2 * V)  # queries, keys, decays; values, outputs

    def work(first: int, last: int) -> None:  # scratch from torch lies at 64 bytes: off that, a state takes half as long again
        _mix(*arrays, at, sizes, options, torch.empty(of_state).numpy(), torch.empty(of_head).numpy(), silu_gate, first, last)

    in_threads(work, B, out.numel())
    return out


@distinct
def _convolve(x, i, first, taps, out):
    """Causal depthwise convolution and SiLU of one head of a sequence: [B, T, any] from channel ``first`` on -> ``out`` [1, T, 1, C]."""
    T, C, width, first = out.shape[1], UNSIGNED(out.shape[3]), taps.shape[0], UNSIGNED(first)
    for t in range(T):
        for j in range(C):
            out[0, t, 0, j] = ZERO
        for tap in range(max(0, width - 1 - t), width):
            then = t - width + 1 + tap
            for j in range(C):
                out[0, t, 0, j] += wide(x[i, then, first + j]) * taps[tap, first + j]
        for j in range(C):
            out[0, t, 0, j] = out[0, t, 0, j] / (ONE + exp(-out[0, t, 0, j]))


@distinct
def _unit(x, eps, scale):
    for t in range(x.shape[1]):
        total = ZERO
        for j in range(x.shape[3]):
            total += x[0, t, 0, j] * x[0, t, 0, j]
        factor = scale / np.sqrt(total + eps)
        for j in range(x.shape[3]):
            x[0, t, 0, j] *= factor


@distinct
def _keep(raw, i, h, bias, A, out):
    """exp(-A softplus(raw + bias)): what the state of head h keeps."""
    C = UNSIGNED(out.shape[3])
    first = UNSIGNED(h) * C
    for t in range(out.shape[1]):
        for j in range(C):
            out[0, t, 0, j] = exp(-A[first + j] * softplus(wide(raw[i, t, first + j]) + bias[first + j]))


@distinct
def _sigmoid(raw, i, h, out):
    for t in range(out.shape[1]):
        out[0, t, 0] = ONE / (ONE + exp(-wide(raw[i, t, h])))


@distinct
def _norm_and_gate(o, weight, z, i, h, eps, silu, out):
    """Of the last tokens, as many as ``z`` has."""
    V, asked = UNSIGNED(o.shape[3]), z.shape[1]
    first = UNSIGNED(h) * V
    for t in range(asked):
        at, total = o.shape[1] - asked + t, ZERO
        for j in range(V):
            total += o[0, at, 0, j] * o[0, at, 0, j]
        factor = ONE / np.sqrt(total / np.float32(V) + eps)
        for j in range(V):
            raw = wide(z[i, t, first + j])
            gate = (raw if silu else ONE) / (ONE + exp(-raw))
            out[i, t, first + j] = rounded(o[0, at, 0, j] * factor * weight[j] * gate, out)


@compiled
def _mix(xq, xk, xv, xz, decay, beta, tq, tk, tv, A, bias, norm, out, at, sizes, options, of_state, of_head, silu, first, last):
    (Hk, K, H, V), T = sizes, beta.shape[1]
    scale, unit_eps, norm_eps = options
    group, n = H // Hk, decay.shape[2] // H  # n: K, or 1 for a decay per head
    rows = of_head.reshape(-1)
    q, k = rows[: T * K].reshape(1, T, 1, K), rows[T * K : 2 * T * K].reshape(1, T, 1, K)
    a, rows = rows[2 * T * K :][: T * n].reshape(1, T, 1, n), rows[3 * T * K :]
    v, o = rows[: T * V].reshape(1, T, 1, V), rows[T * V : 2 * T * V].reshape(1, T, 1, V)
    b = np.empty((1, T, 1), np.float32)
    start, end = np.zeros((1, 1, K, V), np.float32), np.empty((1, 1, K, V), np.float32)
    none, none5 = np.empty((0, 0, 0, 0), np.float32), np.empty((0, 0, 0, 0, 0), np.float32)
    for i in range(first, last):
        for h in range(H):
            if h % group == 0:
                _convolve(xq, i, at[0] + h // group * K, tq, q)
                _convolve(xk, i, at[1] + h // group * K, tk, k)
                _unit(q, unit_eps, scale)
                _unit(k, unit_eps, ONE)
            _convolve(xv, i, at[2] + h * V, tv, v)
            _keep(decay, i, h, bias, A, a)
            _sigmoid(beta, i, h, b)
            forward_heads(q, k, v, a, b, start, o, end, none, none5, of_state, 0, 1)
            _norm_and_gate(o, norm, xz, i, h, norm_eps, silu, out)
