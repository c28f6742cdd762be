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

import llvmlite.binding as llvm
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

COLUMNS = 32
"""Columns of a state that go through all its rows at once: what is summed over rows fills half of AVX2's registers."""

# LLVM takes halves of AVX-512's registers, for the sake of CPUs that slow down with whole ones. Those with AMX do not.
if (features := llvm.get_host_cpu_features()).get("amx-tile") and not numba.config.CPU_FEATURES:
    numba.config.CPU_FEATURES = f"{features.flatten()},-prefer-256-bit"

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
    _over_heads(_forward_heads, (q, k, v, g.exp(), beta, state, o, end, rest, states), B * H, *forward_scratch(K, V))
    return o, end, rest, states


def forward_scratch(K: int, V: int) -> tuple[int, int]:
    """Shape of the forward pass's scratch memory: the state and three vectors over V, by blocks of COLUMNS."""
    return -(-V // COLUMNS) * (K + 3), COLUMNS


def _over_heads(kernel: Callable, tensors: tuple[Tensor, ...], heads: int, *scratch: int) -> None:
    """Call a kernel on all B * H heads, on at most torch's number of threads; each has scratch memory of this shape, as torch aligns it."""
    arrays = [x.detach().numpy() for x in tensors]
    in_threads(lambda *part: kernel(*arrays, torch.empty(scratch).numpy(), *part), heads, max(x.numel() for x in tensors))


def in_threads(work: Callable[[int, int], None], count: int, numbers: int) -> None:
    """``work(first, last)`` over ``count`` equal parts, on at most torch's number of threads, and fewer where there are few ``numbers``."""
    threads = max(1, min(torch.get_num_threads(), count, 1 + numbers // SMALL))
    cuts = [count * i // threads for i in range(threads + 1)]
    if threads == 1:
        return work(0, count)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, cuts[:-1], cuts[1:]))


# The loops, for heads ``first`` to ``last`` of B * H. ``step`` is 1 for a decay per channel and 0 for one per head. Forward, a state lies
# in blocks of COLUMNS, the last one padded, so that what is summed over rows stays in registers.


@_distinct
def _advance(S, u, read, out, p, a, step, k, q):  # noqa: ANN001, ANN202
    """COLUMNS columns of ``S <- a (S + p u^T)``: the token before left that to do. And their ``S^T k`` and ``S^T q``."""
    for i in range(k.size):
        decay, key, query = a[i * step], k[i], q[i]
        write = p[i] * decay
        for j in range(COLUMNS):
            s = S[i, j] * decay + write * u[j]
            S[i, j] = s
            read[j] += key * s
            out[j] += query * s


@_compile
def _store(S, u, p, out):  # noqa: ANN001, ANN202
    """``out = S + p u^T``: the state after a token, [blocks, K, COLUMNS] -> [K, V]."""
    K, V = out.shape
    for c in range(len(S)):
        for i in range(K):
            _rank_one(out[i, c * COLUMNS : min(V, (c + 1) * COLUMNS)], S[c, i], u[c], p[i], np.float32(1))


@_distinct
def _rank_one(out, S, u, p, a):  # noqa: ANN001, ANN202
    """One row of ``out = a (S + p u^T)``."""
    for j in range(out.size):
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
    blocks = len(scratch) // (K + 3)
    S = scratch[: blocks * K].reshape(blocks, K, COLUMNS)
    vectors = scratch[blocks * K :].reshape(3, blocks, COLUMNS)
    u, read, out = vectors[0], vectors[1], vectors[2]  # unpacked, an array would lose its layout, and the loops their vectors
    zero = np.zeros(K, np.float32)
    for n in range(first, last):
        b, h = n // H, n % H
        S[:] = 0
        for c in range(blocks):
            columns = state[b, h, :, c * COLUMNS : (c + 1) * COLUMNS]
            S[c, :, : columns.shape[1]] = columns
        u[:] = 0
        p = zero
        for t in range(T):
            kt, qt, at, vt, ot, bt = k[b, t, h // group], q[b, t, h // group], a[b, t, h], v[b, t, h], o[b, t, h], beta[b, t, h]
            if keep and t % KEEP == 0:
                _store(S, u, p, states[b, h, t // KEEP])
            both = np.float32(0)  # o = (D + k u^T)^T q = D^T q + (k . q) u
            for i in range(K):
                both += kt[i] * qt[i]
            for c in range(blocks):
                uc, rc, oc = u[c], read[c], out[c]
                rc[:] = 0
                oc[:] = 0
                _advance(S[c], uc, rc, oc, p, at, step, kt, qt)
                for j in range(min(COLUMNS, V - c * COLUMNS)):
                    r = vt[c * COLUMNS + j] - rc[j]
                    if keep:
                        rest[b, t, h, c * COLUMNS + j] = r
                    uc[j] = bt * r
                    ot[c * COLUMNS + j] = oc[j] + both * uc[j]
            p = kt
        _store(S, u, p, end[b, h])


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
