"""The gated delta rule on a CPU, token by token in compiled loops (numba), with hand-written gradients. Shapes as in ``delta_rule.py``.

The chunked form turns the recurrence into matrix products, which a GPU wants. On a CPU a head's state (4 to 64 KiB) stays in the first
cache, so the plain recurrence does a fraction of the arithmetic and waits for no memory. Every head is computed alone, in one order:
the numbers depend neither on the number of threads nor on what else is in the batch. All in float32. The decay is ``a = exp(g)``, 0 for
``g = -inf``; a NaN stays one.

Forward: ``D_t = diag(a_t) S_{t-1};  r_t = v_t - D_t^T k_t;  u_t = beta_t r_t;  S_t = D_t + k_t u_t^T;  o_t = S_t^T q_t``. Backward, with
``E_t`` the gradient that reaches ``S_t`` from ``o_t`` and from later tokens: ``dq = S_t do;  du = E_t^T k;  dv = beta du;  dbeta = du . r;
dk = E_t u - D_t dv;  dD = E_t - k dv^T;  dg = sum_V dD * D_t;  dS_{t-1} = a dD``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from supernet.ops.numba_loops import ZERO, compiled, distinct, fetch, in_threads

KEEP = 16
"""Tokens between the states that the forward pass keeps; the backward pass computes those between again, which stay in the second cache."""

COLUMNS = 32
"""Columns of a state that go through all its rows at once: what is summed over rows fills half of AVX2's registers."""

AHEAD, LINE = 3, 16
"""Tokens ahead of which memory is asked for, as a head's rows lie too far apart for the CPU to guess; numbers of a cache line."""


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
    _over_heads(forward_heads, (q, k, v, g.exp(), beta, state, o, end, rest, states), B * H, *forward_scratch(K, V))
    return o, end, rest, states


