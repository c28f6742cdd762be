"""The gated delta rule on a CPU, token by token in compiled loops (numba), with hand-written gradients. Shapes as in ``delta_rule.py``.

The chunked form turns the recurrence into matrix products, which a GPU wants. On a CPU a head's state (4 to 64 KiB) stays in the first
cache, so the plain recurrence does a fraction of the arithmetic and waits for no memory. Every head is computed alone, in one order:
the numbers depend neither on the number of threads nor on what else is in the batch. All in float32. The decay is ``a = exp(g)``, 0 for
``g = -inf``; a NaN stays one. Importing this file imports numba, which takes half a second: ``kernels.py`` does it when it is wanted.

Forward: ``D_t = diag(a_t) S_{t-1};  r_t = v_t - D_t^T k_t;  u_t = beta_t r_t;  S_t = D_t + k_t u_t^T;  o_t = S_t^T q_t``. Backward, with
``E_t`` the gradient that reaches ``S_t`` from ``o_t`` and from later tokens: ``dq = S_t do;  du = E_t^T k;  dv = beta du;  dbeta = du . r;
dk = E_t u - D_t dv;  dD = E_t - k dv^T;  dg = sum_V dD * D_t;  dS_{t-1} = a dD``.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numba.core.compiler import Compiler
from torch import Tensor
from torch.autograd.function import once_differentiable

KEEP = 16
"""Tokens between the states that the forward pass keeps; the backward pass computes those between again, which stay in the second cache."""

SMALL = 1 << 20
"""Numbers in the largest tensor that are worth another thread: starting one takes as long as the work on 100,000."""

FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be reordered, which vectors need. Not "nnan" and "ninf": with them a NaN among the inputs could come out as any number."""


class _Distinct(Compiler):
    """Arrays that a function is given do not overlap, which C calls ``restrict``: twice as fast, as no vector loop has to check it."""

    def __init__(self, typing: Any, target: Any, library: Any, args: Any, return_type: Any, flags: Any, locals: Any):
        flags.noalias = True
        super().__init__(typing, target, library, args, return_type, flags, locals)


def _compile(function: Callable, **options: Any) -> Callable:
    """Machine code, made at the first call and kept on disk for the next process where a folder can be written to."""
    options = {"fastmath": FASTMATH, "nogil": True, "error_model": "numpy"} | options
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache
        return numba.njit(**options)(function)


def _distinct(function: Callable) -> Callable:
    return _compile(function, pipeline_class=_Distinct)


