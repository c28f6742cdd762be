"""Kimi Delta Attention and Gated DeltaNet. Shapes: B batch, T tokens, D hidden, H heads, d head dimension."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.config import SupernetConfig
from supernet.layers import CausalConv, RMSNorm
from supernet.mixers.attention import FullAttention
from supernet.ops.delta_rule import saved_floats
from supernet.ops.kernels import delta_rule, delta_rule_from, fused

Convolve = Callable[[CausalConv, Tensor, Tensor | None], tuple[Tensor, Tensor]]

L2_EPS = 1e-6
TAP = 0.5  # initial tap of the convolutions at the current token
VALUE_TAP = 0.1  # smaller for values: SiLU is nearly linear there
A_LOG = math.log(0.1)  # with dt_bias 0 a state keeps exp(-0.1 ln 2) = 0.933 per token


def unit(x: Tensor, scale: float = 1.0) -> Tensor:
    """``scale * x / |x|`` over the last axis in float32: keys of unit length keep the delta rule a contraction."""
    x = x.float()
    return x * (torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS) * scale)


def log_decay(A_log: Tensor, raw: Tensor) -> Tensor:
    """``-exp(A_log) softplus(raw)`` in float32, the log of what a state keeps per token (Mamba-2's parametrisation)."""
    return -A_log.float().exp() * F.softplus(raw.float())


def _same_heads(name: str, own: tuple[int, int], teacher: SupernetConfig) -> None:
    if own != (teacher.heads, teacher.head_dim):
        raise ValueError(
            f"{name} has {own[0]} heads of {own[1]}, the teacher {teacher.heads} of {teacher.head_dim}: initialisation needs them equal"
        )


def _per_query_head(weight: Tensor, d: int, group: int) -> Tensor:
    """Rows of every key-value head, repeated for the query heads that read it: [kv_heads * d, D] -> [heads * d, D]."""
    return weight.unflatten(0, (-1, d)).repeat_interleave(group, 0).flatten(0, 1)


def _start_constant(mixer: nn.Module) -> None:
    """The decay of 0.933 a token everywhere, and a norm that does not weigh channels."""
    mixer.A_log.fill_(A_LOG)
    mixer.dt_bias.zero_()
    mixer.norm.weight.fill_(1.0)


def _low_rank(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``b @ a`` nearest to ``weight`` [M, D] (Eckart-Young): a [rank, D], rows orthonormal, and b [M, rank].

    Beyond the rank of ``weight`` the columns of b are zero and the rows of a stay, so that b gets a gradient there.
    """
    V = torch.linalg.svd(weight.float(), full_matrices=True)[2][:rank]
    a = weight.new_zeros(rank, weight.shape[1])
    a[: len(V)] = V
    return a, weight @ a.T


def extend_delta(self: nn.Module, x: Tensor, state: list[Tensor], start: int | Tensor) -> Tensor:
    """``extend`` of every mixer between whose ``inputs`` and ``out`` lies the delta rule: goes on from ``state`` and replaces it."""
    past, S = state
    q, k, v, g, beta, gate, new_past = self.inputs(x, past)
    o, new_S = delta_rule_from(q, k, v, g, beta, S)
    past.copy_(new_past)
    S.copy_(new_S)
    return self.out(o.to(x.dtype), gate)


def always_overwrites(cls: type[nn.Module], config: SupernetConfig, room: int) -> bool:
    """``overwrites`` of every mixer with one state for all that it has seen."""
    return True


class KimiDeltaAttention(nn.Module):
    """Delta rule with a decay per channel (Kimi Linear, arXiv 2510.26692): [B, T, D] -> [B, T, D]. No grouping, no rotary positions."""

    def __init__(self, config: SupernetConfig):
        super().__init__()
        c = self.config = config
        H, d, width = c.kda_heads, c.kda_dim, c.kda_heads * c.kda_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(c.hidden, width, bias=False) for _ in range(3))
        self.q_conv, self.k_conv, self.v_conv = (CausalConv(width, c.conv_width) for _ in range(3))
        self.f_a_proj, self.f_b_proj = nn.Linear(c.hidden, d, bias=False), nn.Linear(d, width, bias=False)
        self.g_a_proj, self.g_b_proj = nn.Linear(c.hidden, d, bias=False), nn.Linear(d, width, bias=False)
        self.beta_proj = nn.Linear(c.hidden, H, bias=False)
        self.o_proj = nn.Linear(width, c.hidden, bias=False)
        self.A_log = nn.Parameter(torch.full((H,), A_LOG))
        self.dt_bias = nn.Parameter(torch.zeros(width))
        self.norm = RMSNorm(d, c.delta_norm_eps)

    def inputs(self, x: Tensor, past: Tensor | None = None, convolve: Convolve = CausalConv.__call__) -> tuple[Tensor, ...]:
        """[B, T, D] -> q, k, v, g [B, T, H, d], beta [B, T, H], gate [B, T, H, d] and the next ``past`` [B, width - 1, 3 H d].

        ``past``: the convolutions' last inputs (queries, keys, values) of the tokens before; None where x is the start. ``convolve``:
        what computes them, given a CausalConv, its input and its past.
        """
        c = self.config
        befores = [None] * 3 if past is None else past.chunk(3, -1)
        mixed = [
            convolve(conv, proj(x), before)
            for conv, proj, before in zip(
                (self.q_conv, self.k_conv, self.v_conv), (self.q_proj, self.k_proj, self.v_proj), befores, strict=True
            )
        ]
        q, k, v = (y.unflatten(-1, (c.kda_heads, c.kda_dim)) for y, _ in mixed)
        raw = self.f_b_proj(self.f_a_proj(x)).float() + self.dt_bias.float()
        g = log_decay(self.A_log[:, None], raw.unflatten(-1, (c.kda_heads, c.kda_dim)))
        beta = self.beta_proj(x).float().sigmoid()
        z = self.g_b_proj(self.g_a_proj(x)).unflatten(-1, (c.kda_heads, c.kda_dim))
        gate = F.silu(z) if c.kda_gate == "silu" else z.sigmoid()
        return unit(q, c.kda_dim**-0.5), unit(k), v, g, beta, gate, torch.cat([last for _, last in mixed], -1)

    def out(self, o: Tensor, gate: Tensor) -> Tensor:
        """o, in the dtype of the layer's input, and gate [B, T, H, d] -> [B, T, D]."""
        return self.o_proj((self.norm(o) * gate).flatten(2))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """[B, T, D] -> the outputs of the tokens from ``first`` on [B, T - first, D]."""
        if fused(x):
            return self.o_proj(self.in_one_pass(x, first))
        q, k, v, g, beta, gate, _ = self.inputs(x)
        return self.out(delta_rule(q, k, v, g, beta)[:, first:].to(x.dtype), gate[:, first:])

    def in_one_pass(self, x: Tensor, first: int) -> Tensor:
        """[B, T, D] -> what ``o_proj`` takes [B, T - first, H d]: ``inputs``, the delta rule and ``out`` in compiled loops."""
        from supernet.ops.numba_mixing import Part, mix  # imports numba

        c = self.config
        q, k, v = (
            Part(proj(x), conv.taps(x.dtype))
            for proj, conv in ((self.q_proj, self.q_conv), (self.k_proj, self.k_conv), (self.v_proj, self.v_conv))
        )
        gate, decay, beta = self.g_b_proj(self.g_a_proj(x[:, first:])), self.f_b_proj(self.f_a_proj(x)), self.beta_proj(x)
        eps = L2_EPS, c.delta_norm_eps
        return mix(
            q, k, v, gate, decay, beta, self.A_log, self.dt_bias, self.norm.weight, eps, c.kda_heads, c.kda_dim, c.kda_gate == "silu"
        )

    @classmethod
    def state_shapes(cls, config: SupernetConfig, room: int, dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """What decoding keeps of one sequence, whatever its length: the convolutions' last inputs and the state, which is float32."""
        H, d = config.kda_heads, config.kda_dim
        return [((config.conv_width - 1, 3 * H * d), dtype), ((H, d, d), torch.float32)]

    overwrites = classmethod(always_overwrites)
    extend = extend_delta

    @classmethod
    def mixing_flops(cls, config: SupernetConfig, tokens: int) -> float:
        """FLOPs of the recurrence for one sequence (decay, read, write, query: 7 per state entry), without the projections."""
        return 7.0 * tokens * config.kda_heads * config.kda_dim**2

    @classmethod
    def saved_bytes(cls, config: SupernetConfig, batch: int, tokens: int, itemsize: int) -> float:
        """Bytes that autograd keeps for the backward pass; ``itemsize``: of activations, 2 under autocast. The recurrence is in float32."""
        c, width = config, config.kda_heads * config.kda_dim
        # input, low ranks; convolutions before and after SiLU; gate, normed and gated output
        own = itemsize * (c.hidden + 2 * c.kda_dim + 3 * width + 3 * width + 5 * width)
        # decay before and after softplus, queries and keys, output; beta and the three norms' factors per head
        single = 4 * (2 * width + 2 * width + width + 6 * c.kda_heads)
        return batch * (tokens * (own + single) + 4 * c.kda_heads * saved_floats(tokens, c.kda_dim, c.kda_dim, per_channel=True))

    @torch.no_grad()
    def init_from_attention(self, teacher: FullAttention) -> None:
        """Weights of the same heads, each with the key-value head it reads in the teacher. Biases are dropped: see ``calibrate``.

        The gate is the best low-rank fit of the value projection, decay and beta start constant. Raises ValueError on other head shapes.
        """
        c = self.config
        _same_heads("kda", (c.kda_heads, c.kda_dim), teacher.config)
        d, group = c.kda_dim, teacher.config.group
        q, keys = teacher.query_and_key()
        k, v = (_per_query_head(weight, d, group) for weight in (keys, teacher.v_proj.weight))
        for own, weight in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v), (self.o_proj, teacher.o_proj.weight)):
            own.weight.copy_(weight)
        for conv, tap in ((self.q_conv, TAP), (self.k_conv, TAP), (self.v_conv, VALUE_TAP)):
            conv.weight.zero_()[..., -1] = tap
        # With f_b at zero the decay starts constant and f_b gets a gradient; f_a reads the directions that keys read.
        self.f_b_proj.weight.zero_()
        self.f_a_proj.weight.copy_(_low_rank(keys, d)[0])
        a, b = _low_rank(v, d)
        self.g_a_proj.weight.copy_(a)
        self.g_b_proj.weight.copy_(b)
        self.beta_proj.weight.zero_()  # beta 0.5
        _start_constant(self)

    @torch.no_grad()
    def set_heads(self, retention: Tensor, taps: Tensor, gate: Tensor) -> None:
        """Per head: what the state keeps per token [H], the value convolution's taps [H, width], the gate's direction [H, D].

        All channels of a head share ``z_h = gate_h . x``.
        """
        d = self.config.kda_dim
        self.A_log.copy_((-retention.log() / math.log(2)).log())
        self.v_conv.weight.copy_(taps.repeat_interleave(d, 0)[:, None])
        a, b = _low_rank(gate, d)
        self.g_a_proj.weight.copy_(a)
        self.g_b_proj.weight.copy_(b.repeat_interleave(d, 0))


class GatedDeltaNet(nn.Module):
    """Delta rule with one decay per head (Yang et al. 2024, arXiv 2412.06464): [B, T, D] -> [B, T, D]. Query and key heads are grouped."""

    def __init__(self, config: SupernetConfig):
        super().__init__()
        c = self.config = config
        self.widths = [c.gdn_key_heads * c.gdn_key_dim] * 2 + [c.gdn_value_heads * c.gdn_value_dim] * 2  # Q, K, V, Z
        self.in_proj_qkvz = nn.Linear(c.hidden, sum(self.widths), bias=False)
        self.in_proj_ba = nn.Linear(c.hidden, 2 * c.gdn_value_heads, bias=False)
        self.convolution = CausalConv(sum(self.widths[:3]), c.conv_width)
        self.out_proj = nn.Linear(self.widths[3], c.hidden, bias=False)
        self.A_log = nn.Parameter(torch.full((c.gdn_value_heads,), A_LOG))
        self.dt_bias = nn.Parameter(torch.zeros(c.gdn_value_heads))
        self.norm = RMSNorm(c.gdn_value_dim, c.delta_norm_eps)

    def inputs(self, x: Tensor, past: Tensor | None = None, convolve: Convolve = CausalConv.__call__) -> tuple[Tensor, ...]:
        """[B, T, D] -> q, k [B, T, key heads, K], v [B, T, H, V], g [B, T, H, 1], beta [B, T, H], gate [B, T, H, V] and the next ``past``
        [B, width - 1, C].

        ``past``: the convolution's last inputs (queries, keys, values: C channels) of the tokens before; None where x is the start.
        ``convolve``: what computes it, given the CausalConv, its input and its past.
        """
        c = self.config
        qkv, z = self.in_proj_qkvz(x).split([sum(self.widths[:3]), self.widths[3]], -1)
        qkv, past = convolve(self.convolution, qkv, past)
        q, k, v = qkv.split(self.widths[:3], -1)
        q, k = (y.unflatten(-1, (c.gdn_key_heads, c.gdn_key_dim)) for y in (q, k))
        q, k = unit(q, c.gdn_key_dim**-0.5), unit(k)
        v, z = (y.unflatten(-1, (c.gdn_value_heads, c.gdn_value_dim)) for y in (v, z))
        b, a = self.in_proj_ba(x).float().chunk(2, -1)
        g = log_decay(self.A_log, a + self.dt_bias.float())[..., None]
        return q, k, v, g, b.sigmoid(), F.silu(z), past

    def out(self, o: Tensor, gate: Tensor) -> Tensor:
        """o, in the dtype of the layer's input, and gate [B, T, H, V] -> [B, T, D]."""
        return self.out_proj((self.norm(o) * gate).flatten(2))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """[B, T, D] -> the outputs of the tokens from ``first`` on [B, T - first, D]."""
        if fused(x):
            return self.out_proj(self.in_one_pass(x, first))
        q, k, v, g, beta, gate, _ = self.inputs(x)
        return self.out(delta_rule(q, k, v, g, beta)[:, first:].to(x.dtype), gate[:, first:])

    def in_one_pass(self, x: Tensor, first: int) -> Tensor:
        """[B, T, D] -> what ``out_proj`` takes [B, T - first, H V]: ``inputs``, the delta rule and ``out`` in compiled loops."""
        from supernet.ops.numba_mixing import Part, mix  # imports numba

        c = self.config
        of_qkv, of_z = self.in_proj_qkvz.weight.split([sum(self.widths[:3]), self.widths[3]])
        qkv, z, taps = F.linear(x, of_qkv), F.linear(x[:, first:], of_z), self.convolution.taps(x.dtype)
        q, k, v = (Part(qkv, taps, start) for start in (0, self.widths[0], 2 * self.widths[0]))
        beta, decay = self.in_proj_ba(x).chunk(2, -1)
        eps = L2_EPS, c.delta_norm_eps
        return mix(q, k, v, z, decay, beta, self.A_log, self.dt_bias, self.norm.weight, eps, c.gdn_key_heads, c.gdn_key_dim, True)

    @classmethod
    def state_shapes(cls, config: SupernetConfig, room: int, dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """What decoding keeps of one sequence, whatever its length: the convolution's last inputs and the state, which is float32."""
        c = config
        channels = 2 * c.gdn_key_heads * c.gdn_key_dim + c.gdn_value_heads * c.gdn_value_dim
        return [((c.conv_width - 1, channels), dtype), ((c.gdn_value_heads, c.gdn_key_dim, c.gdn_value_dim), torch.float32)]

    overwrites = classmethod(always_overwrites)
    extend = extend_delta

    @classmethod
    def mixing_flops(cls, config: SupernetConfig, tokens: int) -> float:
        """FLOPs of the recurrence for one sequence (decay, read, write, query: 7 per state entry), without the projections."""
        return 7.0 * tokens * config.gdn_value_heads * config.gdn_key_dim * config.gdn_value_dim

    @classmethod
    def saved_bytes(cls, config: SupernetConfig, batch: int, tokens: int, itemsize: int) -> float:
        """Bytes that autograd keeps for the backward pass; ``itemsize``: of activations, 2 under autocast. The recurrence is in float32."""
        c = config
        keys, values = c.gdn_key_heads * c.gdn_key_dim, c.gdn_value_heads * c.gdn_value_dim
        # input; convolution before and after SiLU; projection, normed and gated output
        own = itemsize * (c.hidden + 2 * (2 * keys + values) + (2 * keys + 2 * values) + 4 * values)
        # queries and keys (in float32 with the values beside them), output; norms' factors, decay and beta per head
        single = 4 * ((2 * keys + values if itemsize == 4 else 2 * keys) + values + 4 * c.gdn_key_heads + 4 * c.gdn_value_heads)
        floats = saved_floats(tokens, c.gdn_key_dim, c.gdn_value_dim, per_channel=False)
        return batch * (tokens * (own + single) + 4 * c.gdn_value_heads * floats)

    @torch.no_grad()
    def init_from_attention(self, teacher: FullAttention) -> None:
        """Weights of the same heads; a key head takes the key-value head that its first value head reads, and the mean of its query heads.

        The gate starts as the value projection; beta and decay start constant. Biases are dropped: see ``calibrate``.
        Raises ValueError on other head shapes.
        """
        c = self.config
        _same_heads("gdn", (c.gdn_value_heads, c.gdn_value_dim), teacher.config)
        d, group = c.gdn_value_dim, teacher.config.group
        if c.gdn_key_dim != d:
            raise ValueError(f"model.gdn_key_dim is {c.gdn_key_dim}, the teacher's head_dim {d}: initialisation needs them equal")
        shared = c.gdn_value_heads // c.gdn_key_heads
        q, k = teacher.query_and_key()
        q = q.unflatten(0, (c.gdn_key_heads, shared, d)).mean(1).flatten(0, 1)
        k, v = (_per_query_head(weight, d, group) for weight in (k, teacher.v_proj.weight))
        k = k.unflatten(0, (c.gdn_key_heads, shared, d))[:, 0].flatten(0, 1)
        self.in_proj_qkvz.weight.copy_(torch.cat([q, k, v, v]))
        self.in_proj_ba.weight.zero_()  # beta 0.5, decay constant
        self.convolution.weight.zero_()[..., -1] = TAP
        self.convolution.weight[sum(self.widths[:2]) :, :, -1] = VALUE_TAP
        self.out_proj.weight.copy_(teacher.o_proj.weight)
        _start_constant(self)

    @torch.no_grad()
    def set_heads(self, retention: Tensor, taps: Tensor, gate: Tensor) -> None:
        """Per value head: what the state keeps per token [H], the value convolution's taps [H, width], the gate's direction [H, D].

        All channels of a head share ``z_h = gate_h . x``.
        """
        d = self.config.gdn_value_dim
        self.A_log.copy_((-retention.log() / math.log(2)).log())
        self.convolution.weight[sum(self.widths[:2]) :] = taps.repeat_interleave(d, 0)[:, None]
        self.in_proj_qkvz.weight[sum(self.widths[:3]) :] = gate.repeat_interleave(d, 0)