def forward_scratch(K: int, V: int) -> tuple[int, int]:
    """Shape of the forward pass's scratch memory: the state and u, by blocks of COLUMNS, and what is read of one block twice."""
    return -(-V // COLUMNS) * (K + 1) + 2, COLUMNS


def _over_heads(kernel: Callable, tensors: tuple[Tensor, ...], heads: int, *scratch: int) -> None:
    """Call a kernel on all B * H heads, on at most torch's number of threads; each has scratch memory of this shape, as torch aligns it."""
    arrays = [x.detach().numpy() for x in tensors]
    in_threads(lambda *part: kernel(*arrays, torch.empty(scratch).numpy(), *part), heads, max(x.numel() for x in tensors))


# The loops, for heads ``first`` to ``last`` of B * H. ``step`` is 1 for a decay per channel and 0 for one per head. Forward, a state lies
# in blocks of COLUMNS, the last one padded, so that what is summed over rows stays in registers.


@distinct
def _tokens(S, u, read, out, q, k, v, a, beta, o, rest, b, h, kh, step, start, stop):
    """Tokens of one head: the decay and write that the token before left to do, ``S <- a (S + p u^T)``, then r, u and o."""
    K, V, keep = k.shape[3], v.shape[3], rest.size > 0
    for t in range(start, stop):
        before, soon = max(t - 1, 0), min(t + AHEAD, k.shape[1] - 1)
        for i in range(0, K, LINE):
            fetch(q, b, soon, kh, i)
            fetch(k, b, soon, kh, i)
            if step:
                fetch(a, b, soon, h, i)
        for j in range(0, V, LINE):
            fetch(v, b, soon, h, j)
            fetch(o, b, soon, h, j)
        both = ZERO  # o = (D + k u^T)^T q = D^T q + (k . q) u
        for i in range(K):
            both += k[b, t, kh, i] * q[b, t, kh, i]
        for c in range(u.shape[0]):
            for j in range(COLUMNS):
                read[j], out[j] = ZERO, ZERO
            for i in range(K):
                decay, key, query = a[b, t, h, i * step], k[b, t, kh, i], q[b, t, kh, i]
                write = k[b, before, kh, i] * decay
                for j in range(COLUMNS):
                    s = S[c, i, j] * decay + write * u[c, j]
                    S[c, i, j] = s
                    read[j] += key * s
                    out[j] += query * s
            first = c * COLUMNS
            for j in range(min(COLUMNS, V - first)):
                u[c, j] = beta[b, t, h] * (v[b, t, h, first + j] - read[j])
                o[b, t, h, first + j] = out[j] + both * u[c, j]
            if keep:
                for j in range(min(COLUMNS, V - first)):
                    rest[b, t, h, first + j] = v[b, t, h, first + j] - read[j]


@distinct
def _store(S, u, k, b, t, h, kh, out, chunk):
    """``out = S + p u^T``, the state after token t (none: u is 0): [blocks, K, COLUMNS] -> [B, H, chunks, K, V]."""
    K, V = out.shape[3], out.shape[4]
    for c in range(u.shape[0]):
        for i in range(K):
            p = k[b, t, kh, i]
            for j in range(min(COLUMNS, V - c * COLUMNS)):
                out[b, h, chunk, i, c * COLUMNS + j] = S[c, i, j] + p * u[c, j]


@distinct
def _load(S, u, state, b, h):
    """The blocks of a state, and nothing to write yet."""
    K, V = state.shape[2], state.shape[3]
    for c in range(u.shape[0]):
        for j in range(COLUMNS):
            u[c, j] = ZERO
        for i in range(K):
            for j in range(COLUMNS):
                S[c, i, j] = state[b, h, i, c * COLUMNS + j] if c * COLUMNS + j < V else ZERO


@compiled
def forward_heads(q, k, v, a, beta, state, o, end, rest, states, scratch, first, last):
    (B, T, H, V), K = v.shape, q.shape[3]
    group, step, keep = H // q.shape[2], 1 if a.shape[3] > 1 else 0, rest.size > 0
    blocks = (len(scratch) - 2) // (K + 1)
    S, u = scratch[: blocks * K].reshape(blocks, K, COLUMNS), scratch[blocks * K : -2]
    read, out = scratch[-2], scratch[-1]
    last_state = end.reshape(B, H, 1, K, V)
    for n in range(first, last):
        b, h = n // H, n % H
        _load(S, u, state, b, h)
        for start in range(0, T, KEEP if keep else T):
            if keep:
                _store(S, u, k, b, max(start - 1, 0), h, h // group, states, start // KEEP)
            stop = min(T, start + KEEP) if keep else T
            _tokens(S, u, read, out, q, k, v, a, beta, o, rest, b, h, h // group, step, start, stop)
        _store(S, u, k, b, T - 1, h, h // group, last_state, 0)


@distinct
def _again(D, u, k, a, beta, rest, states, b, h, kh, step, chunk, start, stop):
    """The decayed states of the tokens ``start`` to ``stop``, [KEEP, K, V], from the one that was kept before them."""
    K, V = states.shape[3], states.shape[4]
    for i in range(K):
        decay = a[b, start, h, i * step]
        for j in range(V):
            D[0, i, j] = states[b, h, chunk, i, j] * decay
    for t in range(start + 1, stop):
        here = t - start
        for j in range(V):
            u[j] = beta[b, t - 1, h] * rest[b, t - 1, h, j]
        for i in range(K):
            p, decay = k[b, t - 1, kh, i], a[b, t, h, i * step]
            for j in range(V):
                D[here, i, j] = (D[here - 1, i, j] + p * u[j]) * decay


@distinct
def _back(D, E, u, d_u, q, k, a, beta, rest, d_o, d_q, d_k, d_v, d_g, d_beta, b, h, kh, step, start, stop):
    """Gradients of tokens of one head, the last first; E [B, H, K, V], what reaches a state, becomes what reaches the one before."""
    K, V = E.shape[2], E.shape[3]
    for t in range(stop - 1, start - 1, -1):
        here = t - start
        both = ZERO  # S d_o = D d_o + k (u . d_o)
        for j in range(V):
            u[j] = beta[b, t, h] * rest[b, t, h, j]
            d_u[j] = ZERO
            both += u[j] * d_o[b, t, h, j]
        for i in range(K):  # E += q d_o^T, E^T k, and the sums over V of E u and D d_o
            query, key, by_u, by_o = q[b, t, kh, i], k[b, t, kh, i], ZERO, ZERO
            for j in range(V):
                e = E[b, h, i, j] + query * d_o[b, t, h, j]
                E[b, h, i, j] = e
                d_u[j] += key * e
                by_u += e * u[j]
                by_o += D[here, i, j] * d_o[b, t, h, j]
            d_k[b, t, h, i] = by_u
            d_q[b, t, h, i] = by_o + both * key
            d_g[b, t, h, i * step] = ZERO
        by_r = ZERO
        for j in range(V):
            by_r += d_u[j] * rest[b, t, h, j]
            d_v[b, t, h, j] = beta[b, t, h] * d_u[j]
        d_beta[b, t, h] = by_r
        for i in range(K):  # E <- a (E - k d_v^T); sums over V of D d_v and of D times the bracket
            key, decay, by_v, by_d = k[b, t, kh, i], a[b, t, h, i * step], ZERO, ZERO
            for j in range(V):
                d = E[b, h, i, j] - key * d_v[b, t, h, j]
                by_v += D[here, i, j] * d_v[b, t, h, j]
                by_d += D[here, i, j] * d
                E[b, h, i, j] = decay * d
            d_k[b, t, h, i] -= by_v
            d_g[b, t, h, i * step] += by_d


@compiled
def _backward_heads(q, k, a, beta, rest, states, d_o, d_q, d_k, d_v, d_g, d_beta, d_state, scratch, first, last):
    (_, T, H, V), K = rest.shape, q.shape[3]
    group, step = H // q.shape[2], 1 if a.shape[3] > 1 else 0
    D, u, d_u = scratch[: KEEP * K].reshape(KEEP, K, V), scratch[KEEP * K], scratch[KEEP * K + 1]
    for n in range(first, last):
        b, h = n // H, n % H
        for chunk in range((T - 1) // KEEP, -1, -1):
            start, stop = chunk * KEEP, min(T, (chunk + 1) * KEEP)
            _again(D, u, k, a, beta, rest, states, b, h, h // group, step, chunk, start, stop)
            # d_state is in: the gradient of the final state; out: of the first
            _back(D, d_state, u, d_u, q, k, a, beta, rest, d_o, d_q, d_k, d_v, d_g, d_beta, b, h, h // group, step, start, stop)
