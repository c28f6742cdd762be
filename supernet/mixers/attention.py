"""Full attention and sliding-window attention: one class, two sets of weights. Shapes: B batch, T tokens, D hidden, H heads, d head dim."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.config import SupernetConfig
from supernet.layers import RMSNorm, rotate, turns_of
from supernet.ops.cache import attend_after, write
from supernet.ops.kernels import fused
from supernet.ops.window import window_attention, window_attention_masked


class FullAttention(nn.Module):
    """Grouped-query causal attention with rotary positions: [B, T, D] -> [B, T, D]. Query head h reads key-value head h // group."""

    windowed = False

    def __init__(self, config: SupernetConfig):
        super().__init__()
        c = self.config = config
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)
        if c.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(c.head_dim, c.norm_eps), RMSNorm(c.head_dim, c.norm_eps)

    def qkv(self, x: Tensor, start: int | Tensor = 0, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> q [B, H, T - first, d], k and v [B, kv_heads, T, d], normed and rotated. ``start``: position of the first token, or
        [B]; ``first``: tokens that ask for nothing."""
        c = self.config
        q, k, v = (y.transpose(1, 2) for y in self.projected(x, first))
        return rotate(q, c.rope, start + first), rotate(k, c.rope, start), v

    def projected(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> q [B, T - first, H, d], k and v [B, T, kv_heads, d], normed."""
        projections = (self.q_proj, x[:, first:]), (self.k_proj, x), (self.v_proj, x)
        q, k, v = (p(y).unflatten(-1, (-1, self.config.head_dim)) for p, y in projections)
        return (self.q_norm(q), self.k_norm(k), v) if self.config.qk_norm else (q, k, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A whole sequence: k and v [B, kv_heads, T, d], q of all or of the last tokens [B, H, T or fewer, d] -> the same."""
        c = self.config
        # Keys and values are repeated here because enable_gqa leaves the fused CPU kernel.
        k, v = k.repeat_interleave(c.group, 1), v.repeat_interleave(c.group, 1)
        if q.shape[2] < k.shape[2]:
            return window_attention_masked(q, k, v, c.window if self.windowed else k.shape[2])
        if self.windowed and c.window < q.shape[2]:
            return window_attention(q, k, v, c.window)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def out(self, o: Tensor) -> Tensor:
        """[B, H, T, d] -> [B, T, D]."""
        return self.o_proj(o.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """[B, T, D] -> the outputs of the tokens from ``first`` on [B, T - first, D]."""
        unseen = max(0, first - self.config.window + 1) if self.windowed else 0
        if fused(x):
            return self.o_proj(self.in_one_pass(x[:, unseen:], unseen, first - unseen))
        return self.out(self.attend(*self.qkv(x[:, unseen:], unseen, first - unseen)))

    def in_one_pass(self, x: Tensor, start: int, first: int) -> Tensor:
        """[B, T, D] -> what ``o_proj`` takes [B, T - first, H d]: ``qkv``, ``attend`` and the order of ``out`` in compiled loops."""
        from supernet.ops.numba_attention import attend  # imports numba

        q, k, v = self.projected(x, first)
        turn = turns_of(x.shape[1], self.config.head_dim, self.config.rope, start, x.device, torch.float32)
        return attend(q, k, v, *turn, self.config.window if self.windowed else x.shape[1])

    @classmethod
    def state_shapes(cls, config: SupernetConfig, room: int, dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """What decoding keeps of one sequence of at most ``room`` tokens: keys and values, if windowed of the last ``window`` tokens."""
        kept = min(config.window, room) if cls.windowed else room
        return [((config.kv_heads, kept, config.head_dim), dtype)] * 2

    @classmethod
    def overwrites(cls, config: SupernetConfig, room: int) -> bool:
        """Whether new tokens take the place of old ones: then going back to fewer tokens needs a copy of the state."""
        return cls.windowed and config.window < room

    def extend(self, x: Tensor, state: list[Tensor], start: int | Tensor) -> Tensor:
        """Goes on after ``start`` tokens whose keys and values ``state`` holds, and adds the new ones: [B, T, D] -> [B, T, D]."""
        q, k, v = self.qkv(x, start)
        if isinstance(start, int) and start == 0:
            write(k, v, *state, start)
            return self.out(self.attend(q, k, v))
        return self.out(attend_after(q, k, v, *state, start, self.config.window if self.windowed else None))

    def query_and_key(self) -> tuple[Tensor, Tensor]:
        """The q and k weights [heads * d, D], [kv_heads * d, D]; the norms' weights are multiplied in, which leaves the directions of q and
        k of every head as they are after the norms."""
        q, k = self.q_proj.weight, self.k_proj.weight
        if not self.config.qk_norm:
            return q, k
        c = self.config
        return q * self.q_norm.weight.repeat(c.heads)[:, None], k * self.k_norm.weight.repeat(c.kv_heads)[:, None]

    @classmethod
    def mixing_flops(cls, config: SupernetConfig, tokens: int) -> float:
        """FLOPs of scores and weighted sums for one sequence, without the projections; only the causal (windowed) pairs count."""
        reach = min(config.window, tokens) if cls.windowed else tokens
        pairs = reach * (reach + 1) / 2 + (tokens - reach) * reach
        return 4.0 * pairs * config.heads * config.head_dim

    @classmethod
    def saved_bytes(cls, config: SupernetConfig, batch: int, tokens: int, itemsize: int) -> float:
        """Bytes that autograd keeps for the backward pass: the input, queries, keys and values of all heads, the output twice, log-sums,
        rotations and the mask of a window. ``itemsize``: of activations; 2 under autocast."""
        width = config.heads * config.head_dim
        mask = tokens**2 * itemsize if cls.windowed and config.window < tokens else 0
        return batch * tokens * (itemsize * (config.hidden + 5 * width) + 4 * config.heads) + 2 * tokens * config.head_dim * itemsize + mask

    @torch.no_grad()
    def init_from_attention(self, teacher: "FullAttention") -> None:
        """An exact copy."""
        self.load_state_dict(teacher.state_dict())


class SlidingWindowAttention(FullAttention):
    """Full attention that sees the last ``window`` tokens, itself included."""

    windowed = True