def delta_rule_numba(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(o [B, T, H, V] in q's dtype, final state [B, H, K, V]): ``delta_rule_recurrent``, and q, k may have fewer heads than v.

    Value head h reads q and k of head h // (H / their heads). Runs on torch's number of threads.
    """
    (B, _, H, V), K = v.shape, q.shape[-1]
    start = v.new_zeros(B, H, K, V, dtype=torch.float32) if state is None else state
    inputs = [x.float().contiguous() for x in (q, k, v, g, beta, start)]
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    o, end = _DeltaRule.apply(*inputs) if with_gradient else _forward(*inputs, keep=False)[:2]
    return o.to(q.dtype), end


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        o, end, rest, states = _forward(*inputs, keep=True)
        q, k, _, g, beta, _ = inputs
        ctx.save_for_backward(q, k, g, beta, rest, states)
        return o, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor, d_end: Tensor) -> tuple[Tensor, ...]:
        q, k, g, beta, rest, states = ctx.saved_tensors
        (B, T, H, V), K = rest.shape, q.shape[-1]
        d_q, d_k = (torch.empty(B, T, H, K) for _ in range(2))
        d_v, d_g, d_beta = torch.empty_like(rest), torch.empty_like(g), torch.empty_like(beta)
        d_state = d_end.float().clone(memory_format=torch.contiguous_format)  # the loop works in place
        arrays = (q, k, g.exp(), beta, rest, states, d_o.contiguous(), d_q, d_k, d_v, d_g, d_beta, d_state)
        _over_heads(_backward_heads, arrays, B * H, (KEEP + 1) * K + 4, V)
        if q.shape[2] < H:  # every key head's gradient is the sum over the value heads that read it
            d_q, d_k = (x.unflatten(2, (q.shape[2], -1)).sum(3) for x in (d_q, d_k))
        return d_q, d_k, d_v, d_g, d_beta, d_state


def _forward(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, keep: bool) -> tuple[Tensor, ...]:
    """(o, final state, r [B, T, H, V], states before every KEEP-th token [B, H, T / KEEP, K, V]); the last two are empty unless kept."""
    (B, T, H, V), K = v.shape, q.shape[-1]
    o, end = torch.empty_like(v), torch.empty_like(state)
    rest = torch.empty_like(v) if keep else v.new_empty(0, 0, 0, 0)
    states = v.new_empty(B, H, -(-T // KEEP), K, V) if keep else v.new_empty(0, 0, 0, 0, 0)
    _over_heads(_forward_heads, (q, k, v, g.exp(), beta, state, o, end, rest, states), B * H, K + 3, V)
    return o, end, rest, states


def _over_heads(kernel: Callable, tensors: tuple[Tensor, ...], heads: int, rows: int, V: int) -> None:
    """Call a kernel on all B * H heads, on at most torch's number of threads; each has scratch memory [rows, V], aligned as torch does."""
    arrays = [x.detach().numpy() for x in tensors]
    threads = min(torch.get_num_threads(), heads, 1 + max(x.numel() for x in tensors) // SMALL)
    scratch = [torch.empty(rows, V).numpy() for _ in range(threads)]
    cuts = [heads * i // threads for i in range(threads + 1)]
    if threads == 1:
        return kernel(*arrays, scratch[0], 0, heads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: kernel(*arrays, scratch[i], cuts[i], cuts[i + 1]), range(threads)))


# The loops, for heads ``first`` to ``last`` of B * H. ``step`` is 1 for a decay per channel and 0 for one per head. Rows of a state are
# taken four at a time, so that what is summed over rows is loaded and stored once for four; rows left over are taken one by one.


@_distinct
def _advance(A, B, C, D, u, read, out, p0, p1, p2, p3, a0, a1, a2, a3, k0, k1, k2, k3, q0, q1, q2, q3):  # noqa: ANN001, ANN202
    """Four rows of ``S <- a (S + p u^T)``: the token before left that to do. And their share of ``S^T k`` and ``S^T q``."""
    for j in range(u.size):
        w = u[j]
        s0, s1, s2, s3 = A[j] * a0 + p0 * a0 * w, B[j] * a1 + p1 * a1 * w, C[j] * a2 + p2 * a2 * w, D[j] * a3 + p3 * a3 * w
        A[j], B[j], C[j], D[j] = s0, s1, s2, s3
        read[j] += (k0 * s0 + k1 * s1) + (k2 * s2 + k3 * s3)
        out[j] += (q0 * s0 + q1 * s1) + (q2 * s2 + q3 * s3)


@_distinct
def _advance_one(A, u, read, out, p0, a0, k0, q0):  # noqa: ANN001, ANN202
    for j in range(u.size):
        s0 = A[j] * a0 + p0 * a0 * u[j]
        A[j] = s0
        read[j] += k0 * s0
        out[j] += q0 * s0


@_distinct
def _rank_one(out, S, u, p, a):  # noqa: ANN001, ANN202
    """One row of ``out = a (S + p u^T)``."""
    for j in range(u.size):
        out[j] = (S[j] + p * u[j]) * a


@_distinct
def _gather(E, D, d_o, u, d_u, q0, k0):  # noqa: ANN001, ANN202
    """One row of ``E += q d_o^T``, its share of ``E^T k``, and the sums over V of ``E u`` and ``D d_o``."""
    by_u, by_o = np.float32(0), np.float32(0)
    for j in range(u.size):
        e = E[j] + q0 * d_o[j]
        E[j] = e
        d_u[j] += k0 * e
        by_u += e * u[j]
        by_o += D[j] * d_o[j]
    return by_u, by_o


@_distinct
def _hand_back(E, D, d_v, k0, a0):  # noqa: ANN001, ANN202
    """One row of ``E <- a (E - k d_v^T)``, which reaches the token before; sums over V of ``D d_v`` and of ``D`` times the bracket."""
    by_v, by_d = np.float32(0), np.float32(0)
    for j in range(d_v.size):
        d = E[j] - k0 * d_v[j]
        by_v += D[j] * d_v[j]
        by_d += D[j] * d
        E[j] = a0 * d
    return by_v, by_d


@_compile
def _forward_heads(q, k, v, a, beta, state, o, end, rest, states, scratch, first, last):  # noqa: ANN001, ANN202
    (_, T, H, V), K = v.shape, q.shape[3]
    group, step, keep = H // q.shape[2], 1 if a.shape[3] > 1 else 0, rest.size > 0
    S, u, read, out = scratch[:K], scratch[K], scratch[K + 1], scratch[K + 2]
    zero = np.zeros(K, np.float32)
    for n in range(first, last):
        b, h = n // H, n % H
        S[:] = state[b, h]
        u[:] = 0
        p = zero
        for t in range(T):
            kt, qt, at, vt, ot, bt = k[b, t, h // group], q[b, t, h // group], a[b, t, h], v[b, t, h], o[b, t, h], beta[b, t, h]
            if keep and t % KEEP == 0:
                for i in range(K):
                    _rank_one(states[b, h, t // KEEP, i], S[i], u, p[i], np.float32(1))
            read[:] = 0
            out[:] = 0
            for i in range(0, K - 3, 4):
                i1, i2, i3 = i + 1, i + 2, i + 3
                _advance(S[i], S[i1], S[i2], S[i3], u, read, out, p[i], p[i1], p[i2], p[i3],
                         at[i * step], at[i1 * step], at[i2 * step], at[i3 * step],
                         kt[i], kt[i1], kt[i2], kt[i3], qt[i], qt[i1], qt[i2], qt[i3])  # fmt: skip
            for i in range(K - K % 4, K):
                _advance_one(S[i], u, read, out, p[i], at[i * step], kt[i], qt[i])
            both = np.float32(0)  # o = (D + k u^T)^T q = D^T q + (k . q) u
            for i in range(K):
                both += kt[i] * qt[i]
            for j in range(V):
                r = vt[j] - read[j]
                if keep:
                    rest[b, t, h, j] = r
                u[j] = bt * r
                ot[j] = out[j] + both * u[j]
            p = kt
        for i in range(K):
            _rank_one(end[b, h, i], S[i], u, p[i], np.float32(1))


@_compile
def _backward_heads(q, k, a, beta, rest, states, d_o, d_q, d_k, d_v, d_g, d_beta, d_state, scratch, first, last):  # noqa: ANN001, ANN202
    (_, T, H, V), K = rest.shape, q.shape[3]
    group, step = H // q.shape[2], 1 if a.shape[3] > 1 else 0
    D, u, d_u = scratch[: KEEP * K], scratch[KEEP * K], scratch[KEEP * K + 1]
    for n in range(first, last):
        b, h = n // H, n % H
        E = d_state[b, h]  # in: the gradient of the final state; out: of the first
        u[:] = 0  # read before it is written, times 0: what memory held there may be NaN
        for chunk in range((T - 1) // KEEP, -1, -1):
            start, stop = chunk * KEEP, min(T, (chunk + 1) * KEEP)
            for t in range(start, stop):  # the decayed states of the chunk again
                at, here = a[b, t, h], (t - start) * K
                if t > start:
                    for j in range(V):
                        u[j] = beta[b, t - 1, h] * rest[b, t - 1, h, j]
                for i in range(K):
                    if t == start:
                        _rank_one(D[i], states[b, h, chunk, i], u, np.float32(0), at[i * step])
                    else:
                        _rank_one(D[here + i], D[here - K + i], u, k[b, t - 1, h // group, i], at[i * step])
            for t in range(stop - 1, start - 1, -1):
                kt, qt, at, bt = k[b, t, h // group], q[b, t, h // group], a[b, t, h], beta[b, t, h]
                r, dot, dqt, dkt, dvt, dgt = rest[b, t, h], d_o[b, t, h], d_q[b, t, h], d_k[b, t, h], d_v[b, t, h], d_g[b, t, h]
                here = (t - start) * K
                both = np.float32(0)  # S d_o = D d_o + k (u . d_o)
                for j in range(V):
                    u[j] = bt * r[j]
                    d_u[j] = 0
                    both += u[j] * dot[j]
                for i in range(K):
                    dkt[i], by_o = _gather(E[i], D[here + i], dot, u, d_u, qt[i], kt[i])
                    dqt[i] = by_o + both * kt[i]
                by_r = np.float32(0)
                for j in range(V):
                    by_r += d_u[j] * r[j]
                    dvt[j] = bt * d_u[j]
                d_beta[b, t, h] = by_r
                dgt[:] = 0
                for i in range(K):
                    by_v, by_d = _hand_back(E[i], D[here + i], dvt, kt[i], at[i * step])
                    dkt[i] -= by_v
                    dgt[i * step] += by_d
