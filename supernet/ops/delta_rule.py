"""The gated delta rule, for KDA (decay per channel) and GDN (decay per head), in float32.

Shapes: B batch, T tokens, H heads, K key dimension, V value dimension, C chunk, N chunks.
``q, k`` [B, T, H, K]; ``v`` [B, T, H, V]; ``g`` [B, T, H, K] or [B, T, H, 1], log decay <= 0; ``beta`` [B, T, H]; state [B, H, K, V].

One step (Yang et al. 2024, Gated DeltaNet, eq. 10; Kimi Linear 2025, eq. 1):
``S <- diag(exp(g)) S;  u = beta (v - S^T k);  S <- S + k u^T;  o = S^T q``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16
"""Tokens per chunk: 8 to 32 were measured, on a CPU 16 is fastest."""

BLOCK = 4
"""Rows of a triangular system that are solved at once."""

STRONG = -60.0
"""A log decay over a chunk that float32 can undo: exp(60) = 1e26, with room for the values that are multiplied by it."""

FORGOTTEN = -104.0
"""A log decay whose exponential is 0 in float32: one below it, or -inf, forgets no more."""


def delta_rule_recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token at a time: the reference that faster paths are tested against. Returns (o [B, T, H, V], state)."""
    dtype = q.dtype
    q, k, v, g, beta = (x.float() for x in (q, k, v, g, beta))
    S = q.new_zeros(*k[:, 0].shape, v.shape[-1]) if state is None else state.float()
    outputs = []
    for t in range(q.shape[1]):
        S = S * g[:, t].exp()[..., None]
        u = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhkv,bhk->bhv", S, k[:, t]))
        S = S + k[:, t, :, :, None] * u[:, :, None, :]
        outputs.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(outputs, 1).to(dtype), S


def _pair_products(q: Tensor, k: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_d x_id k_jd exp(G_id - G_jd)`` for j <= i, else 0, for x = q and x = k: two [..., C, C]. For any decay, but slow.

    The difference is masked before the exponential: above the diagonal it is positive and would overflow, and the gradient of
    ``inf * 0`` is NaN. Below it every exponent is <= 0, so no decay is too strong. ``G`` is float64.
    """
    C = q.shape[-2]
    later = torch.ones(C, C, dtype=torch.bool, device=q.device).triu(1)
    if G.shape[-1] == 1:
        decay = (G - G.mT).masked_fill(later, -torch.inf).float().exp()
        return (q @ k.mT) * decay, (k @ k.mT) * decay
    decay = (G[..., :, None, :] - G[..., None, :, :]).masked_fill(later[..., None], -torch.inf).float().exp()  # [..., C(i), C(j), K]
    pairs = (decay * k[..., None, :, :]) @ torch.stack([q, k], -1)  # [..., C, C, 2]
    return pairs[..., 0], pairs[..., 1]


def solve_unit_triangular(A: Tensor, rhs: Tensor) -> Tensor:
    """``X`` with ``(I + tril(A, -1)) X = rhs``: A [..., C, C], of which only what is below the diagonal is read, rhs [..., C, M].

    Forward substitution over blocks of BLOCK rows, in each ``(I + N)^-1 = (I - N)(I + N^2)`` exactly, as N^4 = 0: a few batched
    products, 4 to 5 times faster than LAPACK's loop over small matrices. Larger blocks cancel: with equal keys, whose A is all ones,
    16 rows at once lose three digits where blocks of 4 lose none.
    """
    rows: list[Tensor] = []
    for start in range(0, A.shape[-1], BLOCK):
        stop = start + BLOCK
        x = rhs[..., start:stop, :]
        if rows:
            x = x - A[..., start:stop, :start] @ torch.cat(rows, -2)
        N = A[..., start:stop, start:stop].tril(-1)
        x = x - N @ x
        rows.append(x + N @ (N @ x))
    return torch.cat(rows, -2)


def delta_rule_chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The same as ``delta_rule_recurrent``, a chunk of tokens at a time by matrix products (WY form, Yang et al. 2024, eq. 8-9).

    Inside a chunk with cumulative decay G and incoming state S0, ``(I + beta tril(A_kk, -1)) U = beta (V - (e^G K) S0)``, a unit
    triangular system; then ``O = (e^G Q) S0 + tril(A_qk) U`` and ``S = e^{G_C} S0 + (e^{G_C - G} K)^T U``. The pair products are
    ``A_qk = (e^G Q)(e^{-G} K)^T`` where the decays are mild enough for e^{-G}, which is nearly always; otherwise one pair at a time.
    """
    dtype, (B, T, H, K), V, C = q.dtype, q.shape, v.shape[-1], chunk
    N = -(-T // C)

    def split(x: Tensor) -> Tensor:  # [B, T, H, *] -> [B, H, N, C, *]; zero keys, betas and decays at the end change nothing
        return F.pad(x.float(), (0, 0, 0, 0, 0, N * C - T)).unflatten(1, (N, C)).permute(0, 3, 1, 2, 4).contiguous()

    q, k, v, g, beta = split(q), split(k), split(v), split(g), split(beta[..., None])
    G = wide = g.cumsum(-2)
    mild = bool(G.amin() > STRONG)  # waits for the device: cheap against what the other way costs
    if not mild:  # -inf - -inf would be NaN, and a difference of sums as large as those after a strong decay has no digits in float32
        wide = g.clamp_min(FORGOTTEN).double().cumsum(-2)
        G = wide.float()
    down, total = G.exp(), G[..., -1:, :]
    q_down, k_down = q * down, k * down
    if mild:
        k_up = k * (-G).exp()  # not k / down: its gradient squares down and overflows
        A_qk, A_kk = (torch.cat([q_down, k_down], -2) @ k_up.mT).split(C, -2)
        A_qk = A_qk.tril()
        k_to_end = k_up * total.exp()
    else:
        A_qk, A_kk = _pair_products(q, k, wide)
        k_to_end = k * (wide[..., -1:, :] - wide).float().exp()
    k_to_end, decay_all = k_to_end.mT, total.exp().mT  # [B, H, N, K, C], [B, H, N, K or 1, 1]
    rhs = beta * torch.cat([v, k_down], -1)
    U0, W = solve_unit_triangular(beta * A_kk, rhs).split([V, K], -1)

    S = q.new_zeros(B, H, K, V) if state is None else state.float()
    states, updates = [], []
    for U0_n, W_n, k_n, decay_n in zip(U0.unbind(2), W.unbind(2), k_to_end.unbind(2), decay_all.unbind(2), strict=True):
        states.append(S)
        u = U0_n - W_n @ S
        updates.append(u)
        S = decay_n * S + k_n @ u
    o = q_down @ torch.stack(states, 2) + A_qk @ torch.stack(updates, 2)
    return o.permute(0, 2, 3, 1, 4).reshape(B, N * C, H, V)[:, :T].to(dtype), S


def saved_floats(tokens: int, K: int, V: int, per_channel: bool) -> float:
    """float32 numbers that autograd keeps for one head of one sequence through ``delta_rule_chunked`` (counted with CHUNK = 16)."""
    per_token = (17.375 if per_channel else 14.25) * K + 9.25 * V + 2 * K * V / CHUNK + (69 if per_channel else 72.1)
    return -(-tokens // CHUNK) * CHUNK * per_token
