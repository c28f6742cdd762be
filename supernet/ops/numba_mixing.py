"""What lies between the projections of a delta mixer and its output projection, in one compiled pass on a CPU (numba), without gradients.

Convolutions and SiLU, unit keys and queries, decays and betas, the recurrence of ``numba_delta.py``, norm and gate: a sequence's numbers
stay in the cache, where torch goes through memory some thirty times. All in float32; a sequence is computed alone, in one order. The slow
reference is the mixers' own ``inputs`` and ``out``, which compute the same with gradients, in any dtype, on any device.

Shapes: B batch, T tokens, H heads, K key dimension, V value dimension, C channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from supernet.ops.numba_delta import _compile, _distinct, _forward_heads, forward_scratch, in_threads

LOG2_E, LN_2_HIGH, LN_2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
E0, E1, E2, E3, E4, E5 = (np.float32(c) for c in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665795e-2, 1.6666666e-1, 5.0000001e-1))
L3, L5, L7, L9, L11, L13, L15, L17 = (np.float32(1 / n) for n in range(3, 18, 2))
LOW, HIGH, ZERO, HALF, ONE, TWO = (np.float32(c) for c in (-87, 88, 0, 0.5, 1, 2))
BIAS, MANTISSA = np.int32(127), np.int32(23)


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
    (B, _, H), V = beta.shape, len(norm)
    out, A = torch.empty(B, gate.shape[1], H * V), A_log.exp().repeat_interleave(len(dt_bias) // H)
    x, weights = (q.x, k.x, v.x, gate, decay, beta), (q.taps, k.taps, v.taps, A, dt_bias, norm)
    at = np.array([q.first, k.first, v.first])
    sizes = np.array([key_heads, key_dim, H, V])
    arrays = [*(y.detach().float().contiguous().numpy() for y in x), *map(parameter, weights), out.numpy()]
    options = np.array([key_dim**-0.5, *eps], dtype=np.float32)
    scratch = forward_scratch(key_dim, V)

    def work(first: int, last: int) -> None:  # scratch from torch lies at 64 bytes: off that, a state takes half as long again
        _mix(*arrays, at, sizes, options, torch.empty(scratch).numpy(), silu_gate, first, last)

    in_threads(work, B, out.numel())
    return out


def parameter(x: Tensor) -> np.ndarray:
    """The memory of what may be a parameter, as float32. Not x.numpy(): that forbids it to be freed, which sharded training (FSDP) does."""
    return np.from_dlpack(x.detach().float())


@_compile
def _exp(x):  # noqa: ANN001, ANN202
    """e^x to 8e-8, in arithmetic that becomes vectors, which the C library's does not (polynomial of Cephes' expf). A NaN stays one."""
    x = LOW if x < LOW else x
    x = HIGH if x > HIGH else x
    n = np.floor(x * LOG2_E + HALF)
    r = (x - n * LN_2_HIGH) - n * LN_2_LOW
    p = ((((E0 * r + E1) * r + E2) * r + E3) * r + E4) * r + E5
    return (p * r * r + r + ONE) * np.int32((np.int32(n) + BIAS) << MANTISSA).view(np.float32)


@_compile
def _softplus(x):  # noqa: ANN001, ANN202
    """log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x| <= 1; with s = e / (2 + e) <= 1/3 the latter is 2 atanh(s)."""
    e = _exp(-abs(x))
    s = e / (TWO + e)
    y = s * s
    series = (((((((L17 * y + L15) * y + L13) * y + L11) * y + L9) * y + L7) * y + L5) * y + L3) * y
    return (x if x > ZERO else x * ZERO) + TWO * s * (ONE + series)


@_distinct
def _tap(out, x, weight):  # noqa: ANN001, ANN202
    for j in range(out.size):
        out[j] += x[j] * weight[j]


@_distinct
def _silu(x):  # noqa: ANN001, ANN202
    for j in range(x.size):
        x[j] = x[j] / (ONE + _exp(-x[j]))


@_distinct
def _unit(x, eps, scale):  # noqa: ANN001, ANN202
    total = ZERO
    for j in range(x.size):
        total += x[j] * x[j]
    factor = scale / np.sqrt(total + eps)
    for j in range(x.size):
        x[j] *= factor


@_distinct
def _keep(raw, bias, A, out):  # noqa: ANN001, ANN202
    """exp(-A softplus(raw + bias)): what a state keeps."""
    for j in range(raw.size):
        out[j] = _exp(-A[j] * _softplus(raw[j] + bias[j]))


@_distinct
def _norm_and_gate(o, weight, z, eps, silu, out):  # noqa: ANN001, ANN202
    total = ZERO
    for j in range(o.size):
        total += o[j] * o[j]
    factor = ONE / np.sqrt(total / np.float32(o.size) + eps)
    for j in range(o.size):
        gate = (z[j] if silu else ONE) / (ONE + _exp(-z[j]))
        out[j] = o[j] * factor * weight[j] * gate


@_compile
def _convolve(x, first, taps, out):  # noqa: ANN001, ANN202
    """Causal depthwise convolution and SiLU of one sequence: [T, any] from channel ``first`` on -> ``out`` [T, C]."""
    (T, C), width = out.shape, len(taps)
    for t in range(T):
        out[t] = ZERO
        for i in range(max(0, width - 1 - t), width):
            _tap(out[t], x[t - width + 1 + i, first : first + C], taps[i, first : first + C])
        _silu(out[t])


@_compile
def _mix(xq, xk, xv, xz, decay, beta, tq, tk, tv, A, bias, norm, out, at, sizes, options, scratch, silu, first, last):  # noqa: ANN001, ANN202
    (Hk, K, H, V), T = sizes, beta.shape[1]
    scale, unit_eps, norm_eps = options
    n = decay.shape[2] // H  # K, or 1 for a decay per head
    q, k, v, o = (
        np.empty((1, T, Hk, K), np.float32),
        np.empty((1, T, Hk, K), np.float32),
        np.empty((1, T, H, V), np.float32),
        np.empty((1, T, H, V), np.float32),
    )
    a, b = np.empty((1, T, H, n), np.float32), np.empty((1, T, H), np.float32)
    start, end = np.zeros((1, H, K, V), np.float32), np.empty((1, H, K, V), np.float32)
    none, none5 = np.empty((0, 0, 0, 0), np.float32), np.empty((0, 0, 0, 0, 0), np.float32)
    for i in range(first, last):
        _convolve(xq[i], at[0], tq, q.reshape(T, Hk * K))
        _convolve(xk[i], at[1], tk, k.reshape(T, Hk * K))
        _convolve(xv[i], at[2], tv, v.reshape(T, H * V))
        for t in range(T):
            for h in range(Hk):
                _unit(q[0, t, h], unit_eps, scale)
                _unit(k[0, t, h], unit_eps, ONE)
            _keep(decay[i, t], bias, A, a.reshape(T, H * n)[t])
            for h in range(H):
                b[0, t, h] = ONE / (ONE + _exp(-beta[i, t, h]))
        _forward_heads(q, k, v, a, b, start, o, end, none, none5, scratch, 0, H)
        unasked = T - out.shape[1]
        for t in range(T - unasked):
            for h in range(H):
                z = xz[i, t, h * V : (h + 1) * V]
                _norm_and_gate(o[0, unasked + t, h], norm, z, norm_eps, silu, out[i, t, h * V : (h + 1) * V])
